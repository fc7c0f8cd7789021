"""Figures of what a run's folder holds: scores by fold, confusion matrices, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mfhca_cache.reporting.figures import Drawing, Key, Panel, heading, plain
from mfhca_cache.reporting.style import COLOURS, SMALL, TEXT
from mfhca_cache.reporting.summary import LEVELS, RunSummary
from mfhca_cache.reporting.tables import SCORES, interval_name
from mfhca_cache.training.result import FoldResult

#: A cell of a confusion matrix that is coloured more strongly than this has light text on light paper, dark on dark.
STRONG = 0.66
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
_LOG_FACTOR = 20.0


def scores_figure(summary: RunSummary) -> Drawing:
    """Each fold as a dot, their mean, the interval where there is one, and the pooled score."""
    intervals = summary.intervals
    keys = [Key("one fold", "muted", "o", open=True), Key("mean of the folds", "accent", "o")]
    if intervals:
        keys.append(Key(interval_name(intervals), "accent", "-"))
    keys += [Key("pooled", "ink", "D", open=True), Key("chance (UA)", "muted", "--")]
    values = ", ".join(f"{level} {short} {100 * summary.mean[name]:.1f} %" for name, level, short in SCORES)

    def draw(part: Any) -> None:
        axes = part.subplots()
        chance = 100 / len(summary.classes)
        for row, (name, _, _) in enumerate(SCORES):
            folds = 100 * summary.folds[name].to_numpy()
            axes.plot(
                folds, _spread(folds, row - 0.05), "o", mec=COLOURS["muted"], mfc="none", ms=4, mew=0.9, alpha=0.8
            )
            below = row + 0.3
            if interval := intervals.get(name):
                axes.plot([100 * interval.low, 100 * interval.high], [below, below], color=COLOURS["accent"], lw=1.6)
            axes.plot(100 * summary.mean[name], below, "o", color=COLOURS["accent"], ms=5.5)
            axes.plot(100 * summary.pooled[name], below, "D", mec=COLOURS["ink"], mfc="none", ms=5, mew=1)
            if name.endswith("_ua"):
                axes.plot([chance] * 2, [row - 0.35, row + 0.45], "--", color=COLOURS["muted"], lw=1)
        axes.set_yticks(range(len(SCORES)), [f"{level} {short}" for _, level, short in SCORES])
        axes.set(xlim=(-2, 102), ylim=(len(SCORES) - 0.4, -0.5), xlabel="%" + _marked(summary.optimistic))
        axes.tick_params(axis="y", labelsize=TEXT, labelcolor=COLOURS["ink"])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)

    alt = f"Scores of {len(summary.folds)} folds. Means: {values}."
    return Drawing("scores", (Panel(draw, alt),), (3.8, 2.4), keys=tuple(keys))


def confusion_figure(summary: RunSummary) -> Drawing:
    """Rows of the confusion matrices as shares of the true class, with counts."""
    side = max(2.9, 1.1 + 0.52 * len(summary.classes))
    marked = _marked(summary.optimistic)
    panels = tuple(_confusion_panel(level, summary.confusion[level], summary.classes, marked) for level in LEVELS)
    return Drawing("confusion", panels, (side, side - 0.2), columns=2)


def _confusion_panel(level: str, counts: np.ndarray, classes: Sequence[str], marked: str) -> Panel:
    shares = row_shares(counts)
    recalls = [f"{name} {100 * share:.0f} %" for name, share in zip(classes, shares.diagonal(), strict=True)]

    def draw(part: Any) -> None:
        heading(part, f"{level}s{marked}")
        axes = part.subplots()
        for true, predicted in np.ndindex(counts.shape):
            share = float(shares[true, predicted])
            axes.bar(predicted, 0.96, 0.96, true - 0.48, color=COLOURS["accent"], alpha=heat(share), linewidth=0)
            colour = COLOURS["on-accent" if heat(share) > STRONG else "ink"]
            axes.text(predicted, true - 0.14, f"{100 * share:.0f}", ha="center", va="center", color=colour)
            text = f"{counts[true, predicted]:,}"
            axes.text(predicted, true + 0.2, text, ha="center", va="center", color=colour, fontsize=SMALL - 1)
        names = [plain(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=0 if sum(map(len, names)) < 30 else 35)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axes.tick_params(labelcolor=COLOURS["ink"])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_aspect("equal")

    return Panel(draw, f"Confusion matrix of {level}s. Recall: {', '.join(recalls)}.")


def curves_figure(results: Sequence[FoldResult]) -> Drawing:
    """A panel a fold: validation UA above, training and validation loss below, the chosen epoch marked."""
    losses = np.concatenate([r.curve[["train_loss", "validation_loss"]].to_numpy().ravel() for r in results])
    positive = losses[losses > 0]
    log = bool(len(positive)) and positive.max() > _LOG_FACTOR * positive.min()
    low = max(1e-4, float(positive.min(initial=1.0))) if log else 0.0
    limits = (low / 1.3, float(losses.max()) * 1.3) if log else (0.0, float(losses.max()) * 1.08)
    epochs = max(2, *(int(result.curve["epoch"].max()) for result in results))
    panels = tuple(_curve_panel(result, limits, epochs, log) for result in results)
    keys = (
        Key("validation UA", "class-4", "-"),
        Key("training loss", "muted", "--"),
        Key("validation loss", "class-1", "-"),
        Key("chosen epoch", "ink", "o"),
    )
    return Drawing("learning-curves", panels, (2.9, 2.3), columns=3, keys=keys)


def _curve_panel(result: FoldResult, limits: tuple[float, float], epochs: int, log: bool) -> Panel:
    curve, best = result.curve, int(result.record["best_epoch"])
    name = f"Fold {result.number} ({result.record['name']})"
    chosen = curve[curve["epoch"] == best].iloc[0]
    optimistic = ", chosen on the test set" if result.record["optimistic"] else ""

    def draw(part: Any) -> None:
        heading(part, name, f"epoch {best} of {len(curve)}{_marked(result.record['optimistic'])}")
        above, below = part.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
        single = "o" if len(curve) == 1 else ""
        for axes, column, colour, style in (
            (above, "validation_ua", "class-4", "-"),
            (below, "train_loss", "muted", "--"),
            (below, "validation_loss", "class-1", "-"),
        ):
            factor = 100 if axes is above else 1
            axes.plot(curve["epoch"], factor * curve[column], linestyle=style, marker=single, color=COLOURS[colour])
        for axes, value in ((above, 100 * chosen["validation_ua"]), (below, chosen["validation_loss"])):
            axes.axvline(best, color=COLOURS["ink"], linewidth=0.7)
            axes.plot(best, value, "o", color=COLOURS["ink"], ms=3.5)
        above.set(ylim=(0, 102), ylabel="UA, %")
        above.set_yticks([0, 50, 100])
        below.set(ylim=limits, xlabel="epoch", ylabel="loss")
        if log:
            below.set_yscale("log")
            below.minorticks_off()
        below.set_xlim(0.5, epochs + 0.5)
        below.xaxis.get_major_locator().set_params(integer=True)

    return Panel(
        draw,
        f"{name}: {len(curve)} epochs; epoch {best} chosen{optimistic}, where validation UA was "
        f"{100 * chosen['validation_ua']:.1f} % and validation loss {chosen['validation_loss']:.3f}.",
    )


def has_curve(result: FoldResult) -> bool:
    """Whether a fold was trained epoch by epoch; a model in closed form has a row a value of its grid, and no curve."""
    if result.record.get("step") == "closed form":
        return False
    needed = {"epoch", "train_loss", "validation_loss", "validation_ua"}
    if not needed <= set(result.curve.columns):
        return False
    values = result.curve[sorted(needed)].to_numpy(dtype=float)
    return bool(np.isfinite(values).all()) and int(result.record["best_epoch"]) in set(result.curve["epoch"])


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Counts (classes, classes) → shares of each row, 0 in a row of zeros."""
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def heat(share: float) -> float:
    """How strong a cell of a confusion matrix is coloured: 0…0.9, a little even where the share is 0."""
    return round(0.04 + 0.86 * float(share), 3)


def _marked(optimistic: bool) -> str:
    """What a figure says of itself, wherever it is put, where the test set had a say."""
    return ", optimistic" if optimistic else ""


def _spread(values: np.ndarray, row: float) -> np.ndarray:
    """Rows for dots so that equal values lie beside each other and not on top of each other."""
    seen: dict[float, int] = {}
    places = []
    for value in values.round(1).tolist():
        seen[value] = count = seen.get(value, -1) + 1
        places.append(row + (1 if count % 2 else -1) * 0.13 * ((count + 1) // 2))
    return np.array(places)
