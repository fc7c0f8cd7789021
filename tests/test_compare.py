"""`mfhca compare`: numbers against scipy's, what it refuses and warns of, and how often it finds what is not there."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mfhca_cache
from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.compare import compare_runs
from mfhca_cache.reporting.conclude import conclude, points
from mfhca_cache.reporting.intervals import Estimate
from mfhca_cache.reporting.paired import (
    Difference,
    detectable,
    fold_test,
    mcnemar,
    p_values,
    paired_difference,
    signed_rank_p,
)

from .runs import CLASSES, SPEAKERS, guesses, utterances, write_run
from .test_cli import run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of ten speakers, of which the second is better."""
    a = write_run(tmp_path / "spectrogram", guesses(utterances(), 0.55, 1), features={"spectrogram": "spectrogram"})
    return a, write_run(tmp_path / "full", guesses(utterances(), 0.75, 2))


def test_every_number_is_scipys(pair: tuple[Path, Path]) -> None:
    found = compare_runs(*pair)
    tables = [pd.concat([pd.read_csv(p) for p in sorted(run.glob("fold*/predictions.csv"))]) for run in pair]
    right = [(table["label"] == table["prediction"]).set_axis(table["utterance_id"]) for table in tables]
    recall = [
        ok.groupby([t["speaker"].to_numpy(), t["label"].to_numpy()]).mean() for ok, t in zip(right, tables, strict=True)
    ]
    ua = [of.groupby(level=0).mean() for of in recall]
    test = stats.ttest_rel(*ua)
    item = found.mean["utterance_ua"]
    assert (item.a, item.b) == pytest.approx((ua[0].mean(), ua[1].mean()))
    assert item.p == pytest.approx(test.pvalue)
    ends = test.confidence_interval()
    assert item.interval is not None and item.interval.n == 10
    assert (item.interval.low, item.interval.high) == pytest.approx((ends.low, ends.high))
    d = (ua[0] - ua[1]).to_numpy()
    assert item.effect == pytest.approx(d.mean() / d.std(ddof=1))
    assert item.corrected_p == pytest.approx(2 * stats.t.sf(abs(test.statistic) / np.sqrt(1 + 10 / 9), 9))
    # Folds are speakers here.
    assert found.folds["utterance_ua"].t_p == pytest.approx(test.pvalue)
    assert found.folds["utterance_ua"].wilcoxon_p == pytest.approx(signed_rank_p(d[np.abs(d) > 1e-12]))
    (pairs,) = found.mcnemar
    alone = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [pairs.only_a, pairs.only_b] == alone
    assert pairs.p == pytest.approx(stats.binomtest(alone[0], sum(alone)).pvalue)
    assert pairs.both + pairs.neither + sum(alone) == found.utterances == 120
    assert found.pooled["utterance_wa"].difference == pytest.approx((alone[0] - alone[1]) / 120)
    by_speaker = (ua[0] - ua[1])[list(found.speakers["speaker"])]
    assert found.speakers["ua_difference"].to_numpy() == pytest.approx(by_speaker.to_numpy())
    # The other way round is the same with the signs turned.
    other = compare_runs(*pair[::-1])
    assert other.mean["utterance_ua"].difference == -item.difference
    assert other.mean["utterance_ua"].p == item.p and other.mcnemar[0].p == pairs.p
    assert mfhca_cache.compare_runs is compare_runs


def test_the_sentence_says_what_can_be_concluded(pair: tuple[Path, Path]) -> None:
    found = compare_runs(*pair)
    assert found.conclusion.startswith("With these ten speakers B is above A by ")
    assert (
        "points UA (A − B: 95 % interval −" in found.conclusion and "training data that folds share" in found.conclusion
    )
    same = compare_runs(pair[0], pair[0])
    assert (
        same.conclusion == "With these ten speakers no speaker's UA differs between A and B: nothing tells them apart."
    )
    assert same.mean["utterance_ua"].p == 1.0 and same.differ == []
    unsure = Difference(0.7, 0.669, 0.031, paired(0.031, 0.07).interval, 0.2, 0.3, 0.4, 0.071)
    assert conclude(unsure, 10) == (
        "With these ten speakers the difference of +3.1 points UA (95 % interval −1.9 to +8.1, p = 0.2) cannot be told "
        "from none; one of about 7.1 points would have been found in 80 of 100 such comparisons."
    )
    sure, loose = (Difference(0.7, 0.6, 0.1, paired(0.1, 0.03).interval, 0.01, p, 2.0, None) for p in (0.04, 0.06))
    assert conclude(sure, 4, seeds=3).startswith(
        "With these four speakers, each averaged over three seeds, A is above B"
    )
    assert "also with allowance for the training data" in conclude(sure, 4)
    assert "not sure that systems trained anew" in conclude(loose, 4)
    assert "One speaker alone" in conclude(Difference(0.7, 0.6, 0.1, None, None, None, None, None), 1)
    assert points(-0.019) == "−1.9"


def paired(mean: float, spread: float, speakers: int = 10) -> Difference:
    """A difference of that mean whose speakers' differences have that standard deviation."""
    z = stats.norm.ppf((np.arange(speakers) + 0.5) / speakers)
    deviations = z / z.std(ddof=1) * spread
    zero = Estimate(np.array(0.0), np.zeros(speakers))
    return paired_difference(Estimate(np.array(mean), deviations), zero, "t")


def test_what_could_have_been_found_is_found_so_often() -> None:
    rng = np.random.default_rng(0)
    for speakers in (10, 4):
        spread = 0.05
        true = detectable(spread / np.sqrt(speakers), speakers)
        drawn = true + spread * rng.normal(size=(20_000, speakers))
        mean = drawn.mean(1)
        found = p_values(Estimate(mean, drawn - mean[:, None])) < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_few_folds_and_folds_that_do_not_differ() -> None:
    four = fold_test(np.array([0.04, 0.02, 0.05, 0.01]))
    assert (four.wilcoxon_p, four.smallest_p, four.zeros) == (0.125, 0.125, 0)
    some = fold_test(np.array([0.04, 0.0, 0.05, 0.01, 0.0]))
    assert (some.zeros, some.smallest_p, some.wilcoxon_p) == (2, 0.25, 0.25)
    assert fold_test(np.zeros(4)).wilcoxon_p == fold_test(np.zeros(4)).t_p == 1.0
    assert fold_test(np.full(4, 0.1)).t_p is None
    assert fold_test(np.array([0.1])).wilcoxon_p is None
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    assert signed_rank_p(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
    assert 0 < signed_rank_p(np.random.default_rng(1).normal(1, 1, 40)) < 0.01
    assert mcnemar(np.array([True, True]), np.array([True, False])).odds_ratio is None


def test_only_the_same_test_utterances_are_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = guesses(utterances(), 0.6, 3)
    some = write_run(tmp_path / "some", table, only=(1, 2, 3))
    with pytest.raises(
        TrainingError, match=r"(?s)only in .*full: 84 utterances, such as 2F-00.*not trained yet in .*some: 2F, 3M"
    ):
        compare_runs(pair[1], some)
    emodb = write_run(tmp_path / "emodb", guesses(utterances(["03", "08", "09"]), 0.6, 3), corpus="emodb")
    with pytest.raises(TrainingError, match=r"(?s)not tested on the same utterances.*corpus: iemocap / emodb"):
        compare_runs(pair[0], emodb)
    other = table.assign(label=[CLASSES[(CLASSES.index(label) + 2) % 4] for label in table["label"]])
    with pytest.raises(TrainingError, match="label of 120 test utterances is not the same in both"):
        compare_runs(pair[0], write_run(tmp_path / "labels", other))
    with pytest.raises(TrainingError, match=r"other classes: angry, happy, neutral, sad / sad, neutral, happy, angry"):
        compare_runs(pair[0], write_run(tmp_path / "classes", table, classes=CLASSES[::-1]))
    with pytest.raises(TrainingError, match="no run here"):
        compare_runs(pair[0], tmp_path / "nothing")
    with pytest.raises(TrainingError, match=r"3 seeds asked for, and spectrogram-seed1, spectrogram-seed2 not there"):
        compare_runs(*pair, seeds=3)
    (pair[0] / "fold03" / "predictions.csv").unlink()
    with pytest.raises(TrainingError, match=r"fold03.predictions.csv: not readable .*delete fold03 and train it again"):
        compare_runs(*pair)


def test_what_must_be_said_is_said(tmp_path: Path) -> None:
    table = utterances(SPEAKERS[:4])
    random = "random-tiny has random weights: its features mean nothing"
    note = "optimistic: the epoch was chosen on the test speaker"
    a = write_run(tmp_path / "a", guesses(table, 0.6, 1), caveats=[random])
    changes = {"protocol": "test-selected", "optimistic": True, "caveats": [note, random]}
    b = write_run(tmp_path / "b", guesses(table, 0.9, 2), **changes)
    found = compare_runs(a, b)
    first, *rest = found.cautions
    assert first.startswith("A was tested by the protocol strict, B by test-selected") and "B is optimistic" in first
    assert random in rest and f"B: {note}" in rest
    assert any(line.startswith("four speakers are few") for line in rest)
    assert "with 4 folds that differ, Wilcoxon's test cannot give less than p = 0.125" in rest
    assert any("another seed" in line for line in rest)
    assert found.differ == ["protocol: 'strict' → 'test-selected'"]


def test_folds_that_are_cut_otherwise_leave_the_tests_on_folds_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    sessions = write_run(tmp_path / "s", guesses(utterances(), 0.75, 2), per_fold=2, protocol="session")
    found, before = compare_runs(pair[0], sessions), compare_runs(*pair)
    assert found.folds == {} and before.folds != {}
    assert found.mean["utterance_ua"].interval == before.mean["utterance_ua"].interval
    # The correction is of the protocol with the fewest folds, which trains on least.
    assert (found.mean["utterance_ua"].corrected_p or 0) > (before.mean["utterance_ua"].corrected_p or 1)
    both = compare_runs(sessions, write_run(tmp_path / "t", guesses(utterances(), 0.6, 4), per_fold=2))
    assert both.folds["utterance_ua"].folds == 5


def test_one_fold_is_one_model_and_says_nothing_of_folds(tmp_path: Path) -> None:
    table = utterances()
    runs = [
        write_run(tmp_path / name, guesses(table, right, seed=3), per_fold=len(SPEAKERS), protocol="cross-corpus")
        for name, right in (("A", 0.7), ("B", 0.5))
    ]
    found = compare_runs(*runs)
    assert found.folds == {} and found.mean["utterance_ua"].corrected_p is None
    shown = run("compare", *map(str, runs)).output
    assert "one model a side stands for its method" in shown
    assert "Wilcoxon" not in shown and "in 1 folds" not in shown


def test_the_correction_goes_by_the_sizes_of_training_and_test(tmp_path: Path) -> None:
    table = utterances(SPEAKERS[:4])
    runs = [write_run(tmp_path / name, guesses(table, right, 3)) for name, right in (("A", 0.7), ("B", 0.5))]
    before = compare_runs(*runs).mean["utterance_ua"]
    for path in tmp_path.glob("*/fold*/result.json"):
        record = json.loads(path.read_text())
        record["utterances"] = {"train": 2 * record["utterances"]["test"], "validation": 12, "test": 12}
        path.write_text(json.dumps(record))
    after = compare_runs(*runs).mean["utterance_ua"]
    t = stats.t.isf(np.array([before.p, before.corrected_p, after.corrected_p]) / 2, 3)
    assert t[0] / t[1] == pytest.approx(np.sqrt(1 + 4 / 3)) and t[0] / t[2] == pytest.approx(np.sqrt(1 + 4 / 2))


def test_speakers_are_averaged_over_seeds(tmp_path: Path) -> None:
    for name, right, seeds in (("a", 0.6, (1, 2, 3)), ("b", 0.7, (4, 5, 6))):
        for number, seed in enumerate(seeds):
            folder = tmp_path / (name if number == 0 else f"{name}-seed{number}")
            write_run(folder, guesses(utterances(), right, seed), seed=number)
    found = compare_runs(tmp_path / "a", tmp_path / "b", seeds=3)
    alone = [compare_runs(tmp_path / f"a{s}", tmp_path / f"b{s}") for s in ("", "-seed1", "-seed2")]
    d = np.mean([item.speakers["ua_difference"] for item in alone], axis=0)
    item = found.mean["utterance_ua"]
    assert item.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert item.interval is not None and item.interval.n == 10 and "3 seeds" in item.interval.method
    assert [of.p for of in found.mcnemar] == [of.mcnemar[0].p for of in alone]
    assert not any("another seed" in line for line in found.cautions)


def test_the_command(pair: tuple[Path, Path]) -> None:
    text = run("compare", *pair).output
    for words in (
        "A: ",
        "B: ",
        "UA, mean over speakers",
        "95 % interval",
        "McNemar over utterances",
        "B is above A by",
    ):
        assert words in text
    assert max(len(line) for line in text.splitlines() if line.startswith(("│", "┃"))) <= 100
    value = json.loads(run("compare", *pair, "--json").output)
    assert (
        value["mean"]["utterance_ua"] == json.loads(json.dumps(compare_runs(*pair).to_json()))["mean"]["utterance_ua"]
    )
    assert len(value["speakers"]) == 10 and value["conclusion"] in text
    assert run("compare", *pair, "--quiet").output == ""
    assert "not there" in run("compare", *pair, "--seeds", "2", expect=1).output
    run("compare", pair[0], expect=2)


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("coverage")


@pytest.mark.parametrize("speakers", [10, 4])
def test_no_difference_is_found_as_seldom_as_is_said(coverage: ModuleType, speakers: int) -> None:
    """Equally good systems of 2,000 corpora: 5 % ± 2 by t over speakers; McNemar finds far too much."""
    for corpus in coverage.CORPORA[:2]:
        drawn = coverage.draw_effects(corpus, 2000, speakers, np.random.default_rng(3))
        found = coverage.rejections(drawn)
        for name in coverage.SCORES:
            assert 0.03 <= found[name]["t"] <= 0.07, (corpus.name, name)
        assert found["pooled", "wa"]["McNemar"] > 0.1
        assert (found["mean", "ua"]["Wilcoxon"] == 0) == (speakers == 4)


def test_shared_training_data_make_t_find_too_much_and_the_correction_holds(coverage: ModuleType) -> None:
    rng = np.random.default_rng(5)
    drawn = coverage.in_parts(lambda draws: coverage.draw_trained(draws, 4, rng), 1000)
    found = coverage.rejections(drawn)["mean", "ua"]
    assert found["t"] > 0.07 > 0.06 > found["corrected t"] > 0.005
