"""Intervals over speakers: by hand where that can be done, and by what they cover where it cannot."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.intervals import (
    Counts,
    average,
    estimates,
    fold_mean,
    interval,
    intervals,
    limits,
    pooled,
)
from mfhca_cache.reporting.speakers import count_clips, count_speakers, speaker_table

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("coverage")


def made(right: list[list[int]], total: list[list[int]], fold: list[int] | None = None) -> Counts:
    """A row a speaker, who is a cell of a fold of its own unless said otherwise."""
    cells = np.arange(len(total))
    return Counts(
        np.array(right, float), np.array(total, float), cells, cells if fold is None else np.array(fold),
        tuple(f"s{at}" for at in cells),
    )  # fmt: skip


FOUR = made([[8, 1], [5, 2], [9, 4], [3, 1]], [[10, 4], [10, 2], [12, 8], [5, 5]])


def test_a_fold_a_speaker_is_the_textbook_t() -> None:
    ua = np.array([(0.8 + 0.25) / 2, (0.5 + 1.0) / 2, (0.75 + 0.5) / 2, (0.6 + 0.2) / 2])
    found = fold_mean(FOUR)
    assert float(found.value) == pytest.approx(ua.mean())
    assert float(found.standard_error) == pytest.approx(stats.sem(ua))
    # On log-odds, and carried back.
    low, high = limits(found)
    odds = np.log(ua.mean() / (1 - ua.mean()))
    half = stats.t.ppf(0.975, 3) * stats.sem(ua) / (ua.mean() * (1 - ua.mean()))
    assert [float(low), float(high)] == pytest.approx([1 / (1 + np.exp(-odds + half)), 1 / (1 + np.exp(-odds - half))])
    wa = fold_mean(FOUR.classes_as_one())
    assert float(wa.value) == pytest.approx(np.mean([9 / 14, 7 / 12, 13 / 20, 4 / 10]))


def test_pooled_is_the_jackknife() -> None:
    def ua(kept: list[int]) -> float:
        return float((FOUR.correct[kept].sum(0) / FOUR.total[kept].sum(0)).mean())

    found = pooled(FOUR)
    assert float(found.value) == pytest.approx(ua([0, 1, 2, 3]))
    without = np.array([ua([other for other in range(4) if other != speaker]) for speaker in range(4)])
    assert float(found.standard_error) == pytest.approx(np.sqrt(3 / 4 * ((without - ua([0, 1, 2, 3])) ** 2).sum()))


def test_equal_speakers_make_all_ways_one() -> None:
    """With as many utterances each, fold mean, sessions' mean and pooled are the same number with the same error."""
    total = [[10, 10]] * 4
    right = [[9, 4], [6, 6], [8, 2], [3, 5]]
    alone, in_pairs = made(right, total), made(right, total, fold=[0, 0, 1, 1])
    found = [fold_mean(alone), fold_mean(in_pairs), pooled(alone), pooled(in_pairs)]
    for item in found[1:]:
        assert float(item.value) == pytest.approx(float(found[0].value))
        assert float(item.standard_error) == pytest.approx(float(found[0].standard_error))


def test_a_speaker_in_several_folds_is_one_speaker() -> None:
    """Three models tested on the same four speakers: as many speakers as before, and no smaller error."""
    once = made([[9, 4], [6, 6], [8, 2], [3, 5]], [[10, 10]] * 4)
    thrice = Counts(
        np.tile(once.correct, (3, 1)), np.tile(once.total, (3, 1)), np.tile(np.arange(4), 3), np.repeat([0, 1, 2], 4),
        once.speakers,
    )  # fmt: skip
    for way in (fold_mean, pooled):
        assert float(way(thrice).value) == pytest.approx(float(way(once).value))
        assert float(way(thrice).standard_error) == pytest.approx(float(way(once).standard_error))
    assert not thrice.a_fold_a_speaker
    assert (
        intervals([{"utterance": thrice}], fold_mean)["utterance_ua"].method
        == "t over 4 speakers in 3 folds, on log-odds"
    )


def test_seeds_are_no_new_speakers() -> None:
    other = made([[7, 2], [6, 1], [9, 3], [2, 2]], FOUR.total.astype(int).tolist())
    both = average([fold_mean(FOUR), fold_mean(other)])
    ua = [(of.correct / of.total).mean(1) for of in (FOUR, other)]
    assert float(both.standard_error) == pytest.approx(stats.sem(np.mean(ua, axis=0)))
    assert float(average([fold_mean(FOUR)] * 5).standard_error) == pytest.approx(float(fold_mean(FOUR).standard_error))
    found = intervals([{"utterance": FOUR}, {"utterance": other}], pooled)["utterance_wa"]
    assert found.method == "t over 4 speakers, jackknife, each averaged over 2 seeds, on log-odds"
    assert (found.n, found.level) == (4, 0.95)


def test_no_interval_where_there_is_nothing_to_make_one_from() -> None:
    assert interval(fold_mean(made([[3, 1]], [[5, 4]])), "t") is None  # One speaker.
    assert interval(fold_mean(made([[2, 2]] * 3, [[4, 4]] * 3)), "t") is None  # All alike.
    assert interval(pooled(made([[4, 4]] * 3, [[4, 4]] * 3)), "t") is None  # All right.
    near = interval(fold_mean(made([[20, 20], [20, 19], [20, 20]], [[20, 20]] * 3)), "t")
    assert near is not None and 0 < near.low < 0.99 < near.high < 1


@pytest.mark.filterwarnings("error")
def test_classes_that_a_speaker_or_everybody_lacks() -> None:
    lacking = made([[8, 0, 0], [5, 2, 0], [9, 4, 0]], [[10, 0, 0], [10, 2, 0], [12, 8, 0]])
    assert float(fold_mean(lacking).value) == pytest.approx(np.mean([0.8, 0.75, 0.625]))
    in_one = made([[8, 0], [5, 2], [9, 0]], [[10, 0], [10, 3], [12, 0]], fold=[0, 0, 1])
    for way in (fold_mean, pooled):
        for counts in (lacking, in_one):
            assert np.isfinite(way(counts).deviations).all()


PREDICTIONS = pd.DataFrame(
    {
        "fold": [1, 1, 1, 2, 2],
        "speaker": ["1M", "1M", "1M", "1F", "1F"],
        "label": ["sad", "sad", "angry", "angry", "angry"],
        "prediction": ["sad", "angry", "angry", "sad", "angry"],
    }
)


def test_predictions_are_counted_by_speaker_and_class() -> None:
    counts = count_speakers(PREDICTIONS, ["angry", "happy", "sad"])
    assert counts.speakers == ("1M", "1F") and counts.a_fold_a_speaker
    right, total = counts.by_speaker()
    assert right.tolist() == [[1, 0, 1], [1, 0, 0]] and total.tolist() == [[1, 0, 2], [2, 0, 0]]
    table = speaker_table(counts, ["angry", "happy", "sad"]).set_index("speaker")
    assert "fold" not in table
    numbered = speaker_table(counts, ["angry", "happy", "sad"], [4, 9])
    assert dict(zip(numbered["speaker"], numbered["fold"], strict=True)) == {"1M": 4, "1F": 9}
    twice = count_speakers(PREDICTIONS.assign(fold=[1, 1, 2, 2, 2]), ["angry", "happy", "sad"])
    assert "fold" not in speaker_table(twice, ["angry", "happy", "sad"], [1, 2])
    assert table.loc["1M", ["utterances", "wa", "ua", "recall_sad"]].tolist() == pytest.approx([3, 2 / 3, 0.75, 0.5])
    assert np.isnan(table.loc["1F", "recall_sad"]) and table.loc["1F", "ua"] == 0.5
    with pytest.raises(TrainingError, match=r"classes angry; expected happy, sad"):
        count_speakers(PREDICTIONS, ["happy", "sad"])


def test_clips_are_counted_where_a_fold_is_a_speaker() -> None:
    records = [{"confusion": {"clip": matrix}} for matrix in ([[2, 1], [0, 3]], [[4, 0], [1, 1]])]
    clips = count_clips(records, count_speakers(PREDICTIONS, ["angry", "sad"]))
    assert clips is not None and clips.correct.tolist() == [[2, 3], [4, 1]] and clips.total.tolist() == [[3, 3], [4, 2]]
    together = count_speakers(PREDICTIONS.assign(fold=1), ["angry", "sad"])
    assert count_clips(records[:1], together) is None


@pytest.mark.parametrize(("speakers", "bootstrap"), [(10, 0.92), (4, 0.85)])
def test_intervals_cover_what_they_say(coverage: ModuleType, speakers: int, bootstrap: float) -> None:
    """95 % intervals of 4,000 corpora with speaker effects cover 93 to 97 %; the usual ones do not."""
    corpus = coverage.CORPORA[1]
    drawn = coverage.draw_effects(corpus, 4000, speakers, np.random.default_rng(1))
    many = coverage.draw_effects(corpus, 20_000, speakers, np.random.default_rng(2))
    found = coverage.coverage(drawn, coverage.truth_of(many, trained=False), resamples=200)
    for score in coverage.SCORES:
        assert 0.93 <= found[score]["log-odds t"] <= 0.97, score
        assert found[score]["bootstrap"] < bootstrap and found[score]["binomial"] < 0.85
    in_pairs = coverage.coverage(drawn, coverage.truth_of(many, trained=False, a_fold=2), a_fold=2)
    for score in coverage.SCORES:
        assert 0.93 <= in_pairs[score]["log-odds t"] <= 0.97, score


def test_intervals_hold_near_the_top(coverage: ModuleType) -> None:
    """Where nearly all is right, t without log-odds reaches past 1 and yet covers too little."""
    corpus = coverage.CORPORA[3]
    drawn = coverage.draw_effects(corpus, 4000, 4, np.random.default_rng(1))
    many = coverage.draw_effects(corpus, 20_000, 4, np.random.default_rng(2))
    found = coverage.coverage(drawn, coverage.truth_of(many, trained=False))
    for way in ("mean", "pooled"):
        assert 0.93 <= found[way, "ua"]["log-odds t"] <= 0.97
        assert found[way, "ua"]["plain t"] < found[way, "ua"]["log-odds t"]
    _, high = limits(
        estimates({"utterance": coverage.counts_of(drawn.right_a, drawn.total)}, fold_mean)["utterance_ua"]
    )
    assert np.nanmax(high) <= 1
