"""A file's names → the manifest's utterances: what is found, what the manifest lacks, which of its rows no fold has.

A name is looked for, in this order: as an id; without the corpus that EmoBox puts before it (``iemocap-Ses01F_…``); as
a path whose end is the manifest's path; and by the stem of its file name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from mfhca_cache.errors import FoldError
from mfhca_cache.folds import IMPORTED, Fold, count_overlaps
from mfhca_cache.manifest import natural_key
from mfhca_cache.splits.shapes import PARTS, FoldFile, Mention

_AUDIO = frozenset((".wav", ".flac", ".mp3", ".mp4", ".m4a", ".ogg", ".opus", ".aif", ".aiff", ".sph", ".avi"))


@dataclass(frozen=True)
class Matched:
    """A file's folds in the terms of a manifest.

    Attributes:
        file: what was read.
        folds: of protocol `IMPORTED`, in the file's order, numbered from 1; a validation part may be empty.
        unknown: names of the file that the table does not hold, each once.
        unnamed: ids of the table that are in no part of any fold.
        mentions: different names in the file.
        repeated: names that stand twice in one part of one fold.
    """

    file: FoldFile
    folds: list[Fold]
    unknown: tuple[str, ...]
    unnamed: tuple[str, ...]
    mentions: int
    repeated: int


def match_folds(utterances: pd.DataFrame, file: FoldFile) -> Matched:
    """Find a file's names in a table of utterances.

    Args:
        utterances: columns utterance_id, path, speaker, session, recording, text.

    Raises:
        FoldError: a fold of which no training or no test utterance is in the table.
    """
    table = utterances.reset_index(drop=True)
    index = _Index(table)
    unknown: dict[str, None] = {}
    known: dict[Mention, str | None] = {}
    seen: set[str] = set()
    folds, repeated = [], 0
    for number, parts in enumerate(file.folds, start=1):
        ids: dict[str, list[str]] = {}
        for part in PARTS:
            mentions: Sequence[Mention] = getattr(parts, part)
            for mention in mentions:
                if mention not in known:
                    known[mention] = index.find(mention)
            found = [known[mention] for mention in mentions]
            ids[part] = [name for name in found if name is not None]
            unknown |= {str(m): None for m, name in zip(mentions, found, strict=True) if name is None}
            repeated += sum(count - 1 for count in Counter(ids[part]).values())
            seen |= set(ids[part])
        if lacking := [part for part in ("train", "test") if not ids[part]]:
            first = str(getattr(parts, lacking[0])[0])
            raise FoldError(
                f"{file.path}: fold {parts.name!r}: none of its names for {' and '.join(lacking)} is in the manifest; "
                f"got such as {first!r}, expected such as {table['utterance_id'].iloc[0]!r}. Is it the same corpus?"
            )
        folds.append(make_fold(table, number, parts.name, ids["train"], ids["validation"], ids["test"]))
    unnamed = tuple(name for name in table["utterance_id"] if name not in seen)
    names = {str(mention) for mention in known}
    return Matched(file, folds, tuple(unknown), unnamed, len(names), repeated)


def make_fold(
    table: pd.DataFrame, number: int, name: str, train: Sequence[str], validation: Sequence[str], test: Sequence[str]
) -> Fold:
    """An imported fold of the table's rows, its parts in the table's order; nothing is refused here.

    Args:
        table: with a plain index.
        train, validation, test: ids; those that the table does not hold are left out.
    """
    masks = [table["utterance_id"].isin(list(ids)) for ids in (train, validation, test)]
    parts = [tuple(table.loc[mask, "utterance_id"]) for mask in masks]
    speakers = [tuple(sorted(set(table.loc[mask, "speaker"]), key=natural_key)) for mask in masks]
    overlaps = count_overlaps(table, *masks)
    return Fold(number, name, IMPORTED, parts[0], parts[1], parts[2], speakers[2], speakers[1], overlaps)


class _Index:
    """Ids of a table by id, path and file name."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.ids = set(table["utterance_id"])
        paths = [PurePosixPath(path) for path in table["path"]]
        stems = Counter(path.stem for path in paths)
        pairs = list(zip(paths, table["utterance_id"], strict=True))
        self.by_path = {str(path): name for path, name in pairs}
        self.by_stem = {path.stem: name for path, name in pairs if stems[path.stem] == 1}

    def find(self, mention: Mention) -> str | None:
        """The id that a mention means, or None."""
        name, dataset = mention.name, mention.dataset
        if name in self.ids:
            return name
        if dataset and name.startswith(f"{dataset}-") and name[len(dataset) + 1 :] in self.ids:
            return name[len(dataset) + 1 :]
        for text in (mention.path, name):
            if text and (found := self._by_path(text)) is not None:
                return found
        return None

    def _by_path(self, text: str) -> str | None:
        pure = PurePosixPath(text.replace("\\", "/"))
        parts = pure.parts
        for start in range(len(parts)):
            if (found := self.by_path.get("/".join(parts[start:]))) is not None:
                return found
        stem = pure.stem if pure.suffix.lower() in _AUDIO else pure.name
        if stem in self.ids:
            return stem
        # A file's name alone is enough only where no folder says otherwise.
        return self.by_stem.get(stem) if len(parts) == 1 else None
