"""What is left to extract: which shards of which features, grouped so that audio is decoded once for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.errors import AudioError
from mfhca_cache.extraction.features import begun_feature
from mfhca_cache.files import leads_outside
from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.commit import is_settled, whole_receipt
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Unit
from mfhca_cache.wav import probe

#: Files that may come back: a shard that rejected one for such a reason is made again once the file is right.
RETRY_REASONS = ("missing", "changed", "link")


@dataclass(frozen=True)
class Task:
    """One run of clips, or of utterances, and the features that lack it."""

    per: Unit
    first: int
    stop: int
    shards: tuple[tuple[FeatureInfo, ShardRange], ...]


def find_tasks(
    folder: Path, plan: Plan, features: Sequence[FeatureInfo], splits: Collection[str], retry: set[str]
) -> list[Task]:
    """The runs of clips or utterances that a feature lacks, in the plan's order, clips first.

    Args:
        splits: names of the splits to look at.
        retry: utterances whose shards are made again, see `mended`.
    """
    lacking: dict[tuple[Unit, int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
    for info in features:
        for shard in plan.shards(info, splits):
            if not is_done(folder, plan, info, shard, retry):
                lacking.setdefault((info.per, shard.first, shard.stop), []).append((info, shard))
    return [Task(*key, tuple(lacking[key])) for key in sorted(lacking)]


def is_done(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange, retry: set[str]) -> bool:
    """Whether a shard is committed and whole, and holds no rejection that is to be tried again."""
    receipt = whole_receipt(folder, plan, info, shard)
    if receipt is None or not is_settled(folder / info.name, shard.name):
        return False
    return not any(item.path in retry for item in receipt.rejected)


def mended(folder: Path, plan: Plan, features: Sequence[FeatureInfo], root: Path | None) -> set[str]:
    """Utterances once rejected because of their file, and whose file is now the one in the manifest."""
    if root is None:
        return set()
    table = plan.utterances.set_index("utterance_id")
    lost = set()
    for info in features:
        for shard in plan.shards(info) if begun_feature(folder, info.name) else ():
            receipt = whole_receipt(folder, plan, info, shard)
            lost |= {item.path for item in receipt.rejected if _may_return(item)} if receipt else set()
    found = set()
    for name in lost & set(table.index):
        path = root / str(table.loc[name, "path"])
        with contextlib.suppress(AudioError):
            if not leads_outside(root, path) and probe(path).sha256 == table.loc[name, "sha256"]:
                found.add(name)
    return found


def _may_return(item: Rejected) -> bool:
    return item.reason.split(":")[0] in RETRY_REASONS
