"""What a person sees: consoles, progress bars, tables. Results go to stdout, progress and notes to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mfhca_cache.manifest import Rejected
from mfhca_cache.progress import Progress as Report

_LOG_SECONDS = 15.0


def quiet_and_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, nothing else.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print errors and nothing else.")(command)


class Screen:
    """Where a command writes, as `--quiet` and `--json` want it; a context manager that holds the progress bars."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.silent = quiet or as_json
        self.as_json = as_json
        width = None if Console().is_terminal else 100
        self.out = Console(quiet=self.silent, highlight=False, width=width, soft_wrap=False)
        self.err = Console(stderr=True, quiet=self.silent, highlight=False, soft_wrap=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        # The first line after two seconds: what is done sooner needs none.
        self._logged = time.monotonic() - _LOG_SECONDS + 2.0

    def __enter__(self) -> Screen:
        if self.err.is_terminal and not self.silent:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[counts]}", markup=False),
                console=self.err,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress(self, report: Report) -> None:
        """The callback for the library: a bar on a terminal, else a line now and then."""
        if self.silent:
            return
        now = time.monotonic()
        # Folds are trained side by side: each has its bar, until its epochs are done.
        key = report.stage if report.unit == "epochs" else report.unit
        started, before = self._started.setdefault(key, (now, report.done))
        if report.done < before or report.total == 0:
            started, before = self._started[key] = (now, report.done)
        counts = _counts(report, report.done - before, now - started)
        if self._bars is not None:
            task = self._tasks.get(key)
            if task is None:
                task = self._tasks[key] = self._bars.add_task(report.stage, total=None, counts="")
            self._bars.update(
                task, description=report.stage, completed=report.done, total=report.total or None, counts=counts
            )
            if report.unit == "epochs" and report.done == report.total:
                self._bars.remove_task(self._tasks.pop(key))
        elif now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self.err.print(f"{report.stage}: {counts}" if counts else report.stage, markup=False)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line of the result as it is: names may look like markup, and a path is never wrapped."""
        self.out.print(text, style=style, markup=False, soft_wrap=True)

    def json(self, value: Any) -> None:
        """Print the result of `--json`."""
        if self.as_json:
            click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _counts(report: Report, done: int, seconds: float) -> str:
    """``1,024 of 11,021 clips · 8.1 clips/s · 20 min left · 117 MB written``."""
    if not report.total:
        return ""
    parts = [f"{report.done:,} of {report.total:,} {report.unit}"]
    if done > 0 and seconds > 0.5 and report.done < report.total:
        rate = done / seconds
        if report.unit not in ("epochs", "folds"):
            parts.append(f"{rate:,.1f} {report.unit}/s")
        parts.append(f"{duration((report.total - report.done) / rate)} left")
    if report.bytes_written:
        parts.append(f"{size(report.bytes_written)} written")
    return " · ".join([*parts, report.detail] if report.detail else parts)


def duration(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as ``117 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counted(count: int, noun: str) -> str:
    """``1 shard``, ``1,024 shards``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shape_of(shape: Sequence[int], dtype: str) -> str:
    """``149 × 768``; where a length differs from row to row ``tokens × 768``; and the type where it is unusual."""
    text = " × ".join(str(length) if length else "tokens" for length in shape)
    return text if dtype == "float16" else f"{text} {dtype}"


def percent(value: float) -> str:
    """0.7424 → ``74.24``."""
    return f"{100 * value:.2f}"


def grid(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table whose first column is text and whose other columns are numbers; the row ``all`` stands apart."""
    table = Table(title=None if title is None else Text(title), title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        first = str(row[0])
        if first in ("all", "mean") and table.rows:
            table.add_section()
        cells = [cell if isinstance(cell, Text) else Text(cell) for cell in row]
        table.add_row(*cells, style="bold" if first in ("all", "mean", "pooled") else None)
    return table


def rejections(screen: Screen, rejected: Sequence[Rejected], where: str) -> None:
    """Every rejected file with its reason."""
    if rejected:
        screen.out.print(f"\n[bold red]{len(rejected):,} rejected[/] {where}")
        for item in rejected:
            screen.out.print(f"  {item.path}: {item.reason}", markup=False, soft_wrap=True)


def only_one(folder: Path, pattern: str, what: str, option: str, make: str) -> Path:
    """The single match in a folder.

    Raises:
        click.UsageError: none, or several; the message names the option that chooses.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise click.UsageError(f"no {what} in {folder}/; {make}, or name one with {option}")
    if len(found) > 1:
        names = ", ".join(str(path if path.suffix == ".csv" else path.parent) for path in found)
        raise click.UsageError(f"several {what}s in {folder}/ ({names}); choose one with {option}")
    return found[0]


def chosen_cache(folder: Path | None) -> Path:
    """The cache named, or the only one in cache/."""
    return folder or only_one(Path("cache"), "*/cache.json", "cache", "--cache DIR", "`mfhca extract` makes one").parent
