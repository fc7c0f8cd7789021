"""What a model's settings are; and what the paper says of MFHCA and leaves open, as settings.

`paper` and `released` are two sets of choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from mfhca_cache.errors import TrainingError

Upsample = Literal["bilinear", "nearest"]
Activation = Literal["swish", "hardswish"]
Block = Literal["paper", "released"]
Axis = Literal["time", "frequency"]


@dataclass(frozen=True)
class ModelSettings:
    """Settings of one of our models, checked when they are made.

    Raises:
        TrainingError: a value that is not of its field's kind, or that no model can have.

    Attributes:
        n_classes: number of logits.
    """

    n_classes: int = 4

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check(name, getattr(self, name), kind)
        for name in ("dropout", "lstm_dropout"):
            if not 0.0 <= getattr(self, name, 0.0) < 1.0:
                raise TrainingError(
                    f"{name}: got {getattr(self, name)}; expected a probability from 0 up to, but not, 1"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values, as ``dataclasses.asdict`` gives and JSON keeps them (lists for tuples).

        Raises:
            TrainingError: an unknown name, or a value that no model can have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise TrainingError(f"model settings: got unknown {', '.join(unknown)}; known are {', '.join(known)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


@dataclass(frozen=True)
class MFHCASettings(ModelSettings):
    """What the paper says of the model, and what it leaves open. The defaults are the paper's variant.

    ``spectrogram_network`` and ``fusion`` are the two columns of the paper's Table II: MF ✗ is ``alexnet``, HCA ✗ with
    two inputs is ``co-attention``.

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
        spectrogram_network: ``mf``, or ``alexnet``: AlexNet's convolutions (`mfhca_cache.models.alexnet`).
        fusion: ``hca``, or ``co-attention``, the baseline's (`mfhca_cache.models.co_attention`).
        alexnet_weights: file that AlexNet's convolutions start from; empty for random weights.
    """

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
    spectrogram_network: Literal["mf", "alexnet"] = "mf"
    fusion: Literal["hca", "co-attention"] = "hca"
    alexnet_weights: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels[0] % 2:
            raise TrainingError(
                f"channels: got {self.channels}; the first must be even: two parallel convolutions give half each"
            )
        if self.lift_kernel % 2 == 0:
            raise TrainingError(f"lift_kernel: got {self.lift_kernel}; expected an odd size, which keeps H × W")
        if self.alexnet_weights and self.spectrogram_network != "alexnet":
            raise TrainingError("alexnet_weights: got a file without AlexNet; add spectrogram_network=alexnet")


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


def _check(name: str, value: Any, kind: Any) -> None:
    """Raise a `TrainingError` unless a setting's value is of its declared kind; counts are 1 or more."""
    whole = all(type(count) is int and count >= 1 for count in (value if isinstance(value, tuple) else (value,)))
    if kind is bool:
        good, expected = isinstance(value, bool), "True or False"
    elif kind is float:
        good, expected = type(value) in (int, float) and math.isfinite(value), "a finite number"
    elif kind is int:
        good, expected = whole and not isinstance(value, tuple), "a whole number of 1 or more"
    elif kind is str:
        good, expected = isinstance(value, str), "text"
    elif kind == tuple[float, ...]:
        good = isinstance(value, tuple) and len(value) > 0
        good = good and all(type(x) in (int, float) and 0 < x < math.inf for x in value)
        expected = "one or more numbers above 0"
    elif get_origin(kind) is tuple:
        wanted = 0 if get_args(kind)[-1] is Ellipsis else len(get_args(kind))
        good = whole and isinstance(value, tuple) and len(value) == (wanted or max(1, len(value)))
        expected = f"{wanted or 'one or more'} whole numbers of 1 or more"
    else:
        good, expected = value in get_args(kind), " or ".join(repr(word) for word in get_args(kind))
    if not good:
        raise TrainingError(f"{name}: got {value!r}; expected {expected}")
