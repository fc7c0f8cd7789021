"""SUPERB's linear probe: learned weights over an encoder's layers, a projection, a mean over time, one linear layer.

Yang et al., "SUPERB: Speech processing universal performance benchmark", Interspeech 2021 (arXiv 2105.01051), as its
emotion recognition task has it. Without a hidden nonlinearity it shows what the frozen features hold linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.settings import ModelSettings


@dataclass(frozen=True)
class LinearProbeSettings(ModelSettings):
    """Sizes of the probe.

    Attributes:
        encoder_layers: of the features; 1 where they are of one layer.
        encoder_width: D.
        hidden: width of the projection; 256 in SUPERB.
    """

    encoder_layers: int = 1
    encoder_width: int = 768
    hidden: int = 256


class LinearProbe(nn.Module):
    """Encoder features of a clip, of one layer or several, with frames or pooled → logits (B, n_classes).

    Attributes:
        layer_weights: (layers,), softmax gives each layer's share. None for a single layer.
    """

    def __init__(self, settings: LinearProbeSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or LinearProbeSettings()
        self.layer_weights = make_layer_weights(settings.encoder_layers)
        self.projection = nn.Linear(settings.encoder_width, settings.hidden)
        self.classifier = nn.Linear(settings.hidden, settings.n_classes)

    def features(self, encoder: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the classifier sees: (B, [layers,] [L,] D) → (B, hidden).

        Args:
            mask: bool (B, L), True where a frame is signal; None for all, and for features that were pooled.

        Raises:
            TrainingError: other layers or another width than the model was made for.
        """
        layers = by_layer(encoder, self.settings.encoder_layers, self.settings.encoder_width)
        # A projection and a mean are linear: the mean first is the same, for a fraction of the work.
        means = layers.mean(2) if mask is None else torch.matmul(shares(mask, layers)[:, None, None], layers).squeeze(2)
        return cast(Tensor, self.projection(mix_layers(means, self.layer_weights)))

    def forward(self, encoder: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, [layers,] [L,] D) → logits (B, n_classes); arguments and errors as of `features`."""
        return cast(Tensor, self.classifier(self.features(encoder, mask)))


def make_layer_weights(layers: int) -> nn.Parameter | None:
    """One weight a layer, all the same at first; None for a single layer."""
    return nn.Parameter(torch.zeros(layers)) if layers > 1 else None


def mix_layers(values: Tensor, weights: Tensor | None) -> Tensor:
    """The layers' sum by the softmax of their weights: (B, layers, …, D) → (B, …, D)."""
    if weights is None:
        return values.squeeze(1)
    return torch.matmul(weights.softmax(0), values.flatten(2)).unflatten(1, values.shape[2:])


def by_layer(encoder: Tensor, layers: int, width: int) -> Tensor:
    """(B, [layers,] [L,] D) → (B, layers, L, D), L = 1 where frames were pooled.

    Raises:
        TrainingError: other layers or another width.
    """
    shape = encoder.shape[1:]
    layered = layers > 1 or len(shape) == 3
    if not 1 <= len(shape) <= 3 or shape[-1] != width or (layered and (len(shape) < 2 or shape[0] != layers)):
        wanted = f"(B, {layers}, L, {width}) or (B, {layers}, {width})"
        wanted = wanted if layers > 1 else f"(B, L, {width}) or (B, {width})"
        raise TrainingError(f"encoder features: got shape {tuple(encoder.shape)}; the model expects {wanted}")
    return encoder.reshape(len(encoder), layers, -1, width)


def shares(mask: Tensor, like: Tensor) -> Tensor:
    """Each signal frame's share of a mean, 0 for the others: bool (B, L) → (B, L) of a tensor's type."""
    frames = mask.to(like.dtype)
    return frames / frames.sum(1, keepdim=True).clamp(min=1)
