"""Shards made to harm their reader: each is refused with its reason although every digest agrees, before it costs
memory, and without a look at any other file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.descriptions import read_feature
from mfhca_cache.storage.publish import publish_json
from mfhca_cache.storage.shard import Receipt, encode_shard, open_shard, read_json, read_receipt

from . import faults

LONG = pytest.mark.faults
SHAPE = (3, 4, 5)
VALUES: dict[str, Any] = {
    "data": np.zeros(SHAPE, "f2"),
    "clip": np.arange(10, 13),
    "valid": np.full(3, 4, "i4"),
    "digest": np.zeros((3, 16), "u1"),
}
#: MiB that a refusal may cost beyond the libraries.
CHEAP = 40.0


def honest() -> tuple[bytes, Receipt]:
    content, receipt = encode_shard(
        VALUES["data"], VALUES["clip"], VALUES["valid"], name="session1-0000", fingerprint="f" * 64, extent=(10, 20),
        audio={"a": "0" * 64}, rejected=(Rejected("b", "silence: …"),), versions={"torch": "2"},
    )  # fmt: skip
    return bytes(content), receipt


def forged(path: Path, receipt: Receipt, offset: int | None = None) -> Receipt:
    """The receipt that an attacker would write for whatever lies at a path."""
    content = path.read_bytes()
    offset = receipt.offset if offset is None else offset
    head = hashlib.sha256(content[:offset] + content[offset + receipt.nbytes :]).hexdigest()
    whole = hashlib.sha256(content).hexdigest()
    return replace(receipt, size=len(content), offset=offset, head_sha256=head, sha256=whole)


def errors(work: Callable[..., Any], words: list[tuple[Any, ...]]) -> list[str]:
    """What a function raises for each of several arguments."""
    found = []
    for arguments in words:
        try:
            work(*arguments)
            found.append("nothing")
        except CacheError as error:
            found.append(str(error))
    return found


def refusals(work: Callable[..., Any], words: list[tuple[Any, ...]]) -> list[str]:
    """The errors of a process of its own, which must cost no memory and not wait for a pipe."""
    found, cost = faults.answer(errors, work, words)
    assert isinstance(found, list), found
    assert cost < CHEAP, f"{cost:.0f} MiB"
    return found


def refusal(path: Path, receipt: Receipt) -> str:
    return refusals(open_shard, [(path, receipt)])[0]


def rewritten(tmp_path: Path, change: Callable[[h5py.File, Path], None]) -> tuple[Path, Receipt]:
    """An honest shard, changed through HDF5, with a receipt that agrees. ``trap`` is a pipe: who opens it hangs."""
    content, receipt = honest()
    path, trap = tmp_path / "s.h5", tmp_path / "trap"
    path.write_bytes(content)
    os.mkfifo(trap)
    with h5py.File(path, "r+", libver=("earliest", "v110")) as file:
        change(file, trap)
        place = file.get("data", getlink=True)
        offset = None
        if isinstance(place, h5py.HardLink) and isinstance(file["data"], h5py.Dataset) and file["data"].chunks is None:
            offset = file["data"].id.get_offset()
    offset = receipt.offset if offset is None or offset + receipt.nbytes > path.stat().st_size else offset
    return path, forged(path, receipt, offset)


def instead(name: str, make: Callable[[h5py.File, Path], Any]) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, trap: Path) -> None:
        del file[name]
        made = make(file, trap)
        if made is not None:
            file[name] = made

    return change


def virtual(name: str, unlimited: bool = False) -> Callable[[h5py.File, Path], None]:
    def make(file: h5py.File, trap: Path) -> None:
        shape = VALUES[name].shape
        most = (None, *shape[1:]) if unlimited else shape
        layout = h5py.VirtualLayout(shape, VALUES[name].dtype, maxshape=most)
        layout[:] = h5py.VirtualSource(str(trap), name, shape)
        file.create_virtual_dataset(name, layout)

    return make


def external(name: str) -> Callable[[h5py.File, Path], None]:
    def make(file: h5py.File, trap: Path) -> None:
        value = VALUES[name]
        file.create_dataset(name, value.shape, value.dtype, external=[(str(trap), 0, value.nbytes)])

    return make


def of_type(name: str, kind: Any) -> Callable[[h5py.File, Path], None]:
    def make(file: h5py.File, _: Path) -> None:
        file.create_dataset(name, VALUES[name].shape, kind)

    return make


def committed_type(file: h5py.File, _: Path) -> None:
    file["kind"] = np.dtype("i8")
    file.create_dataset("clip", data=VALUES["clip"], dtype=file["kind"])
    del file["kind"]


def attribute(name: str, value: Any, kind: Any = None) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, _: Path) -> None:
        file.attrs.create(name, value, dtype=kind)

    return change


def on_dataset(file: h5py.File, _: Path) -> None:
    file["clip"].attrs["units"] = "s"


def more_members(file: h5py.File, _: Path) -> None:
    for number in range(2000):
        file[f"x{number}"] = h5py.SoftLink("/nowhere")


COMPOUND = np.dtype([("a", "i4"), ("b", "f4")])
CHANGES: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    **{
        f"external link for {name}": (instead(name, lambda _, t, n=name: h5py.ExternalLink(str(t), n)), "link")
        for name in VALUES
    },
    **{f"soft link for {name}": (instead(name, lambda *_, n=name: h5py.SoftLink("/" + n)), "link") for name in VALUES},
    **{f"external storage of {name}": (instead(name, external(name)), "not stored contig") for name in VALUES},
    **{f"virtual {name}": (instead(name, virtual(name)), "not stored contig") for name in VALUES},
    "virtual without end": (instead("clip", virtual("clip", True)), "not stored contig"),
    "chunks": (instead("data", lambda f, _: _made(f, "data", chunks=True)), "not stored contig"),
    "gzip": (instead("clip", lambda f, _: _made(f, "clip", compression="gzip")), "not stored contig"),
    "a bomb of gzip": (instead("clip", lambda f, _: _bomb(f)), "not stored contig"),
    "compact": (instead("valid", lambda f, _: _compact(f)), "not stored contig"),
    "declared terabytes": (instead("clip", lambda f, _: _declared(f)), "not of shape|not lie"),
    "never allocated": (instead("clip", of_type("clip", "i8")), "does not lie in this file"),
    "strings": (instead("clip", of_type("clip", h5py.string_dtype())), "not of type"),
    "vlen": (instead("clip", of_type("clip", h5py.vlen_dtype("i8"))), "not of type"),
    "references": (instead("clip", of_type("clip", h5py.ref_dtype)), "not of type"),
    "region references": (instead("data", of_type("data", h5py.regionref_dtype)), "not of type"),
    "enum": (instead("valid", of_type("valid", h5py.enum_dtype({"A": 1}, "i4"))), "not of type"),
    "compound": (instead("clip", of_type("clip", COMPOUND)), "not of type"),
    "opaque": (instead("clip", of_type("clip", h5py.opaque_dtype("V8"))), "not of type"),
    "arrays": (instead("clip", of_type("clip", np.dtype("(2,)i4"))), "not of type"),
    "another byte order": (instead("clip", of_type("clip", ">i8")), "not of type"),
    "a type of its own": (instead("clip", committed_type), "not of type"),
    "a group": (instead("clip", lambda f, _: f.create_group("clip") and None), "no dataset"),
    "missing": (instead("clip", lambda *_: None), "got 3 members"),
    "renamed": (instead("clip", lambda f, _: _renamed(f)), "clip is missing"),
    "members without end": (more_members, "members"),
    "attributes without end": (attribute("more", np.zeros(4000)), "attributes"),
    "an attribute of references": (attribute("shard", None, h5py.ref_dtype), "another type"),
    "an attribute of another type": (attribute("fingerprint", np.zeros(2, COMPOUND)), "another type"),
    "an attribute that is an array": (attribute("format", np.ones(9, "i8")), "another type"),
    "an attribute of a dataset": (on_dataset, "clip has attributes"),
    "clips out of order": (lambda f, _: f["clip"].write_direct(np.array([12, 11, 10])), "not in order"),
    "clips of others": (lambda f, _: f["clip"].write_direct(np.array([10, 11, 2**40])), "not in order"),
    "negative frames": (lambda f, _: f["valid"].write_direct(np.full(3, -4, "i4")), "negative number"),
}


def _made(file: h5py.File, name: str, **options: Any) -> None:
    file.create_dataset(name, data=VALUES[name], **options)


def _bomb(file: h5py.File) -> None:
    file.create_dataset("clip", (2**27,), "i8", chunks=(2**20,), compression="gzip")[0] = 1


def _compact(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file.id, b"valid", h5py.h5t.NATIVE_INT32, space, plist)


def _declared(file: h5py.File) -> None:
    file.create_dataset("clip", (2**40,), "i8")


def _renamed(file: h5py.File) -> None:
    file["clap"] = VALUES["clip"]


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    shards = [rewritten(tmp_path_factory.mktemp("shard"), change) for change, _ in CHANGES.values()]
    return dict(zip(CHANGES, refusals(open_shard, shards), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_shard_of_other_constructions_is_refused_with_its_reason(messages: dict[str, str], name: str) -> None:
    message = messages[name]
    assert any(part in message for part in CHANGES[name][1].split("|")), message
    assert "extract this shard again" in message and "s.h5" in message


def test_an_array_that_is_not_where_the_receipt_says(tmp_path: Path) -> None:
    content, receipt = honest()
    (tmp_path / "s.h5").write_bytes(content)
    moved = forged(tmp_path / "s.h5", receipt, receipt.offset - 8)
    assert "not where the receipt says" in refusal(tmp_path / "s.h5", moved)


def test_a_terabyte_that_is_only_declared_costs_nothing(tmp_path: Path) -> None:
    content, receipt = honest()
    path = tmp_path / "s.h5"
    path.write_bytes(content)
    os.truncate(path, 2**40)
    rows = (2**40 - receipt.offset) // 40
    tail = bytes(2**40 - receipt.offset - rows * 40)
    head = hashlib.sha256(content[: receipt.offset] + tail).hexdigest()
    huge = replace(receipt, size=2**40, shape=(rows, 4, 5), nbytes=rows * 40, first=0, stop=rows, head_sha256=head)
    found = refusals(open_shard, [(path, receipt), (path, replace(receipt, size=2**40)), (path, huge)])
    assert "the receipt says" in found[0]
    assert "beside its array" in found[1]
    assert "not of shape" in found[2]


def test_a_pipe_or_a_device_in_a_files_place_is_no_file(tmp_path: Path, small_cache_folder: Path) -> None:
    caches = []
    for name in ("spectrogram/session1-0000.h5", "spectrogram/session1-0000.json", "spectrogram/feature.json",
                 "utterances.csv", "cache.json"):  # fmt: skip
        for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero"), os.mkdir):
            cache = tmp_path / f"{len(caches)}"
            shutil.copytree(small_cache_folder, cache, copy_function=os.link)
            (cache / name).unlink()
            make(cache / name)
            caches.append((cache,))
    for message in refusals(_load, caches):
        assert "got a folder, a pipe or a device; expected a file" in message


def _load(cache: Path) -> None:
    open_cache(cache).load("spectrogram")


# Receipts and descriptions


def deep(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


NO_DESCRIPTIONS = {
    deep(60): "deep",
    deep(200_000): "deep",
    b"[" * 500_000: "deep",
    b'{"a": NaN}': "NaN",
    b'{"a": ' + b"9" * 6000 + b"}": "JSON",
    b'{"a": "\xff"}': "JSON",
    b'{"a": "\x00"}': "JSON",
}


def test_json_that_is_no_description(tmp_path: Path) -> None:
    paths = [(tmp_path / f"{number}.json",) for number in range(len(NO_DESCRIPTIONS) + 1)]
    for (path,), data in zip(paths, [*NO_DESCRIPTIONS, b""], strict=True):
        path.write_bytes(data)
    os.truncate(paths[-1][0], 2**36)
    for message, words in zip(refusals(read_json, paths), [*NO_DESCRIPTIONS.values(), "at most"], strict=True):
        assert words in message, message


@pytest.mark.parametrize(
    "change",
    [
        {"shard": "../session1-0000"}, {"shard": "/etc/passwd"}, {"shard": "session1-0000\0"}, {"first": 11},
        {"shape": (3, 200, 300)}, {"shape": ()}, {"shape": (True, 4, 5)}, {"shape": (2**70, 4, 5)}, {"nbytes": 2.0},
        {"offset": -1}, {"dtype": "O"}, {"dtype": 3}, {"audio": []}, {"audio": {"../../x": "0"}}, {"rejected": [7]},
        {"versions": None}, {"rejected": [{"path": "../x", "reason": "y"}]}, {"size": 10**400}, {"stop": 1e999},
        {"fingerprint": "\ud800"}, {"extra": 1},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_receipt_of_other_things_is_never_followed(
    tmp_path: Path, small_cache_folder: Path, change: dict[str, Any]
) -> None:
    cache = Path(shutil.copytree(small_cache_folder, tmp_path / "c"))
    path = cache / "spectrogram" / "session1-0000.json"
    value = json.loads(path.read_text())
    del value["receipt_sha256"]
    value |= change
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    path.write_text(json.dumps({**value, "receipt_sha256": digest}))
    with pytest.raises(CacheError, match=r"session1-0000\."):
        open_cache(cache).load("spectrogram")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 10**9]}, {"shape": []}, {"shape": [0]}, {"shape": ["3"]}, {"shape": None}, {"dtype": "O"},
        {"dtype": "float16,(1000000,)f8"}, {"clips_per_shard": 10**12}, {"clips_per_shard": 0}, {"engine": {}},
        {"engine": {"device": "cpu", "threads": 10**9, "batch": 8}}, {"engine": None}, {"source": []},
        {"random_weights": "no"}, {"kind": None}, {"settings": []},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_feature_of_other_things_is_refused(tmp_path: Path, small_cache_folder: Path, change: dict[str, Any]) -> None:
    value = json.loads((small_cache_folder / "spectrogram" / "feature.json").read_text())
    del value["sha256"]  # As an attacker would, or as one was written before there was a checksum.
    (tmp_path / "spectrogram").mkdir()
    publish_json(tmp_path / "spectrogram" / "feature.json", value)
    assert read_feature(tmp_path, "spectrogram").shape == (300, 200)
    publish_json(tmp_path / "spectrogram" / "feature.json", value | change)
    with pytest.raises(CacheError, match=r"feature\.json"):
        read_feature(tmp_path, "spectrogram")


# Anything


def check_arbitrary(path: Path, content: bytes, receipt: Receipt) -> None:
    path.write_bytes(content)
    try:
        shard = open_shard(path, receipt)
        assert shard.data.shape == receipt.shape and len(shard.clip) == len(shard.valid) == receipt.shape[0]
    except CacheError as error:
        assert str(path) in str(error)


def mutated(content: bytes, changes: list[tuple[int, int]], receipt: Receipt) -> tuple[bytes, Receipt]:
    changed = bytearray(content)
    for at, value in changes:
        changed[at] = value
    end = receipt.offset + receipt.nbytes
    head = hashlib.sha256(bytes(changed[: receipt.offset] + changed[end:])).hexdigest()
    return bytes(changed), replace(receipt, head_sha256=head)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 255)), max_size=6))
def test_mutated_shards_with_matching_receipts(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content, receipt = honest()
    content, receipt = mutated(content, changes, receipt)
    check_arbitrary(tmp_path_factory.getbasetemp() / "mutated.h5", content, receipt)


@settings(max_examples=100)
@given(st.binary(max_size=600), st.integers(0, 3), st.sampled_from([b"", b"\x89HDF\r\n\x1a\n"]))
def test_arbitrary_bytes_with_a_matching_receipt(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, rows: int, magic: bytes
) -> None:
    content = magic + content
    nbytes = rows * 40
    receipt = replace(honest()[1], shape=(rows, 4, 5), nbytes=nbytes, offset=min(len(content), 8), size=len(content))
    end = receipt.offset + nbytes
    receipt = replace(receipt, head_sha256=hashlib.sha256(content[: receipt.offset] + content[end:]).hexdigest())
    check_arbitrary(tmp_path_factory.getbasetemp() / "arbitrary.h5", content, receipt)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@settings(max_examples=150)
@given(st.sampled_from(["receipt", "feature", "cache"]), st.data())
def test_descriptions_with_any_value_changed(
    small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    names = {"receipt": "spectrogram/session1-0000.json", "feature": "spectrogram/feature.json", "cache": "cache.json"}
    value = json.loads((small_cache_folder / names[kind]).read_text())
    seals = ("sha256", "receipt_sha256")
    key = data.draw(st.sampled_from([name for name in value if name not in seals]))
    value[key] = data.draw(JSON)
    seal = "receipt_sha256" if kind == "receipt" else "sha256"
    value.pop(seal)
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    folder = tmp_path_factory.getbasetemp() / "any" / "spectrogram"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "utterances.csv").write_bytes((small_cache_folder / "utterances.csv").read_bytes())
    (folder.parent / names[kind]).write_text(json.dumps({**value, seal: digest}))
    readers: dict[str, Callable[[], Any]] = {
        "receipt": lambda: read_receipt(folder / "session1-0000.json"),
        "feature": lambda: read_feature(folder.parent, "spectrogram"),
        "cache": lambda: open_cache(folder.parent),
    }
    try:
        readers[kind]()
    except CacheError as error:
        assert str(error)
    finally:
        for name in names.values():
            (folder.parent / name).unlink(missing_ok=True)


@pytest.mark.parametrize("count", [pytest.param(20_000, marks=LONG)])
def test_thousands_of_mutated_shards_crash_no_reader(tmp_path: Path, count: int, figure: Callable[[str], None]) -> None:
    for start in range(0, count, 1000):
        assert faults.run(open_mutated, tmp_path / "s.h5", start, 1000) == 0
    figure(f"shards with 1 to 4 bytes of their HDF5 structures changed and receipts that agree: {count:,}, crashes 0")


def open_mutated(path: Path, seed: int, count: int) -> None:
    content, receipt = honest()
    generator = random.Random(seed)
    outside = range(receipt.offset, receipt.offset + receipt.nbytes)
    written = [at for at, byte in enumerate(content) if byte and at not in outside]
    for _ in range(count):
        chosen = [generator.choice(written) for _ in range(generator.choice((1, 1, 2, 4)))]
        changes = [
            (at, generator.choice((0, 1, 127, 128, 255, content[at] ^ 1 << generator.randrange(8)))) for at in chosen
        ]
        check_arbitrary(path, *mutated(content, changes, receipt))
