"""What FOLDS means on a manifest: one of our protocols by name, or a file or folder from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfhca_cache.errors import FoldError
from mfhca_cache.folds import PROTOCOLS, Fold, make_folds
from mfhca_cache.labels import class_map
from mfhca_cache.manifest import Manifest
from mfhca_cache.splits.match import Matched, match_folds
from mfhca_cache.splits.shapes import EXPECTED, read_fold_file


@dataclass(frozen=True)
class ChosenFolds:
    """Folds of a manifest.

    Attributes:
        name: the protocol, or the file's name.
        folds: in order.
        utterances: the manifest's rows that the folds are cut from, with ``class``: the class of the map, or the raw
            label where it has none.
        matched: how a file's names were found; None for a protocol.
    """

    name: str
    folds: list[Fold]
    utterances: pd.DataFrame
    matched: Matched | None


def folds_of(manifest: Manifest, folds: str, classes: str = "four-class", seed: int = 0) -> ChosenFolds:
    """The folds that a name or a path means.

    Args:
        folds: one of `PROTOCOLS`, cut from the rows that have a class; or a path, matched with every row.
        classes: a class map, see `mfhca_cache.labels.class_map`.
        seed: of the protocol ``session``.

    Raises:
        FoldError, LabelError: neither a protocol nor a file of folds, another corpus, or no such class map.
    """
    table = manifest.utterances
    labels = class_map(classes, manifest.corpus, table["label"]).apply(table["label"])
    named = table.assign(**{"class": labels.where(labels.notna(), table["label"])})
    if folds in PROTOCOLS and not Path(folds).exists():
        used = named[labels.notna()].reset_index(drop=True)
        return ChosenFolds(folds, make_folds(used, folds, seed), used, None)
    if not Path(folds).exists():
        raise FoldError(f"{folds}: no such file, folder or protocol; expected {', '.join(PROTOCOLS)}, or {EXPECTED}")
    matched = match_folds(named, read_fold_file(folds))
    return ChosenFolds(matched.file.name, matched.folds, named, matched)
