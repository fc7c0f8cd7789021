"""Two corpora in one run: train on the utterances of one cache, test on those of another.

The names of speakers, utterances and recordings of two corpora may be the same and mean others. So within a run each
has its corpus's part before it (``train:01``, ``test:01``); what a run writes has the corpora's own names again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold, cross_corpus_fold
from mfhca_cache.labels import ClassMap
from mfhca_cache.spec import differences
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.data import labelled_utterances

TRAIN, TEST = "train:", "test:"
#: The name of every corpus that a table describes.
_TABLE = "table"
_SHOWN = 3


def own_name(name: str) -> str:
    """``01`` for ``test:01``: a name as its corpus has it."""
    return name.partition(":")[2]


def is_tested(names: pd.Series) -> pd.Series:
    """Which of a run's names are of the corpus that is tested, bool."""
    return names.str.startswith(TEST)


def check_pair(cache: Cache, test_cache: Cache, features: Iterable[str]) -> None:
    """Refuse two caches that are no fair pair: of one corpus, with audio in common, or of other features.

    Raises:
        TrainingError: what is shared, or what differs.
    """
    pair = f"{cache.path} and {test_cache.path}"
    if cache.plan.identity() == test_cache.plan.identity():
        raise TrainingError(f"{pair} hold the same utterances; a corpus is not tested on itself: use --protocol strict")
    if cache.corpus == test_cache.corpus != _TABLE:
        raise TrainingError(
            f"{pair} are both of {cache.corpus}, so the test speakers may be in training; expected two corpora. Within "
            "one use --protocol strict"
        )
    mine, theirs = (item.plan.utterances.set_index("sha256")["utterance_id"] for item in (cache, test_cache))
    shared = mine.index.intersection(theirs.index)
    if len(shared):
        pairs = zip(mine.loc[shared[:_SHOWN]].tolist(), theirs.loc[shared[:_SHOWN]].tolist(), strict=False)
        named = ", ".join(f"{one} and {other}" for one, other in pairs)
        more = " …" if len(shared) > _SHOWN else ""
        raise TrainingError(
            f"{pair} have {len(shared):,} audio file(s) in common, byte for byte ({named}{more}); training would know "
            "the test set"
        )
    for name in features:
        _check_feature(cache, test_cache, name)


def joint_table(
    cache: Cache, test_cache: Cache, classes: str, features: Iterable[str]
) -> tuple[pd.DataFrame, ClassMap, ClassMap]:
    """The utterances in use of both, names told apart, those of ``cache`` first; and the class map of each.

    Raises:
        TrainingError: a class map that gives the corpora other classes.
        LabelError: a class map that fits one of them not at all.
    """
    names = list(features)
    (mine, classes_here), (theirs, classes_there) = (
        labelled_utterances(item, classes, names) for item in (cache, test_cache)
    )
    if classes_here.classes != classes_there.classes:
        raise TrainingError(
            f"class map {classes}: {cache.corpus} has the classes {', '.join(classes_here.classes)}, and "
            f"{test_cache.corpus} {', '.join(classes_there.classes)}; expected the same. four-class is, or write a map "
            "with the raw labels of both as a JSON file and name it with --classes FILE.json"
        )
    parts = [_told_apart(mine, TRAIN), _told_apart(theirs, TEST)]
    return pd.concat(parts, ignore_index=True), classes_here, classes_there


def make_cross_fold(table: pd.DataFrame, classes: ClassMap, name: str, seed: int) -> Fold:
    """The one fold of a table from `joint_table`, with what must be said beside its scores.

    Args:
        name: of the corpus that is tested.
        seed: chooses the validation speakers.

    Raises:
        FoldError: fewer than two speakers to train on.
    """
    fold = cross_corpus_fold(table, is_tested(table["utterance_id"]).to_numpy(), name, seed)
    notes = []
    where = table.set_index("utterance_id")
    for part, ids in (("test", fold.test), ("training", fold.train), ("validation", fold.validation)):
        if absent := [label for label in classes.classes if label not in set(where.loc[list(ids), "class"])]:
            notes.append(
                f"no {part} utterance is {' or '.join(absent)}; UA is the mean over the classes that are there"
            )
    speakers = [
        set(map(own_name, where.loc[list(ids), "speaker"])) for ids in ((*fold.train, *fold.validation), fold.test)
    ]
    same_kind = set(where["corpus"]) == {_TABLE}
    if same_kind and (both := sorted(speakers[0] & speakers[1])):
        notes.append(
            f"both corpora are tables, and {len(both)} speaker name(s) are in both ({', '.join(both[:_SHOWN])}"
            f"{' …' if len(both) > _SHOWN else ''}): taken for other people"
        )
    return replace(fold, notes=tuple(notes))


def _told_apart(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """The table with the corpus's part before its names."""
    recording = (part + table["recording"]).where(table["recording"] != "", "")
    return table.assign(utterance_id=part + table["utterance_id"], speaker=part + table["speaker"], recording=recording)


def _check_feature(cache: Cache, test_cache: Cache, name: str) -> None:
    """Refuse a feature that the other cache lacks, or has with other settings or weights."""
    info = cache.features[name]
    if name not in test_cache.features:
        raise TrainingError(
            f"{test_cache.path} has no feature {name}, which {cache.path} has; it has "
            f"{', '.join(sorted(test_cache.features)) or 'none yet'}. Extract it with the same settings"
        )
    other = test_cache.features[name]
    if info.fingerprint != other.fingerprint:
        changed = differences({"kind": info.kind, **info.settings}, {"kind": other.kind, **other.settings})
        raise TrainingError(
            f"{name} is not the same in {cache.path} and {test_cache.path}, so no model reads both:\n  "
            + "\n  ".join(changed)
        )
