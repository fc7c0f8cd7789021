"""Features of any shape, added to a cache without an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.descriptions import read_plan, write_feature
from mfhca_cache.storage.layout import FeatureInfo, clips_per_shard
from mfhca_cache.storage.publish import publish, publish_json
from mfhca_cache.storage.reading import clip_rows
from mfhca_cache.storage.shard import encode_shard

ENGINE = {"name": "torch", "device": "cpu", "precision": "float32", "threads": 1, "batch": 8}


def add_feature(
    folder: Path, name: str, shape: tuple[int, ...], layer: int | None = None, without: str = "", **settings: Any
) -> None:
    """Commit a feature of noise.

    Args:
        layer: that layer of (L, frames, width) has the label planted in it.
        without: an utterance that is recorded as rejected.
    """
    plan = read_plan(folder)
    clip_bytes = 2 * int(np.prod(shape))
    info = FeatureInfo(
        name, "encoder", {"name": name, **settings}, shape, "float16", clips_per_shard(clip_bytes), ENGINE, {}
    )
    write_feature(folder, info)
    clips = clip_rows(plan.utterances, plan.clip)
    labels = dict(zip(plan.utterances["utterance_id"], plan.utterances["label"], strict=True))
    data = np.random.default_rng(0).standard_normal((plan.clips, *shape)).astype(np.float16)
    if layer is not None:
        for row, name_of in zip(clips["plan_row"], clips["utterance_id"], strict=True):
            data[row, layer, :, ("ang", "hap", "neu", "sad").index(labels[name_of])] += 3
    frames = shape[-2] if len(shape) > 1 else 1
    valid = np.ceil(clips["valid_samples"].to_numpy() * frames / plan.clip.samples).astype(np.int32)
    for split in plan.splits:
        for shard in info.shards(split):
            rows = np.arange(shard.first, shard.stop)
            rows = rows[(clips["utterance_id"] != without).to_numpy()[rows]]
            audio = plan.audio(shard.first, shard.stop)
            rejected = (Rejected(without, "made so"),) if audio.pop(without, None) else ()
            content, receipt = encode_shard(
                data[rows],
                rows,
                valid[rows],
                name=shard.name,
                fingerprint=info.fingerprint,
                extent=(shard.first, shard.stop),
                audio=audio,
                rejected=rejected,
                versions={},
            )
            publish(folder / name / f"{shard.name}.h5", content)
            publish_json(folder / name / f"{shard.name}.json", receipt.to_json())
