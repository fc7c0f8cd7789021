"""Two systems on the same test utterances: the difference of their scores, and the tests of it.

What is concluded rests on the t over speakers' differences, the test that rejects as often as it says where speakers
are what varies (`benchmarks/coverage.py`). Folds share most of their training data, which makes any such test find too
much; the corrected t of Nadeau and Bengio (Inference for the generalization error, Machine Learning 52, 2003) allows
for that, and finds too little. McNemar's test takes utterances for independent; it is given because it is usual.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

from mfhca_cache.reporting.intervals import LEVEL, Estimate, Interval, quantile

#: A spread, or a difference, below this is rounding.
_NOTHING = 1e-12
#: Up to so many differences every assignment of signs is counted.
_ENUMERATED = 16
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """One score of two systems, A − B; all in 0…1, or -1…1.

    Attributes:
        a, b: the scores.
        difference: a − b.
        interval: of the difference, by t over speakers; None for a single speaker or speakers who all differ alike.
        p: two-sided, of no difference, by the same t; None where there is none.
        effect: Cohen's d_z, the mean over the standard deviation of the speakers' differences; None without spread.
        corrected_p: by the corrected t, for systems trained anew on other speakers; None where the folds do not part
            the speakers.
        detectable: the difference that this test would find in 80 of 100 such comparisons, or None.
    """

    a: float
    b: float
    difference: float
    interval: Interval | None
    p: float | None
    corrected_p: float | None
    effect: float | None
    detectable: float | None


@dataclass(frozen=True)
class McNemar:
    """Utterances by who was right, and the exact test of no difference, which takes them for independent.

    Attributes:
        both, only_a, only_b, neither: numbers of utterances.
        p: two-sided.
        odds_ratio: only_a / only_b; None where only_b is 0.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    odds_ratio: float | None


@dataclass(frozen=True)
class FoldTest:
    """Tests of folds' differences.

    Attributes:
        folds: how many.
        zeros: how many of them do not differ at all; Wilcoxon's test leaves them out.
        t_p, wilcoxon_p: two-sided; None for a single fold, or folds that all differ alike.
        smallest_p: what Wilcoxon's test gives at the least with so many folds.
    """

    folds: int
    zeros: int
    t_p: float | None
    wilcoxon_p: float | None
    smallest_p: float


def paired_difference(
    a: Estimate, b: Estimate, method: str, wider: float | None = None, level: float = LEVEL
) -> Difference:
    """The difference of two scores of the same speakers.

    Args:
        method: of the interval, in words.
        wider: by how much the corrected t's error is wider (`correction`); None where folds do not part the speakers.
    """
    found = a - b
    value, speakers = float(found.value), found.deviations.shape[-1]
    error = float(found.standard_error)
    scores = (float(a.value), float(b.value), value)
    if speakers < 2 or not error > _NOTHING:
        same = speakers > 1 and abs(value) < _NOTHING
        p = 1.0 if same else None
        return Difference(*scores, interval=None, p=p, corrected_p=p, effect=None, detectable=None)
    half = quantile(found, level) * error
    return Difference(
        *scores,
        interval=Interval(value - half, value + half, level, method, speakers),
        p=float(p_values(found)),
        corrected_p=float(p_values(found, wider)) if wider else None,
        effect=value / (error * speakers**0.5),
        detectable=detectable(error, speakers, level),
    )


def p_values(difference: Estimate, wider: float = 1.0) -> np.ndarray:
    """Two-sided p of no difference, (...), by t over speakers, its error ``wider`` times; 1 where nothing differs."""
    error = difference.standard_error * wider
    size = np.abs(difference.value)
    t = np.divide(size, error, out=np.where(size > _NOTHING, np.inf, 0.0), where=error > _NOTHING)
    return np.asarray(2 * stats.t.sf(t, difference.deviations.shape[-1] - 1))


def correction(folds: int, test_to_training: float) -> float:
    """By how much Nadeau and Bengio's standard error is wider: 1/folds + test/training is put for 1/folds.

    Args:
        test_to_training: test utterances of a fold over its training utterances, the folds' mean.
    """
    return float(np.sqrt(1 + folds * test_to_training))


def detectable(standard_error: float, speakers: int, level: float = LEVEL, power: float = POWER) -> float:
    """The true difference that a t over speakers finds with probability ``power``, by the noncentral t."""
    freedom = speakers - 1
    limit = stats.t.ppf((1 + level) / 2, freedom)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(limit, freedom, shift)) - power

    return float(optimize.brentq(lacking, 0.0, 3 * limit + 10)) * standard_error


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> McNemar:
    """Of bool (utterances,) each: whether A, and whether B, was right."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    return McNemar(
        int((right_a & right_b).sum()),
        only_a,
        only_b,
        int((~right_a & ~right_b).sum()),
        float(mcnemar_p(np.array(only_a), np.array(only_b))),
        only_a / only_b if only_b else None,
    )


def mcnemar_p(only_a: np.ndarray, only_b: np.ndarray) -> np.ndarray:
    """The exact test's two-sided p of whole numbers (...): a fair coin for each discordant pair."""
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5))


def fold_test(differences: np.ndarray) -> FoldTest:
    """Paired t and Wilcoxon's signed ranks of float (folds,)."""
    folds = len(differences)
    moved = differences[np.abs(differences) > _NOTHING]
    t = float(stats.ttest_1samp(differences, 0.0).pvalue) if folds > 1 and np.ptp(differences) > _NOTHING else None
    return FoldTest(
        folds,
        folds - len(moved),
        1.0 if folds > 1 and not len(moved) else t,
        signed_rank_p(moved) if folds > 1 else None,
        min(1.0, 2.0 ** (1 - len(moved))),
    )


def signed_rank_p(differences: np.ndarray) -> float:
    """Wilcoxon's two-sided p of differences (n,), none of them 0: by counting up to 16 of them, ties included."""
    if not len(differences):
        return 1.0
    if len(differences) > _ENUMERATED:
        return float(stats.wilcoxon(differences).pvalue)
    ranks = stats.rankdata(np.abs(differences).round(12))
    observed = abs(float(np.sign(differences) @ ranks))
    return float((np.abs(_signs(len(ranks)) @ ranks) >= observed - 1e-9).mean())


@cache
def _signs(count: int) -> np.ndarray:
    """Every assignment of signs, (2^count, count)."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
