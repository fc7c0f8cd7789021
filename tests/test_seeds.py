"""`train --seeds`: a run a seed, each its own folder, and one joined table."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.joined import join
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.seeds import cross_validate_seeds, seed_folder

from .test_cli import run

ENCODER = TrainOptions(features="encoder", preset="frozen", epochs=1)
WORDS = ("--features", "encoder", "--preset", "frozen", "--epochs", "1")
PLAIN = "iemocap-mfhca-random-tiny-strict-frozen"


@pytest.fixture
def here(small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to train in, with the cache where the command looks for it."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "iemocap").symlink_to(small_cache_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_seed_0_has_the_plain_name_and_every_other_its_own() -> None:
    assert seed_folder("runs/trial", 0) == Path("runs/trial")
    assert seed_folder("runs/trial", 12) == Path("runs/trial-seed12")


def test_seeds_are_what_each_alone_would_be(small_cache: Cache, tmp_path: Path) -> None:
    found = cross_validate_seeds(small_cache, ENCODER, (0, 2), fold=1, run=tmp_path / "r", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "r-seed2"]
    for seed, results in found.items():
        (alone,) = cross_validate(small_cache, replace(ENCODER, seed=seed), fold=1, device="cpu")
        assert results[0].record["seed"] == seed
        assert alone.predictions.equals(results[0].predictions)
    assert not found[0][0].predictions.equals(found[2][0].predictions)


def test_the_command_trains_seeds_and_joins_them(here: Path) -> None:
    value = json.loads(run("train", *WORDS, "--seeds", "3", "--fold", "all", "--json").output)
    assert sorted(path.name for path in (here / "runs").iterdir()) == [PLAIN, f"{PLAIN}-seed1", f"{PLAIN}-seed2"]
    assert (value["seeds"], value["folds"], len(value["runs"])) == ([0, 1, 2], 18, 3)
    for name in ("utterance_wa", "utterance_ua", "clip_wa", "clip_ua"):
        every = [fold[name] for item in value["runs"] for fold in item["folds"]]
        assert value["mean"][name] == pytest.approx(statistics.mean(every))
        assert value["std"][name] == pytest.approx(statistics.stdev(every))
        pooled = [item["pooled"][name] for item in value["runs"]]
        assert value["pooled_std"][name] == pytest.approx(statistics.stdev(pooled))
    assert value["runs"][2] == json.loads(run("report", f"runs/{PLAIN}-seed2", "--json").output)
    # Again, with another seed: what is there is kept, and one run more is made.
    stamp = (here / "runs" / PLAIN / "fold01" / "result.json").stat().st_mtime_ns
    text = run("train", *WORDS, "--seed", "1", "--seeds", "3", "--fold", "1").output
    assert (here / "runs" / f"{PLAIN}-seed3" / "fold01" / "result.json").exists()
    assert (here / "runs" / PLAIN / "fold01" / "result.json").stat().st_mtime_ns == stamp
    for words in ("3 seeds", "seed 3", "mean", "± std", "random weights", f"mfhca report runs/{PLAIN}-seed3"):
        assert words in text
    assert "not trained yet: 1F, 2M, 2F, 3M, 3F" in text


def test_a_name_follows_the_same_rule(here: Path) -> None:
    run("train", *WORDS, "--fold", "1", "--seed", "4", "--name", "trial")
    run("train", *WORDS, "--fold", "1", "--seeds", "2", "--name", "trial")
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["trial", "trial-seed1", "trial-seed4"]
    text = run("train", *WORDS, "--fold", "1", "--seed", "4", "--learning-rate", "0.1", "--name", "trial", expect=1)
    assert "such as --name trial-2, or delete it" in text.output
    assert run("train", *WORDS, "--seeds", "0", expect=2)


def test_only_runs_that_differ_in_their_seed_are_joined(small_cache: Cache, tmp_path: Path) -> None:
    cross_validate(small_cache, ENCODER, fold=1, run=tmp_path / "a", device="cpu")
    cross_validate(small_cache, replace(ENCODER, protocol="session"), fold=1, run=tmp_path / "b", device="cpu")
    one, other = summarise(tmp_path / "a"), summarise(tmp_path / "b")
    with pytest.raises(TrainingError, match="differ in protocol"):
        join([one, other])
    with pytest.raises(TrainingError, match="no run to join"):
        join([])
    assert (join([one]).std, join([one]).folds) == ({}, 1)
