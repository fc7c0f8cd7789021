"""How figures look: colours by what they are for, signs of classes, and matplotlib's settings.

A figure is drawn once, in the colours of light paper. Each of them has a name and occurs nowhere else, so that the page
can put a CSS variable in its place and show the same drawing on a dark background.
"""

from __future__ import annotations

from typing import Any

#: Name → colour on light paper. The template's variables have these names, and dark values beside them.
COLOURS = {
    "ink": "#1d2126",
    "muted": "#646b75",
    "line": "#d5d9df",
    "paper": "#ffffff",
    "accent": "#0a5296",
    "on-accent": "#fdfdfe",
    "warn": "#b3261e",
    # Of a spectrogram, as strong as it is loud: seen on light paper and on dark.
    "sound": "#2f7fc1",
    # Classes: Okabe and Ito's colours, which colour-blind readers can tell apart.
    "class-1": "#d55e00",
    "class-2": "#e69f00",
    "class-3": "#009e73",
    "class-4": "#0072b2",
    "class-5": "#cc79a7",
    "class-6": "#56b4e9",
    "class-7": "#7f6b4f",
    "class-8": "#7a7f87",
}
_CLASS_COLOURS = [name for name in COLOURS if name.startswith("class-")]
#: matplotlib's markers; a class has a colour and a marker, so that neither is needed alone.
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "p")

#: Inter-figure constants, in points.
TEXT, SMALL = 8.0, 7.0

SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # It comes with matplotlib: the same everywhere.
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": SMALL,
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    # The same run gives the same bytes: names of marks come from this, not from chance.
    "svg.hashsalt": "mfhca-cache",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def class_colour(number: int) -> str:
    """The name of the colour of a class by its place in the order of classes."""
    return _CLASS_COLOURS[number % len(_CLASS_COLOURS)]


def class_marker(number: int) -> str:
    """The matplotlib marker of a class; beyond eight classes it shifts, so that 64 pairs are all different."""
    return _MARKERS[(number + number // len(_MARKERS)) % len(_MARKERS)]
