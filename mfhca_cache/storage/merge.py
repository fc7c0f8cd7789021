"""Joining caches of one plan: shards that were extracted on several machines, brought together by their receipts.

Everything that can be asked for wrongly is found before anything is written. Then shard by shard: the incoming bytes
are checked in full against their receipt, published, opened where they lie now, and committed by the receipt. A merge
that is killed goes on where it stopped, and what the target holds is never replaced while it verifies.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from mfhca_cache.errors import CacheError, CacheMismatchError
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import differences, settings
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.check import check_bytes
from mfhca_cache.storage.commit import settle, shard_receipt, whole_receipt
from mfhca_cache.storage.descriptions import read_feature, read_plan, remove_plan_leftovers, write_feature, write_plan
from mfhca_cache.storage.layout import ENGINE, FeatureInfo, Plan, ShardRange, plan_differences, shard_path
from mfhca_cache.storage.publish import LOCKS, free_bytes, lock, make_folder, publish, publish_json, remove_temporaries
from mfhca_cache.storage.shard import Receipt, open_shard

#: Left free beside the shards: receipts and descriptions.
_SPARE_BYTES = 64 * 2**20


@dataclass
class MergeReport:
    """What a merge did.

    Attributes:
        target: the cache's folder.
        copied: shards that it took in, as ``feature/shard``.
        bytes: of them.
        there: shards that the target held already.
        faults: shards that no source had whole, and that were left out.
        notes: what a person should know, such as features computed by two engines.
        seconds: that it took.
    """

    target: Path
    copied: list[str] = field(default_factory=list)
    bytes: int = 0
    there: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Incoming:
    source: Cache
    info: FeatureInfo
    shard: ShardRange
    receipt: Receipt

    @property
    def name(self) -> str:
        return f"{self.info.name}/{self.shard.name}"


def merge_caches(
    target: str | Path, sources: Sequence[str | Path], *, progress: ProgressCallback = silent
) -> MergeReport:
    """Take the shards of other caches into one.

    Args:
        target: a cache, or a folder that is not there yet.
        sources: caches of the same corpus, settings and audio; they are only read.
        progress: called a shard.

    Raises:
        CacheMismatchError: another plan, or a feature of other settings or weights; nothing was changed.
        CacheError: no cache, too little space (nothing was changed), or a write that failed.
    """
    started, folder, report = time.monotonic(), Path(target), MergeReport(Path(target))
    opened = [open_cache(path) for path in sources]
    if not opened:
        raise CacheError("nothing to merge; name one or more caches to take shards from")
    for source in opened:
        if source.path.resolve() == folder.resolve():
            raise CacheError(f"{folder} is the target and a source too; name the other caches only")
    begun = (folder / "cache.json").exists()
    if not begun and folder.exists() and not _may_begin(folder):
        raise CacheError(f"{folder}: neither a cache (cache.json is missing) nor an empty folder; name another target")
    plan = read_plan(folder) if begun else opened[0].plan
    features = open_cache(folder).features if begun else {}
    for source in opened:
        _check_plan(folder if begun else opened[0].path, plan, source, report)
        for info in source.features.values():
            _check_feature(folder, features.setdefault(info.name, info), source, info, report)
    run = _Run(folder, plan, report, progress)
    work = run.incoming(opened)
    _check_space(folder, work)
    if work or not begun:
        _begin(folder, plan, features, begun)
    run.take(work)
    run.settle()
    report.seconds = time.monotonic() - started
    return report


def _check_plan(named: Path, plan: Plan, source: Cache, report: MergeReport) -> None:
    changed = plan_differences(plan, source.plan)
    if changed:
        raise CacheMismatchError(
            f"{source.path} has another plan than {named}, and shards of two plans are never mixed; nothing was "
            "changed.\n  " + "\n  ".join(changed)
        )
    if not plan.utterances.equals(source.plan.utterances):
        report.notes.append(f"labels or other descriptions differ in {source.path}; those of {named} are kept")


def _check_feature(folder: Path, have: FeatureInfo, source: Cache, info: FeatureInfo, report: MergeReport) -> None:
    changed = differences(_kind(have), _kind(info))
    if changed:
        raise CacheMismatchError(
            f"{source.path / info.name} was made with other settings or weights than {folder / have.name}, and shards "
            "of two kinds are never mixed; nothing was changed.\n  " + "\n  ".join(changed)
        )
    before, now = ({key: item.engine.get(key) for key in ENGINE} for item in (have, info))
    engines = differences(before, now)
    if engines:
        report.notes.append(
            f"{info.name} of {source.path} was computed by another engine ({'; '.join(engines)}): "
            "the same features up to rounding"
        )


def _kind(info: FeatureInfo) -> dict[str, object]:
    """What two features must agree in: all but the engine, and where an encoder of the same weights came from."""
    return {key: value for key, value in settings(info).items() if key not in ("name", "engine", "source")}


@dataclass
class _Run:
    """What a merge carries from shard to shard."""

    folder: Path
    plan: Plan
    report: MergeReport
    progress: ProgressCallback
    done: set[str] = field(default_factory=set)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def incoming(self, sources: Sequence[Cache]) -> list[_Incoming]:
        """The shards that the target lacks, each from every source that has it, in the sources' order."""
        work = []
        for source in sources:
            for info in source.features.values():
                for shard in self.plan.shards(info):
                    try:
                        # By the target's plan: what was made from other transcripts than its own is left out.
                        receipt = shard_receipt(source.path, self.plan, info, shard)
                    except CacheError as error:
                        self.failed.append((f"{info.name}/{shard.name}", str(error)))
                        continue
                    if receipt is None:
                        continue
                    item = _Incoming(source, info, shard, receipt)
                    mine = self.committed(item)
                    if mine is None:
                        work.append(item)
                    else:
                        self.done.add(item.name)
                        self.compare(item, mine)
        self.report.there = len(self.done)
        return work

    def committed(self, item: _Incoming) -> Receipt | None:
        """The target's own receipt of a shard that is whole there, or None."""
        return whole_receipt(self.folder, self.plan, item.info, item.shard)

    def compare(self, item: _Incoming, mine: Receipt) -> None:
        """Note what a source's shard would have had over the target's own."""
        regained = {r.path for r in mine.rejected} - {r.path for r in item.receipt.rejected}
        if regained:
            self.report.notes.append(
                f"{item.name}: {item.source.path} holds {len(regained)} utterance(s) that {self.folder} has rejected, "
                f"such as {min(regained)}; to take them, remove that split (`mfhca cache rm {item.info.name} --split "
                f"{item.shard.split} --cache {self.folder}`) and merge again"
            )

    def take(self, work: Sequence[_Incoming]) -> None:
        """Publish shard by shard; those that another process holds, after it has let go of them."""
        left, total = list(work), len({item.name for item in work})
        before = len(self.done)
        for patient in (False, True):
            held = []
            for item in left:
                if item.name in self.done:
                    continue
                stage = f"merging {item.info.name} from {item.source.path}"
                count = len(self.done) - before
                self.progress(Progress(stage, count, total, "shards", bytes_written=self.report.bytes))
                guard = lock(self.folder, f"{item.info.name}.{item.shard.name}")
                try:
                    guard.acquire(timeout=-1 if patient else 0)
                except Timeout:
                    held.append(item)
                    continue
                try:
                    self.publish(item)
                finally:
                    guard.release()
            left = held

    def publish(self, item: _Incoming) -> None:
        """Check a source's shard in full and publish it; its lock in the target is held."""
        path = shard_path(self.folder, item.info, item.shard)
        settle(path.parent, item.shard.name)
        if self.committed(item):
            self.report.there += 1
            self.done.add(item.name)
            return
        origin = shard_path(item.source.path, item.info, item.shard)
        try:
            check_bytes(origin, item.receipt, deep=False)
            content = origin.read_bytes()
            if hashlib.sha256(content).hexdigest() != item.receipt.sha256:
                raise CacheError(f"{origin}: its bytes have changed since it was written (the SHA-256 differs)")
        except (CacheError, OSError) as error:
            self.failed.append((item.name, str(error)))
            return
        # A receipt that is there belongs to no whole shard: without it, a merge killed here leaves none in doubt.
        path.with_suffix(".json").unlink(missing_ok=True)
        publish(path, content)
        open_shard(path, item.receipt)
        publish_json(path.with_suffix(".json"), item.receipt.to_json())
        self.done.add(item.name)
        self.report.copied.append(item.name)
        self.report.bytes += item.receipt.size

    def settle(self) -> None:
        """A shard that one source had damaged and another whole is no fault of the merge."""
        for name, message in self.failed:
            if name in self.done:
                self.report.notes.append(f"{message}; the shard is there all the same")
            else:
                self.report.faults.append(message)


def _check_space(folder: Path, work: Sequence[_Incoming]) -> None:
    needed = sum({item.name: item.receipt.size for item in work}.values())
    free = free_bytes(folder)
    if needed and needed + _SPARE_BYTES > free:
        raise CacheError(
            f"{folder}: the shards need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; nothing was changed. "
            "Make room, or merge into a folder on another disk"
        )


def _may_begin(folder: Path) -> bool:
    """Whether a folder is empty, or holds nothing but what a merge left that was stopped while it began."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()} - {LOCKS, "utterances.csv"}
    return all(name.startswith((".utterances.csv.", ".cache.json.")) and name.endswith(".tmp") for name in names)


def _begin(folder: Path, plan: Plan, features: dict[str, FeatureInfo], begun: bool) -> None:
    """Write the plan of a new target, and the descriptions of features that are new to it."""
    make_folder(folder)
    if not begun:
        with lock(folder, "plan"):
            if (folder / "cache.json").exists():
                raise CacheError(f"{folder}: another process has begun a cache here meanwhile; run the merge again")
            remove_plan_leftovers(folder)
            write_plan(folder, plan)
    for info in features.values():
        with lock(folder, f"{info.name}.feature"):
            remove_temporaries(folder / info.name, "feature.json")
            if not (folder / info.name / "feature.json").exists():
                write_feature(folder, info)
            elif read_feature(folder, info.name).fingerprint != info.fingerprint:
                raise CacheMismatchError(f"{folder / info.name}: another process has begun it otherwise meanwhile")
