"""The paper's baseline [13] in full, CA-MSER: spectrogram, MFCC and wav2vec 2.0 by co-attention.

Zou, Si, Chen, Rajan and Chng, "Speech emotion recognition with co-attention based multi-level acoustic information",
ICASSP 2022 (arXiv 2203.15326). The classifier that AlexNet brings along, and that [13] never uses, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.alexnet import AlexNet
from mfhca_cache.models.co_attention import attend
from mfhca_cache.models.mfhca import as_image, run_lstm
from mfhca_cache.models.settings import ModelSettings


@dataclass(frozen=True)
class CoAttentionSettings(ModelSettings):
    """Sizes of [13]'s model.

    Attributes:
        encoder_width, encoder_frames: D and L of the encoder's features.
        mfcc_width, mfcc_frames: coefficients and frames of a clip's MFCC.
        lstm_width: of each direction of the two layers.
        hidden: what each of the three inputs is brought to, and the classifier's width.
        dropout: probability, before every linear layer but the last.
        lstm_dropout: probability between the LSTM's layers.
        alexnet_weights: file that AlexNet's convolutions start from; empty for random weights.
    """

    encoder_width: int = 768
    encoder_frames: int = 149
    mfcc_width: int = 40
    mfcc_frames: int = 300
    lstm_width: int = 256
    hidden: int = 128
    dropout: float = 0.1
    lstm_dropout: float = 0.5
    alexnet_weights: str = ""


class CAMSER(nn.Module):
    """Spectrogram (B, T, F), MFCC (B, T, 40) and encoder features (B, L, D) → logits (B, n_classes)."""

    def __init__(self, settings: CoAttentionSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or CoAttentionSettings()
        both, hidden = 2 * settings.lstm_width, settings.hidden
        self.alexnet = AlexNet(hidden, settings.dropout)
        # Dropout inside a cuDNN LSTM keeps a random state of its own, and runs would not repeat.
        self.lstm = nn.ModuleList(
            nn.LSTM(width, settings.lstm_width, batch_first=True, bidirectional=True)
            for width in (settings.mfcc_width, both)
        )
        self.lstm_dropout = nn.Dropout(settings.lstm_dropout)
        self.dropout = nn.Dropout(settings.dropout)
        self.mfcc_out = nn.Linear(settings.mfcc_frames * both, hidden)
        self.weights = nn.Linear(2 * hidden, settings.encoder_frames)
        self.encoder_out = nn.Linear(settings.encoder_width, hidden)
        self.classifier = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear(3 * hidden, hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, settings.n_classes),
        )

    def features(self, spectrogram: Tensor, mfcc: Tensor, encoder: Tensor) -> Tensor:
        """The fused feature before the classifier: (B, T, F), (B, T, 40), (B, L, D) → (B, 3 · hidden).

        Raises:
            TrainingError: a shape that the model was not made for.
        """
        f_spec = self.alexnet(as_image(spectrogram, self.alexnet.in_channels))  # (B, hidden)
        f_mfcc = self._mfcc(mfcc)  # (B, hidden)
        scores = self.weights(self.dropout(torch.cat([f_spec, f_mfcc], 1)))  # (B, L)
        attended = attend(scores, encoder, self.settings.encoder_width)  # (B, D)
        f_encoder = F.relu(self.encoder_out(self.dropout(attended)))  # (B, hidden)
        return torch.cat([f_spec, f_mfcc, f_encoder], 1)

    def forward(self, spectrogram: Tensor, mfcc: Tensor, encoder: Tensor) -> Tensor:
        """(B, T, F), (B, T, 40), (B, L, D) → logits (B, n_classes); raises as `features` does."""
        return cast(Tensor, self.classifier(self.features(spectrogram, mfcc, encoder)))

    def _mfcc(self, mfcc: Tensor) -> Tensor:
        """(B, T, 40) → (B, hidden). The L2 norm is each frame's, over its coefficients, as [13]'s code has it."""
        shape = self.settings.mfcc_frames, self.settings.mfcc_width
        if mfcc.ndim != 3 or mfcc.shape[1:] != shape:
            raise TrainingError(f"mfcc: got shape {tuple(mfcc.shape)}; the model expects (B, {shape[0]}, {shape[1]})")
        x = F.normalize(mfcc, dim=2)
        x = run_lstm(cast(nn.LSTM, self.lstm[0]), x)
        x = run_lstm(cast(nn.LSTM, self.lstm[1]), self.lstm_dropout(x))  # (B, T, 2 · lstm_width)
        return F.relu(self.mfcc_out(self.dropout(x.flatten(1))))
