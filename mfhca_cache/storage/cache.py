"""A cache, opened: what is in it, and its features as tensors.

    cache = open_cache("cache/iemocap")
    cache.utterances                                  # DataFrame, one row an utterance
    loaded = cache.load(["spectrogram", "hubert-base-ls960"])
    loaded["spectrogram"]                             # (clips, 300, 200) float16
    loaded["clips"]                                   # DataFrame: whose clip each row is

Every clip's digest is checked when it is first read; a clip that does not verify is an error, never data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import samples_16k
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.commit import receipt_in_force
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, read_feature, read_plan
from mfhca_cache.storage.shard import Receipt, Shard, clip_digest, file_sha256, open_shard

_CHECK_ROWS = 32  # clips a thread checks at a time: 7 MB of HuBERT-base


@dataclass
class _OpenShard:
    shard: Shard
    checked: np.ndarray


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
    _opened: dict[tuple[str, str], _OpenShard] = field(default_factory=dict, repr=False)

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

    def receipts(self, feature: str) -> dict[str, Receipt | None]:
        """Shard name → its receipt, or None where that shard is not extracted yet."""
        info = self.feature(feature)
        return {shard.name: self._receipt(info, shard) for shard in self._shards(info)}

    def missing(self, feature: str) -> dict[str, int]:
        """Split → shards of it that are not extracted yet; splits that are complete are not listed."""
        info, result = self.feature(feature), dict[str, int]()
        for shard in self._shards(info):
            if self._receipt(info, shard) is None:
                result[shard.split] = result.get(shard.split, 0) + 1
        return result

    def rejected(self, features: Iterable[str] | None = None) -> dict[str, str]:
        """utterance_id → why extraction rejected it, for any of the features (default: all)."""
        found: dict[str, str] = {}
        for name in self.features if features is None else features:
            for receipt in self.receipts(name).values():
                if receipt:
                    found |= {item.path: item.reason for item in receipt.rejected}
        return found

    def available(self, features: Sequence[str], splits: Sequence[str] | None = None) -> list[str]:
        """Ids of the utterances all of whose clips are there in every one of the features, in the plan's order.

        Args:
            splits: look at these splits alone; None for all.
        """
        whole = np.ones(len(self.plan.utterances), dtype=bool)
        first = self.plan.utterances["first_clip"].to_numpy()
        clips = self.plan.utterances["clips"].to_numpy()
        for name in features:
            stored = np.zeros(self.plan.clips + 1, dtype=np.int64)
            for shard in self._shards(self.feature(name)):
                if splits is not None and shard.split not in splits:
                    continue
                if self._receipt(self.features[name], shard) is not None:
                    stored[self._open(name, shard).shard.clip + 1] = 1
            total = np.cumsum(stored)
            whole &= total[first + clips] - total[first] == clips
        return list(self.plan.utterances["utterance_id"][whole])

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
            feature ``valid_<feature>`` (frames that come from signal).

        Raises:
            CacheError: an unknown feature or id, an utterance not extracted or rejected, or damaged bytes.
        """
        names = [features] if isinstance(features, str) else list(features)
        infos = [self.feature(name) for name in names]
        rows = self._rows(names, utterance_ids)
        clips = self._clip_table(rows)
        wanted = clips.pop("_clip").to_numpy()
        result: dict[str, Any] = {}
        for info in infos:
            tensor = torch.empty((len(wanted), *info.shape), dtype=getattr(torch, info.dtype))
            clips[f"valid_{info.name}"] = self._read(info, wanted, tensor.numpy(), progress)
            result[info.name] = tensor
        result["clips"] = clips
        return result

    def verify(self, *, progress: ProgressCallback = silent) -> list[str]:
        """Reread every byte of every shard that has a receipt; a list of what is wrong, empty where all is well."""
        faults = []
        work = [(info, shard) for info in self.features.values() for shard in self._shards(info)]
        for number, (info, shard) in enumerate(work):
            progress(Progress(f"verifying {info.name}", number, len(work), "shards"))
            path = self._path(info, shard)
            try:
                receipt = self._receipt(info, shard)
                if receipt is None:
                    continue
                open_shard(path, receipt)
                if file_sha256(path) != receipt.sha256:
                    faults.append(
                        f"{path}: its bytes changed (the SHA-256 differs); delete {shard.name}.json beside it and run "
                        f"`mfhca extract --split {shard.split}`"
                    )
            except CacheError as error:
                faults.append(str(error))
        return faults

    def _shards(self, info: FeatureInfo) -> list[ShardRange]:
        return [shard for split in self.plan.splits for shard in info.shards(split)]

    def _path(self, info: FeatureInfo, shard: ShardRange) -> Path:
        return self.path / info.name / f"{shard.name}.h5"

    def _receipt(self, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
        return shard_receipt(self.path, self.plan, info, shard)

    def _open(self, feature: str, shard: ShardRange) -> _OpenShard:
        key = (feature, shard.name)
        if key not in self._opened:
            info = self.features[feature]
            receipt = self._receipt(info, shard)
            if receipt is None:
                raise CacheError(
                    f"{self.path}: {feature} of {shard.name} is not extracted yet; "
                    f"run `mfhca extract --split {shard.split}`"
                )
            opened = open_shard(self._path(info, shard), receipt)
            self._opened[key] = _OpenShard(opened, np.zeros(len(opened.clip), dtype=bool))
        return self._opened[key]

    def _rows(self, names: Sequence[str], utterance_ids: Iterable[str] | None) -> pd.DataFrame:
        """Rows of the plan for the ids asked, each wholly there."""
        table = self.plan.utterances.set_index("utterance_id", drop=False)
        available = self.available(names)
        ids = available if utterance_ids is None else list(utterance_ids)
        unknown = [name for name in ids if name not in table.index]
        if unknown:
            raise CacheError(f"{self.path}: no utterance {unknown[0]!r} in this cache ({len(unknown)} such ids)")
        absent = sorted(set(ids) - set(available))
        if absent:
            reason = self.rejected(names).get(absent[0])
            split = str(table.loc[absent[0], "split"])
            why = f"it was rejected: {reason}" if reason else f"run `mfhca extract --split {split}`"
            raise CacheError(f"{self.path}: {absent[0]!r} has no {' and '.join(names)} ({len(absent)} such ids); {why}")
        return table.loc[ids]

    def _clip_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        counts = rows["clips"].to_numpy()
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        samples = np.repeat(samples_16k(rows), counts)
        return pd.DataFrame(
            {
                "utterance_id": np.repeat(rows["utterance_id"].to_numpy(), counts),
                "clip": number,
                "valid_samples": np.minimum(self.clip.samples, samples - number * self.clip.samples),
                "_clip": np.repeat(rows["first_clip"].to_numpy(), counts) + number,
            }
        )

    def _read(self, info: FeatureInfo, wanted: np.ndarray, out: np.ndarray, progress: ProgressCallback) -> np.ndarray:
        """Copy the clips ``wanted`` (rows of the plan, any order) into ``out``; their valid frames."""
        valid = np.empty(len(wanted), dtype=np.int32)
        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for shard in self._shards(info):
                places = np.flatnonzero((wanted >= shard.first) & (wanted < shard.stop))
                if not len(places):
                    continue
                opened = self._open(info.name, shard)
                rows = np.searchsorted(opened.shard.clip, wanted[places])
                parts = [slice(at, at + _CHECK_ROWS) for at in range(0, len(places), _CHECK_ROWS)]
                jobs = [pool.submit(_copy_checked, opened, rows[part], out, places[part]) for part in parts]
                bad = [row for job in jobs for row in job.result()]
                if bad:
                    raise CacheError(
                        f"{self._path(info, shard)}: {len(bad)} clip(s) are damaged (their digests differ), the first "
                        f"being clip {opened.shard.clip[bad[0]]} of the plan; delete {shard.name}.json beside it "
                        f"and run `mfhca extract --split {shard.split}`"
                    )
                valid[places] = opened.shard.valid[rows]
                done += len(places)
                progress(Progress(f"loading {info.name}", done, len(wanted), "clips"))
        return valid


def _copy_checked(opened: _OpenShard, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> list[int]:
    """Copy rows of a shard to places of ``out``, then check the copy of those never checked before."""
    out[places] = opened.shard.data[rows]
    new = ~opened.checked[rows]
    bad = [
        int(row)
        for row, place in zip(rows[new], places[new], strict=True)
        if clip_digest(out[place]) != opened.shard.digest[row].tobytes()
    ]
    if not bad:
        opened.checked[rows] = True
    return bad


def shard_receipt(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
    """A shard's receipt, or None where there is none.

    Raises:
        CacheError: the receipt is damaged, or is of other settings, another run of clips, or other audio than planned.
    """
    path = folder / info.name / f"{shard.name}.json"
    receipt = receipt_in_force(folder / info.name, shard.name)
    if receipt is None:
        return None
    stated = (receipt.shard, receipt.fingerprint, receipt.first, receipt.stop, receipt.shape[1:], receipt.dtype)
    audio = plan.audio(shard.first, shard.stop)
    rejected = {item.path for item in receipt.rejected}
    expected = {name: digest for name, digest in audio.items() if name not in rejected}
    wanted = (shard.name, info.fingerprint, shard.first, shard.stop, info.shape, info.dtype)
    if stated != wanted or receipt.audio != expected or not rejected <= set(audio):
        raise CacheError(f"{path}: belongs to other settings or another plan; delete it and extract this shard again")
    return receipt


def open_cache(path: str | Path) -> Cache:
    """Open the cache in a folder.

    Raises:
        CacheError: no cache there, or its plan or a feature.json is damaged or of a newer format.
    """
    path = Path(path)
    plan = read_plan(path)
    names = sorted(item.parent.name for item in path.glob("*/feature.json"))
    return Cache(path, plan, {name: read_feature(path, name) for name in names})
