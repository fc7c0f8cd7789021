"""What a run is: model, features, protocol, optimiser; and the presets, with what each stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import IMPORTED, PROTOCOLS
from mfhca_cache.models.settings import MFHCASettings

#: What a preset is where none was named: for MFHCA, and for a model of the reader's own.
DEFAULT_PRESET, OWN_PRESET = "paper", "frozen"
#: Settings of a model that follow from the cache and the class map.
FROM_THE_CACHE = frozenset({"n_classes", "encoder_width", "encoder_frames"})


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        optimiser: adam or adamw.
        learning_rate, weight_decay: of the optimiser.
        batch: clips a step.
        epochs: at most.
        patience: epochs without a better validation UA (ties: loss) before training stops.
        sampling: of an epoch's clips: ``shuffled``, each once; ``balanced``, as many drawn with replacement, every
            class as likely as any other.

    Raises:
        TrainingError: a value that no training can have.
    """

    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    batch: int = 32
    epochs: int = 100
    patience: int = 10
    sampling: Literal["shuffled", "balanced"] = "shuffled"

    def __post_init__(self) -> None:
        for name in ("optimiser", "sampling"):
            known = get_args(get_type_hints(Recipe)[name])
            if getattr(self, name) not in known:
                raise TrainingError(f"{name}: got {getattr(self, name)!r}; expected {' or '.join(known)}")
        for name in ("batch", "epochs", "patience"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise TrainingError(f"{name}: got {getattr(self, name)!r}; expected a whole number of 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate: got {self.learning_rate}; expected a number above 0, such as 0.001")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(f"weight decay: got {self.weight_decay}; expected a number of 0 or more, such as 0.01")


@dataclass(frozen=True)
class Preset:
    """A recipe and the model's settings that go with it."""

    recipe: Recipe
    model: MFHCASettings


#: What convolutions and products are computed in. bf16 is torch's autocast; weights and sums stay float32.
PRECISIONS = ("fp32", "bf16")
#: Options that change the preset; what they make of it is in the recipe and the settings.
PRESET_CHANGES = ("epochs", "learning_rate", "changes")
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
        model: ``mfhca``, or ``module:Class``, an nn.Module of the reader's own (`mfhca_cache.models.own`).
        features: ``spectrogram+encoder``, ``spectrogram`` or ``encoder``; an encoder may be named by its feature. A
            model of the reader's own takes any features of the cache, joined by ``+``.
        preset: one of `PRESETS`; by default ``paper``, and ``frozen`` for a model of the reader's own.
        protocol: one of `mfhca_cache.folds.PROTOCOLS`.
        classes: a class map: ``four-class``, ``all`` or a JSON file.
        seed: of initial weights, dropout, order of batches, and the session protocol's validation set.
        epochs: at most; None for the preset's.
        learning_rate: None for the preset's.
        precision: one of `PRECISIONS`.
        threads: CPU threads of a fold; None for the cores shared among the protocol's folds, at least 1
            (`mfhca_cache.training.job.prepare`).
        folds: file or folder of folds from elsewhere (`mfhca_cache.splits.shapes`); the protocol is then ``imported``.
        allow_leaks: train folds of such a file although training knows their test set; every output says so.
        changes: of single fields of the preset's recipe or of the model's settings, (name, value) each, such as
            ``(("rate", 8), ("patience", 3))``; `mfhca_cache.training.changes.parse_changes` reads them from text.
    """

    model: str = "mfhca"
    features: str = "spectrogram+encoder"
    preset: str = ""
    protocol: str = "strict"
    classes: str = "four-class"
    seed: int = 0
    epochs: int | None = None
    learning_rate: float | None = None
    precision: str = "fp32"
    threads: int | None = None
    folds: str | None = None
    allow_leaks: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    recipe: Recipe = field(init=False)
    settings: MFHCASettings = field(init=False)

    def __post_init__(self) -> None:
        if not self.preset:
            object.__setattr__(self, "preset", OWN_PRESET if self.own else DEFAULT_PRESET)
        if self.preset not in PRESETS:
            raise TrainingError(f"preset {self.preset!r} is not known; expected one of {', '.join(PRESETS)}")
        if self.folds is not None and self.protocol in ("strict", IMPORTED):
            object.__setattr__(self, "protocol", IMPORTED)
        elif self.folds is not None:
            raise TrainingError(f"got both the protocol {self.protocol!r} and folds from a file; expected one of them")
        elif self.protocol not in PROTOCOLS:
            raise TrainingError(f"protocol {self.protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision {self.precision!r} is not known; expected one of {', '.join(PRECISIONS)}")
        if self.threads is not None and self.threads < 1:
            raise TrainingError(f"threads: got {self.threads}; expected 1 or more, or None")
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in ("epochs", "learning_rate") if getattr(self, name) is not None}
        recipe, model = split_changes(self.changes, own=self.own)
        if twice := sorted(given.keys() & recipe.keys()):
            raise TrainingError(f"{', '.join(twice)}: given twice, by its own option and among the changes; give one")
        object.__setattr__(self, "recipe", replace(preset.recipe, **given, **recipe))
        object.__setattr__(self, "settings", replace(preset.model, **model))

    @property
    def own(self) -> bool:
        """Whether the model is the reader's own."""
        return ":" in self.model


def split_changes(changes: Sequence[tuple[str, Any]], own: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name, value) pairs → those of the recipe, those of the model's settings.

    Args:
        own: for a model of the reader's own, which has no settings of ours.

    Raises:
        TrainingError: an unknown name, one that the cache decides, or one given twice.
    """
    recipe = {field.name for field in fields(Recipe)}
    model = set() if own else {field.name for field in fields(MFHCASettings)} - FROM_THE_CACHE
    names = [name for name, _ in changes]
    if unknown := [name for name in names if name not in recipe | model]:
        decided = " (the cache and the class map decide it)" if unknown[0] in FROM_THE_CACHE else ""
        of_model = f"; of the model: {', '.join(sorted(model))}" if model else ""
        raise TrainingError(
            f"setting {unknown[0]!r} cannot be changed{decided}; those of the training that can: "
            f"{', '.join(sorted(recipe))}{of_model}"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise TrainingError(f"{twice[0]}: changed twice; give it once")
    values = dict(changes)
    return {k: v for k, v in values.items() if k in recipe}, {k: v for k, v in values.items() if k in model}
