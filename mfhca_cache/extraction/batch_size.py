"""How many clips an encoder call takes: found by a short trial, and halved where memory ends."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mfhca_cache.errors import EncoderError

#: Without a trial: for features that need no encoder, and for encoders too small for one to pay.
DEFAULT_BATCH = {"cpu": 8, "cuda": 64}
#: Batches that are tried, by device; smaller ones first.
_TRIED = {"cpu": (2, 4, 8, 16), "cuda": (8, 16, 32, 64, 128, 256)}
#: Audio of the largest batch, in samples: 16 clips of 3 s need about 1 GiB on a CPU, 256 about 25 GiB on a GPU.
_MOST_SAMPLES = {"cpu": 16 * 48_000, "cuda": 256 * 48_000}
#: A larger batch that gains less than this is not worth its memory.
_GAIN = 0.03
#: Seconds after which no larger batch is tried.
TRIAL_SECONDS = 15.0
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")


def find_batch(
    encode: Callable[[np.ndarray], object],
    clips: np.ndarray,
    device: str,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The smallest batch that is about as fast as any, by a short trial on real clips.

    Sizes grow until clips a second no longer do, memory ends, or `TRIAL_SECONDS` have passed; beyond ``_MOST_SAMPLES``
    of audio none is tried. A size is run once before it is timed on a GPU, whose libraries choose by shape; on a CPU,
    where that costs seconds, only the first is.

    Args:
        encode: computes a batch and returns when it is done; may raise an out-of-memory error.
        clips: float32 (N, samples), repeated where a batch is larger.
        device: ``cpu`` or ``cuda``.
        clock: seconds.
    """
    most = max(1, _MOST_SAMPLES[device] // clips.shape[1])
    sizes = [size for size in _TRIED[device] if size <= most] or [most]
    rates: dict[int, float] = {}
    began = clock()
    for size in sizes:
        batch = clips[np.arange(size) % len(clips)]
        try:
            if device == "cuda" or not rates:
                encode(batch)
            before = clock()
            encode(batch)
            rates[size] = size / max(clock() - before, 1e-9)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        found = list(rates.values())
        # Two sizes in a row that gained nothing: larger ones only cost memory.
        stalled = len(found) > 2 and max(found[-2:]) < max(found[:-2]) * (1 + _GAIN)
        if stalled or clock() - began > TRIAL_SECONDS:
            break
    free_memory()
    if not rates:
        return 1
    best = max(rates.values())
    return next(size for size, rate in rates.items() if rate >= best * (1 - _GAIN))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ended: PyTorch's on a CPU or GPU, CUDA's libraries', or Python's own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def free_memory() -> None:
    """Give back what a failed batch left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Portions:
    """Cuts batches down to what memory holds.

    Attributes:
        most: clips that fitted since memory last ended; None while it never did.
        lowered: told the new size whenever it falls.
        cleared: called before a batch is tried again.
    """

    most: int | None = None
    lowered: Callable[[int], None] | None = None
    cleared: Callable[[], None] = free_memory

    def run(self, encode: Callable[[np.ndarray], torch.Tensor], clips: np.ndarray) -> torch.Tensor:
        """Encode a batch, in halves where memory ends, and remember what fitted.

        Raises:
            EncoderError: one clip alone does not fit.
        """
        done: list[torch.Tensor] = []
        at = 0
        while at < len(clips) or not done:
            part = clips[at : at + (self.most or max(1, len(clips)))]
            try:
                done.append(encode(part))
                at += len(part)
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside of the handler, whose traceback holds the failed batch's tensors.
            self.lower(len(part), why)
        return torch.cat(done) if len(done) > 1 else done[0]

    def lower(self, failed: int, why: str) -> None:
        """Memory ended with ``failed`` clips: take half of them from now on.

        Raises:
            EncoderError: that was one clip.
        """
        if failed <= 1:
            raise EncoderError(
                f"memory ended with one clip ({why}); close what else uses it, or compute elsewhere with --device cpu"
            )
        self.most = failed // 2
        self.cleared()
        if self.lowered is not None:
            self.lowered(self.most)
