"""Who was recognised how well: a run's predictions counted by speaker and class, and a table of speakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import speaker_order
from mfhca_cache.reporting.intervals import Counts


def count_speakers(predictions: pd.DataFrame, classes: Sequence[str]) -> Counts:
    """Utterances of each speaker in each fold, by their true class, and those predicted right.

    Args:
        predictions: columns fold, speaker, label, prediction; ``correct`` (0…1) takes the last one's place if it is
            there.
        classes: in the order of the counts' last axis.

    Raises:
        TrainingError: a label that is none of the classes.
    """
    if strange := sorted(set(predictions["label"]) - set(classes)):
        raise TrainingError(f"predictions of the classes {', '.join(strange)}; expected {', '.join(classes)}")
    speakers = speaker_order(predictions)
    folds = sorted(set(predictions["fold"]))
    right = predictions["label"] == predictions["prediction"]
    table = predictions.assign(correct=predictions["correct"] if "correct" in predictions else right.astype(float))
    cells = table.groupby(["speaker", "fold", "label"])["correct"].agg(["sum", "size"])
    places = {cell: at for at, cell in enumerate(dict.fromkeys(zip(table["speaker"], table["fold"], strict=True)))}
    counts = np.zeros((2, len(places), len(classes)))
    for (speaker, fold, label), right_and_all in zip(cells.index.to_list(), cells.to_numpy(), strict=True):
        counts[:, places[speaker, fold], classes.index(label)] = right_and_all
    return Counts(
        counts[0],
        counts[1],
        np.array([speakers.index(speaker) for speaker, _ in places]),
        np.array([folds.index(fold) for _, fold in places]),
        tuple(speakers),
    )


def count_clips(records: Sequence[dict[str, Any]], utterances: Counts) -> Counts | None:
    """Clips by speaker, from the folds' confusion matrices; None where a fold tests several speakers.

    Args:
        records: of the folds, in order.
        utterances: of the same folds, in the same order.
    """
    if not utterances.a_fold_a_speaker or len(records) != len(utterances.fold):
        return None
    matrices = np.array([record["confusion"]["clip"] for record in records], dtype=np.float64)[utterances.fold]
    correct = matrices.diagonal(axis1=-2, axis2=-1)
    return Counts(correct, matrices.sum(-1), utterances.speaker, utterances.fold, utterances.speakers)


def speaker_table(counts: Counts, classes: Sequence[str], folds: Sequence[int] = ()) -> pd.DataFrame:
    """A row a speaker: speaker, fold, utterances, wa, ua (0…1), and ``recall_<class>``, NaN where it has none.

    Args:
        folds: the numbers of the counts' folds, in order. The column ``fold`` is there with them alone, and only where
            no speaker is tested in several.
    """
    correct, total = counts.by_speaker()
    recall = np.divide(correct, total, out=np.full(total.shape, np.nan), where=total > 0)
    columns = {f"recall_{name}": recall[:, at] for at, name in enumerate(classes)}
    once = bool(folds) and len(counts.speaker) == len(counts.speakers)
    fold = {"fold": [int(folds[at]) for at in counts.fold[np.argsort(counts.speaker)]]} if once else {}
    return pd.DataFrame(
        {
            "speaker": counts.speakers,
            **fold,
            "utterances": total.sum(-1).astype(int),
            "wa": correct.sum(-1) / total.sum(-1),
            "ua": np.nanmean(recall, -1),
            **columns,
        }
    )
