"""Search the training settings for features that are not fine-tuned: what the preset ``frozen`` is made from.

    mfhca manifest ravdess /data/ravdess
    mfhca extract --encoder ENCODER
    python benchmarks/preset_search.py cache/ravdess --runs runs/search --json search.json

A random search over learning rate, weight decay, batch, dropout, Eq. 9 (as written, scaled, without its softmax) and
the sampling of clips, protocol strict. The first round trains each candidate with seed 0; the second trains the best,
and the preset as it is, with other seeds, and those alone decide: the best of many noisy scores is never what it seems.
The criterion is the pooled test UA of the corpus that is searched on; no other corpus is looked at. Runs that are there
are kept, so that the search can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mfhca_cache
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.training.changes import changes_name
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.options import PRESETS, TrainOptions

SPACE: dict[str, tuple[Any, ...]] = {
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "weight_decay": (0.0, 1e-2, 1e-1),
    "batch": (8, 16),
    "dropout": (0.1, 0.3, 0.5),
    "attention": ("as written", "scaled by D", "no softmax"),
    "sampling": ("shuffled", "balanced"),
}
#: Eq. 9's choices as settings of the model; a factor of 768 is the width of a base encoder.
ATTENTION: dict[str, dict[str, Any]] = {
    "as written": {},
    "scaled by D": {"attention_scale": 768.0},
    "no softmax": {"attention_softmax": False},
}

Candidate = dict[str, Any]


def draw(count: int, seed: int) -> list[Candidate]:
    """Candidates without repetition, from the seed; each value of each field about equally often."""
    random = np.random.default_rng(seed)
    columns = {name: [values[i % len(values)] for i in random.permutation(count)] for name, values in SPACE.items()}
    found: list[Candidate] = []
    for number in range(count):
        candidate = {name: column[number] for name, column in columns.items()}
        if candidate not in found:
            found.append(candidate)
    return found


def present() -> Candidate:
    """The preset as it is."""
    recipe, model = PRESETS["frozen"].recipe, PRESETS["frozen"].model
    attention = "no softmax"
    if model.attention_softmax:
        attention = "as written" if model.attention_scale == 1 else "scaled by D"
    return {
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "batch": recipe.batch,
        "dropout": model.dropout,
        "attention": attention,
        "sampling": recipe.sampling,
    }


def options_of(candidate: Candidate, base: TrainOptions, seed: int) -> TrainOptions:
    """The candidate as options: every field said, whatever the preset has."""
    model = {"attention_scale": 1.0, "attention_softmax": True} | ATTENTION[candidate["attention"]]
    given = {name: value for name, value in candidate.items() if name != "attention"}
    return replace(base, seed=seed, changes=(*base.changes, *given.items(), *model.items()))


def score(cache: Any, candidate: Candidate, base: TrainOptions, seed: int, runs: Path, jobs: int) -> dict[str, float]:
    """Train the candidate's folds and give its pooled test UA and WA, and the mean of the best epochs."""
    options = options_of(candidate, base, seed)
    run = runs / f"seed{seed}{changes_name(options.changes)}"
    cross_validate(cache, options, run=run, jobs=jobs)
    summary = summarise(run)
    pooled = summary.pooled
    return {
        "ua": pooled["utterance_ua"],
        "wa": pooled["utterance_wa"],
        "clip_ua": pooled["clip_ua"],
        "epoch": float(summary.folds["best_epoch"].mean()),
    }


def main() -> None:
    """Search, and print and store both rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--features", default="spectrogram+encoder")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="of the second round")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cache = mfhca_cache.open_cache(given.cache)
    base = TrainOptions(
        features=given.features,
        preset="frozen",
        epochs=given.epochs,
        precision=given.precision,
        threads=1,
        changes=(("patience", given.patience),),
    )
    candidates = [present(), *(found for found in draw(given.candidates, seed=0) if found != present())]
    first = []
    for candidate in candidates:
        first.append({**candidate, **score(cache, candidate, base, 0, given.runs, given.jobs)})
        print(json.dumps(first[-1]), flush=True)
    ranked = sorted(candidates[1:], key=lambda item: -first[candidates.index(item)]["ua"])
    second = []
    for candidate in [candidates[0], *ranked[: given.finalists]]:
        scores = [score(cache, candidate, base, seed, given.runs, given.jobs) for seed in range(1, given.seeds + 1)]
        second.append({**candidate, **{name: float(np.mean([s[name] for s in scores])) for name in scores[0]}})
        print(json.dumps(second[-1]), flush=True)
    for title, rows in (("First round, seed 0", first), (f"Second round, {given.seeds} other seeds, decides", second)):
        table = Table(title=title, title_justify="left")
        for name in (*SPACE, "UA", "WA", "clip UA", "epoch"):
            table.add_column(name, justify="left" if name in ("attention", "sampling") else "right")
        for row in sorted(rows, key=lambda item: -item["ua"]):
            figures = (f"{100 * row[name]:.1f}" for name in ("ua", "wa", "clip_ua"))
            table.add_row(*(str(row[name]) for name in SPACE), *figures, f"{row['epoch']:.1f}")
        Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"first": first, "second": second}, indent=2) + "\n")


if __name__ == "__main__":
    main()
