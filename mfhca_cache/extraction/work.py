"""What is left to extract: which shards of which features, grouped so that audio is decoded once for all of them.

Here too is what a feature is before its first shard: its settings and the engine that it is begun with. A feature that
was begun before goes on with its own engine, so that a resumed run writes the same bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfhca_cache.errors import AudioError, CacheError
from mfhca_cache.extraction.encoder import Encoder
from mfhca_cache.extraction.spectrogram import clip_shape
from mfhca_cache.files import leads_outside
from mfhca_cache.manifest import Rejected
from mfhca_cache.spec import EncoderSpec, ExtractSpec, settings
from mfhca_cache.storage.cache import shard_receipt
from mfhca_cache.storage.commit import is_settled
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Split, clips_per_shard, read_feature
from mfhca_cache.storage.shard import Receipt, open_shard
from mfhca_cache.wav import probe

SPECTROGRAM = "spectrogram"
#: Files that may come back: a shard that rejected one for such a reason is made again once the file is right.
RETRY_REASONS = ("missing", "changed", "link")
_BATCH = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class Task:
    """One run of clips and the features that lack it."""

    first: int
    stop: int
    shards: tuple[tuple[FeatureInfo, ShardRange], ...]


def new_engine(device: str, batch: int | None) -> dict[str, Any]:
    """The engine of a feature that is begun now on ``cpu`` or ``cuda``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batch = batch or _BATCH[device]
    return {"name": "torch", "device": device, "precision": "float32", "threads": cores, "batch": batch}


def spectrogram_feature(spec: ExtractSpec, engine: dict[str, Any]) -> FeatureInfo:
    """What the spectrogram of these settings is."""
    shape = clip_shape(spec.clip, spec.spectrogram)
    values = {**settings(spec.spectrogram), "clip": settings(spec.clip), "dtype": spec.dtype, "unit": "dB re 1.0"}
    return _feature(SPECTROGRAM, "spectrogram", values, shape, spec, engine, {}, False)


def encoder_feature(spec: ExtractSpec, encoder: Encoder, engine: dict[str, Any]) -> FeatureInfo:
    """What the final hidden layer of this encoder is."""
    if spec.encoder is None:
        raise CacheError("the extraction's settings name no encoder")
    values = {
        "layer": "last",
        "normalise": encoder.normalise,
        "architecture": encoder.architecture,
        "weights_sha256": encoder.weights_sha256,
        "clip": settings(spec.clip),
        "dtype": spec.dtype,
    }
    shape = (encoder.frames(spec.clip.samples), encoder.width)
    name = spec.encoder.feature
    return _feature(name, "encoder", values, shape, spec, engine, encoder.source, encoder.random_weights)


def _feature(
    name: str,
    kind: str,
    values: dict[str, Any],
    shape: tuple[int, ...],
    spec: ExtractSpec,
    engine: dict[str, Any],
    source: dict[str, Any],
    random_weights: bool,
) -> FeatureInfo:
    info = FeatureInfo(name, kind, values, shape, spec.dtype, 1, engine, source, random_weights)
    return FeatureInfo(**{**vars(info), "clips_per_shard": clips_per_shard(info.clip_bytes)})


def is_source(info: FeatureInfo, encoder: EncoderSpec) -> bool:
    """Whether a feature was made by the encoder of this name and revision."""
    return (info.source.get("name"), info.source.get("revision")) == (encoder.name, encoder.revision)


def begun_feature(folder: Path, name: str) -> FeatureInfo | None:
    """The feature as it was begun in this cache, or None."""
    return read_feature(folder, name) if (folder / name / "feature.json").exists() else None


def find_tasks(
    folder: Path, plan: Plan, features: Sequence[FeatureInfo], splits: Sequence[Split], retry: set[str]
) -> list[Task]:
    """The runs of clips that a feature lacks, in the plan's order.

    Args:
        retry: utterances whose shards are made again, see `mended`.
    """
    lacking: dict[tuple[int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
    for split in splits:
        for info in features:
            for shard in info.shards(split):
                if not is_done(folder, plan, info, shard, retry):
                    lacking.setdefault((shard.first, shard.stop), []).append((info, shard))
    return [Task(first, stop, tuple(lacking[first, stop])) for first, stop in sorted(lacking)]


def is_done(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange, retry: set[str]) -> bool:
    """Whether a shard is committed and whole, and holds no rejection that is to be tried again."""
    receipt = _committed(folder, plan, info, shard)
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
        for split in plan.splits if begun_feature(folder, info.name) else ():
            for shard in info.shards(split):
                receipt = _committed(folder, plan, info, shard)
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


def _committed(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
    """The receipt of a shard that is whole; None where it is missing, or was torn when its writer died."""
    try:
        receipt = shard_receipt(folder, plan, info, shard)
        if receipt is not None:
            open_shard(folder / info.name / f"{shard.name}.h5", receipt)
    except CacheError:
        return None
    return receipt
