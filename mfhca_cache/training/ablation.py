"""The rows of a table of the paper as runs: which features, options and folders, and their training one after another.

A row is a run like any other: where its settings are those of the preset, it is the very run that `mfhca train` makes,
and rows of several tables that are the same are one run. Whatever is trained already is not trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mfhca_cache.errors import MfhcaError, TrainingError
from mfhca_cache.folds import choose_folds
from mfhca_cache.models import CLOSED_FORM, SETTINGS
from mfhca_cache.models.alexnet import find_weights
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.changes import changes_name
from mfhca_cache.training.crossval import check_begun, cross_validate, has_fold, run_name
from mfhca_cache.training.data import require_extracted
from mfhca_cache.training.job import Job, check_folds, prepare
from mfhca_cache.training.options import OTHER_PRESET, PRESETS, Recipe, TrainOptions
from mfhca_cache.training.row_inputs import Lack, check_named, row_inputs
from mfhca_cache.training.seeds import seed_folder, seeds_suffix
from mfhca_cache.training.tables import TABLES, Row, Table

#: GRF channels of the paper; a preset with fewer has the same share fewer in every row of Table III.
_FIRST_CHANNELS = 16


@dataclass(frozen=True)
class RowRuns:
    """A row of a table on a cache.

    Attributes:
        row: of the paper; its label and cells are what is trained here.
        number: in the table, from 1.
        jobs: one a seed; none where the row cannot be trained.
        runs: the folders of the jobs' runs.
        lacks: features that the cache does not have.
        problem: why the row cannot be trained, where no feature lacks.
        notes: what must be said beside the row.
    """

    row: Row
    number: int
    jobs: tuple[Job, ...] = ()
    runs: tuple[Path, ...] = ()
    lacks: tuple[Lack, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """A table on a cache: its rows, and where the table itself is written.

    Attributes:
        table: of the paper.
        options: what all rows have in common; ``seed`` is the first.
        seeds: of the runs of each row.
        changes: of the preset, by all rows that can have them; in the table's name.
        rows: all of the table's.
        chosen: those of them that are to be trained.
        folder: of the table's files.
    """

    table: Table
    cache: Cache
    options: TrainOptions
    seeds: tuple[int, ...]
    changes: tuple[tuple[str, Any], ...]
    rows: tuple[RowRuns, ...]
    chosen: tuple[RowRuns, ...]
    folder: Path


def plan_ablation(
    cache: Cache,
    table: str,
    options: TrainOptions | None = None,
    *,
    runs: str | Path = "runs",
    seeds: int = 1,
    rows: Sequence[str] = (),
    hubert: str | None = None,
    w2v2: str | None = None,
    alexnet_weights: str = "",
    device: str = "auto",
) -> Ablation:
    """What a table's rows are on a cache, without training any.

    Args:
        table: ``table1`` to ``table4``.
        options: preset, protocol, classes, first seed, precision, threads and changes of all rows; model and features
            are the rows'.
        runs: the folder that holds runs.
        seeds: runs of each row, from the first seed on.
        rows: numbers from 1, or names, of those to be trained; none for all.
        hubert, w2v2: features of these families, where the cache has several.
        alexnet_weights: file that AlexNet starts from in the rows that have it.
        device: auto, cpu or cuda.

    Raises:
        TrainingError: no such table or row, a change of what the table's rows differ in, or weights of AlexNet that
            cannot be read or that no row has a use for; and as `prepare`.
    """
    if table not in TABLES:
        raise TrainingError(f"table: got {table!r}; expected one of {', '.join(TABLES)}")
    if seeds < 1:
        raise TrainingError(f"seeds: got {seeds}; expected 1 or more")
    found, options = TABLES[table], options or TrainOptions()
    changes, given = split_weights(named_changes(options))
    weights = alexnet_weights or given
    if twice := sorted(found.varied & {name for name, _ in changes}):
        raise TrainingError(f"{', '.join(twice)}: the rows of {table} differ in this, so it cannot be set for all")
    options = replace(options, epochs=None, learning_rate=None, changes=changes)
    check_named(cache, hubert, w2v2)
    if weights:
        find_weights(weights)
        if not any(row.built and _has_alexnet(row, options) for row in found.rows):
            raise TrainingError(f"alexnet_weights: no row of {table} has AlexNet; leave the file out")
    chosen = {row.name for row in found.find(rows)}
    every = tuple(options.seed + number for number in range(seeds))
    here = tuple(
        _plan_row(
            cache, found, _of_preset(row, options), number, options, weights, every, Path(runs), (hubert, w2v2), device
        )
        for number, row in enumerate(found.rows, start=1)
    )
    suffix = seeds_suffix(options.seed, seeds)
    changes += (("alexnet_weights", weights),) * bool(weights)
    name = f"{cache.corpus}-{table}-{options.protocol}-{options.preset}{changes_name(changes)}{suffix}"
    wanted = tuple(item for item in here if item.row.name in chosen)
    return Ablation(found, cache, options, every, changes, here, wanted, Path(runs) / name)


def train_ablation(
    ablation: Ablation,
    *,
    fold: str | int = "all",
    jobs: int | None = None,
    progress: ProgressCallback = silent,
    done: Callable[[RowRuns], None] = lambda _: None,
) -> dict[str, str]:
    """Train the folds of the chosen rows that are not there yet, seed after seed, row after row.

    A row that fails does not keep the others from being trained.

    Args:
        fold: ``all``, a number from 1, or a speaker's name.
        jobs: folds at once, as in `mfhca_cache.cross_validate`.
        progress: told of the folds of all rows together, and of epochs by row.
        done: called when a row's run is done, once a seed.

    Returns:
        name of a row → why it failed.

    Raises:
        TrainingError: a folder that holds a run of other settings, before anything is trained; or nothing can be
            written.
        FoldError: no such fold.
    """
    work = [(item, job, run) for at in range(len(ablation.seeds)) for item, job, run in _of_seed(ablation, at)]
    folds = {run: choose_folds(job.folds, fold) for _, job, run in work}
    check_rows([(job, run) for _, job, run in work])
    for _, job, run in work:
        check_folds(job, folds[run])
    total = sum(map(len, folds.values()))
    resumed = sum(has_fold(run, item.number) for run, items in folds.items() for item in items)
    progress(Progress(ablation.table.title, resumed, total, "folds", resumed))
    failed: dict[str, str] = {}
    ready = 0
    for item, job, run in work:
        there = sum(has_fold(run, each.number) for each in folds[run])
        told = _of_row(progress, ablation, item, job, (resumed + ready, there, total, resumed))
        try:
            cross_validate(ablation.cache, fold=fold, run=run, job=job, jobs=jobs, progress=told)
        except MfhcaError as error:
            if isinstance(error.__cause__, OSError):
                raise  # A full disk is not the row's fault.
            failed[item.row.name] = str(error)
        ready += sum(has_fold(run, each.number) for each in folds[run]) - there
        done(item)
    return failed


def check_rows(runs: Sequence[tuple[Job, Path]]) -> None:
    """Refuse, before anything is trained, folders that hold runs of other settings.

    Raises:
        TrainingError: names the folder and what differs.
    """
    for job, run in runs:
        try:
            check_begun(run, job)
        except TrainingError as error:
            hint = "The rows of a table have the names of their settings: put these into another folder with --runs"
            raise TrainingError(f"{error}\n{hint}") from error


def named_changes(options: TrainOptions) -> tuple[tuple[str, Any], ...]:
    """The options' changes, with epochs and learning rate among them, so that they are in the runs' names."""
    given = ((name, getattr(options, name)) for name in ("epochs", "learning_rate"))
    return (*((name, value) for name, value in given if value is not None), *options.changes)


def _of_seed(ablation: Ablation, at: int) -> list[tuple[RowRuns, Job, Path]]:
    return [(item, item.jobs[at], item.runs[at]) for item in ablation.chosen if item.jobs]


def _of_preset(row: Row, options: TrainOptions) -> Row:
    """The row with as much of the paper's channels as the preset has; quick has half."""
    first = PRESETS[options.preset].model.channels[0]
    changes = dict(row.changes)
    if "channels" not in changes or first == _FIRST_CHANNELS:
        return row
    counts = tuple(count * first // _FIRST_CHANNELS for count in changes["channels"])
    label = "-".join(map(str, counts))
    note = f"{first}/{_FIRST_CHANNELS} of the paper's channels, as in preset {options.preset}"
    return replace(row, label=label, changes=(("channels", counts),), note=note)


def _plan_row(
    cache: Cache,
    table: Table,
    row: Row,
    number: int,
    options: TrainOptions,
    weights: str,
    seeds: tuple[int, ...],
    runs: Path,
    encoders: tuple[str | None, str | None],
    device: str,
) -> RowRuns:
    notes: tuple[str, ...] = (row.note,) if row.note else ()
    if not row.built:
        return RowRuns(row, number, notes=notes)
    try:
        inputs = row_inputs(cache, row.inputs, *encoders)
    except TrainingError as error:
        return RowRuns(row, number, problem=str(error), notes=notes)
    notes += inputs.notes
    if inputs.lacks:
        return RowRuns(row, number, lacks=inputs.lacks, notes=notes)
    try:
        mine = _options(row, options, inputs.features, weights)
        jobs = tuple(prepare(cache, replace(mine, seed=seed), device) for seed in seeds)
        for name in inputs.features:
            ids = {item for fold in jobs[0].folds for item in (*fold.train, *fold.validation, *fold.test)}
            require_extracted(cache, [name], ids, f"row {number} of {table.name}")
    except TrainingError as error:
        return RowRuns(row, number, problem=str(error), notes=notes)
    plain = runs / run_name(cache, mine, jobs[0].roles)
    return RowRuns(row, number, jobs, tuple(seed_folder(plain, seed) for seed in seeds), notes=notes)


def split_weights(changes: Sequence[tuple[str, Any]]) -> tuple[tuple[tuple[str, Any], ...], str]:
    """The changes without ``alexnet_weights``, which only rows with AlexNet can have, and that file; empty for none.

    Raises:
        TrainingError: it is given twice.
    """
    files = [str(value) for name, value in changes if name == "alexnet_weights"]
    if len(files) > 1:
        raise TrainingError("alexnet_weights: changed twice; give it once")
    return tuple(pair for pair in changes if pair[0] != "alexnet_weights"), "".join(files)


def _has_alexnet(row: Row, options: TrainOptions) -> bool:
    """Whether a row looks at the spectrogram through AlexNet."""
    network = {**dict(options.changes), **dict(row.changes)}.get("spectrogram_network")
    of_mfhca = row.model == "mfhca" and "spectrogram" in row.inputs and network == "alexnet"
    return of_mfhca or row.model == "co-attention"


def _options(row: Row, options: TrainOptions, features: Sequence[str], weights: str = "") -> TrainOptions:
    """What a row is trained by: its own changes, and of those for all rows the ones that its model can have."""
    usual = PRESETS[options.preset].model
    own = tuple((name, value) for name, value in row.changes if getattr(usual, name) != value)
    closed = row.model in CLOSED_FORM
    known = {field.name for kind in (SETTINGS[row.model], *[Recipe] * (not closed)) for field in fields(kind)}
    common = tuple((name, value) for name, value in options.changes if name in known)
    if closed:  # It has no epochs, so that one run serves every preset.
        options = replace(options, preset=OTHER_PRESET, precision="fp32", changes=())
    from_file = (("alexnet_weights", weights),) * bool(weights and _has_alexnet(row, options))
    return replace(options, model=row.model, features="+".join(features), changes=(*common, *own, *from_file))


def _of_row(
    progress: ProgressCallback, ablation: Ablation, item: RowRuns, job: Job, counts: tuple[int, int, int, int]
) -> ProgressCallback:
    """The callback for one row: folds are counted over all rows, and epochs say whose they are."""
    before, there, total, resumed = counts
    seed = f", seed {job.options.seed}" if len(ablation.seeds) > 1 else ""
    name = f"row {item.number} ({item.row.name}{seed})"

    def tell(report: Progress) -> None:
        if report.unit == "folds":
            done, detail = before + report.done - there, f"{name}: {report.detail}" if report.detail else name
            progress(Progress(ablation.table.title, done, total, "folds", resumed, detail=detail))
        else:
            progress(replace(report, stage=f"{name}, {report.stage}"))

    return tell
