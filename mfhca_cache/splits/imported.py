"""Imported folds, made ready for training: the rows in use, a validation set where the file has none, leaks in words.

A fold keeps what the file gives. Where the file has no validation set, 20 % of the training utterances are held out,
seeded, as the protocol ``session`` does, and the fold's notes say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mfhca_cache.errors import FoldError
from mfhca_cache.folds import Fold, hold_out
from mfhca_cache.splits.leaks import find_leaks
from mfhca_cache.splits.match import make_fold, match_folds
from mfhca_cache.splits.shapes import FoldFile, FoldParts, Mention, read_fold_file


def imported_folds(
    utterances: pd.DataFrame, used: pd.DataFrame, path: str | Path, seed: int
) -> tuple[list[Fold], dict[str, Any]]:
    """The folds of a file, for training.

    Args:
        utterances: all that the cache knows.
        used: those of them that have a class and features.
        path: file or folder, see `mfhca_cache.splits.shapes`.
        seed: chooses the validation utterances of a fold that has none.

    Returns:
        The folds, with their leaks and notes, and where they come from: name, shape and SHA-256.

    Raises:
        FoldError: not a file of folds, of another corpus, or a fold that is left without utterances.
    """
    file = read_fold_file(path)
    table = used.reset_index(drop=True)
    matched = match_folds(utterances, file)
    pairs = zip(matched.folds, file.folds, strict=True)
    folds = [_ready(table, fold, parts, file, seed) for fold, parts in pairs]
    return folds, source_of(file)


def source_of(file: FoldFile) -> dict[str, Any]:
    """What a result remembers of the file that its folds came from."""
    return {"name": file.name, "shape": file.shape, "sha256": file.sha256}


def _ready(table: pd.DataFrame, fold: Fold, parts: FoldParts, file: FoldFile, seed: int) -> Fold:
    notes = []
    validation = fold.validation
    train = fold.train
    if not validation:
        held = hold_out(table["utterance_id"].isin(list(train)).to_numpy(), seed, fold.number)
        validation = tuple(table.loc[held, "utterance_id"])
        train = tuple(set(train) - set(validation))
        notes.append(f"{file.name} has no validation set: 20 % of the training utterances were held out (seed {seed})")
    ready = make_fold(table, fold.number, fold.name, train, validation, fold.test)
    if lacking := [part for part in ("train", "validation", "test") if not getattr(ready, part)]:
        raise FoldError(
            f"{file.path}: fold {fold.name!r} has no utterance left for {' and '.join(lacking)} once those without a "
            "class or features are left out"
        )
    before = make_fold(table, fold.number, fold.name, fold.train, fold.validation, fold.test)
    shared = find_leaks(table, [before]).folds[0]
    if shared.validation_with_training.same:
        notes.append(f"{shared.validation_with_training.same:,} validation utterances are in training themselves")
    left_out = [
        f"{missing:,} of {count:,} for {part}"
        for part, mentions, rows in (
            ("training", parts.train, before.train),
            ("validation", parts.validation, before.validation),
            ("test", parts.test, before.test),
        )
        if (missing := (count := _different(mentions)) - len(rows)) > 0
    ]
    if left_out:
        notes.append(
            f"of the utterances in {file.name}, {', '.join(left_out)} are not used: they are not in the cache, were "
            "rejected, or have none of the classes"
        )
    return replace(ready, leaks=shared.leaks, notes=tuple(notes))


def _different(mentions: tuple[Mention, ...]) -> int:
    return len({str(mention) for mention in mentions})


def refuse_leaks(folds: list[Fold]) -> None:
    """Refuse folds in which training knows the test set.

    Raises:
        FoldError: what leaks, fold by fold.
    """
    if leaky := [fold for fold in folds if fold.leaks]:
        lines = [f"fold {fold.number} ({fold.name}): {'; '.join(fold.leaks)}" for fold in leaky[:5]]
        more = [f"… and {len(leaky) - 5} more folds"] if len(leaky) > 5 else []
        raise FoldError(
            "the test set of these folds is known in training, so they are not trained:\n  "
            + "\n  ".join([*lines, *more])
            + "\n`mfhca leak-check` has the counts; --allow-leaks trains them all the same, and every output says so."
        )
