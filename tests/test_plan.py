"""`mfhca plan`: what an extraction would take, before it is begun."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mfhca_cache.errors import CacheError, CacheMismatchError, EncoderError
from mfhca_cache.extraction import estimate as module
from mfhca_cache.extraction.estimate import estimate
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.spec import ClipSpec, EncoderSpec, SpectrogramSpec
from mfhca_cache.storage import layout

from .conftest import TINY, small_corpus
from .test_cli import run
from .test_features import bert, of_text, spoken
from .test_maintain import contents

ALONE = replace(TINY, encoder=None)


@pytest.fixture(autouse=True)
def short_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed batch behind the one that warms up."""
    monkeypatch.setattr(module, "TRIAL_BATCHES", 1)


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/session*"))


def test_the_estimate_is_what_extraction_writes(small_manifest: Manifest, tmp_path: Path) -> None:
    found = estimate(small_manifest, tmp_path / "c", TINY, device="cpu")
    assert not (tmp_path / "c").exists() and not found.begun
    report = extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    assert found.bytes_left == pytest.approx(written(tmp_path / "c"), rel=0.02)
    for item in found.features:
        assert item.bytes == item.bytes_left == pytest.approx(written_feature(tmp_path / "c", item.name), rel=0.1)
        assert (item.count, item.count_left, item.random_weights) == (30, 30, item.name == "random-tiny")
        assert item.seconds_each and item.seconds_each > 0
    assert {item.name: item.shape for item in found.features} == {"spectrogram": (300, 200), "random-tiny": (149, 64)}
    assert [(s.name, s.utterances, s.clips, s.clips_left) for s in found.splits] == [
        (f"session{n}", 8, 10, 10) for n in (1, 2, 3)
    ]
    assert found.splits[0].seconds == pytest.approx(2 * (0.7 + 1.2 + 3.4 + 0.9))
    assert sum(item.clips for item in found.splits) == report.clips
    assert found.seconds and 0 < found.trial_clips <= 30
    assert found.fits


def written_feature(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (folder / name).glob("session*"))


def test_the_time_follows_from_the_trial(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    # Each look at the clock is a second later: a feature takes 1 s a batch, an utterance 1 s to decode.
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    found = estimate(small_manifest, tmp_path / "c", TINY, device="cpu", batch=5)
    per_clip = {item.name: item.seconds_each for item in found.features}
    assert per_clip == dict.fromkeys(("spectrogram", "random-tiny"), 1 / found.trial_clips)
    assert 5 <= found.trial_clips <= 6  # one batch of whole utterances, after one to warm up
    utterances = round((found.seconds or 0) * found.trial_clips / 30) - 2
    assert 3 <= utterances <= 5
    assert found.seconds == pytest.approx(30 * (utterances + 2) / found.trial_clips)


def test_what_is_there_is_not_counted_again(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", ALONE, "session2")
    before = contents(tmp_path / "c")
    found = estimate(small_manifest, tmp_path / "c", TINY, device="cpu", batch=2)
    assert found.begun
    assert {item.name: item.count_left for item in found.features} == {"spectrogram": 20, "random-tiny": 30}
    one = estimate(small_manifest, tmp_path / "c", ALONE, device="cpu")
    assert [item.clips_left for item in one.splits] == [10, 0, 10]
    extract(small_manifest, tmp_path / "c", ALONE, device="cpu")
    done = estimate(small_manifest, tmp_path / "c", ALONE, device="cpu")
    assert (done.bytes_left, done.seconds, done.trial_clips) == (0, 0.0, 0)
    assert {name: data for name, data in contents(tmp_path / "c").items() if name in before} == before


def test_splits_and_parts(small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_SHARD_CLIPS", 3)
    found = estimate(small_manifest, tmp_path / "c", ALONE, "session2")
    assert [(item.name, item.clips) for item in found.splits] == [("session2", 10)]
    parts = [estimate(small_manifest, tmp_path / "c", ALONE, shard=(k, 3)) for k in (1, 2, 3)]
    assert sum(part.features[0].count_left for part in parts) == 30
    for k, part in enumerate(parts, start=1):
        report = extract(small_manifest, tmp_path / "c", ALONE, shard=(k, 3))
        assert report.new_clips == part.features[0].count_left == sum(item.clips_left for item in part.splits)


def test_transcripts_are_tried_too(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest, spec = spoken(small_manifest, {"Ses01_F000": " "}), of_text(tmp_path / "bert")
    found = estimate(manifest, tmp_path / "c", spec, device="cpu")
    (text,) = found.features
    assert (text.per, text.count, text.count_left, found.trial_texts, found.trial_clips) == ("utterance", 24, 24, 24, 0)
    assert found.seconds and text.seconds_each and found.seconds == pytest.approx(24 * text.seconds_each)
    extract(manifest, tmp_path / "c", spec, device="cpu")
    assert text.bytes == pytest.approx(written_feature(tmp_path / "c", "bert"), rel=0.25)
    assert estimate(manifest, tmp_path / "c", spec, device="cpu").seconds == 0


def test_nothing_is_written(small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extract(small_manifest, tmp_path / "c", ALONE, "session1")
    root = small_manifest.root
    assert root is not None
    for folder in (tmp_path / "c", tmp_path / "new" / "deeper"):
        before = sorted((path, path.stat().st_mtime_ns) for top in (tmp_path, root) for path in top.rglob("*"))
        estimate(small_manifest, folder, TINY, device="cpu", batch=2)
        assert before == sorted((path, path.stat().st_mtime_ns) for top in (tmp_path, root) for path in top.rglob("*"))


def test_what_extraction_would_refuse_is_refused(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", ALONE, "session1")
    for spec in (
        replace(ALONE, clip=ClipSpec(pad="features")),
        replace(ALONE, spectrogram=SpectrogramSpec(pre_emphasis=0.97)),
    ):
        with pytest.raises(CacheMismatchError):
            estimate(small_manifest, tmp_path / "c", spec)
    with pytest.raises(CacheError, match="expected one of"):
        estimate(small_manifest, tmp_path / "c", ALONE, "session9")
    with pytest.raises(EncoderError):
        estimate(small_manifest, tmp_path / "c", replace(TINY, encoder=EncoderSpec(str(tmp_path))), device="cpu")


def test_without_the_corpus_everything_but_the_time_is_known(small_manifest: Manifest, tmp_path: Path) -> None:
    found = estimate(small_manifest.with_root(tmp_path / "gone"), tmp_path / "c", TINY, device="cpu")
    assert found.seconds is None and found.bytes_left > 0 and "--root DIR" in found.notes[0]
    (tmp_path / "empty").mkdir()
    found = estimate(small_manifest.with_root(tmp_path / "empty"), tmp_path / "c", TINY, device="cpu")
    assert found.seconds is None and "missing: the file is not there" in found.notes[0]


def test_files_that_cannot_be_used_are_passed_over(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    for path in sorted((tmp_path / "w").glob("*.wav"))[:5]:
        path.unlink()
    found = estimate(manifest, tmp_path / "c", ALONE)
    assert found.seconds and found.trial_clips and found.notes == ()


def test_the_command(small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ("plan", "--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c")
    text = run(*words, "--encoder", "random-tiny", "--batch", "3").output
    assert "session2" in text and "30 of 30" in text and ": enough" in text and "random weights" in text
    assert "an estimate from" in text and "clips of this corpus" in text and "Nothing was written" in text
    words = (*words, "--encoder", "none")
    value = json.loads(run(*words, "--json").output)
    assert (value["fits"], value["begun"], len(value["features"])) == (True, False, 1)
    assert value["features"][0]["count_left"] == 30
    with monkeypatch.context() as patch:
        patch.setattr(module, "free_bytes", lambda path: 1000)
        text = run(*words, expect=1).output
    assert "not enough" in text and "make room" in text
    assert not (tmp_path / "c").exists()
    run("extract", *words[1:])
    assert "nothing to do" in run(*words).output
