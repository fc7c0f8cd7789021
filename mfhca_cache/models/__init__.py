"""Models: tensors in, logits out. A model takes its inputs by name: ``spectrogram``, ``mfcc``, ``encoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.alexnet import AlexNet
from mfhca_cache.models.attentive_pooling import AttentivePooling, AttentivePoolingSettings
from mfhca_cache.models.branches import EncoderOnly, SpectrogramOnly
from mfhca_cache.models.ca_mser import CAMSER, CoAttentionSettings
from mfhca_cache.models.co_attention import CoAttention
from mfhca_cache.models.linear_probe import LinearProbe, LinearProbeSettings
from mfhca_cache.models.mfhca import GRF, HCA, MF, MFHCA
from mfhca_cache.models.settings import MFHCASettings, ModelSettings, paper, released
from mfhca_cache.models.statistics import SVM, Ridge, RidgeSettings, StatisticsModel, SVMSettings

__all__ = [
    "CAMSER",
    "CLOSED_FORM",
    "GRF",
    "HCA",
    "INPUTS",
    "MF",
    "MFHCA",
    "MODELS",
    "SETTINGS",
    "SVM",
    "AlexNet",
    "AttentivePooling",
    "AttentivePoolingSettings",
    "CoAttention",
    "CoAttentionSettings",
    "EncoderOnly",
    "LinearProbe",
    "LinearProbeSettings",
    "MFHCASettings",
    "ModelSettings",
    "Ridge",
    "RidgeSettings",
    "SVMSettings",
    "SpectrogramOnly",
    "StatisticsModel",
    "build_model",
    "count_parameters",
    "paper",
    "released",
]

#: Settings of the models that `build_model` knows, by the model's name.
SETTINGS: dict[str, type[ModelSettings]] = {
    "mfhca": MFHCASettings,
    "co-attention": CoAttentionSettings,
    "linear-probe": LinearProbeSettings,
    "attentive-pooling": AttentivePoolingSettings,
    "svm": SVMSettings,
    "ridge": RidgeSettings,
}
#: What each can be given, in the order of a run's name, and the keyword arguments of its forward. Those that are
#: fitted in closed form take any features, by their names.
INPUTS: dict[str, tuple[str, ...]] = {
    "mfhca": ("spectrogram", "encoder"),
    "co-attention": ("spectrogram", "mfcc", "encoder"),
    "linear-probe": ("encoder",),
    "attentive-pooling": ("encoder",),
    "svm": (),
    "ridge": (),
}
#: Models that are fitted to statistics of utterances, without epochs.
CLOSED_FORM = ("svm", "ridge")
#: Names that `build_model` knows. A model of the reader's own is named ``module:Class`` (`mfhca_cache.models.own`).
MODELS = tuple(SETTINGS)


def build_model(
    name: str = "mfhca", inputs: Sequence[str] | None = None, settings: ModelSettings | None = None
) -> nn.Module:
    """A model for these inputs, freshly initialised from torch's random state.

    Its forward and its ``features`` take the inputs as keyword arguments: ``spectrogram`` (B, T, F), ``mfcc`` (B, T,
    C), ``encoder`` (B, L, D). MFHCA with one input alone is that branch and the classifier. Probes take a ``mask``
    beside the encoder's features, and models in closed form dictionaries of features and of masks.

    Args:
        name: one of `MODELS`.
        inputs: None for all that the model can be given. Of a model in closed form: names of features, in order.
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
        case "linear-probe" if given == {"encoder"}:
            return LinearProbe(chosen)
        case "attentive-pooling" if given == {"encoder"}:
            return AttentivePooling(chosen)
        case "svm" if inputs:
            return SVM(inputs, chosen)
        case "ridge" if inputs:
            return Ridge(inputs, chosen)
    if name in CLOSED_FORM:
        raise TrainingError(f"inputs of {name}: got {inputs!r}; expected names of features, one at least")
    of_them = "one or both of " if name == "mfhca" else ""
    raise TrainingError(f"inputs of {name}: got {inputs!r}; expected {of_them}{', '.join(INPUTS[name])}")


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model; of one that is fitted in closed form, those that were fitted."""
    if isinstance(model, StatisticsModel):
        return sum(buffer.numel() for buffer in model.buffers())
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
