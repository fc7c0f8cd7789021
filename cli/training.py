"""What the commands that train have in common: where and how a fold is computed, and checks of what was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mfhca_cache.models import MODELS
from mfhca_cache.training.options import PRECISIONS


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where folds are trained, how many at once, on how many threads and how exactly."""
    command = click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="bf16: convolutions and products in bfloat16, other numbers in the third digit.",
    )(command)
    command = click.option(
        "--threads", type=click.IntRange(1), help="CPU threads of a fold.  [cores shared among the protocol's folds]"
    )(command)
    command = click.option(
        "--jobs", default="auto", show_default=True, metavar="auto|N", help="Folds at once; the numbers are the same."
    )(command)
    command = click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to train.",
    )(command)
    return command


def check_model(model: str) -> None:
    """Refuse a model that is neither ours nor named as a class, and let a class be found in the current folder."""
    if ":" in model:
        sys.path.insert(0, str(Path.cwd()))  # As `python -m` has it.
    elif model not in MODELS:
        raise click.UsageError(f"--model {model!r}: expected {', '.join(MODELS)}, or MODULE:CLASS for one of your own")


def check_name(name: str | None) -> None:
    """Refuse a run's name that is no name of a folder."""
    if name is not None and (not name or name.startswith(".") or any(c in name for c in "/\\\0")):
        raise click.UsageError(f"--name {name!r}: expected a folder name without slashes")


def parse_jobs(value: str) -> int | None:
    """``auto`` → None."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.UsageError(f"--jobs {value!r}: expected auto, or a number of folds at once")
    return int(value)
