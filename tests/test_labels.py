from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from mfhca_cache.errors import LabelError
from mfhca_cache.labels import FOUR_CLASS_LABELS, FOUR_CLASSES, LABEL_NAMES, ClassMap, class_map


def labels(*names: str) -> pd.Series:
    return pd.Series(list(names), index=range(10, 10 + len(names)), dtype=object)


@pytest.mark.parametrize(
    ("corpus", "raw", "expected"),
    [
        (
            "iemocap",
            ("ang", "hap", "exc", "neu", "sad", "fru", "xxx"),
            ["angry", "happy", "happy", "neutral", "sad", None, None],
        ),
        ("synthetic", ("exc", "oth"), ["happy", None]),
        ("emodb", ("W", "F", "N", "T", "A"), ["angry", "happy", "neutral", "sad", None]),
        ("ravdess", ("05", "03", "01", "04", "02"), ["angry", "happy", "neutral", "sad", None]),
        ("cremad", ("ANG", "HAP", "NEU", "SAD", "DIS"), ["angry", "happy", "neutral", "sad", None]),
        ("table", ("Anger", "JOY", "neutral", "sadness", "bored"), ["angry", "happy", "neutral", "sad", None]),
    ],
)
def test_four_classes_of_each_corpus(corpus: str, raw: tuple[str, ...], expected: list[str | None]) -> None:
    series = labels(*raw)
    result = class_map("four-class", corpus, series)
    assert result.classes == FOUR_CLASSES == ("angry", "happy", "neutral", "sad")
    applied = result.apply(series)
    assert applied.tolist() == expected and applied.index.equals(series.index)


def test_every_corpus_names_its_labels() -> None:
    assert set(FOUR_CLASS_LABELS) == set(LABEL_NAMES)
    for corpus, classes in FOUR_CLASS_LABELS.items():
        assert set(classes) == set(FOUR_CLASSES)
        assert {label for own in classes.values() for label in own} <= set(LABEL_NAMES[corpus])


def test_all_makes_a_class_of_each_label() -> None:
    result = class_map("all", "iemocap", labels("sad", "xxx", "ang", "sad"))
    assert result.classes == ("ang", "sad", "xxx")
    assert result.apply(labels("xxx", "new")).tolist() == ["xxx", None]


def test_a_map_of_ones_own_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"up": ["hap", "exc"], "down": ["sad"]}))
    result = class_map(str(path), "iemocap", labels("sad", "hap"))
    assert result.name == "two" and result.classes == ("up", "down")
    assert result.apply(labels("exc", "sad", "neu")).tolist() == ["up", "down", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "could not be read as JSON"),
        ('["a"]', "expected an object of lists"),
        ('{"a": "hap", "b": ["sad"]}', "expected an object of lists"),
        ('{"a": ["sad"]}', "expected two or more different names"),
        ('{"a": ["sad"], "b": ["sad"]}', "belongs to both 'a' and 'b'"),
        ('{"a": ["W"], "b": ["T"]}', "none of the raw labels"),
    ],
)
def test_maps_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        class_map(str(path), "iemocap", labels("sad", "hap"))


def test_unknown_and_missing_maps(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"'five' is not known; expected four-class, all, or a .json"):
        class_map("five", "iemocap", labels("sad"))
    with pytest.raises(LabelError, match="could not be read"):
        class_map(str(tmp_path / "none.json"), "iemocap", labels("sad"))


def test_labels_without_a_class_say_how_to_give_them_one() -> None:
    with pytest.raises(LabelError, match=r"none of the raw labels in this corpus \(1, 2\).*--classes FILE.json"):
        class_map("four-class", "table", labels("1", "2"))


def test_a_class_map_checks_itself() -> None:
    with pytest.raises(LabelError, match="two or more different names"):
        ClassMap("m", ("a", "a"), {"a": ("x",)})
    with pytest.raises(LabelError, match="two or more"):
        class_map("all", "iemocap", labels("sad", "sad"))
