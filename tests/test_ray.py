"""The stages over a Ray cluster: the same results as here, whatever dies on the way. A real cluster of two CPUs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="needs Ray: pip install 'mfhca-cache[ray]'")

from mfhca_cache.distributed import cluster as cluster_module
from mfhca_cache.distributed import extract as extract_module
from mfhca_cache.distributed import train as train_module
from mfhca_cache.distributed.cluster import Cluster, Task, join_cluster
from mfhca_cache.distributed.extract import build, extract_on_ray
from mfhca_cache.distributed.train import TrainItem, train_on_ray
from mfhca_cache.errors import CacheError, ClusterError, TrainingError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.progress import Progress
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage import layout
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.publish import lock
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import read_fold
from mfhca_cache.training.seeds import seed_folder

from .conftest import TINY
from .test_cli import run
from .test_extract import shard_bytes

OPTIONS = TrainOptions(features="encoder", preset="frozen", protocol="session", epochs=1)  # Three folds.
MAIN = "import sys; from mfhca_cache.cli import main; sys.argv[0] = 'mfhca'; main()"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two CPUs that this process has joined. What tests define is sent to the workers by value."""
    found = cluster_module._import_ray()
    found.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )
    found.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def whole(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of shards of three clips, twelve a feature, extracted here; beside it, in ``begun``, as it was before."""
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_CLIPS", 3)
        report = extract(small_manifest, folder / "begun", TINY, device="cpu", shard=((), 1))
        assert (report.new_shards, report.covered) == (0, ())
        shutil.copytree(folder / "begun", folder / "whole")
        extract(small_manifest, folder / "whole", TINY, device="cpu")
    return folder / "whole"


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """The same cache, begun and without a shard."""
    return Path(shutil.copytree(whole.with_name("begun"), tmp_path / "c"))


def receipts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/session*.json"))}


def killer(mark: Path) -> threading.Thread:
    """Kills, with SIGKILL, the worker that writes its process id into the file."""

    def kill() -> None:
        for _ in range(1200):
            if mark.exists() and (text := mark.read_text()):
                os.kill(int(text), signal.SIGKILL)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def waits_to_be_killed(mark: Path, real: Callable[..., Any]) -> Callable[..., Any]:
    """The first call in the whole cluster says who it is and waits for its end; the others are the real ones."""

    def stopped(*arguments: Any, **options: Any) -> Any:
        try:
            with mark.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return real(*arguments, **options)
        time.sleep(600)

    return stopped


def mortal_build(**arguments: Any) -> Any:
    """`build`, killed once between a shard and its receipt."""
    from mfhca_cache.distributed.extract import build
    from mfhca_cache.storage import commit, publish

    mark = Path(arguments["folder"]).parent / "worker"
    commit.publish_json = waits_to_be_killed(mark, publish.publish_json)  # type: ignore[attr-defined]
    return build(**arguments)


def mortal_train(**arguments: Any) -> Any:
    """`train`, killed once between training a fold and storing it."""
    from mfhca_cache.distributed.train import train
    from mfhca_cache.training import crossval, result

    mark = Path(arguments["run"]).parent / "worker"
    crossval.write_fold = waits_to_be_killed(mark, result.write_fold)  # type: ignore[attr-defined]
    return train(**arguments)


def fatal(**arguments: Any) -> Any:
    """Dies whenever there is something to build."""
    from mfhca_cache.distributed.extract import build

    if "fold" in arguments or arguments["part"][0]:
        os._exit(1)
    return build(**arguments)


@pytest.mark.usefixtures("ray")
def test_extraction_is_the_same_as_here(small_manifest: Manifest, begun: Path, whole: Path) -> None:
    seen: list[Progress] = []
    report = extract_on_ray(small_manifest, begun, TINY, device="cpu", progress=seen.append)
    assert shard_bytes(begun) == shard_bytes(whole)
    assert receipts(begun) == receipts(whole)
    assert check_cache(begun, deep=True).faults == ()
    assert (report.new_shards, report.new_clips, report.clips, report.utterances) == (24, 30, 30, 24)
    assert report.rejected == () and report.features == ("spectrogram", "random-tiny")
    assert report.bytes_written == sum(path.stat().st_size for path in begun.rglob("*.h5"))
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (30, 30, "clips")
    again = extract_on_ray(small_manifest, begun, TINY)
    assert (again.new_shards, again.new_clips, again.bytes_written, again.clips) == (0, 0, 0, 30)


@pytest.mark.usefixtures("ray")
def test_a_new_cache_is_begun_by_a_node(small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path) -> None:
    report = extract_on_ray(small_manifest, tmp_path / "c", TINY, "session2", device="cpu", batch=4)
    cache = open_cache(tmp_path / "c")
    assert (report.splits, report.new_shards) == (("session2",), 2)
    assert cache.missing("random-tiny") == {"session1": 1, "session3": 1}
    assert cache.features["random-tiny"].engine["batch"] == 4
    extract_on_ray(small_manifest, tmp_path / "c", TINY)
    for name in ("spectrogram/session2-0000.h5", "random-tiny/session3-0000.h5"):
        assert (tmp_path / "c" / name).stat().st_size == (small_cache_folder / name).stat().st_size
    assert check_cache(tmp_path / "c", deep=True).faults == ()


@pytest.mark.usefixtures("ray")
def test_a_killed_worker_loses_and_doubles_nothing(
    small_manifest: Manifest, begun: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_module, "build", mortal_build)
    thread = killer(tmp_path / "worker")
    report = extract_on_ray(small_manifest, begun, TINY, device="cpu")
    thread.join()
    assert (tmp_path / "worker").exists()
    assert (report.new_shards, report.new_clips, report.rejected) == (24, 30, ())
    assert shard_bytes(begun) == shard_bytes(whole)
    assert receipts(begun) == receipts(whole)
    findings = check_cache(begun, deep=True)
    assert (findings.faults, findings.strays, findings.shards) == ((), (), 24)


@pytest.mark.usefixtures("ray")
def test_what_is_lost_for_good_is_named(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(small_manifest, tmp_path / "c", TINY, "session1", device="cpu")
    extract(small_manifest, tmp_path / "c", TINY, "session3", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "build", fatal)
        patch.setattr(cluster_module, "RETRIES", 0)
        with pytest.raises(CacheError, match=r"2 shard\(s\) are still missing: .*random-tiny/session2-0000.*died"):
            extract_on_ray(small_manifest, tmp_path / "c", TINY, device="cpu")
    assert extract_on_ray(small_manifest, tmp_path / "c", TINY).new_shards == 2


@pytest.mark.usefixtures("ray")
def test_an_interrupted_command_goes_on(small_manifest: Manifest, begun: Path, whole: Path) -> None:
    def stop(report: Progress) -> None:
        if report.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_on_ray(small_manifest, begun, TINY, device="cpu", progress=stop)
    left = open_cache(begun).missing("random-tiny")
    time.sleep(1)
    assert open_cache(begun).missing("random-tiny") == left, "tasks went on behind the command's back"
    assert not list(begun.rglob("*.tmp"))
    report = extract_on_ray(small_manifest, begun, TINY, device="cpu")
    assert report.new_shards >= sum(left.values())
    assert shard_bytes(begun) == shard_bytes(whole)


def workers_at_work() -> list[int]:
    """Process ids of the workers of this process's own cluster that are running a task."""

    def status(pid: str) -> tuple[str, str]:
        """The parent's process id, and what the process calls itself."""
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            return parent, Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return "0", ""

    found = {path.name: status(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}

    def is_mine(pid: str) -> bool:
        while pid in found and pid != str(os.getpid()):
            pid = found[pid][0]
        return pid == str(os.getpid())

    return [int(pid) for pid, (_, title) in found.items() if title.startswith("ray::_call") and is_mine(pid)]


def wait_for(what: Callable[[], Any]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute in vain")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_ends_the_command_and_its_tasks(ray: Any, small_manifest: Manifest, tmp_path: Path) -> None:
    """The one shard that a stranger holds keeps the command waiting until a worker is killed, and the signal comes."""
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ["extract", "--manifest", "m.csv", "--cache", "c", "--encoder", "none", "--device", "cpu", "--json"]
    words += ["--engine", "ray", "--address", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-c", MAIN, *words]
    folder = tmp_path / "c"
    with lock(folder, "spectrogram.session3-0000"):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        wait_for((folder / "spectrogram" / "session2-0000.json").exists)
        wait_for(workers_at_work)
        (first,) = workers_at_work()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: workers_at_work() not in ([], [first]))
        time.sleep(2)  # Ray's own word about the dead worker comes late.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert not workers_at_work()
    assert (process.returncode, out) == (130, "")
    assert err == "\nStopped. What was finished is kept; the same command goes on from there.\n"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["new_shards"] == 1


def test_a_node_that_does_not_see_the_storage_says_so(ray: Any, small_cache_folder: Path, tmp_path: Path) -> None:
    here = Cluster(ray)
    common = {"spec": TINY, "split": None, "device": "cpu", "begin": {}, "part": ((), 1)}
    gone = {"folder": str(tmp_path / "c"), "root": str(tmp_path), "seen": "0" * 64}
    with pytest.raises(ClusterError, match=rf"node .*: {tmp_path}/c/cache\.json is missing there"):
        here.run(build, [Task("x", common | gone)], cpus=1)
    other = {"folder": str(small_cache_folder), "root": str(tmp_path), "seen": "0" * 64}
    with pytest.raises(ClusterError, match=r"cache\.json is another file there"):
        here.run(build, [Task("x", common | other)], cpus=1)
    seen = cluster_module.file_sha256(small_cache_folder / "cache.json")
    moved = {"folder": str(small_cache_folder), "root": str(tmp_path / "corpus"), "seen": seen}
    with pytest.raises(ClusterError, match=rf"node .*: the corpus folder {tmp_path}/corpus is not there"):
        here.run(build, [Task("x", common | moved)], cpus=1)


@pytest.mark.usefixtures("ray")
def test_an_error_of_a_task_is_the_error_that_it_is_here(small_manifest: Manifest, tmp_path: Path) -> None:
    from mfhca_cache.errors import EncoderError

    spec = ExtractSpec(encoder=EncoderSpec(str(tmp_path)))
    with pytest.raises(EncoderError, match=r"config\.json and preprocessor_config\.json is missing"):
        extract_on_ray(small_manifest, tmp_path / "c", spec, device="cpu")
    with pytest.raises(ClusterError, match="no node of the Ray cluster has a GPU"):
        extract_on_ray(small_manifest, tmp_path / "c", TINY, device="cuda")
    assert not list((tmp_path / "c").glob("*/feature.json"))


def items(folder: Path, seeds: tuple[int, ...] = (0, 1)) -> list[TrainItem]:
    return [TrainItem(replace(OPTIONS, seed=seed), seed_folder(folder / "r", seed)) for seed in seeds]


def assert_trained_as_here(folder: Path, cache_folder: Path) -> None:
    """Every fold of both seeds, as `cross_validate` makes it in this process."""
    for item in items(folder):
        for result in cross_validate(open_cache(cache_folder), item.options, device="cpu"):
            stored = read_fold(item.run / f"fold{result.number:02d}")
            assert stored.record["scores"] == result.record["scores"]
            assert stored.predictions["prediction"].equals(result.predictions["prediction"])
            assert all(torch.equal(stored.state[name], value) for name, value in result.state.items())
        assert not list(item.run.glob(".*"))


@pytest.mark.usefixtures("ray")
def test_folds_and_seeds_are_the_same_as_here_though_a_worker_is_killed(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "train", mortal_train)
    thread = killer(tmp_path / "worker")
    seen: list[Progress] = []
    folders = train_on_ray(open_cache(small_cache_folder), items(tmp_path), device="cpu", progress=seen.append)
    thread.join()
    assert (tmp_path / "worker").exists()
    assert [path.parent.name for path in folders] == ["r"] * 3 + ["r-seed1"] * 3
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (6, 6, "folds")
    assert any("UA" in report.detail for report in seen)
    assert_trained_as_here(tmp_path, small_cache_folder)


@pytest.mark.usefixtures("ray")
def test_training_goes_on_where_it_stopped(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(small_cache_folder)
    cross_validate(cache, OPTIONS, fold=1, run=tmp_path / "r", device="cpu")
    stamp = (tmp_path / "r" / "fold01" / "result.json").stat().st_mtime_ns

    def stop(report: Progress) -> None:
        if report.done > report.resumed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_ray(cache, items(tmp_path), device="cpu", progress=stop)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train", fatal)
        patch.setattr(cluster_module, "RETRIES", 0)
        last = [TrainItem(OPTIONS, tmp_path / "other", fold=3)]
        with pytest.raises(TrainingError, match=r"1 fold\(s\) are still missing: .*other/fold03: a worker died"):
            train_on_ray(cache, last, device="cpu")
    train_on_ray(cache, items(tmp_path), device="cpu")
    assert (tmp_path / "r" / "fold01" / "result.json").stat().st_mtime_ns == stamp
    assert_trained_as_here(tmp_path, small_cache_folder)
    with pytest.raises(TrainingError, match="other settings"):
        train_on_ray(cache, [TrainItem(replace(OPTIONS, epochs=2), tmp_path / "r")])
    with pytest.raises(TrainingError, match="two items name one run"):
        train_on_ray(cache, [*items(tmp_path), *items(tmp_path)])


def test_a_training_that_fails_is_told_and_keeps_no_other_from_being_trained(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_here(function: Any, tasks: list[Task], **_: Any) -> tuple[dict[str, Any], dict[str, str]]:
        return {task.name: function(**task.arguments) for task in tasks}, {}

    here = SimpleNamespace(device=lambda _: "cpu", cpus_of_task=lambda *_: 1, run=run_here)
    monkeypatch.setattr(train_module, "join_cluster", lambda _: contextlib.nullcontext(here))
    cause: list[OSError | None] = [None]

    def failing(cache: Any, options: Any, *, run: str, **how: Any) -> Any:
        if run.endswith("-seed1"):
            raise TrainingError("the loss is not finite") from cause[0]
        return cross_validate(cache, options, run=run, **how)

    monkeypatch.setattr(train_module, "cross_validate", failing)
    cache, told = open_cache(small_cache_folder), []
    train_on_ray(cache, items(tmp_path), device="cpu", failed=lambda run, why: told.append((run, why)))
    assert told == [(tmp_path / "r-seed1", "the loss is not finite")] * 3
    assert len(list((tmp_path / "r").glob("fold*/result.json"))) == 3
    with pytest.raises(TrainingError, match="the loss is not finite"):
        train_on_ray(cache, items(tmp_path), device="cpu")
    cause[0] = OSError("no space left")
    with pytest.raises(TrainingError, match="the loss is not finite"):
        train_on_ray(cache, items(tmp_path), device="cpu", failed=lambda *_: pytest.fail("a full disk is no row's"))


@pytest.mark.usefixtures("ray")
def test_the_command_trains_seeds_on_ray(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--cache", small_cache_folder, "--features", "encoder", "--preset", "frozen", "--epochs", "1")
    text = run("train", *words, "--fold", "2F", "--seeds", "2", "--name", "t", "--engine", "ray").output
    assert "2 seeds" in text and "mfhca report runs/t-seed1" in text
    assert (tmp_path / "runs" / "t-seed1" / "fold04" / "result.json").exists()


def test_a_cluster_of_this_machine_is_started_where_none_is_named(small_cache_folder: Path, tmp_path: Path) -> None:
    words = ["train", "--cache", small_cache_folder, "--features", "encoder", "--preset", "frozen", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words), "--fold", "1", "--engine", "ray"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 (1M)" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "raylet" in line or "gcs" in line.lower()]


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0", "ray://127.0.0.1:10001", "127.0.0.1:x", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="expected HOST:PORT"):
        cluster_module._check_address(address)


def test_an_address_where_no_ray_answers_is_refused_in_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ClusterError, match="what answers there is not Ray"):
            cluster_module._check_address(f"127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"127.0.0.1:{port}: nothing answers there .*is the cluster up"):
        cluster_module._check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 6


def test_a_running_cluster_answers(ray: Any) -> None:
    cluster_module._check_address(ray.get_runtime_context().gcs_address)
    with join_cluster(None) as joined:
        assert [(node.cpus, node.gpus) for node in joined.nodes] == [(2, 0)]
    assert ray.is_initialized(), "a cluster that the caller has joined is not left"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_ray_the_error_says_what_to_install(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    result = run("train", "--cache", small_cache_folder, "--features", "encoder", "--engine", "ray", expect=1)
    assert "pip install 'mfhca-cache[ray]'" in result.output
    assert "--address is of a Ray cluster" in run("train", "--cache", "c", "--address", "auto", expect=2).output


def test_a_command_takes_no_part_of_what_ray_deals_out(small_manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ("extract", "--manifest", tmp_path / "m.csv", "--engine", "ray", "--shard", "1/2")
    assert "--engine ray cuts it by itself" in run(*words, expect=2).output


def test_tasks_ask_for_the_cores_that_they_use() -> None:
    def of(*nodes: tuple[int, int]) -> Cluster:
        found = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in nodes]
        return Cluster(SimpleNamespace(nodes=lambda: found))

    mixed = of((64, 0), (8, 0), (32, 4))
    assert mixed.device("auto") == "cuda" and of((8, 0)).device("auto") == "cpu"
    assert (mixed.cpus_of_task(16, gpu=False), mixed.slots(16, gpu=False)) == (16, 4 + 0 + 2)
    assert (mixed.cpus_of_task(128, gpu=False), mixed.slots(64, gpu=False)) == (64, 1)
    assert (mixed.cpus_of_task(16, gpu=True), mixed.slots(8, gpu=True)) == (8, 4)
    assert of((2, 4)).cpus_of_task(16, gpu=True) == 1
    with pytest.raises(ClusterError, match="offers a CPU"):
        of((0, 0))
