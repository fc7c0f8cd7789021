"""A cache of IEMOCAP's layout and HuBERT-base's shapes, of noise in which the class shows: for timings only."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mfhca_cache.manifest import COLUMNS
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.commit import commit_shard
from mfhca_cache.storage.descriptions import write_feature, write_plan
from mfhca_cache.storage.layout import FeatureInfo, clips_per_shard, make_plan
from mfhca_cache.storage.shard import encode_shard

LABELS = ("ang", "hap", "neu", "sad")
SHAPES = {"spectrogram": (300, 200), "hubert-base": (149, 768)}
_ENGINE = {"name": "torch", "device": "cpu", "precision": "float32", "threads": 1, "batch": 8}


def write_cache(folder: Path, clips: int) -> Path:
    """Write a cache of so many utterances of one clip each, of ten speakers in five sessions; its folder."""
    rows = []
    for number in range(clips):
        session, sex = number % 10 // 2 + 1, "FM"[number % 2]
        row: dict[str, object] = dict.fromkeys(COLUMNS, "")
        row |= {"corpus": "iemocap", "utterance_id": f"Ses{session:02d}_{sex}{number:06d}", "path": f"{number}.wav"}
        row |= {"speaker": f"{session}{sex}", "session": f"session{session}", "label": LABELS[number // 10 % 4]}
        row |= {"seconds": 3.0, "sample_rate": 16_000, "channels": 1, "sha256": f"{number:064x}"}
        rows.append(row)
    plan = make_plan("iemocap", pd.DataFrame(rows), ClipSpec(), "four-class")
    folder.mkdir(parents=True)
    write_plan(folder, plan)
    classes = plan.utterances["label"].map(LABELS.index).to_numpy()
    for name, shape in SHAPES.items():
        kind = "spectrogram" if name == "spectrogram" else "encoder"
        size = clips_per_shard(2 * int(np.prod(shape)))
        info = FeatureInfo(name, kind, {"name": name}, shape, "float16", size, _ENGINE, {}, kind == "encoder")
        (folder / name).mkdir()
        write_feature(folder, info)
        for shard in plan.shards(info):
            numbers = np.arange(shard.first, shard.stop)
            noise = np.random.default_rng(shard.first)
            data = noise.standard_normal((len(numbers), *shape), dtype=np.float32)
            data[:, :, :8] += classes[numbers][:, None, None]
            if kind == "spectrogram":
                data = 12 * data - 60  # dB
            content, receipt = encode_shard(
                data.astype(np.float16),
                numbers,
                np.full(len(numbers), shape[0], dtype=np.int32),
                name=shard.name,
                fingerprint=info.fingerprint,
                extent=(shard.first, shard.stop),
                audio=plan.audio(shard.first, shard.stop),
                rejected=(),
                versions={},
            )
            commit_shard(folder / name, shard.name, content, receipt)
    return folder


def write_one_file(path: Path, clips: int) -> Path:
    """The same shapes in one HDF5 file, written clip by clip into chunks of one, as corpora are often kept."""
    with h5py.File(path, "w") as file:
        arrays = {
            name: file.create_dataset(name, (clips, *shape), "float16", chunks=(1, *shape))
            for name, shape in SHAPES.items()
        }
        labels = np.arange(clips) % len(LABELS)
        file["label"] = labels
        noise = np.random.default_rng(0)
        for number in range(clips):
            for name, array in arrays.items():
                data = noise.standard_normal(SHAPES[name], dtype=np.float32)
                data[:, :8] += labels[number]
                array[number] = 12 * data - 60 if name == "spectrogram" else data
    return path
