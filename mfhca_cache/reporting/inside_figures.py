"""Figures of what a cache is needed for: features as points, and attention above its spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mfhca_cache.reporting.figures import Drawing, Key, Panel, heading
from mfhca_cache.reporting.inside import Attention
from mfhca_cache.reporting.spaces import Space, Spaces
from mfhca_cache.reporting.style import COLOURS, SMALL, class_colour, class_marker

#: A dense cloud of points is a picture in the SVG and the PDF, not so many marks.
_RASTER = 3000
#: Shades of a spectrogram, and how many columns it has at most: a page has many pictures.
_SHADES, _COLUMNS = 20, 300
#: Percentiles of a spectrogram's signal that are its faintest and its strongest shade.
_RANGE = (10.0, 99.5)


def space_figure(spaces: Spaces, classes: Sequence[str]) -> Drawing:
    """The chosen fold: its test utterances, and its training utterances faint behind them."""
    panels = tuple(_space_panel(space, classes) for space in spaces.chosen)
    keys = _class_keys(classes)
    if any(not space.test.all() for space in spaces.chosen):
        keys = (*keys, Key("trained on", "muted", "o", open=True))
    return Drawing("tsne", panels, (3.5, 3.3), columns=2, keys=keys)


def spaces_figure(spaces: Spaces, classes: Sequence[str]) -> Drawing:
    """Every fold's test utterances, a fold a panel: this run's features, and beside them what they are held against."""
    folds: dict[str, list[Space]] = {}
    for space in spaces.folds:
        folds.setdefault(space.fold, []).append(space)
    panels = tuple(_fold_panel(fold, found, classes) for fold, found in folds.items())
    across = max(map(len, folds.values()))
    return Drawing(
        "tsne-folds", panels, (1.65 * across, 1.85), columns=2 if across > 1 else 4, keys=_class_keys(classes)
    )


def attention_figure(rows: Sequence[dict[str, Any]], seen: Sequence[Attention], bin_hz: float) -> Drawing:
    """A panel an utterance: HCA's weights over time, above the spectrogram.

    Args:
        rows: of `telling_utterances`, one an attention.
        bin_hz: width of a bin of the spectrogram.
    """
    panels = tuple(_attention_panel(row, found, bin_hz) for row, found in zip(rows, seen, strict=True))
    return Drawing("attention", panels, (3.4, 2.3), columns=2)


def _class_keys(classes: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(name, class_colour(number), class_marker(number)) for number, name in enumerate(classes))


def _space_panel(space: Space, classes: Sequence[str]) -> Panel:
    def draw(part: Any) -> None:
        heading(part, space.what)
        _points(part.subplots(), space, classes, 5.0)

    return Panel(draw, _described(space))


def _fold_panel(fold: str, spaces: Sequence[Space], classes: Sequence[str]) -> Panel:
    def draw(part: Any) -> None:
        heading(part, fold[:1].upper() + fold[1:])
        for axes, space in zip(part.subplots(1, len(spaces), squeeze=False)[0], spaces, strict=True):
            _points(axes, space, classes, 3.2)
            axes.set_xlabel(space.what)

    return Panel(draw, " ".join(_described(space) for space in spaces))


def _points(axes: Any, space: Space, classes: Sequence[str], size: float) -> None:
    """A space's points: the test utterances filled, the others as faint rings behind them."""
    trained = ~space.test
    for number in range(len(classes)):
        behind = space.points[(space.classes == number) & trained]
        axes.plot(
            *behind.T, class_marker(number), mec=COLOURS[class_colour(number)], mfc="none", ms=size - 2, mew=0.6,
            alpha=0.5, rasterized=int(trained.sum()) > _RASTER,
        )  # fmt: skip
    for number in range(len(classes)):
        front = space.points[(space.classes == number) & space.test]
        colour = COLOURS[class_colour(number)]
        axes.plot(*front.T, class_marker(number), color=colour, mec=COLOURS["paper"], mew=0.4, ms=size)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=COLOURS["line"])


def _described(space: Space) -> str:
    test = int(space.test.sum())
    trained = f" and {len(space.test) - test:,} of training" if test < len(space.test) else ""
    return f"t-SNE of {space.fold}, {space.what}: {test:,} test utterances{trained}, by true class."


def _attention_panel(row: dict[str, Any], found: Attention, bin_hz: float) -> Panel:
    right = row["label"] == row["prediction"]
    sure = f"{100 * row['sure']:.0f} %"
    title = f"{row['label']}, recognised" if right else f"{row['label']}, taken for {row['prediction']}"

    def draw(part: Any) -> None:
        heading(part, title, sure)
        above, below = part.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
        clips, frames = found.weights.shape
        end = clips * found.seconds
        times = (np.arange(clips * frames) + 0.5) * found.seconds / frames
        weights = found.weights.ravel()
        above.fill_between(times, weights, step="mid", color=COLOURS["accent"], alpha=0.25, linewidth=0)
        above.step(times, weights, where="mid", color=COLOURS["accent"], linewidth=0.9)
        above.set(ylim=(0, max(float(weights.max()) * 1.1, 1e-9)), ylabel="w")
        above.grid(visible=False)
        if not weights.any():
            text = "0 everywhere: the ReLU is shut"
            above.text(0.5, 0.5, text, transform=above.transAxes, ha="center", va="center", fontsize=SMALL)
        extent = (0, end, 0, found.spectrogram.shape[2] * bin_hz / 1000)
        below.imshow(_picture(found), extent=extent, aspect="auto", origin="lower", interpolation="none")
        below.set(xlim=(0, end), xlabel="seconds", ylabel="kHz")
        below.grid(visible=False)
        signal = float(found.valid.sum()) / found.spectrogram.shape[1] * found.seconds
        if signal < end:
            for axes in (above, below):
                axes.axvline(signal, color=COLOURS["ink"], linewidth=0.7, linestyle=":")
            if end - signal > 0.15 * end:
                below.text(
                    (signal + end) / 2, 0.5, "padding", transform=below.get_xaxis_transform(), ha="center",
                    va="center", fontsize=SMALL, color=COLOURS["muted"],
                )  # fmt: skip
        for border in np.arange(1, clips) * found.seconds:
            for axes in (above, below):
                axes.axvline(border, color=COLOURS["muted"], linewidth=0.6)

    peak = found.weights.argmax() % found.weights.size
    at = (peak + 0.5) * found.seconds / found.weights.shape[1]
    return Panel(
        draw,
        f"{found.utterance_id} of speaker {row['speaker']}, fold {row['fold']}: true class {row['label']}, predicted "
        f"{row['prediction']} with probability {sure}. Attention is largest {at:.1f} s from the beginning.",
    )


def _picture(found: Attention) -> np.ndarray:
    """The spectrogram as few shades of few cells, uint8 (bins, frames, 4), the louder the less transparent.

    It is what an eye sees in a small panel, light or dark. Padding is left out.
    """
    clips, frames, bins = found.spectrogram.shape
    valid = np.arange(frames) < found.valid[:, None]
    heard = found.spectrogram[valid]
    low, high = np.percentile(heard, _RANGE)
    loud = np.clip((found.spectrogram - low) / max(high - low, 1e-6), 0, 1) * valid[:, :, None]
    across = max(2, -(-clips * frames // _COLUMNS))
    width, height = clips * frames // across, bins // 2
    cells = loud.reshape(-1, bins)[: width * across, : height * 2].reshape(width, across, height, 2).mean((1, 3)).T
    picture = np.empty((height, width, 4), dtype=np.uint8)
    picture[:, :, :3] = list(bytes.fromhex(COLOURS["sound"][1:]))
    picture[:, :, 3] = np.round(cells * _SHADES) * (255 // _SHADES)
    return picture
