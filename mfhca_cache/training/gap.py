"""One run under several protocols, from as few trainings as can be: what is trained for the size of the optimism.

    strict, strict-peeked      one training; its epoch chosen on the validation speaker, and on the test speaker
    test-selected              a training of its own: the validation speaker trains too
    session, session-peeked    one training; its epoch chosen on 20 % of the training utterances, and on the test set

Each is the run that `mfhca train --protocol` makes under its name, in a folder of its own. Of the two results of one
training the optimistic one is stored first: where the other is there alone, it was trained before without being
watched. Such a fold is trained again, and its numbers must be those that are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold, peeked
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import differences
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.crossval import begin_run, check_begun, cross_validate, has_fold, run_name, train_and_store
from mfhca_cache.training.job import Job, check_folds, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import FoldResult, fold_folder, read_fold, write_fold
from mfhca_cache.training.seeds import of_seed, seed_folder

#: Trained for a gap, in this order. Those of `WATCHED` have a second choice of the epoch beside their own.
TRAINED = ("strict", "test-selected", "session")
WATCHED = ("strict", "session")
GAP_PROTOCOLS = ("strict", peeked("strict"), "test-selected", "session", peeked("session"))
#: Of a record: what says that two trainings were one. The weights are compared besides.
_NUMBERS = ("best_epoch", "epochs", "stopped", "validation", "scores", "confusion")
#: Why they may differ, though options and data are the same.
_CAUSES = ("versions", "device", "threads", "step")


@dataclass(frozen=True)
class GapItem:
    """A run of a gap.

    Attributes:
        job: what its folds share.
        run: its folder.
    """

    job: Job
    run: Path


def plan_gap(
    cache: Cache,
    options: TrainOptions,
    seeds: Iterable[int] = (0,),
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
) -> dict[int, dict[str, GapItem]]:
    """Seed → protocol of `GAP_PROTOCOLS` → its run; nothing is trained or written.

    Args:
        options: of all; their protocol and their seed are not used.
        runs: the folder where runs go.
        name: the runs are ``<name>-<protocol>``; by default they have the names that `mfhca train` gives them.

    Raises:
        TrainingError, FoldError, LabelError: as `mfhca_cache.training.job.prepare`, or folds from a file.
    """
    if options.folds is not None:
        raise TrainingError(
            "a gap is between protocols of ours; got folds from a file, which have their own validation"
        )
    if options.closed_form:
        raise TrainingError(
            f"a gap is between ways to choose the epoch, and {options.model} is fitted without epochs; expected a "
            "model that is trained in steps, such as mfhca"
        )
    plan: dict[int, dict[str, GapItem]] = {}
    for seed in seeds:
        plan[seed] = {}
        for protocol in GAP_PROTOCOLS:
            job = prepare(cache, replace(options, protocol=protocol, seed=seed), device)
            check_folds(job, job.folds)
            plain = f"{name}-{protocol}" if name else run_name(cache, job.options, job.roles)
            plan[seed][protocol] = GapItem(job, seed_folder(Path(runs) / plain, seed))
    return plan


def train_gap(
    plan: dict[int, dict[str, GapItem]], *, jobs: int | None = 1, progress: ProgressCallback = silent
) -> dict[str, list[Path]]:
    """Train the folds that are not there yet; protocol → the runs' folders, one a seed.

    Args:
        plan: from `plan_gap`.
        jobs, progress: as in `mfhca_cache.training.crossval.cross_validate`.

    Raises:
        TrainingError: a folder holds a run of other settings, before anything is trained; a fold that is stored does
            not come out again as it was; or the model has no epochs to choose from.
    """
    for items in plan.values():
        for protocol in TRAINED:
            job = check_begun(items[protocol].run, items[protocol].job)
            if protocol in WATCHED:
                other = items[peeked(protocol)]
                check_begun(other.run, _watching(other, job))
    for seed, items in plan.items():
        for protocol in TRAINED:
            told = _under(protocol, of_seed(progress, seed) if len(plan) > 1 else progress)
            item = items[protocol]
            if protocol in WATCHED:
                train_watched(item, items[peeked(protocol)], jobs=jobs, progress=told)
            else:
                cross_validate(item.job.cache, run=item.run, job=item.job, jobs=jobs, progress=told)
    return {protocol: [items[protocol].run for items in plan.values()] for protocol in GAP_PROTOCOLS}


def train_watched(item: GapItem, other: GapItem, *, jobs: int | None = 1, progress: ProgressCallback = silent) -> None:
    """Train a run's folds, and choose each one's epoch a second time, for the other run.

    Args:
        item, other: two runs whose folds have the same training sets.

    Raises:
        TrainingError: as `train_gap`.
    """
    if [fold.train for fold in item.job.folds] != [fold.train for fold in other.job.folds]:
        names = f"{item.job.options.protocol} and {other.job.options.protocol}"
        raise TrainingError(f"{names} do not have the same training sets; expected two choices in one training")
    job = begin_run(item.run, item.job)
    watching = begin_run(other.run, _watching(other, job))
    job = replace(job, beside=tuple(watching.folds))
    left = folds_left(item, other)
    done = resumed = len(job.folds) - len(left)
    progress(Progress("folds", resumed, len(job.folds), "folds", resumed))

    def store(result: FoldResult) -> None:
        nonlocal done
        if not result.beside:
            raise TrainingError(f"model {job.options.model} is not trained in epochs, so there is none to choose")
        again = False
        for run, found in ((item.run, result), (other.run, result.beside[0])):
            if has_fold(run, result.number):
                refuse_another(read_fold(fold_folder(run, result.number)), found, run)
                again = True
        # The optimistic one first, see above.
        for run, found in ((other.run, result.beside[0]), (item.run, result)):
            if not has_fold(run, result.number):
                write_fold(run, found)
        done += 1
        detail = f"{result.record['name']}: UA {100 * result.ua:.1f} %; chosen on the test set "
        detail += f"{100 * result.beside[0].ua:.1f} % (optimistic)" + ("; as it was before" if again else "")
        progress(Progress("folds", done, len(job.folds), "folds", resumed, detail=detail))

    if left:
        train_and_store(job, left, jobs, store, progress)


def _watching(other: GapItem, job: Job) -> Job:
    """The other run's job with the threads of the one that is trained, for the same sums."""
    return replace(other.job, options=replace(other.job.options, threads=job.threads), threads=job.threads)


def folds_left(item: GapItem, other: GapItem) -> list[Fold]:
    """The folds that are not stored under both choices of the epoch."""
    runs = (item.run, other.run)
    return [fold for fold in item.job.folds if not all(has_fold(run, fold.number) for run in runs)]


def refuse_another(stored: FoldResult, trained: FoldResult, run: Path) -> None:
    """Refuse a fold that did not come out as it is stored: then the two choices are not of one training.

    Raises:
        TrainingError: what differs, and what may be the cause.
    """
    changed = _differences(stored, trained, _NUMBERS)
    if not changed and stored.state.keys() == trained.state.keys():
        changed = [name for name, value in stored.state.items() if not torch.equal(value, trained.state[name])][:1]
        changed = [f"its weights, such as {name}" for name in changed]
    elif not changed:
        changed = ["the names of its weights"]
    if changed:
        why = _differences(stored, trained, _CAUSES) or ["another machine, or kernels that do not repeat"]
        folder = fold_folder(run, stored.number)
        raise TrainingError(
            f"{folder} was trained before, and trained again for a second choice of its epoch it came out otherwise: "
            f"{'; '.join(changed[:3])}. The cause may be {'; '.join(why)}. It is kept as it is. For a gap of "
            f"one training give the runs a name of their own with --name, or delete {folder}"
        )


def _differences(stored: FoldResult, trained: FoldResult, keys: Iterable[str]) -> list[str]:
    before, now = ({key: result.record.get(key) for key in keys} for result in (stored, trained))
    return differences(before, now)


def _under(protocol: str, progress: ProgressCallback) -> ProgressCallback:
    """The same callback, told which protocol's work it is."""
    return lambda report: progress(replace(report, stage=f"{protocol}, {report.stage}"))
