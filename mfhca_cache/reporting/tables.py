"""The tables of a report, as rows of plain values: the page, LaTeX and CSV are written from the same ones."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from csv import writer
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from mfhca_cache.reporting.intervals import Interval
from mfhca_cache.reporting.joined import SCORES as SCORE_NAMES
from mfhca_cache.reporting.joined import JoinedSummary
from mfhca_cache.reporting.summary import RunSummary

#: How a column is shown: words, whole numbers, or scores of 0…1 in percent with two decimals.
Kind = Literal["text", "count", "percent"]
#: A score's name, its level, and what it is called there.
SCORES = tuple((name, name.rpartition("_")[0], name.rpartition("_")[2].upper()) for name in SCORE_NAMES)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: the stem of its files.
        caption: what it shows.
        columns: heading and kind of each.
        rows: a value a column; scores in 0…1; None for an empty cell.
        ends: how many of the last rows stand apart: means and sums.
    """

    name: str
    caption: str
    columns: tuple[tuple[str, Kind], ...]
    rows: tuple[tuple[Any, ...], ...]
    ends: int = 0

    def csv(self) -> bytes:
        """The table with every digit, as CSV; an empty cell for None."""
        text = io.StringIO()
        out = writer(text, lineterminator="\n")
        out.writerow([heading for heading, _ in self.columns])
        out.writerows([["" if value is None else value for value in row] for row in self.rows])
        return text.getvalue().encode("utf-8", "backslashreplace")


def shown(value: Any, kind: Kind) -> str:
    """A cell as people read it: ``74.24``, ``1,024``; nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if kind == "percent":
        return f"{100 * value:.2f}"
    if kind == "count" and isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
    return str(value)


def score_table(summary: RunSummary, where: str) -> Table:
    """WA and UA at both levels: fold mean, std, interval and pooled; the paper's figure where it applies."""
    intervals, pooled = summary.intervals, summary.pooled_intervals
    columns: list[tuple[str, Kind]] = [("level", "text"), ("score", "text"), ("fold mean", "percent")]
    columns += [("± std", "percent")] if summary.std else []
    columns += [("from", "percent"), ("to", "percent")] if intervals else []
    columns += [("pooled", "percent")]
    columns += [("from", "percent"), ("to", "percent")] if pooled else []
    columns += [("the paper", "percent")] if summary.paper else []
    paper = {"wa": summary.paper[0] / 100, "ua": summary.paper[1] / 100} if summary.paper else {}
    rows = []
    for name, level, short in SCORES:
        row: list[Any] = [level, short, summary.mean[name]]
        row += [summary.std[name]] if summary.std else []
        row += _limits(intervals, name) if intervals else []
        row += [summary.pooled[name]]
        row += _limits(pooled, name) if pooled else []
        row += [paper[name.rpartition("_")[2]] if level == "utterance" else None] if summary.paper else []
        rows.append(tuple(row))
    count = len(summary.folds)
    limits = f" From and to: the {interval_name(intervals)} of the score before them." if intervals else ""
    caption = f"Scores in percent over {count} fold{'s' * (count != 1)}.{limits} {where}"
    return Table("scores", caption, tuple(columns), tuple(rows))


def seed_table(joined: JoinedSummary, where: str) -> Table:
    """Each seed's pooled scores, their mean and std, and mean and std over folds and seeds."""
    columns: tuple[tuple[str, Kind], ...] = (
        ("", "text"), ("folds", "count"), *((_short(level, short), "percent") for _, level, short in SCORES),
    )  # fmt: skip
    names = [name for name, _, _ in SCORES]
    rows: list[tuple[Any, ...]] = [
        (f"seed {run.settings['seed']}, pooled", len(run.folds), *(run.pooled[name] for name in names))
        for run in joined.runs
    ]
    ends: list[tuple[str, int | None, dict[str, float]]] = [
        ("mean of the pooled", None, joined.pooled_mean),
        ("± std of the seeds", None, joined.pooled_std),
        ("mean of folds and seeds", joined.folds, joined.mean),
        ("± std of folds and seeds", None, joined.std),
    ]
    kept = [(label, count, *(values[name] for name in names)) for label, count, values in ends if values]
    caption = f"Scores in percent of {len(joined.runs)} seeds. {where}"
    return Table("seeds", caption, columns, tuple(rows + kept), len(kept))


def fold_table(summary: RunSummary, where: str) -> Table:
    """A row a fold, then mean, std and pooled."""
    columns: tuple[tuple[str, Kind], ...] = (
        ("fold", "text"), ("utterances", "count"), ("clips", "count"), (summary.chosen, "count"),
        *((_short(level, short), "percent") for _, level, short in SCORES),
    )  # fmt: skip
    names = [name for name, _, _ in SCORES]
    rows = [
        (
            f"{row['fold']} ({row['name']})", row["utterances"], row["clips"], row[summary.chosen_column],
            *(row[name] for name in names),
        )
        for row in summary.folds.to_dict("records")
    ]  # fmt: skip
    ends: list[tuple[Any, ...]] = []
    if summary.std:
        ends.append(("mean", None, None, None, *(summary.mean[name] for name in names)))
        ends.append(("± std", None, None, None, *(summary.std[name] for name in names)))
    totals = [int(summary.folds[name].sum()) for name in ("utterances", "clips")]
    ends.append(("pooled", *totals, None, *(summary.pooled[name] for name in names)))
    return Table("folds", f"Every fold, in percent. {where}", columns, tuple(rows + ends), len(ends))


def speakers_table(summary: RunSummary, where: str) -> Table:
    """A row a test speaker: WA, UA and the recall of each class; the fold where no speaker is tested in several."""
    known: list[tuple[str, Kind, str]] = [("speaker", "text", "speaker"), ("fold", "text", "fold")]
    known += [("utterances", "count", "utterances"), ("WA", "percent", "wa"), ("UA", "percent", "ua")]
    known = [item for item in known if item[2] in summary.speakers]
    taken = {heading for heading, _, _ in known}
    # A class may be called as a column is.
    recalls = [(f"recall of {name}" if name in taken else name, f"recall_{name}") for name in summary.classes]
    columns: list[tuple[str, Kind]] = [*((heading, kind) for heading, kind, _ in known)]
    columns += [(heading, "percent") for heading, _ in recalls]
    names = [*(name for _, _, name in known), *(name for _, name in recalls)]
    rows = tuple(tuple(_plain(row[name]) for name in names) for row in summary.speakers.to_dict("records"))
    caption = f"Every test speaker, in percent: WA, UA and the recall of each class. {where}"
    return Table("speakers", caption, tuple(columns), rows)


def confusion_table(summary: RunSummary, level: str, where: str) -> Table:
    """Counts: a row a true class, a column a predicted one."""
    columns: tuple[tuple[str, Kind], ...] = (("true, predicted", "text"), *((n, "count") for n in summary.classes))
    matrix = summary.confusion[level].tolist()
    rows = tuple((name, *counts) for name, counts in zip(summary.classes, matrix, strict=True))
    return Table(f"confusion-{level}", f"Confusion matrix of {level}s: counts. {where}", columns, rows)


def _limits(intervals: dict[str, Interval], name: str) -> list[float | None]:
    interval = intervals.get(name)
    return [interval.low, interval.high] if interval else [None, None]


def interval_name(intervals: dict[str, Interval]) -> str:
    """``95 % interval``."""
    level = next(iter(intervals.values())).level
    return f"{100 * level:g} % interval"


def method_of(intervals: dict[str, Interval]) -> Sequence[str]:
    """How the intervals were computed, each way once."""
    return list(dict.fromkeys(str(interval.method) for interval in intervals.values()))


def _short(level: str, score: str) -> str:
    return score if level == "utterance" else f"{level} {score}"


def _plain(value: Any) -> Any:
    """A Python value; None for NaN."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and pd.isna(value) else value
