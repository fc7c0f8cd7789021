"""What a feature's receipts say, read once, and again only where a file has changed.

A cache of ten million clips has twenty thousand receipts a feature, half a gigabyte of JSON. An opened cache asks them
again and again what is there, so it remembers the few numbers that it asks for, and looks at each file's identity, size
and time instead of its bytes. Nothing is kept on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.commit import shard_receipt
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.reading import file_signature

#: A file written so short a time ago may be written again within one tick of the disk's clock.
_RECENT_NS = 2_000_000_000


@dataclass(frozen=True)
class Held:
    """What a committed shard holds: rows of its array, and the utterances that were rejected."""

    rows: int
    rejected: tuple[Rejected, ...]


class Receipts:
    """The receipts of one feature of an opened cache."""

    def __init__(self, folder: Path, plan: Plan, info: FeatureInfo) -> None:
        self._folder, self._plan, self._info = folder, plan, info
        self._seen: dict[str, tuple[tuple[int, ...], Held]] = {}

    def held(self, shards: Sequence[ShardRange]) -> list[Held | None]:
        """What each shard holds; None where it is not extracted yet.

        Raises:
            CacheError: a receipt is damaged, or belongs to another plan or other settings.
        """
        try:
            with os.scandir(self._folder / self._info.name) as entries:
                found = {entry.name: entry for entry in entries if entry.name.endswith((".json", ".next"))}
        except FileNotFoundError:
            return [None] * len(shards)
        return [self._held(shard, found) for shard in shards]

    def _held(self, shard: ShardRange, found: dict[str, os.DirEntry[str]]) -> Held | None:
        entry = found.get(f"{shard.name}.json")
        # While a shard is being replaced, which receipt is in force depends on its file.
        replaced = f"{shard.name}.json.next" in found
        if entry is None and not replaced:
            return None
        signature = file_signature(entry.stat()) if entry and not replaced else ()
        seen = self._seen.get(shard.name)
        if seen and seen[0] == signature:
            return seen[1]
        now = time.time_ns()
        receipt = shard_receipt(self._folder, self._plan, self._info, shard)
        if receipt is None:
            return None
        held = Held(receipt.shape[0], receipt.rejected)
        if signature and now - signature[-1] > _RECENT_NS:
            self._seen[shard.name] = signature, held
        return held
