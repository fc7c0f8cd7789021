"""MFHCA (arXiv 2404.13509): the spectrogram network MF, made of GRF blocks, and the fusion HCA. Equations 1 to 11.

Shapes: B clips, T spectrogram frames, F bins, L encoder frames, D encoder width, C channels of an H × W map.
Where the paper is silent a choice is a field of `MFHCASettings`; `paper` and `released` are the two sets of choices.
All tensors are floating point of one dtype, and a model's result does not depend on their memory format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError

Upsample = Literal["bilinear", "nearest"]
Activation = Literal["swish", "hardswish"]
Block = Literal["paper", "released"]
Axis = Literal["time", "frequency"]
Resize = Literal["average", "bilinear", "nearest"]

#: The parallel convolution: two kernels, along (time, frequency), and their paddings.
STEM = (((10, 2), (4, 0)), ((2, 8), (0, 3)))


@dataclass(frozen=True)
class MFHCASettings:
    """What the paper says of the model, and what it leaves open. The defaults are the paper's variant.

    Raises:
        TrainingError: a value that no model can have.

    Attributes:
        n_classes: number of logits.
        encoder_width: D, an even multiple of ``attention_grid`` where the attention is used.
        encoder_frames: L. The attention has one weight a frame, so L is fixed when the model is made.
        in_channels: copies of the spectrogram that the first convolutions see (3 as released).
        channels: of each GRF block; their number is the number of blocks. The first must be even.
        rate: 1/r of Eq. 7, the window of the average pooling.
        long_kernel_along: what the (10, 2) kernel is long along. ``frequency`` turns the image to F × T.
        stem_norm_relu: batch norm and ReLU after each of the parallel convolutions.
        pool: kernel and stride of the max-pooling after them; its padding is kernel // 2.
        lift_kernel: odd size of the convolution (+ batch norm + ReLU) that lifts the channels between blocks.
        reduction, reduced_min: Eq. 3 leaves max(reduced_min, C // reduction) channels.
        gate_activation: of Eq. 3; ``hardswish`` as released.
        upsample: ``Up`` of Eq. 7; ``nearest`` as released.
        dilation: of the 3×3 convolution F of Eq. 7 (2 as released).
        block: ``paper``: Eq. 8. ``released``: Y = ReLU(BN(conv(ReLU(BN(conv(Y_a))))) + X + Y_b).
        spec_pool: cells (along H, along W) that the last block's map is averaged to.
        attention_softmax: Eq. 9's softmax over D (False as released).
        attention_scale: factor on ``f_att`` of Eq. 9; 1 is the paper as written.
        attention_grid: rows the encoder's features are averaged to in Eq. 10.
        encoder_pool: cells (along L, along D) that the encoder's features are averaged to in the model without MF.
        hidden: width of the branches of Eq. 11 and of the classifier.
        dropout: probability, before the attention's weights and before the classifier.
    """

    n_classes: int = 4
    encoder_width: int = 768
    encoder_frames: int = 149
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 48)
    rate: int = 4
    long_kernel_along: Axis = "time"
    stem_norm_relu: bool = True
    pool: tuple[int, int] = (3, 2)
    lift_kernel: int = 3
    reduction: int = 32
    reduced_min: int = 8
    gate_activation: Activation = "swish"
    upsample: Upsample = "bilinear"
    dilation: int = 1
    block: Block = "paper"
    spec_pool: tuple[int, int] = (2, 3)
    attention_softmax: bool = True
    attention_scale: float = 1.0
    attention_grid: int = 32
    encoder_pool: tuple[int, int] = (12, 64)
    hidden: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check(name, getattr(self, name), kind)
        if self.channels[0] % 2:
            raise TrainingError(
                f"channels: got {self.channels}; the first must be even: two parallel convolutions give half each"
            )
        if self.lift_kernel % 2 == 0:
            raise TrainingError(f"lift_kernel: got {self.lift_kernel}; expected an odd size, which keeps H × W")
        if not 0.0 <= self.dropout < 1.0:
            raise TrainingError(f"dropout: got {self.dropout}; expected a probability from 0 up to, but not, 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MFHCASettings:
        """Settings from plain values, as ``dataclasses.asdict`` gives and JSON keeps them (lists for tuples).

        Raises:
            TrainingError: an unknown name, or a value that no model can have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise TrainingError(f"model settings: got unknown {', '.join(unknown)}; known are {', '.join(known)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


def paper(**changes: Any) -> MFHCASettings:
    """The model as the paper describes it, but for the fields named."""
    return MFHCASettings.from_dict(changes)


def released(**changes: Any) -> MFHCASettings:
    """The model as the authors' released code runs it, but for the fields named."""
    choices: dict[str, Any] = {
        "in_channels": 3,
        "rate": 16,
        "long_kernel_along": "frequency",
        "gate_activation": "hardswish",
        "upsample": "nearest",
        "dilation": 2,
        "block": "released",
        "attention_softmax": False,
    }
    return MFHCASettings.from_dict({**choices, **changes})


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
        up = _upsample(context, (H, W), self.upsample)  # Eq. 7: Y_b is X + this
        if self.residual is not None:
            Y_a = X * g_h * g_w  # Eq. 6
            return F.relu_(self.residual(Y_a) + up.add(X, alpha=2))  # X + Y_b = 2 X + Up(…)
        # Eqs. 6–8: Y = X + Y_a + Y_b = (g_h ⊙ g_w + 2) ⊙ X + Up(…). Maps of two memory formats multiply 6 × slower.
        gate = (g_h * g_w + 2).contiguous(memory_format=_memory_format(X))
        return (X * gate).add_(up)


class MF(nn.Module):
    """Multi-Spatial Fusion: the spectrogram's image (B, in_channels, T, F) → ``f_spec`` (B, width).

    Args:
        channels: of each GRF block.
        rate: 1/r of Eq. 7.
        settings: the other choices (its own ``channels`` and ``rate`` are not looked at).

    Attributes:
        width: of ``f_spec``: channels[-1] · spec_pool[0] · spec_pool[1] = 288.

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
        channels = self.settings.in_channels
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
        w = F.relu(self.weights(self.dropout(f_spec))).unsqueeze(1)  # (B, 1, L)
        f_att = torch.matmul(w, self._bilstm(f_hubert))  # Eq. 9: w ⊗ f'_hubert, (B, 1, D)
        if self.settings.attention_softmax:
            f_att = f_att.softmax(-1)  # Eq. 9: over D
        f_att = self.settings.attention_scale * f_att.reshape(-1, D // rows, rows)
        product = torch.matmul(adaptive_average(f_hubert, (rows, D // rows)), f_att)  # Eq. 10: (B, rows, rows)
        attended = self.attended(product.flatten(1))  # Eq. 10: f'_att, (B, D)
        return torch.cat([F.relu(self.spec_out(f_spec)), F.relu(self.encoder_out(attended))], 1)  # Eq. 11

    def _bilstm(self, f_hubert: Tensor) -> Tensor:
        """f'_hubert: (B, L, D) → (B, L, D)."""
        if f_hubert.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Most CPUs have no bfloat16 LSTM, and torch raises instead of falling back.
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, self.lstm(f_hubert.float())[0])
        return cast(Tensor, self.lstm(f_hubert)[0])


class MFHCA(nn.Module):
    """The whole model: spectrogram (B, T, F) and encoder features (B, L, D) → logits (B, n_classes)."""

    def __init__(self, settings: MFHCASettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MFHCASettings()
        self.mf = MF(settings.channels, settings.rate, settings)
        self.hca = HCA(self.mf.width, settings)
        self.classifier = classifier(self.hca.width, settings)

    def features(self, spectrogram: Tensor, encoder: Tensor) -> Tensor:
        """The fused feature before the classifier: (B, T, F), (B, L, D) → (B, 2 · hidden).

        Raises:
            TrainingError: a shape that the model was not made for.
        """
        f_spec = self.mf(as_image(spectrogram, self.settings.in_channels))
        return cast(Tensor, self.hca(f_spec, encoder))

    def forward(self, spectrogram: Tensor, encoder: Tensor) -> Tensor:
        """(B, T, F), (B, L, D) → logits (B, n_classes); raises as `features` does."""
        return cast(Tensor, self.classifier(self.features(spectrogram, encoder)))


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


def adaptive_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) → (…, h, w): the numbers of ``F.adaptive_avg_pool2d``, as products with two averaging matrices.

    Its backward pass is deterministic on CUDA, where torch's is not, and on a CPU it is faster in channels-last.
    """
    return _resize(x, size, "average")


def _upsample(x: Tensor, size: tuple[int, int], mode: Upsample) -> Tensor:
    """``F.interpolate`` (``align_corners=False``), deterministic on CUDA too: (B, C, h, w) → (B, C, H, W)."""
    return _resize(x, size, mode) if x.is_cuda else F.interpolate(x, size=size, mode=mode)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if the map is stored so and not otherwise contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _resize(x: Tensor, size: tuple[int, int], kind: Resize) -> Tensor:
    """R x Cᵀ for each map of x, with R (h, H) and C (w, W) the matrices of `_resize_matrix`: (…, H, W) → (…, h, w)."""
    H, W = x.shape[-2:]
    if x.ndim == 4 and _memory_format(x) == torch.channels_last:
        # Channels lie innermost: products along H, then W, of the map as it lies, so that nothing is copied.
        y = x.permute(0, 2, 3, 1)
        if size[0] != H:
            y = torch.matmul(_resize_matrix(H, size[0], kind, x.dtype, x.device), y.flatten(2)).unflatten(2, (W, -1))
        if size[1] != W:
            y = torch.matmul(_resize_matrix(W, size[1], kind, x.dtype, x.device), y)
        return y.permute(0, 3, 1, 2)
    if size[0] != H:
        x = torch.matmul(_resize_matrix(H, size[0], kind, x.dtype, x.device), x)
    if size[1] != W:
        x = torch.matmul(x, _resize_matrix(W, size[1], kind, x.dtype, x.device).T)
    return x


@lru_cache(maxsize=64)
def _resize_matrix(n_in: int, n_out: int, kind: Resize, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n_out, n_in): what torch's own one-dimensional resize makes of each unit vector."""
    # Outside of inference mode: a tensor made in it could not be used for training later, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        units = torch.eye(n_in, dtype=torch.float64, device="cpu").unsqueeze(0)
        if kind == "average":
            resized = F.adaptive_avg_pool1d(units, n_out)
        else:
            resized = F.interpolate(units, size=n_out, mode="linear" if kind == "bilinear" else "nearest")
        return resized[0].T.contiguous().to(device, dtype)


def _residual(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )


def _check(name: str, value: Any, kind: Any) -> None:
    """Raise a `TrainingError` unless a setting's value is of its declared kind; counts are 1 or more."""
    whole = all(type(count) is int and count >= 1 for count in (value if isinstance(value, tuple) else (value,)))
    if kind is bool:
        good, expected = isinstance(value, bool), "True or False"
    elif kind is float:
        good, expected = type(value) in (int, float) and math.isfinite(value), "a finite number"
    elif kind is int:
        good, expected = whole and not isinstance(value, tuple), "a whole number of 1 or more"
    elif get_origin(kind) is tuple:
        wanted = 0 if get_args(kind)[-1] is Ellipsis else len(get_args(kind))
        good = whole and isinstance(value, tuple) and len(value) == (wanted or max(1, len(value)))
        expected = f"{wanted or 'one or more'} whole numbers of 1 or more"
    else:
        good, expected = value in get_args(kind), " or ".join(repr(word) for word in get_args(kind))
    if not good:
        raise TrainingError(f"{name}: got {value!r}; expected {expected}")
