"""One input alone: the spectrogram through MF or AlexNet, or the encoder's features pooled, with MFHCA's classifier.

The rows "Spec" and "Hubert" of the paper's Table II.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.mfhca import as_image, classifier, spectrogram_network
from mfhca_cache.models.resize import adaptive_average
from mfhca_cache.models.settings import MFHCASettings


class SpectrogramOnly(nn.Module):
    """MF, or AlexNet, and the classifier: spectrogram (B, T, F) → logits (B, n_classes)."""

    def __init__(self, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MFHCASettings()
        self.mf = spectrogram_network(settings)
        self.classifier = classifier(self.mf.width, settings)

    def features(self, spectrogram: Tensor) -> Tensor:
        """``f_spec``, what the classifier sees: (B, T, F) → (B, 288), by AlexNet (B, 128).

        Raises:
            TrainingError: a shape that the model was not made for.
        """
        return cast(Tensor, self.mf(as_image(spectrogram, self.mf.in_channels)))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """(B, T, F) → logits (B, n_classes); raises as `features` does."""
        return cast(Tensor, self.classifier(self.features(spectrogram)))


class EncoderOnly(nn.Module):
    """Adaptive average pooling and the classifier: encoder features (B, L, D) → logits (B, n_classes).

    L and D may be any; only ``encoder_pool``, ``hidden``, ``dropout`` and ``n_classes`` of the settings count.
    """

    def __init__(self, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MFHCASettings()
        self.classifier = classifier(math.prod(settings.encoder_pool), settings)

    def features(self, encoder: Tensor) -> Tensor:
        """What the classifier sees: (B, L, D) → (B, 12 · 64).

        Raises:
            TrainingError: not three axes.
        """
        if encoder.ndim != 3:
            raise TrainingError(f"encoder features: got shape {tuple(encoder.shape)}; expected (B, L, D)")
        return adaptive_average(encoder, self.settings.encoder_pool).flatten(1)

    def forward(self, encoder: Tensor) -> Tensor:
        """(B, L, D) → logits (B, n_classes); raises as `features` does."""
        return cast(Tensor, self.classifier(self.features(encoder)))
