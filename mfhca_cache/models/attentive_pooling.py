"""Self-attentive pooling: each frame has a learned weight in the mean over time, and optionally in the deviation.

Safari, India and Hernando, "Self-attention encoding and pooling for speaker recognition", Interspeech 2020 (arXiv
2008.01077): weights are the softmax over frames of one linear score a frame. With statistics, the weighted standard
deviation stands beside the mean: Okabe, Koshinaka and Shinoda, "Attentive statistics pooling for deep speaker
embedding", Interspeech 2018 (arXiv 1803.10963). The rest is SUPERB's linear probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mfhca_cache.models.linear_probe import by_layer, make_layer_weights, mix_layers
from mfhca_cache.models.settings import ModelSettings

#: Least variance, so that a clip of one frame has a gradient.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class AttentivePoolingSettings(ModelSettings):
    """Sizes of the probe.

    Attributes:
        encoder_layers: of the features; 1 where they are of one layer.
        encoder_width: D.
        hidden: width of the projection.
        statistics: whether the weighted standard deviation is beside the weighted mean.
    """

    encoder_layers: int = 1
    encoder_width: int = 768
    hidden: int = 256
    statistics: bool = False


class AttentivePooling(nn.Module):
    """Encoder features of a clip, of one layer or several, with frames → logits (B, n_classes).

    Attributes:
        layer_weights: (layers,), softmax gives each layer's share. None for a single layer.
    """

    def __init__(self, settings: AttentivePoolingSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or AttentivePoolingSettings()
        self.layer_weights = make_layer_weights(settings.encoder_layers)
        self.projection = nn.Linear(settings.encoder_width, settings.hidden)
        # Without a bias: the softmax over frames would take it away.
        self.attention = nn.Linear(settings.hidden, 1, bias=False)
        self.classifier = nn.Linear((2 if settings.statistics else 1) * settings.hidden, settings.n_classes)

    def weights(self, encoder: Tensor, mask: Tensor | None = None) -> Tensor:
        """Each frame's weight in the mean, (B, L), 0 where a frame is no signal; arguments as of `features`."""
        return self._pool(encoder, mask)[0]

    def features(self, encoder: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the classifier sees: (B, [layers,] L, D) → (B, hidden), with statistics (B, 2 · hidden).

        Args:
            mask: bool (B, L), True where a frame is signal, one at least; None for all.

        Raises:
            TrainingError: other layers or another width than the model was made for.
        """
        weights, frames = self._pool(encoder, mask)
        mean = torch.matmul(weights.unsqueeze(1), frames)  # (B, 1, hidden)
        if not self.settings.statistics:
            return mean.squeeze(1)
        variance = torch.matmul(weights.unsqueeze(1), (frames - mean).square())
        return torch.cat([mean, variance.clamp(min=_LEAST_VARIANCE).sqrt()], 2).squeeze(1)

    def forward(self, encoder: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, [layers,] L, D) → logits (B, n_classes); arguments and errors as of `features`."""
        return cast(Tensor, self.classifier(self.features(encoder, mask)))

    def _pool(self, encoder: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights (B, L), and projected frames (B, L, hidden)."""
        layers = by_layer(encoder, self.settings.encoder_layers, self.settings.encoder_width)
        frames = self.projection(mix_layers(layers, self.layer_weights))
        scores = self.attention(frames).squeeze(2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(1), frames
