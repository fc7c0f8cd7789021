"""Runs as training leaves them, of made-up predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.storage.publish import publish_json
from mfhca_cache.training.metrics import confusion, score
from mfhca_cache.training.result import FoldResult, write_fold

CLASSES = ["angry", "happy", "neutral", "sad"]
SPEAKERS = [f"{session}{sex}" for session in range(1, 6) for sex in "MF"]


def utterances(speakers: Sequence[str] = SPEAKERS, each: int = 12) -> pd.DataFrame:
    """So many utterances a speaker, in all classes, always the same."""
    rows = [(f"{s}-{n:02d}", s, CLASSES[n % 4]) for s in speakers for n in range(each)]
    return pd.DataFrame(rows, columns=["utterance_id", "speaker", "label"])


def guesses(table: pd.DataFrame, right: float, seed: int) -> pd.DataFrame:
    """Predictions of which about so many are right, more for some speakers than for others."""
    rng = np.random.default_rng(seed)
    names = sorted(set(table["speaker"]))
    skill = dict(zip(names, np.clip(right + rng.normal(0, 0.1, len(names)), 0, 1), strict=True))
    good = rng.random(len(table)) < table["speaker"].map(skill).to_numpy()
    wrong = [CLASSES[(CLASSES.index(label) + 1) % 4] for label in table["label"]]
    return table.assign(clips=1, prediction=np.where(good, table["label"], wrong))


def write_run(
    folder: Path, predictions: pd.DataFrame, per_fold: int = 1, only: Sequence[int] = (), **changes: Any
) -> Path:
    """A run as training leaves it, of given predictions; so many speakers a fold."""
    classes = changes.pop("classes", CLASSES)
    speakers = list(dict.fromkeys(predictions["speaker"]))
    groups = [speakers[at : at + per_fold] for at in range(0, len(speakers), per_fold)]
    names = ["+".join(group) for group in groups]
    base: dict[str, Any] = {
        "format": 1, "corpus": "iemocap", "model": "mfhca", "features": {"encoder": "hubert"}, "protocol": "strict",
        "preset": "frozen", "seed": 0, "parameters": 7, "classes": classes, "class_map": "four-class", "caveats": [],
        "best_epoch": 1, "epochs": 1, "seconds": 1.0, "inputs": ["encoder"], "model_settings": {}, "optimistic": False,
    } | changes  # fmt: skip
    options = {"preset": base["preset"], "seed": base["seed"], "protocol": base["protocol"]}
    folder.mkdir()
    publish_json(folder / "run.json", {"corpus": base["corpus"], "folds": names, "options": options})
    for number, (name, group) in enumerate(zip(names, groups, strict=True), start=1):
        if only and number not in only:
            continue
        part = predictions[predictions["speaker"].isin(group)]
        labels, found = (part[c].map(classes.index).to_numpy() for c in ("label", "prediction"))
        scores = score(labels, found)
        result = {"wa": scores.wa, "ua": scores.ua, "count": scores.count}
        matrix = confusion(labels, found, len(classes)).tolist()
        record = base | {
            "fold": number, "name": name, "scores": {"utterance": result, "clip": result},
            "confusion": {"utterance": matrix, "clip": matrix},
            "utterances": {"train": len(predictions) - len(part), "validation": 0, "test": len(part)},
        }  # fmt: skip
        write_fold(folder, FoldResult(record, part, pd.DataFrame({"epoch": [1]}), {}))
    return folder
