"""The audio of a run of clips, decoded by one thread or by several: every utterance is cut straight into its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mfhca_cache.errors import AudioError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.clips import place_clips, pre_emphasise
from mfhca_cache.extraction.work import RETRY_REASONS
from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.layout import Plan

#: Bytes of files and samples that decoding holds at once, over all threads; a longer recording is decoded alone.
MAX_DECODING = 256 * 2**20


class Room:
    """Bytes that the threads of one extraction may take together; what is larger than that waits to be alone."""

    def __init__(self, size: int = MAX_DECODING) -> None:
        self._size = size
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Wait until so many bytes may be taken beside those of other threads."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + count <= self._size)
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()


@dataclass(frozen=True)
class DecodedClips:
    """The audio of a run of clips.

    Attributes:
        numbers: (N,) int64, rows of the plan.
        signal: (N, samples) float32 at 16 kHz.
        emphasised: the same after pre-emphasis; ``signal`` itself where that is off.
        valid: (N,) int64, samples that are signal and not padding.
        audio: utterance_id → SHA-256 of its file.
        rejected: utterances that could not be used.
    """

    numbers: np.ndarray
    signal: np.ndarray
    emphasised: np.ndarray
    valid: np.ndarray
    audio: dict[str, str]
    rejected: tuple[Rejected, ...]

    @property
    def unreachable(self) -> bool:
        """Whether there is nothing but files that may come back: a wrong root, an unmounted disk."""
        return not len(self.numbers) and all(item.reason.split(":")[0] in RETRY_REASONS for item in self.rejected)


def decode_clips(plan: Plan, root: Path, first: int, stop: int, pre_emphasis: float = 0.0) -> DecodedClips:
    """Decode the utterances that the plan's clips ``first`` to ``stop`` belong to, and cut those clips."""
    run = ClipRun(plan, root, first, stop, pre_emphasis)
    return run.joined([part() for part in run.parts(1)])


class ClipRun:
    """A run of the plan's clips while it is decoded; `parts` may be called on any threads, `joined` once they are done.

    Args:
        plan: the corpus.
        root: its folder.
        first, stop: the clips.
        pre_emphasis: coefficient of the second copy of the clips; 0 for none.
        room: what the run's threads share with those of others.
        stopping: told that nobody waits for the clips any more; a part being decoded then ends at its next file.
    """

    def __init__(
        self,
        plan: Plan,
        root: Path,
        first: int,
        stop: int,
        pre_emphasis: float = 0.0,
        room: Room | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self._plan, self._root, self._first, self._stop = plan, root, first, stop
        self._pre_emphasis = pre_emphasis
        self._room, self._stopping = room or Room(), stopping
        begins = plan.utterances["first_clip"].to_numpy()
        before, after = np.searchsorted(begins, first, side="right") - 1, np.searchsorted(begins, stop, side="left")
        self._rows: list[dict[str, Any]] = plan.utterances.iloc[before:after].to_dict("records")  # type: ignore[assignment]
        # Not zeroed: every clip is written to its end, by whichever thread decodes it.
        self._signal = np.empty((stop - first, plan.clip.samples), dtype=np.float32)
        self._emphasised = np.empty_like(self._signal) if pre_emphasis else self._signal
        self._valid = np.zeros(stop - first, dtype=np.int64)

    def parts(self, count: int) -> list[Callable[[], list[Rejected]]]:
        """Functions that together decode everything, about so many; each gives what it had to reject."""
        size = max(1, -(-len(self._rows) // count))
        return [partial(self._decode, self._rows[at : at + size]) for at in range(0, len(self._rows), size)]

    def joined(self, rejected: Sequence[list[Rejected]]) -> DecodedClips:
        """The clips, given what the parts have returned, in their order."""
        lost = [item for part in rejected for item in part]
        names = {item.path for item in lost}
        keep = np.ones(self._stop - self._first, dtype=bool)
        for row in self._rows:
            if row["utterance_id"] in names:
                keep[slice(*self._place(row))] = False
        numbers = np.arange(self._first, self._stop, dtype=np.int64)
        signal, emphasised, valid = self._signal, self._emphasised, self._valid
        if names:
            numbers, valid, signal = numbers[keep], valid[keep], signal[keep]
            emphasised = emphasised[keep] if self._pre_emphasis else signal
        audio = {row["utterance_id"]: row["sha256"] for row in self._rows if row["utterance_id"] not in names}
        return DecodedClips(numbers, signal, emphasised, valid, audio, tuple(lost))

    def _decode(self, rows: list[dict[str, Any]]) -> list[Rejected]:
        rejected = []
        for row in rows:
            if self._stopping is not None and self._stopping.is_set():
                break
            with self._room.of(_cost(row)):
                try:
                    self._cut(row)
                except AudioError as error:
                    rejected.append(Rejected(row["utterance_id"], f"{error.reason}: {error}"))
        return rejected

    def _cut(self, row: dict[str, Any]) -> None:
        """Decode an utterance and cut those of its clips that are in the run."""
        clip = self._plan.clip
        samples = load_audio(self._root / row["path"], row["sha256"], self._root)
        if clip.count(len(samples)) != row["clips"]:
            raise AudioError("length", f"got {len(samples):,} samples at 16 kHz, the manifest: {row['seconds']} s")
        begin, end = self._place(row)
        number = self._first + begin - row["first_clip"]
        self._valid[begin:end] = place_clips(samples, clip, self._signal[begin:end], number)
        if self._pre_emphasis:
            place_clips(pre_emphasise(samples, self._pre_emphasis), clip, self._emphasised[begin:end], number)

    def _place(self, row: dict[str, Any]) -> tuple[int, int]:
        """Where an utterance's clips lie in the run."""
        begin, end = row["first_clip"], row["first_clip"] + row["clips"]
        return max(begin, self._first) - self._first, min(end, self._stop) - self._first


def _cost(row: dict[str, Any]) -> int:
    """Bytes that decoding an utterance takes at most, by the manifest: its file, and what that is mixed to."""
    frames = int(row["seconds"] * row["sample_rate"])
    return frames * (2 * int(row["channels"]) + 4) + 8 * int(row["seconds"] * 16_000)
