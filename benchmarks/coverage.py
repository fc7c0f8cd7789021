"""Do intervals cover what they should, and does `mfhca compare` reject as often as it says? By simulated corpora.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --draws 10000 --json coverage.json

Coverage: of 95 % intervals of corpora whose speakers differ, how many hold the score that other speakers would give.
Rejection: two systems that are equally good; how often p falls below 0.05. Right are 95 % and 5 %; of 1,000 draws about
two thirds of such figures lie within 0.7 of what infinitely many would give.

The corpora "really trained" are another matter: a classifier is trained for every fold, and what should be covered is
what the same training on other speakers would give on average.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine
from rich.console import Console
from rich.table import Table
from simulated import CORPORA, PART, Drawn, draw_effects, draw_trained, in_parts

from mfhca_cache.reporting.intervals import Counts, Estimate, estimates, fold_mean, limits, pooled, quantile
from mfhca_cache.reporting.paired import correction, mcnemar_p, p_values, signed_rank_p

WAYS: dict[str, Callable[[Counts], Estimate]] = {"mean": fold_mean, "pooled": pooled}
SCORES = [(way, score) for way in WAYS for score in ("ua", "wa")]
TRAINED = "really trained"
#: The corpus that is also tested two speakers a fold, as the protocol session does.
SESSIONS = "as Emo-DB"
COVERAGE_COLUMNS = ("log-odds t", "plain t", "bootstrap", "binomial")
TEST_COLUMNS = ("t", "corrected t", "Wilcoxon", "McNemar")
ALPHA = 0.05


def counts_of(right: np.ndarray, total: np.ndarray, a_fold: int = 1) -> Counts:
    """Drawn corpora as the library counts them; ``a_fold`` speakers are tested together."""
    speakers = np.arange(total.shape[-2])
    return Counts(right, total, speakers, speakers // a_fold, tuple(map(str, speakers)))


def scores_of(counts: Counts) -> dict[tuple[str, str], Estimate]:
    """The four scores by their names in `SCORES`."""
    return {
        (name, score): found[f"utterance_{score}"]
        for name, way in WAYS.items()
        for found in [estimates({"utterance": counts}, way)]
        for score in ("ua", "wa")
    }


def bootstrap(right: np.ndarray, total: np.ndarray, resamples: int, rng: np.random.Generator) -> dict[Any, np.ndarray]:
    """Percentile intervals over resampled speakers: score → (2, draws)."""
    speakers = total.shape[1]
    weights = rng.multinomial(speakers, np.full(speakers, 1 / speakers), resamples) / speakers
    own = {"ua": np.nanmean(_ratio(right, total), -1), "wa": right.sum(-1) / total.sum(-1)}
    found: dict[Any, list[np.ndarray]] = {name: [] for name in SCORES}
    for part in (slice(at, at + PART) for at in range(0, len(total), PART)):
        found["mean", "ua"].append(own["ua"][part] @ weights.T)
        found["mean", "wa"].append(own["wa"][part] @ weights.T)
        pooled_wa = _ratio(right[part].sum(-1) @ weights.T, total[part].sum(-1) @ weights.T)
        found["pooled", "wa"].append(pooled_wa)
        found["pooled", "ua"].append(np.nanmean(_ratio(weights @ right[part], weights @ total[part]), -1))
    return {
        name: np.concatenate([np.percentile(values, [2.5, 97.5], axis=1) for values in parts], 1)
        for name, parts in found.items()
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def coverage(drawn: Drawn, truth: dict[Any, float], resamples: int = 0, seed: int = 0, a_fold: int = 1) -> Any:
    """Score → way of making an interval → share of the draws whose interval holds the truth."""
    found: dict[Any, Any] = {}
    resampled = bootstrap(drawn.right_a, drawn.total, resamples, np.random.default_rng(seed)) if resamples else {}
    n = drawn.total.sum((1, 2))
    for name, estimate in scores_of(counts_of(drawn.right_a, drawn.total, a_fold)).items():
        half = quantile(estimate) * estimate.standard_error
        binomial = 1.96 * np.sqrt(estimate.value * (1 - estimate.value) / n)
        ends = {
            "log-odds t": limits(estimate),
            "plain t": (estimate.value - half, estimate.value + half),
            "binomial": (estimate.value - binomial, estimate.value + binomial),
        }
        ends |= {"bootstrap": resampled[name]} if resampled else {}
        found[name] = {
            way: float(((low <= truth[name]) & (truth[name] <= high)).mean()) for way, (low, high) in ends.items()
        }
    return found


def rejections(drawn: Drawn) -> dict[Any, Any]:
    """Score → test → share of the draws in which two equally good systems are told apart."""
    pairs = [scores_of(counts_of(right, drawn.total)) for right in (drawn.right_a, drawn.right_b)]
    mcnemar = mcnemar_p(drawn.only_a.sum((1, 2)), drawn.only_b.sum((1, 2)))
    found: dict[Any, Any] = {}
    for name in SCORES:
        difference = pairs[0][name] - pairs[1][name]
        folds = drawn.total.shape[1]
        wider = {"t": 1.0, "corrected t": correction(folds, 1 / (folds - 1))}
        found[name] = {test: float((p_values(difference, by) < ALPHA).mean()) for test, by in wider.items()}
        if name[0] == "mean":
            each = difference.deviations + difference.value[:, None]
            found[name]["Wilcoxon"] = float(np.mean([signed_rank_p(d[d != 0]) < ALPHA for d in each]))
        if name == ("pooled", "wa"):
            found[name]["McNemar"] = float((mcnemar < ALPHA).mean())
    return found


def truth_of(drawn: Drawn, trained: bool, a_fold: int = 1) -> dict[Any, float]:
    """Each score's expectation, from many drawn corpora."""
    counts = counts_of(drawn.right_a, drawn.total, a_fold)
    found = {name: float(estimate.value.mean()) for name, estimate in scores_of(counts).items()}
    if not trained:  # The score that ever more speakers come to.
        right, total = drawn.right_a.sum((0, 1)), drawn.total.sum((0, 1))
        found |= {("pooled", "ua"): float((right / total).mean()), ("pooled", "wa"): float(right.sum() / total.sum())}
    return found


def simulate(draws: int, speakers: list[int], resamples: int, seed: int) -> list[dict[str, Any]]:
    """A row a corpus, number of speakers and score."""
    rows = []
    for count in speakers:
        for number, corpus in enumerate((*CORPORA, None)):
            rng = np.random.default_rng([seed, count, number])
            draw = partial(draw_trained if corpus is None else partial(draw_effects, corpus), speakers=count, rng=rng)
            drawn, many = in_parts(draw, draws), in_parts(draw, max(20_000, 4 * draws) if corpus else 4 * draws)
            name = corpus.name if corpus else TRAINED
            truth = truth_of(many, trained=corpus is None)
            rows += _rows(count, name, truth, coverage(drawn, truth, resamples, seed), rejections(drawn))
            if corpus is not None and name == SESSIONS:
                truth = truth_of(many, trained=False, a_fold=2)
                rows += _rows(count, f"{name}, 2 a fold", truth, coverage(drawn, truth, a_fold=2), {})
    return rows


def _rows(speakers: int, corpus: str, truth: dict[Any, float], covered: Any, rejected: Any) -> list[dict[str, Any]]:
    return [
        {
            "speakers": speakers,
            "corpus": corpus,
            "score": f"{score.upper()}, {way}",
            "truth": truth[way, score],
            "coverage": covered[way, score],
            "rejected": rejected.get((way, score), {}),
        }
        for way, score in SCORES
    ]


def show(rows: list[dict[str, Any]], draws: int) -> None:
    """Both tables, one a number of speakers."""
    console = Console(width=max(134, Console().width))
    for count in dict.fromkeys(row["speakers"] for row in rows):
        title = f"{count} speakers, {draws:,} draws: 95 % intervals that cover, %; differences found where none is, %"
        table = Table(title=title, title_justify="left")
        for name in ("corpus", "score", "truth", *COVERAGE_COLUMNS, *TEST_COLUMNS):
            table.add_column(name, justify="left" if name in ("corpus", "score") else "right", no_wrap=True)
        before = ""
        for row in (row for row in rows if row["speakers"] == count):
            if before and row["corpus"] != before:
                table.add_section()
            cells = [row["coverage"].get(name) for name in COVERAGE_COLUMNS]
            cells += [row["rejected"].get(name) for name in TEST_COLUMNS]
            texts = ["" if value is None else f"{100 * value:.1f}" for value in cells]
            name = "" if row["corpus"] == before else row["corpus"]
            table.add_row(name, row["score"], f"{100 * row['truth']:.1f}", *texts)
            before = row["corpus"]
        console.print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="corpora of each kind (default 1000)")
    parser.add_argument("--speakers", type=int, nargs="+", default=[10, 4], help="in a corpus (default 10 4)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = simulate(options.draws, options.speakers, options.resamples, options.seed)
    show(rows, options.draws)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        sizes = {name: getattr(options, name) for name in ("draws", "speakers", "resamples", "seed")}
        options.json.write_text(json.dumps({"machine": machine(), **sizes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
