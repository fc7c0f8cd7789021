"""Models: tensors in, logits out. A model's forward takes its inputs by name: ``spectrogram``, ``encoder``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.branches import EncoderOnly, SpectrogramOnly
from mfhca_cache.models.mfhca import GRF, HCA, MF, MFHCA
from mfhca_cache.models.settings import MFHCASettings, paper, released

__all__ = [
    "GRF",
    "HCA",
    "INPUTS",
    "MF",
    "MFHCA",
    "MODELS",
    "EncoderOnly",
    "MFHCASettings",
    "SpectrogramOnly",
    "build_model",
    "count_parameters",
    "paper",
    "released",
]

#: Names that `build_model` knows. A model of the reader's own is named ``module:Class`` (`mfhca_cache.models.own`).
MODELS = ("mfhca",)
#: What a model can be given, and the keyword arguments of its forward.
INPUTS = ("spectrogram", "encoder")


def build_model(
    name: str = "mfhca", inputs: Sequence[str] = INPUTS, settings: MFHCASettings | None = None
) -> nn.Module:
    """A model for these inputs, freshly initialised from torch's random state.

    Its forward and its ``features`` take the inputs as keyword arguments: ``spectrogram`` (B, T, F), ``encoder``
    (B, L, D). With one input alone it is that branch of MFHCA and the classifier.

    Raises:
        TrainingError: an unknown name or input, or none.
    """
    if name not in MODELS:
        raise TrainingError(f"model: got {name!r}; expected one of {', '.join(MODELS)}")
    chosen = set(inputs)
    if chosen == {"spectrogram", "encoder"}:
        return MFHCA(settings)
    if chosen == {"spectrogram"}:
        return SpectrogramOnly(settings)
    if chosen == {"encoder"}:
        return EncoderOnly(settings)
    raise TrainingError(f"inputs of {name}: got {inputs!r}; expected one or both of {', '.join(INPUTS)}")


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
