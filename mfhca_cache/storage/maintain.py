"""Taking things out of a cache: what does not verify, or a feature that is no longer wanted.

A receipt goes first and its shard after it, each under the shard's lock, so that a removal killed midway leaves a
valid cache: a shard without a receipt does not exist.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from mfhca_cache.errors import CacheError
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.check import Fault, Stray, check_shard, find_strays, is_held, plan_fault, read_features
from mfhca_cache.storage.commit import end_replacement
from mfhca_cache.storage.descriptions import read_feature, read_plan
from mfhca_cache.storage.layout import shard_path
from mfhca_cache.storage.publish import lock, sync_folder

_SHARD = re.compile(r"[a-z0-9][a-z0-9_.-]*-[0-9]{4,}")


@dataclass(frozen=True)
class Removal:
    """A file that was removed (or would be), and why."""

    path: Path
    reason: str


@dataclass
class Repair:
    """What `repair` did.

    Attributes:
        removed: files, in order; with ``dry_run`` those that would be.
        left: faults that it leaves to a person.
        busy: shards that another process is writing, not looked at.
        unknown: files that are no part of a cache, left alone.
        again: feature → splits that must be extracted again.
        dry_run: nothing was removed.
    """

    removed: list[Removal] = field(default_factory=list)
    left: list[Fault] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    again: dict[str, list[str]] = field(default_factory=dict)
    dry_run: bool = False

    def drop(self, paths: list[Path], reason: str) -> None:
        """Remove files one after the other, unless this is a dry run."""
        for path in paths:
            if path.exists():
                if not self.dry_run:
                    _unlink(path)
                self.removed.append(Removal(path, reason))

    def lacks(self, feature: str, split: str) -> None:
        """Note what to extract again."""
        splits = self.again.setdefault(feature, [])
        if split not in splits:
            splits.append(split)


def repair(folder: str | Path, *, dry_run: bool = False, progress: ProgressCallback = silent) -> Repair:
    """Reread every byte of a cache and drop what does not verify.

    Dropped: a damaged shard with its receipt, a receipt without its shard, a shard without a receipt, and what dead
    writers left. Kept, and said: intact shards of other settings or another plan, files that the system does not let
    be read, damaged descriptions, shards that another process is writing, and files that are no part of a cache.

    Args:
        folder: the cache's.
        dry_run: only say what would be done.
        progress: called a shard.

    Raises:
        CacheError: no cache, a plan that cannot be read, or a file that cannot be removed.
    """
    folder, done = Path(folder), Repair(dry_run=dry_run)
    try:
        plan = read_plan(folder)
    except CacheError as error:
        if not (folder / "cache.json").exists() and not any(folder.glob("*/feature.json")):
            raise
        raise CacheError(plan_fault(folder, error).message) from error
    features, broken = read_features(folder)
    done.left += broken
    work = [(info, shard) for info in features.values() for shard in plan.shards(info)]
    for number, (info, shard) in enumerate(work):
        progress(Progress(f"rereading {info.name}", number, len(work), "shards"))
        path = shard_path(folder, info, shard)
        if not path.exists() and not path.with_suffix(".json").exists():
            continue
        with _taken(folder, f"{info.name}.{shard.name}", dry_run) as free:
            if not free:
                done.busy.append(f"{info.name}/{shard.name}")
                continue
            if not dry_run:
                end_replacement(path.parent, shard.name)
            fault = check_shard(folder, plan, info, shard, deep=True)
            if fault and fault.kind != "damaged":
                done.left.append(fault)
            elif fault:
                done.drop([path.with_suffix(".json"), path], fault.message)
                done.lacks(info.name, shard.split)
    for stray in find_strays(folder, plan, features):
        _clear(folder, stray, done)
    return done


def _clear(folder: Path, stray: Stray, done: Repair) -> None:
    """Remove a stray file that no living writer is at work on; what is unknown is only named."""
    if stray.kind == "unknown":
        done.unknown.append(stray.path)
        return
    with _taken(folder, stray.lock, done.dry_run) as free:
        # Its writer may have come, and committed it, since it was found.
        if not free or (stray.kind == "uncommitted" and stray.path.with_suffix(".json").exists()):
            return
        if stray.kind == "temporary":
            done.drop([stray.path], "left by a writer that died")
        else:
            done.drop([stray.path], "a shard without a receipt does not exist")
            done.lacks(stray.feature, stray.split)


@dataclass(frozen=True)
class Holding:
    """What lies in a feature's folder, or in one split of it.

    Attributes:
        feature, split: which; ``split`` is None for the whole feature.
        shards: names of the shards, with or without a receipt.
        bytes: of all their files.
    """

    feature: str
    split: str | None
    shards: tuple[str, ...]
    bytes: int


def holding(folder: str | Path, feature: str, split: str | None = None) -> Holding:
    """What `remove` would take away.

    Raises:
        CacheError: no such feature or split.
    """
    folder = Path(folder)
    place = folder / feature
    there = sorted(
        item.name
        for item in (folder.iterdir() if folder.is_dir() else ())
        if item.is_dir() and not item.name.startswith(".") and any((*item.glob("feature.json"), *item.glob("*.h5")))
    )
    if feature not in there:
        raise CacheError(f"{folder}: no feature {feature!r}; this cache has: {', '.join(there) or 'none'}")
    names = {path.stem for path in place.iterdir() if path.suffix in (".h5", ".json") and _SHARD.fullmatch(path.stem)}
    if split is not None:
        plan = read_plan(folder)
        chosen = {item.name for item in plan.chosen(split)}
        names &= {shard.name for shard in plan.shards(read_feature(folder, feature), chosen)}
    files = [place / f"{name}{suffix}" for name in names for suffix in (".h5", ".json")]
    return Holding(feature, split, tuple(sorted(names)), sum(path.stat().st_size for path in files if path.exists()))


def remove(
    folder: str | Path, feature: str, split: str | None = None, *, progress: ProgressCallback = silent
) -> tuple[Holding, list[Path]]:
    """Remove a feature, or one split of it: what was removed, and the files of others that were left.

    Raises:
        CacheError: no such feature or split, or another process is at work on it (then nothing is removed, or what
            was removed before it came stays removed).
    """
    folder = Path(folder)
    place, target = folder / feature, holding(folder, feature, split)
    for name in (*target.shards, "feature"):
        if is_held(folder, f"{feature}.{name}"):
            raise CacheError(
                f"{place}: another process is writing {name}; nothing was removed. Try again when it is done"
            )
    for number, name in enumerate(target.shards):
        progress(Progress(f"removing {feature}", number, len(target.shards), "shards"))
        with _taken(folder, f"{feature}.{name}", dry_run=False) as free:
            if not free:
                raise CacheError(
                    f"{place}: another process began to write {name}; {number} of {len(target.shards)} shards are "
                    "removed. Run the same command again when it is done"
                )
            for path in (
                place / f"{name}.json",
                place / f"{name}.json.next",
                place / f"{name}.h5",
                *place.glob(f".{name}.*.tmp"),
            ):
                _unlink(path)
    if split is not None:
        return target, []
    with _taken(folder, f"{feature}.feature", dry_run=False):
        _unlink(place / "feature.json")
        for path in place.glob(".*.tmp"):
            _unlink(path)
    left = sorted(place.iterdir())
    if not left:
        with contextlib.suppress(OSError):
            place.unlink() if place.is_symlink() else place.rmdir()
    return target, left


@contextlib.contextmanager
def _taken(folder: Path, name: str, dry_run: bool) -> Iterator[bool]:
    """Hold a lock of the cache; False where another process holds it. A dry run only looks."""
    if dry_run:
        yield not is_held(folder, name)
        return
    guard = lock(folder, name)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        guard.release()


def _unlink(path: Path) -> None:
    """Remove a file, if it is there, so that it stays removed after a power cut."""
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise CacheError(f"{path}: could not be removed ({error.strerror}); is the cache read-only?") from error
