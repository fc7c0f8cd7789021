"""Who is tested, who chooses the epoch, who trains: a corpus's utterances → folds, by protocol.

    strict         test = one speaker; validation = the other speaker of that session (elsewhere: the next speaker,
                   wrapping round); training = the rest
    test-selected  training = all other speakers, the epoch chosen on the test speaker: optimistic, and marked so
    session        test = one session (elsewhere: one of five groups of speakers); validation = 20 % of the training
                   utterances, seeded: the habit of SUPERB and EmoBox
    strict-peeked, session-peeked
                   training as in strict and in session, to the last utterance, but the epoch chosen on the test set:
                   optimistic, and marked so. Beside strict and session they measure what that choice alone is worth

No speaker of a test set is ever in training; that is checked for every fold. Other overlaps are counted, not hidden.
Folds that others published are the protocol `IMPORTED` (`mfhca_cache.splits`); what leaks in them is `Fold.leaks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mfhca_cache.errors import FoldError
from mfhca_cache.manifest import natural_key

#: Behind the name of a protocol whose training is kept and whose epoch is chosen on the test set.
_PEEKED = "-peeked"
PROTOCOLS = ("strict", "test-selected", "session", f"strict{_PEEKED}", f"session{_PEEKED}")
#: The protocol of folds that were read from a file.
IMPORTED = "imported"
#: The protocol of a run that trains on one corpus and tests on another (`cross_corpus_fold`).
CROSS_CORPUS = "cross-corpus"
#: Said wherever a result of this protocol is printed or stored.
OPTIMISTIC_NOTE = "optimistic: the epoch was chosen on the test speaker"
_VALIDATION_SHARE = 0.2
_SPEAKER_GROUPS = 5


@dataclass(frozen=True)
class Fold:
    """One split of a corpus.

    Attributes:
        number: from 1.
        name: the test speaker, session or group.
        protocol: one of `PROTOCOLS`, `IMPORTED`, or `CROSS_CORPUS`.
        train, validation, test: utterance ids, in the table's order.
        test_speakers, validation_speakers: whose utterances these are.
        overlaps: what test and training (or validation) share beside speakers, as counts of utterances.
        leaks: what training knows of the test set, in words; only ever in imported folds.
        notes: what else must be said beside this fold's scores.
    """

    number: int
    name: str
    protocol: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    test_speakers: tuple[str, ...]
    validation_speakers: tuple[str, ...]
    overlaps: dict[str, int] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def optimistic(self) -> bool:
        """Whether the test set had a say in training or in the choice of the epoch."""
        return bool(self.warnings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the scores are optimistic, where they are."""
        peeks = bool(set(self.test_speakers) & set(self.validation_speakers))
        return (OPTIMISTIC_NOTE,) * peeks + self.leaks

    @property
    def caveats(self) -> tuple[str, ...]:
        """All that must be said beside this fold's scores."""
        return self.warnings + self.notes


def make_folds(utterances: pd.DataFrame, protocol: str = "strict", seed: int = 0) -> list[Fold]:
    """All folds of a table of utterances.

    Args:
        utterances: columns utterance_id, speaker, session, recording, text; the rows to be used, and no others.
        protocol: one of `PROTOCOLS`.
        seed: chooses the validation utterances of ``session`` and ``session-peeked``.

    Raises:
        FoldError: an unknown protocol, or too few speakers for it.
    """
    if protocol not in PROTOCOLS:
        raise FoldError(f"protocol {protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")
    table = utterances.reset_index(drop=True)
    speakers = speaker_order(table)
    kind = protocol.removesuffix(_PEEKED)
    needed = {"strict": 3, "test-selected": 2, "session": 2}[kind]
    if len(speakers) < needed:
        raise FoldError(
            f"protocol {protocol} needs at least {needed} speakers; got {len(speakers)} ({', '.join(speakers)})"
        )
    if kind == "session":
        return _session_folds(table, speakers, protocol, seed)
    folds = []
    for number, speaker in enumerate(speakers, start=1):
        test = table["speaker"] == speaker
        validation = table["speaker"] == _partner(table, speakers, speaker) if kind == "strict" else test
        train = ~test & ~validation
        folds.append(_fold(table, number, speaker, protocol, train, _chooses(protocol, validation, test), test))
    return folds


def cross_corpus_fold(utterances: pd.DataFrame, test: np.ndarray, name: str, seed: int = 0) -> Fold:
    """The one fold that trains on a corpus and tests on another.

    Validation is a seeded 20 % of the speakers of the corpus that trains, one at least and whole, so that the epoch is
    chosen on voices that training has not heard.

    Args:
        utterances: as for `make_folds`, the rows of both corpora; no id and no speaker may be of both.
        test: bool, a row each: the corpus that is tested.
        name: of that corpus.
        seed: chooses the validation speakers.

    Raises:
        FoldError: fewer than two speakers to train on, or no utterance to test.
    """
    table = utterances.reset_index(drop=True)
    tested = pd.Series(test)
    speakers = np.array(speaker_order(table[~tested]), dtype=object)
    if len(speakers) < 2:
        raise FoldError(
            f"protocol {CROSS_CORPUS} needs at least 2 speakers to train on, one of whom chooses the epoch; "
            f"got {len(speakers)}"
        )
    count = max(1, round(_VALIDATION_SHARE * len(speakers)))
    chosen = np.random.default_rng([seed, 1]).permutation(len(speakers))[:count]
    validation = table["speaker"].isin(list(speakers[chosen]))
    return _fold(table, 1, name, CROSS_CORPUS, ~tested & ~validation, validation, tested)


def check_speakers(utterances: pd.DataFrame, fold: Fold) -> None:
    """Refuse a fold that tests on a speaker it trains on.

    Raises:
        FoldError: naming the speakers.
    """
    speaker = utterances.set_index("utterance_id")["speaker"]
    _refuse_shared(
        set(speaker.reindex(list(fold.train))), set(speaker.reindex(list(fold.test))), fold.number, fold.name
    )


def _refuse_shared(train: set[str], test: set[str], number: int, name: str) -> None:
    if shared := sorted(train & test):
        raise FoldError(
            f"fold {number} ({name}): the speaker(s) {', '.join(shared)} would be in both test and training; "
            "a speaker belongs to one session"
        )


def choose_folds(folds: Sequence[Fold], wanted: str | int) -> list[Fold]:
    """The folds that ``--fold`` means: ``all``, a number from 1, or a speaker (session, group) by name.

    Raises:
        FoldError: no such fold; the message lists the valid names.
    """
    text = str(wanted)
    if text.lower() == "all":
        return list(folds)
    by_name = [fold for fold in folds if fold.name.lower() == text.lower()]
    # A number is the fold's number, unless a speaker is called just so and no fold has that number.
    by_number = [fold for fold in folds if text == str(fold.number)]
    if not (by_number or by_name):
        valid = ", ".join(f"{fold.number} ({fold.name})" for fold in folds)
        raise FoldError(f"fold {text!r} is not known; expected all, or a number or name of: {valid}")
    return by_number or by_name


def speaker_order(utterances: pd.DataFrame) -> list[str]:
    """Speakers in the order of folds: natural order, but 1M before 1F where sessions pair a man and a woman."""
    speakers = sorted({str(name) for name in utterances["speaker"]}, key=natural_key)
    # IEMOCAP's order is the released code's: 1M, 1F, 2M, 2F, …
    if all(name[:-1].isdecimal() and name[-1] in "MF" for name in speakers):
        return sorted(speakers, key=lambda name: (int(name[:-1]), name[-1] == "F"))
    return speakers


def _partner(table: pd.DataFrame, speakers: list[str], speaker: str) -> str:
    """The other speaker of the speaker's session, or the next in order."""
    session = table.loc[table["speaker"] == speaker, "session"].iloc[0]
    if session:
        others = sorted(set(table.loc[table["session"] == session, "speaker"]) - {speaker})
        if len(others) == 1:
            return str(others[0])
    return speakers[(speakers.index(speaker) + 1) % len(speakers)]


def _chooses(protocol: str, validation: pd.Series, test: pd.Series) -> pd.Series:
    """The rows that choose the epoch of a protocol, whose validation rows are left out of training either way."""
    return test if protocol.endswith(_PEEKED) else validation


def _session_folds(table: pd.DataFrame, speakers: list[str], protocol: str, seed: int) -> list[Fold]:
    if (table["session"] != "").all():
        groups = {name: table["session"] == name for name in sorted(set(table["session"]), key=natural_key)}
    else:
        parts = np.array_split(np.array(speakers, dtype=object), min(_SPEAKER_GROUPS, len(speakers)))
        groups = {f"group{n}": table["speaker"].isin(list(part)) for n, part in enumerate(parts, start=1)}
    if len(groups) < 2:
        raise FoldError(f"protocol {protocol} needs two sessions or more; got {', '.join(groups)}")
    folds = []
    for number, (name, test) in enumerate(groups.items(), start=1):
        validation = pd.Series(hold_out(~test.to_numpy(), seed, number))
        train = ~test & ~validation
        folds.append(_fold(table, number, name, protocol, train, _chooses(protocol, validation, test), test))
    return folds


def hold_out(rows: np.ndarray, seed: int, number: int) -> np.ndarray:
    """20 % of the rows that are True in ``rows`` (bool), chosen by the seed and the fold's number: bool, same shape."""
    places = np.flatnonzero(rows)
    chosen = np.random.default_rng([seed, number]).permutation(places)[: round(_VALIDATION_SHARE * len(places))]
    return np.isin(np.arange(len(rows)), chosen)


def _fold(
    table: pd.DataFrame,
    number: int,
    name: str,
    protocol: str,
    train: pd.Series,
    validation: pd.Series,
    test: pd.Series,
) -> Fold:
    _refuse_shared(set(table.loc[train, "speaker"]), set(table.loc[test, "speaker"]), number, name)
    for part, rows in (("training", train), ("validation", validation), ("test", test)):
        if not rows.any():
            raise FoldError(f"fold {number} ({name}): no utterance is left for {part}")

    def ids(rows: pd.Series) -> tuple[str, ...]:
        return tuple(table.loc[rows, "utterance_id"])

    def names(rows: pd.Series) -> tuple[str, ...]:
        return tuple(sorted(set(table.loc[rows, "speaker"]), key=natural_key))

    return Fold(
        number,
        name,
        protocol,
        ids(train),
        ids(validation),
        ids(test),
        names(test),
        names(validation),
        count_overlaps(table, train, validation, test),
    )


def count_overlaps(table: pd.DataFrame, train: pd.Series, validation: pd.Series, test: pd.Series) -> dict[str, int]:
    """Utterances of the test (or validation) set that share something with training, from masks over the table."""
    words = table["text"].str.lower().str.strip()
    found = {
        "test utterances whose recording is in training": _shared(table["recording"], test, train),
        "test utterances whose recording is in validation": _shared(table["recording"], test, validation & ~test),
        "test utterances whose text is in training": _shared(words, test, train),
        "validation utterances whose speaker is in training": _shared(table["speaker"], validation, train),
    }
    return {what: count for what, count in found.items() if count}


def _shared(values: pd.Series, rows: pd.Series, others: pd.Series) -> int:
    known = set(values[others]) - {""}
    return int(values[rows].isin(known).sum())


def peeked(protocol: str) -> str:
    """The protocol with the same training whose epoch is chosen on the test set: ``strict-peeked`` for ``strict``."""
    return protocol + _PEEKED
