"""A run's page: one HTML file that needs nothing else, its figures as PNG and PDF, its tables as LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from mfhca_cache.errors import TrainingError
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.reporting.figures import Drawing, write_drawing
from mfhca_cache.reporting.glimpse import Glimpse, glimpse
from mfhca_cache.reporting.inside_figures import attention_figure, space_figure, spaces_figure
from mfhca_cache.reporting.joined import JoinedSummary
from mfhca_cache.reporting.latex import latex
from mfhca_cache.reporting.repeat import commands
from mfhca_cache.reporting.score_figures import (
    STRONG,
    confusion_figure,
    curves_figure,
    has_curve,
    heat,
    row_shares,
    scores_figure,
)
from mfhca_cache.reporting.stored import StoredRun, read_run
from mfhca_cache.reporting.summary import LEVELS, RunSummary, corpora
from mfhca_cache.reporting.tables import (
    SCORES,
    Table,
    confusion_table,
    fold_table,
    interval_name,
    method_of,
    score_table,
    seed_table,
    shown,
    speakers_table,
)
from mfhca_cache.reporting.words import (
    RANDOM,
    curve_words,
    missing_words,
    paper_words,
    parameters_words,
    peeks,
    pooled_words,
    protocol_words,
    score_words,
    settings_rows,
    where,
)
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.publish import make_folder, publish

#: Where things lie in a run's folder.
PAGE, FIGURES, TABLES = "report.html", "figures", "tables"
#: Figures that a page may lack; what an earlier one drew is then taken away, so that folder and page agree.
_OPTIONAL = ("learning-curves", "tsne", "tsne-folds", "attention")


@dataclass(frozen=True)
class Page:
    """What was written.

    Attributes:
        path: of report.html.
        figures, tables: the other files.
        left_out: why some figures are missing, in words; empty where none is.
    """

    path: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    left_out: tuple[str, ...]


def write_page(
    run: str | Path | RunSummary,
    cache: Cache | None = None,
    *,
    joined: JoinedSummary | None = None,
    beside: Sequence[str | Path] = (),
    fold: int | None = None,
    no_cache: str = "",
    progress: ProgressCallback = silent,
) -> Page:
    """Write report.html, figures/ and tables/ into a run's folder. The same run and cache give the same bytes.

    Args:
        run: its folder, or its summary.
        cache: that holds its test utterances (where it was tested on another corpus, that corpus's), for features and
            attention; without it these are left out, with the reason.
        joined: the runs of several seeds, this one the first, whose scores are then the headline.
        beside: runs without HCA (or with it, where this one has none), whose features are to stand beside this run's.
        fold: the fold whose features are shown with its training utterances; None for the one with the median UA.
        no_cache: why there is no cache, in words; by default that it is not at hand.
        progress: called as figures are made.

    Raises:
        TrainingError: no run there, no such fold, a damaged one, or no run in ``beside`` that can stand beside it.
        CacheError: the folder cannot be written to.
    """
    stored = read_run(run.run, run) if isinstance(run, RunSummary) else read_run(run)
    numbers = [result.number for result in stored.results]
    if fold is not None and fold not in numbers:
        raise TrainingError(
            f"{stored.folder}: fold {fold} is not trained; expected one of {', '.join(map(str, numbers))}"
        )
    seen = glimpse(stored, cache, [Path(path) for path in beside], fold, progress, no_cache)
    drawings = _drawings(stored, seen)
    tables = _tables(stored, joined)
    figures_folder, tables_folder = stored.folder / FIGURES, stored.folder / TABLES
    for folder in (figures_folder, tables_folder):
        make_folder(folder)
    for name in set(_OPTIONAL) - set(drawings):
        for kind in ("png", "pdf"):
            (figures_folder / f"{name}.{kind}").unlink(missing_ok=True)
    paths: list[Path] = []
    for done, drawing in enumerate(drawings.values()):
        progress(Progress(f"drawing {drawing.name}", done, len(drawings), "figures"))
        paths += write_drawing(drawing, figures_folder)
    written = []
    for table in tables.values():
        for name, data in ((f"{table.name}.tex", latex(table).encode()), (f"{table.name}.csv", table.csv())):
            publish(tables_folder / name, data)
            written.append(tables_folder / name)
    html = _render(stored, joined, seen, cache, drawings, tables)
    publish(stored.folder / PAGE, html.encode("utf-8", "backslashreplace"))
    progress(Progress("page", len(drawings), len(drawings), "figures"))
    left_out = tuple(dict.fromkeys(why for why in (seen.no_spaces, seen.no_attention) if why))
    return Page(stored.folder / PAGE, tuple(paths), tuple(written), left_out)


def _drawings(stored: StoredRun, seen: Glimpse) -> dict[str, Drawing]:
    summary = stored.summary
    found = [scores_figure(summary), confusion_figure(summary)]
    if curves := [result for result in stored.results if has_curve(result)]:
        found.append(curves_figure(curves))
    if seen.spaces:
        found.append(space_figure(seen.spaces, summary.classes))
    if seen.spaces and seen.spaces.folds:
        found.append(spaces_figure(seen.spaces, summary.classes))
    if seen.attention:
        found.append(attention_figure(seen.rows, seen.attention, seen.bin_hz))
    return {drawing.name: drawing for drawing in found}


def _tables(stored: StoredRun, joined: JoinedSummary | None) -> dict[str, Table]:
    summary, said = stored.summary, where(stored)
    found = [score_table(summary, said), fold_table(summary, said), speakers_table(summary, said)]
    found += [confusion_table(summary, level, said) for level in LEVELS]
    if joined:
        found.insert(0, seed_table(joined, said))
    return {table.name: table for table in found}


def _render(
    stored: StoredRun,
    joined: JoinedSummary | None,
    seen: Glimpse,
    cache: Cache | None,
    drawings: dict[str, Drawing],
    tables: dict[str, Table],
) -> str:
    summary, record = stored.summary, stored.results[0].record
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: shown(value, "percent")
    environment.filters["shown"] = shown
    environment.filters["code"] = _code
    optimistic = any(run.optimistic for run in joined.runs) if joined else summary.optimistic
    caveats = dict.fromkeys(line for run in (joined.runs if joined else [summary]) for line in run.caveats)
    intervals = (joined or summary).intervals
    return environment.get_template("page.html").render(
        summary=summary,
        joined=joined,
        settings=summary.settings,
        optimistic=optimistic,
        random=RANDOM if record.get("random_weights") else "",
        caveats=list(caveats),
        missing=missing_words(summary),
        paper=paper_words(summary),
        headline=_headline(joined or summary),
        interval_name=interval_name(intervals) if intervals else "",
        methods=method_of(intervals) if intervals else [],
        score_words=score_words(summary),
        pooled_words=pooled_words(summary),
        corpora=corpora(summary.settings),
        parameters=parameters_words(stored),
        no_curves=curve_words(stored),
        peeks=peeks(stored),
        drawings={name: _figure(drawing) for name, drawing in drawings.items()},
        tables=tables,
        strong=STRONG,
        confusion={level: _confusion(summary, level) for level in LEVELS},
        seen=seen,
        protocol=protocol_words(stored),
        settings_rows=settings_rows(stored),
        commands=commands(stored, cache, len(joined.runs) if joined else 1),
        version=metadata.version("mfhca-cache"),
    )


def _code(text: str) -> Markup:
    """Text with `words between backticks` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _headline(summary: RunSummary | JoinedSummary) -> list[dict[str, Any]]:
    """Mean, std, interval and pooled of each score."""
    pooled = summary.pooled if isinstance(summary, RunSummary) else summary.pooled_mean
    return [
        {
            "level": level,
            "score": short,
            "mean": summary.mean[name],
            "std": summary.std.get(name),
            "interval": summary.intervals.get(name),
            "pooled": pooled[name],
            "pooled_interval": summary.pooled_intervals.get(name),
        }
        for name, level, short in SCORES
    ]


def _figure(drawing: Drawing) -> dict[str, Any]:
    """What the template needs of a figure. Its SVG is matplotlib's, parsed and written anew: text in it is escaped."""
    return {
        "name": drawing.name,
        "keys": drawing.keys,
        "panels": [Markup(svg) for svg in drawing.svgs()],
        "width": round(drawing.size[0] * 96),
    }


def _confusion(summary: RunSummary, level: str) -> list[dict[str, Any]]:
    """Rows of a confusion matrix: the class and, a cell, its count, share of the row and how strong its colour is."""
    counts = summary.confusion[level]
    shares = row_shares(counts)
    return [
        {
            "name": name,
            "cells": [(int(c), float(s), heat(s)) for c, s in zip(counts[row], shares[row], strict=True)],
        }
        for row, name in enumerate(summary.classes)
    ]
