"""Which utterances' features are shown, from which fold's model, and beside which run without HCA.

Ten folds have ten models, and the features of one model are no neighbours of another's: each space is one fold's alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mfhca_cache.errors import MfhcaError, TrainingError
from mfhca_cache.folds import CROSS_CORPUS, PROTOCOLS, make_folds
from mfhca_cache.labels import ClassMap
from mfhca_cache.progress import ProgressCallback
from mfhca_cache.reporting.embedding import LEAST_POINTS, t_sne
from mfhca_cache.reporting.inside import Features, features_of, why_not
from mfhca_cache.reporting.stored import StoredRun, read_run
from mfhca_cache.spec import differences
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.data import with_classes
from mfhca_cache.training.result import FoldResult, read_record

#: More training utterances than these would hide each other, and take minutes.
MOST_TRAINING = 2000
#: What must be the same of two runs for their features to stand side by side: utterances, classes, folds.
_SAME = ("corpus", "test_corpus", "test_plan", "classes", "class_map", "protocol", "folds_from", "model")
#: What else must be the same of a run that nobody named, so that nothing but the fusion is between the two.
_ALIKE = ("features", "seed", "preset", "recipe", "precision", "alexnet")


@dataclass(frozen=True)
class Space:
    """Utterances as points, from one fold's model.

    Attributes:
        fold: the fold's name and number, in words.
        what: whose features these are, in a few words.
        points: float32 (U, 2).
        classes: (U,) the number of each utterance's true class.
        test: (U,) bool; the others were trained on.
    """

    fold: str
    what: str
    points: np.ndarray
    classes: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Spaces:
    """What is shown of a run's features.

    Attributes:
        chosen: one fold's spaces, its training utterances too: this run's features, then what they are held against.
        folds: the same of every fold, its test utterances alone; a fold with very few has none.
        fold: the chosen fold.
        why_fold: why this one.
        training: which training utterances are shown, in words.
        other: what the features are held against, in a sentence; None where there is nothing.
    """

    chosen: tuple[Space, ...]
    folds: tuple[Space, ...]
    fold: FoldResult
    why_fold: str
    training: str
    other: str | None


def median_fold(results: Sequence[FoldResult]) -> FoldResult:
    """The fold with the median UA; of an even number the lower of the two in the middle, and the first of equals."""
    middle = statistics.median_low([result.ua for result in results])
    return next(result for result in results if result.ua == middle)


def counterpart(run: StoredRun, beside: Sequence[Path]) -> StoredRun | None:
    """A run of the other fusion, HCA or co-attention: the first that fits of those named, else one in the same folder.

    One that was named may differ in more than the fusion, see `unlike`; one that was not differs in nothing else.

    Raises:
        TrainingError: a run that was named is none, or none that was named fits.
    """
    mine = run.results[0].record
    reasons = []
    for path in beside:
        other = read_run(path)
        record = other.results[0].record
        if not (reason := _why_apart(mine, record)):
            return other
        reasons.append(f"{path} cannot stand beside {run.folder}: {reason}")
    if reasons:
        raise TrainingError(
            "; ".join(reasons) + ". Expected MFHCA on both inputs, on the same utterances, classes and folds, one run "
            "with HCA and one without"
        )
    if fusion(mine) is None:
        return None
    for path in sorted(path.parent for path in run.folder.resolve().parent.glob("*/run.json")):
        try:
            # A record is read first: the folds' weights may be gigabytes, and most runs are others.
            folder = next((item.parent for item in sorted(path.glob("fold*/result.json"))), None)
            record = read_record(folder) if folder else {}
            if record and not _why_apart(mine, record) and not unlike(mine, record):
                return read_run(path)
        except MfhcaError:
            continue
    return None


def _why_apart(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Why the features of two runs cannot stand side by side, in words; empty where they can."""
    if fusion(mine) is None or fusion(other) is None:
        return "one of them has no two inputs that MFHCA joins"
    if fusion(mine) == fusion(other):
        return f"both have the fusion {fusion(mine)}"
    here, there = ({key: item.get(key) for key in _SAME} | {"plan": item["cache"]["plan"]} for item in (mine, other))
    return "; ".join(differences(here, there))


def unlike(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is between the records of two runs beside the fusion: ``recipe.epochs: 40 → 20`` and so on."""
    parts = []
    for record in (mine, other):
        model = {key: value for key, value in record["model_settings"].items() if key != "fusion"}
        found = {key: record.get(key) for key in _ALIKE}
        parts.append(found | {"model_settings": model, "fingerprints": record["cache"]})
    return differences(parts[0], parts[1])


def fusion(record: dict[str, Any]) -> str | None:
    """How a record's model joins its two inputs: hca or co-attention; None where there is nothing to join."""
    if record.get("model_source") or record["model"] != "mfhca" or len(record["inputs"]) < 2:
        return None
    return str(record["model_settings"].get("fusion", "hca"))


def look(cache: Cache, run: StoredRun, beside: Sequence[Path], fold: int | None, progress: ProgressCallback) -> Spaces:
    """Read the features of every fold's test utterances and of one fold's training utterances, and place them.

    Args:
        fold: the number of the fold to be shown with its training utterances; None for the one with the median UA.

    Raises:
        TrainingError: too few utterances, a model that gives no features, or a run beside that is none.
        CacheError: the cache does not hold the utterances, or is damaged.
    """
    other = counterpart(run, beside)
    chosen = median_fold(run.results) if fold is None else next(r for r in run.results if r.number == fold)
    why = "the one that was asked for" if fold is not None else "the one with the median UA"
    why = why if len(run.results) > 1 else "the only one"
    training, said = _training(cache, run, chosen)
    spaces: list[Space] = []
    for result in run.results:
        ids, labels = _test(run, result)
        if len(ids) < LEAST_POINTS:
            continue
        spaces += _place(cache, run, result, other, ids, labels, np.ones(len(ids), dtype=bool), progress)
    ids, labels = _test(run, chosen)
    test = np.arange(len(ids) + len(training)) < len(ids)
    shown = _place(cache, run, chosen, other, ids + list(training), labels + list(training.values()), test, progress)
    return Spaces(tuple(shown), tuple(spaces), chosen, why, said, _other(run, other, len(shown) > 1))


def _place(
    cache: Cache,
    run: StoredRun,
    result: FoldResult,
    other: StoredRun | None,
    ids: list[str],
    labels: list[int],
    test: np.ndarray,
    progress: ProgressCallback,
) -> list[Space]:
    """One fold's utterances in its own final features, and in what these are held against."""
    name = f"fold {result.number} ({result.record['name']})"

    def read(source: FoldResult) -> Features:
        return features_of(cache, source, ids, progress, f"features, {name}")

    mine = read(result)
    found: list[tuple[str, np.ndarray]] = [(_named(fusion(result.record)), mine.final)]
    twin = next((r for r in other.results if r.number == result.number), None) if other else None
    if twin is not None and why_not(cache, twin.record) is None:
        found.append((_named(fusion(twin.record)), read(twin).final))
    elif mine.before is not None and other is None:
        found.append(("before HCA", mine.before))
    space = Space(name, "", np.empty(0), np.array(labels), test)
    return [replace(space, what=what, points=t_sne(values)) for what, values in found]


def _named(kind: str | None) -> str:
    return {"hca": "with HCA", "co-attention": "co-attention, no HCA", None: "final features"}.get(kind, str(kind))


def _other(run: StoredRun, other: StoredRun | None, shown: bool) -> str | None:
    if other is not None:
        without = fusion(other.results[0].record) != "hca"
        kind = "was trained without HCA" if without else "was trained with HCA"
        said = f"Beside it stand the final features of another run, {other.folder.name}, which {kind}"
        more = unlike(run.results[0].record, other.results[0].record)
        return f"{said}. It differs in more than that: {'; '.join(more)}." if more else f"{said}, all else being equal."
    if not shown:
        return None
    return (
        "“Before HCA” is what the same model's attention was given, f_spec and the encoder's features as Eq. 10 pools "
        "them, joined: not the features of a model that was trained without HCA. Such a run is not here; "
        "`mfhca train` with `--set fusion=co-attention` makes one, which is then shown instead."
    )


def _test(run: StoredRun, result: FoldResult) -> tuple[list[str], list[int]]:
    table = result.predictions
    return list(table["utterance_id"]), [run.summary.classes.index(name) for name in table["label"]]


def _training(cache: Cache, run: StoredRun, result: FoldResult) -> tuple[dict[str, int], str]:
    """A fold's training utterances and their classes, as the protocol cuts them, and which they are in words."""
    record, classes = result.record, run.identity["classes"]
    if record["protocol"] == CROSS_CORPUS:
        return {}, f"Its training utterances are not shown: they are of {record['corpus']}, and lie in another cache."
    if record["protocol"] not in PROTOCOLS:
        return (
            {},
            "Its training utterances are not shown: its folds come from a file, and the run only knows its digest.",
        )
    labels = ClassMap(str(record["class_map"]), tuple(classes), {name: tuple(raw) for name, raw in classes.items()})
    table = with_classes(cache, labels, record["features"].values())
    folds = make_folds(table, record["protocol"], record["seed"])
    fold = next((item for item in folds if item.number == result.number), None)
    if fold is None or set(fold.test) != set(result.predictions["utterance_id"]):
        return {}, "Its training utterances are not shown: the cache's labels or speakers have changed since the run."
    ids = np.array(fold.train, dtype=object)
    said = f"its {len(ids):,} training utterances as faint rings"
    if len(ids) > MOST_TRAINING:
        said = f"{MOST_TRAINING:,} of its {len(ids):,} training utterances, drawn at random, as faint rings"
        ids = np.sort(np.random.default_rng(0).choice(ids, MOST_TRAINING, replace=False))
    place = table.set_index("utterance_id")["class"]
    return {str(name): labels.classes.index(place[name]) for name in ids}, said
