"""Folds trained at once, in processes and in turns, and the fast step: the numbers of the plain way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold
from mfhca_cache.models import MFHCASettings, build_model
from mfhca_cache.progress import Progress
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training import interleave, mapped, processes
from mfhca_cache.training.captured import _restore, capture_step
from mfhca_cache.training.crossval import cross_validate, has_fold
from mfhca_cache.training.data import CorpusData, fit_scaling
from mfhca_cache.training.interleave import RandomState, Steps, side_by_side
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import Recipe, TrainOptions
from mfhca_cache.training.result import FoldResult
from mfhca_cache.training.shared import SharedMemory
from mfhca_cache.training.step import LAUNCHED, WAITING, make_optimiser, train_step
from mfhca_cache.training.trainer import train_fold, train_folds

ENCODER = TrainOptions(features="encoder", preset="frozen", epochs=2)
BOTH = TrainOptions(preset="quick", epochs=1)


def same(one: FoldResult, two: FoldResult) -> bool:
    """Whether every number of two folds is the same, but for the clock's."""
    curves = [result.curve.drop(columns="seconds") for result in (one, two)]
    records = [{key: value for key, value in result.record.items() if key != "seconds"} for result in (one, two)]
    return (
        records[0] == records[1]
        and curves[0].equals(curves[1])
        and one.predictions.equals(two.predictions)
        and one.state.keys() == two.state.keys()
        and all(torch.equal(one.state[name], two.state[name]) for name in one.state)
    )


# Processes


@pytest.fixture(scope="module")
def alone(small_cache_folder: Path) -> list[FoldResult]:
    """Six folds of the encoder's branch, one after the other."""
    return cross_validate(open_cache(small_cache_folder), ENCODER, device="cpu")


def test_jobs_change_no_number(small_cache: Cache, alone: list[FoldResult], tmp_path: Path) -> None:
    reports: list[Progress] = []
    before = torch.get_num_threads()
    found = cross_validate(small_cache, ENCODER, run=tmp_path / "run", device="cpu", jobs=2, progress=reports.append)
    assert torch.get_num_threads() == before
    assert [result.number for result in found] == [1, 2, 3, 4, 5, 6]
    assert all(same(one, two) for one, two in zip(found, alone, strict=True))
    assert all(has_fold(tmp_path / "run", number) for number in range(1, 7))
    # Every fold tells of every epoch, and says at its end that it is done.
    last = {report.stage: report for report in reports if report.unit == "epochs"}
    assert len(last) == 6 and all(report.done == report.total for report in last.values())
    assert [report.done for report in reports if report.unit == "folds"] == list(range(7))


def test_both_inputs_and_features_outside_of_memory(small_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    inside = train_fold(small_cache, 2, BOTH, device="cpu")
    # The encoder's features fit, the spectrograms do not.
    monkeypatch.setattr(mapped, "free_memory", lambda device: 2_500_000)
    job = prepare(small_cache, BOTH, "cpu")
    found: list[FoldResult] = []
    processes.train_in_processes(job, job.folds[:2], 2, found.append, lambda report: said.append(report.detail))
    assert any("read batch by batch" in detail for detail in said)
    assert same(next(result for result in found if result.number == 2), inside)


def test_a_model_of_ones_own_in_processes(small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs_side_by_side.py").write_text(
        "import torch\n"
        "class Probe(torch.nn.Module):\n"
        "    def __init__(self, shapes, n_classes):\n"
        "        super().__init__()\n"
        "        self.out = torch.nn.Linear(next(iter(shapes.values()))[-1], n_classes)\n"
        "    def forward(self, features, masks):\n"
        "        return self.out(next(iter(features.values())).mean(1))\n"
        "class Fails(Probe):\n"
        "    def forward(self, features, masks):\n"
        "        return super().forward(features, masks) @ torch.zeros(99, 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = TrainOptions(model="theirs_side_by_side:Probe", features="random-tiny", epochs=2)
    one, two = (cross_validate(small_cache, options, device="cpu", jobs=jobs) for jobs in (1, 2))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(TrainingError, match=r"(?s)failed in forward.*theirs_side_by_side.py.*shapes cannot"):
        cross_validate(small_cache, replace(options, model="theirs_side_by_side:Fails"), device="cpu", jobs=2)


def test_threads_are_of_the_protocol_and_kept_by_the_run(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, threads in ((1, 1), (6, 1), (13, 2)):
        monkeypatch.setattr("mfhca_cache.training.job.usable_cores", lambda cores=cores: cores)
        assert prepare(small_cache, ENCODER, "cpu").threads == threads
    options = replace(ENCODER, epochs=1)
    (first,) = cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    assert first.record["threads"] == 2 and json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == 2
    monkeypatch.setattr("mfhca_cache.training.job.usable_cores", lambda: 1)
    (second,) = cross_validate(small_cache, options, fold=2, run=tmp_path / "run", device="cpu")
    assert second.record["threads"] == 2
    with pytest.raises(TrainingError, match=r"(?s)threads: 2 → 1.*run-threads1"):
        cross_validate(small_cache, replace(options, threads=1), fold=3, run=tmp_path / "run", device="cpu")
    with pytest.raises(TrainingError, match=r"(?s)precision: 'fp32' → 'bf16'.*run-bf16"):
        cross_validate(small_cache, replace(options, precision="bf16"), fold=3, run=tmp_path / "run", device="cpu")


def test_as_many_jobs_as_cores_and_memory_allow(small_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(small_cache, replace(ENCODER, threads=2), "cpu")
    for cores, memory, jobs in ((8, 10**12, 4), (64, 10**12, 6), (8, 9 * 10**9, 2), (8, 10**9, 1), (1, 10**12, 1)):
        monkeypatch.setattr(processes, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(processes, "free_memory", lambda device, memory=memory: memory)
        assert processes.jobs_that_fit(job, job.folds) == jobs


def test_shared_tensors_are_one_and_writes_stay_at_home() -> None:
    with SharedMemory() as memory:
        tensor = memory((3, 4), dtype=torch.float16)
        tensor.copy_(torch.arange(12).view(3, 4))
        code = (
            "import sys, torch; from mfhca_cache.training.shared import SharedTensor; "
            "found = SharedTensor(sys.argv[1], (3, 4), torch.float16).map(); found[0] += 100; print(found.tolist())"
        )
        words = [sys.executable, "-c", code, memory.where(tensor).path]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [[100, 101, 102, 103], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert tensor.flatten().tolist() == list(range(12))
        assert memory((0, 4), dtype=torch.float16).shape == (0, 4)


@pytest.fixture
def training(small_cache_folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`mfhca train --jobs 2` with its two processes at work, in a process group of its own."""
    words = [
        "train", "--cache", str(small_cache_folder), "--runs", str(tmp_path), "--name", "run", "--jobs", "2",
        "--preset", "quick", "--epochs", "500", "--device", "cpu",
    ]  # fmt: skip
    code = "import sys; sys.argv[0] = 'mfhca'; from mfhca_cache.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(group(process.pid)) < 4:  # With multiprocessing's own tracker.
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        yield process
    finally:
        for member in group(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


def group(leader: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("how", "status"),
    [("ctrl-c", 130), ("sigterm", 143), ("killed", -signal.SIGKILL), ("child", 1)],
)
def test_none_is_left_behind(training: subprocess.Popen[str], how: str, status: int) -> None:
    if how == "ctrl-c":  # A terminal sends it to all of them.
        os.killpg(training.pid, signal.SIGINT)
    elif how == "sigterm":
        training.terminate()
    elif how == "killed":
        training.kill()
    else:
        youngest = max(group(training.pid))
        os.kill(youngest, signal.SIGKILL)
    _, said = training.communicate(timeout=60)
    assert training.returncode == status, said
    assert "Traceback" not in said
    if how == "child":
        assert "its process was killed by SIGKILL" in said and "fold " in said
    elif how != "killed":
        assert "the same command goes on" in said
    deadline = time.monotonic() + 20
    while group(training.pid):
        assert time.monotonic() < deadline, group(training.pid)
        time.sleep(0.05)


# Turns on one device


def test_folds_in_turns_are_folds_alone(small_cache: Cache, alone: list[FoldResult]) -> None:
    job = prepare(small_cache, ENCODER, "cpu")
    found: list[FoldResult] = []
    torch.manual_seed(7)
    noise = torch.get_rng_state()
    train_folds(job, job.folds, load_job_data(job, job.folds), found.append, at_once=4)
    assert all(same(one, two) for one, two in zip(sorted(found, key=lambda r: r.number), alone, strict=True))
    assert torch.equal(torch.get_rng_state(), noise)


def test_whole_models_in_turns(small_cache: Cache) -> None:
    job = prepare(small_cache, BOTH, "cpu")
    data = load_job_data(job, job.folds[:2])
    apart, together = list[FoldResult](), list[FoldResult]()
    for fold in job.folds[:2]:
        train_folds(job, [fold], data, apart.append)
    train_folds(job, job.folds[:2], data, together.append, at_once=2)
    assert all(same(one, two) for one, two in zip(apart, together, strict=True))


def folds(count: int) -> list[Fold]:
    return [Fold(number, f"s{number}", "strict", (), (), (), (), ()) for number in range(1, count + 1)]


def test_turns_go_round_and_each_draws_its_own_noise() -> None:
    order: list[int] = []

    def begin(fold: Fold) -> Steps[tuple[int, list[float]]]:
        drawn = []
        for _ in range(3):
            drawn.append(float(torch.rand(())))
            order.append(fold.number)
            yield WAITING if fold.number == 2 else LAUNCHED
        return fold.number, drawn

    def run(at_once: int) -> dict[int, list[float]]:
        order.clear()
        found: list[tuple[int, list[float]]] = []
        side_by_side(folds(3), begin, found.append, seed=lambda fold: fold.number, device="cpu", at_once=at_once)
        return dict(found)

    one = run(1)
    assert order == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert run(2) == one
    assert order == [1, 2, 1, 2, 1, 2, 3, 3, 3]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert [float(torch.rand(())) for _ in range(3)] == one[3]


def test_a_fold_that_memory_does_not_hold_begins_anew_when_another_is_done() -> None:
    begun: list[int] = []

    def run(failures: int, count: int = 3) -> list[tuple[int, float]]:
        begun.clear()
        left = [failures]

        def begin(fold: Fold) -> Steps[tuple[int, float]]:
            begun.append(fold.number)
            yield LAUNCHED
            drawn = float(torch.rand(()))
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("no memory")
            yield LAUNCHED
            return fold.number, drawn

        found: list[tuple[int, float]] = []
        side_by_side(folds(count), begin, found.append, seed=lambda fold: fold.number, device="cpu", at_once=3)
        return sorted(found)

    alone = run(0)
    assert begun == [1, 2, 3]
    assert run(2) == alone
    assert begun == [1, 2, 3, 2, 1]  # The third alone first, then those that had to stand back.
    with pytest.raises(TrainingError, match=r"fold 1 \(s1\): the GPU's memory.*--device cpu"):
        run(1, count=1)


def test_a_random_state_goes_on_where_it_was() -> None:
    state = RandomState(5, "cpu")
    with state.in_use():
        first = torch.rand(2)
    torch.rand(9)
    with state.in_use():
        second = torch.rand(2)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(torch.rand(2), first) and torch.equal(torch.rand(2), second)


# The fast step beside the plain one

SIZES = MFHCASettings(channels=(8, 16), encoder_width=64, encoder_frames=30, n_classes=4)
RECIPE = Recipe("adamw", learning_rate=1e-3, batch=8)


def generated(device: str = "cpu", clips: int = 40) -> CorpusData:
    """Clips whose class shows in both inputs."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(clips) % 4
    tone = torch.zeros(4, 40)
    tone[torch.arange(4), torch.arange(4) * 10] = 8.0
    spectrogram = (torch.randn(clips, 60, 40, generator=noise) * 6 - 50 + tone[labels][:, None]).half()
    encoder = (torch.randn(clips, 30, 64, generator=noise) + labels[:, None, None] * 0.2).half()
    frames = torch.randint(30, 61, (clips,), generator=noise)
    return CorpusData(
        {"spectrogram": spectrogram.to(device), "encoder": encoder.to(device)},
        {"spectrogram": frames.to(device), "encoder": torch.full((clips,), 30).to(device)},
        labels.to(device),
        np.arange(clips),
        np.arange(clips).astype(str),
        labels.numpy(),
    )


def losses(data: CorpusData, precision: str = "fp32", captured: bool = False, steps: int = 50) -> np.ndarray:
    """Of so many steps of one small MFHCA, the last of each five a short batch."""
    device = data.labels.device
    scaling = fit_scaling(data, torch.arange(len(data.labels), device=device))
    state, threads = RandomState(11, device.type), torch.get_num_threads()
    found = []
    torch.set_num_threads(1)  # Maps so small are not worth sharing.
    with state.in_use():
        model = build_model("mfhca", settings=SIZES).to(device)
        optimiser = make_optimiser(model, RECIPE)

        def step(clips: torch.Tensor) -> torch.Tensor:
            return train_step(model, optimiser, data, clips, scaling, precision)

        shuffle = torch.Generator().manual_seed(1)
        model.train()
        fast = capture_step(step, model, optimiser, torch.arange(8, device=device)) if captured else step
        for number in range(steps):
            clips = torch.randperm(len(data.labels), generator=shuffle)[: 5 if number % 5 == 4 else 8]
            found.append(fast(clips.to(device)))
    torch.set_num_threads(threads)
    return torch.stack(found).cpu().numpy()


def test_bf16_keeps_beside_fp32_over_50_steps() -> None:
    data = generated()
    plain, fast = losses(data), losses(data, "bf16")
    assert plain[-10:].mean() < 0.7 * plain[:10].mean()
    assert not np.array_equal(plain, fast)
    np.testing.assert_allclose(fast[:10], plain[:10], atol=0.03)
    np.testing.assert_allclose(fast, plain, atol=0.4)
    assert abs(fast - plain).mean() < 0.06


def test_a_fold_in_bf16_says_so(small_cache: Cache) -> None:
    result = train_fold(small_cache, 1, replace(BOTH, precision="bf16"), device="cpu")
    assert (result.record["precision"], result.record["step"]) == ("bf16", "plain")
    assert all(value.dtype in (torch.float32, torch.int64) for value in result.state.values())
    with pytest.raises(TrainingError, match="precision 'fp8' is not known; expected one of fp32, bf16"):
        TrainOptions(precision="fp8")


def test_a_model_and_its_optimiser_go_back_to_their_beginning() -> None:
    data = generated(clips=16)
    scaling, clips = fit_scaling(data, torch.arange(16)), torch.arange(8)
    model = build_model("mfhca", settings=replace(SIZES, dropout=0.0))
    optimiser = make_optimiser(model, RECIPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = [train_step(model, optimiser, data, clips, scaling) for _ in range(2)]
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    _restore(model, optimiser, before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places
    assert torch.equal(
        torch.stack([train_step(model, optimiser, data, clips, scaling) for _ in range(2)]), torch.stack(first)
    )


def test_folds_that_a_gpu_holds_are_counted_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * 10**9, 80 * 10**9))
    assert interleave._that_fit(2 * 10**9, "cuda") == 9
    assert interleave._that_fit(60 * 10**9, "cuda") == 1
    assert interleave._that_fit(0, "cpu") == 1


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def full_float32() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_keeps_beside_the_plain_one_over_50_steps(full_float32: None, precision: str) -> None:
    data = generated("cuda")
    plain, fast = losses(data, precision), losses(data, precision, captured=True)
    np.testing.assert_allclose(fast, plain, rtol=1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.cuda
@cuda
def test_folds_in_turns_on_a_gpu_are_folds_alone(small_cache: Cache) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = replace(BOTH, epochs=3)
    one, many, found = (cross_validate(small_cache, options, device="cuda", jobs=jobs) for jobs in (1, 6, None))
    assert all(result.record["step"] == "captured" for result in one)
    assert all(same(a, b) and same(a, c) for a, b, c in zip(one, many, found, strict=True))


@pytest.mark.cuda
@cuda
def test_a_step_that_cannot_be_captured_leaves_all_as_it_was() -> None:
    data = generated("cuda")
    model = build_model("mfhca", settings=SIZES).cuda()
    optimiser = make_optimiser(model, RECIPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def waits(clips: torch.Tensor) -> torch.Tensor:
        loss = train_step(model, optimiser, data, clips, None)
        return loss + loss.item()

    with pytest.raises(RuntimeError):
        capture_step(waits, model, optimiser, torch.arange(8, device="cuda"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not value.any() for state in optimiser.state.values() for value in state.values())
