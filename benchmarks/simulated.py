"""Corpora drawn at random in which speakers differ, so that the truth about an interval or a test is known.

Everything is drawn for many corpora at once: arrays begin with (draws, speakers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

CLASSES = 4
#: So many corpora are drawn at a time.
PART = 500
#: Of the spread of speakers' and classes' effects, how much two systems have in common.
SHARED = 0.5
#: How much an utterance's difficulty, the same for both systems, counts beside the rest.
DIFFICULTY = 1.0


@dataclass(frozen=True)
class Corpus:
    """What corpora to draw.

    Attributes:
        name: in words.
        utterances: of a speaker, on average.
        size_spread: standard deviation of the logarithm of a speaker's number of utterances.
        share: of each class, on average.
        evenness: how alike the speakers' shares are: a Dirichlet distribution's total.
        recall: of each class, of a speaker without effects.
        speaker, speaker_class: standard deviations of a speaker's effect, and of its effect on each class, on the
            probit scale where an utterance's own noise is 1.
    """

    name: str
    utterances: float
    size_spread: float
    share: tuple[float, ...]
    evenness: float
    recall: tuple[float, ...]
    speaker: float = 0.35
    speaker_class: float = 0.5


#: Sizes and shares of the four classes as in the corpora named; effects give speakers' UA a spread of 6 to 11 points.
CORPORA = (
    Corpus("as IEMOCAP", 553, 0.15, (0.2, 0.3, 0.3, 0.2), 10, (0.75, 0.6, 0.65, 0.75)),
    Corpus("as Emo-DB", 34, 0.3, (0.37, 0.21, 0.23, 0.19), 25, (0.85, 0.6, 0.75, 0.85)),
    Corpus("unequal", 100, 0.7, (0.2, 0.3, 0.3, 0.2), 4, (0.75, 0.6, 0.65, 0.75)),
    Corpus("near the top", 60, 0.2, (0.25, 0.25, 0.25, 0.25), 15, (0.97, 0.9, 0.95, 0.98)),
)


@dataclass(frozen=True)
class Drawn:
    """Corpora tested by two systems that are equally good: each int64 (draws, speakers, classes).

    Attributes:
        total: utterances.
        both, only_a, only_b: those that both systems, or only one of them, recognised.
    """

    total: np.ndarray
    both: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray

    @property
    def right_a(self) -> np.ndarray:
        """What system A recognised."""
        return self.both + self.only_a

    @property
    def right_b(self) -> np.ndarray:
        """What system B recognised."""
        return self.both + self.only_b


def in_parts(draw: Callable[[int], Drawn], draws: int) -> Drawn:
    """What ``draw`` makes of so many corpora, a few at a time: they take much more memory than what is kept of them."""
    parts = [draw(min(PART, draws - begun)) for begun in range(0, draws, PART)]
    return Drawn(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Drawn)))


def draw_effects(corpus: Corpus, draws: int, speakers: int, rng: np.random.Generator) -> Drawn:
    """Two systems whose recalls vary by speaker, and by class within a speaker; their effects are correlated."""
    sizes = corpus.utterances * np.exp(rng.normal(-(corpus.size_spread**2) / 2, corpus.size_spread, (draws, speakers)))
    shares = rng.gamma(corpus.evenness * np.array(corpus.share), size=(draws, speakers, CLASSES))
    total = np.maximum(1, rng.poisson(sizes[..., None] * shares / shares.sum(-1, keepdims=True)))
    own = np.sqrt([SHARED, 1 - SHARED])

    def effects(*shape: int) -> np.ndarray:
        common, apart = rng.normal(size=(1, *shape)), rng.normal(size=(2, *shape))
        return own[0] * common + own[1] * apart

    noise = np.hypot(1, DIFFICULTY)
    centre = stats.norm.ppf(corpus.recall) * noise
    effect = corpus.speaker * effects(draws, speakers, 1) + corpus.speaker_class * effects(draws, speakers, CLASSES)
    a, b = centre + effect
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    right = np.zeros((3, *total.shape))  # A, B, both: averaged over the difficulty that they share.
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        each = stats.norm.cdf(np.stack([a, b]) + DIFFICULTY * node)
        right += weight * np.stack([each[0], each[1], each[0] * each[1]])
    both = rng.binomial(total, right[2])
    only_a = rng.binomial(total - both, ((right[0] - right[2]) / (1 - right[2])).clip(0, 1))
    left = 1 - right[0]
    only_b = rng.binomial(total - both - only_a, ((right[1] - right[2]) / left).clip(0, 1))
    return Drawn(total, both, only_a, only_b)


def draw_trained(
    draws: int, speakers: int, rng: np.random.Generator, utterances: int = 40, features: int = 12
) -> Drawn:
    """Two classifiers really trained, leaving one speaker out at a time, on features whose means shift by speaker.

    Least squares onto the classes, with a ridge. Each system has features of its own, drawn from the same distribution
    and correlated with the other's, so the two are equally good, and their folds share training data as real ones do.
    """
    shape = (draws, speakers, utterances)
    there = np.arange(utterances) < rng.integers(utterances // 2, utterances + 1, (draws, speakers, 1))
    shares = rng.gamma(20.0, size=(draws, speakers, 1, CLASSES))
    edges = (shares / shares.sum(-1, keepdims=True)).cumsum(-1)
    labels = (rng.random((*shape, 1)) > edges[..., :-1]).sum(-1)
    onehot = np.eye(CLASSES)[labels] * there[..., None]
    means = 0.55 * np.random.default_rng(0).normal(size=(CLASSES, features))  # The same classes in every corpus.
    common = _shifted(means, labels, features, rng)
    right = []
    for _ in range(2):
        own = _shifted(means, labels, features, rng)
        x = means[labels] + np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
        x = np.concatenate([x, np.ones((*shape, 1))], -1)
        kept = x * there[..., None]
        gram, target = np.swapaxes(kept, -1, -2) @ x, np.swapaxes(kept, -1, -2) @ onehot
        others = gram.sum(1, keepdims=True) - gram + 1.0 * np.eye(features + 1)
        weights = np.linalg.solve(others, target.sum(1, keepdims=True) - target)
        right.append(((x @ weights).argmax(-1) == labels)[..., None] & (onehot > 0))
    a, b = right
    return Drawn(*(part.sum(2) for part in (onehot > 0, a & b, a & ~b, ~a & b)))


def _shifted(means: np.ndarray, labels: np.ndarray, features: int, rng: np.random.Generator) -> np.ndarray:
    """Shifts of speakers, of classes within speakers, and of utterances: (draws, speakers, utterances, features)."""
    draws, speakers, _ = labels.shape
    by_class = 0.5 * rng.normal(size=(draws, speakers, CLASSES, features))
    found = np.take_along_axis(by_class, labels[..., None], axis=2) + rng.normal(size=(*labels.shape, features))
    return found + 0.5 * rng.normal(size=(draws, speakers, 1, features))
