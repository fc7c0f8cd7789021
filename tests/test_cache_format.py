"""docs/cache-format.md is true: its code runs, its tables name what is there, and shards are of the HDF5 it names."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import FORMAT_VERSION, EncoderSpec, ExtractSpec, fingerprint
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.layout import clips_per_shard
from mfhca_cache.storage.shard import encode_shard

from .test_features import bert, of_text, spoken

PAGE = (Path(__file__).parents[1] / "docs" / "cache-format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def keys_in(title: str) -> set[str]:
    """The names in the first column of a section's tables."""
    cells = re.findall(r"^\| (`[^|]*`) \|", section(title), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def run_block(block: str, cache: Path) -> dict[str, object]:
    assert "cache/iemocap" in block
    names: dict[str, object] = {}
    exec(block.replace("cache/iemocap", str(cache)), names)
    return names


def test_every_block_of_the_page_runs(small_cache_folder: Path) -> None:
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        run_block(block, small_cache_folder)


@pytest.mark.parametrize("feature", ["spectrogram", "random-tiny"])
@pytest.mark.parametrize("split", ["session1", "session3"])
def test_twenty_lines_of_h5py_read_what_our_reader_reads(small_cache: Cache, feature: str, split: str) -> None:
    block = BLOCKS[0].replace("spectrogram", feature).replace("session1-0000", f"{split}-0000")
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    found = run_block(block, small_cache.path)["clips"]
    assert isinstance(found, list)
    table = small_cache.utterances
    loaded = small_cache.load(feature, table.loc[table["split"] == split, "utterance_id"])
    assert [name for name, _ in found] == list(loaded["clips"]["utterance_id"])
    for (_, values), expected, frames in zip(found, loaded[feature], loaded["clips"][f"valid_{feature}"], strict=True):
        np.testing.assert_array_equal(values, expected[:frames].numpy())


def test_the_page_finds_damage(small_cache_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_cache_folder, tmp_path / "copy"))
    path = copy / "spectrogram" / "session1-0000.h5"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    for block in BLOCKS[:2]:
        with pytest.raises(AssertionError):
            run_block(block, copy)


def test_the_array_is_where_the_receipt_says(small_cache: Cache) -> None:
    data = run_block(BLOCKS[2], small_cache.path)["data"]
    ids = [name for name in small_cache.utterances["utterance_id"] if name.startswith("Ses01")]
    np.testing.assert_array_equal(np.asarray(data), small_cache.load("spectrogram", ids)["spectrogram"].numpy())


def test_the_tables_name_every_key_and_no_other(small_cache_folder: Path) -> None:
    def keys(name: str) -> set[str]:
        return set(json.loads((small_cache_folder / name).read_text()))

    assert keys_in("cache.json") == keys("cache.json")
    assert keys_in("feature.json") == keys("random-tiny/feature.json") == keys("spectrogram/feature.json")
    assert keys_in("A receipt") == keys("spectrogram/session1-0000.json")
    header = (small_cache_folder / "utterances.csv").read_text().splitlines()[0].split(",")
    assert keys_in("utterances.csv and the plan") == set(header)
    assert keys_in("A shard") == {"data", "clip", "valid", "digest"}
    assert f"# The cache format, version {FORMAT_VERSION}\n" in PAGE


def test_the_plans_identity_can_be_recomputed(small_cache: Cache) -> None:
    value = json.loads((small_cache.path / "cache.json").read_text())
    with (small_cache.path / "utterances.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("utterance_id", "session", "seconds", "sample_rate", "sha256")
    assert fingerprint([[row[name] for name in columns] for row in rows]) == value["plan_sha256"]


def test_shards_are_as_long_as_the_page_says() -> None:
    assert "as many as 256 MiB hold, at most 512, at least 1" in PAGE
    assert clips_per_shard(1) == 512
    assert clips_per_shard(2**20) == 256
    assert clips_per_shard(2**30) == 1


def test_readers_pass_over_keys_that_they_do_not_know(small_cache_folder: Path, tmp_path: Path) -> None:
    assert "Readers pass over keys" in PAGE
    copy = Path(shutil.copytree(small_cache_folder, tmp_path / "copy"))
    path = copy / "spectrogram" / "feature.json"
    value = {**json.loads(path.read_text()), "later": True}
    if value.pop("sha256", None):
        value["sha256"] = fingerprint(value)
    path.write_text(json.dumps(value))
    assert len(open_cache(copy).load("spectrogram")["clips"]) == 30


def test_what_the_page_links_to_is_there() -> None:
    titles = re.findall(r"^## (.*)", PAGE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == anchors
    assert (Path(__file__).parents[1] / "benchmarks" / "old_h5py.py").exists()


def test_a_feature_of_utterances_is_as_the_page_says(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {"Ses02_F001": ""})
    extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    folder = tmp_path / "c" / "bert"
    feature, receipt = (json.loads((folder / name).read_text()) for name in ("feature.json", "session2-0000.json"))
    assert (feature["per"], feature["shape"], feature["clips_per_shard"]) == ("utterance", [0, 32], 256)
    assert (receipt["first"], receipt["stop"]) == (8, 16), "rows of the plan's utterances, not clips"
    texts = dict(zip(manifest.utterances["utterance_id"], manifest.utterances["text"], strict=True))
    run = [name for name in texts if name.startswith("Ses02")]
    assert receipt["audio"] == {name: hashlib.sha256(texts[name].encode()).hexdigest() for name in run}
    assert [item["path"] for item in receipt["rejected"]] == ["Ses02_F001"]
    with h5py.File(folder / "session2-0000.h5") as file:
        data, clip, valid = (file[name][...] for name in ("data", "clip", "valid"))
    np.testing.assert_array_equal(clip, [8, *range(10, 16)])
    assert data.shape == (7, valid.max(), 32)
    for row, tokens in zip(data, valid, strict=True):
        assert row[tokens - 1].any() and not row[tokens:].any()


def test_layers_and_means_have_the_shapes_that_the_page_says(small_manifest: Manifest, tmp_path: Path) -> None:
    for layers, pool, shape in (("all", None, [3, 149, 64]), ("all", "mean", [3, 64]), ("last", "mean", [64])):
        encoder = EncoderSpec("random-tiny", layers=layers, pool=pool)  # type: ignore[arg-type]
        spec = ExtractSpec(encoder=encoder, spectrogram=None)
        extract(small_manifest, tmp_path / "c", spec, "session1", device="cpu")
        folder = tmp_path / "c" / encoder.feature
        assert json.loads((folder / "feature.json").read_text())["shape"] == shape
        with h5py.File(folder / "session1-0000.h5") as file:
            assert list(file["data"].shape[1:]) == shape
            assert file["valid"][...].max() == 149, "frames that were averaged are counted"


# Old HDF5 in the bytes. h5py 3.8 brings HDF5 1.12, which reads nothing newer than these versions.

DATASPACE, DATATYPE, FILL_VALUE, LAYOUT, ATTRIBUTE, CONTINUATION, SYMBOLS = 1, 3, 5, 8, 12, 16, 17


def messages(content: bytes, address: int) -> Iterator[tuple[int, bytes]]:
    """(type, body) of the messages of an object header of version 1, continuations followed."""
    version, _, count, _, size = struct.unpack_from("<BBHII", content, address)
    assert version == 1, f"object header of version {version} at {address}"
    runs, seen = [(address + 16, size)], 0
    while runs:
        at, left = runs.pop(0)
        while left >= 8 and seen < count:
            kind, length = struct.unpack_from("<HH", content, at)
            body = content[at + 8 : at + 8 + length]
            if kind == CONTINUATION:
                runs.append(struct.unpack_from("<QQ", body))
            yield kind, body
            at, left, seen = at + 8 + length, left - 8 - length, seen + 1


def datasets(content: bytes) -> dict[str, int]:
    """Name → address of the object header, from the root group's symbol table."""
    assert content[:8] == b"\x89HDF\r\n\x1a\n"
    assert content[8] == 0, f"superblock of version {content[8]}"
    (root,) = struct.unpack_from("<Q", content, 64)
    (table,) = [body for kind, body in messages(content, root) if kind == SYMBOLS]
    tree, heap = struct.unpack_from("<QQ", table)
    assert content[tree : tree + 4] == b"TREE" and content[heap : heap + 4] == b"HEAP"
    (names,) = struct.unpack_from("<Q", content, heap + 24)
    (used,) = struct.unpack_from("<H", content, tree + 6)
    found = {}
    for entry in range(used):
        (node,) = struct.unpack_from("<Q", content, tree + 32 + 16 * entry)
        assert content[node : node + 5] == b"SNOD\x01"
        (count,) = struct.unpack_from("<H", content, node + 6)
        for number in range(count):
            name, header = struct.unpack_from("<QQ", content, node + 8 + 40 * number)
            found[content[names + name :].split(b"\0")[0].decode()] = header
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(300, 7, 5), (3, 2, 7, 5), (40, 5), (0, 7, 5)])
def test_shards_are_of_the_oldest_hdf5_there_is(dtype: str, shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    content, _ = encode_shard(
        data,
        np.arange(len(data)),
        np.full(len(data), 7),
        name="session1-0000",
        fingerprint="f" * 64,
        extent=(0, 512),
        audio={},
        rejected=(),
        versions={},
    )
    found = datasets(bytes(content))
    assert set(found) == {"data", "clip", "valid", "digest"}
    newest = {DATASPACE: 1, DATATYPE: 1, FILL_VALUE: 2, LAYOUT: 3, ATTRIBUTE: 1}
    for address in found.values():
        bodies = dict(messages(bytes(content), address))
        assert {DATASPACE, DATATYPE, LAYOUT} <= set(bodies)
        for kind, most in newest.items():
            if kind in bodies:
                version = bodies[kind][0] >> 4 if kind == DATATYPE else bodies[kind][0]
                assert version <= most, f"message {kind} of version {version}"
    for new in (b"OHDR", b"OCHK", b"FRHP", b"BTHD"):
        assert new not in bytes(content)[:4096]


def test_the_walk_through_the_bytes_would_notice_a_newer_file() -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(AssertionError, match="superblock of version"):
        datasets(buffer.getvalue())
