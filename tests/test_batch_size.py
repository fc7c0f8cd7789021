"""How many clips an encoder call takes: found by a trial, halved where memory ends, and recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction import runtimes
from mfhca_cache.extraction.batch_size import Portions, find_batch, is_out_of_memory
from mfhca_cache.extraction.encoder import Encoder, load_encoder
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.runtimes import TorchRuntime
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.descriptions import read_feature

from .test_encoder import checkpoint, clips
from .test_runtimes import WIDE, needs_cuda

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"


class Machine:
    """An encoder whose calls take stated seconds, and whose memory ends above a size."""

    def __init__(self, seconds: Callable[[int], float], most: int = 10**6) -> None:
        self.seconds, self.most, self.now = seconds, most, 0.0
        self.calls: list[int] = []

    def clock(self) -> float:
        return self.now

    def encode(self, batch: np.ndarray) -> None:
        self.calls.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(len(batch))

    def find(self, device: str, samples: int = 48_000) -> int:
        return find_batch(self.encode, np.zeros((3, samples), dtype=np.float32), device, self.clock)


def test_the_smallest_batch_that_is_about_as_fast_as_any_is_taken() -> None:
    assert Machine(lambda n: 0.5 + n * 0.01).find("cuda") == 256
    assert Machine(lambda n: max(n, 32) * 0.01).find("cuda") == 32
    assert Machine(lambda n: n * 0.1).find("cpu") == 2
    slower = Machine(lambda n: n * 0.1 * (1 + n / 10))
    assert slower.find("cpu") == 2 and max(slower.calls) == 8  # growing stopped where it no longer paid


def test_memory_and_time_bound_the_trial() -> None:
    assert Machine(lambda n: 0.05 + n * 0.01, most=100).find("cuda") == 64
    assert Machine(lambda n: 1.0, most=1).find("cuda") == 1
    slow = Machine(lambda n: 10.0)
    assert slow.find("cpu") in (2, 4) and len(slow.calls) <= 3
    # Sixty-second clips: no more audio at once than of short ones.
    long = Machine(lambda n: 1.0)
    assert long.find("cpu", 20 * 48_000) == 1 and max(long.calls) == 1


def test_an_error_that_is_not_of_memory_is_raised() -> None:
    def broken(batch: np.ndarray) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        find_batch(broken, np.zeros((1, 100), dtype=np.float32), "cpu")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError(ALLOCATOR), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ended(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_a_batch_is_done_again_in_halves_and_the_size_is_remembered() -> None:
    calls, told, cleared = [], [], []
    portions = Portions(lowered=told.append, cleared=lambda: cleared.append(1))

    def encode(part: np.ndarray) -> torch.Tensor:
        calls.append(len(part))
        if len(part) > 3:
            raise RuntimeError(ALLOCATOR)
        return torch.from_numpy(part * 2)

    batch = np.arange(10, dtype=np.float32)[:, None]
    assert torch.equal(portions.run(encode, batch), torch.from_numpy(batch * 2))
    assert calls == [10, 5, 2, 2, 2, 2, 2] and told == [5, 2] and len(cleared) == 2
    calls.clear()
    portions.run(encode, batch[:3])
    assert calls == [2, 1] and told == [5, 2]


def test_one_clip_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    def encode(part: np.ndarray) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(EncoderError, match=r"memory ended with one clip \(MemoryError\).*--device cpu"):
        Portions().run(encode, np.zeros((4, 10), dtype=np.float32))


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No call of more than three clips fits; the sizes that were tried."""
    tried, hidden = [], TorchRuntime.hidden

    def small(self: TorchRuntime, values: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
        tried.append(len(values))
        if len(values) > 3:
            raise RuntimeError(ALLOCATOR)
        return hidden(self, values, layers)

    monkeypatch.setattr(TorchRuntime, "hidden", small)
    return tried


def test_a_run_goes_on_where_memory_ends_and_records_its_batch(
    small_manifest: Manifest, tmp_path: Path, little_memory: list[int]
) -> None:
    spec = ExtractSpec(encoder=EncoderSpec("random-tiny"), spectrogram=None)
    report = extract(small_manifest, tmp_path / "low", spec, device="cpu", batch=8)
    assert report.new_clips == 30 and max(little_memory) == 8
    assert any("memory ended" in note and "2 clips a call" in note for note in report.notes)
    info = read_feature(tmp_path / "low", "random-tiny")
    assert info.engine["batch"] == 2
    little_memory.clear()
    # The next run begins with what fitted.
    (tmp_path / "low" / "random-tiny" / "session3-0000.json").unlink()
    assert extract(small_manifest, tmp_path / "low", spec, device="cpu").new_clips == 10
    assert max(little_memory) == 2
    assert not open_cache(tmp_path / "low").verify()


def test_the_features_are_those_of_a_machine_with_more_memory(
    small_manifest: Manifest, tmp_path: Path, little_memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ExtractSpec(encoder=EncoderSpec("random-tiny"), spectrogram=None)
    extract(small_manifest, tmp_path / "low", spec, device="cpu")
    monkeypatch.undo()
    extract(small_manifest, tmp_path / "calm", spec, device="cpu")
    low, calm = (open_cache(tmp_path / name).load(["random-tiny"])["random-tiny"] for name in ("low", "calm"))
    torch.testing.assert_close(low.float(), calm.float(), rtol=1e-3, atol=1e-3)


def test_a_batch_is_found_when_a_feature_is_begun(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "SMALL_PARAMETERS", 0)
    checkpoint(tmp_path / "enc", **WIDE)
    spec = ExtractSpec(encoder=EncoderSpec(str(tmp_path / "enc")), spectrogram=None)
    seen: list[tuple[int, str]] = []

    def find(encode: object, batch: np.ndarray, device: str) -> int:
        seen.append((len(batch), device))
        return 5

    monkeypatch.setattr("mfhca_cache.extraction.engine.find_batch", find)
    extract(small_manifest, tmp_path / "few", spec, "session1", device="cpu", runtime="torch")
    assert not seen and read_feature(tmp_path / "few", "enc").engine["batch"] == 8  # Thirty clips: no trial pays.
    monkeypatch.setattr("mfhca_cache.extraction.engine.FEW_CLIPS", 30)
    extract(small_manifest, tmp_path / "c", spec, "session1", device="cpu", runtime="torch")
    assert seen == [(10, "cpu")]  # the first real clips: session1 has ten
    assert read_feature(tmp_path / "c", "enc").engine["batch"] == 5
    extract(small_manifest, tmp_path / "named", spec, "session1", device="cpu", runtime="torch", batch=7)
    assert len(seen) == 1 and read_feature(tmp_path / "named", "enc").engine["batch"] == 7


@pytest.mark.cuda
@needs_cuda
def test_memory_that_ends_on_a_gpu_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc")), "cuda")
    expected, told = encoder.encode(clips(8)), list[int]()
    encoder.use(encoder.make("cuda-graph"))
    encoder.portions.lowered = told.append
    hidden = TorchRuntime.hidden

    def greedy(self: TorchRuntime, values: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
        if len(values) > 2:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return hidden(self, values, layers)

    monkeypatch.setattr(TorchRuntime, "hidden", greedy)
    (found,) = encoder.encode_many([clips(8)])
    assert told == [4, 2] and isinstance(encoder, Encoder)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
