"""How sure a score is: confidence intervals that respect speakers.

Utterances of one speaker are right or wrong together, so the speaker is the unit: an interval says what other speakers
of the same kind might have given. A score comes with each speaker's deviation from it, on the scale of a speaker's own
score; their spread is its standard error, and Student's t with one degree less than speakers gives its limits.

    fold mean   WA or UA of each fold, averaged. With a fold a speaker a deviation is the fold's score less the mean:
                the textbook t over speakers.
    pooled      all test items as one set. A deviation is the jackknife's: what becomes of the score without a speaker.

Limits are taken on the scale of log-odds, where scores near 1 are not cut off, and carried back. Chosen by simulation:
`benchmarks/coverage.py`. Counts may have leading dimensions, over which everything is done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
#: A spread below this is rounding, and no spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a score.

    Attributes:
        low, high: its limits, 0…1.
        level: such as 0.95.
        method: in words, such as "t over 10 speakers, on log-odds".
        n: number of speakers.
    """

    low: float
    high: float
    level: float
    method: str
    n: int


@dataclass(frozen=True)
class Counts:
    """Test items, and those that were predicted right, of each speaker in each fold.

    Attributes:
        correct, total: (..., cells, classes) whole numbers; a cell is a speaker in a fold.
        speaker: (cells,) each cell's place in ``speakers``.
        fold: (cells,) each cell's fold, from 0.
        speakers: names.
    """

    correct: np.ndarray
    total: np.ndarray
    speaker: np.ndarray
    fold: np.ndarray
    speakers: tuple[str, ...]

    @property
    def a_fold_a_speaker(self) -> bool:
        """Whether each fold tests one speaker, whom no other fold tests."""
        return len(set(self.fold)) == len(self.fold) == len(set(self.speaker))

    def by_speaker(self) -> tuple[np.ndarray, np.ndarray]:
        """Right and all, each (..., speakers, classes)."""
        members = _members(self.speaker, len(self.speakers))
        return members @ self.correct, members @ self.total

    def classes_as_one(self) -> Counts:
        """The same with all classes taken together: what UA does by class, WA does with these."""
        correct, total = (counts.sum(-1, keepdims=True) for counts in (self.correct, self.total))
        return Counts(correct, total, self.speaker, self.fold, self.speakers)


@dataclass(frozen=True)
class Estimate:
    """A score, and what each speaker adds to it.

    Attributes:
        value: (...), 0…1.
        deviations: (..., speakers), of mean 0 or nearly; the standard error is √(Σ deviations² / S(S − 1)).
    """

    value: np.ndarray
    deviations: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """(...)."""
        speakers = self.deviations.shape[-1]
        if speakers < 2:
            return np.full(np.shape(self.value), np.nan)
        return np.asarray(np.sqrt((self.deviations**2).sum(-1) / (speakers * (speakers - 1))))

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two scores of the same speakers, paired by speaker."""
        return Estimate(self.value - other.value, self.deviations - other.deviations)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several scores of the same speakers, such as of several seeds: no speaker counts as new."""
    return Estimate(np.mean([e.value for e in estimates], axis=0), np.mean([e.deviations for e in estimates], axis=0))


def fold_mean(counts: Counts) -> Estimate:
    """UA of each fold, averaged over folds; WA of counts whose classes were taken as one."""
    folds = int(counts.fold.max()) + 1
    members = _members(counts.fold, folds)
    total = members @ counts.total
    recall = _ratio(members @ counts.correct, total)
    present = (total > 0).sum(-1)
    ua = _mean(recall, -1)
    value = ua.mean(-1)
    speakers = _members(counts.speaker, len(counts.speakers))
    if counts.a_fold_a_speaker:
        return Estimate(value, (ua - value[..., None])[..., counts.fold] @ speakers.T)
    # How far a cell's items lie from their class's mean, by its share in its fold. A speaker of much leverage hides
    # some of its own distance, which is given back.
    share = _ratio(counts.total, total[..., counts.fold, :], 0.0)
    leverage = (speakers @ share / folds)[..., counts.speaker, :]
    apart = _ratio(counts.correct, counts.total, 0.0) - _mean(recall, -2)[..., None, :]
    # A class of a single speaker has no other to be held against.
    pull = np.nansum(apart * _ratio(share, np.where(leverage < 1 - 1e-9, 1 - leverage, 0.0)), -1)
    pull = pull / present[..., counts.fold]
    return Estimate(value, pull @ speakers.T * ((len(counts.speakers) - 1) / folds))


def pooled(counts: Counts) -> Estimate:
    """UA over all test items as one set; WA of counts whose classes were taken as one."""
    correct, total = counts.by_speaker()
    all_correct, all_total = correct.sum(-2, keepdims=True), total.sum(-2, keepdims=True)
    value = _mean(_ratio(all_correct, all_total), -1)
    without = _mean(_ratio(all_correct - correct, all_total - total), -1)
    return Estimate(value[..., 0], (total.shape[-2] - 1) * (value - without))


def limits(estimate: Estimate, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Both limits of a score, each (...), by t on the log-odds scale; NaN for scores of 0 and 1."""
    value = np.asarray(estimate.value, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        centre = np.log(value / (1 - value))
        half = quantile(estimate, level) * estimate.standard_error / (value * (1 - value))
        return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))


def quantile(estimate: Estimate, level: float = LEVEL) -> float:
    """Of Student's t with one degree of freedom less than speakers, two-sided."""
    return float(stats.t.ppf((1 + level) / 2, estimate.deviations.shape[-1] - 1))


def interval(estimate: Estimate, method: str, level: float = LEVEL) -> Interval | None:
    """The interval of one score, or None where there is none: a single speaker, or speakers who do not differ."""
    speakers = estimate.deviations.shape[-1]
    if speakers < 2 or not estimate.standard_error > _NO_SPREAD:
        return None
    low, high = limits(estimate, level)
    return Interval(float(low), float(high), level, method, speakers) if np.isfinite(low + high) else None


def estimates(counts: dict[str, Counts], way: Callable[[Counts], Estimate]) -> dict[str, Estimate]:
    """``<level>_wa`` and ``<level>_ua`` of the levels counted, by `fold_mean` or `pooled`."""
    found: dict[str, Estimate] = {}
    for level, items in counts.items():
        found |= {f"{level}_wa": way(items.classes_as_one()), f"{level}_ua": way(items)}
    return found


def intervals(runs: Sequence[dict[str, Counts]], way: Callable[[Counts], Estimate]) -> dict[str, Interval]:
    """The intervals that there are: score's name → interval, of a run or of several seeds.

    Args:
        runs: one a seed, of the same speakers and folds: level → counts.
        way: `fold_mean` or `pooled`.
    """
    each = [estimates(counts, way) for counts in runs]
    counts = runs[0]["utterance"]
    words = f"t over {len(counts.speakers)} speakers"
    if way is pooled:
        words += ", jackknife"
    elif not counts.a_fold_a_speaker and len(set(counts.fold)) > 1:
        words += f" in {len(set(counts.fold))} folds"
    if len(runs) > 1:
        words += f", each averaged over {len(runs)} seeds"
    words += ", on log-odds"
    found = {name: interval(average([of[name] for of in each]), words) for name in each[0]}
    return {name: item for name, item in found.items() if item is not None}


def _ratio(part: np.ndarray, whole: np.ndarray, nothing: float = np.nan) -> np.ndarray:
    """``nothing`` where the whole is 0."""
    shape = np.broadcast_shapes(np.shape(part), np.shape(whole))
    return np.divide(part, whole, out=np.full(shape, nothing), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Over what is not NaN; NaN where nothing is."""
    return _ratio(np.nansum(values, axis), np.isfinite(values).sum(axis))


def _members(numbers: np.ndarray, count: int) -> np.ndarray:
    """(count, cells): 1 where the cell has that number."""
    return (np.arange(count)[:, None] == numbers).astype(np.float64)
