"""Two runs on the same test utterances: both scores, their difference, and what can be concluded from it.

Runs are paired by utterance and speaker. "Mean" here is the mean over speakers of a speaker's own WA or UA, which is
the mean over folds where each fold tests one speaker. With several seeds a speaker's scores are averaged over the seeds
first: seeds are not new speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.conclude import cautions, conclude
from mfhca_cache.reporting.intervals import Counts, Estimate, average, estimates, fold_mean, pooled
from mfhca_cache.reporting.paired import (
    Difference,
    FoldTest,
    McNemar,
    correction,
    fold_test,
    mcnemar,
    paired_difference,
)
from mfhca_cache.reporting.speakers import count_speakers, speaker_table
from mfhca_cache.reporting.summary import RunSummary, plain_records, run_predictions, summarise
from mfhca_cache.spec import differences
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.result import fold_folder, read_record
from mfhca_cache.training.seeds import seed_folder


@dataclass(frozen=True)
class Comparison:
    """Run A beside run B; differences are A − B, scores in 0…1.

    Attributes:
        a, b: the runs, one a seed.
        utterances: number of test utterances.
        mean, pooled: ``utterance_wa``, ``utterance_ua`` → both scores and their difference: of the mean over speakers,
            and of all test utterances as one set.
        speakers: a row a speaker: speaker, utterances, and ``wa_a``, ``wa_b``, ``wa_difference``, the same of ua.
        mcnemar: one a seed; empty where an utterance is tested in several folds.
        folds: ``utterance_wa``, ``utterance_ua`` → tests of the folds' differences; empty where folds differ.
        differ: the settings that differ, as ``name: A → B``.
        cautions: what must be said beside the conclusion, the runs' own caveats included.
        conclusion: what can and what cannot be concluded about UA, in a sentence or two.
    """

    a: tuple[RunSummary, ...]
    b: tuple[RunSummary, ...]
    utterances: int
    mean: dict[str, Difference]
    pooled: dict[str, Difference]
    speakers: pd.DataFrame
    mcnemar: tuple[McNemar, ...]
    folds: dict[str, FoldTest]
    differ: list[str]
    cautions: list[str]
    conclusion: str

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; the runs by name and settings."""
        sides = {"a": self.a, "b": self.b}
        return {
            **{name: {"runs": [str(run.run) for run in side], **side[0].settings} for name, side in sides.items()},
            "seeds": [run.settings["seed"] for run in self.a],
            "utterances": self.utterances,
            "mean": {name: asdict(item) for name, item in self.mean.items()},
            "pooled": {name: asdict(item) for name, item in self.pooled.items()},
            "speakers": plain_records(self.speakers),
            "mcnemar": [asdict(item) for item in self.mcnemar],
            "folds": {name: asdict(item) for name, item in self.folds.items()},
            "differ": self.differ,
            "cautions": self.cautions,
            "conclusion": self.conclusion,
        }


def compare_runs(run_a: str | Path, run_b: str | Path, seeds: int = 1) -> Comparison:
    """Compare two runs that were tested on the same utterances.

    Args:
        run_a, run_b: folders; with several seeds those of seed 0, the others beside them (`seed_folder`).
        seeds: how many, from 0; 1 takes just the folders named.

    Raises:
        TrainingError: no run there; or other classes, other test utterances, other labels, and what differs.
    """
    sides = [_read(Path(run), seeds) for run in (run_a, run_b)]
    (runs_a, tables_a), (runs_b, tables_b) = sides
    for runs, tables in sides:
        for run, table in zip(runs, tables, strict=True):
            _check_same(runs_a[0], tables_a[0], run, table)
    counts = [[_counts(table, runs_a[0].classes) for table in tables] for tables in (tables_a, tables_b)]
    speakers = len(counts[0][0].speakers)
    words = f"t over {speakers} speakers' differences" + (f", averaged over {seeds} seeds" if seeds > 1 else "")
    wider = _correction(sides)
    mean, whole = (_differences(counts, way, words, wider) for way in (fold_mean, pooled))
    folds = _fold_tests(sides)
    return Comparison(
        tuple(runs_a),
        tuple(runs_b),
        len(tables_a[0]["utterance_id"].unique()),
        mean,
        whole,
        _speakers(counts, runs_a[0].classes),
        _mcnemar(tables_a, tables_b),
        folds,
        _differ(runs_a[0], runs_b[0]),
        cautions(runs_a, runs_b, speakers, folds),
        conclude(mean["utterance_ua"], speakers, seeds),
    )


def _read(run: Path, seeds: int) -> tuple[list[RunSummary], list[pd.DataFrame]]:
    if seeds < 1:
        raise TrainingError(f"seeds: got {seeds}; expected 1 or more")
    folders = [run] if seeds == 1 else [seed_folder(run, seed) for seed in range(seeds)]
    if missing := [folder for folder in folders[1:] if not (folder / "run.json").exists()]:
        names = ", ".join(folder.name for folder in missing)
        raise TrainingError(
            f"{run}: {seeds} seeds asked for, and {names} not there; `mfhca train --seeds {seeds}` trains them"
        )
    return [summarise(folder) for folder in folders], [run_predictions(folder) for folder in folders]


def _check_same(first: RunSummary, table: pd.DataFrame, run: RunSummary, other: pd.DataFrame) -> None:
    """Refuse runs that were not tested on the same utterances with the same labels."""
    names = f"{first.run} and {run.run}"
    if first.classes != run.classes:
        raise TrainingError(
            f"{names} have other classes: {', '.join(first.classes)} / {', '.join(run.classes)}; "
            "train both with the same --classes"
        )
    labels, others = (item.drop_duplicates("utterance_id").set_index("utterance_id") for item in (table, other))
    lines = []
    for mine, its, name in ((labels, others, first), (others, labels, run)):
        if only := sorted(set(mine.index) - set(its.index)):
            lines.append(f"  only in {name.run}: {len(only):,} utterances, such as {', '.join(only[:3])}")
        if name.missing:
            lines.append(f"  not trained yet in {name.run}: {', '.join(name.missing)}")
    if set(labels.index) != set(others.index):
        if first.settings["corpus"] != run.settings["corpus"]:
            lines.insert(0, f"  corpus: {first.settings['corpus']} / {run.settings['corpus']}")
        raise TrainingError(
            f"{names} were not tested on the same utterances, and only such runs can be compared:\n"
            + "\n".join(lines)
            + "\nTrain the folds that are missing (`mfhca train --fold all`), or both runs on one corpus and cache."
        )
    others = others.loc[labels.index]
    for column in ("label", "speaker"):
        if len(wrong := labels.index[(labels[column] != others[column]).to_numpy()]):
            one = f"{wrong[0]} is {labels.loc[wrong[0], column]!r} / {others.loc[wrong[0], column]!r}"
            raise TrainingError(
                f"{names}: the {column} of {len(wrong):,} test utterances is not the same in both ({one}); "
                "train both from the same manifest with the same --classes"
            )


def _counts(table: pd.DataFrame, classes: Sequence[str]) -> Counts:
    """Each utterance once, as right as on average where several folds test it; each speaker a fold of its own."""
    right = (table["label"] == table["prediction"]).astype(float)
    once = table.assign(correct=right).groupby("utterance_id", sort=False, as_index=False)
    merged = once.agg({"speaker": "first", "label": "first", "prediction": "first", "correct": "mean"})
    return count_speakers(merged.assign(fold=merged["speaker"]), classes)


def _differences(
    counts: Sequence[Sequence[Counts]], way: Callable[[Counts], Estimate], method: str, wider: float | None
) -> dict[str, Difference]:
    a, b = ([estimates({"utterance": of}, way) for of in side] for side in counts)
    return {
        name: paired_difference(average([of[name] for of in a]), average([of[name] for of in b]), method, wider)
        for name in a[0]
    }


def _correction(sides: Sequence[tuple[list[RunSummary], list[pd.DataFrame]]]) -> float | None:
    """What allows for shared training data (the most that any run asks for), or None where folds part no speakers."""
    for _, tables in sides:
        for table in tables:
            if (table.groupby("speaker")["fold"].nunique() > 1).any():
                return None
    found = []
    for run in (run for runs, _ in sides for run in runs):
        folds = len(run.folds) + len(run.missing)
        if folds < 2:
            return None
        records = [read_record(fold_folder(run.run, int(number))) for number in run.folds["fold"]]
        shares = [record["utterances"]["test"] / record["utterances"]["train"] for record in records]
        found.append(correction(folds, float(np.mean(shares))))
    return max(found)


def _speakers(counts: Sequence[Sequence[Counts]], classes: Sequence[str]) -> pd.DataFrame:
    tables = [[speaker_table(of, classes) for of in side] for side in counts]
    found = tables[0][0][["speaker", "utterances"]].copy()
    for score in ("wa", "ua"):
        a, b = (np.mean([table[score].to_numpy() for table in side], axis=0) for side in tables)
        found[f"{score}_a"], found[f"{score}_b"], found[f"{score}_difference"] = a, b, a - b
    return found


def _mcnemar(tables_a: Sequence[pd.DataFrame], tables_b: Sequence[pd.DataFrame]) -> tuple[McNemar, ...]:
    found = []
    for pair in zip(tables_a, tables_b, strict=True):
        if any(table["utterance_id"].duplicated().any() for table in pair):
            return ()
        a, b = ((t["label"] == t["prediction"]).set_axis(t["utterance_id"]) for t in pair)
        found.append(mcnemar(a.to_numpy(), b.loc[a.index].to_numpy()))
    return tuple(found)


def _fold_tests(sides: Sequence[tuple[list[RunSummary], list[pd.DataFrame]]]) -> dict[str, FoldTest]:
    """Of folds' scores averaged over seeds, where all the runs test the same utterances in each of several folds."""
    cut = [
        {tuple(sorted(part)) for _, part in t.groupby("fold")["utterance_id"]} for _, tables in sides for t in tables
    ]
    orders = [list(run.folds["name"]) for runs, _ in sides for run in runs]
    if len(orders[0]) < 2 or any(item != cut[0] for item in cut) or any(order != orders[0] for order in orders):
        return {}
    found = {}
    for name in ("utterance_wa", "utterance_ua"):
        a, b = (np.mean([run.folds[name].to_numpy() for run in runs], axis=0) for runs, _ in sides)
        found[name] = fold_test(a - b)
    return found


def _differ(a: RunSummary, b: RunSummary) -> list[str]:
    """The runs' settings that differ, from what their run.json files say; features by name, and by fingerprint."""
    before, now = (read_json(run.run / "run.json") for run in (a, b))
    lines = []
    for key in ("corpus", "classes", "features", "options"):
        lines += differences(before.get(key), now.get(key), "" if key == "options" else key)
    prints = [item.get("feature_fingerprints", {}) for item in (before, now)]
    changed = [name for name in prints[0] if prints[1].get(name, prints[0][name]) != prints[0][name]]
    return lines + [f"{name}: of the same name, and not the same features" for name in changed]
