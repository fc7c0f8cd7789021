"""A run's stored folds as one table: WA and UA by fold, mean ± standard deviation, pooled, their intervals, confusion.

Pooled scores are those of all test utterances (or clips) of all folds taken as one set.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.labels import FOUR_CLASSES
from mfhca_cache.reporting.intervals import Counts, Interval, fold_mean, intervals, pooled
from mfhca_cache.reporting.speakers import count_clips, count_speakers, speaker_table
from mfhca_cache.storage.publish import publish, publish_json
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.result import read_predictions, read_record
from mfhca_cache.training.tables import find_published

LEVELS = ("utterance", "clip")
SETTINGS = ("corpus", "model", "features", "protocol", "preset", "seed", "parameters")

PAPER_CAVEAT = (
    "The paper freezes the encoder and does not say how the epoch was chosen; "
    "the released code fine-tunes the encoder and chooses the epoch on the test speaker."
)


@dataclass(frozen=True)
class RunSummary:
    """What a run's folds amount to; scores in 0…1.

    Attributes:
        run: the run's folder.
        settings: corpus, model, features, protocol, preset, seed; test_corpus, where it is another, or None.
        classes: class names in the order of the confusion matrices.
        folds: a row a fold: fold, name, utterances, clips, best_epoch, epochs, seconds, C or alpha if ``chosen``, and
            ``<level>_wa``, ``<level>_ua`` for the levels utterance and clip.
        missing: names of the protocol's folds that are not trained yet.
        mean, std, pooled: ``<level>_wa`` and so on → score; std is the sample's, absent for a single fold.
        confusion: level → counts, row = true class, column = predicted.
        caveats: what must be said beside the scores; what is true of some folds only has their names before it.
        optimistic: whether the test set had a say in the training of any fold.
        folds_from: name, shape and SHA-256 of the file that the folds were imported from, or None.
        paper: WA and UA in percent and the row of the paper's table, where the model is of it and the corpus IEMOCAP.
        intervals, pooled_intervals: of ``mean`` and of ``pooled``, under the same names, 95 %, over speakers; a name is
            absent where there is no such interval: a single speaker, clips of folds that test several.
        speakers: a row a test speaker: speaker, fold (where none is tested in several), utterances, wa, ua (0…1),
            ``recall_<class>``.
        counts: level → what the intervals were made from; clips only where each fold tests one speaker.
        chosen: what validation chose in each fold: epoch (``best_epoch`` in ``folds``), or C or alpha of a model in
            closed form (a column of ``folds`` by that name).
    """

    run: Path
    settings: dict[str, Any]
    classes: list[str]
    folds: pd.DataFrame
    missing: list[str]
    mean: dict[str, float]
    std: dict[str, float]
    pooled: dict[str, float]
    confusion: dict[str, np.ndarray]
    caveats: list[str]
    paper: tuple[float, float, str] | None
    optimistic: bool = False
    folds_from: dict[str, Any] | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    pooled_intervals: dict[str, Interval] = field(default_factory=dict)
    speakers: pd.DataFrame = field(default_factory=pd.DataFrame)
    counts: dict[str, Counts] = field(default_factory=dict)
    chosen: str = "epoch"

    @property
    def chosen_column(self) -> str:
        """The column of ``folds`` that has it."""
        return "best_epoch" if self.chosen == "epoch" else self.chosen

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "run": self.run.name,
            **self.settings,
            "classes": self.classes,
            "folds": self.folds.to_dict("records"),
            "missing_folds": self.missing,
            "mean": self.mean,
            "std": self.std,
            "intervals": {name: asdict(item) for name, item in self.intervals.items()},
            "pooled": self.pooled,
            "pooled_intervals": {name: asdict(item) for name, item in self.pooled_intervals.items()},
            "speakers": plain_records(self.speakers),
            "confusion": {level: matrix.tolist() for level, matrix in self.confusion.items()},
            "optimistic": self.optimistic,
            "folds_from": self.folds_from,
            "caveats": self.caveats,
            "paper": {"wa": self.paper[0], "ua": self.paper[1], "row": self.paper[2], "caveat": PAPER_CAVEAT}
            if self.paper
            else None,
        }

    def to_table(self) -> pd.DataFrame:
        """The folds, then the rows mean, std, pooled, and the limits of their intervals; caveats in every row."""
        rows = [{"name": name, **getattr(self, name)} for name in ("mean", "std", "pooled")]
        for name, found in (("mean", self.intervals), ("pooled", self.pooled_intervals)):
            ends = ("low", "high") if found else ()
            rows += [{"name": f"{name}_{end}", **{k: getattr(v, end) for k, v in found.items()}} for end in ends]
        table = pd.concat([self.folds.astype({"fold": object}), pd.DataFrame(rows)], ignore_index=True)
        return table.assign(protocol=self.settings["protocol"], caveats="; ".join(self.caveats))


def summarise(run: str | Path) -> RunSummary:
    """Read a run's folds.

    Raises:
        TrainingError: no run there, or no fold is trained yet.
    """
    run = Path(run)
    if not (run / "run.json").exists():
        raise TrainingError(f"{run}: no run here (run.json is missing); `mfhca train` makes one")
    identity = read_json(run / "run.json")
    records = sorted((read_record(folder) for folder in _folders(run)), key=lambda record: int(record["fold"]))
    if not records:
        raise TrainingError(f"{run}: no fold is trained yet; `mfhca train --fold all` trains them")
    folds = pd.DataFrame([_row(record) for record in records])
    confusion = {level: np.sum([record["confusion"][level] for record in records], axis=0) for level in LEVELS}
    columns = [f"{level}_{name}" for level in LEVELS for name in ("wa", "ua")]
    first = records[0]
    utterances = count_speakers(run_predictions(run), first["classes"])
    clips = count_clips(records, utterances)
    counts = {"utterance": utterances} | ({"clip": clips} if clips else {})
    return RunSummary(
        run=run,
        settings={**{key: first[key] for key in SETTINGS}, "test_corpus": first.get("test_corpus")},
        classes=list(first["classes"]),
        folds=folds,
        missing=[name for name in identity.get("folds", []) if name not in set(folds["name"])],
        mean={name: float(folds[name].mean()) for name in columns},
        std={name: statistics.stdev(folds[name]) for name in columns} if len(folds) > 1 else {},
        pooled={key: value for level in LEVELS for key, value in _pooled(level, confusion[level]).items()},
        confusion=confusion,
        caveats=_caveats(records),
        paper=paper_figures(
            corpora(first),
            first["features"],
            first["classes"],
            first["model"],
            first.get("model_settings", {}),
            first.get("encoders", {}),  # Absent in runs from before it was recorded.
        ),
        optimistic=any(record.get("optimistic", False) for record in records),
        folds_from=first.get("folds_from"),
        intervals=intervals([counts], fold_mean),
        pooled_intervals=intervals([counts], pooled),
        speakers=speaker_table(utterances, first["classes"], [int(record["fold"]) for record in records]),
        counts=counts,
        chosen=next(iter(first.get("chosen", {})), "epoch"),
    )


def run_predictions(run: Path) -> pd.DataFrame:
    """The predictions of all folds of a run as one table, fold after fold: see `FoldResult`; and ``fold``, a number.

    Raises:
        TrainingError: a fold's file is missing or damaged.
    """
    folders = sorted(_folders(run), key=lambda folder: int(folder.name[4:]))
    return pd.concat([read_predictions(folder).assign(fold=int(folder.name[4:])) for folder in folders])


def plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    return [{str(k): None if v != v else v for k, v in row.items()} for row in table.to_dict("records")]


def corpora(settings: Mapping[str, Any]) -> str:
    """The corpus of a run in words: ``ravdess → emodb`` where it was trained on one and tested on another."""
    tested = settings.get("test_corpus")
    return f"{settings['corpus']} → {tested}" if tested else str(settings["corpus"])


def write_report(summary: RunSummary) -> tuple[Path, Path]:
    """Write report.json and report.csv into the run's folder; their paths."""
    paths = summary.run / "report.json", summary.run / "report.csv"
    publish_json(paths[0], summary.to_json())
    publish(paths[1], summary.to_table().to_csv(index=False, lineterminator="\n").encode())
    return paths


def paper_figures(
    corpus: str,
    features: dict[str, str],
    classes: Sequence[str],
    model: str = "mfhca",
    settings: Mapping[str, Any] | None = None,
    encoders: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[float, float, str] | None:
    """The paper's WA and UA for these inputs, only where the model, the corpus and the classes are the paper's.

    Arguments are as of `mfhca_cache.training.tables.find_published`.
    """
    if corpus != "iemocap" or tuple(classes) != FOUR_CLASSES:
        return None
    return find_published(model, features, settings or {}, encoders)


def _folders(run: Path) -> list[Path]:
    return [path for path in run.glob("fold*") if path.name[4:].isdecimal() and (path / "result.json").exists()]


def _caveats(records: Sequence[dict[str, Any]]) -> list[str]:
    """Each caveat once; one that is not of every fold after the names of its folds."""
    folds: dict[str, list[str]] = {}
    for record in records:
        for line in record["caveats"]:
            folds.setdefault(line, []).append(f"{record['fold']} ({record['name']})")
    return [
        line if len(names) == len(records) else f"fold{'s' if len(names) > 1 else ''} {', '.join(names)}: {line}"
        for line, names in folds.items()
    ]


def _row(record: dict[str, Any]) -> dict[str, Any]:
    scores = {f"{level}_{name}": record["scores"][level][name] for level in LEVELS for name in ("wa", "ua")}
    return {
        "fold": record["fold"],
        "name": record["name"],
        "utterances": record["scores"]["utterance"]["count"],
        "clips": record["scores"]["clip"]["count"],
        "best_epoch": record["best_epoch"],
        "epochs": record["epochs"],
        "seconds": record["seconds"],
        **record.get("chosen", {}),
        **scores,
    }


def _pooled(level: str, confusion: np.ndarray) -> dict[str, float]:
    present = confusion.sum(1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(1)[present]
    wa = float(confusion.diagonal().sum() / confusion.sum())
    return {f"{level}_wa": wa, f"{level}_ua": float(recall.mean())}
