"""``rate=8``, ``channels=16,32,64``, ``patience=3``: changes of a preset, read from text and written into a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, get_origin, get_type_hints

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import SETTINGS
from mfhca_cache.training.options import Recipe

_WORDS = {"true": True, "false": False, "yes": True, "no": False}


def parse_changes(texts: Iterable[str], model: str = "mfhca") -> tuple[tuple[str, Any], ...]:
    """``NAME=VALUE`` each → `TrainOptions.changes`; the values are of their field's type.

    Args:
        model: whose settings the names may be of.

    Raises:
        TrainingError: no ``=``, or a value of another type. Unknown names are left to `TrainOptions`.
    """
    kinds = (get_type_hints(SETTINGS[model]) if model in SETTINGS else {}) | get_type_hints(Recipe)
    found = []
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise TrainingError(f"got {text!r}; expected NAME=VALUE, such as rate=8 or channels=16,32,64")
        name = name.replace("-", "_")
        found.append((name, _value(name, value, kinds.get(name, str))))
    return tuple(found)


def changes_name(changes: Sequence[tuple[str, Any]]) -> str:
    """What a run's name says of its changes: ``-rate8-channels16.32.64``; empty where there are none."""
    return "".join(f"-{name.replace('_', '')}{_short(value)}" for name, value in changes)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ".".join(map(_short, value))
    if isinstance(value, str):  # A word, or a file, which must not become folders.
        return "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in PurePath(value).name)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str, kind: Any) -> Any:
    try:
        if kind == tuple[float, ...]:
            return tuple(float(part) for part in text.split(","))
        if get_origin(kind) is tuple:
            return tuple(int(part) for part in text.replace("x", ",").split(","))
        if kind is bool:
            return _WORDS[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        words[tuple[float, ...]] = "numbers, as in 0.1,1,10"
        expected = words.get(kind, "whole numbers, as in 16,32,48")
        raise TrainingError(f"{name}={text}: expected {expected}") from None
