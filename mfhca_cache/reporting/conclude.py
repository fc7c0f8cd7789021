"""What a comparison allows to be said, and what must be said beside it, in words."""

from __future__ import annotations

from collections.abc import Sequence

from mfhca_cache.reporting.intervals import LEVEL
from mfhca_cache.reporting.paired import POWER, Difference, FoldTest
from mfhca_cache.reporting.summary import RunSummary

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
#: Below so many speakers an interval is wide and leans on their differences being normal.
FEW_SPEAKERS = 6


def conclude(ua: Difference, speakers: int, seeds: int = 1) -> str:
    """A sentence or two about the difference in mean UA.

    Args:
        ua: of the mean over speakers of their UA.
        speakers, seeds: how many.
    """
    who = f"{number(speakers)} speaker{'' if speakers == 1 else 's'}"
    who += f", each averaged over {number(seeds)} seeds," if seeds > 1 else ""
    size = f"{points(ua.difference)} points UA"
    if ua.interval is None or ua.p is None:
        if speakers < 2:
            return f"One speaker alone cannot say whether the difference of {size} would be there with others."
        if ua.p is not None:
            return f"With these {who} no speaker's UA differs between A and B: nothing tells them apart."
        return f"All these {who} differ by {size}: without any spread there is nothing to judge the difference by."
    low, high = points(ua.interval.low), points(ua.interval.high)
    interval = f"{LEVEL:.0%} interval {low} to {high}".replace("%", " %")
    if ua.p < 1 - LEVEL:
        better, worse = ("A", "B") if ua.difference > 0 else ("B", "A")
        text = (
            f"With these {who} {better} is above {worse} by {points(abs(ua.difference), sign=False)} points UA "
            f"(A − B: {interval}, p {_p(ua.p)}): more than the choice of test speakers explains"
        )
        if ua.corrected_p is None:
            return f"{text}."
        allowed = f"allowance for the training data that folds share (corrected p {_p(ua.corrected_p)})"
        if ua.corrected_p < 1 - LEVEL:
            return f"{text}, also with {allowed}."
        return f"{text}. With {allowed} it is not sure that systems trained anew on other speakers would show it."
    found = (
        "" if ua.detectable is None else f"; one of about {points(ua.detectable, sign=False)} points would have been"
    )
    share = f" found in {round(100 * POWER)} of 100 such comparisons" if found else ""
    return (
        f"With these {who} the difference of {size} ({interval}, p {_p(ua.p)}) cannot be told from none{found}{share}."
    )


def cautions(
    runs_a: Sequence[RunSummary], runs_b: Sequence[RunSummary], speakers: int, folds: dict[str, FoldTest]
) -> list[str]:
    """What must be said beside a comparison of two runs, each of one or more seeds."""
    a, b = runs_a[0], runs_b[0]
    protocols = [run.settings["protocol"] for run in (a, b)]
    peeking = [any(run.optimistic for run in runs) for runs in (runs_a, runs_b)]
    lines = []
    if protocols[0] != protocols[1] or peeking[0] != peeking[1]:
        text = f"A was tested by the protocol {protocols[0]}, B by {protocols[1]}: they are not alike"
        if peeking[0] != peeking[1]:
            text += f", {'A' if peeking[0] else 'B'} is optimistic"
        lines.append(f"{text}, and how much of the difference is the protocol's cannot be told from these runs")
    own: list[list[str]] = [
        list(dict.fromkeys(line for run in runs for line in run.caveats)) for runs in (runs_a, runs_b)
    ]
    lines += [line for line in own[0] if line in own[1]]
    lines += [f"A: {line}" for line in own[0] if line not in own[1]]
    lines += [f"B: {line}" for line in own[1] if line not in own[0]]
    if missing := dict.fromkeys(name for run in (*runs_a, *runs_b) for name in run.missing):
        lines.append(f"folds not trained yet, and not in these figures: {', '.join(missing)}")
    if 1 < speakers < FEW_SPEAKERS:
        lines.append(
            f"{number(speakers)} speakers are few: only a difference that is large beside their spread can be found"
        )
    if len(runs_a) == 1:
        lines.append("each run is one training: how far another seed would move the scores is not in the interval")
    test = folds.get("utterance_ua")
    if test is not None and test.smallest_p > 1 - LEVEL and (moved := test.folds - test.zeros):
        what = f"{moved} folds that differ" if moved > 1 else "1 fold that differs"
        lines.append(f"with {what}, Wilcoxon's test cannot give less than p = {test.smallest_p:.3g}")
    return lines


def number(count: int) -> str:
    """In words up to twelve."""
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"


def points(value: float, sign: bool = True) -> str:
    """0.031 → ``+3.1``, -0.019 → ``−1.9``: percentage points."""
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-", "−")


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"
