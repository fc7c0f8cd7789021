"""Several runs of the same settings and other seeds as one table: mean ± standard deviation over folds and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.intervals import Interval, fold_mean, intervals, pooled
from mfhca_cache.reporting.summary import LEVELS, RunSummary

SCORES = tuple(f"{level}_{name}" for level in LEVELS for name in ("wa", "ua"))


@dataclass(frozen=True)
class JoinedSummary:
    """What the runs of several seeds amount to; scores in 0…1, ``<level>_wa`` and so on.

    Attributes:
        runs: one a seed.
        folds: how many folds of how many seeds the means are over: each fold of each seed counts once.
        mean, std: over folds and seeds; std is the sample's, absent for a single value.
        pooled_mean, pooled_std: over the seeds' pooled scores.
        intervals, pooled_intervals: of ``mean`` and ``pooled_mean``: over speakers, each first averaged over the seeds,
            because the seeds' speakers are the same people; empty where the seeds have not all trained the same folds.
    """

    runs: tuple[RunSummary, ...]
    folds: int
    mean: dict[str, float]
    std: dict[str, float]
    pooled_mean: dict[str, float]
    pooled_std: dict[str, float]
    intervals: dict[str, Interval]
    pooled_intervals: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; the runs in full."""
        return {
            "seeds": [run.settings["seed"] for run in self.runs],
            "folds": self.folds,
            "mean": self.mean,
            "std": self.std,
            "intervals": {name: asdict(item) for name, item in self.intervals.items()},
            "pooled_mean": self.pooled_mean,
            "pooled_std": self.pooled_std,
            "pooled_intervals": {name: asdict(item) for name, item in self.pooled_intervals.items()},
            "runs": [run.to_json() for run in self.runs],
        }


def join(runs: Iterable[RunSummary]) -> JoinedSummary:
    """Join runs that differ in their seed alone.

    Raises:
        TrainingError: none, or runs of other corpora, models, features, protocols or presets.
    """
    found = tuple(runs)
    if not found:
        raise TrainingError("no run to join; expected one a seed, such as `mfhca train --seeds 5` makes")
    for run in found[1:]:
        # Parameters, too: a support vector machine has as many as its training utterances ask for.
        free = ("seed", "parameters")
        before, now = ({k: v for k, v in item.settings.items() if k not in free} for item in (found[0], run))
        if changed := [key for key in before if before[key] != now[key]]:
            raise TrainingError(
                f"{run.run} and {found[0].run} differ in {', '.join(changed)}; expected runs that differ in their seed"
            )
    folds = pd.concat([run.folds for run in found])
    seeds = pd.DataFrame([run.pooled for run in found])
    counts = [run.counts for run in found]
    tested = [[*run.folds["name"], *(item.speakers for item in run.counts.values())] for run in found]
    same = bool(counts[0]) and all(names == tested[0] for names in tested)
    return JoinedSummary(
        found,
        len(folds),
        *_spread(folds),
        *_spread(seeds),
        intervals(counts, fold_mean) if same else {},
        intervals(counts, pooled) if same else {},
    )


def _spread(table: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    mean = {name: float(table[name].mean()) for name in SCORES}
    return mean, {name: statistics.stdev(table[name]) for name in SCORES} if len(table) > 1 else {}
