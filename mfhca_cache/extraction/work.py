"""What is left to extract: which shards of which features, grouped so that audio is decoded once for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.errors import AudioError
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


@dataclass(frozen=True)
class Seen:
    """What one look at a shard found.

    Attributes:
        whole: it has a receipt of this plan and these settings, and opens.
        settled: no killed writer has left its replacement half done.
        rejected: utterances that it could not hold.
    """

    whole: bool
    settled: bool
    rejected: tuple[Rejected, ...]


class Survey:
    """What lies in a cache: each shard is looked at once, when it is first asked about.

    A look is a planning's: who writes a shard looks again once it holds the shard's lock. Of a receipt only the
    rejections are kept, so that twenty thousand shards take little memory.

    Args:
        folder: of the cache.
        plan: of the cache.
        root: the corpus folder, where files may have come back; None where it is not known.
    """

    def __init__(self, folder: Path, plan: Plan, root: Path | None = None) -> None:
        self._folder, self._plan, self._root = folder, plan, root
        self._seen: dict[tuple[str, str, ShardRange], Seen] = {}
        self._back: dict[str, bool] = {}
        self._rows: dict[str, int] | None = None

    def see(self, info: FeatureInfo, shard: ShardRange) -> Seen:
        """What is known of a shard."""
        key = (info.name, info.fingerprint, shard)
        found = self._seen.get(key)
        if found is None:
            receipt = whole_receipt(self._folder, self._plan, info, shard)
            settled = is_settled(self._folder / info.name, shard.name)
            found = self._seen[key] = Seen(receipt is not None, settled, receipt.rejected if receipt else ())
        return found

    def forget(self, shards: Iterable[tuple[FeatureInfo, ShardRange]]) -> None:
        """Look again at these, which have been written meanwhile."""
        for info, shard in shards:
            self._seen.pop((info.name, info.fingerprint, shard), None)

    def is_done(self, info: FeatureInfo, shard: ShardRange) -> bool:
        """Whether a shard is committed and whole, and holds no rejection that is to be tried again."""
        seen = self.see(info, shard)
        return seen.whole and seen.settled and not any(self._is_back(item) for item in seen.rejected)

    def tasks(self, shards: Iterable[tuple[FeatureInfo, ShardRange]]) -> list[Task]:
        """The runs of clips or utterances that are lacking among these shards, in the plan's order, clips first."""
        lacking: dict[tuple[Unit, int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
        for info, shard in shards:
            if not self.is_done(info, shard):
                lacking.setdefault((info.per, shard.first, shard.stop), []).append((info, shard))
        return [Task(*key, tuple(lacking[key])) for key in sorted(lacking)]

    def mended(self, shards: Iterable[tuple[FeatureInfo, ShardRange]]) -> set[str]:
        """Utterances that these shards rejected because of their file, and whose file is now the manifest's."""
        return {item.path for info, shard in shards for item in self.see(info, shard).rejected if self._is_back(item)}

    def _is_back(self, item: Rejected) -> bool:
        """Whether an utterance was rejected because of its file, and the file is now the one in the manifest."""
        if self._root is None or item.reason.split(":")[0] not in RETRY_REASONS:
            return False
        if item.path not in self._back:
            self._back[item.path] = self._is_as_stated(item.path, self._root)
        return self._back[item.path]

    def _is_as_stated(self, name: str, root: Path) -> bool:
        table = self._plan.utterances
        if self._rows is None:
            self._rows = {str(key): row for row, key in enumerate(table["utterance_id"])}
        row = table.iloc[self._rows[name]]
        path = root / str(row["path"])
        with contextlib.suppress(AudioError):
            return not leads_outside(root, path) and probe(path).sha256 == row["sha256"]
        return False


def is_done(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange, retry: Collection[str]) -> bool:
    """Whether a shard is committed, opens, and holds no rejection that is to be tried again.

    Args:
        retry: utterances whose shards are made again, see `Survey.mended`.
    """
    receipt = whole_receipt(folder, plan, info, shard)
    if receipt is None or not is_settled(folder / info.name, shard.name):
        return False
    return not any(item.path in retry for item in receipt.rejected)
