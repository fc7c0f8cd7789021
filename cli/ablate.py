"""`mfhca ablate`: the rows of a table of the paper, trained on a cache, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table as Grid
from rich.text import Text

from mfhca_cache.distributed.train import TrainItem, train_on_ray
from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import PROTOCOLS
from mfhca_cache.progress import ProgressCallback
from mfhca_cache.reporting.ablation import AblationTable, RowResult, tabulate
from mfhca_cache.reporting.ablation_files import limits, mean_std, write_table
from mfhca_cache.reporting.joined import SCORES
from mfhca_cache.reporting.parameters import CLAIMED, SIZES
from mfhca_cache.reporting.summary import summarise, write_report
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.training.ablation import Ablation, check_rows, plan_ablation, split_weights, train_ablation
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.options import PRESETS, TrainOptions
from mfhca_cache.training.tables import TABLES

from .engine import check_engine, engine_options
from .show import Screen, chosen_cache, counted, duration, quiet_and_json
from .training import machine_options, parse_jobs


@click.command()
@click.argument("table", type=click.Choice(list(TABLES)))
@click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [the one in cache/]")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs go.")
@click.option(
    "--row",
    "rows",
    multiple=True,
    metavar="N|NAME",
    help="Train only this row, such as 2 or spec-mf; may be repeated.  [all]",
)
@click.option("--show", is_flag=True, help="Train nothing; show what is there.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="paper", show_default=True)
@click.option("--learning-rate", type=float, help="[the preset's]")
@click.option("--epochs", type=click.IntRange(1), help="At most; part of the runs' names.  [the preset's]")
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change the preset for all rows; may be repeated."
)
@click.option("--hubert", metavar="FEATURE", help="What Hubert's rows read.  [the cache's HuBERT features]")
@click.option("--w2v2", metavar="FEATURE", help="What W2V2's rows read.  [the cache's wav2vec 2.0 features]")
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), default="strict", show_default=True, help="How folds are cut."
)
@click.option("--fold", default="all", show_default=True, metavar="N|SPEAKER|all", help="4 and 2F are one on IEMOCAP.")
@click.option("--classes", default="four-class", show_default=True, metavar="four-class|all|FILE.json")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Train N seeds, from --seed on."
)
@machine_options
@engine_options
@quiet_and_json
def ablate(
    table: str,
    cache: Path | None,
    runs: Path,
    rows: tuple[str, ...],
    show: bool,
    preset: str,
    learning_rate: float | None,
    epochs: int | None,
    changes: tuple[str, ...],
    hubert: str | None,
    w2v2: str | None,
    protocol: str,
    fold: str,
    classes: str,
    seed: int,
    seeds: int,
    device: str,
    jobs: str,
    threads: int | None,
    precision: str,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the rows of one of the paper's tables on a cache, and show the table.

    A row is a run like those of `mfhca train`, with other settings; a run that rows of several tables share is trained
    once. Stop it any way you like: the same command goes on, and --row trains some rows first. Rows whose features the
    cache lacks are left out, and the command that adds them is shown. The table is written as JSON, CSV, LaTeX and
    Markdown too.

    \b
    Example:
        mfhca ablate table2                                # MF and HCA, with and without
        mfhca ablate table4 --preset frozen --seeds 5
        mfhca ablate table2 --row spec-mf --row 11         # two rows; the others later
        mfhca ablate table1 --show                         # what is there, trained or not
    """
    number_of_jobs = parse_jobs(jobs)
    check_engine(engine, address, jobs=jobs != "auto")
    opened = open_cache(chosen_cache(cache))
    common, weights = split_weights(parse_changes(changes))
    options = TrainOptions(
        preset=preset,
        protocol=protocol,
        classes=classes,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        precision=precision,
        threads=threads,
        changes=common,
    )
    here = "cpu" if engine == "ray" or show else device
    ablation = plan_ablation(
        opened, table, options, runs=runs, seeds=seeds, rows=rows, hubert=hubert, w2v2=w2v2, alexnet_weights=weights,
        device=here,
    )  # fmt: skip
    failed: dict[str, str] = {}
    if not show:
        _refuse_nothing(ablation)
        with Screen(quiet, as_json) as screen:
            _announce(screen, ablation)
            if engine == "ray":
                failed = _train_on_ray(ablation, fold, address, device, screen.progress)
            else:
                failed = train_ablation(ablation, fold=fold, jobs=number_of_jobs, progress=screen.progress)
    screen = Screen(quiet, as_json)
    found = tabulate(ablation)
    for row in found.rows:
        for run in row.runs if row.folds and not show else ():
            if any(Path(run).glob("fold*/result.json")):
                write_report(summarise(run))
    paths = write_table(found, ablation.folder)
    show_table(screen, found)
    screen.say(f"Wrote {paths[0]}, {', '.join(path.name for path in paths[1:])}")
    screen.json({**found.to_json(), "files": list(map(str, paths)), "failed": failed})
    if failed:
        lines = "\n".join(f"row {name}: {why}" for name, why in failed.items())
        raise TrainingError(f"{counted(len(failed), 'row')} could not be trained; the others are kept.\n{lines}")


def _train_on_ray(
    ablation: Ablation, fold: str, address: str | None, device: str, progress: ProgressCallback
) -> dict[str, str]:
    """As `train_ablation`, all rows and seeds at once; name of a row → why it failed."""
    # Rows that are the same are one run.
    jobs = {run: job for item in ablation.chosen for job, run in zip(item.jobs, item.runs, strict=True)}
    check_rows([(job, run) for run, job in jobs.items()])
    items = [TrainItem(job.options, run, fold) for run, job in jobs.items()]
    why: dict[Path, str] = {}
    train_on_ray(ablation.cache, items, address=address, device=device, progress=progress, failed=why.setdefault)
    return {item.row.name: why[run] for item in ablation.chosen for run in item.runs if run in why}


def show_table(screen: Screen, table: AblationTable) -> None:
    """The table in the paper's layout, what lacks, and what must be said beside it."""
    seeds = f"seed {table.seeds[0]}" if len(table.seeds) == 1 else f"{len(table.seeds)} seeds"
    changes = "".join(f" · {text}" for text in table.changed)
    marked = " (optimistic)" if any(row.optimistic for row in table.rows) else ""
    screen.say(
        f"{table.title} · {table.corpus} · {table.protocol}{marked} · preset {table.preset}{changes} · {seeds}", "bold"
    )
    screen.out.print(_grid(table))
    over = "folds" if len(table.seeds) == 1 else "folds and seeds"
    brackets = "; [95 % interval]" if any(row.intervals for row in table.rows) else ""
    screen.out.print(
        f"Utterance WA and UA in percent: mean ± standard deviation over {over}{brackets}; pooled: all test utterances "
        f"as one set. Training took {duration(table.seconds)} in all.",
        style="dim",
    )
    if table.claim:
        screen.out.print(_claim(table))
        screen.out.print(f"Counted at the paper's sizes: {SIZES}.", style="dim")
    for line in table.cautions():
        screen.out.print(f"Caution: {line}", style="bold yellow", markup=False, soft_wrap=True)
    for line in table.remarks():
        screen.say(f"Note: {line}")
    for row in table.rows:
        for lack in row.lacks:
            screen.say(f"Row {row.number} ({row.name}) is left out: {lack.what}. To add it:\n    {lack.command}")
        if row.problem:
            screen.say(f"Row {row.number} ({row.name}) is left out: {row.problem}")
    if commands := table.compare_commands():
        screen.say(f"Whether {commands[0][0]} differs from {table.full}, paired; the other rows likewise:")
        screen.say(f"    {commands[0][1]}")


def _grid(table: AblationTable) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grid.add_column("", justify="right", no_wrap=True)
    for at, name in enumerate(table.columns):
        mark = name in ("MF", "HCA")
        grid.add_column(name, justify="center" if mark else "left", no_wrap=at > 0)
    for name in ("WA", "UA"):
        grid.add_column(f"{name}\nmean ± std", justify="right", no_wrap=True)
    grid.add_column("pooled\nWA/UA", justify="right", no_wrap=True)
    grid.add_column("para-\nmeters", justify="right", no_wrap=True)
    grid.add_column("s/fold", justify="right", no_wrap=True)
    if table.shows_published:
        header = "paper\nWA/UA" if table.comparable else "published,\nIEMOCAP"
        grid.add_column(header, justify="right", no_wrap=True, style="" if table.comparable else "dim")
    last = False
    for row in table.rows:
        if row.apart and not last and grid.rows:
            grid.add_section()
        last = row.apart
        grid.add_row(*_cells(row, table.shows_published))
    return grid


def _cells(row: RowResult, published: bool) -> list[Text | str]:
    label = Text(row.label)
    if row.random_weights:
        label.append("\nrandom weights", "yellow")
    scores: list[Text | str] = []
    for name in SCORES[:2]:
        text = Text(mean_std(row, name))
        if name in row.intervals:
            text.append(f"\n{limits(row, name)}", "dim")
        scores.append(text)
    pooled = "/".join(f"{100 * row.pooled[name]:.2f}" for name in SCORES[:2]) if row.pooled else ""
    if not row.folds:
        scores = [Text(row.state, "dim"), ""]
    seconds = ""
    if row.seconds_a_fold is not None:
        seconds = f"{row.seconds_a_fold:,.{0 if row.seconds_a_fold >= 10 else 1}f}"
    figures = "/".join(f"{value:.2f}" for value in row.published) if row.published else ""
    cells: list[Text | str] = [str(row.number), label, *row.cells, *scores, pooled, _millions(row.parameters), seconds]
    return [*cells, figures] if published else cells


def _claim(table: AblationTable) -> Grid:
    """The claim of 54.26 % fewer parameters, counted."""
    title = Text(f"\nParameters: the paper claims {CLAIMED} % fewer than co-attention [13]")
    grid = Grid(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    for at, name in enumerate(("counted", "[13]", "MFHCA", "fewer", "as released", "fewer")):
        grid.add_column(Text(name), justify="right" if at else "left", no_wrap=True)
    for item in table.claim:
        grid.add_row(
            item["counted"],
            _millions(item["baseline"]),
            _millions(item["mfhca"]),
            f"{item['fewer_percent']:.1f} %",
            _millions(item["mfhca_released"]),
            f"{item['fewer_percent_released']:.1f} %",
        )
    return grid


def _millions(count: int | None) -> str:
    """``4.72 M``, ``99.1 M``, ``3.1 k``."""
    if count is None:
        return ""
    if count < 1000:
        return str(count)
    value, unit = (count / 1e6, "M") if count >= 1e5 else (count / 1e3, "k")
    return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"


def _announce(screen: Screen, ablation: Ablation) -> None:
    """What will be trained, and where."""
    screen.err.print(f"[bold]{ablation.folder}[/]: {ablation.table.title}")
    for item in ablation.chosen:
        words: Any = [item.row.label, *item.row.cells]
        if item.runs:
            what = ", ".join(str(run) for run in item.runs)
        else:
            what = "left out: " + (", ".join(lack.what for lack in item.lacks) or item.problem or "not built yet")
        screen.err.print(f"  row {item.number} ({', '.join(words)}): {what.splitlines()[0]}", markup=False)


def _refuse_nothing(ablation: Ablation) -> None:
    """An error where none of the rows asked for can be trained."""
    if any(item.jobs for item in ablation.chosen):
        return
    lines = []
    for item in ablation.chosen:
        lines += [f"row {item.number} ({item.row.name}): {lack.what}; run\n    {lack.command}" for lack in item.lacks]
        lines += [f"row {item.number} ({item.row.name}): {item.problem}"] if item.problem else []
        lines += [f"row {item.number} ({item.row.name}): not built yet"] if not item.row.built else []
    raise TrainingError(f"{ablation.table.name}: none of the rows asked for can be trained.\n" + "\n".join(lines))
