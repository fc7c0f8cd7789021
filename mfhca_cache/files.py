"""Reading files that others may have written: regular files only, of bounded size, before anything is believed.

A pipe or a device in a file's place would make a reader wait for ever or fill the memory.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

from mfhca_cache.spec import canonical_json

#: A few megabytes of ``[[],[],…`` become a hundred times as many in memory; nothing of ours is near this.
MAX_JSON_BYTES = 8 * 2**20
MAX_JSON_DEPTH = 50
_SEAL = "sha256"


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: missing or not readable.
        ValueError: a folder, pipe or device, or larger than the limit.
    """
    size = regular_size(path)
    if size <= limit:
        with path.open("rb") as file:
            # One byte more than there should be, not the limit: Python makes room for all that it is asked to read.
            data = file.read(size + 1)
            if len(data) > size:
                data += file.read(limit + 1 - len(data))
        size = max(size, len(data))
    if size > limit:
        raise ValueError(f"got {size:,} bytes; expected at most {limit:,}")
    return data


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        OSError: missing or not to be looked at.
        ValueError: a folder, pipe or device.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("got a folder, a pipe or a device; expected a file")
    return status.st_size


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth, without NaN and infinities.

    Raises:
        ValueError: anything else.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep") from None
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    # Most of what is read has not as many brackets as it might have levels.
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return value
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        lists = [item for item in level if isinstance(item, list)]
        lists += [list(item.values()) for item in level if isinstance(item, dict)]
        level = [child for children in lists for child in children]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"got {name}; expected a number")


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The object with a SHA-256 of itself, so that a flipped bit in its file is noticed."""
    return {**value, _SEAL: hashlib.sha256(canonical_json(value)).hexdigest()}


def is_intact(value: dict[str, Any]) -> bool:
    """Whether an object is as it was when it was sealed; True for one that never was.

    Raises:
        ValueError: it cannot be spelled as JSON (a lone surrogate).
    """
    body = {key: item for key, item in value.items() if key != _SEAL}
    return _SEAL not in value or hashlib.sha256(canonical_json(body)).hexdigest() == value[_SEAL]


def leads_outside(root: Path, path: Path) -> bool:
    """Whether a path, with its symbolic links resolved, lies outside the root, which may be a link itself."""
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):
        return True  # A link that loops leads nowhere.
