"""What computes an encoder's feature: chosen on the first real clips when it is begun, and kept until it is whole.

A choice is of a runtime (see `mfhca_cache.extraction.runtimes`), checked against plain PyTorch in float32, and of a
batch. Both are recorded in feature.json, with the relative error that was measured. Encoders that are too small for a
choice to pay, and corpora of a few clips, are computed by plain PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction.batch_size import find_batch, free_memory, is_out_of_memory
from mfhca_cache.extraction.decode import decode_clips
from mfhca_cache.extraction.encoder import Encoder
from mfhca_cache.extraction.features import begun_feature
from mfhca_cache.extraction.runtimes import (
    Runtime,
    UnsuitableError,
    available,
    relative_error,
    threads,
    version,
)
from mfhca_cache.progress import Progress, ProgressCallback
from mfhca_cache.spec import ExtractSpec
from mfhca_cache.storage.descriptions import read_feature, write_feature
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.publish import lock

#: Relative error up to which a runtime in float32 counts as exact.
TOLERANCE = 1e-5
#: A corpus of fewer clips is encoded before a choice would pay: at a few clips a second the trial takes half a minute.
FEW_CLIPS = 100
#: Clips whose errors are measured.
TRIAL_CLIPS = 4
#: Clips of a call on a CPU when runtimes are timed: more would not change who is fastest.
_TIMED_CLIPS = 2
_TIMED_CALLS = 3
#: A runtime that is preferred is left for one that is faster by more than this.
_FASTER = 1.05


@dataclass(frozen=True)
class AskedEngine:
    """What a person asks of the engine.

    Attributes:
        runtime: by name, or ``auto`` for the fastest that agrees with plain PyTorch.
        batch: clips an encoder call; None for what a short trial finds.
        few: the corpus has too few clips for a trial to pay: plain PyTorch and the usual batch, unless asked otherwise.
    """

    runtime: str = "auto"
    batch: int | None = None
    few: bool = False


def asked_engine(plan: Plan, runtime: str, batch: int | None) -> AskedEngine:
    """What a person asks of the engine for a corpus."""
    return AskedEngine(runtime, batch, plan.clips < FEW_CLIPS)


def choose_engines(
    folder: Path,
    features: Sequence[FeatureInfo],
    encoder: Encoder | None,
    spec: ExtractSpec,
    clips: Callable[[], np.ndarray],
    asked: AskedEngine,
    progress: ProgressCallback,
) -> tuple[list[FeatureInfo], list[str]]:
    """The features, with the engine chosen of an encoder's that is not begun yet; and notes for a person.

    Args:
        folder: of the cache.
        features: as they were or will be begun.
        encoder: the loaded encoder, or None where it has nothing to do.
        spec: what is extracted.
        clips: gives the first real clips, float32 (N, samples); called only if there is something to choose.
        asked: see `AskedEngine`.
        progress: told what is being tried.

    Raises:
        EncoderError: the runtime that was asked for by name cannot compute this encoder, or is not exact.
    """
    found, notes = list(features), list[str]()
    for number, info in enumerate(found):
        if info.kind != "encoder" or encoder is None or spec.encoder is None or begun_feature(folder, info.name):
            continue
        progress(Progress("choosing how to compute", 0, 0, "clips"))
        numbers = encoder.layer_numbers(spec.encoder.layers)
        engine = choose_engine(encoder, numbers, info.engine, asked, clips)
        found[number] = replace(info, engine=engine)
        if encoder.precision != "fp32" and "relative_error" in engine:
            notes.append(
                f"{info.name}: {encoder.precision} differs from fp32 by {engine['relative_error']:.1e} "
                f"(relative error over {engine['error_clips']} of this corpus's clips)"
            )
    return found, notes


def choose_engine(
    encoder: Encoder,
    numbers: Sequence[int],
    engine: dict[str, Any],
    asked: AskedEngine,
    clips: Callable[[], np.ndarray],
) -> dict[str, Any]:
    """A new feature's engine: ``engine`` with its runtime, batch and measured error; the encoder is left using it.

    Args:
        encoder: on the engine's device.
        numbers: of the hidden layers asked for.
        engine: device, threads and precision, see `mfhca_cache.extraction.features.new_engine`.
        asked: see `AskedEngine`.
        clips: gives the first real clips; none where there are none to be had.

    Raises:
        EncoderError: the runtime that was asked for by name cannot compute this encoder, or is not exact.
    """
    engine = {**engine, **({"batch": asked.batch} if asked.batch else {})}
    lossy = encoder.precision != "fp32"
    names = (asked.runtime,) if asked.runtime != "auto" else available(str(engine["device"]))
    quick = encoder.small or asked.few
    if quick and asked.runtime == "auto":
        names = ("torch",)
    fixed = names == ("torch",) and not lossy and (quick or asked.batch is not None)
    first = np.zeros((0, 0), dtype=np.float32) if fixed else clips()
    if not len(first):
        return _named(engine, encoder, names[-1])
    with threads(int(engine["threads"])):
        device, trial = str(engine["device"]), _Trial(encoder, tuple(numbers), first[:TRIAL_CLIPS], engine)
        settled = asked.batch is not None or quick
        if device == "cuda" and not settled:
            # A GPU is filled first: runtimes that tie at its batch differ where it is idle.
            encoder.use(encoder.make("torch"))
            engine["batch"] = find_batch(trial.encode, first, device)
        best = trial.best(names, engine["batch"] if device == "cuda" else _TIMED_CLIPS)
        if best is None:
            if asked.runtime != "auto":
                raise EncoderError(
                    f"runtime {asked.runtime} cannot compute {encoder.source['name']!r}: "
                    f"{trial.refused[asked.runtime]}; use --runtime auto"
                )
            reasons = "; ".join(f"{name}: {why}" for name, why in trial.refused.items())
            raise EncoderError(
                f"{encoder.source['name']!r}: nothing here computes it in {encoder.precision} ({reasons}); use another "
                "--precision"
            )
        encoder.use(best)
        if device == "cpu" and not settled:
            engine["batch"] = find_batch(trial.encode, first, device)
    engine |= {"name": best.name, "version": version(best.name)}
    if lossy or best.name != "torch":
        engine |= {"relative_error": float(f"{trial.errors[best.name]:.2g}"), "error_clips": len(trial.clips)}
    return engine | ({"refused": trial.refused} if trial.refused else {})


def resume_engine(folder: Path, info: FeatureInfo, encoder: Encoder) -> None:
    """Let an encoder compute as its feature was begun, and record it there if memory makes its batches smaller.

    Raises:
        EncoderError: the feature's runtime cannot compute this encoder here.
    """
    if encoder.runtime.name != info.engine["name"]:
        _use(encoder, str(info.engine["name"]), int(info.engine["threads"]))
    encoder.portions.lowered = partial(record_batch, folder, info.name)


def record_batch(folder: Path, name: str, batch: int) -> None:
    """Lower the batch that a feature.json records, if it is larger; the feature's fingerprint does not depend on it."""
    with lock(folder, f"{name}.feature"):
        info = read_feature(folder, name)
        if batch < info.engine["batch"]:
            write_feature(folder, replace(info, engine={**info.engine, "batch": batch}))


def first_clips(plan: Plan, root: Path, shards: Sequence[tuple[FeatureInfo, ShardRange]], most: int = 16) -> np.ndarray:
    """Up to so many real clips of the first of these shards: float32 (N, samples); none if none can be read."""
    empty = np.zeros((0, plan.clip.samples), dtype=np.float32)
    for info, shard in shards:
        if info.per != "clip":
            continue
        signal = decode_clips(plan, root, shard.first, min(shard.stop, shard.first + most)).signal
        if len(signal):
            return signal
    return empty


def _named(engine: dict[str, Any], encoder: Encoder, name: str) -> dict[str, Any]:
    """An engine with a runtime that is taken without a trial."""
    _use(encoder, name, int(engine["threads"]))
    return {**engine, "name": name, "version": version(name)}


def _use(encoder: Encoder, name: str, count: int) -> None:
    try:
        encoder.use(encoder.make(name, threads=count))
    except UnsuitableError as error:
        raise EncoderError(f"runtime {name} cannot compute {encoder.source['name']!r}: {error}") from error


class _Trial:
    """Runtimes held against plain PyTorch in float32 on a few clips."""

    def __init__(self, encoder: Encoder, numbers: tuple[int, ...], clips: np.ndarray, engine: dict[str, Any]) -> None:
        self._encoder, self._numbers, self._threads = encoder, numbers, int(engine["threads"])
        self.clips = clips
        self.refused: dict[str, str] = {}
        self.errors: dict[str, float] = {}

    def encode(self, clips: np.ndarray) -> torch.Tensor:
        """A batch by the runtime in use, whatever memory says."""
        return self._encoder.compute(self._encoder.runtime, clips, self._numbers)

    def best(self, names: Sequence[str], batch: int) -> Runtime | None:
        """The runtime that agrees and is fastest; one named earlier wins where another is hardly faster."""
        exact = self._encoder.precision == "fp32"
        expected = self._reference()
        fastest: tuple[float, Runtime] | None = None
        for name in names:
            try:
                runtime = self._encoder.make(name, threads=self._threads)
                found = self._encoder.compute(runtime, self.clips, self._numbers)
                error = relative_error(found, expected)
                # Whoever stores the features says more clearly that an encoder's weights are damaged.
                if bool(expected.isfinite().all()) and not error <= (TOLERANCE if exact else 1.0):
                    raise UnsuitableError(f"differs from plain PyTorch in float32 by {error:.1e}")
                seconds = self._seconds(runtime, batch) if len(names) > 1 else 0.0
                if runtime.note:
                    raise UnsuitableError(runtime.note)
            except UnsuitableError as why:
                self.refused[name] = str(why)
                continue
            except (MemoryError, RuntimeError) as problem:
                # Another library, or another of its versions, may fail in any way; plain PyTorch must not.
                if name == "torch" and not is_out_of_memory(problem):
                    raise
                words = str(problem).splitlines() or [type(problem).__name__]
                self.refused[name] = "memory ended" if is_out_of_memory(problem) else words[0]
                continue
            self.errors[name] = error if np.isfinite(error) else 0.0
            if fastest is None or seconds * _FASTER < fastest[0]:
                fastest = seconds, runtime
        return fastest[1] if fastest else None

    def _reference(self) -> torch.Tensor:
        """Plain PyTorch in float32, of fewer clips where memory holds no more."""
        plain = self._encoder.make("torch", "fp32")
        while True:
            try:
                return self._encoder.compute(plain, self.clips, self._numbers)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(self.clips) == 1:
                    raise
            free_memory()
            self.clips = self.clips[: len(self.clips) // 2]

    def _seconds(self, runtime: Runtime, batch: int) -> float:
        """Seconds of a batch, the best of a few."""
        clips = self.clips[np.arange(batch) % len(self.clips)]
        times = []
        for _ in range(_TIMED_CALLS):
            before = time.monotonic()
            self._encoder.compute(runtime, clips, self._numbers)
            times.append(time.monotonic() - before)
        return min(times)
