"""The README is true: its commands parse, its Python block runs, its table names what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from mfhca_cache.cli.app import COMMANDS, mfhca

from .conftest import tone, write_wav

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Every mfhca command line in an indented block."""
    lines = re.findall(r"^    (mfhca [^#\n]+)", README, flags=re.MULTILINE)
    return [line.strip() for line in lines]


def test_the_readme_shows_the_usual_path() -> None:
    assert {shlex.split(line)[1] for line in commands()} >= {"manifest", "extract", "train", "report"}


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_readme_parses(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = mfhca.get_command(click.Context(mfhca), name)
    assert command is not None, f"{name} is none of {', '.join(COMMANDS)}"
    command.make_context(name, list(words))


def test_the_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, speaker in enumerate(("03", "08", "09")):
        for label in "WFNT":
            write_wav(tmp_path / "emodb" / f"{speaker}a01{label}a.wav", tone(0.5, 100 + 20 * number + ord(label)))
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for there, here in (
        ("/data/emodb", str(tmp_path / "emodb")),
        ("facebook/hubert-base-ls960", "random-tiny"),
        ("hubert-base-ls960", "random-tiny"),
        ('preset="frozen"', 'preset="quick", epochs=1'),
    ):
        assert there in block
        block = block.replace(there, here)
    monkeypatch.chdir(tmp_path)
    head = torch.nn.Linear(64, 4)
    names = {"model": lambda values, mask: head(values.mean(1)), "classes": list("WFNT")}
    exec(block, names)
    assert isinstance(names["loss"], torch.Tensor) and bool(names["loss"].isfinite())
    assert (tmp_path / "runs" / "trial" / "fold03" / "result.json").exists()


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:benchmarks|docs)/[\w./]+)`", README):
        assert (ROOT / target).exists(), target
