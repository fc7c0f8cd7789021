"""Whether what lies in a cache's folder is what it should be: faults, and files that belong to nothing.

Shallow: descriptions, receipts, sizes, extents, and the digests of everything but the arrays. Deep: every byte.
Nothing is changed here; `mfhca_cache.storage.maintain` does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from mfhca_cache.errors import CacheError
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.commit import disk_refuses, is_committed, shard_receipt
from mfhca_cache.storage.descriptions import read_feature, read_plan
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, shard_path
from mfhca_cache.storage.publish import LOCKS
from mfhca_cache.storage.shard import Receipt, file_sha256, read_metadata, read_receipt

#: A writer's temporary file: a dot, the name it will have, and what tells writers apart.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[^.]+\.tmp")

Kind = Literal["damaged", "foreign", "unreadable", "description"]


@dataclass(frozen=True)
class Fault:
    """Something that does not verify.

    Attributes:
        path: the file at fault.
        message: what is wrong with it; names the file.
        kind: ``damaged`` (a shard that is not what its receipt says), ``foreign`` (an intact shard of other settings
            or another plan), ``unreadable`` (the disk or the permissions do not let it be read), or ``description``
            (cache.json, utterances.csv or a feature.json).
        feature, shard, split: which shard, where it is one.
    """

    path: Path
    message: str
    kind: Kind
    feature: str = ""
    shard: str = ""
    split: str = ""


@dataclass(frozen=True)
class Stray:
    """A file that the cache does not count as its own.

    Attributes:
        path: the file.
        kind: ``uncommitted`` (a shard without a receipt), ``temporary`` (left by a writer that died), or ``unknown``.
        lock: name of the lock of whoever would write it; empty where it is unknown.
        feature, split: of a shard without a receipt.
    """

    path: Path
    kind: Literal["uncommitted", "temporary", "unknown"]
    lock: str = ""
    feature: str = ""
    split: str = ""


@dataclass(frozen=True)
class Findings:
    """What a look through a cache found.

    Attributes:
        faults: what does not verify.
        strays: files that belong to nothing; no fault.
        shards: with a receipt, looked at.
        bytes: of their files.
    """

    faults: tuple[Fault, ...]
    strays: tuple[Stray, ...]
    shards: int
    bytes: int


def check_cache(folder: str | Path, *, deep: bool = False, progress: ProgressCallback = silent) -> Findings:
    """Check all of a cache that is there; what is not extracted yet is no fault.

    Args:
        folder: the cache's.
        deep: reread every byte; else receipts, sizes, extents and the digests of everything but the arrays.
        progress: called a shard.

    Raises:
        CacheError: the folder holds no trace of a cache.
    """
    folder = Path(folder)
    try:
        plan = read_plan(folder)
    except CacheError as error:
        if not (folder / "cache.json").exists() and not any(folder.glob("*/feature.json")):
            raise
        return Findings((plan_fault(folder, error),), tuple(find_strays(folder, None, {})), 0, 0)
    features, broken = read_features(folder)
    faults, shards, size = list(broken), 0, 0
    work = [(info, shard) for info in features.values() for shard in plan.shards(info)]
    for number, (info, shard) in enumerate(work):
        progress(Progress(f"{'rereading' if deep else 'checking'} {info.name}", number, len(work), "shards"))
        path = shard_path(folder, info, shard)
        if not is_committed(path.parent, shard.name):
            continue
        fault = check_shard(folder, plan, info, shard, deep=deep)
        shards += 1
        size += path.stat().st_size if path.exists() else 0
        # Whoever holds its lock is replacing it.
        if fault and not is_held(folder, f"{info.name}.{shard.name}"):
            faults.append(fault)
    progress(Progress("checked", len(work), len(work), "shards"))
    return Findings(tuple(faults), tuple(find_strays(folder, plan, features)), shards, size)


def read_features(folder: Path) -> tuple[dict[str, FeatureInfo], list[Fault]]:
    """Every feature whose description can be read, and a fault for each other."""
    features: dict[str, FeatureInfo] = {}
    faults = []
    for path in sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")):
        description = path / "feature.json"
        if description.exists():
            try:
                features[path.name] = read_feature(folder, path.name)
            except CacheError as error:
                faults.append(Fault(description, str(error), "description", path.name))
        elif any(path.glob("*.h5")):
            message = (
                f"{description}: no such file, and shards lie beside it; put it back, or run the `mfhca extract` that "
                "made them: what has the same settings and weights is kept"
            )
            faults.append(Fault(description, message, "description", path.name))
    return features, faults


def plan_fault(folder: Path, error: CacheError) -> Fault:
    """The fault of a cache whose plan cannot be read, with how to get the plan again."""
    message = (
        f"{error}. No shard can be placed without the plan: put cache.json and utterances.csv back from a copy, or "
        "run `mfhca extract --encoder none` with the same manifest and options into a new --cache, and copy the "
        "two files from there (they are written first)"
    )
    return Fault(folder / "cache.json", message, "description")


def check_shard(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange, *, deep: bool) -> Fault | None:
    """What is wrong with a shard that has a receipt; None where nothing is, or there is no receipt."""
    path = shard_path(folder, info, shard)
    kind: Kind
    try:
        receipt = shard_receipt(folder, plan, info, shard)
        if receipt is None:
            return None
        check_bytes(path, receipt, deep=deep)
    except (CacheError, OSError) as error:
        kind = "damaged"
        if disk_refuses(error) or (path.is_symlink() and not path.exists()):
            kind = "unreadable"
        elif _vouches(path, deep):
            kind = "foreign"
        at = path.with_suffix(".json") if str(error).startswith(str(path.with_suffix(".json"))) else path
        message = str(error) if isinstance(error, CacheError) else f"{path}: could not be read ({error.strerror})"
        return Fault(at, message, kind, info.name, shard.name, shard.split)
    return None


def check_bytes(path: Path, receipt: Receipt, *, deep: bool) -> None:
    """Check a shard's file against its receipt.

    Raises:
        CacheError: it is not what the receipt says.
        OSError: it could not be read.
    """
    read_metadata(path, receipt)
    if deep and file_sha256(path) != receipt.sha256:
        raise CacheError(
            f"{path}: its bytes have changed since it was written (the SHA-256 differs); "
            "`mfhca cache repair` drops it, and `mfhca extract` makes it anew"
        )


def find_strays(folder: Path, plan: Plan | None, features: dict[str, FeatureInfo]) -> Iterator[Stray]:
    """Files that belong to nothing and that no living writer is at work on; without a plan, temporaries alone."""
    for path in sorted(folder.glob(".*.tmp")):
        if _TEMPORARY.fullmatch(path.name) and not is_held(folder, "plan"):
            yield Stray(path, "temporary", "plan")
    for place in sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")):
        info = features.get(place.name)
        shards = {shard.name: shard for shard in plan.shards(info)} if plan and info else {}
        for path in sorted(place.iterdir()):
            stray = _stray(place.name, path, shards)
            if stray and (info or stray.kind == "temporary") and not (stray.lock and is_held(folder, stray.lock)):
                yield stray


def _stray(feature: str, path: Path, shards: dict[str, ShardRange]) -> Stray | None:
    temporary = _TEMPORARY.fullmatch(path.name)
    if temporary:
        # feature.json is written under the lock FEATURE.feature, a shard and its receipt under FEATURE.SHARD.
        return Stray(path, "temporary", f"{feature}.{Path(temporary['name'].removesuffix('.next')).stem}", feature)
    # The receipt that was to follow, see `mfhca_cache.storage.commit`.
    if path.name.removesuffix(".json.next") in shards:
        return None
    known = shards.get(path.stem)
    if path.name == "feature.json" or (known and path.suffix == ".json"):
        return None
    if known and path.suffix == ".h5":
        if is_committed(path.parent, path.stem):
            return None
        return Stray(path, "uncommitted", f"{feature}.{path.stem}", feature, known.split)
    return Stray(path, "unknown", feature=feature)


def is_held(folder: Path, name: str) -> bool:
    """Whether some process holds a cache's lock. Nothing is made; who cannot write the cache sees no holder."""
    path = folder / LOCKS / f"{name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _vouches(path: Path, deep: bool) -> bool:
    """Whether a shard's own receipt vouches for it, whatever cache the two belong to."""
    try:
        check_bytes(path, read_receipt(path.with_suffix(".json")), deep=deep)
    except (CacheError, OSError):
        return False
    return True
