"""The helper threads of one extraction: some decode what comes next, one writes what is done; the caller's computes.

Decoding (soundfile, soxr), hashing and writing let go of Python's lock, so they go on while the encoder works. What is
in memory at once, beside the encoder and its batch, has a bound that depends neither on the corpus nor on its
utterances:

    clips being encoded, and those decoded ahead    2 × 94 MiB of 3-second clips; twice that with pre-emphasis
    the shard being computed                        256 MiB at most (HuBERT base: 112)
    shards waiting to be written or being written   256 MiB, or one
    the same as a file, while it is written         288 MiB at most
    decoding                                        `mfhca_cache.extraction.decode.MAX_DECODING`, 256 MiB, or one
                                                    recording: 0.5 GiB for 20 minutes of stereo at 48 kHz

About 1.3 GiB at worst without pre-emphasis and 0.7 GiB with HuBERT base and the spectrogram.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from mfhca_cache.device import allowed_cores

T = TypeVar("T")

#: Runs of clips that are decoded ahead of the one being encoded. 0: everything in turn on the caller's thread.
AHEAD = 1
#: Bytes of arrays that may wait to be written, the one being written among them.
MAX_WAITING = 256 * 2**20
#: More threads do not decode faster: between their calls into soundfile they wait for each other.
_MOST_DECODERS = 4


def decoders(device: str) -> int:
    """Threads that decode: one beside an encoder on the CPU, which needs every core itself; else up to four."""
    cores = allowed_cores()
    return 1 if device == "cpu" else max(1, min(_MOST_DECODERS, cores - 1))


class Helpers:
    """Decoding ahead and writing behind; a context manager.

    Left without an error, everything handed to `write` has been written. Left with one (also an interrupt), what is
    being written is finished, since its work is done; the rest is given up. Either way no thread of it works any more.

    Args:
        threads: that decode.

    Attributes:
        stopping: set when whoever waited has left, or a helper failed.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.stopping = threading.Event()
        self._overlaps = AHEAD > 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if self._overlaps else None
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()
        self._waiting = 0
        self._closed = False
        self._error: BaseException | None = None
        self._writer = threading.Thread(target=self._write_all, name="write")

    def __enter__(self) -> Helpers:
        if self._overlaps:
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.stopping.set()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._end_writer()
                self._pool.shutdown(wait=True)

    def decode(self, parts: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
        """Begin to call functions on other threads; the function returned waits for what they give, in order."""
        if self._pool is None:
            return lambda: [part() for part in parts]
        futures: list[Future[T]] = [self._pool.submit(self._guarded, part) for part in parts]
        return lambda: [future.result() for future in futures]

    def write(self, count: int, write: Callable[[], None]) -> None:
        """Hand over what is to be written, waiting while too much is waiting already.

        Args:
            count: bytes that it keeps in memory until it is written.
            write: does it.
        """
        if not self._overlaps:
            write()
            return
        with self._changed:
            while self._error is None and self._waiting and self._waiting + count > MAX_WAITING:
                self._changed.wait()
            self.check()
            self._queue.append((count, write))
            self._waiting += count
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything handed over has been written."""
        with self._changed:
            while self._error is None and self._waiting:
                self._changed.wait()
        self.check()

    def check(self) -> None:
        """Raise the error of a helper, if there was one. For the caller's thread, now and then."""
        if self._error is not None:
            raise self._error

    def _guarded(self, part: Callable[[], T]) -> T:
        try:
            return part()
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self.stopping.set()
            self._changed.notify_all()

    def _end_writer(self) -> None:
        """Give up what waits, and wait for what is being written, as its lock must not be let go of before."""
        again: BaseException | None = None
        while self._writer.is_alive():
            try:
                with self._changed:
                    self._closed = True
                    self._queue.clear()
                    self._changed.notify_all()
                self._writer.join()
            except KeyboardInterrupt as interrupt:
                again = interrupt
        if again is not None:
            raise again

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue or self._error is not None:
                    return
                count, write = self._queue.popleft()
            try:
                write()
            except BaseException as error:
                self._fail(error)
            del write  # With its array.
            with self._changed:
                self._waiting -= count
                self._changed.notify_all()
