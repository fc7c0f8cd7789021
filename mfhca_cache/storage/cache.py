"""A cache, opened: what is in it, and its features as tensors.

    cache = open_cache("cache/iemocap")
    cache.utterances                                  # DataFrame, one row an utterance
    loaded = cache.load(["spectrogram", "hubert-base-ls960"])
    loaded["spectrogram"]                             # (clips, 300, 200) float16
    loaded["clips"]                                   # DataFrame: whose clip each row is

Every clip's digest is checked when it is first read; a clip that does not verify is an error, never data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from mfhca_cache.errors import CacheError
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.commit import shard_receipt
from mfhca_cache.storage.dataset import CacheDataset
from mfhca_cache.storage.descriptions import read_feature, read_plan
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, shard_path
from mfhca_cache.storage.reading import FeatureReader, OpenMaps, OpenShard, clip_rows, file_signature
from mfhca_cache.storage.receipts import Held, Receipts
from mfhca_cache.storage.select import Where, choose_ids
from mfhca_cache.storage.shard import Receipt, open_shard


@dataclass
class Cache:
    """An opened cache; make one with `open_cache`.

    Attributes:
        path: its folder.
        plan: which clips there are.
        features: name → what it is, for every feature begun in this cache.
    """

    path: Path
    plan: Plan
    features: dict[str, FeatureInfo]
    _opened: dict[str, FeatureReader] = field(default_factory=dict, repr=False)
    _maps: OpenMaps = field(default_factory=OpenMaps, repr=False)
    _receipts: dict[str, Receipts] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the opened shards: another process opens and checks its own, wherever it runs."""
        return {**self.__dict__, "path": self.path.absolute(), "_opened": {}, "_maps": OpenMaps(), "_receipts": {}}

    @property
    def corpus(self) -> str:
        """Name of the corpus."""
        return self.plan.corpus

    @property
    def clip(self) -> ClipSpec:
        """How utterances were cut."""
        return self.plan.clip

    @property
    def utterances(self) -> pd.DataFrame:
        """The manifest's rows in the plan's order, with split, clips and first_clip; a copy."""
        return self.plan.utterances.copy()

    def feature(self, name: str) -> FeatureInfo:
        """What a feature is; a CacheError that lists the valid names where there is none such."""
        if name not in self.features:
            have = ", ".join(sorted(self.features)) or "none yet"
            raise CacheError(f"{self.path}: no feature {name!r}; this cache has: {have}. `mfhca extract` adds more")
        return self.features[name]

    def encoders(self) -> list[str]:
        """Names of the features that a frozen encoder made."""
        return sorted(name for name, info in self.features.items() if info.kind == "encoder")

    def receipts(self, feature: str, splits: Collection[str] | None = None) -> dict[str, Receipt | None]:
        """Shard name → its receipt, or None where that shard is not extracted yet; of some splits, or of all."""
        info = self.feature(feature)
        return {shard.name: self._receipt(info, shard) for shard in self.plan.shards(info, splits)}

    def missing(self, feature: str) -> dict[str, int]:
        """Split → shards of it that are not extracted yet; splits that are complete are not listed."""
        result: dict[str, int] = {}
        for shard, held in self._held(feature):
            if held is None:
                result[shard.split] = result.get(shard.split, 0) + 1
        return result

    def rejected(self, features: Iterable[str] | None = None, splits: Collection[str] | None = None) -> dict[str, str]:
        """utterance_id → why extraction rejected it, for any of the features (default: all), of some splits or all."""
        found: dict[str, str] = {}
        for name in self.features if features is None else features:
            for _, held in self._held(name, splits):
                if held:
                    found |= {item.path: item.reason for item in held.rejected}
        return found

    def available(self, features: Sequence[str], splits: Collection[str] | None = None) -> list[str]:
        """Ids of the utterances all of whose clips are there in every one of the features, in the plan's order.

        By the receipts: a shard's file is opened when its clips are read.

        Args:
            splits: look at these splits alone; None for all.
        """
        return list(self.plan.utterances["utterance_id"].to_numpy()[self._whole(features, splits)])

    def select(self, where: Where = None, features: str | Sequence[str] = ()) -> list[str]:
        """Ids of the utterances that ``where`` chooses and that all the features hold.

        ``where`` is a condition (``"speaker != '1F'"``), a function or a boolean mask over `utterances`, or a list of
        ids, which is taken as it is; `mfhca_cache.storage.select` says what each means.
        """
        names = [features] if isinstance(features, str) else list(features)
        return choose_ids(self.plan.utterances, where, self.available(names))

    def dataset(
        self, features: str | Sequence[str], where: Where = None, by: Literal["clip", "utterance"] = "clip"
    ) -> CacheDataset:
        """A map-style torch Dataset that reads clips when they are asked for; see `CacheDataset` and `select`.

        Args:
            features: one name or several.
            where: which utterances; see `select`.
            by: an item is a ``clip``, or all clips of an ``utterance``.

        Raises:
            CacheError: an unknown feature or id, an utterance not extracted or rejected, or nothing chosen.
        """
        return CacheDataset(self, features, where, by)

    def utterance(self, utterance_id: str, features: str | Sequence[str]) -> dict[str, Any]:
        """All clips of one utterance, as an item of ``dataset(features, by="utterance")``, which reads many faster.

        Raises:
            CacheError: see `load`.
        """
        return self.dataset(features, [utterance_id], by="utterance")[0]

    def load(
        self,
        features: str | Sequence[str],
        utterance_ids: Iterable[str] | None = None,
        *,
        progress: ProgressCallback = silent,
    ) -> dict[str, Any]:
        """Clips of utterances as tensors, every digest checked.

        Args:
            features: one name or several; `Cache.features` has them.
            utterance_ids: whose clips, in this order; None for every utterance that all the features hold.
            progress: called with clips done.

        Returns:
            feature name → tensor (clips, …) of the stored type, and ``"clips"`` → DataFrame of as many rows with
            ``utterance_id``, ``clip`` (0, 1, … within the utterance), ``valid_samples`` at 16 kHz, and for each
            feature ``valid_<feature>`` (frames that come from signal). A feature of utterances (text) is a list of
            tensors (rows, width), one an utterance in the order asked, whose ids are ``"utterances"``, a list.

        Raises:
            CacheError: an unknown feature or id, an utterance not extracted or rejected, or damaged bytes.
        """
        names = [features] if isinstance(features, str) else list(features)
        infos = [self.feature(name) for name in names]
        rows = self._rows(names, utterance_ids)
        clips = clip_rows(rows, self.clip)
        wanted = clips.pop("plan_row").to_numpy()
        result: dict[str, Any] = {}
        for info in infos:
            if info.per == "utterance":
                result["utterances"] = list(rows["utterance_id"])
                result[info.name] = self.copy_utterances(info.name, rows.index.to_numpy(), progress)
                continue
            tensor = torch.empty((len(wanted), *info.shape), dtype=getattr(torch, info.dtype))
            clips[f"valid_{info.name}"] = self.copy_clips(info.name, wanted, tensor.numpy(), progress)
            result[info.name] = tensor
        result["clips"] = clips
        return result

    def clip_table(self, features: Sequence[str], utterance_ids: Iterable[str] | None = None) -> pd.DataFrame:
        """A row a clip of the utterances, as `load` takes them: utterance_id, clip, valid_samples and plan_row."""
        return clip_rows(self._rows(features, utterance_ids), self.clip)

    def verify(self, *, deep: bool = True, progress: ProgressCallback = silent) -> list[str]:
        """Check every shard that has a receipt; a list of what is wrong, empty where all is well.

        Args:
            deep: reread every byte; else receipts, sizes, extents and the digests of everything but the arrays.
            progress: called with shards done.
        """
        return [fault.message for fault in check_cache(self.path, deep=deep, progress=progress).faults]

    def _receipt(self, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
        return shard_receipt(self.path, self.plan, info, shard)

    def _open(self, feature: str, shard: ShardRange) -> OpenShard:
        """A shard opened by its receipt, its metadata checked; nothing of it is kept."""
        info = self.features[feature]
        receipt = self._receipt(info, shard)
        if receipt is None:
            raise CacheError(
                f"{self.path}: {feature} of {shard.name} is not extracted yet; "
                f"run `mfhca extract --split {shard.split}`"
            )
        path = shard_path(self.path, info, shard)
        # Looked at before it is opened: a file that takes its place meanwhile is then known for another.
        signature = file_signature(path.stat()) if path.exists() else ()
        return OpenShard(open_shard(path, receipt), signature)

    def _reader(self, feature: str) -> FeatureReader:
        """What reads a feature's clips, made when it is first asked for."""
        reader = self._opened.get(feature)
        if reader is None:
            info = self.feature(feature)
            reader = FeatureReader(
                info.per,
                self.plan.shards(info),
                lambda shard: shard_path(self.path, info, shard),
                lambda shard: self._open(feature, shard),
                self._maps,
            )
            reader = self._opened.setdefault(feature, reader)
        return reader

    def _rows(self, names: Sequence[str], utterance_ids: Iterable[str] | None) -> pd.DataFrame:
        """Rows of the plan for the ids asked, each wholly there."""
        table = self.plan.utterances
        if utterance_ids is None:
            return table[self._whole(names)]
        ids = list(utterance_ids)
        rows = self.plan.rows_of(ids)
        unknown = [ids[number] for number in np.flatnonzero(rows < 0)]
        if unknown:
            raise CacheError(f"{self.path}: no utterance {unknown[0]!r} in this cache ({len(unknown)} such ids)")
        whole = self._whole(names, set(pd.unique(table["split"].to_numpy()[rows])))
        absent = sorted({ids[number] for number in np.flatnonzero(~whole[rows])})
        if absent:
            reason = self.rejected(names).get(absent[0])
            split = str(table["split"].iloc[self.plan.rows_of(absent[:1])[0]])
            why = f"it was rejected: {reason}" if reason else f"run `mfhca extract --split {split}`"
            raise CacheError(f"{self.path}: {absent[0]!r} has no {' and '.join(names)} ({len(absent)} such ids); {why}")
        return table.iloc[rows]

    def _held(self, feature: str, splits: Collection[str] | None = None) -> list[tuple[ShardRange, Held | None]]:
        """A feature's shards, and what each holds by its receipt."""
        info = self.feature(feature)
        shards = self.plan.shards(info, splits)
        receipts = self._receipts.setdefault(feature, Receipts(self.path, self.plan, info))
        return list(zip(shards, receipts.held(shards), strict=True))

    def _whole(self, features: Sequence[str], splits: Collection[str] | None = None) -> np.ndarray:
        """Which utterances are wholly there in every one of the features: bool, in the plan's order."""
        whole = np.ones(len(self.plan.utterances), dtype=bool)
        for name in features:
            info = self.feature(name)
            stored = np.zeros(self.plan.units(info.per)[-1].stop, dtype=bool)
            for shard, held in self._held(name, splits):
                if held is not None:
                    stored[shard.first : shard.stop] = self._stored(info, shard, held)
            if info.per == "clip":
                stored = np.logical_and.reduceat(stored, self.plan.utterances["first_clip"].to_numpy())
            whole &= stored
        return whole

    def _stored(self, info: FeatureInfo, shard: ShardRange, held: Held) -> np.ndarray:
        """Which clips (or utterances) of a committed shard's run it holds, bool."""
        stored = np.ones(shard.stop - shard.first, dtype=bool)
        first, units = self._units(info)
        lost, rows = {item.path for item in held.rejected}, self.plan.rows_of_run(info.per, shard.first, shard.stop)
        for row, name in enumerate(self.plan.ids(rows) if lost else (), rows.start):
            if name in lost:
                start, stop = int(first[row]) - shard.first, int(first[row] + units[row]) - shard.first
                stored[max(0, start) : stop] = False
        if np.count_nonzero(stored) != held.rows:
            # Not as extraction writes it: the shard itself says what it holds.
            stored[:] = False
            stored[self._open(info.name, shard).shard.clip - shard.first] = True
        return stored

    def _units(self, info: FeatureInfo) -> tuple[np.ndarray, np.ndarray]:
        """First unit of each utterance and how many it has: clips, or itself."""
        table = self.plan.utterances
        if info.per == "utterance":
            return np.arange(len(table)), np.ones(len(table), dtype=np.int64)
        return table["first_clip"].to_numpy(), table["clips"].to_numpy()

    def copy_clips(
        self, feature: str, wanted: np.ndarray, out: np.ndarray | None, progress: ProgressCallback = silent
    ) -> np.ndarray:
        """Copy clips into ``out`` (clips, …), checked; their valid frames, int32 (clips,).

        Args:
            wanted: (clips,) the ``plan_row`` of clips that the feature holds (`clip_table`), in any order.
            out: of the shape and type that is stored; None for the valid frames alone.

        Raises:
            CacheError: damaged bytes, or a clip that the shard does not hold.
        """

        def tell(done: int) -> None:
            progress(Progress(f"loading {feature}", done, len(wanted), "clips"))

        return self._reader(feature).copy(wanted, out, tell)

    def copy_utterances(
        self, feature: str, wanted: np.ndarray, progress: ProgressCallback = silent
    ) -> list[torch.Tensor]:
        """The rows (rows, …) of each utterance ``wanted`` (rows of the plan, any order), checked, of a text feature."""
        reader, info = self._reader(feature), self.feature(feature)
        found: dict[int, torch.Tensor] = {}
        places = np.unique(wanted).astype(np.int64)
        numbers = reader.shards_of(places)
        for number in np.unique(numbers).tolist():
            part = places[numbers == number]
            # Padded to the longest of its shard, which others need not share.
            out = np.empty((len(part), *reader.row_shape(number)), dtype=info.dtype)
            valid = reader.copy(part, out)
            for place, row, count in zip(part.tolist(), out, valid.tolist(), strict=True):
                found[place] = torch.from_numpy(row[:count].copy())
            progress(Progress(f"loading {info.name}", len(found), len(places), "utterances"))
        return [found[int(place)] for place in wanted]


def open_cache(path: str | Path) -> Cache:
    """Open the cache in a folder.

    Raises:
        CacheError: no cache there, or its plan or a feature.json is damaged or of a newer format.
    """
    path = Path(path)
    plan = read_plan(path)
    names = sorted(item.parent.name for item in path.glob("*/feature.json"))
    return Cache(path, plan, {name: read_feature(path, name) for name in names})
