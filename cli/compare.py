"""`mfhca compare`: two runs → both scores, their difference, and what can be concluded from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mfhca_cache.reporting.compare import Comparison, compare_runs
from mfhca_cache.reporting.conclude import points
from mfhca_cache.reporting.paired import Difference
from mfhca_cache.reporting.summary import RunSummary

from .show import Screen, grid, percent, quiet_and_json

_SCORES = ("utterance_ua", "utterance_wa")
#: So many settings that differ are shown; all of them are in the JSON.
_SHOWN = 12


@click.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many of both runs, as `mfhca train --seeds` made them: RUN, RUN-seed1, …",
)
@quiet_and_json
def compare(run_a: Path, run_b: Path, seeds: int, quiet: bool, as_json: bool) -> None:
    """Compare two runs on the same test utterances, and say what can be concluded.

    Both must have tested the same utterances with the same labels; differences are RUN_A − RUN_B. What is concluded
    rests on the t over speakers, because utterances of one speaker, and folds, are not independent (docs/scores.md).

    \b
    Example:
        mfhca compare runs/iemocap-mfhca-spectrogram-strict-frozen runs/trial
        mfhca compare runs/trial runs/other --seeds 5
        mfhca compare runs/trial runs/other --json
    """
    with Screen(quiet, as_json) as screen:
        found = compare_runs(run_a, run_b, seeds)
    for name, runs in (("A", found.a), ("B", found.b)):
        screen.say(f"{name}: {_title(runs)}", "bold")
    for line in found.differ[:_SHOWN]:
        screen.say(f"   {line}")
    if len(found.differ) > _SHOWN:
        screen.say(f"   … and {len(found.differ) - _SHOWN} settings more, see --json")
    screen.out.print(grid(None, ["", "A", "B", "A − B", "95 % interval", "d_z", "found if"], _score_rows(found)))
    screen.out.print(grid(None, ["test of no difference: p", "UA", "WA"], _test_rows(found)))
    for note in _notes(found):
        screen.out.print(note, style="dim", markup=False, soft_wrap=True)
    screen.out.print(f"\n{found.conclusion}", style="bold", markup=False, soft_wrap=True)
    for line in found.cautions:
        screen.out.print(f"Caution: {line}", style="bold yellow", markup=False, soft_wrap=True)
    screen.json(found.to_json())


def _title(runs: Sequence[RunSummary]) -> str:
    settings = runs[0].settings
    seeds = f"seed {settings['seed']}" if len(runs) == 1 else f"{len(runs)} seeds"
    marked = " (optimistic)" if any(run.optimistic for run in runs) else ""
    return (
        f"{runs[0].run} · {settings['model']} on {' + '.join(settings['features'].values())} · "
        f"{settings['protocol']}{marked} · preset {settings['preset']} · {seeds}"
    )


def _score_rows(found: Comparison) -> list[list[str]]:
    rows = []
    for name, items in (("mean over speakers", found.mean), ("all utterances pooled", found.pooled)):
        for score in _SCORES:
            item = items[score]
            limits = f"{points(item.interval.low)} to {points(item.interval.high)}" if item.interval else "none"
            effect = "" if item.effect is None else f"{item.effect:+.2f}".replace("-", "−")
            least = "" if item.detectable is None else f"± {points(item.detectable, sign=False)}"
            figures = [percent(item.a), percent(item.b), points(item.difference), limits, effect, least]
            rows.append([f"{score[-2:].upper()}, {name}", *figures])
    return rows


def _test_rows(found: Comparison) -> list[list[str]]:
    def by_t(items: dict[str, Difference]) -> list[str]:
        return [_p(items[score].p) for score in _SCORES]

    rows = [["t over speakers, mean", *by_t(found.mean)]]
    if found.mean["utterance_ua"].corrected_p is not None:
        rows.append(["  corrected for shared training", *(_p(found.mean[score].corrected_p) for score in _SCORES)])
    rows.append(["t over speakers, pooled", *by_t(found.pooled)])
    if found.folds:
        rows.append(["paired t over folds", *(_p(found.folds[score].t_p) for score in _SCORES)])
        rows.append(["Wilcoxon over folds", *(_p(found.folds[score].wilcoxon_p) for score in _SCORES)])
    if found.mcnemar:
        every = [item.p for item in found.mcnemar]
        ends = [_p(min(every)), _p(max(every))] if len(every) > 1 else [_p(every[0])]
        rows.append(["McNemar over utterances", "", " … ".join(ends)])
    return rows


def _notes(found: Comparison) -> list[str]:
    """What the tests take for granted."""
    better = int((found.speakers["ua_difference"] > 0).sum())
    worse = int((found.speakers["ua_difference"] < 0).sum())
    notes = [
        f"UA is higher with A for {better} and with B for {worse} of {len(found.speakers)} speakers. d_z: difference "
        "over its standard deviation between speakers. Found if: a true difference of this size is found 80 times "
        "in 100."
    ]
    if found.folds:
        folds = found.folds["utterance_ua"].folds
        notes.append(
            f"The {folds} folds share most of their training data, so their scores are not independent: tests on "
            "folds, and the t over speakers too, find somewhat too much; the corrected t (Nadeau, Bengio) too little."
        )
    elif all(len(run.folds) == 1 for run in (*found.a, *found.b)):
        notes.append("No test on folds: each run has one, so one model a side stands for its method.")
    else:
        notes.append("No test on folds: the runs cut them differently.")
    for run, item in zip(found.a, found.mcnemar, strict=False):
        seed = f", seed {run.settings['seed']}" if len(found.a) > 1 else ""
        ratio = "" if item.odds_ratio is None else f" (odds ratio {item.odds_ratio:.2f})"
        notes.append(
            f"Utterances{seed}: both right {item.both:,}, A alone {item.only_a:,}, B alone {item.only_b:,}{ratio}, "
            f"neither {item.neither:,}."
        )
    if found.mcnemar:
        notes.append(
            "McNemar takes utterances for independent; those of one speaker are not, and it tends to find too much. "
            "The t over speakers of pooled WA asks the same and respects them."
        )
    return notes


def _p(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
