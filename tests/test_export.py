"""A cache's features as files for other programs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mfhca_cache.errors import CacheError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.storage import export
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.export import export_cache
from mfhca_cache.storage.writers import WRITERS

from .conftest import TINY, small_corpus
from .test_cli import run
from .test_features import bert, of_text, spoken
from .test_maintain import flip, receipt_of

NAMES = ["random-tiny", "spectrogram"]


@pytest.fixture(params=[None, 300_000], ids=["in one piece", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways that a feature may be read: at once, or a few utterances at a time."""
    if request.param:
        monkeypatch.setattr(export, "_CHUNK_BYTES", request.param)


def read(path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A feature as another program reads it."""
    if path.suffix == ".npy":
        mapped = np.load(path, mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        return torch.from_numpy(np.array(mapped))
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        assert list(tensors) == [name]
        return tensors[name]
    rows = pd.read_parquet(path)["features"]
    return torch.from_numpy(np.stack(rows.to_list()).reshape(len(rows), *shape))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_exported_is_what_is_loaded(small_cache: Cache, tmp_path: Path, kind: str) -> None:
    loaded = small_cache.load(NAMES)
    report = export_cache(small_cache, tmp_path / "out", kind)
    assert (report.clips, report.utterances, report.left_out) == (30, 24, {})
    assert report.files == {name: f"{name}.{kind}" for name in NAMES}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*report.files.values(), "clips.csv", "export.json"]
    )
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    for name in NAMES:
        tensor = read(tmp_path / "out" / f"{name}.{kind}", name, tuple(loaded[name].shape[1:]))
        assert tensor.dtype == (torch.float32 if kind == "parquet" else torch.float16)
        assert torch.equal(tensor, loaded[name].to(tensor.dtype))
    clips = pd.read_csv(tmp_path / "out" / "clips.csv")
    words = small_cache.utterances.set_index("utterance_id")
    for name in ("utterance_id", "clip", "valid_samples", "valid_random-tiny", "valid_spectrogram"):
        assert list(clips[name]) == list(loaded["clips"][name])
    for name in ("speaker", "session", "label"):
        assert list(clips[name]) == list(words.loc[clips["utterance_id"], name])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_parquet_holds_what_the_rows_are(small_cache: Cache, tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    export_cache(small_cache, tmp_path / "out", "parquet", features=["random-tiny"])
    table = parquet.read_table(tmp_path / "out" / "random-tiny.parquet")
    assert json.loads(table.schema.metadata[b"shape"]) == [149, 64]
    frame = table.to_pandas().drop(columns="features").rename(columns={"valid_frames": "valid_random-tiny"})
    clips = pd.read_csv(tmp_path / "out" / "clips.csv")
    assert [list(frame[name]) for name in clips.columns] == [list(clips[name]) for name in clips.columns]


@pytest.mark.parametrize("kind", WRITERS)
def test_transcripts_are_written_one_behind_the_other(
    small_manifest: Manifest, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_CHUNK_UTTERANCES", 5)
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {"Ses01_F000": " "})
    extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    cache = open_cache(tmp_path / "c")
    loaded = cache.load("bert")
    report = export_cache(cache, tmp_path / "out", kind)
    assert (report.utterances, list(report.left_out)) == (23, ["Ses01_F000"])
    table = pd.read_csv(tmp_path / "out" / "utterances.csv")
    assert list(table["utterance_id"]) == loaded["utterances"]
    assert list(table["rows_bert"]) == [len(tokens) for tokens in loaded["bert"]]
    assert not (tmp_path / "out" / "clips.csv").exists()
    width = loaded["bert"][0].shape[1]
    if kind == "parquet":
        rows = pd.read_parquet(tmp_path / "out" / "bert.parquet")
        assert list(rows["rows"]) == list(table["rows_bert"])
        found = [torch.from_numpy(np.array(values).reshape(-1, width)) for values in rows["features"]]
    else:
        flat = read(tmp_path / "out" / f"bert.{kind}", "bert", (width,))
        assert len(flat) == table["rows_bert"].sum()
        found = [flat[row["first_bert"] :][: row["rows_bert"]] for row in table.to_dict("records")]
    assert all(torch.equal(one, two.to(one.dtype)) for one, two in zip(found, loaded["bert"], strict=True))


def test_clips_and_transcripts_together(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {"Ses01_F002": " "})
    extract(manifest, tmp_path / "c", replace(TINY, encoder=None), device="cpu")
    extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    report = export_cache(open_cache(tmp_path / "c"), tmp_path / "out")
    assert (report.utterances, report.clips) == (23, 28)
    clips, table = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("clips", "utterances"))
    assert set(clips["utterance_id"]) == set(table["utterance_id"])
    assert np.load(tmp_path / "out" / "spectrogram.npy").shape == (28, 300, 200)
    assert len(np.load(tmp_path / "out" / "bert.npy")) == table["rows_bert"].sum()


def test_an_export_says_what_it_holds(small_cache: Cache, tmp_path: Path) -> None:
    export_cache(small_cache, tmp_path / "out", features=["random-tiny"])
    value = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (value["corpus"], value["clips"], value["plan_sha256"]) == ("iemocap", 30, small_cache.plan.identity())
    feature = value["features"]["random-tiny"]
    assert (feature["file"], feature["shape"], feature["random_weights"]) == ("random-tiny.npy", [149, 64], True)
    assert feature["fingerprint"] == small_cache.features["random-tiny"].fingerprint


def test_a_split_alone(small_cache: Cache, tmp_path: Path) -> None:
    report = export_cache(small_cache, tmp_path / "out", features=["spectrogram"], split="session2")
    assert (report.clips, report.utterances) == (10, 8)
    assert set(pd.read_csv(tmp_path / "out" / "clips.csv")["session"]) == {"session2"}
    assert np.load(tmp_path / "out" / "spectrogram.npy").shape == (10, 300, 200)


def test_only_what_every_feature_holds_is_written(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=2)
    (tmp_path / "w" / "Ses01_F002.wav").unlink()
    extract(manifest, tmp_path / "c", TINY, device="cpu")
    (tmp_path / "c" / "random-tiny" / "session2-0000.json").unlink()
    cache = open_cache(tmp_path / "c")
    report = export_cache(cache, tmp_path / "out")
    assert (report.utterances, report.clips) == (7, 8)
    assert report.left_out["Ses01_F002"].startswith("missing: ")
    assert [reason for name, reason in report.left_out.items() if name.startswith("Ses02")] == ["not extracted yet"] * 8
    text = run("cache", "export", "--cache", tmp_path / "c", "-o", tmp_path / "two").output
    assert "9 utterances are left out: 8 not extracted yet, 1 missing" in text
    with pytest.raises(CacheError, match=r"no utterance of session2 has random-tiny"):
        export_cache(cache, tmp_path / "three", features=["random-tiny"], split="session2")


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_bytes_are_never_exported(small_cache_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(small_cache_folder, tmp_path / "c"))
    shard = folder / "spectrogram" / "session3-0000.h5"
    flip(shard, receipt_of(shard)["offset"] + 1000)
    with pytest.raises(CacheError, match=r"session3-0000\.h5: 1 clip\(s\) are damaged"):
        export_cache(open_cache(folder), tmp_path / "out", kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_a_folder_that_is_there_is_never_touched(small_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="is there already"):
        export_cache(small_cache, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert export_cache(small_cache, tmp_path / "empty", features=["random-tiny"]).clips == 30


def test_wrong_words_are_answered(small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        ({"format": "csv"}, "expected one of: npy, safetensors, parquet"),
        ({"features": ["mfcc"]}, "this cache has: random-tiny, spectrogram"),
        ({"split": "session9"}, "expected one of: session1"),
    ):
        with pytest.raises(CacheError, match=message):
            export_cache(small_cache, tmp_path / "out", **words)  # type: ignore[arg-type]
    monkeypatch.setattr(export, "free_bytes", lambda path: 1000)
    with pytest.raises(CacheError, match=r"0\.00 GB are free; nothing was written"):
        export_cache(small_cache, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(small_cache: Cache, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    for name in (".lock", "spectrogram.npy", "random-tiny.npy"):
        (partial / name).write_bytes(b"half")
    assert export_cache(small_cache, tmp_path / "out").clips == 30
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert np.load(tmp_path / "out" / "spectrogram.npy").shape == (30, 300, 200)


def test_two_exports_into_one_folder_do_not_meet(small_cache: Cache, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    with export.FileLock(partial / ".lock"), pytest.raises(CacheError, match="another process is exporting into"):
        export_cache(small_cache, tmp_path / "out")
    assert partial.exists() and not (tmp_path / "out").exists()


def test_an_export_that_is_stopped_leaves_nothing(small_cache: Cache, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_cache(small_cache, tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_error_says_what_to_install(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CacheError, match=r"pip install 'mfhca-cache\[parquet\]'"):
        export_cache(small_cache, tmp_path / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_what_it_wrote(small_cache_folder: Path, tmp_path: Path) -> None:
    words = ("cache", "export", "--cache", small_cache_folder, "--features", "spectrogram+random-tiny")
    text = run(*words, "-o", tmp_path / "one").output
    assert "30 clips of 24 utterances" in text and "random-tiny has random weights" in text
    value = json.loads(run(*words, "-o", tmp_path / "two", "--format", "parquet", "--json").output)
    assert (value["clips"], value["files"]["spectrogram"]) == (30, "spectrogram.parquet")
    assert "is there already" in run(*words, "-o", tmp_path / "two", expect=1).output
    run(*words, expect=2)
    run(*words, "-o", tmp_path / "x", "--format", "csv", expect=2)
