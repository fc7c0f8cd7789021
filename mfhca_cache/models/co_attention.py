"""The baseline's fusion, the paper's "HCA ✗" with two inputs: co-attention of [13] (CA-MSER, ICASSP 2022).

Weights over the encoder's frames come from the other input, and the frames' weighted sum is concatenated with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.settings import MFHCASettings


class CoAttention(nn.Module):
    """``f_spec`` (B, spec_width), ``f_hubert`` (B, L, D) → (B, width): w ⊗ ``f_hubert``, concatenated with ``f_spec``.

    Args:
        spec_width: of ``f_spec``.
        settings: ``encoder_frames`` (L), ``encoder_width`` (D), ``hidden``, ``dropout``, ``spectrogram_network``.

    Attributes:
        width: of the result: 2 · hidden = 256.
    """

    def __init__(self, spec_width: int, settings: MFHCASettings) -> None:
        super().__init__()
        self.settings = settings
        self.width = 2 * settings.hidden
        self.dropout = nn.Dropout(settings.dropout)
        self.weights = nn.Linear(spec_width, settings.encoder_frames)
        # AlexNet ends in such a layer of its own, as in [13]; for MF it is that of Eq. 11.
        own = settings.spectrogram_network == "alexnet"
        self.spec_out = nn.Identity() if own else nn.Sequential(nn.Linear(spec_width, settings.hidden), nn.ReLU())
        self.encoder_out = nn.Linear(settings.encoder_width, settings.hidden)

    def forward(self, f_spec: Tensor, f_hubert: Tensor) -> Tensor:
        """(B, spec_width), (B, L, D) → (B, width).

        Raises:
            TrainingError: the encoder's features have another L or D than the model.
        """
        attended = attend(self.weights(self.dropout(f_spec)), f_hubert, self.settings.encoder_width)
        return torch.cat([self.spec_out(f_spec), F.relu(self.encoder_out(self.dropout(attended)))], 1)


def attend(scores: Tensor, f_encoder: Tensor, width: int) -> Tensor:
    """ReLU of one score a frame, w (B, 1, L), times the frames: w ⊗ ``f_encoder``. (B, L), (B, L, D) → (B, D).

    Args:
        width: D that the model was made for.

    Raises:
        TrainingError: the encoder's features have another L or D.
    """
    if f_encoder.ndim != 3 or f_encoder.shape[1:] != (scores.shape[1], width):
        raise TrainingError(
            f"encoder features: got shape {tuple(f_encoder.shape)}; the model expects (B, {scores.shape[1]}, {width}); "
            "set encoder_frames and encoder_width to the shape of the cache's features"
        )
    return torch.matmul(F.relu(scores).unsqueeze(1), f_encoder).squeeze(1)
