"""Folds → files in the shapes of `mfhca_cache.splits.shapes`, so that other toolkits train and test on the same split.

What a shape has no place for is left out: folds have names in our own shape and only numbers in the others. s3prl
knows no validation set and draws its own from training; ours lies beside as ``valid_meta_data.json``, so that nobody
trains on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mfhca_cache.errors import FoldError
from mfhca_cache.folds import Fold
from mfhca_cache.manifest import csv_bytes
from mfhca_cache.splits.shapes import COLUMNS, PARTS, SHAPES
from mfhca_cache.storage.publish import publish


def export_folds(path: str | Path, folds: Sequence[Fold], utterances: pd.DataFrame, shape: str = "mfhca") -> list[Path]:
    """Write folds.

    Args:
        path: for ``mfhca`` a name that ends in .csv or .json; for the others a new or empty folder.
        folds: to be written.
        utterances: the manifest's rows, and ``class``: the label that is written for others (a raw label where there
            is no class).
        shape: one of `SHAPES`.

    Returns:
        The files that were written.

    Raises:
        FoldError: an unknown shape, a name that does not fit it, or a folder that is not empty.
    """
    path = Path(path)
    if shape not in SHAPES:
        raise FoldError(f"shape {shape!r} is not known; expected one of {', '.join(SHAPES)}")
    if shape == "mfhca":
        return [_write_ours(path, folds)]
    if path.suffix.lower() in (".csv", ".json", ".jsonl"):
        raise FoldError(f"{path}: the shape {shape} is a folder of files; expected a folder's name")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FoldError(f"{path}: is there already; expected a new or an empty folder")
    table = utterances.set_index("utterance_id", drop=False)
    labels = sorted(set(table.loc[[name for fold in folds for part in PARTS for name in getattr(fold, part)], "class"]))
    files: dict[str, str] = {}
    for fold in folds:
        for part, word in (("train", "train"), ("validation", "valid"), ("test", "test")):
            rows = table.loc[list(getattr(fold, part))].to_dict("records")
            if rows:
                files |= _FILES[shape](fold.number, word, rows, labels)
    if shape == "emobox":
        files["label_map.json"] = _json({label: label for label in labels})
    for name, text in files.items():
        _make((path / name).parent)
        publish(path / name, text.encode())
    return [path / name for name in files]


def _write_ours(path: Path, folds: Sequence[Fold]) -> Path:
    if path.suffix.lower() not in (".csv", ".json"):
        raise FoldError(f"{path}: expected a name that ends in .csv or .json")
    _make(path.parent)
    if path.suffix.lower() == ".csv":
        rows = [(fold.name, name, part) for fold in folds for part in PARTS for name in getattr(fold, part)]
        publish(path, csv_bytes(pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)))
    else:
        items = [{"name": fold.name, **{part: list(getattr(fold, part)) for part in PARTS}} for fold in folds]
        publish(path, _json({"protocol": folds[0].protocol, "folds": items}).encode())
    return path


def _emobox(fold: int, word: str, rows: list[Any], _: list[str]) -> dict[str, str]:
    """Name → text of a part's two files."""
    lines = [
        {
            "key": f"{row['corpus']}-{row['utterance_id']}",
            "dataset": row["corpus"],
            "wav": f"downloads/{row['corpus']}/{row['path']}",
            "type": "raw",
            "sample_rate": int(row["sample_rate"]),
            "num_frame": float(round(row["seconds"] * row["sample_rate"])),
            "task": "category",
            "length": float(row["seconds"]),
            "emo": row["class"],
            "channel": int(row["channels"]),
        }
        for row in rows
    ]
    stem = f"fold_{fold}/{rows[0]['corpus']}_{word}_fold_{fold}"
    keys = ("wav", "length", "emo", "dataset", "channel")
    return {
        f"{stem}.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
        f"{stem}.json": _json({line["key"]: {key: line[key] for key in keys} for line in lines}),
    }


def _s3prl(fold: int, word: str, rows: list[Any], labels: list[str]) -> dict[str, str]:
    entries = [{"path": row["path"], "label": row["class"], "speaker": row["speaker"]} for row in rows]
    value = {"labels": {label: number for number, label in enumerate(labels)}, "meta_data": entries}
    return {f"Session{fold}/{word}_meta_data.json": _json(value)}


def _speechbrain(fold: int, word: str, rows: list[Any], _: list[str]) -> dict[str, str]:
    # SpeechBrain's loader puts its data_folder where {data_root} stands.
    value = {
        row["utterance_id"]: {
            "wav": f"{{data_root}}/{row['path']}",
            "length": float(row["seconds"]),
            "emo": row["class"],
        }
        for row in rows
    }
    return {f"fold_{fold}/{word}.json": _json(value)}


_FILES = {"emobox": _emobox, "s3prl": _s3prl, "speechbrain": _speechbrain}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoldError(f"{folder}: could not be made ({error.strerror})") from error
