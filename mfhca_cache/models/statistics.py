"""Statistics pooling and a model that is fitted in closed form: a support vector machine, or ridge regression.

An utterance is the mean and the standard deviation of its signal frames, of every feature and layer, one after the
other (Snyder et al., "Deep neural network embeddings for text-independent speaker verification", Interspeech 2017).
On these, standardised: an SVM, one class against the rest, as the INTERSPEECH 2009 emotion challenge made usual
(Schuller, Steidl and Batliner), or ridge regression to +1 for the class and -1 for the others (Hoerl and Kennard,
1970; scikit-learn's RidgeClassifier). `mfhca_cache.training.closed_form` fits them.

Scores are decision values, and probabilities made of them are not calibrated. A clip is scored by its own statistics;
an utterance by those of all its frames, which is a clip of them all: (1, clips · L, D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mfhca_cache.models.settings import ModelSettings


@dataclass(frozen=True)
class ClosedFormSettings(ModelSettings):
    """What both have.

    Attributes:
        statistics: numbers that an utterance becomes.
        grid: values that are tried, of which the one with the best validation UA (ties: loss) is taken.
        balanced: whether every class weighs the same in the fit, however many utterances it has.
    """

    statistics: int = 1
    grid: tuple[float, ...] = (1.0,)
    balanced: bool = True


@dataclass(frozen=True)
class RidgeSettings(ClosedFormSettings):
    """Of ridge regression; ``grid`` has alphas, the factor of the weights' squared norm."""

    grid: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class SVMSettings(ClosedFormSettings):
    """Of the support vector machine; ``grid`` has values of C.

    Attributes:
        kernel: ``rbf``: exp(-‖x - y‖² / statistics), ``linear``: x · y.
        support_vectors: how many were found.
    """

    grid: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    kernel: Literal["rbf", "linear"] = "rbf"
    support_vectors: int = 1


class StatisticsModel(nn.Module):
    """What both have: features and masks of B clips → statistics (B, P), standardised → scores (B, n_classes).

    Args:
        inputs: names of the features, in the order of their statistics.
        settings: ``statistics`` is P.

    Attributes:
        mean, std: buffers, float32 (P,), of the training utterances' statistics.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Sequence[str], settings: ClosedFormSettings) -> None:
        super().__init__()
        self.inputs, self.settings = tuple(inputs), settings
        self.register_buffer("mean", torch.zeros(settings.statistics))
        self.register_buffer("std", torch.ones(settings.statistics))

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Feature → (B, …), and masks, bool (B, frames) for those with frames → scores, float32 (B, n_classes)."""
        parts = [pool(*moments(features[name], masks.get(name)), name in masks) for name in self.inputs]
        return self.scores(torch.cat(parts, 1))

    def scores(self, statistics: Tensor) -> Tensor:
        """(N, P) → decision values, float32 (N, n_classes)."""
        return self.decide((statistics.double() - self.mean) / self.std).float()

    def decide(self, z: Tensor) -> Tensor:
        """Standardised statistics, float64 (N, P) → decision values, float64 (N, n_classes)."""
        raise NotImplementedError


class Ridge(StatisticsModel):
    """A linear function of the statistics a class: buffers ``weight`` (n_classes, P) and ``bias`` (n_classes,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: Sequence[str], settings: RidgeSettings) -> None:
        super().__init__(inputs, settings)
        self.register_buffer("weight", torch.zeros(settings.n_classes, settings.statistics))
        self.register_buffer("bias", torch.zeros(settings.n_classes))

    def decide(self, z: Tensor) -> Tensor:
        """z Wᵀ + b."""
        return z @ self.weight.double().T + self.bias.double()


class SVM(StatisticsModel):
    """The kernel with each support vector, weighted: Σ_s dual_cs · k(z, v_s) + b_c.

    Attributes:
        vectors: buffer (S, P), training utterances that support any of the classes, standardised.
        dual: buffer (n_classes, S): of each class against the rest.
        bias: buffer (n_classes,).
    """

    vectors: Tensor
    dual: Tensor
    bias: Tensor

    def __init__(self, inputs: Sequence[str], settings: SVMSettings) -> None:
        super().__init__(inputs, settings)
        self.kernel = settings.kernel
        self.register_buffer("vectors", torch.zeros(settings.support_vectors, settings.statistics))
        self.register_buffer("dual", torch.zeros(settings.n_classes, settings.support_vectors))
        self.register_buffer("bias", torch.zeros(settings.n_classes))

    def decide(self, z: Tensor) -> Tensor:
        """The decision function of each class against the rest."""
        return kernel(z, self.vectors.double(), self.kernel) @ self.dual.double().T + self.bias.double()


def kernel(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """float64 (N, P), (M, P) → (N, M): ``rbf`` or ``linear`` as in `SVMSettings`."""
    product = x @ y.T
    if kind == "linear":
        return product
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * product
    return torch.exp(-squares.clamp(min=0) / x.shape[1])


def moments(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What means and deviations are made from, float64: how many frames (B,), their sum and sum of squares (B, W).

    Args:
        values: (B, [layers,] L, D), or without L where there is no mask. W is layers · D.
        mask: bool (B, L), True where a frame is signal. Without one a clip counts as one frame.
    """
    x = values.double()
    if mask is None:
        x = x.flatten(1)
        return torch.ones(len(x), dtype=x.dtype, device=x.device), x, x.square()
    frames = mask.to(x.dtype)
    weights = frames.reshape(len(x), *(1,) * (x.ndim - 3), 1, -1)  # (B, [1,] 1, L)
    total, squares = (torch.matmul(weights, part).flatten(1) for part in (x, x.square()))
    return frames.sum(1), total, squares


def pool(count: Tensor, total: Tensor, squares: Tensor, deviation: bool) -> Tensor:
    """`moments`, of clips or summed over clips → float32 (B, 2 W): means, then deviations; or means alone (B, W).

    Args:
        deviation: False for features that were pooled over time, whose spread over frames is not known.
    """
    mean = total / count[:, None]
    if not deviation:
        return mean.float()
    std = (squares / count[:, None] - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean, std], 1).float()
