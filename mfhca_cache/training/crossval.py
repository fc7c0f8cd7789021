"""Folds after folds of one run, each stored when it is done, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold, choose_folds
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import canonical_json, differences, fingerprint, settings
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.publish import publish_json
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.changes import changes_name
from mfhca_cache.training.job import Job, check_folds, load_job_data, prepare
from mfhca_cache.training.options import PRESET_CHANGES, Recipe, TrainOptions
from mfhca_cache.training.processes import jobs_that_fit, train_in_processes
from mfhca_cache.training.result import FoldResult, fold_folder, read_fold, write_fold
from mfhca_cache.training.trainer import train_folds

#: What folds and labels are made from. A corrected label or speaker makes another run.
_USED_COLUMNS = ("utterance_id", "speaker", "session", "class")


def run_name(
    cache: Cache, options: TrainOptions, roles: dict[str, str], protocol: str | None = None, test: str = ""
) -> str:
    """``<corpus>-<model>-<features>-<protocol>-<preset>``, with the features by their names in the cache.

    Changes of the preset follow it, as in ``frozen-rate8``. Imported folds are named by their file:
    ``imported-emobox``. A model of the reader's own is called by its class.

    Args:
        protocol: what stands for it where the folder is of several; by default that of the options.
        test: the corpus that is tested, where it is another: ``ravdess-to-emodb-mfhca-…``.
    """
    file = None if options.folds is None else Path(options.folds).resolve()
    protocol = protocol or options.protocol
    return name_of(cache.corpus, test, options.model, roles, protocol, file, options.preset, options.changes)


def name_of(
    corpus: str,
    test: str,
    model: str,
    roles: Mapping[str, str],
    protocol: str,
    folds: Path | None,
    preset: str,
    changes: Sequence[tuple[str, Any]],
) -> str:
    """`run_name` from what a stored run knows of itself too; ``folds`` is the file that they were imported from."""
    if folds is not None:
        protocol += "-" + "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folds.stem)
    corpora = f"{corpus}-to-{test}" if test else corpus
    parts = [corpora, model.rpartition(":")[2], "+".join(roles.values()), protocol, preset]
    return "-".join(parts) + changes_name(changes)


def cross_validate(
    cache: Cache,
    options: TrainOptions | None = None,
    *,
    fold: str | int = "all",
    run: str | Path | None = None,
    device: str = "auto",
    test_cache: Cache | None = None,
    job: Job | None = None,
    jobs: int | None = 1,
    progress: ProgressCallback = silent,
) -> list[FoldResult]:
    """Train the folds that are not there yet; the results of all that were asked for, in order.

    Args:
        cache: from `mfhca_cache.open_cache`.
        options: see `TrainOptions`.
        fold: ``all``, a number from 1, or a speaker's name.
        run: the run's folder, where each fold is stored when it is done; None keeps results in memory only.
        device: auto, cpu or cuda.
        test_cache: train on ``cache`` and test on this one, of another corpus; there is one fold then.
        job: from `prepare`, where the caller has it already; it stands for options, device and test_cache.
        jobs: folds at once: in processes of their own on a CPU, taking turns on a GPU; None for as many as its cores,
            or its memory, keep busy. The numbers are the same.
        progress: called after each epoch and each fold.

    Raises:
        TrainingError: splits not extracted, or the folder holds a run of other settings.
        FoldError: no such fold, or one whose test set is known in training.
    """
    job = job or prepare(cache, options or TrainOptions(), device, test_cache)
    chosen = choose_folds(job.folds, fold)
    check_folds(job, chosen)
    folder = Path(run) if run is not None else None
    done: dict[int, FoldResult] = {}
    if folder is not None:
        job = begin_run(folder, job)
        done = {f.number: read_fold(fold_folder(folder, f.number)) for f in chosen if has_fold(folder, f.number)}
    left = [f for f in chosen if f.number not in done]
    resumed = len(done)
    progress(Progress("folds", resumed, len(chosen), "folds", resumed))

    def store(result: FoldResult) -> None:
        if folder is not None:
            write_fold(folder, result)
        done[result.number] = result
        marked = " (optimistic)" if result.record["optimistic"] else ""
        detail = f"{result.record['name']}: UA {100 * result.ua:.1f} %, WA {100 * result.wa:.1f} %{marked}"
        progress(Progress("folds", len(done), len(chosen), "folds", resumed, detail=detail))

    if left:
        train_and_store(job, left, jobs, store, progress)
    return [done[f.number] for f in chosen]


def train_and_store(
    job: Job, folds: list[Fold], jobs: int | None, store: Callable[[FoldResult], None], progress: ProgressCallback
) -> None:
    """Train folds in the way that suits the device; ``store`` is called with each as it ends."""
    if jobs is not None and jobs < 1:
        raise TrainingError(f"jobs: got {jobs}; expected 1 or more, or None")
    if job.device == "cpu":
        jobs = min(jobs or jobs_that_fit(job, folds), len(folds))
        if jobs > 1:
            train_in_processes(job, folds, jobs, store, progress)
            return
    train_folds(job, folds, load_job_data(job, folds, progress), store, progress, at_once=jobs)


def has_fold(run: Path, number: int) -> bool:
    """Whether a fold is stored; its folder appears whole."""
    return (fold_folder(run, number) / "result.json").exists()


def begin_run(folder: Path, job: Job) -> Job:
    """Write run.json, or check that the run that is there is this one.

    Returns:
        the job, with the threads that the run was begun with where its options name none.

    Raises:
        TrainingError: another run's folder; what differs is listed.
    """
    mine = _identity(job)
    path = folder / "run.json"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{folder}: could not be made ({error.strerror})") from error
        publish_json(path, mine)
        return job
    before = read_json(path)
    if job.options.threads is None:
        job = replace(job, threads=before.get("threads", job.threads))
        mine["threads"] = job.threads
    # Runs begun before these could be chosen.
    before.setdefault("threads", job.threads)
    before.setdefault("options", {}).setdefault("precision", "fp32")
    for part, usual in (("recipe", Recipe()), ("settings", type(job.options.settings)())):
        if part in mine["options"]:
            before["options"][part] = settings(usual) | before["options"].get(part, {})
    changed = differences(before, mine)
    if changed:
        seed = job.options.seed
        suffix = f"seed{seed}" if before["options"].get("seed") != seed else "2"
        if job.options.precision != before["options"]["precision"]:
            suffix = job.options.precision
        elif job.threads != before["threads"]:
            suffix = f"threads{job.threads}"
        if job.own is not None and before.get("model_sha256") != job.own.sha256:
            suffix = job.own.sha256[:8]
            changed.append(f"{job.own.file} is not what it was when this run was begun")
        raise TrainingError(
            f"{folder} holds a run of other settings, and folds of two kinds are never mixed.\n  "
            + "\n  ".join(changed)
            + f"\nGive this run its own name, such as --name {folder.name.removesuffix(f'-seed{seed}')}-{suffix}, "
            "or delete it."
        )
    return job


def check_begun(folder: Path, job: Job) -> Job:
    """`begin_run` where a run was begun there; elsewhere nothing is written, and the job comes back as it is.

    Raises:
        TrainingError: another run's folder; what differs is listed.
    """
    return begin_run(folder, job) if (folder / "run.json").exists() else job


def _identity(job: Job) -> dict[str, Any]:
    """Everything that the folds of a run have in common."""
    features = {name: job.cache.features[name].fingerprint for name in job.roles.values()}
    # Folds from a file are known by its SHA-256, wherever it lies; the changes of the preset are in the recipe.
    left_out = ("features", "folds", "allow_leaks", "threads", *PRESET_CHANGES)
    options = {key: value for key, value in settings(job.options).items() if key not in left_out}
    more: dict[str, Any] = {"folds_from": job.folds_from} if job.folds_from else {}
    if job.test_cache is not None and job.test_classes is not None:
        more |= {"test_corpus": job.test_cache.corpus, "test_plan": job.test_cache.plan.identity()}
        more |= {"test_classes": {name: list(labels) for name, labels in job.test_classes.labels.items()}}
    if job.own is not None:
        del options["settings"]  # MFHCA's
        more |= {"model_sha256": job.own.sha256, "inputs": list(job.roles)}  # It sees its inputs in the order given.
    elif job.options.closed_form:
        del options["recipe"]
        more |= {"inputs": list(job.roles)}
    elif job.alexnet is not None:
        options["settings"]["alexnet_weights"] = job.alexnet.sha256  # Wherever the file lies.
    return {
        "corpus": job.cache.corpus,
        "folds": [fold.name for fold in job.folds],
        "plan": job.cache.plan.identity(),
        "utterances": fingerprint(job.table[list(_USED_COLUMNS)].astype(str).to_numpy().tolist()),
        "labels": job.classes.name,
        "classes": {name: list(job.classes.labels.get(name, ())) for name in job.classes.classes},
        "feature_fingerprints": features,
        # Through JSON, because tuples come back from run.json as lists.
        "options": json.loads(canonical_json(options)),
        "features": dict(job.roles),
        "threads": job.threads,
        **more,
    }
