"""MFHCA (arXiv 2404.13509): the spectrogram network MF, made of GRF blocks, and the fusion HCA. Equations 1 to 11.

Shapes: B clips, T spectrogram frames, F bins, L encoder frames, D encoder width, C channels of an H × W map.
Where the paper is silent a choice is a field of `MFHCASettings`; `paper` and `released` are the two sets of choices.
The rows of Table II without MF or without HCA have AlexNet or co-attention in their place, by the same settings.
All tensors are floating point of one dtype, and a model's result does not depend on their memory format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.alexnet import AlexNet
from mfhca_cache.models.co_attention import CoAttention
from mfhca_cache.models.resize import adaptive_average, memory_format, upsample
from mfhca_cache.models.settings import MFHCASettings

#: The parallel convolution: two kernels, along (time, frequency), and their paddings.
STEM = (((10, 2), (4, 0)), ((2, 8), (0, 3)))


class GRF(nn.Module):
    """Global Receptive Field block, Eqs. 1–8: (B, C, H, W) → (B, C, H, W), H and W at least ``rate``.

    Args:
        channels: C.
        rate: 1/r of Eq. 7.
        settings: the block's other choices (its own ``channels`` and ``rate`` are not looked at).
    """

    def __init__(self, channels: int, rate: int = 4, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        settings = dataclasses.replace(settings or MFHCASettings(), rate=rate)
        reduced = max(settings.reduced_min, channels // settings.reduction)
        dilation = settings.dilation
        self.rate = rate
        self.upsample = settings.upsample
        self.squeeze = nn.Conv2d(channels, reduced, 1)
        self.squeeze_norm = nn.BatchNorm2d(reduced)
        self.gate_activation = nn.Hardswish() if settings.gate_activation == "hardswish" else nn.SiLU()
        self.gate_h = nn.Conv2d(reduced, channels, 1)
        self.gate_w = nn.Conv2d(reduced, channels, 1)
        self.context = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.context_norm = nn.BatchNorm2d(channels)
        self.residual = _residual(channels) if settings.block == "released" else None

    def forward(self, X: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W).

        Raises:
            TrainingError: the map is smaller than the average pooling's window.
        """
        H, W = X.shape[2:]
        if min(H, W) < self.rate:
            raise TrainingError(
                f"got a map of {H} × {W}; rate {self.rate} (r = 1/{self.rate}) needs at least {self.rate} × "
                f"{self.rate}; use a smaller rate, longer clips or more bins"
            )
        z_h = adaptive_average(X, (H, 1))  # Eq. 1: (B, C, H, 1)
        z_w = adaptive_average(X, (1, W))  # Eq. 2: (B, C, 1, W)
        z = torch.cat([z_h, z_w.transpose(2, 3)], 2)
        f = self.gate_activation(self.squeeze_norm(self.squeeze(z)))  # Eq. 3: (B, reduced, H + W, 1)
        f_h, f_w = f.split([H, W], 2)
        g_h = torch.sigmoid(self.gate_h(f_h))  # Eq. 4: (B, C, H, 1)
        g_w = torch.sigmoid(self.gate_w(f_w)).transpose(2, 3)  # Eq. 5: (B, C, 1, W)
        context = self.context_norm(self.context(F.avg_pool2d(X, self.rate)))  # Eq. 7: F(AvgPool_r(X))
        up = upsample(context, (H, W), self.upsample)  # Eq. 7: Y_b is X + this
        if self.residual is not None:
            Y_a = X * g_h * g_w  # Eq. 6
            return F.relu_(self.residual(Y_a) + up.add(X, alpha=2))  # X + Y_b = 2 X + Up(…)
        # Eqs. 6–8: Y = X + Y_a + Y_b = (g_h ⊙ g_w + 2) ⊙ X + Up(…). Maps of two memory formats multiply 6 × slower.
        gate = (g_h * g_w + 2).contiguous(memory_format=memory_format(X))
        return (X * gate).add_(up)


class MF(nn.Module):
    """Multi-Spatial Fusion: the spectrogram's image (B, in_channels, T, F) → ``f_spec`` (B, width).

    Args:
        channels: of each GRF block.
        rate: 1/r of Eq. 7.
        settings: the other choices (its own ``channels`` and ``rate`` are not looked at).

    Attributes:
        width: of ``f_spec``: channels[-1] · spec_pool[0] · spec_pool[1] = 288.
        in_channels: of the image.

    Raises:
        TrainingError: settings that no model can have.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 32, 48), rate: int = 4, settings: MFHCASettings | None = None
    ) -> None:
        super().__init__()
        settings = dataclasses.replace(settings or MFHCASettings(), channels=tuple(channels), rate=rate)
        self.settings = settings
        self.width = channels[-1] * math.prod(settings.spec_pool)
        self.in_channels = settings.in_channels
        half = channels[0] // 2
        self.stem = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(settings.in_channels, half, kernel, padding=padding),
                nn.BatchNorm2d(half) if settings.stem_norm_relu else nn.Identity(),
                nn.MaxPool2d(*settings.pool, padding=settings.pool[0] // 2),
                # ReLU and max-pooling commute; after it there is a quarter of the map left to go through.
                nn.ReLU(inplace=True) if settings.stem_norm_relu else nn.Identity(),
            )
            for kernel, padding in STEM
        )
        self.lift = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, settings.lift_kernel, padding=settings.lift_kernel // 2),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise(channels)
        )
        self.blocks = nn.ModuleList(GRF(count, rate, settings) for count in channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, T, F) → (B, width).

        Raises:
            TrainingError: the image has other channels, or is smaller than the model's windows.
        """
        channels = self.in_channels
        if image.ndim != 4 or image.shape[1] != channels or min(image.shape[2:]) < 2:
            raise TrainingError(
                f"spectrogram image: got shape {tuple(image.shape)}; expected (B, {channels}, T, F), T and F at least 2"
            )
        if self.settings.long_kernel_along == "frequency":
            image = image.transpose(2, 3)
        X = self.blocks[0](torch.cat([branch(image) for branch in self.stem], 1))
        for lift, block in zip(self.lift, self.blocks[1:], strict=True):
            X = block(lift(X))
        return adaptive_average(X, self.settings.spec_pool).flatten(1)


class HCA(nn.Module):
    """Hierarchical Cooperative Attention, Eqs. 9–11: ``f_spec`` (B, spec_width), ``f_hubert`` (B, L, D) → (B, width).

    Args:
        spec_width: of ``f_spec``.
        settings: ``encoder_frames`` (L), ``encoder_width`` (D), ``hidden``, ``dropout`` and ``attention_…``.

    Attributes:
        width: of the result: 2 · hidden = 256.

    Raises:
        TrainingError: a D that Eq. 10 cannot fold.
    """

    def __init__(self, spec_width: int = 288, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MFHCASettings()
        L, D, rows = settings.encoder_frames, settings.encoder_width, settings.attention_grid
        if D % rows or D % 2:
            raise TrainingError(
                f"encoder_width: got {D}; expected an even multiple of {rows} (attention_grid), which Eq. 10 folds it "
                "by; use an encoder of such a width, or another attention_grid"
            )
        self.width = 2 * settings.hidden
        self.lstm = nn.LSTM(D, D // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.weights = nn.Linear(spec_width, L)
        self.attended = nn.Linear(rows * rows, D)
        self.spec_out = nn.Linear(spec_width, settings.hidden)
        self.encoder_out = nn.Linear(D, settings.hidden)

    def forward(self, f_spec: Tensor, f_hubert: Tensor) -> Tensor:
        """(B, spec_width), (B, L, D) → (B, width).

        Raises:
            TrainingError: the encoder's features have another L or D than the model.
        """
        L, D, rows = self.settings.encoder_frames, self.settings.encoder_width, self.settings.attention_grid
        if f_hubert.ndim != 3 or f_hubert.shape[1:] != (L, D):
            raise TrainingError(
                f"encoder features: got shape {tuple(f_hubert.shape)}; the model expects (B, {L}, {D}); set "
                "encoder_frames and encoder_width to the shape of the cache's features"
            )
        w = self.over_time(f_spec).unsqueeze(1)  # (B, 1, L)
        f_att = torch.matmul(w, self._bilstm(f_hubert))  # Eq. 9: w ⊗ f'_hubert, (B, 1, D)
        if self.settings.attention_softmax:
            f_att = f_att.softmax(-1)  # Eq. 9: over D
        f_att = self.settings.attention_scale * f_att.reshape(-1, D // rows, rows)
        product = torch.matmul(adaptive_average(f_hubert, (rows, D // rows)), f_att)  # Eq. 10: (B, rows, rows)
        attended = self.attended(product.flatten(1))  # Eq. 10: f'_att, (B, D)
        return torch.cat([F.relu(self.spec_out(f_spec)), F.relu(self.encoder_out(attended))], 1)  # Eq. 11

    def over_time(self, f_spec: Tensor) -> Tensor:
        """``w`` of Eq. 9, each encoder frame's weight, 0 or more and of no fixed sum: (B, spec_width) → (B, L)."""
        return F.relu(self.weights(self.dropout(f_spec)))

    def _bilstm(self, f_hubert: Tensor) -> Tensor:
        """f'_hubert: (B, L, D) → (B, L, D)."""
        return run_lstm(self.lstm, f_hubert)


class MFHCA(nn.Module):
    """The whole model: spectrogram (B, T, F) and encoder features (B, L, D) → logits (B, n_classes).

    Attributes:
        mf: MF, or AlexNet in its place.
        hca: HCA, or co-attention in its place.
    """

    def __init__(self, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MFHCASettings()
        self.mf = spectrogram_network(settings)
        self.hca = (CoAttention if settings.fusion == "co-attention" else HCA)(self.mf.width, settings)
        self.classifier = classifier(self.hca.width, settings)

    def features(self, spectrogram: Tensor, encoder: Tensor) -> Tensor:
        """The fused feature before the classifier: (B, T, F), (B, L, D) → (B, 2 · hidden).

        Raises:
            TrainingError: a shape that the model was not made for.
        """
        f_spec = self.mf(as_image(spectrogram, self.mf.in_channels))
        return cast(Tensor, self.hca(f_spec, encoder))

    def forward(self, spectrogram: Tensor, encoder: Tensor) -> Tensor:
        """(B, T, F), (B, L, D) → logits (B, n_classes); raises as `features` does."""
        return cast(Tensor, self.classifier(self.features(spectrogram, encoder)))


def spectrogram_network(settings: MFHCASettings) -> MF | AlexNet:
    """What makes ``f_spec`` of the spectrogram's image: (B, in_channels, T, F) → (B, width)."""
    if settings.spectrogram_network == "alexnet":
        return AlexNet(settings.hidden, settings.dropout)
    return MF(settings.channels, settings.rate, settings)


def run_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """The outputs of every step: (B, L, D) → (B, L, width), under bfloat16 autocast too."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Most CPUs have no bfloat16 LSTM, and torch raises instead of falling back.
        with torch.autocast("cpu", enabled=False):
            return cast(Tensor, lstm(x.float())[0])
    return cast(Tensor, lstm(x)[0])


def classifier(width: int, settings: MFHCASettings) -> nn.Sequential:
    """Dropout, then three fully connected layers with ReLU between: (B, width) → (B, n_classes)."""
    return nn.Sequential(
        nn.Dropout(settings.dropout),
        nn.Linear(width, settings.hidden),
        nn.ReLU(),
        nn.Linear(settings.hidden, settings.hidden),
        nn.ReLU(),
        nn.Linear(settings.hidden, settings.n_classes),
    )


def as_image(spectrogram: Tensor, channels: int) -> Tensor:
    """(B, T, F) → (B, channels, T, F), every channel the same.

    Raises:
        TrainingError: not three axes.
    """
    if spectrogram.ndim != 3:
        raise TrainingError(f"spectrogram: got shape {tuple(spectrogram.shape)}; expected (B, T, F)")
    return spectrogram.unsqueeze(1).expand(-1, channels, -1, -1)


def _residual(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
