"""Scores, by scikit-learn, at the level of clips and of utterances.

WA (weighted accuracy) = correct / all. UA (unweighted accuracy) = mean recall over the classes that are present.
An utterance's prediction is the argmax of the mean of its clips' log-probabilities. The utterance is the headline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score


@dataclass(frozen=True)
class Scores:
    """WA and UA in 0…1, and the number of items that they are of."""

    wa: float
    ua: float
    count: int


def score(labels: np.ndarray, predictions: np.ndarray) -> Scores:
    """Scores of predicted classes, both int64 (N,)."""
    present = np.unique(labels)
    ua = recall_score(labels, predictions, labels=present, average="macro", zero_division=0)
    return Scores(float(accuracy_score(labels, predictions)), float(ua), len(labels))


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted."""
    return np.asarray(confusion_matrix(labels, predictions, labels=np.arange(classes)))


def by_utterance(log_probabilities: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips gathered by utterance.

    Args:
        log_probabilities: float (clips, classes).
        owner: (clips,) number of each clip's utterance, any whole numbers.

    Returns:
        the numbers that occur, ascending (U,); the clips of each (U,); and the means, float64 (U, classes).
    """
    numbers, place, clips = np.unique(owner, return_inverse=True, return_counts=True)
    return numbers, clips, utterance_log_probabilities(log_probabilities, place, len(numbers))


def utterance_log_probabilities(log_probabilities: np.ndarray, owner: np.ndarray, utterances: int) -> np.ndarray:
    """Mean over each utterance's clips: float (clips, classes) and int64 owner (clips,) → (utterances, classes)."""
    total = np.zeros((utterances, log_probabilities.shape[1]), dtype=np.float64)
    np.add.at(total, owner, log_probabilities.astype(np.float64))
    return total / np.bincount(owner, minlength=utterances)[:, None]
