"""What every benchmark here has in common: ways timed in turn, medians with their spread, ratios, and the machine.

Figures of two ways are comparable only from one run: `side_by_side` goes round the ways again and again, so that what
else the machine does falls on all of them alike. A table's first way is what the others are held against.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Not measured: the row says so, and why.
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """One way of doing the work.

    Attributes:
        way: its name.
        rates: work a second of each round, in the table's unit.
        limit: what the machine could do at most, in the same unit; None where there is no such figure.
        note: a word more; for a way that was not measured, why.
    """

    way: str
    rates: tuple[float, ...]
    limit: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Of the rounds' rates; NaN where it was not measured."""
        return statistics.median(self.rates) if self.rates else float("nan")


@dataclass(frozen=True)
class Result:
    """A table: ways of doing the same work, the first of which the others are held against.

    Attributes:
        title: what was done, with its sizes.
        unit: of the rates, such as clips/s.
        ways: what was measured.
        target: the ratio aimed at, in words.
    """

    title: str
    unit: str
    ways: tuple[Measured, ...]
    target: str = ""


def side_by_side(
    ways: dict[str, Callable[[], Any]], work: float, rounds: int = 5, warm_up: int = 1
) -> dict[str, tuple[float, ...]]:
    """Work a second of each way, round after round, in turn.

    Args:
        ways: name → does the work once.
        work: how much of it, in the table's unit.
        rounds: that count; ``warm_up`` more go before them.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            before = time.perf_counter()
            way()
            if number >= warm_up:
                found[name].append(work / (time.perf_counter() - before))
    return {name: tuple(rates) for name, rates in found.items()}


def show(result: Result) -> None:
    """Print a table: median, spread, ratio to the first way, share of the limit."""
    table = Table(title=result.title, title_justify="left")
    for number, name in enumerate(["way", result.unit, "spread", "ratio", "of the limit", ""]):
        table.add_column(name, justify="left" if number in (0, 5) else "right")
    base = result.ways[0].median
    for item in result.ways:
        if not item.rates:
            table.add_row(item.way, NOT_MEASURED, "", "", "", item.note)
            continue
        share = f"{item.median / item.limit:.0%}" if item.limit else ""
        spread = f"{min(item.rates):,.4g} … {max(item.rates):,.4g}"
        table.add_row(item.way, f"{item.median:,.4g}", spread, f"{item.median / base:.2f}", share, item.note)
    console = Console(width=max(100, Console().width))
    console.print(table)
    if result.target:
        console.print(f"Aimed at: {result.target}\n", style="dim", highlight=False)


def machine() -> dict[str, Any]:
    """The processor, memory, GPU and versions that figures hold for."""
    found: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":")[::2] for line in info.read_text().splitlines()]
        words = {key.strip(): value.strip() for key, value in lines}
        flags = words.get("flags", "").split()
        wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sha_ni") if flag in flags]
        found["processor"] = f"{words.get('model name', platform.machine())}, {' '.join(wide)}"
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    names = ("torch", "transformers", "numpy", "h5py", "openvino", "ray", "lhotse")
    found["versions"] = {name: version for name in names if (version := _version(name))}
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def parser(doc: str) -> argparse.ArgumentParser:
    """A benchmark's command line, with the options that all of them have."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=5, help="that are timed, behind one that is not (default 5)")
    found.add_argument("--json", type=Path, help="also write the figures to this file")
    return found


def finish(results: Sequence[Result], path: Path | None) -> None:
    """Print the tables, and write them with the machine's description if a file is named."""
    for result in results:
        show(result)
    if path is not None:
        value = {"machine": machine(), "results": [asdict(result) for result in results]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")
