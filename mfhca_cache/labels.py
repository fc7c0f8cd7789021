"""Classes: their names, their order, and the maps from a corpus's raw labels to them.

Raw labels stay in the manifest and in the cache as the corpus wrote them. A class map is applied when rows are
selected and when a model is trained, so one cache serves several class maps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfhca_cache.errors import LabelError

#: The four classes of the paper, in the order of every logit, confusion matrix and table.
FOUR_CLASSES = ("angry", "happy", "neutral", "sad")

_WORDS = {
    "angry": ("angry", "anger", "ang"),
    "happy": ("happy", "happiness", "joy", "hap", "excited", "exc"),
    "neutral": ("neutral", "neu"),
    "sad": ("sad", "sadness"),
}

#: corpus → class → the raw labels that belong to it (protocol: happy = hap + exc on IEMOCAP).
FOUR_CLASS_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "iemocap": {"angry": ("ang",), "happy": ("hap", "exc"), "neutral": ("neu",), "sad": ("sad",)},
    "emodb": {"angry": ("W",), "happy": ("F",), "neutral": ("N",), "sad": ("T",)},
    "ravdess": {"angry": ("05",), "happy": ("03",), "neutral": ("01",), "sad": ("04",)},
    "cremad": {"angry": ("ANG",), "happy": ("HAP",), "neutral": ("NEU",), "sad": ("SAD",)},
}
FOUR_CLASS_LABELS["synthetic"] = FOUR_CLASS_LABELS["iemocap"]

#: Readable names of raw labels that are codes, for tables.
LABEL_NAMES: dict[str, dict[str, str]] = {
    "iemocap": {
        "ang": "angry", "hap": "happy", "exc": "excited", "neu": "neutral", "sad": "sad", "fru": "frustrated",
        "sur": "surprised", "fea": "fearful", "dis": "disgusted", "oth": "other", "xxx": "no agreement",
    },
    "emodb": {
        "W": "angry", "F": "happy", "N": "neutral", "T": "sad", "A": "fearful", "L": "bored", "E": "disgusted",
    },
    "ravdess": {
        "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful",
        "07": "disgusted", "08": "surprised",
    },
    "cremad": {
        "ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
    },
}  # fmt: skip
LABEL_NAMES["synthetic"] = LABEL_NAMES["iemocap"]


@dataclass(frozen=True)
class ClassMap:
    """A named map from raw labels to classes.

    Attributes:
        name: ``four-class``, ``all``, or the stem of the file that it was read from.
        classes: class names in the order of logits and confusion matrices.
        labels: class name → the raw labels that belong to it. A raw label in none of them is left out.
    """

    name: str
    classes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise LabelError(
                f"class map {self.name!r}: got the classes {list(self.classes)}; expected two or more different names"
            )
        seen: dict[str, str] = {}
        for name in self.classes:
            for label in self.labels.get(name, ()):
                if label in seen:
                    raise LabelError(
                        f"class map {self.name!r}: the raw label {label!r} belongs to both {seen[label]!r} and {name!r}"
                    )
                seen[label] = name

    def apply(self, labels: pd.Series) -> pd.Series:
        """Class name of each raw label, in a Series of the same index; None where the label has no class."""
        table = {label: name for name in self.classes for label in self.labels.get(name, ())}
        return pd.Series([table.get(str(label)) for label in labels], index=labels.index, dtype=object)


def class_map(name: str, corpus: str, labels: pd.Series) -> ClassMap:
    """The class map called ``name`` for a corpus.

    Args:
        name: ``four-class``; ``all`` (every raw label a class of its own); or the path of a JSON file
            ``{"class": ["raw label", …], …}``, whose order is the order of the classes.
        corpus: the manifest's corpus name.
        labels: the raw labels present, as strings.

    Raises:
        LabelError: no such map, a file of another shape, or no label of the corpus in the map.
    """
    present = sorted({str(label) for label in labels})
    if name == "four-class":
        result = ClassMap(name, FOUR_CLASSES, FOUR_CLASS_LABELS.get(corpus) or _four_class_of_words(present))
    elif name == "all":
        result = ClassMap(name, tuple(present), {label: (label,) for label in present})
    elif name.endswith(".json"):
        result = _read_class_map(Path(name))
    else:
        raise LabelError(f"class map {name!r} is not known; expected four-class, all, or a .json file of your own")
    if not any(label in present for wanted in result.labels.values() for label in wanted):
        raise LabelError(
            f"none of the raw labels in this corpus ({', '.join(present[:12]) or 'none'}) belongs to the class map "
            f'{name!r}; write your own as a JSON file {{"angry": ["A"], …}} and name it with --classes FILE.json'
        )
    return result


def _four_class_of_words(present: list[str]) -> dict[str, tuple[str, ...]]:
    """The four classes for a table whose labels are words: matched without regard to case."""
    return {name: tuple(label for label in present if label.strip().lower() in words) for name, words in _WORDS.items()}


def _read_class_map(path: Path) -> ClassMap:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabelError(f"class map {path}: could not be read as JSON ({error})") from error
    if not isinstance(data, dict) or not all(
        isinstance(value, list) and all(isinstance(label, str) for label in value) for value in data.values()
    ):
        raise LabelError(f'class map {path}: expected an object of lists of strings, such as {{"angry": ["ang"]}}')
    return ClassMap(path.stem, tuple(data), {name: tuple(value) for name, value in data.items()})
