"""`mfhca report`: a run's stored folds → its table of scores, and its page with figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mfhca_cache.errors import MfhcaError
from mfhca_cache.reporting.intervals import Interval
from mfhca_cache.reporting.joined import SCORES, JoinedSummary, join
from mfhca_cache.reporting.summary import PAPER_CAVEAT, RunSummary, corpora, summarise, write_report
from mfhca_cache.reporting.tables import shown
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.seeds import seed_folder

from .show import Screen, counted, grid, percent, quiet_and_json


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="The cache of the run's test utterances, for features and attention.  [found in cache/ by its fingerprint]",
)
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RUN",
    help="A run without HCA, whose features are shown beside this run's.  [found beside RUN, all else equal]",
)
@click.option("--fold", type=click.IntRange(1), help="Whose features are shown with training.  [the one of median UA]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Join N runs, of RUN's seed and those that follow, as `mfhca train --seeds N` leaves them.",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Write the page, its figures and tables.")
@quiet_and_json
def report(
    run: Path,
    cache: Path | None,
    beside: tuple[Path, ...],
    fold: int | None,
    seeds: int,
    page: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show the scores of the run in folder RUN, and write its page.

    Writes report.json and report.csv beside the folds, and report.html, one file that needs nothing else; its figures
    as PNG and PDF into figures/, its tables as LaTeX and CSV into tables/.

    \b
    Example:
        mfhca report runs/iemocap-mfhca-spectrogram+hubert-base-ls960-strict-paper
        mfhca report runs/trial --cache /data/cache/iemocap --fold 4
        mfhca report runs/trial --seeds 5
        mfhca report runs/trial --no-page --json
    """
    with Screen(quiet, as_json) as screen:
        summary = summarise(run)
        joined = join([summary, *map(summarise, _other_seeds(run, summary, seeds))]) if seeds > 1 else None
    show_joined(screen, joined) if joined else show_summary(screen, summary)
    screen.json(joined.to_json() if joined else summary.to_json())
    paths = write_report(summary)
    screen.out.print(f"Wrote {paths[0]} and {paths[1].name}", markup=False, soft_wrap=True)
    if not page:
        return
    # Here, so that `mfhca train`, which shows the same tables, need not wait for matplotlib.
    from mfhca_cache.reporting.inside import find_cache
    from mfhca_cache.reporting.page import FIGURES, TABLES, write_page

    with Screen(quiet, as_json) as screen:
        opened, unreadable = open_cache(cache) if cache else None, ""
        if not cache and (found := find_cache(run, read_json(run / "run.json"))):
            try:
                opened = open_cache(found)
            except MfhcaError as error:  # Nobody asked for it; the scores are whole without it.
                unreadable = str(error)
        written = write_page(
            summary, opened, joined=joined, beside=beside, fold=fold, no_cache=unreadable, progress=screen.progress
        )
    screen.say(
        f"Wrote {written.path}, {counted(len(written.figures), 'file')} in {FIGURES}/, "
        f"{len(written.tables)} in {TABLES}/"
    )
    for line in written.left_out:
        screen.say(f"{line}")


def _other_seeds(run: Path, summary: RunSummary, seeds: int) -> list[Path]:
    """The folders of the seeds that follow a run's own, so many with it."""
    first = int(summary.settings["seed"])
    name = run.resolve().name
    plain = run.with_name(name.removesuffix(f"-seed{first}")) if first else run
    return [seed_folder(plain, first + number) for number in range(1, seeds)]


def show_summary(screen: Screen, summary: RunSummary) -> None:
    """The table of folds (epoch, C or alpha: the one chosen), the confusion matrix, and what must be said of them."""
    settings = summary.settings
    marked = " (optimistic)" if summary.optimistic else ""
    columns = ["fold", "utts", "clips", summary.chosen, "WA", "UA", "clip WA", "clip UA"]
    scores = ["utterance_wa", "utterance_ua", "clip_wa", "clip_ua"]
    rows = [
        [
            f"{row['fold']} ({row['name']})",
            *(shown(row[name], "count") for name in ("utterances", "clips", summary.chosen_column)),
            *(percent(row[name]) for name in scores),
        ]
        for row in summary.folds.to_dict("records")
    ]
    if summary.std:
        rows.append(["mean", "", "", "", *(percent(summary.mean[name]) for name in scores)])
        rows.append(["± std", "", "", "", *(percent(summary.std[name]) for name in scores)])
    rows += _interval_row(summary.intervals, scores, 4)
    totals = [f"{summary.folds[name].sum():,}" for name in ("utterances", "clips")]
    rows.append(["pooled", *totals, "", *(percent(summary.pooled[name]) for name in scores)])
    rows += _interval_row(summary.pooled_intervals, scores, 4)
    screen.out.print(
        f"{corpora(settings)} · {settings['model']} on {' + '.join(settings['features'].values())} · "
        f"{settings['protocol']}{marked} · preset {settings['preset']} · seed {settings['seed']}",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    if source := summary.folds_from:
        text = f"Folds from {source['name']} ({source['shape']}, SHA-256 {source['sha256'][:16]}…)"
        screen.out.print(text, markup=False, soft_wrap=True)
    screen.out.print(grid(None, columns, rows))
    _show_method(screen, summary)
    matrix = summary.confusion["utterance"]
    counts = [[name, *(f"{value:,}" for value in row)] for name, row in zip(summary.classes, matrix, strict=True)]
    screen.out.print(grid(None, ["true ↓ predicted →", *summary.classes], counts))
    if summary.paper:
        wa, ua, row = summary.paper
        screen.out.print(f"The paper: WA {wa:.2f}, UA {ua:.2f} ({row}). {PAPER_CAVEAT}", soft_wrap=True)
    for line in summary.caveats:
        screen.out.print(f"Caution: {line}", style="bold yellow", markup=False, soft_wrap=True)
    if summary.missing:
        screen.out.print(f"Not trained yet: {', '.join(summary.missing)}", markup=False, soft_wrap=True)


def show_joined(screen: Screen, joined: JoinedSummary) -> None:
    """Each seed's pooled scores, and the mean over folds and seeds."""
    settings, count = joined.runs[0].settings, len(joined.runs)
    marked = " (optimistic)" if any(run.optimistic for run in joined.runs) else ""
    screen.out.print(
        f"{corpora(settings)} · {settings['model']} on {' + '.join(settings['features'].values())} · "
        f"{settings['protocol']}{marked} · preset {settings['preset']} · {count} seeds",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    rows = [
        [f"seed {run.settings['seed']}", f"{len(run.folds)}", *(percent(run.pooled[name]) for name in SCORES)]
        for run in joined.runs
    ]
    for label, scores in (("pooled, mean", joined.pooled_mean), ("± std of seeds", joined.pooled_std)):
        rows.append([label, "", *(percent(scores[name]) for name in SCORES)])
    rows += _interval_row(joined.pooled_intervals, SCORES, 2)
    rows.append(["mean", f"{joined.folds}", *(percent(joined.mean[name]) for name in SCORES)])
    if joined.std:
        rows.append(["± std", "", *(percent(joined.std[name]) for name in SCORES)])
    rows += _interval_row(joined.intervals, SCORES, 2)
    columns = ["pooled by seed; mean of folds × seeds", "folds", "WA", "UA", "clip WA", "clip UA"]
    screen.out.print(grid(None, columns, rows))
    _show_method(screen, joined)
    for line in dict.fromkeys(line for run in joined.runs for line in run.caveats):
        screen.out.print(f"Caution: {line}", style="bold yellow", markup=False, soft_wrap=True)
    for run in joined.runs:
        missing = f"; not trained yet: {', '.join(run.missing)}" if run.missing else ""
        screen.say(f"Each fold of seed {run.settings['seed']}: mfhca report {run.run}{missing}")


def _interval_row(intervals: dict[str, Interval], scores: Sequence[str], before: int) -> list[list[str]]:
    """``95 % interval`` and ``61.2–74.9`` under each score that has one; no row without any."""
    cells = [f"{100 * i.low:.1f}–{100 * i.high:.1f}" if (i := intervals.get(name)) else "" for name in scores]
    level = next((f"{100 * item.level:g} % interval" for item in intervals.values()), "")
    return [[level, *[""] * (before - 1), *cells]] if intervals else []


def _show_method(screen: Screen, summary: RunSummary | JoinedSummary) -> None:
    """How the intervals were made, in words."""
    of = {"mean": summary.intervals, "pooled": summary.pooled_intervals}
    words = [f"{name}: {next(iter(found.values())).method}" for name, found in of.items() if found]
    if words:
        text = f"Intervals: {'; '.join(words)}. They tell of other speakers, not of another training."
        screen.out.print(text, style="dim", markup=False, soft_wrap=True)
