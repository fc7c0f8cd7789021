"""Several processes that share the work of one extraction, through the locks of its shards.

The process that was asked works too, and the others are started beside it: each runs the same extraction, takes what
no other holds, and sends word of its progress. Each started process speaks through its own stdin and stdout, in
pickles: nothing of the caller's program is run again, so a script or a notebook needs no guard. They end when their
stdin is closed, also by the death of the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mfhca_cache.allocator import keep_freed_memory
from mfhca_cache.errors import MfhcaError
from mfhca_cache.processes import how_it_ended, portable
from mfhca_cache.progress import Progress

if TYPE_CHECKING:
    from mfhca_cache.extraction.report import ExtractReport
    from mfhca_cache.extraction.work import Task

#: Seconds that a process has to end what it is writing before it is killed.
_GRACE = 15.0


def check_jobs(jobs: int | None) -> None:
    """Check that a number of processes is at least 1, or None for as many as suit.

    Raises:
        MfhcaError: it is not.
    """
    if jobs is not None and jobs < 1:
        raise MfhcaError(f"jobs: got {jobs}; expected 1 or more, or none to let it be chosen")


def jobs_of(jobs: int | None, tasks: list[Task]) -> int:
    """How many processes work on tasks: as many as asked for, by default one a GPU; never more than there are tasks."""
    if jobs is None:
        on_gpu = any(info.engine["device"] == "cuda" for task in tasks for info, _ in task.shards)
        jobs = len(_gpus()) if on_gpu else 1
    return max(1, min(jobs, len(tasks)))


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, its own first."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count, mine = torch.cuda.device_count(), torch.cuda.current_device()
    names = [name.strip() for name in named if name.strip()] or [str(number) for number in range(count)]
    return [names[(mine + step) % count] for step in range(count)] if len(names) >= count else names[:1]


@dataclass
class _Member:
    """A started process, and what it has said."""

    process: subprocess.Popen[bytes]
    begun: bool = False
    dismissed: bool = False
    done: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    report: ExtractReport | None = None
    error: BaseException | None = None
    reader: threading.Thread | None = None


class Crew:
    """The other processes of an extraction; a context manager that ends them.

    Args:
        count: how many.
        arguments: of `mfhca_cache.extraction.pipeline.extract`.
    """

    def __init__(self, count: int, arguments: dict[str, Any]) -> None:
        self._count, self._arguments = count, arguments
        self._members: list[_Member] = []

    def __enter__(self) -> Crew | None:
        """Start them; None where there are none."""
        gpus = _gpus() if self._count else []
        try:
            for number in range(1, self._count + 1):
                self._members.append(self._start(gpus[number % len(gpus)] if gpus else None))
        except BaseException:
            self._end()
            raise
        return self if self._members else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def check(self) -> None:
        """Raise what another process raised, as it is."""
        for member in self._members:
            if member.error is not None and not member.dismissed:
                raise member.error

    def done(self, unit: str) -> int:
        """Clips or utterances that the others have computed."""
        return sum(member.done.get(unit, 0) for member in self._members)

    @property
    def bytes_written(self) -> int:
        """Bytes that the others have written."""
        return sum(member.bytes_written for member in self._members)

    def finish(self, tell: Callable[[], None]) -> tuple[list[ExtractReport], list[str]]:
        """Wait for the others, which have nothing left to do but to say so.

        Args:
            tell: called now and then meanwhile.

        Raises:
            BaseException: what another process raised.

        Returns:
            their reports, and notes on those that died.
        """
        notes = []
        for member in self._members:
            if not member.begun and member.process.poll() is None:
                # Still loading its libraries, when everything is done: it is not waited for.
                member.dismissed = True
                _close(member.process.stdin)
                continue
            while member.reader is not None and member.reader.is_alive():
                member.reader.join(0.2)
                tell()
            self.check()
            if member.report is None:
                notes.append(
                    f"one of {self._count + 1} processes {how_it_ended(member.process.wait())}; the others did its work"
                )
        return [member.report for member in self._members if member.report is not None], notes

    def _start(self, gpu: str | None) -> _Member:
        code = f"import sys; sys.path[:] = {sys.path!r}; from mfhca_cache.extraction.processes import serve; serve()"
        environment = dict(os.environ) if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        # A session of its own: a terminal sends Ctrl-C to all of a session, and the first process answers for all.
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        member = _Member(process)
        member.reader = threading.Thread(target=self._listen, args=(member,), name="listen", daemon=True)
        member.reader.start()
        return member

    def _listen(self, member: _Member) -> None:
        """Send a process its work, and take down what it says until it ends."""
        stdin, stdout = member.process.stdin, member.process.stdout
        if stdin is None or stdout is None:
            return
        try:
            pickle.dump(self._arguments, stdin)
            stdin.flush()
            while True:
                kind, content = pickle.load(stdout)
                if kind == "begun":
                    member.begun = True
                elif kind == "progress":
                    unit, done, member.bytes_written = content
                    member.done[unit] = done
                elif kind == "report":
                    member.report = content
                else:
                    member.error = content
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            return  # It ended, or was ended.

    def _end(self) -> None:
        for member in self._members:
            _close(member.process.stdin)
        limit = time.monotonic() + _GRACE
        for member in self._members:
            try:
                member.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            except BaseException:
                # Too impatient to wait: none may go on all the same.
                for other in self._members:
                    other.process.kill()
                raise
            if member.reader is not None:
                member.reader.join(1.0)
            _close(member.process.stdout)


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        if stream is not None:
            stream.close()


# In a started process


def serve() -> None:
    """What a started process does: the extraction that it is told of, until it ends or its stdin does."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever a library prints must not come between the messages.
    keep_freed_memory()
    try:
        arguments = pickle.load(sys.stdin.buffer)
    except EOFError:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal.signal(signal.SIGTERM, _stop)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _send(output, "report", _work(arguments, output))
    except (KeyboardInterrupt, BrokenPipeError):
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            _send(output, "error", portable(error))


def _work(arguments: dict[str, Any], output: IO[bytes]) -> ExtractReport:
    from mfhca_cache.extraction.pipeline import extract

    said = 0.0

    def tell(report: Progress) -> None:
        nonlocal said
        if report.total and time.monotonic() - said > 0.2:
            said = time.monotonic()
            own = report.done - report.resumed - report.elsewhere
            _send(output, "progress", (report.unit, own, report.bytes_written))

    _send(output, "begun", None)
    return extract(**arguments, jobs=1, progress=tell)


def _send(output: IO[bytes], kind: str, content: Any) -> None:
    pickle.dump((kind, content), output)
    output.flush()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Once nobody holds the other end of stdin, stop as Ctrl-C would: what is being written is finished, or removed."""
    # Not through sys.stdin, whose lock a reading thread would hold when the interpreter ends.
    while os.read(0, 1):
        pass
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        # To the main thread: one that waits for a lock is only woken by a signal of its own.
        signal.pthread_kill(main, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)
