"""A figure: panels of one size, which the page lays out as its width allows and a file has in rows and columns.

Figures are drawn by matplotlib's own canvases, without pyplot and without a display.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mfhca_cache.reporting.style import COLOURS, SETTINGS, SMALL, TEXT
from mfhca_cache.reporting.svg import inline
from mfhca_cache.storage.publish import publish

#: Dots an inch of a PNG, and of what is not drawn as lines.
DPI = 200
_KEY_HEIGHT = 0.24  # inches


@dataclass(frozen=True)
class Key:
    """An entry of a legend: what a sign means.

    Attributes:
        label: in words.
        colour: a name of `mfhca_cache.reporting.style.COLOURS`.
        sign: a matplotlib marker, or ``-`` or ``--`` for a line.
        open: the marker is an outline.
    """

    label: str
    colour: str
    sign: str
    open: bool = False


@dataclass(frozen=True)
class Panel:
    """One part of a figure, which can stand alone.

    Attributes:
        draw: draws it into an empty matplotlib figure or subfigure.
        alt: what it shows, in words, for who does not see it.
    """

    draw: Callable[[Any], None]
    alt: str


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: the stem of its files.
        panels: in reading order.
        size: of a panel: width and height in inches.
        columns: of panels in the files.
        keys: the legend, where the panels share one.
    """

    name: str
    panels: tuple[Panel, ...]
    size: tuple[float, float]
    columns: int = 1
    keys: tuple[Key, ...] = ()

    def svgs(self) -> list[str]:
        """Each panel as an ``<svg>`` element for an HTML page, its colours as CSS variables."""
        found = []
        for number, panel in enumerate(self.panels):
            with _settings():
                figure = Figure(figsize=self.size, layout="constrained")
                panel.draw(figure)
                memory = io.StringIO()
                figure.savefig(memory, format="svg", dpi=DPI, transparent=True, metadata={"Date": None})
            found.append(inline(memory.getvalue(), f"{self.name}-{number}", panel.alt))
        return found

    def files(self) -> dict[str, bytes]:
        """All panels and the legend as one figure, on white: file name → bytes, as PNG and as PDF."""
        columns = min(self.columns, len(self.panels))
        rows = -(-len(self.panels) // columns)
        width, height = columns * self.size[0], rows * self.size[1]
        legend = _KEY_HEIGHT * _key_rows(self.keys, width)
        with _settings():
            figure = Figure(figsize=(width, height + legend), layout="constrained", facecolor=COLOURS["paper"])
            below: Any = figure
            if legend:
                halves: Any = figure.subfigures(2, 1, height_ratios=[legend, height])
                above, below = halves
                _draw_keys(above, self.keys, width)
            parts = below.subfigures(rows, columns, squeeze=False).ravel()
            for part, panel in zip(parts, self.panels, strict=False):
                panel.draw(part)
            found = {f"{self.name}.png": _saved(figure, "png", {"Software": None})}
            figure.set_layout_engine("none")  # It has its places now, and finding them took as long as drawing.
            nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            return found | {f"{self.name}.pdf": _saved(figure, "pdf", nothing)}


def write_drawing(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a figure's PNG and PDF into a folder that is there.

    Raises:
        CacheError: the disk is full, or the folder is read-only.
    """
    paths = []
    for name, data in drawing.files().items():
        publish(folder / name, data)
        paths.append(folder / name)
    return paths


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Our settings of matplotlib's, and no warning for each character of a name that its font lacks."""
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    memory = io.BytesIO()
    figure.savefig(memory, format=kind, dpi=DPI, facecolor=COLOURS["paper"], metadata=metadata)
    return memory.getvalue()


def _key_columns(keys: tuple[Key, ...], width: float) -> int:
    """Entries of a legend in one row, by the longest of them."""
    longest = max(len(key.label) for key in keys) * 0.62 * SMALL / 72 + 0.45
    return max(1, min(len(keys), int(width / longest)))


def _key_rows(keys: tuple[Key, ...], width: float) -> int:
    return -(-len(keys) // _key_columns(keys, width)) if keys else 0


def _draw_keys(part: Any, keys: tuple[Key, ...], width: float) -> None:
    handles = [_handle(key) for key in keys]
    part.legend(handles, [plain(key.label) for key in keys], loc="center", ncols=_key_columns(keys, width))


def _handle(key: Key) -> Line2D:
    colour = COLOURS[key.colour]
    if key.sign in ("-", "--"):
        return Line2D([], [], color=colour, linestyle=key.sign)
    face = "none" if key.open else colour
    return Line2D([], [], linestyle="", marker=key.sign, markersize=5, color=colour, markerfacecolor=face)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign begins no formula, and what cannot be printed is marked."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))
    return shown.replace("$", r"\$")


def heading(part: Any, text: str, note: str = "") -> None:
    """A panel's heading: bold and left, with a quiet note at its right."""
    part.suptitle(plain(text), x=0.02, ha="left", fontsize=TEXT, fontweight="bold")
    if note:
        part.text(0.985, 0.985, plain(note), ha="right", va="top", fontsize=SMALL, color=COLOURS["muted"])
