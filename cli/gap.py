"""`mfhca gap`: one run under the protocols, and the size of the optimism."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from mfhca_cache.folds import peeked
from mfhca_cache.models import CLOSED_FORM, MODELS
from mfhca_cache.reporting.conclude import points
from mfhca_cache.reporting.gap import PUBLISHED_NOTE, GapSummary, summarise_gap, write_gap
from mfhca_cache.reporting.intervals import LEVEL
from mfhca_cache.reporting.joined import JoinedSummary
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.crossval import has_fold, run_name
from mfhca_cache.training.gap import TRAINED, WATCHED, GapItem, folds_left, plan_gap, train_gap
from mfhca_cache.training.options import PRESETS, TrainOptions
from mfhca_cache.training.seeds import seeds_suffix

from .show import Screen, chosen_cache, counted, grid, percent, quiet_and_json
from .training import check_model, check_name, machine_options, parse_jobs


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [the one in cache/]")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs go.")
@click.option(
    "--model",
    default="mfhca",
    show_default=True,
    metavar="NAME|MODULE:CLASS",
    help=f"{', '.join(name for name in MODELS if name not in CLOSED_FORM)} (docs/models.md), or an nn.Module of your "
    "own (docs/own-model.md).",
)
@click.option(
    "--features",
    default="",
    metavar="NAMES",
    help="As `mfhca train` takes them.  [all that the model can be given]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Optimiser, epochs.  [paper for mfhca, frozen for every other model]",
)
@click.option("--learning-rate", type=float, help="[the preset's]")
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change the preset's training or model, as in train."
)
@click.option("--classes", default="four-class", show_default=True, metavar="four-class|all|FILE.json")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="N seeds, from --seed on."
)
@click.option("--epochs", type=click.IntRange(1), help="At most.  [the preset's]")
@machine_options
@click.option("--name", help="The runs are NAME-PROTOCOL.  [as `mfhca train` names them, and keeps what is there]")
@quiet_and_json
def gap(
    cache: Path | None,
    runs: Path,
    model: str,
    features: str,
    preset: str | None,
    learning_rate: float | None,
    changes: tuple[str, ...],
    classes: str,
    seed: int,
    seeds: int,
    epochs: int | None,
    device: str,
    jobs: str,
    threads: int | None,
    precision: str,
    name: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train one model under every protocol, and show the size of the optimism.

    `strict` and `session` are trained once each and their epochs chosen twice: as the protocol says, and on the test
    set (`strict-peeked`, `session-peeked`: optimistic). `test-selected` is trained beside them, as the released code
    has it. Each is a run of its own, as `mfhca train --protocol` makes it; folds that are there are kept. Stop it any
    way you like: the same command goes on.

    \b
    Example:
        mfhca gap
        mfhca gap --features spectrogram --preset frozen --set patience=3 --seeds 3
    """
    check_model(model)
    check_name(name)
    at_once = parse_jobs(jobs)
    opened = open_cache(chosen_cache(cache))
    options = TrainOptions(
        model=model,
        features=features,
        preset=preset or "",
        classes=classes,
        epochs=epochs,
        learning_rate=learning_rate,
        precision=precision,
        threads=threads,
        changes=parse_changes(changes, model),
    )
    plan = plan_gap(opened, options, range(seed, seed + seeds), runs=runs, name=name, device=device)
    job = next(iter(plan.values()))["strict"].job
    plain = f"{name}-gap" if name else run_name(opened, job.options, job.roles, protocol="gap")
    folder = runs / (plain + seeds_suffix(seed, seeds))
    with Screen(quiet, as_json) as screen:
        for items in plan.values():
            for protocol in TRAINED:
                _say_what_is_trained(screen, items[protocol], items[peeked(protocol)] if protocol in WATCHED else None)
        trained = train_gap(plan, jobs=at_once, progress=screen.progress)
    summary = summarise_gap(trained)
    paths = write_gap(summary, folder)
    show_gap(screen, summary)
    screen.json(summary.to_json())
    screen.out.print(f"Wrote {paths[0]} and {paths[1].name}", markup=False, soft_wrap=True)


def _say_what_is_trained(screen: Screen, item: GapItem, other: GapItem | None) -> None:
    """The run, the one that is made beside it, and how many folds are there, left, or to be trained again."""
    folds = item.job.folds
    left = folds_left(item, other) if other else [fold for fold in folds if not has_fold(item.run, fold.number)]
    again = [fold for fold in left if other and has_fold(item.run, fold.number)]
    text = f": {counted(len(folds), 'fold')}, {len(folds) - len(left)} done before"
    line = Text.assemble((str(item.run), "bold"), text)
    if other:
        line.append(f"\n  the same trainings, epoch chosen on the test set (optimistic): {other.run}")
    if again:
        names = ", ".join(fold.name for fold in again)
        line.append(f"\n  trained again, and held against what is stored, which was made without it: {names}")
    screen.err.print(line)


def show_gap(screen: Screen, summary: GapSummary) -> None:
    """Scores by protocol, the optimism in points, and what each difference holds."""
    settings = summary.settings
    seeds = summary.seeds
    screen.out.print(
        f"{settings['corpus']} · {settings['model']} on {' + '.join(settings['features'].values())} · "
        f"preset {settings['preset']} · {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    columns = ["protocol", "folds", "level", "WA, folds", "WA pooled", "UA, folds", "UA pooled"]
    rows: list[list[str | Text]] = []
    for name, joined in summary.protocols.items():
        optimistic = any(run.optimistic for run in joined.runs)
        for level in ("utterance", "clip"):
            cells: list[str | Text] = [name, f"{len(joined.runs[0].folds)}", level]
            if level == "clip":
                cells[:2] = [Text("  optimistic" if optimistic else "", "yellow"), ""]
            for kind in ("wa", "ua"):
                cells += _with_intervals(joined, f"{level}_{kind}")
            rows.append(cells)
    screen.out.print(grid(None, columns, rows))
    over = "folds" if len(seeds) == 1 else "folds and seeds"
    brackets = any(joined.intervals or joined.pooled_intervals for joined in summary.protocols.values())
    said = f"; [{100 * LEVEL:g} % interval over speakers]" if brackets else ""
    screen.say(f"WA and UA in percent, folds: mean ± standard deviation over {over}{said}.", style="dim")
    columns = ["points of difference", "level", "WA, folds", "WA pooled", "UA, folds", "UA pooled"]
    rows = [
        [
            f"{item.protocol} − {item.base}" if level == "utterance" else "",
            level,
            *(points(part[f"{level}_{kind}"]) for kind in ("wa", "ua") for part in (item.mean, item.pooled)),
        ]
        for item in summary.contrasts
        for level in ("utterance", "clip")
    ]
    screen.out.print(grid(None, columns, rows))
    for item in summary.contrasts:
        screen.say(f"• {item.sentence}")
    screen.say(
        "The best of several epochs is hardly ever worse than one of them: read the size of a selection, not its sign."
    )
    screen.say(PUBLISHED_NOTE)
    runs = [run for joined in summary.protocols.values() for run in joined.runs]
    for line in dict.fromkeys(line for run in runs for line in run.caveats if not run.optimistic):
        screen.say(f"Caution: {line}", style="bold yellow")
    marked = [name for name, joined in summary.protocols.items() if any(run.optimistic for run in joined.runs)]
    screen.say(
        f"Caution: {', '.join(marked)} are optimistic: the epoch was chosen on the test speakers", style="bold yellow"
    )


def _with_intervals(joined: JoinedSummary, key: str) -> list[str | Text]:
    """Mean ± std, and the pooled score, each above its interval where there is one."""
    spread = f" ± {100 * joined.std[key]:.1f}" if joined.std else ""
    cells: list[str | Text] = []
    for text, found in (
        (percent(joined.mean[key]) + spread, joined.intervals.get(key)),
        (percent(joined.pooled_mean[key]), joined.pooled_intervals.get(key)),
    ):
        below = f"\n[{100 * found.low:.1f}, {100 * found.high:.1f}]" if found else ""
        cells.append(Text.assemble(text, (below, "dim")))
    return cells
