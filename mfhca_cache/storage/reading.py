"""Clips copied out of a feature's shards, each checked against its digest when this process first reads it.

A clip is found by its number alone: where it lies, how much of it is signal and whether it was checked stand in arrays
over all clips of the plan, filled in shard by shard as shards are opened. So a read costs its copy, and little else.
What is checked is the copy that is handed out, never the file, which may change under a reader.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import samples_16k
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.layout import ShardRange
from mfhca_cache.storage.shard import DIGEST_BYTES, Shard, clip_digest

#: What is copied, or copied and checked, between two reports of progress and by one thread, at most.
_PART_BYTES = 16 * 2**20
#: Shares a thread takes of a small job, so that all end at about the same time.
_SHARES = 8
#: Less than this is copied, or checked, by the one thread that asks: others would take longer to begin.
_THREADED_COPY_BYTES = 64 * 2**20
_THREADED_CHECK_BYTES = 2**20
#: Smaller clips in no order are gathered a shard at a time, larger ones copied one by one.
_SMALL_CLIP_BYTES = 16 * 2**10


@dataclass(frozen=True)
class OpenShard:
    """A shard as it was opened, and what told its file apart then (see `file_signature`)."""

    shard: Shard
    signature: tuple[int, ...]


def clip_rows(utterances: pd.DataFrame, clip: ClipSpec) -> pd.DataFrame:
    """A row a clip of rows of the plan, in their order: utterance_id, clip, valid_samples and plan_row.

    ``clip`` counts from 0 within the utterance, ``plan_row`` is the clip's number in the plan, and ``valid_samples``
    are those at 16 kHz that come from signal.
    """
    counts = utterances["clips"].to_numpy()
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    samples = np.repeat(samples_16k(utterances), counts)
    return pd.DataFrame(
        {
            "utterance_id": np.repeat(utterances["utterance_id"].to_numpy(), counts),
            "clip": number,
            "valid_samples": np.minimum(clip.samples, samples - number * clip.samples),
            "plan_row": np.repeat(utterances["first_clip"].to_numpy(), counts) + number,
        }
    )


def file_signature(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written: device, inode, size, and time of change in nanoseconds."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass
class OpenMaps:
    """The maps that a cache's readers hold open, the oldest first: each takes a file descriptor of the process."""

    most: int = field(default_factory=lambda: most_maps())
    order: deque[tuple[list[np.ndarray | None], int]] = field(default_factory=deque)

    def add(self, arrays: list[np.ndarray | None], number: int, array: np.ndarray) -> None:
        """Hold a map open in ``arrays[number]``, and let go of the oldest where there are too many."""
        arrays[number] = array
        self.order.append((arrays, number))
        while len(self.order) > self.most:
            others, oldest = self.order.popleft()
            others[oldest] = None


def most_maps() -> int:
    """Maps that a cache may hold open: a quarter of the files that the system lets this process open, 32 to 1024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return 1024
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if soft == resource.RLIM_INFINITY else max(32, min(1024, soft // 4))


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay, so that a batch need not wait for new ones; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mfhca-reading")


@dataclass(frozen=True)
class _File:
    """Where a shard's array lies, for mapping it once more."""

    path: Path
    dtype: str
    offset: int
    shape: tuple[int, ...]
    signature: tuple[int, ...]


class FeatureReader:
    """Reads clips (or utterances, for a feature of them) of one feature by their numbers in the plan.

    Args:
        per: ``clip`` or ``utterance``, for messages.
        ranges: the feature's shards, which cover the plan from 0 on.
        path: a shard → its file.
        open: opens a shard and checks its metadata; raises a CacheError.
        maps: shared by the readers of a cache.
    """

    def __init__(
        self,
        per: str,
        ranges: Sequence[ShardRange],
        path: Callable[[ShardRange], Path],
        open: Callable[[ShardRange], OpenShard],
        maps: OpenMaps,
    ) -> None:
        self._per, self._ranges, self._path, self._open, self._maps = per, ranges, path, open, maps
        self._stops = np.array([shard.stop for shard in ranges], dtype=np.int64)
        units = ranges[-1].stop if ranges else 0
        # Zeros take no memory until something else is written.
        self._place = np.zeros(units, dtype=np.int32)  # 1 + its row in the shard; 0 where no opened shard holds it
        self._valid = np.zeros(units, dtype=np.int32)
        self._checked = np.zeros(units, dtype=bool)
        self._digest = np.zeros((units, DIGEST_BYTES), dtype=np.uint8)
        self._known = np.zeros(len(ranges), dtype=bool)
        self._files: list[_File | None] = [None] * len(ranges)
        self._arrays: list[np.ndarray | None] = [None] * len(ranges)

    def shards_of(self, wanted: np.ndarray) -> np.ndarray:
        """The number of the shard that each clip belongs to, after opening those not opened yet.

        Raises:
            CacheError: a number that the plan does not have, or a shard that does not open.
        """
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self._place)):
            raise CacheError(
                f"got the {self._per} {wanted.min() if wanted.min() < 0 else wanted.max()}; the plan has "
                f"{len(self._place)}, counted from 0"
            )
        numbers = np.searchsorted(self._stops, wanted, side="right")
        if not self._known[numbers].all():
            for number in np.unique(numbers[~self._known[numbers]]).tolist():
                self._learn(number)
        return numbers

    def row_shape(self, number: int) -> tuple[int, ...]:
        """Shape of a row of an opened shard."""
        return self._array(number).shape[1:]

    def copy(
        self, wanted: np.ndarray, out: np.ndarray | None, tell: Callable[[int], None] = lambda _: None
    ) -> np.ndarray:
        """Copy clips into ``out`` (clips, …) in the order asked, checked; their valid frames, int32 (clips,).

        Args:
            wanted: (clips,) numbers in the plan, in any order, any of them more than once.
            out: of the shape and type that is stored; None for the valid frames alone.
            tell: called with clips done.

        Raises:
            CacheError: damaged bytes, or a clip that its shard does not hold.
        """
        wanted = np.asarray(wanted, dtype=np.int64)
        numbers = self.shards_of(wanted)
        rows = self._place[wanted] - 1
        if len(rows) and rows.min() < 0:
            # A shard that was extracted again since they were chosen may hold fewer.
            path = self._path(self._ranges[numbers[rows.argmin()]])
            raise CacheError(f"{path}: its {self._per}s are not those of before; open the cache again")
        if out is not None and len(wanted):
            self._check_out(out, len(wanted), int(numbers[0]))
            job = _Job(wanted, numbers, rows, out, ~self._checked[wanted])
            if bad := self._run(job, tell):
                raise self._damage(job, bad)
        tell(len(wanted))
        return self._valid[wanted]

    def _run(self, job: _Job, tell: Callable[[int], None]) -> list[int]:
        """Do the job by as many threads as it is worth; places in it that are damaged, of one shard at least."""
        unchecked = int(np.count_nonzero(job.new)) * job.row_bytes
        copy = self._copy_checking if unchecked else self._copy_small if job.is_small else self._copy_runs
        threads = torch.get_num_threads()  # 1 in a DataLoader's worker, and in folds that train side by side
        if unchecked < _THREADED_CHECK_BYTES and job.out.nbytes < _THREADED_COPY_BYTES:
            return copy(job, slice(0, len(job.wanted)))
        bad: list[int] = []
        left = iter(list(job.parts(threads)))

        def work(tell: Callable[[int], None]) -> None:
            for part in left:  # Whoever is free takes the next; the interpreter gives it to one of them.
                if bad and job.numbers[part.start] != job.numbers[min(bad)]:
                    break
                bad.extend(copy(job, part))
                tell(part.stop)

        helpers = [_pool(threads - 1, os.getpid()).submit(work, lambda _: None) for _ in range(threads - 1)]
        try:
            work(tell)
        finally:
            for _ in left:  # After Ctrl-C there is nothing more for the helpers to take.
                pass
            for helper in helpers:
                helper.result()
        return sorted(bad)

    def _copy_runs(self, job: _Job, part: slice) -> list[int]:
        """Copy clips that were all checked: those that lie one behind the other at once."""
        numbers, rows, out = job.numbers[part], job.rows[part], job.out[part]
        edges = np.flatnonzero((np.diff(rows) != 1) | (np.diff(numbers) != 0)) + 1
        starts = [0, *edges.tolist()]
        stops = [*starts[1:], len(rows)]
        for start, stop, number, row in zip(
            starts, stops, numbers[starts].tolist(), rows[starts].tolist(), strict=True
        ):
            out[start:stop] = self._array(number)[row : row + stop - start]
        return []

    def _copy_small(self, job: _Job, part: slice) -> list[int]:
        """Copy small clips that were all checked, a shard at a time."""
        numbers, rows, out = job.numbers[part], job.rows[part], job.out[part]
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, edges):
            out[places] = self._array(int(numbers[places[0]]))[rows[places]]
        return []

    def _copy_checking(self, job: _Job, part: slice) -> list[int]:
        """Copy clip by clip and check the copy, while it is still in the processor's cache."""
        wanted, out = job.wanted[part], job.out[part]
        expected, bad = self._digest[wanted].tobytes(), []
        for place, (number, row, new) in enumerate(
            zip(job.numbers[part].tolist(), job.rows[part].tolist(), job.new[part].tolist(), strict=True)
        ):
            target = out[place]
            target[...] = self._array(number)[row]
            if new and clip_digest(target) != expected[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]:
                bad.append(part.start + place)
        if not bad:
            self._checked[wanted] = True
        return bad

    def _array(self, number: int) -> np.ndarray:
        """A known shard's array; mapped once more where it was let go of."""
        array = self._arrays[number]
        return self._map(number) if array is None else array

    def _map(self, number: int) -> np.ndarray:
        file = self._files[number]
        if file is None:
            return self._learn(number)
        try:
            with file.path.open("rb") as handle:
                if file_signature(os.fstat(handle.fileno())) != file.signature:
                    raise CacheError(f"{file.path}: it was written anew while it was read; open the cache again")
                array = np.memmap(handle, file.dtype, "r", file.offset, file.shape).view(np.ndarray)
        except OSError as error:
            raise CacheError(f"{file.path}: could not be read ({error.strerror}); open the cache again") from error
        self._maps.add(self._arrays, number, array)
        return array

    def _learn(self, number: int) -> np.ndarray:
        """Open a shard, and note what it holds."""
        shard = self._ranges[number]
        opened = self._open(shard)
        data, clip = opened.shard.data, opened.shard.clip
        self._place[clip] = np.arange(1, len(clip) + 1, dtype=np.int32)
        self._valid[clip], self._digest[clip] = opened.shard.valid, opened.shard.digest
        receipt = opened.shard.receipt
        array = data.view(np.ndarray)
        if receipt.nbytes:
            file = _File(self._path(shard), receipt.dtype, receipt.offset, receipt.shape, opened.signature)
            self._files[number] = file
            self._maps.add(self._arrays, number, array)
        else:
            self._arrays[number] = array
        self._known[number] = True
        return array

    def _check_out(self, out: np.ndarray, count: int, number: int) -> None:
        array = self._array(number)
        if out.shape != (count, *array.shape[1:]) or out.dtype != array.dtype:
            raise CacheError(
                f"out: got {out.dtype} of shape {out.shape}; expected {array.dtype} of shape "
                f"{(count, *array.shape[1:])}, as it is stored"
            )

    def _damage(self, job: _Job, bad: Sequence[int]) -> CacheError:
        """What to say of damaged clips: those of the first shard that has any."""
        number = job.numbers[bad[0]]
        clips = np.unique(job.wanted[[place for place in bad if job.numbers[place] == number]])
        shard = self._ranges[number]
        return CacheError(
            f"{self._path(shard)}: {len(clips)} {self._per}(s) are damaged (their digests differ), the first "
            f"being {self._per} {clips[0]} of the plan; delete {shard.name}.json beside it "
            f"and run `mfhca extract --split {shard.split}`"
        )


@dataclass(frozen=True)
class _Job:
    """What is to be copied: clips by their numbers, their shards and rows there, where to, and which are unchecked."""

    wanted: np.ndarray
    numbers: np.ndarray
    rows: np.ndarray
    out: np.ndarray
    new: np.ndarray

    @property
    def row_bytes(self) -> int:
        return self.out.nbytes // len(self.out)

    @property
    def is_small(self) -> bool:
        """Whether gathering costs less than a step of Python a clip."""
        return self.row_bytes < _SMALL_CLIP_BYTES and len(self.wanted) > 1 and not bool((np.diff(self.rows) == 1).all())

    def parts(self, threads: int) -> Iterator[slice]:
        """The job in shares of a few megabytes, a few a thread."""
        count = len(self.wanted)
        step = max(1, min(_PART_BYTES // self.row_bytes, -(-count // (_SHARES * threads))))
        return (slice(at, min(at + step, count)) for at in range(0, count, step))
