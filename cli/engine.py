"""`--engine` and `--address`: whether a command works here, or over the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that can work on a cluster."""
    command = click.option(
        "--address",
        metavar="HOST:PORT|auto",
        help="With --engine ray: the cluster's head node.  [a cluster of this machine]",
    )(command)
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Here, or over the nodes of a Ray cluster: pip install 'mfhca-cache[ray]' (docs/scaling.md).",
    )(command)


def check_engine(engine: str, address: str | None, part: bool = False, jobs: bool = False) -> None:
    """Refuse options that do not go together: an address without Ray; a part, or processes, of what Ray deals out."""
    if address is not None and engine != "ray":
        raise click.UsageError("--address is of a Ray cluster; say --engine ray too")
    if part and engine == "ray":
        raise click.UsageError("--shard cuts the work for the jobs of an array, and --engine ray cuts it by itself")
    if jobs and engine == "ray":
        raise click.UsageError("--jobs is of this machine alone; --engine ray runs as many tasks as its nodes hold")
