"""A table of the paper, with what its rows' stored runs amount to on a cache; nothing is trained for it.

The paper's figures are of IEMOCAP's four classes: beside scores of another corpus or of other classes they stand only
in Table I, under a header that says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mfhca_cache.errors import TrainingError
from mfhca_cache.labels import FOUR_CLASSES
from mfhca_cache.models import count_parameters
from mfhca_cache.reporting.intervals import Interval
from mfhca_cache.reporting.joined import SCORES, JoinedSummary, join
from mfhca_cache.reporting.parameters import compare_parameters
from mfhca_cache.reporting.summary import PAPER_CAVEAT, RunSummary, summarise
from mfhca_cache.spec import settings as plain
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.training.ablation import Ablation, RowRuns, check_rows
from mfhca_cache.training.encoders import describe_encoder
from mfhca_cache.training.job import make_model, model_settings
from mfhca_cache.training.row_inputs import Lack
from mfhca_cache.training.tables import find_published

#: Where a row stands.
TRAINED, PARTLY, NOT_TRAINED, LACKING, REFUSED, NOT_BUILT = (
    "trained", "partly trained", "not trained", "features missing", "cannot be trained", "not built yet",
)  # fmt: skip


@dataclass(frozen=True)
class RowResult:
    """A row and its scores; scores in 0…1, ``utterance_wa`` and so on.

    Attributes:
        number: in the table, from 1.
        name, label, cells: of the row, see `mfhca_cache.training.tables.Row`.
        apart: below a line, because it is no row of the paper.
        state: `TRAINED`, `PARTLY`, `NOT_TRAINED`, `LACKING`, `REFUSED` or `NOT_BUILT`.
        features: role → feature of the cache.
        runs: folders of the runs, one a seed; also where nothing is trained yet.
        folds, of: trained, of how many, over all seeds.
        mean, std: over folds and seeds; std absent for a single fold.
        pooled: all test utterances as one set; the mean over seeds.
        intervals, pooled_intervals: name → (low, high), 95 %, of ``mean`` and ``pooled``, where they can be had.
        parameters: trained numbers of the model, without the frozen encoder.
        seconds_a_fold, seconds: of training, the mean and the sum over folds and seeds.
        published: WA and UA of the paper in percent, where they may stand beside ours.
        random_weights: a feature is of an encoder that was never trained.
        optimistic: the test set had a say in the training.
        caveats, notes: what must be said beside the row: of its runs, and of the row itself.
        lacks, problem: why it is not trained.
    """

    number: int
    name: str
    label: str
    cells: tuple[str, ...]
    apart: bool
    state: str
    features: dict[str, str]
    runs: tuple[str, ...]
    folds: int
    of: int
    mean: dict[str, float]
    std: dict[str, float]
    pooled: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    pooled_intervals: dict[str, tuple[float, float]]
    parameters: int | None
    seconds_a_fold: float | None
    seconds: float
    published: tuple[float, float] | None
    random_weights: bool
    optimistic: bool
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    lacks: tuple[Lack, ...]
    problem: str


@dataclass(frozen=True)
class AblationTable:
    """A table of the paper on a cache.

    Attributes:
        name, title: of the table.
        columns: headers of ``label`` and ``cells``.
        corpus, protocol, preset, seeds, classes: of all its runs; changes of the preset as a mapping.
        rows: all of the table's.
        comparable: whether the corpus and the classes are the paper's.
        full: name of the row that is the whole of MFHCA.
        encoders: feature of a frozen encoder → its number of parameters; None where its feature.json does not say.
        claim: `mfhca_cache.reporting.parameters.compare_parameters`, in Table I.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    corpus: str
    protocol: str
    preset: str
    changes: dict[str, Any]
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    rows: tuple[RowResult, ...]
    comparable: bool
    full: str
    encoders: dict[str, int | None]
    claim: tuple[dict[str, Any], ...]

    @property
    def shows_published(self) -> bool:
        """Whether the paper's figures stand beside ours."""
        return any(row.published for row in self.rows)

    @property
    def published_header(self) -> str:
        """What the column of the paper's figures is called."""
        return "paper" if self.comparable else "published, IEMOCAP"

    @property
    def changed(self) -> list[str]:
        """The changes of the preset, in words: ``channels 16-32``."""
        texts = {k: "-".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in self.changes.items()}
        return [f"{name} {text}" for name, text in texts.items()]

    @property
    def seconds(self) -> float:
        """Of training, all rows together."""
        return sum(row.seconds for row in self.rows)

    def cautions(self) -> list[str]:
        """What makes scores worth less than they seem, each once, with the numbers of its rows."""
        lines = self._by_row([(row, row.caveats) for row in self.rows], [row for row in self.rows if row.folds])
        if self.shows_published and self.comparable:
            lines.append(PAPER_CAVEAT)
        elif self.shows_published:
            lines.append(f"published figures are of IEMOCAP's four classes, and say nothing of scores on {self.where}")
        return lines

    def remarks(self) -> list[str]:
        """What else must be said beside the scores."""
        told = []
        for row in self.rows:
            partly = (f"{row.folds} of {row.of} folds are trained",) if row.state == PARTLY else ()
            other = self.comparable and row.of and not row.apart and row.published is None
            no_figure = ("the paper has no figure for these settings and features",) if other else ()
            told.append((row, (*(note for note in row.notes if note != row.state), *partly, *no_figure)))
        lines = self._by_row(told, list(self.rows))
        if self.encoders:
            counts = [
                f"{name} {count:,}" if count else f"{name} (not recorded)" for name, count in self.encoders.items()
            ]
            lines.append(f"parameters are those trained here; of the frozen encoders beside them: {', '.join(counts)}")
        if not self.shows_published and not self.comparable:
            lines.append(f"the paper's figures are of IEMOCAP's four classes, and are not set beside {self.where}")
        return lines

    @property
    def where(self) -> str:
        """The corpus, and its classes where they are not the four."""
        return self.corpus if self.classes in ((), FOUR_CLASSES) else f"{self.corpus} with {len(self.classes)} classes"

    def _by_row(self, told: Sequence[tuple[RowResult, Sequence[str]]], every: Sequence[RowResult]) -> list[str]:
        """Each line once; one that is not of every row after the numbers of its rows."""
        found: dict[str, list[int]] = {}
        for row, lines in told:
            for line in lines:
                found.setdefault(line, []).append(row.number)
        whole = [row.number for row in every]
        return [
            line if len(whole) > 1 and of == whole else f"row{'s' * (len(of) > 1)} {', '.join(map(str, of))}: {line}"
            for line, of in found.items()
        ]

    def compare_commands(self) -> list[tuple[str, str]]:
        """(name of a row, the `mfhca compare` of it and the whole of MFHCA), for the rows that are trained."""
        runs = {row.name: row.runs[0] for row in self.rows if row.state == TRAINED}
        whole = runs.pop(self.full, None)
        several = len(self.seeds) > 1 and self.seeds == tuple(range(len(self.seeds)))
        seeds = ("--seeds", str(len(self.seeds))) if several else ()
        return (
            [(name, shlex.join(["mfhca", "compare", run, whole, *seeds])) for name, run in runs.items()]
            if whole
            else []
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "table": self.name,
            "title": self.title,
            "corpus": self.corpus,
            "protocol": self.protocol,
            "preset": self.preset,
            "changes": self.changes,
            "seeds": list(self.seeds),
            "classes": list(self.classes),
            "published_are_comparable": self.comparable,
            "rows": [
                {
                    **asdict(row),
                    "cells": dict(zip(self.columns[1:], row.cells, strict=True)),
                    "published": dict(zip(("wa", "ua"), row.published, strict=True)) if row.published else None,
                }
                for row in self.rows
            ],
            "cautions": self.cautions(),
            "remarks": self.remarks(),
            "encoder_parameters": self.encoders,
            "training_seconds": self.seconds,
            "parameters_claim": list(self.claim),
            "compare": dict(self.compare_commands()),
        }


def tabulate(ablation: Ablation) -> AblationTable:
    """Read what the rows' runs hold.

    A row whose folder holds a run of other settings has no scores, and says so.

    Raises:
        TrainingError: a fold that cannot be read.
    """
    table, cache = ablation.table, ablation.cache
    classes = next((item.jobs[0].classes.classes for item in ablation.rows if item.jobs), ())
    comparable = cache.corpus == "iemocap" and tuple(classes) == FOUR_CLASSES
    shown = comparable or table.name == "table1"
    rows = tuple(_row(cache, item, shown, comparable) for item in ablation.rows)
    used = dict.fromkeys(name for row in rows for name in row.features.values())
    return AblationTable(
        name=table.name,
        title=table.title,
        columns=table.columns,
        corpus=cache.corpus,
        protocol=ablation.options.protocol,
        preset=ablation.options.preset,
        changes=dict(ablation.changes),
        seeds=ablation.seeds,
        classes=tuple(classes),
        rows=rows,
        comparable=comparable,
        full=table.full,
        encoders={name: _recorded(cache.features[name]) for name in used if cache.features[name].kind == "encoder"},
        claim=_claim() if table.name == "table1" else (),
    )


def _row(cache: Cache, item: RowRuns, shown: bool, comparable: bool) -> RowResult:
    try:
        check_rows(list(zip(item.jobs, item.runs, strict=True)))
    except TrainingError as error:
        item = replace(item, jobs=(), runs=(), problem=str(error))
    found = [summarise(run) for run in item.runs if any(run.glob("fold*/result.json"))]
    joined = join(found) if found else None
    of = sum(len(job.folds) for job in item.jobs)
    features = item.jobs[0].roles if item.jobs else {}
    infos = [cache.features[name] for name in features.values()]
    folds = joined.folds if joined else 0
    return RowResult(
        number=item.number,
        name=item.row.name,
        label=item.row.label,
        cells=item.row.cells,
        apart=item.row.apart,
        state=_state(item, folds, of),
        features=features,
        runs=tuple(map(str, item.runs)),
        folds=folds,
        of=of,
        **_scores(joined),
        parameters=found[0].settings["parameters"] if found else _parameters(item),
        published=_published(item, found, comparable) if shown else None,
        random_weights=any(info.random_weights for info in infos),
        optimistic=any(summary.optimistic for summary in found),
        caveats=tuple(dict.fromkeys(line for summary in found for line in summary.caveats)),
        notes=item.notes,
        lacks=item.lacks,
        problem=item.problem,
    )


def _recorded(info: FeatureInfo) -> int | None:
    count = info.source.get("parameters")
    return count if type(count) is int else None


def _published(item: RowRuns, found: Sequence[RunSummary], comparable: bool) -> tuple[float, float] | None:
    """The paper's figures of a row; on its corpus only where what is trained here is that row, as in `mfhca report`."""
    if not comparable or not item.jobs or item.row.published is None:
        return item.row.published
    if found:
        figures = found[0].paper
    else:
        job = item.jobs[0]
        infos = [job.cache.features[name] for name in job.roles.values()]
        encoders = {info.name: describe_encoder(info) for info in infos if info.kind == "encoder"}
        figures = find_published(job.options.model, job.roles, plain(model_settings(job)), encoders)
    return item.row.published if figures and figures[:2] == item.row.published else None


def _parameters(item: RowRuns) -> int | None:
    """Of a row's model before it is trained; None where there is none that can be made, or where the fit decides."""
    if not item.jobs or item.jobs[0].options.closed_form:
        return None
    try:
        with torch.device("meta"):
            return count_parameters(make_model(replace(item.jobs[0], device="meta"), model_settings(item.jobs[0])))
    except TrainingError:
        return None


def _scores(joined: JoinedSummary | None) -> dict[str, Any]:
    """Scores and seconds of a row, empty where nothing is trained."""
    if joined is None:
        empty: dict[str, Any] = {"mean": {}, "std": {}, "pooled": {}, "intervals": {}, "pooled_intervals": {}}
        return empty | {"seconds_a_fold": None, "seconds": 0.0}
    seconds = [float(value) for run in joined.runs for value in run.folds["seconds"]]
    return {
        "mean": joined.mean,
        "std": joined.std,
        "pooled": joined.pooled_mean,
        "intervals": _limits(joined.intervals),
        "pooled_intervals": _limits(joined.pooled_intervals),
        "seconds_a_fold": sum(seconds) / len(seconds),
        "seconds": sum(seconds),
    }


def _limits(found: Mapping[str, Interval]) -> dict[str, tuple[float, float]]:
    return {score: (found[score].low, found[score].high) for score in SCORES if score in found}


def _state(item: RowRuns, folds: int, of: int) -> str:
    if not item.row.built:
        return NOT_BUILT
    if item.lacks:
        return LACKING
    if item.problem:
        return REFUSED
    return TRAINED if folds == of else PARTLY if folds else NOT_TRAINED


def _claim() -> tuple[dict[str, Any], ...]:
    return tuple(
        {**asdict(item), "fewer_percent": item.fewer, "fewer_percent_released": item.fewer_released}
        for item in compare_parameters()
    )
