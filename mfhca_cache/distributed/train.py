"""Stage two over a cluster: folds of any number of runs as tasks, whatever the runs differ in.

Five seeds are five items; the rows of an ablation are as many items more. The command begins every run, so that the
tasks agree on it, and submits the folds that are missing; a task trains one fold and writes its folder by one rename.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mfhca_cache.distributed.cluster import Answer, Task, check_shared, join_cluster
from mfhca_cache.errors import MfhcaError, TrainingError
from mfhca_cache.folds import choose_folds
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.shard import file_sha256
from mfhca_cache.training.crossval import begin_run, cross_validate, has_fold
from mfhca_cache.training.data import require_extracted
from mfhca_cache.training.job import Job, check_folds, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import fold_folder

_NAMED = 8


@dataclass(frozen=True)
class TrainItem:
    """One run's folds.

    Attributes:
        options: of the run; its seed among them.
        run: the run's folder, one an item.
        fold: ``all``, a number from 1, or a speaker's name.
    """

    options: TrainOptions
    run: Path
    fold: str | int = "all"


def train_on_ray(
    cache: Cache,
    items: Sequence[TrainItem],
    *,
    address: str | None = None,
    device: str = "auto",
    progress: ProgressCallback = silent,
    failed: Callable[[Path, str], object] | None = None,
) -> list[Path]:
    """Train the folds that are not there yet on the nodes of a Ray cluster; the folders of all, in order.

    The cache and the runs must lie on storage that every node has under the same path.

    Args:
        cache: from `mfhca_cache.open_cache`.
        items: runs, such as one a seed (`mfhca_cache.training.seeds.seed_folder` names them) or one a row of a table.
        address: ``HOST:PORT`` of the cluster, ``auto``, or None for a cluster of this machine alone.
        device: auto (cuda where the cluster has GPUs), cpu or cuda.
        progress: called about once a second.
        failed: told, when all is done, of the run of each fold whose training failed, and why; without it the first
            such fold ends everything. A disk that is full, or a node that does not fit, always does.

    Raises:
        ClusterError: Ray is not installed, there is no such cluster, or a node does not see the cache or the runs.
        TrainingError: folds that are missing when all is done, because their workers died; names them.
        MfhcaError: as `mfhca_cache.cross_validate`.
    """
    folders = [item.run.absolute() for item in items]
    if len(set(folders)) < len(folders):
        raise TrainingError("two items name one run's folder; expected a folder for each")
    jobs = [prepare(cache, item.options, "cpu") for item in items]
    chosen = [choose_folds(job.folds, item.fold) for job, item in zip(jobs, items, strict=True)]
    for job, folds in zip(jobs, chosen, strict=True):
        check_folds(job, folds)
    jobs = [begin_run(run, job) for job, run in zip(jobs, folders, strict=True)]
    seen = file_sha256(cache.path / "cache.json")
    tasks: dict[str, tuple[Task, Path]] = {}
    for job, folds, run in zip(jobs, chosen, folders, strict=True):
        for fold in folds:
            if has_fold(run, fold.number):
                continue
            ids = [*fold.train, *fold.validation, *fold.test]
            require_extracted(cache, job.roles.values(), ids, f"fold {fold.number} ({fold.name})")
            path = fold_folder(run, fold.number)
            common = {"cache": str(cache.path.absolute()), "seen": seen, "options": job.options, "run": str(run)}
            mine = {"begun": file_sha256(run / "run.json"), "fold": fold.number, "keep_going": failed is not None}
            tasks[str(path)] = Task(str(path), {**common, **mine}), path
    total = sum(map(len, chosen))
    resumed = total - len(tasks)
    if tasks:
        threads = max(job.threads for job in jobs)
        why = _run([task for task, _ in tasks.values()], total, resumed, address, device, threads, progress)
        for run, item in zip(folders, items, strict=True):
            for name, reason in why.items():
                if failed is not None and Path(name).parent == run:
                    failed(item.run, reason)
    return [fold_folder(run, fold.number) for run, folds in zip(folders, chosen, strict=True) for fold in folds]


def _run(
    tasks: list[Task],
    total: int,
    resumed: int,
    address: str | None,
    device: str,
    threads: int,
    progress: ProgressCallback,
) -> dict[str, str]:
    """Run the tasks, and look at the end which folds are missing; why those failed that may fail, by task."""
    told: set[str] = set()

    def tell(answers: dict[str, Answer]) -> None:
        new = [answer for name, answer in answers.items() if name not in told]
        told.update(answers)
        detail = new[-1]["detail"] if new else ""
        progress(Progress("folds on Ray", resumed + len(answers), total, "folds", resumed, detail=detail))

    with join_cluster(address) as cluster:
        where = cluster.device(device)
        cpus = cluster.cpus_of_task(threads, where == "cuda")
        sent = [Task(task.name, {**task.arguments, "device": where}) for task in tasks]
        answers, lost = cluster.run(train, sent, cpus=cpus, gpu=where == "cuda", tell=tell)
    why = {name: answer["failed"] for name, answer in answers.items() if "failed" in answer}
    names = [task.name for task in tasks if task.name not in why]
    missing = [name for name in names if not (Path(name) / "result.json").exists()]
    if missing:
        shown = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else "")
        reason = next(iter(lost.values()), "its folder is not seen here")
        raise TrainingError(
            f"{len(missing):,} fold(s) are still missing: {shown}: a worker died again and again ({reason}). What is "
            "there is kept; the same command goes on from there"
        )
    return why


def train(
    cache: str, seen: str, options: TrainOptions, run: str, begun: str, fold: int, device: str, keep_going: bool = False
) -> Answer:
    """On a node: train one fold of a run and store it.

    Args:
        cache, run: their folders.
        seen, begun: SHA-256 of the cache's cache.json and of the run's run.json as the command sees them.
        keep_going: answer with why a training failed, under ``failed``, instead of raising it.

    Raises:
        ClusterError: this node does not see them.
    """
    check_shared(Path(cache) / "cache.json", seen)
    check_shared(Path(run) / "run.json", begun)
    if options.own and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # As the command has it.
    job = _job(cache, seen, options, device)
    try:
        (result,) = cross_validate(job.cache, options, fold=fold, run=run, job=job)
    except MfhcaError as error:
        if not keep_going or isinstance(error.__cause__, OSError):
            raise  # A full disk is not the run's fault.
        return {"detail": f"{Path(run).name}, fold {fold} failed", "failed": str(error)}
    marked = " (optimistic)" if result.record["optimistic"] else ""
    name = f"{Path(run).name}, {result.record['name']}"
    return {"detail": f"{name}: UA {100 * result.ua:.1f} %, WA {100 * result.wa:.1f} %{marked}"}


@lru_cache(maxsize=1)
def _job(cache: str, seen: str, options: TrainOptions, device: str) -> Job:
    """What a run's folds share, found once by a node's process for as long as it trains folds of one run."""
    return prepare(open_cache(cache), options, device)
