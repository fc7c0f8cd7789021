from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mfhca_cache.errors import CacheError
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.layout import clips_per_shard


@pytest.fixture
def copy(small_cache_folder: Path, tmp_path: Path) -> Path:
    """A cache of its own for a test that damages it."""
    return Path(shutil.copytree(small_cache_folder, tmp_path / "moved" / "elsewhere"))


def test_load_gives_tensors_and_says_whose_they_are(small_cache: Cache) -> None:
    loaded = small_cache.load(["spectrogram", "random-tiny"])
    assert set(loaded) == {"spectrogram", "random-tiny", "clips"}
    assert loaded["spectrogram"].shape == (30, 300, 200)
    assert loaded["random-tiny"].shape == (30, 149, 64)
    assert loaded["spectrogram"].dtype == torch.float16
    assert list(loaded["clips"].columns) == [
        "utterance_id", "clip", "valid_samples", "valid_spectrogram", "valid_random-tiny",
    ]  # fmt: skip
    assert len(loaded["clips"]) == 30


def test_ids_choose_and_order_what_is_loaded(small_cache: Cache) -> None:
    everything = small_cache.load("spectrogram")
    ids = ["Ses03_M002", "Ses01_F000", "Ses02_F002"]
    some = small_cache.load("spectrogram", ids)
    assert list(some["clips"]["utterance_id"]) == [ids[0], ids[0], ids[1], ids[2], ids[2]]
    assert list(some["clips"]["clip"]) == [0, 1, 0, 0, 1]
    for number, row in some["clips"].iterrows():
        whole = everything["clips"]
        place = np.flatnonzero((whole["utterance_id"] == row["utterance_id"]) & (whole["clip"] == row["clip"]))[0]
        assert torch.equal(some["spectrogram"][number], everything["spectrogram"][place])


def test_no_ids_load_nothing(small_cache: Cache) -> None:
    assert small_cache.load("spectrogram", [])["spectrogram"].shape == (0, 300, 200)


def test_utterances_are_a_table_that_cannot_change_the_cache(small_cache: Cache) -> None:
    table = small_cache.utterances
    assert {"utterance_id", "speaker", "session", "label", "split", "clips", "first_clip"} <= set(table.columns)
    table["speaker"] = "nobody"
    assert set(small_cache.utterances["speaker"]) == {"1F", "1M", "2F", "2M", "3F", "3M"}


def test_unknown_names_are_answered_with_the_valid_ones(small_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no feature 'mfcc'; this cache has: random-tiny, spectrogram"):
        small_cache.load("mfcc")
    with pytest.raises(CacheError, match="no utterance 'Ses09_F000'"):
        small_cache.load("spectrogram", ["Ses09_F000"])
    with pytest.raises(CacheError, match=r"no cache here \(cache\.json is missing\)"):
        open_cache(tmp_path)


def test_a_cache_opens_wherever_it_is_moved(copy: Path, small_cache: Cache) -> None:
    moved = open_cache(copy)
    assert moved.verify() == []
    assert torch.equal(moved.load("spectrogram")["spectrogram"], small_cache.load("spectrogram")["spectrogram"])


def test_a_cache_outlives_pickling(small_cache: Cache) -> None:
    again = pickle.loads(pickle.dumps(small_cache))
    assert torch.equal(again.load("spectrogram")["spectrogram"], small_cache.load("spectrogram")["spectrogram"])


def test_a_bit_flipped_anywhere_in_an_array_is_never_returned(copy: Path) -> None:
    receipt = json.loads((copy / "spectrogram" / "session1-0000.json").read_text())
    path = copy / "spectrogram" / "session1-0000.h5"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(receipt["offset"], receipt["offset"] + receipt["nbytes"], 12):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        cache = open_cache(copy)
        with pytest.raises(CacheError, match=r"session1-0000\.h5: 1 clip\(s\) are damaged"):
            cache.load("spectrogram")
        assert len(cache.verify()) == 1
        row = (position - receipt["offset"]) // (300 * 200 * 2)
        owner = open_cache(copy).utterances["first_clip"].searchsorted(row, side="right") - 1
        others = [name for n, name in enumerate(cache.utterances["utterance_id"]) if n != owner]
        assert len(cache.load("spectrogram", others)["clips"]) >= 28


def test_a_shard_without_a_receipt_does_not_exist(copy: Path) -> None:
    (copy / "random-tiny" / "session2-0000.json").unlink()
    cache = open_cache(copy)
    assert cache.missing("random-tiny") == {"session2": 1}
    assert cache.missing("spectrogram") == {}
    assert len(cache.load("random-tiny")["clips"]) == 20
    assert len(cache.load(["spectrogram", "random-tiny"])["clips"]) == 20
    assert len(cache.load("spectrogram")["clips"]) == 30


def test_a_receipt_without_its_shard_is_said(copy: Path) -> None:
    (copy / "spectrogram" / "session2-0000.h5").unlink()
    with pytest.raises(CacheError, match=r"the file is gone"):
        open_cache(copy).load("spectrogram")


def test_shards_of_another_feature_are_refused(copy: Path) -> None:
    for suffix in ("h5", "json"):
        shutil.copy(copy / "spectrogram" / f"session1-0000.{suffix}", copy / "random-tiny" / f"session1-0000.{suffix}")
    with pytest.raises(CacheError, match="other settings"):
        open_cache(copy).load("random-tiny")


def test_a_changed_table_of_utterances_is_refused(copy: Path) -> None:
    path = copy / "utterances.csv"
    path.write_text(path.read_text().replace("Ses01_F000,", "Ses01_F999,", 1))
    with pytest.raises(CacheError, match="other utterances or audio"):
        open_cache(copy)


@pytest.mark.parametrize("name", ["cache.json", "spectrogram/feature.json"])
def test_damaged_descriptions_are_refused(copy: Path, name: str) -> None:
    for content in (b"", b"{}", b"[]", b"\xff\xfe", b'{"format": 2}', b'{"format": 1}'):
        (copy / name).write_bytes(content)
        with pytest.raises(CacheError):
            open_cache(copy)


def test_a_fingerprint_that_is_not_its_settings_is_refused(copy: Path) -> None:
    path = copy / "spectrogram" / "feature.json"
    value = json.loads(path.read_text())
    value["settings"]["hop"] = 80
    path.write_text(json.dumps(value))
    with pytest.raises(CacheError, match="fingerprint is not that of its settings"):
        open_cache(copy)


def test_shards_are_bounded_in_clips_and_bytes() -> None:
    assert clips_per_shard(149 * 768 * 2) == 512
    assert clips_per_shard(13 * 149 * 768 * 2) == 90
    assert clips_per_shard(2**40) == 1
