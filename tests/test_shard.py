from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.publish import publish, publish_json
from mfhca_cache.storage.shard import (
    Receipt,
    clip_digest,
    encode_shard,
    file_sha256,
    open_shard,
    read_receipt,
)


def make(count: int = 3, dtype: str = "float16") -> tuple[memoryview, Receipt]:
    data = np.random.default_rng(0).standard_normal((count, 4, 5)).astype(dtype)
    return encode_shard(
        data,
        np.arange(10, 10 + count),
        np.full(count, 4),
        name="session1-0000",
        fingerprint="f" * 64,
        extent=(10, 20),
        audio={"a": "0" * 64},
        rejected=(Rejected("b", "silence: the file is silent from end to end"),),
        versions={"torch": "2"},
    )


def write(folder: Path, content: memoryview | bytes, receipt: Receipt) -> Path:
    publish(folder / "s.h5", content)
    publish_json(folder / "s.json", receipt.to_json())
    return folder / "s.h5"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    content, receipt = make(dtype=dtype)
    path = write(tmp_path, content, receipt)
    again = read_receipt(tmp_path / "s.json")
    assert again == receipt
    shard = open_shard(path, again)
    expected = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    np.testing.assert_array_equal(shard.data, expected)
    np.testing.assert_array_equal(shard.clip, [10, 11, 12])
    np.testing.assert_array_equal(shard.valid, [4, 4, 4])
    assert [row.tobytes() for row in shard.digest] == [clip_digest(row) for row in expected]
    assert file_sha256(path) == receipt.sha256


def test_the_same_input_gives_the_same_bytes() -> None:
    assert bytes(make()[0]) == bytes(make()[0])


def test_h5py_alone_reads_a_shard(tmp_path: Path) -> None:
    content, receipt = make()
    with h5py.File(write(tmp_path, content, receipt), "r") as file:
        assert file["data"].shape == (3, 4, 5)
        assert file["data"].chunks is None
        assert file.attrs["shard"] == "session1-0000"


def test_the_array_starts_on_a_page(tmp_path: Path) -> None:
    _, receipt = make(count=64 * 1024)
    assert receipt.offset % 4096 == 0
    assert receipt.nbytes == 64 * 1024 * 20 * 2


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    content, receipt = make(count=0)
    shard = open_shard(write(tmp_path, content, receipt), receipt)
    assert shard.data.shape == (0, 4, 5)


def test_every_byte_outside_the_array_is_checked(tmp_path: Path) -> None:
    content, receipt = make()
    path = tmp_path / "s.h5"
    outside = [*range(0, receipt.offset, 97), *range(receipt.offset + receipt.nbytes, receipt.size, 13)]
    for position in outside:
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match="digest differs"):
            open_shard(path, receipt)


@given(st.integers(min_value=0))
def test_every_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    content, receipt = make()
    path = tmp_path_factory.mktemp("cut") / "s.h5"
    path.write_bytes(bytes(content)[: cut % receipt.size])
    with pytest.raises(CacheError, match="bytes, the receipt says"):
        open_shard(path, receipt)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"gone\.h5.*extract this shard again"):
        open_shard(tmp_path / "gone.h5", make()[1])


def test_a_damaged_receipt_is_refused(tmp_path: Path) -> None:
    _, receipt = make()
    value = receipt.to_json()
    value["offset"] += 2
    (tmp_path / "s.json").write_text(json.dumps(value))
    with pytest.raises(CacheError, match="checksum differs"):
        read_receipt(tmp_path / "s.json")


@pytest.mark.parametrize(
    "change",
    [
        {"nbytes": 2**50},
        {"offset": -8},
        {"shape": (2**40, 4, 5)},
        {"shape": (-3, 4, 5)},
        {"dtype": "object"},
        {"dtype": "float64"},
    ],
)
def test_an_impossible_receipt_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    forged = replace(make()[1], **change)  # type: ignore[arg-type]
    (tmp_path / "s.json").write_text(json.dumps(forged.to_json()))
    with pytest.raises(CacheError, match="not a receipt"):
        read_receipt(tmp_path / "s.json")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    forged = replace(make()[1], format=99)
    (tmp_path / "s.json").write_text(json.dumps(forged.to_json()))
    with pytest.raises(CacheError, match="format 99"):
        read_receipt(tmp_path / "s.json")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_a_receipt_or_an_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "s.json"
    path.write_text(json.dumps(value))
    with pytest.raises(CacheError):
        read_receipt(path)


def forge(path: Path, receipt: Receipt) -> Receipt:
    """A receipt that agrees with whatever file lies at path, as an attacker would write it."""
    import hashlib

    content = path.read_bytes()
    end = receipt.offset + receipt.nbytes
    head = hashlib.sha256(content[: receipt.offset] + content[end:]).hexdigest()
    return replace(receipt, size=len(content), head_sha256=head)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "chunked", "more"])
def test_constructions_that_reach_elsewhere_are_refused_even_with_a_matching_receipt(tmp_path: Path, kind: str) -> None:
    content, receipt = make()
    path = write(tmp_path, content, receipt)
    values = np.zeros((3, 4, 5), np.float16)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = values
    with h5py.File(path, "r+") as file:
        if kind == "more":
            file["extra"] = np.zeros(3)
        else:
            del file["data"]
        if kind == "external link":
            file["data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/data")
        elif kind == "soft link":
            file["elsewhere"] = values
            file["data"] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            file.create_dataset("data", (3, 4, 5), "f2", external=[(str(tmp_path / "other.h5"), 0, 240)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 4, 5), "f2")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", (3, 4, 5))
            file.create_virtual_dataset("data", layout)
        elif kind == "chunked":
            file.create_dataset("data", data=values, chunks=True)
    with pytest.raises(CacheError, match="not readable as a shard"):
        open_shard(path, forge(path, receipt))


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match="No space left on device"):
        publish(tmp_path / "s.h5", b"bytes")
    assert list(tmp_path.iterdir()) == []
