"""What a run is: model, features, protocol, optimiser; and the presets, with what each stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import CROSS_CORPUS, IMPORTED, PROTOCOLS
from mfhca_cache.models import CLOSED_FORM, INPUTS, MODELS, SETTINGS
from mfhca_cache.models.settings import MFHCASettings, ModelSettings

#: What a preset is where none was named: for MFHCA, and for every other model.
DEFAULT_PRESET, OTHER_PRESET = "paper", "frozen"
#: Settings of a model that follow from the cache and the class map, and from the fit.
FROM_THE_CACHE = frozenset(
    {"n_classes", "encoder_layers", "encoder_width", "encoder_frames", "mfcc_width", "mfcc_frames"}
)
FROM_THE_FIT = frozenset({"statistics", "support_vectors"})


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
    """A recipe, and the settings of MFHCA that go with it; other models have their own defaults."""

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
        model: one of `mfhca_cache.models.MODELS`, or ``module:Class``, an nn.Module of the reader's own
            (`mfhca_cache.models.own`).
        features: ``spectrogram+encoder``, ``spectrogram`` or ``encoder``; an encoder may be named by its feature. A
            model of the reader's own, and one in closed form, takes any features of the cache, joined by ``+``. By
            default all that the model can be given (`mfhca_cache.models.INPUTS`).
        preset: one of `PRESETS`; by default ``paper`` for MFHCA, and ``frozen`` for every other model.
        protocol: one of `mfhca_cache.folds.PROTOCOLS`, or ``cross-corpus`` with a second cache to test on.
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
        recipe, settings: of the training and of the model, as preset and changes have them.
    """

    model: str = "mfhca"
    features: str = ""
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
    settings: ModelSettings = field(init=False)

    def __post_init__(self) -> None:
        if not self.own and self.model not in MODELS:
            raise TrainingError(
                f"model {self.model!r} is not known; expected one of {', '.join(MODELS)}, or MODULE:CLASS for one of "
                "your own"
            )
        if not self.features:
            inputs = ("spectrogram", "encoder") if self.own else INPUTS[self.model] or ("encoder",)
            object.__setattr__(self, "features", "+".join(inputs))
        if not self.preset:
            object.__setattr__(self, "preset", DEFAULT_PRESET if self.model == "mfhca" else OTHER_PRESET)
        if self.preset not in PRESETS:
            raise TrainingError(f"preset {self.preset!r} is not known; expected one of {', '.join(PRESETS)}")
        if self.folds is not None and self.protocol in ("strict", IMPORTED):
            object.__setattr__(self, "protocol", IMPORTED)
        elif self.folds is not None:
            raise TrainingError(f"got both the protocol {self.protocol!r} and folds from a file; expected one of them")
        elif self.protocol not in (*PROTOCOLS, CROSS_CORPUS):
            raise TrainingError(f"protocol {self.protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision {self.precision!r} is not known; expected one of {', '.join(PRECISIONS)}")
        if self.threads is not None and self.threads < 1:
            raise TrainingError(f"threads: got {self.threads}; expected 1 or more, or None")
        if self.closed_form and (self.epochs, self.learning_rate, self.precision) != (None, None, "fp32"):
            raise TrainingError(
                f"{self.model} is fitted in closed form, in float64: it has no epochs, learning rate or other "
                "precision; leave those options out. What can be changed is its settings, such as grid=0.1,1,10"
            )
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in ("epochs", "learning_rate") if getattr(self, name) is not None}
        recipe, model = split_changes(self.changes, self.model)
        if twice := sorted(given.keys() & recipe.keys()):
            raise TrainingError(f"{', '.join(twice)}: given twice, by its own option and among the changes; give one")
        object.__setattr__(self, "recipe", replace(preset.recipe, **given, **recipe))
        usual = SETTINGS[self.model]() if self.model in SETTINGS and self.model != "mfhca" else preset.model
        object.__setattr__(self, "settings", replace(usual, **model))

    @property
    def own(self) -> bool:
        """Whether the model is the reader's own."""
        return ":" in self.model

    @property
    def closed_form(self) -> bool:
        """Whether the model is fitted without epochs (`mfhca_cache.training.closed_form`); its recipe is not used."""
        return self.model in CLOSED_FORM


def split_changes(changes: Sequence[tuple[str, Any]], model: str = "mfhca") -> tuple[dict[str, Any], dict[str, Any]]:
    """(name, value) pairs → those of the recipe, those of the model's settings.

    Args:
        model: one of ours, or one of the reader's own, which has no settings of ours.

    Raises:
        TrainingError: an unknown name, one that the cache decides, or one given twice.
    """
    recipe = set() if model in CLOSED_FORM else {field.name for field in fields(Recipe)}
    decided = FROM_THE_CACHE | (FROM_THE_FIT if model in CLOSED_FORM else set())
    of_it = {field.name for field in fields(SETTINGS[model])} - decided if model in SETTINGS else set()
    names = [name for name, _ in changes]
    if unknown := [name for name in names if name not in recipe | of_it]:
        why = " (the cache and the class map decide it)" if unknown[0] in decided else ""
        of_training = f"of the training that can: {', '.join(sorted(recipe))}" if recipe else ""
        of_model = f"of the model{'' if recipe else ' that can'}: {', '.join(sorted(of_it))}" if of_it else ""
        can = "; ".join(part for part in (of_training, of_model) if part)
        raise TrainingError(f"setting {unknown[0]!r} cannot be changed{why}; those {can}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise TrainingError(f"{twice[0]}: changed twice; give it once")
    values = dict(changes)
    return {k: v for k, v in values.items() if k in recipe}, {k: v for k, v in values.items() if k in of_it}
