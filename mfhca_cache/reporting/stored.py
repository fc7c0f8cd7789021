"""A run's folder, read: its summary, what its folds have in common, and its folds in full."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.reporting.summary import RunSummary, run_predictions, summarise
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.result import FoldResult, fold_folder, read_fold


@dataclass(frozen=True)
class StoredRun:
    """A run and all that it holds.

    Attributes:
        folder: the run's.
        identity: its run.json.
        results: its folds that are trained, in order.
    """

    folder: Path
    summary: RunSummary
    identity: dict[str, Any]
    results: tuple[FoldResult, ...]


def read_run(run: str | Path, summary: RunSummary | None = None) -> StoredRun:
    """Read a run's folder.

    Raises:
        TrainingError: no run there, no fold is trained yet, or a fold is damaged.
    """
    run = Path(run)
    summary = summary or summarise(run)
    results = [read_fold(fold_folder(run, int(number))) for number in summary.folds["fold"]]
    return StoredRun(run, summary, read_json(run / "run.json"), tuple(results))


def telling_utterances(run: StoredRun) -> pd.DataFrame:
    """By a rule, not by hand: of each class the utterance most surely recognised and the one most surely mistaken.

    Over the test utterances of all folds; sure is the probability of the predicted class; ties go to the first id. A
    row each: the columns of predictions.csv, fold, ``sure`` and ``right``.
    """
    table = run_predictions(run.folder).reset_index(drop=True)
    columns = [f"p_{name}" for name in run.summary.classes]
    places = table["prediction"].map({name: number for number, name in enumerate(run.summary.classes)})
    sure = table[columns].to_numpy()[np.arange(len(table)), places.to_numpy()]
    table = table.assign(sure=sure, right=table["label"] == table["prediction"])
    table = table.sort_values(["sure", "utterance_id"], ascending=[False, True], kind="stable")
    found = [
        part.head(1)
        for name in run.summary.classes
        for right in (True, False)
        if len(part := table[(table["label"] == name) & (table["right"] == right)])
    ]
    return pd.concat(found, ignore_index=True)
