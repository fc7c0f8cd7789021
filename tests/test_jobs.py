"""`extract --jobs n`: processes that share one command's work, and end with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mfhca_cache.errors import CacheError, MfhcaError
from mfhca_cache.extraction import processes
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.processes import Crew, jobs_of
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.progress import Progress
from mfhca_cache.storage import layout
from mfhca_cache.storage.cache import open_cache

from .conftest import TINY
from .test_cli import run
from .test_extract import shard_bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def little_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips a shard: fifteen runs of clips. Started processes know it by the feature.json files."""
    monkeypatch.setattr(layout, "MAX_SHARD_CLIPS", 2)


def slowly(until: Callable[[], bool]) -> Callable[[Progress], None]:
    """A callback that keeps the first process at its first batches until the others have come so far."""
    limit = time.monotonic() + 60

    def wait(report: Progress) -> None:
        while report.total and not until() and time.monotonic() < limit:
            time.sleep(0.02)

    return wait


def children(of: int | None = None) -> set[int]:
    """Processes that this one, or another, has started for an extraction."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == (of or os.getpid()) and b"extraction.processes" in path.joinpath("cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:
            continue
    return found


def receipts(cache: Path) -> int:
    return len(list(cache.glob("*/*-[0-9][0-9][0-9][0-9].json")))


@pytest.mark.usefixtures("little_shards")
def test_two_processes_share_the_work_and_count_it_once(small_manifest: Manifest, tmp_path: Path) -> None:
    wild = tmp_path / "c"
    extract(small_manifest, wild, TINY, device="cpu")
    right = shard_bytes(wild)
    for path in wild.glob("*/*-0*"):
        path.unlink()
    seen: list[Progress] = []
    hold = slowly(lambda: receipts(wild) >= 6)

    def progress(report: Progress) -> None:
        seen.append(report)
        hold(report)

    report = extract(small_manifest, wild, TINY, device="cpu", jobs=2, progress=progress)
    assert shard_bytes(wild) == right
    assert (report.new_clips, report.new_shards, report.clips, report.ok) == (30, 30, 30, 24)
    assert report.bytes_written == sum(map(len, right.values()))
    assert report.notes == ()
    counted = [item for item in seen if item.total]
    assert {item.total for item in counted} == {30} and counted[-1].done == 30
    assert max(item.done for item in counted) == 30
    assert not children()


@pytest.mark.usefixtures("little_shards")
def test_a_killed_process_is_noticed_and_its_shards_are_made(small_manifest: Manifest, tmp_path: Path) -> None:
    cache, killed = tmp_path / "c", set[int]()

    def progress(report: Progress) -> None:
        slowly(lambda: receipts(cache) >= 4)(report)
        if report.total and not killed:
            killed.update(children())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    report = extract(small_manifest, cache, TINY, device="cpu", jobs=2, progress=progress)
    assert len(killed) == 1
    assert report.notes == (
        "one of 2 processes was killed by SIGKILL, as a system does that runs out of memory; the others did its work",
    )
    assert (report.clips, open_cache(cache).verify()) == (30, [])
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.usefixtures("little_shards")
def test_an_error_of_another_process_is_raised_as_it_is(small_manifest: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "c"

    def progress(report: Progress) -> None:
        # A folder stands where a shard of the other process is to be written.
        if report.total and not (cache / "random-tiny" / "session1-0003.h5").exists():
            (cache / "random-tiny" / "session1-0003.h5").mkdir()
        slowly(lambda: not children() or receipts(cache) > 99)(report)

    with pytest.raises(CacheError, match=r"random-tiny/session1-0003\.h5: could not be written"):
        extract(small_manifest, cache, TINY, device="cpu", jobs=2, progress=progress)
    assert not children()


COMMAND = "from mfhca_cache.storage import layout; layout.MAX_SHARD_CLIPS = 1; from mfhca_cache.cli import main; main()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_command_ends_its_processes(
    small_manifest: Manifest, tmp_path: Path, number: signal.Signals
) -> None:
    csv, cache = tmp_path / "m.csv", tmp_path / "c"
    write_manifest(small_manifest, csv)
    words = ["extract", "--manifest", str(csv), "--cache", str(cache), "--encoder", "random-tiny", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    others = set[int]()
    while not (others and receipts(cache)) and process.poll() is None:
        others = children(process.pid)
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL if number == signal.SIGKILL else 128 + number), output
    assert others and "Traceback" not in output
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{other}").exists() for other in others) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{other}").exists() for other in others)
    if number != signal.SIGKILL:
        assert not list(cache.rglob("*.tmp"))
    report = extract(small_manifest, cache, TINY, device="cpu")
    assert report.clips == 30 and open_cache(cache).verify() == []


def test_one_process_is_enough_where_there_is_little(
    small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(small_cache_folder)
    shards = [(info, item) for info in cache.features.values() for item in cache.plan.shards(info)]
    tasks = Survey(tmp_path, cache.plan).tasks(shards)
    assert len(tasks) == 3
    assert [jobs_of(jobs, tasks) for jobs in (None, 1, 2, 8)] == [1, 1, 2, 3]
    assert jobs_of(4, []) == 1
    for info, _ in shards:
        info.engine["device"] = "cuda"
    monkeypatch.setattr(processes, "_gpus", lambda: ["0", "1"])
    assert jobs_of(None, tasks) == 2
    for wrong in (0, -1):
        with pytest.raises(MfhcaError, match="expected 1 or more"):
            extract(small_manifest, tmp_path / "c", TINY, jobs=wrong)


def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, value in (("is_available", True), ("device_count", 3), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes._gpus() == ["1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6,7")
    assert processes._gpus() == ["6", "7", "4"]
    started: list[str | None] = []

    def start(self: Crew, gpu: str | None) -> object:
        started.append(gpu)
        raise OSError("no more processes")

    monkeypatch.setattr(Crew, "_start", start)
    with pytest.raises(OSError), Crew(2, {}):
        pass
    assert started == ["7"]


def test_the_command_takes_jobs(small_manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ("extract", "--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c", "--encoder", "none")
    value = json.loads(run(*words, "--jobs", "2", "--json").output)
    assert (value["new_shards"], value["clips"]) == (3, 30)
    run(*words, "--jobs", "0", expect=2)
