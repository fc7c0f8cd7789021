"""What a run is: model, features, protocol, optimiser; and the presets, with what each stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import IMPORTED, PROTOCOLS
from mfhca_cache.models.settings import MFHCASettings


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        optimiser: adam or adamw.
        learning_rate, weight_decay: of the optimiser.
        batch: clips a step.
        epochs: at most.
        patience: epochs without a better validation UA (ties: loss) before training stops.
    """

    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    batch: int = 32
    epochs: int = 100
    patience: int = 10


@dataclass(frozen=True)
class Preset:
    """A recipe and the model's settings that go with it."""

    recipe: Recipe
    model: MFHCASettings


#: paper: as section III-A states. frozen: for features that are not fine-tuned. quick: the same with half the
#: channels, to try things on a CPU.
PRESETS = {
    "paper": Preset(Recipe(), MFHCASettings()),
    "frozen": Preset(
        Recipe("adamw", learning_rate=1e-3, weight_decay=1e-2, batch=16, epochs=40, patience=6),
        MFHCASettings(),
    ),
    "quick": Preset(
        Recipe("adamw", learning_rate=1e-3, weight_decay=1e-2, batch=8, epochs=20, patience=6),
        MFHCASettings(channels=(8, 16, 24)),
    ),
}


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides a run's numbers, but for the cache and the machine.

    Attributes:
        model: ``mfhca``.
        features: ``spectrogram+encoder``, ``spectrogram`` or ``encoder``; an encoder may be named by its feature.
        preset: one of `PRESETS`.
        protocol: one of `mfhca_cache.folds.PROTOCOLS`.
        classes: a class map: ``four-class``, ``all`` or a JSON file.
        seed: of initial weights, dropout, order of batches, and the session protocol's validation set.
        epochs: at most; None for the preset's.
        folds: file or folder of folds from elsewhere (`mfhca_cache.splits.shapes`); the protocol is then ``imported``.
        allow_leaks: train folds of such a file although training knows their test set; every output says so.
    """

    model: str = "mfhca"
    features: str = "spectrogram+encoder"
    preset: str = "paper"
    protocol: str = "strict"
    classes: str = "four-class"
    seed: int = 0
    epochs: int | None = None
    folds: str | None = None
    allow_leaks: bool = False
    recipe: Recipe = field(init=False)
    settings: MFHCASettings = field(init=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise TrainingError(f"preset {self.preset!r} is not known; expected one of {', '.join(PRESETS)}")
        if self.folds is not None and self.protocol in ("strict", IMPORTED):
            object.__setattr__(self, "protocol", IMPORTED)
        elif self.folds is not None:
            raise TrainingError(f"got both the protocol {self.protocol!r} and folds from a file; expected one of them")
        elif self.protocol not in PROTOCOLS:
            raise TrainingError(f"protocol {self.protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")
        if self.epochs is not None and self.epochs < 1:
            raise TrainingError(f"epochs: got {self.epochs}; expected 1 or more")
        preset = PRESETS[self.preset]
        recipe = preset.recipe if self.epochs is None else replace(preset.recipe, epochs=self.epochs)
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "settings", preset.model)
