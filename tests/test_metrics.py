from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.training.metrics import confusion, score, utterance_log_probabilities


def test_wa_and_ua_of_a_case_worked_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 0, 1, 1, 0, 3])
    scores = score(labels, predicted)
    assert scores.wa == pytest.approx(4 / 7)
    assert scores.ua == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert scores.count == 7
    expected = [[3, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert confusion(labels, predicted, 4).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_scores_agree_with_the_confusion_matrix(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    matrix, scores = confusion(labels, predicted, 4), score(labels, predicted)
    present = matrix.sum(1) > 0
    assert scores.wa == pytest.approx(matrix.trace() / len(pairs))
    assert scores.ua == pytest.approx((matrix.diagonal()[present] / matrix.sum(1)[present]).mean())


def test_an_utterance_is_the_mean_of_its_clips_log_probabilities() -> None:
    clips = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95]], dtype=np.float32))
    got = utterance_log_probabilities(clips, np.array([1, 0, 0]), 2)
    np.testing.assert_allclose(got, [(clips[1] + clips[2]) / 2, clips[0]], rtol=1e-6)
    # The mean of logs decides otherwise than the mean of probabilities would.
    doubtful = np.log(np.array([[0.999, 0.001], [0.3, 0.7], [0.3, 0.7]], dtype=np.float32))
    assert utterance_log_probabilities(doubtful, np.zeros(3, dtype=int), 1).argmax() == 0
