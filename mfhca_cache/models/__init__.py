"""Models: tensors in, logits out. A model takes its inputs by name: ``spectrogram``, ``mfcc``, ``encoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.alexnet import AlexNet
from mfhca_cache.models.branches import EncoderOnly, SpectrogramOnly
from mfhca_cache.models.ca_mser import CAMSER, CoAttentionSettings
from mfhca_cache.models.co_attention import CoAttention
from mfhca_cache.models.mfhca import GRF, HCA, MF, MFHCA
from mfhca_cache.models.settings import MFHCASettings, ModelSettings, paper, released

__all__ = [
    "CAMSER",
    "GRF",
    "HCA",
    "INPUTS",
    "MF",
    "MFHCA",
    "MODELS",
    "SETTINGS",
    "AlexNet",
    "CoAttention",
    "CoAttentionSettings",
    "EncoderOnly",
    "MFHCASettings",
    "ModelSettings",
    "SpectrogramOnly",
    "build_model",
    "count_parameters",
    "paper",
    "released",
]

#: Settings of the models that `build_model` knows, by the model's name.
SETTINGS: dict[str, type[ModelSettings]] = {
    "mfhca": MFHCASettings,
    "co-attention": CoAttentionSettings,
}
#: What each can be given, in the order of a run's name, and the keyword arguments of its forward.
INPUTS: dict[str, tuple[str, ...]] = {
    "mfhca": ("spectrogram", "encoder"),
    "co-attention": ("spectrogram", "mfcc", "encoder"),
}
#: Names that `build_model` knows. A model of the reader's own is named ``module:Class`` (`mfhca_cache.models.own`).
MODELS = tuple(SETTINGS)


def build_model(
    name: str = "mfhca", inputs: Sequence[str] | None = None, settings: ModelSettings | None = None
) -> nn.Module:
    """A model for these inputs, freshly initialised from torch's random state.

    Its forward and its ``features`` take the inputs as keyword arguments: ``spectrogram`` (B, T, F), ``mfcc`` (B, T,
    C), ``encoder`` (B, L, D). MFHCA with one input alone is that branch and the classifier.

    Args:
        name: one of `MODELS`.
        inputs: None for all that the model can be given.
        settings: of the model's class in `SETTINGS`; None for its defaults.

    Raises:
        TrainingError: an unknown name or input, none, or settings of another model.
    """
    if name not in MODELS:
        raise TrainingError(f"model: got {name!r}; expected one of {', '.join(MODELS)}")
    if settings is not None and type(settings) is not SETTINGS[name]:
        raise TrainingError(f"settings of {name}: got {type(settings).__name__}; expected {SETTINGS[name].__name__}")
    chosen: Any = settings or SETTINGS[name]()
    given = set(INPUTS[name] if inputs is None else inputs)
    match name:
        case "mfhca" if given == {"spectrogram", "encoder"}:
            return MFHCA(chosen)
        case "mfhca" if given == {"spectrogram"}:
            return SpectrogramOnly(chosen)
        case "mfhca" if given == {"encoder"}:
            return EncoderOnly(chosen)
        case "co-attention" if given == set(INPUTS[name]):
            return CAMSER(chosen)
    of_them = "one or both of " if name == "mfhca" else ""
    raise TrainingError(f"inputs of {name}: got {inputs!r}; expected {of_them}{', '.join(INPUTS[name])}")


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
