"""A run's intervals and speakers: in its summary, its files and its table, of one seed and of several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.joined import join
from mfhca_cache.reporting.summary import summarise, write_report

from .runs import CLASSES, SPEAKERS, guesses, utterances, write_run
from .test_cli import run

NAMES = ["utterance_wa", "utterance_ua", "clip_wa", "clip_ua"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return write_run(tmp_path / "trial", guesses(utterances(), 0.7, 1))


def test_intervals_are_of_the_scores_beside_them(trained: Path) -> None:
    summary = summarise(trained)
    assert sorted(summary.intervals) == sorted(summary.pooled_intervals) == sorted(NAMES)
    ua = summary.folds["utterance_ua"].to_numpy()
    mean = ua.mean()
    half = stats.t.ppf(0.975, 9) * stats.sem(ua) / (mean * (1 - mean))
    found = summary.intervals["utterance_ua"]
    odds = np.log(mean / (1 - mean))
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-odds + side * half)) for side in (1, -1)))
    assert (found.n, found.level, found.method) == (10, 0.95, "t over 10 speakers, on log-odds")
    for scores, intervals in ((summary.mean, summary.intervals), (summary.pooled, summary.pooled_intervals)):
        assert all(intervals[name].low < scores[name] < intervals[name].high for name in NAMES)
    table = summary.speakers.set_index("speaker")
    assert list(table.index) == SPEAKERS and table.loc["1M", "ua"] == pytest.approx(ua[0])
    assert list(table.columns) == ["fold", "utterances", "wa", "ua", *(f"recall_{name}" for name in CLASSES)]


def test_files_and_json_hold_them(trained: Path) -> None:
    value = json.loads(run("report", trained, "--no-page", "--json").output)
    assert value["intervals"]["utterance_ua"]["method"] == "t over 10 speakers, on log-odds"
    assert value["pooled_intervals"]["clip_wa"]["n"] == 10
    assert value["speakers"][0]["speaker"] == "1M" and 0 <= value["speakers"][0]["recall_sad"] <= 1
    paths = write_report(summarise(trained))
    assert json.loads(paths[0].read_text())["intervals"] == value["intervals"]
    table = pd.read_csv(paths[1]).set_index("name")
    assert table.loc["mean_low", "utterance_ua"] == pytest.approx(value["intervals"]["utterance_ua"]["low"])
    assert table.loc["pooled_high", "clip_wa"] == pytest.approx(value["pooled_intervals"]["clip_wa"]["high"])


def test_the_table_shows_them_and_says_how_they_were_made(trained: Path) -> None:
    lines = run("report", trained, "--no-page").output.splitlines()
    found = summarise(trained).intervals["utterance_ua"]
    (first, second) = [line for line in lines if "95 % interval" in line]
    assert f"{100 * found.low:.1f}–{100 * found.high:.1f}" in first and first.count("–") == second.count("–") == 4
    assert any(line.startswith("Intervals: mean: t over 10 speakers, on log-odds; pooled: ") for line in lines)
    assert max(len(line) for line in lines if line.startswith(("│", "┃"))) <= 100


def test_sessions_have_no_interval_of_clips(tmp_path: Path) -> None:
    summary = summarise(write_run(tmp_path / "s", guesses(utterances(), 0.7, 1), per_fold=2, protocol="session"))
    assert sorted(summary.intervals) == sorted(summary.pooled_intervals) == ["utterance_ua", "utterance_wa"]
    assert summary.intervals["utterance_wa"].method == "t over 10 speakers in 5 folds, on log-odds"
    assert list(summary.counts) == ["utterance"] and len(summary.speakers) == 10
    text = run("report", tmp_path / "s", "--no-page").output
    assert "95 % interval" in text and "in 5 folds" in text


def test_one_speaker_has_no_interval(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", guesses(utterances(), 0.7, 1), only=(4,))
    summary = summarise(folder)
    assert summary.intervals == summary.pooled_intervals == {} and len(summary.speakers) == 1
    assert "interval" not in run("report", folder, "--no-page").output.lower()
    assert list(summary.to_table()["name"]) == ["2F", "mean", "std", "pooled"]


def test_seeds_are_averaged_by_speaker(tmp_path: Path) -> None:
    runs = [
        summarise(write_run(tmp_path / f"r{seed}", guesses(utterances(), 0.7, seed), seed=seed)) for seed in range(3)
    ]
    joined = join(runs)
    ua = np.mean([item.folds["utterance_ua"] for item in runs], axis=0)
    odds = np.log(ua.mean() / (1 - ua.mean()))
    half = stats.t.ppf(0.975, 9) * stats.sem(ua) / (ua.mean() * (1 - ua.mean()))
    found = joined.intervals["utterance_ua"]
    assert found.low == pytest.approx(1 / (1 + np.exp(-odds + half))) and found.n == 10
    assert found.method == "t over 10 speakers, each averaged over 3 seeds, on log-odds"
    assert joined.pooled_intervals["clip_ua"].low < joined.pooled_mean["clip_ua"]
    assert joined.to_json()["intervals"]["utterance_ua"]["low"] == found.low
    fewer = summarise(write_run(tmp_path / "few", guesses(utterances(), 0.7, 9), seed=9, only=(1, 2)))
    assert join([*runs, fewer]).intervals == join([*runs, fewer]).pooled_intervals == {}


def test_seeds_of_models_with_as_many_parameters_as_data_ask_for_are_joined(tmp_path: Path) -> None:
    table = utterances()
    runs = [
        write_run(tmp_path / f"svm{seed}", guesses(table, 0.6, seed), model="svm", seed=seed, parameters=100 + seed)
        for seed in range(2)
    ]
    assert len(join(map(summarise, runs)).runs) == 2


def test_predictions_that_are_missing_or_damaged_are_named(trained: Path) -> None:
    path = trained / "fold02" / "predictions.csv"
    path.write_text("utterance_id,speaker\n")
    with pytest.raises(
        TrainingError, match=r"fold02.predictions.csv: not readable \(columns label, prediction missing"
    ):
        summarise(trained)
    path.unlink()
    assert "delete fold02 and train it again" in run("report", trained, "--no-page", expect=1).output
