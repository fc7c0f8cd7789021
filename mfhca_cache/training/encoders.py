"""Which encoder a feature is of, as its feature.json says, and whether it is one of the paper's two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfhca_cache.storage.layout import FeatureInfo

#: Family of the paper's encoders, as configurations call it → the start of their features' names.
_NAMES = {"hubert": "hubert-base", "wav2vec2": "wav2vec2-base"}
#: Width of the base encoders, which the paper has.
_WIDTH = 768


def encoder_family(info: FeatureInfo) -> str:
    """``hubert``, ``wav2vec2``, ``wavlm``: the encoder's architecture, as its configuration calls it."""
    return str(info.settings.get("architecture", {}).get("model_type", ""))


def describe_encoder(info: FeatureInfo) -> dict[str, Any]:
    """What of a feature says whether it is the paper's, as JSON; it stands in the record of each fold."""
    return {
        "family": encoder_family(info),
        "layers": info.settings.get("layers", "last"),
        "width": info.shape[-1],
        "random_weights": info.random_weights,
    }


def is_the_papers(family: str, name: str, described: Mapping[str, Any] | None = None) -> bool:
    """Whether a feature is the last layer of the paper's encoder of a family.

    Args:
        family: ``hubert`` or ``wav2vec2``.
        name: of the feature; it decides where nothing else is known.
        described: from `describe_encoder`; None for a fold that was trained before it was recorded.
    """
    if described is None or not described["family"]:
        return name.startswith(_NAMES[family])
    wanted = {"family": family, "layers": "last", "width": _WIDTH, "random_weights": False}
    return all(described[key] == value for key, value in wanted.items())
