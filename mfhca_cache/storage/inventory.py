"""What is in a cache, at a glance: from its descriptions and receipts, without opening a shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.errors import CacheError, StaleShardError
from mfhca_cache.storage.check import Fault, read_features
from mfhca_cache.storage.commit import shard_receipt
from mfhca_cache.storage.descriptions import read_plan
from mfhca_cache.storage.layout import FeatureInfo, Plan, shard_path


@dataclass(frozen=True)
class FeatureListing:
    """One feature of a cache.

    Attributes:
        info: what it is.
        rows: clips (or utterances, for a feature of utterances) that lie in the cache.
        planned: of them.
        rejected: utterances that extraction rejected.
        shards: planned.
        missing: split → shards that are not extracted yet.
        damaged: shards whose receipt does not fit, or whose file is gone or of another size.
        bytes: of its files.
    """

    info: FeatureInfo
    rows: int
    planned: int
    rejected: int
    shards: int
    missing: dict[str, int]
    damaged: int
    bytes: int

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing and not self.damaged


@dataclass(frozen=True)
class Listing:
    """A cache.

    Attributes:
        path: its folder.
        plan: which clips there are.
        seconds: of speech, over all utterances of the plan.
        features: in the order of their names.
        faults: descriptions that cannot be read.
        bytes: of all files in the folder.
    """

    path: Path
    plan: Plan
    seconds: float
    features: tuple[FeatureListing, ...]
    faults: tuple[Fault, ...]
    bytes: int


def list_cache(folder: str | Path) -> Listing:
    """Look at what a cache holds.

    Raises:
        CacheError: no cache there, or its plan cannot be read.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    features, faults = read_features(folder)
    return Listing(
        folder,
        plan,
        float(plan.utterances["seconds"].sum()),
        tuple(_list_feature(folder, plan, info) for info in features.values()),
        tuple(faults),
        _size(folder),
    )


def _list_feature(folder: Path, plan: Plan, info: FeatureInfo) -> FeatureListing:
    rows = damaged = 0
    rejected: set[str] = set()
    missing: dict[str, int] = {}
    shards = plan.shards(info)
    for shard in shards:
        try:
            receipt = shard_receipt(folder, plan, info, shard)
            if receipt is None:
                missing[shard.split] = missing.get(shard.split, 0) + 1
            elif shard_path(folder, info, shard).stat().st_size != receipt.size:
                damaged += 1
            else:
                rows += receipt.shape[0]
                rejected |= {item.path for item in receipt.rejected}
        except StaleShardError:
            missing[shard.split] = missing.get(shard.split, 0) + 1
        except (CacheError, OSError):
            damaged += 1
    planned = plan.units(info.per)[-1].stop
    return FeatureListing(info, rows, planned, len(rejected), len(shards), missing, damaged, _size(folder / info.name))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
