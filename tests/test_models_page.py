"""docs/models.md is true: its counts are counted, its commands parse, and every model has a section."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import click
import pytest

from mfhca_cache.cli.app import mfhca
from mfhca_cache.models import INPUTS, MODELS, SETTINGS, build_model, count_parameters
from mfhca_cache.training.changes import parse_changes

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
ROWS = re.findall(r"^\| `(mfhca train[^`]*)` \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "count"), ROWS)
def test_the_counts_are_those_of_the_models(command: str, count: str) -> None:
    words = shlex.split(command)[2:]
    given = dict(zip(words[::2], words[1::2], strict=True))
    changes = [value for option, value in zip(words[::2], words[1::2], strict=True) if option == "--set"]
    name = given.get("--model", "mfhca")
    settings = replace(SETTINGS[name](), **dict(parse_changes(changes, name)))
    features = given.get("--features", "")
    inputs = features.split("+") if features in INPUTS["mfhca"] else INPUTS[name] or ["encoder"]
    if features.endswith(".all"):
        settings = replace(settings, encoder_layers=13)  # type: ignore[call-arg]
    if name == "ridge":
        settings = replace(settings, statistics=2 * 768)  # type: ignore[call-arg]
    assert count_parameters(build_model(name, inputs, settings)) == int(count.replace(",", ""))


def test_every_model_has_a_row_and_a_section() -> None:
    assert len(ROWS) == 13
    for name in MODELS:
        assert re.search(rf"^## .*\b{name}\b", PAGE, flags=re.MULTILINE), name
    for name in re.findall(r"--set ([a-z_]+)=", PAGE):
        assert any(name in {field.name for field in fields(kind)} for kind in SETTINGS.values()), name


@pytest.mark.parametrize("line", re.findall(r"^    (mfhca .+)$", PAGE, flags=re.MULTILINE))
def test_every_command_parses(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = mfhca.get_command(click.Context(mfhca), name)
    assert command is not None
    command.make_context(name, list(words))


def test_the_files_that_it_names_are_there() -> None:
    for target in re.findall(r"`models/(\w+\.py)`", PAGE):
        assert (Path(__file__).parents[1] / "mfhca_cache" / "models" / target).exists()
