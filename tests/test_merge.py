"""Joining caches: shards of several machines, by plan and receipt."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mfhca_cache.errors import CacheError, CacheMismatchError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import ClipSpec, SpectrogramSpec
from mfhca_cache.storage import layout, merge
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.export import export_cache
from mfhca_cache.storage.merge import merge_caches

from .conftest import TINY, small_corpus
from .test_cli import run
from .test_features import bert, of_text, spoken
from .test_maintain import contents, flip, hold, receipt_of

ALONE = replace(TINY, encoder=None)


@pytest.fixture(scope="module")
def parts(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The whole cache, and three caches of a third each, of three clips a shard. Tests must not change them."""
    place = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_CLIPS", 3)
        extract(small_manifest, place / "whole", TINY, device="cpu")
        for k in (1, 2, 3):
            extract(small_manifest, place / f"part{k}", TINY, device="cpu", shard=(k, 3))
    return [place / name for name in ("whole", "part1", "part2", "part3")]


def test_parts_become_the_whole(parts: list[Path], tmp_path: Path) -> None:
    whole, *thirds = parts
    before = [contents(path) for path in thirds]
    report = merge_caches(tmp_path / "c", thirds)
    assert contents(tmp_path / "c") == contents(whole)
    assert (len(report.copied), report.there, report.faults, report.notes) == (24, 0, [], [])
    assert report.bytes == sum(path.stat().st_size for path in whole.glob("*/*.h5"))
    assert check_cache(tmp_path / "c", deep=True).faults == ()
    again = merge_caches(tmp_path / "c", thirds)
    assert (again.copied, again.there, again.bytes) == ([], 24, 0)
    assert [contents(path) for path in thirds] == before


def test_a_begun_cache_takes_in_what_it_lacks(parts: list[Path], tmp_path: Path) -> None:
    whole, one, two, three = parts
    target = Path(shutil.copytree(one, tmp_path / "c"))
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.h5")}
    report = merge_caches(target, [two])
    assert len(report.copied) == 8 and open_cache(target).missing("spectrogram")
    merge_caches(target, [three])
    assert contents(target) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_features_meet_in_one_cache(small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", ALONE)
    merge_caches(tmp_path / "c", [small_cache_folder])
    one, two = (open_cache(path).load(["spectrogram", "random-tiny"]) for path in (tmp_path / "c", small_cache_folder))
    assert torch.equal(one["random-tiny"], two["random-tiny"]) and torch.equal(one["spectrogram"], two["spectrogram"])


def test_another_plan_is_refused_with_what_differs(small_manifest: Manifest, parts: list[Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(parts[1], tmp_path / "c"))
    before = contents(target)
    extract(small_corpus(tmp_path / "w", seconds=(0.8, 1.2, 3.4, 0.9)), tmp_path / "audio", ALONE, "session1")
    extract(small_manifest, tmp_path / "clip", replace(ALONE, clip=ClipSpec(pad="features")), "session1")
    with pytest.raises(CacheMismatchError, match=r"6 utterance\(s\) of other audio bytes .*Ses01_F000"):
        merge_caches(target, [parts[2], tmp_path / "audio"])
    with pytest.raises(CacheMismatchError, match=r"clip\.pad: 'audio' → 'features'"):
        merge_caches(target, [parts[2], tmp_path / "clip"])
    with pytest.raises(CacheMismatchError, match="another plan"):
        merge_caches(tmp_path / "new", [parts[2], tmp_path / "clip"])
    assert contents(target) == before and not (tmp_path / "new").exists()


def test_other_settings_or_weights_are_refused_with_what_differs(
    small_manifest: Manifest, parts: list[Path], tmp_path: Path
) -> None:
    target = Path(shutil.copytree(parts[1], tmp_path / "c"))
    before = contents(target)
    other = replace(ALONE, spectrogram=SpectrogramSpec(pre_emphasis=0.97))
    extract(small_manifest, tmp_path / "loud", other, "session1")
    with pytest.raises(CacheMismatchError, match=r"settings\.pre_emphasis: 0\.0 → 0\.97"):
        merge_caches(target, [parts[2], tmp_path / "loud"])
    text = run("cache", "merge", target, tmp_path / "loud", expect=1).output
    assert "pre_emphasis" in text and "nothing was changed" in text
    assert contents(target) == before


def test_another_engine_is_noted_and_taken(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "a", TINY, "session1", device="cpu", batch=3)
    extract(small_manifest, tmp_path / "b", TINY, "session2", device="cpu", batch=5)
    report = merge_caches(tmp_path / "a", [tmp_path / "b"])
    assert len(report.copied) == 2
    assert any("another engine (batch: 3 → 5)" in note for note in report.notes)
    assert open_cache(tmp_path / "a").features["random-tiny"].engine["batch"] == 3
    assert "another engine" in run("cache", "merge", tmp_path / "a", tmp_path / "b").output


def test_other_labels_are_noted_and_the_targets_kept(small_manifest: Manifest, tmp_path: Path) -> None:
    table = small_manifest.utterances.copy()
    table.loc[0, "label"] = "exc"
    extract(small_manifest, tmp_path / "a", ALONE, "session1")
    extract(replace(small_manifest, utterances=table), tmp_path / "b", ALONE, "session2")
    report = merge_caches(tmp_path / "a", [tmp_path / "b"])
    assert len(report.copied) == 1 and "labels" in report.notes[0]
    assert open_cache(tmp_path / "a").utterances["label"].iloc[0] == "ang"


@pytest.mark.parametrize("damage", ["array", "head", "short", "receipt"])
def test_a_shard_that_does_not_verify_is_left_out(parts: list[Path], tmp_path: Path, damage: str) -> None:
    whole, one, two, three = parts
    broken = Path(shutil.copytree(two, tmp_path / "two"))
    shard = sorted(broken.glob("random-tiny/*.h5"))[1]
    if damage == "array":
        flip(shard, receipt_of(shard)["offset"] + 7)
    elif damage == "head":
        flip(shard, 64)
    elif damage == "short":
        shard.write_bytes(shard.read_bytes()[:5000])
    else:
        shard.with_suffix(".json").write_text("{")
    name = f"random-tiny/{shard.stem}"
    report = merge_caches(tmp_path / "c", [one, broken, three])
    assert len(report.copied) == 23 and name not in report.copied
    (fault,) = report.faults
    assert str(shard)[:-3] in fault
    assert not (tmp_path / "c" / f"{name}.json").exists() and not (tmp_path / "c" / f"{name}.h5").exists()
    text = run("cache", "merge", tmp_path / "c", broken, expect=1).output
    assert "Not taken: " in text and "mfhca cache repair" in text
    # Another source that has it whole mends it.
    mended = merge_caches(tmp_path / "c", [broken, whole])
    assert (mended.copied, mended.faults) == ([name], []) and "there all the same" in mended.notes[0]
    assert contents(tmp_path / "c") == contents(whole)


def test_a_damaged_shard_of_the_target_is_replaced_and_a_sound_one_never(parts: list[Path], tmp_path: Path) -> None:
    whole = parts[0]
    target = Path(shutil.copytree(whole, tmp_path / "c"))
    torn = target / "spectrogram" / "session2-0001.h5"
    torn.write_bytes(torn.read_bytes()[:-1])
    (target / "random-tiny" / "session1-0000.json").unlink()
    (target / "random-tiny" / ".session1-0000.h5.7-00000000.tmp").write_bytes(b"half")
    report = merge_caches(target, [whole])
    assert sorted(report.copied) == ["random-tiny/session1-0000", "spectrogram/session2-0001"]
    assert report.there == 22
    assert contents(target) == contents(whole)


def test_transcripts_meet_and_other_ones_are_left_out(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {})
    text = of_text(tmp_path / "bert")
    extract(manifest, tmp_path / "a", text, "session1", device="cpu")
    extract(manifest, tmp_path / "b", text, "session2", device="cpu")
    extract(spoken(small_manifest, {"Ses03_F000": "so you said"}), tmp_path / "other", text, "session3", device="cpu")
    report = merge_caches(tmp_path / "a", [tmp_path / "b", tmp_path / "other"])
    assert report.copied == ["bert/session2-0000"]
    (fault,) = report.faults
    assert "bert/session3-0000.json: belongs to another plan: made from other transcripts" in fault
    assert len(open_cache(tmp_path / "a").load("bert")["bert"]) == 16


class Killed(BaseException):
    """As a kill would: nothing may catch it."""


def test_a_merge_killed_at_any_step_of_publishing_goes_on(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *thirds = parts
    real, steps = (merge.publish, merge.publish_json), 0

    def step(act: int, *args: object) -> None:
        nonlocal steps
        if not steps:
            raise Killed
        steps -= 1
        real[act](*args)  # type: ignore[arg-type]

    monkeypatch.setattr(merge, "publish", lambda *args: step(0, *args))
    monkeypatch.setattr(merge, "publish_json", lambda *args: step(1, *args))
    for survived in (0, 1, 2, 3, 10, 11, 46, 47):
        target = tmp_path / f"c{survived}"
        steps = survived
        with pytest.raises(Killed):
            merge_caches(target, thirds)
        assert check_cache(target, deep=True).faults == ()
        receipts = len(list(target.glob("*/session*.json")))
        assert receipts == survived // 2
        steps = 1000
        report = merge_caches(target, thirds)
        assert (len(report.copied), report.there) == (24 - receipts, receipts)
        assert contents(target) == contents(whole)


def test_a_merge_waits_for_an_extraction_that_holds_a_shard(parts: list[Path], tmp_path: Path) -> None:
    whole, one, two, _ = parts
    target = Path(shutil.copytree(one, tmp_path / "c"))
    name = next(path.stem for path in sorted(two.glob("spectrogram/*.h5")))
    guard = hold(target, f"spectrogram.{name}")
    guard.acquire()
    reports: list[merge.MergeReport] = []
    worker = threading.Thread(target=lambda: reports.append(merge_caches(target, [two])))
    worker.start()
    for _ in range(200):
        if len(list(target.glob("*/session*.json"))) == 15:
            break
        time.sleep(0.05)
    assert not (target / "spectrogram" / f"{name}.json").exists() and worker.is_alive()
    guard.release()
    worker.join(timeout=30)
    assert len(reports[0].copied) == 8
    merge_caches(target, [whole])
    assert contents(target) == contents(whole)


def test_rejections_that_another_source_has_are_noted(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    extract(manifest, tmp_path / "b", ALONE)
    (tmp_path / "w" / "Ses01_F000.wav").unlink()
    extract(manifest, tmp_path / "a", ALONE)
    report = merge_caches(tmp_path / "a", [tmp_path / "b"])
    assert report.copied == [] and "holds 1 utterance(s)" in report.notes[0] and "Ses01_F000" in report.notes[0]
    command = report.notes[0].split("`")[1].split()
    run(*command[1:], "--yes")
    assert merge_caches(tmp_path / "a", [tmp_path / "b"]).copied == ["spectrogram/session1-0000"]
    assert open_cache(tmp_path / "a").rejected() == {}


def test_wrong_folders_are_refused(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Path(shutil.copytree(parts[1], tmp_path / "c"))
    before = contents(target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for into, sources, message in (
        (target, [parts[2], target], "is the target and a source too"),
        (target, [tmp_path / "gone"], "no cache here"),
        (tmp_path / "full", [parts[2]], "neither a cache"),
        (tmp_path / "full" / "thesis.txt", [parts[2]], "neither a cache"),
        (target, [], "nothing to merge"),
    ):
        with pytest.raises(CacheError, match=message):
            merge_caches(into, sources)
    run("cache", "merge", target, expect=2)
    monkeypatch.setattr(merge, "free_bytes", lambda path: 1000)
    with pytest.raises(CacheError, match=r"0\.00 GB are free; nothing was changed"):
        merge_caches(tmp_path / "new", [parts[2]])
    assert contents(target) == before and not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_merge_says_what_it_did(parts: list[Path], tmp_path: Path) -> None:
    text = run("cache", "merge", tmp_path / "c", parts[1], parts[2]).output
    assert "took 16 shards" in text and "0 shards there already" in text
    value = json.loads(run("cache", "merge", tmp_path / "c", parts[1], parts[3], "--json").output)
    assert (len(value["copied"]), value["there"], value["faults"]) == (8, 8, [])


@pytest.mark.parametrize(
    "left", [["utterances.csv"], [".utterances.csv.7-00000000.tmp"], ["utterances.csv", ".cache.json.7-00000000.tmp"]]
)
def test_a_merge_stopped_while_it_began_goes_on(parts: list[Path], tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "c" / ".locks").mkdir(parents=True)
    for name in left:
        (tmp_path / "c" / name).write_bytes(b"half")
    merge_caches(tmp_path / "c", [parts[0]])
    assert contents(tmp_path / "c") == contents(parts[0])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="nor an empty folder"):
        merge_caches(tmp_path / "d", [parts[0]])


def test_a_split_is_exported_whatever_became_of_another(parts: list[Path], tmp_path: Path) -> None:
    cache = Path(shutil.copytree(parts[0], tmp_path / "c"))
    (cache / "spectrogram" / "session2-0000.json").write_text("{")
    report = export_cache(open_cache(cache), tmp_path / "out", features=["spectrogram"], split="session1")
    assert report.utterances == 8
