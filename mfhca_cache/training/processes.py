"""Folds side by side on a CPU: each in a process of its own, all of them on one copy of the features.

The process that asked loads the features, hands out fold after fold, stores results and passes reports and errors on.
The others compute and write nothing, so that ending one loses nothing but the fold it was at. They end with the
process that started them, whatever ends that.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import torch

from mfhca_cache.allocator import keep_freed_memory
from mfhca_cache.device import usable_cores
from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold
from mfhca_cache.models.own import find_model
from mfhca_cache.processes import how_it_ended, portable
from mfhca_cache.progress import ProgressCallback, silent
from mfhca_cache.training.data import CorpusData
from mfhca_cache.training.job import Job, load_job_data
from mfhca_cache.training.mapped import data_bytes, free_memory
from mfhca_cache.training.result import FoldResult
from mfhca_cache.training.shared import SharedMemory, SharedTensor
from mfhca_cache.training.trainer import train_fold

#: What a process takes beside the features: the libraries, and MFHCA's maps of a batch of 32, forward and backward.
_PROCESS_BYTES = 4 * 10**9


def jobs_that_fit(job: Job, folds: list[Fold]) -> int:
    """Processes that keep the cores busy and no busier, as far as memory goes; 1 at least."""
    sizes = [int(job.table["clips"].sum()) * job.cache.features[name].clip_bytes for name in job.roles.values()]
    free = free_memory("cpu")
    memory = (free - data_bytes(sum(sizes), free)) // _PROCESS_BYTES
    return max(1, min(len(folds), usable_cores() // job.threads, memory))


def train_in_processes(
    job: Job,
    folds: list[Fold],
    jobs: int,
    done: Callable[[FoldResult], None],
    progress: ProgressCallback = silent,
) -> None:
    """Train folds, so many at once, on the CPU.

    The numbers are those of folds trained one after the other: a fold has the threads that the job says.

    Args:
        jobs: processes; no more are started than there are folds.
        done: called with each result, as folds end.
        progress: called with what the folds report, those of all of them in turn.

    Raises:
        TrainingError: a process was killed; or what a fold raised, as it is.
    """
    with SharedMemory() as memory, _processes(min(jobs, len(folds))) as workers:
        # They import their libraries while the features are read.
        data = load_job_data(job, folds, progress, memory)
        payload = _pack(job, data, memory)
        waiting = list(reversed(folds))
        busy: dict[Connection, Fold] = {}
        for connection in workers:
            busy[connection] = fold = waiting.pop()
            _send(connection, (payload, fold), fold, workers)
        while busy:
            for ready in wait(list(busy)):
                connection = cast(Connection, ready)
                fold = busy[connection]
                kind, content = _receive(connection, fold, workers)
                if kind == "progress":
                    progress(content)
                elif kind == "error":
                    raise content
                else:
                    del busy[connection]
                    done(pickle.loads(content))
                    if waiting:
                        busy[connection] = fold = waiting.pop()
                        _send(connection, fold, fold, workers)


@contextmanager
def _processes(count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    """Processes that wait for work, by the connection to each; killed when this ends, however it ends."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with _sigint_held_back():
                process.start()
            theirs.close()
            workers[mine] = process
        yield workers
    finally:
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            process.join()
            connection.close()


@contextmanager
def _sigint_held_back() -> Iterator[None]:
    """What is started within this is born deaf to Ctrl-C, which a terminal sends to all: the first process answers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pack(job: Job, data: CorpusData, memory: SharedMemory) -> bytes:
    """Job and data for another process: features by their place in memory, a model of the reader's own by its name."""
    places = {
        role: memory.where(values) if isinstance(values, torch.Tensor) else values
        for role, values in data.inputs.items()
    }
    # Plain pickle: multiprocessing's would move each small tensor through a file of its own in /dev/shm.
    return pickle.dumps((replace(job, own=None), job.own and job.own.sha256, places, replace(data, inputs={})))


def _unpack(payload: bytes) -> tuple[Job, CorpusData]:
    job, sha256, places, data = pickle.loads(payload)
    if sha256 is not None:
        job = replace(job, own=find_model(job.options.model))
        if job.own.sha256 != sha256:
            raise TrainingError(f"{job.own.file} changed while folds were trained; run the same command again")
    inputs = {role: place.map() if isinstance(place, SharedTensor) else place for role, place in places.items()}
    return job, replace(data, inputs=inputs)


def _send(connection: Connection, message: Any, fold: Fold, workers: dict[Connection, SpawnProcess]) -> None:
    try:
        connection.send(message)
    except OSError as error:
        raise _died(fold, workers[connection]) from error


def _receive(connection: Connection, fold: Fold, workers: dict[Connection, SpawnProcess]) -> tuple[str, Any]:
    """A report, a result or an error."""
    try:
        kind, content = connection.recv()
    except (EOFError, OSError) as error:
        raise _died(fold, workers[connection]) from error
    return kind, content


def _died(fold: Fold, process: SpawnProcess) -> TrainingError:
    process.join()
    status = process.exitcode or 0
    what = f"fold {fold.number} ({fold.name}): its process {how_it_ended(status)}"
    if status >= 0:
        what += '; a script that trains with several jobs must do so under `if __name__ == "__main__":`'
    return TrainingError(
        f"{what}. Folds that were done are kept: the same command goes on, and fewer --jobs need less memory"
    )


def _work(connection: Connection) -> None:
    """What a started process does: folds, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    try:
        payload, fold = connection.recv()
        job, data = _unpack(payload)
        torch.set_num_threads(job.threads)
        while True:
            result = train_fold(
                job.cache, fold, job=job, data=data, progress=lambda report: connection.send(("progress", report))
            )
            connection.send(("done", pickle.dumps(result)))
            fold = connection.recv()
    except EOFError:
        return
    except BaseException as error:
        with suppress(OSError):  # Whoever would read it may have ended.
            connection.send(("error", portable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
