"""A shard: a run of clips' features as one HDF5 file, and the receipt that commits it.

Layout of ``<split>-<number>.h5``: four datasets in the root group, nothing else.

    data    (N, …) float16 or float32   the features, contiguous, at a multiple of 4096 bytes
    clip    (N,)   int64                the clip's row in the cache's plan, ascending
    valid   (N,)   int32                frames of the clip that come from signal and not from padding
    digest  (N, 16) uint8               first 16 bytes of SHA-256 over the clip's bytes in ``data``

The receipt ``<split>-<number>.json`` is written last: a shard without one does not exist. It holds the SHA-256 of the
whole file and of everything but the array, so that a reader can trust the metadata after reading a few kilobytes,
map the array at its offset, and check each clip's digest when it first reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfhca_cache.errors import CacheError
from mfhca_cache.files import MAX_JSON_BYTES, parse_json, read_regular, regular_size
from mfhca_cache.manifest import Rejected
from mfhca_cache.spec import DTYPES, FORMAT_VERSION, canonical_json

DIGEST_BYTES = 16
_ALIGNMENT = 4096
_MAX_HEAD_BYTES = 64 * 2**20
#: Of the root group; the datasets have none.
_ATTRIBUTES = (b"fingerprint", b"format", b"shard")
#: What damaged or hostile bytes make h5py, NumPy and Python raise; MemoryError is a size that was only declared.
_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Receipt:
    """What was written, and how to know it again.

    Attributes:
        format: version of the cache format.
        shard: name, such as ``session1-0000``.
        fingerprint: of the feature (its settings and the encoder's weights).
        first, stop: the plan's clips that the shard answers for, stored or rejected.
        size, sha256: of the file, in bytes; 64 hex digits.
        head_sha256: of all bytes of the file but the array's.
        offset, nbytes: the array's extent in the file.
        shape, dtype: of the array.
        audio: utterance_id → SHA-256 of the audio file that the features come from.
        rejected: utterances of this shard that hold no clips, as (utterance_id, reason).
        versions: of the libraries that made it.
    """

    format: int
    shard: str
    fingerprint: str
    first: int
    stop: int
    size: int
    sha256: str
    head_sha256: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    audio: dict[str, str]
    rejected: tuple[Rejected, ...]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As JSON, with a checksum of itself, so that a damaged receipt is known for one."""
        body = json.loads(json.dumps(asdict(self)))
        return {**body, "receipt_sha256": hashlib.sha256(canonical_json(body)).hexdigest()}


@dataclass(frozen=True)
class Shard:
    """An opened shard.

    Attributes:
        data: (N, …) read-only map of the file; a clip's bytes are unchecked until its digest is.
        clip: (N,) int64 rows of the plan.
        valid: (N,) int32 valid frames.
        digest: (N, 16) uint8.
        receipt: what it was opened by.
    """

    data: np.ndarray
    clip: np.ndarray
    valid: np.ndarray
    digest: np.ndarray
    receipt: Receipt


def clip_digest(clip: np.ndarray) -> bytes:
    """First 16 bytes of SHA-256 over a clip's bytes as stored."""
    return hashlib.sha256(np.ascontiguousarray(clip).data).digest()[:DIGEST_BYTES]


def encode_shard(
    data: np.ndarray,
    clip: np.ndarray,
    valid: np.ndarray,
    *,
    name: str,
    fingerprint: str,
    extent: tuple[int, int],
    audio: dict[str, str],
    rejected: tuple[Rejected, ...],
    versions: dict[str, str],
) -> tuple[memoryview, Receipt]:
    """The bytes of a shard's file, the same for the same input, and its receipt.

    Args:
        data: (N, …) float16 or float32, as it will be stored.
        clip: (N,) rows of the plan, ascending, within ``extent``.
        valid: (N,) valid frames.
        name, fingerprint, audio, rejected, versions: see `Receipt`.
        extent: first and stop of the plan's clips that the shard answers for.
    """
    digest = np.array([list(clip_digest(row)) for row in data], dtype=np.uint8).reshape(len(data), DIGEST_BYTES)
    buffer = io.BytesIO()
    with h5py.File(
        buffer, "w", libver=("earliest", "v110"), alignment_threshold=_ALIGNMENT, alignment_interval=_ALIGNMENT
    ) as file:
        array = file.create_dataset("data", data=data)
        file.create_dataset("clip", data=clip.astype(np.int64))
        file.create_dataset("valid", data=valid.astype(np.int32))
        file.create_dataset("digest", data=digest)
        file.attrs["format"] = FORMAT_VERSION
        file.attrs["shard"] = name
        file.attrs["fingerprint"] = fingerprint
        file.flush()
        # An empty array has no place in the file.
        offset = array.id.get_offset() if data.size else 0
    content = buffer.getbuffer()
    receipt = Receipt(
        format=FORMAT_VERSION,
        shard=name,
        fingerprint=fingerprint,
        first=extent[0],
        stop=extent[1],
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        head_sha256=_head_sha256(content[:offset], content[offset + data.nbytes :]),
        offset=offset,
        nbytes=data.nbytes,
        shape=tuple(data.shape),
        dtype=str(data.dtype),
        audio=audio,
        rejected=rejected,
        versions=versions,
    )
    return content, receipt


def read_receipt(path: Path) -> Receipt:
    """Read and check a receipt.

    Raises:
        CacheError: missing, damaged, of a newer format, or describing an impossible file.
    """
    value = read_json(path)
    try:
        stated = value.pop("receipt_sha256")
        if hashlib.sha256(canonical_json(value)).hexdigest() != stated:
            raise CacheError(f"{path}: the receipt is damaged (its checksum differs); extract this shard again")
        check_format(value["format"], path)
        value["shape"] = tuple(value["shape"])
        value["rejected"] = tuple(Rejected(**item) for item in value["rejected"])
        receipt = Receipt(**value)
        _check_receipt(receipt)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CacheError(f"{path}: not a receipt of this format ({error}); extract this shard again") from error
    return receipt


def _check_receipt(receipt: Receipt) -> None:
    """A ValueError where a receipt's values are of other types than stated, or contradict each other."""
    numbers = (receipt.first, receipt.stop, receipt.size, receipt.offset, receipt.nbytes, *receipt.shape)
    words = (receipt.shard, receipt.fingerprint, receipt.sha256, receipt.head_sha256, receipt.dtype)
    named = all(isinstance(item.path, str) and isinstance(item.reason, str) for item in receipt.rejected)
    if not all(type(number) is int for number in numbers) or not all(isinstance(word, str) for word in words):
        raise ValueError("got a value of another type than a receipt has")
    if not isinstance(receipt.audio, dict) or not isinstance(receipt.versions, dict) or not named:
        raise ValueError("got audio, versions or rejected utterances in another form than a receipt has")
    if receipt.dtype not in DTYPES or len(receipt.shape) < 2 or min(numbers) < 0:
        raise ValueError("the array's shape, type and extent contradict each other")
    expected = math.prod(receipt.shape) * np.dtype(receipt.dtype).itemsize
    if expected != receipt.nbytes or receipt.offset + receipt.nbytes > receipt.size:
        raise ValueError("the array's shape, type and extent contradict each other")
    if receipt.shape[0] > receipt.stop - receipt.first:
        raise ValueError("it holds more clips than it answers for")


def open_shard(path: Path, receipt: Receipt) -> Shard:
    """Open a shard after checking its size, extent and metadata against the receipt, before HDF5 sees the file.

    Raises:
        CacheError: missing, of another size, damaged outside the array, or built of HDF5 constructions that a shard
            never has (links, filters, virtual or external storage).
    """
    try:
        size = regular_size(path)
        if size != receipt.size:
            raise CacheError(f"{path}: {size:,} bytes, the receipt says {receipt.size:,}; extract this shard again")
        if size - receipt.nbytes > _MAX_HEAD_BYTES:
            raise ValueError(f"{size - receipt.nbytes:,} bytes beside its array, expected at most {_MAX_HEAD_BYTES:,}")
        with path.open("rb") as file:
            before = file.read(receipt.offset)
            file.seek(receipt.offset + receipt.nbytes)
            after = file.read()
        if _head_sha256(before, after) != receipt.head_sha256:
            raise CacheError(f"{path}: its metadata is damaged (the digest differs); extract this shard again")
        clip, valid, digest = _read_small(path, receipt)
        if receipt.nbytes:
            data = np.memmap(path, receipt.dtype, "r", receipt.offset, receipt.shape)
        else:
            data = np.empty(receipt.shape, receipt.dtype)  # type: ignore[assignment]
    except FileNotFoundError:
        raise CacheError(f"{path}: the file is gone, its receipt is there; extract this shard again") from None
    except _DAMAGE as error:
        raise CacheError(f"{path}: not readable as a shard ({error}); extract this shard again") from error
    return Shard(data, clip, valid, digest, receipt)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file (64 hex digits), read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file of bounded size and depth, or a CacheError that names the file."""
    try:
        return parse_json(read_regular(path, limit))
    except FileNotFoundError:
        raise CacheError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CacheError(f"{path}: not readable as JSON ({error})") from error


def check_format(version: object, path: Path) -> None:
    """Refuse a format that this version does not read."""
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path}: written in format {version!r}; this mfhca-cache reads format {FORMAT_VERSION}. "
            "Update mfhca-cache, or extract again into another --cache"
        )


def _head_sha256(before: bytes | memoryview, after: bytes | memoryview) -> str:
    digest = hashlib.sha256(before)
    digest.update(after)
    return digest.hexdigest()


def _read_small(path: Path, receipt: Receipt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """clip, valid and digest, from a file that holds plain contiguous datasets and nothing else."""
    count = receipt.shape[0]
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "data": (receipt.shape, receipt.dtype),
        "clip": ((count,), "int64"),
        "valid": ((count,), "int32"),
        "digest": ((count, DIGEST_BYTES), "uint8"),
    }
    with h5py.File(path, "r") as file:
        _check_root(file.id, set(expected))
        arrays = {name: _check_dataset(file.id, name, *expected[name], receipt.size) for name in expected}
        if receipt.nbytes and arrays["data"].get_offset() != receipt.offset:
            raise ValueError("the array is not where the receipt says")
        clip, valid, digest = (h5py.Dataset(arrays[name])[...] for name in ("clip", "valid", "digest"))
    inside = count == 0 or (receipt.first <= clip[0] and clip[-1] < receipt.stop)
    if not inside or bool(np.any(np.diff(clip) <= 0)):
        raise ValueError("its clips are not in order within the receipt's range")
    if count and valid.min() < 0:
        raise ValueError("a clip has a negative number of valid frames")
    return clip, valid, digest


def _check_root(file: Any, expected: set[str]) -> None:
    """Look at the root group's links and attributes without opening or following any of them."""
    root = h5py.h5g.open(file, b"/")
    # Counted first: a list of names could be of any length.
    if root.get_num_objs() != len(expected):
        raise ValueError(f"got {root.get_num_objs()} members, expected {', '.join(sorted(expected))}")
    for name in sorted(expected):
        if not root.links.exists(name.encode()):
            raise ValueError(f"{name} is missing")
        if root.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{name} is a link to elsewhere")
    if h5py.h5a.get_num_attrs(root) != len(_ATTRIBUTES):
        raise ValueError(f"got {h5py.h5a.get_num_attrs(root)} attributes, expected {len(_ATTRIBUTES)}")
    for attribute in _ATTRIBUTES:
        found = h5py.h5a.open(root, attribute)
        classes = (h5py.h5t.INTEGER,) if attribute == b"format" else (h5py.h5t.STRING,)
        if found.get_type().get_class() not in classes or found.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            raise ValueError(f"the attribute {attribute.decode()} is of another type than a shard's")


def _check_dataset(file: Any, name: str, shape: tuple[int, ...], dtype: str, size: int) -> Any:
    """A dataset that lies plainly in the file itself. How it is stored is looked at before anything else of it:
    asking a virtual dataset for its shape already opens the files that it names."""
    if h5py.h5o.get_info(file, name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise ValueError(f"{name} is no dataset")
    found = h5py.h5d.open(file, name.encode())
    stored = found.get_create_plist()
    if stored.get_layout() != h5py.h5d.CONTIGUOUS or stored.get_external_count() or stored.get_nfilters():
        raise ValueError(f"{name} is not stored contiguously in this file")
    kind = found.get_type()
    plain = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and not kind.committed()
    if not plain or not kind.equal(h5py.h5t.py_create(np.dtype(dtype))):
        raise ValueError(f"{name} is not of type {dtype}")
    space = found.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL or space.shape != shape:
        raise ValueError(f"{name} is not of shape {shape}")
    if h5py.h5a.get_num_attrs(found):
        raise ValueError(f"{name} has attributes")
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    offset = found.get_offset()
    if nbytes and (offset is None or offset + nbytes > size):
        raise ValueError(f"{name} does not lie in this file")
    return found
