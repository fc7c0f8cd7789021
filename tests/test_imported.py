"""Training on folds from elsewhere: what the file gives, and no leak without a word of it in every output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from mfhca_cache.errors import FoldError, TrainingError
from mfhca_cache.folds import IMPORTED, OPTIMISTIC_NOTE, make_folds
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.splits.export import export_folds
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint
from mfhca_cache.training.trainer import train_fold

from .test_cli import run
from .trees import write_file

SPEAKERS = ("1F", "1M", "2F", "2M", "3F", "3M")


def name_of(speaker: str, number: int) -> str:
    return f"Ses0{speaker[0]}_{speaker[1]}{number:03d}"


def ids(*speakers: str) -> list[str]:
    return [name_of(speaker, number) for speaker in speakers for number in range(4)]


def options(path: Path, **more: object) -> TrainOptions:
    made = {"features": "encoder", "preset": "frozen", "epochs": 1, "folds": str(path), **more}
    return TrainOptions(**made)  # type: ignore[arg-type]


def write_folds(path: Path, **parts: list[str]) -> Path:
    return write_file(path, json.dumps(parts))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """One fold without a validation set."""
    return write_folds(tmp_path / "sound.json", train=ids("1F", "1M", "2F", "2M"), test=ids("3F", "3M"))


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """One fold whose test speaker 2M is in training too."""
    test = ids("3M")
    return write_folds(
        tmp_path / "leaky.json", train=ids("1F", "1M")[:-1], dev=ids("2F"), test=[*test, *ids("1M")[-1:]]
    )


def test_our_own_folds_train_alike_when_they_come_from_a_file(small_cache: Cache, tmp_path: Path) -> None:
    folds = make_folds(small_cache.utterances, "strict")
    export_folds(tmp_path / "f.csv", folds, small_cache.utterances)
    ours = train_fold(small_cache, "2F", TrainOptions(features="encoder", preset="frozen", epochs=2))
    theirs = train_fold(small_cache, "2F", options(tmp_path / "f.csv", epochs=2))
    pd.testing.assert_frame_equal(ours.predictions, theirs.predictions)
    assert (theirs.record["protocol"], theirs.record["optimistic"]) == (IMPORTED, False)
    assert theirs.record["caveats"] == ours.record["caveats"]
    digest = hashlib.sha256((tmp_path / "f.csv").read_bytes()).hexdigest()
    assert theirs.record["folds_from"] == {"name": "f.csv", "shape": "mfhca", "sha256": digest}


def test_without_a_validation_set_a_fifth_of_training_is_held_out_and_said(small_cache: Cache, sound: Path) -> None:
    (fold,) = prepare(small_cache, options(sound)).folds
    assert (len(fold.train), len(fold.validation), len(fold.test)) == (13, 3, 8)
    assert set(fold.train) | set(fold.validation) == set(ids("1F", "1M", "2F", "2M"))
    assert not fold.optimistic
    assert "sound.json has no validation set: 20 % of the training utterances were held out (seed 0)" in fold.caveats[0]
    assert prepare(small_cache, options(sound)).folds == [fold]
    assert prepare(small_cache, options(sound, seed=1)).folds[0].validation != fold.validation
    assert fold.caveats[0] in train_fold(small_cache, 1, options(sound)).record["caveats"]


def test_utterances_that_cannot_be_used_are_counted(small_cache: Cache, tmp_path: Path) -> None:
    parts = {"train": [*ids("1F", "1M"), "gone"], "dev": ids("2F"), "test": [*ids("3M"), "lost", "nowhere"]}
    (fold,) = prepare(small_cache, options(write_folds(tmp_path / "f.json", **parts))).folds
    assert "of the utterances in f.json, 1 of 9 for training, 2 of 6 for test are not used" in fold.notes[0]
    classes = write_file(tmp_path / "two.json", json.dumps({"a": ["ang"], "b": ["hap"]}))
    (fold,) = prepare(small_cache, options(tmp_path / "f.json", classes=str(classes))).folds
    assert "5 of 9 for training, 2 of 4 for validation, 4 of 6 for test" in fold.notes[0]
    only = write_folds(tmp_path / "g.json", train=ids("1F"), dev=ids("2F"), test=[name_of("3M", 2)])
    with pytest.raises(FoldError, match="no utterance left for test once those without a class"):
        prepare(small_cache, options(only, classes=str(classes)))


def test_a_leaky_fold_is_refused_with_what_leaks(small_cache: Cache, leaky: Path, tmp_path: Path) -> None:
    for attempt in (
        lambda: train_fold(small_cache, 1, options(leaky)),
        lambda: cross_validate(small_cache, options(leaky), run=tmp_path / "run"),
    ):
        with pytest.raises(FoldError, match=r"leaky\): leak: 1 of 5 test .* speakers in training \(1M\)"):
            attempt()
    assert not (tmp_path / "run").exists()


def test_an_utterance_in_both_parts_is_a_leak(small_cache: Cache, tmp_path: Path) -> None:
    path = write_folds(tmp_path / "f.json", train=[*ids("1F"), *ids("3M")[:1]], dev=ids("2F"), test=ids("3M"))
    with pytest.raises(FoldError, match=r"4 of 4 .* speakers in training.*; leak: 1 of 4 .* themselves"):
        train_fold(small_cache, 1, options(path))


def test_a_leak_that_is_allowed_is_in_every_output(small_cache: Cache, leaky: Path, tmp_path: Path) -> None:
    said = "leak: 1 of 5 test utterances are by speakers in training (1M)"
    news: list[str] = []
    folder = tmp_path / "run"
    allowed = options(leaky, allow_leaks=True)
    (result,) = cross_validate(small_cache, allowed, run=folder, progress=lambda report: news.append(report.detail))
    assert result.record["optimistic"] and said in result.record["caveats"]
    assert set(result.predictions["caveat"]) == set(result.curve["caveat"]) == {said}
    assert any("(optimistic)" in line for line in news)
    assert said in load_checkpoint(folder / "fold01" / "model.safetensors")[2]["caveats"]
    summary = summarise(folder)
    assert summary.optimistic and said in summary.caveats
    assert summary.to_json()["folds_from"]["name"] == "leaky.json"
    assert summary.to_table()["caveats"].str.contains(said, regex=False).all()


def test_validation_on_the_test_speaker_is_optimistic_as_in_test_selected(small_cache: Cache, tmp_path: Path) -> None:
    path = write_folds(tmp_path / "f.json", train=ids("1F", "1M"), dev=ids("3M")[:2], test=ids("3M")[2:])
    result = train_fold(small_cache, 1, options(path))
    assert result.record["optimistic"] and OPTIMISTIC_NOTE in result.record["caveats"]


def test_a_run_knows_its_folds_by_their_content(small_cache: Cache, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cross_validate(small_cache, options(sound), run=folder)
    moved = sound.rename(tmp_path / "elsewhere.json")
    again = moved.rename(write_file(tmp_path / "d" / "x", "").with_name("sound.json"))
    cross_validate(small_cache, options(again, allow_leaks=True), run=folder)
    write_file(again, again.read_text() + " ")
    with pytest.raises(TrainingError, match=r"folds_from\.sha256"):
        cross_validate(small_cache, options(again), run=folder)


def test_runs_are_named_by_the_file(small_cache: Cache, tmp_path: Path) -> None:
    roles = {"encoder": "random-tiny"}
    assert run_name(small_cache, options(tmp_path / "my folds.csv"), roles).endswith("-imported-my-folds-frozen")


def test_folds_and_a_protocol_exclude_each_other() -> None:
    with pytest.raises(TrainingError, match="both the protocol 'session' and folds"):
        TrainOptions(protocol="session", folds="f.csv")
    with pytest.raises(TrainingError, match="protocol 'imported' is not known"):
        TrainOptions(protocol=IMPORTED)


def test_the_command_trains_imported_folds_and_warns(small_cache_folder: Path, tmp_path: Path, leaky: Path) -> None:
    words = ("train", "--cache", small_cache_folder, "--runs", tmp_path / "runs", "--features", "encoder")
    words += ("--preset", "frozen", "--epochs", "1", "--folds", leaky)
    assert "--allow-leaks trains them all the same" in run(*words, expect=1).output
    assert not (tmp_path / "runs").exists()
    text = run(*words, "--allow-leaks").output
    assert text.count("leak: 1 of 5 test utterances are by speakers in training (1M)") == 2
    assert "imported (optimistic)" in text and "Folds from leaky.json (mfhca, SHA-256" in text
    again = run("report", tmp_path / "runs" / "iemocap-mfhca-random-tiny-imported-leaky-frozen").output
    assert "Caution: leak: 1 of 5" in again
    run(*words, "--protocol", "strict", expect=2)
    run("train", "--cache", small_cache_folder, "--allow-leaks", expect=2)
