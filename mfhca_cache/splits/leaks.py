"""What the parts of a fold share: true speakers, recordings, words, utterances and audio, each counted in utterances.

The speakers are the manifest's. Folds of IEMOCAP that go by the dialogue's prefix (``Ses01F_…``) put both speakers of
that dialogue into the test set, and both are in training too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from mfhca_cache.folds import Fold
from mfhca_cache.manifest import natural_key

_PREFIX = re.compile(r"Ses0(\d)([FM])_")
_SCRIPT = re.compile(r"script\d+_\d+")
_NO_WORD = re.compile(r"[\W_]+")
#: What a verdict says, in this order.
_SENTENCES = (
    ("with_training", "speaker", "Leak: {} are by speakers who are in training"),
    ("with_training", "same", "Leak: {} are in training themselves"),
    ("with_training", "audio", "Leak: {} are in training under another id, byte for byte"),
    ("with_validation", "speaker", "Optimistic: {} are by speakers of the validation set, which chooses the epoch"),
    ("with_validation", "same", "Optimistic: {} are in the validation set themselves"),
    ("with_training", "recording", "To know: {} are of recordings that are in training"),
    ("with_validation", "recording", "To know: {} are of recordings that are in validation"),
    ("with_training", "text", "To know: {} have words that are in training"),
    ("with_training", "script", "To know: {} are of scripted dialogues whose script is in training"),
)


@dataclass(frozen=True)
class Shared:
    """How many utterances of one part meet another part.

    Attributes:
        same: they are in the other part themselves.
        audio: another utterance there has the same audio file, byte for byte.
        speaker: their speaker speaks there.
        recording: their recording (dialogue) is there.
        text: their words are there, without regard to case and punctuation.
        script: they are of a scripted dialogue of IEMOCAP, and the script is there too.
        speakers: who speaks in both.
    """

    same: int
    audio: int
    speaker: int
    recording: int
    text: int
    script: int
    speakers: tuple[str, ...]


@dataclass(frozen=True)
class FoldLeaks:
    """One fold: its size, and what is shared.

    Attributes:
        train, validation, test: utterances.
        with_training, with_validation: what the test set shares with them.
        validation_with_training: what the validation set shares with training.
    """

    number: int
    name: str
    train: int
    validation: int
    test: int
    test_speakers: tuple[str, ...]
    with_training: Shared
    with_validation: Shared
    validation_with_training: Shared

    @property
    def leaky(self) -> bool:
        """Whether training knows test speakers, test utterances or their audio."""
        return bool(self.with_training.same or self.with_training.audio or self.with_training.speaker)

    @property
    def leaks(self) -> tuple[str, ...]:
        """What training knows of the test set, in words."""
        shared, test = self.with_training, self.test
        lines = []
        if shared.speaker:
            names = ", ".join(shared.speakers[:8]) + (" …" if len(shared.speakers) > 8 else "")
            lines.append(f"leak: {shared.speaker:,} of {test:,} test utterances are by speakers in training ({names})")
        if shared.same:
            lines.append(f"leak: {shared.same:,} of {test:,} test utterances are in training themselves")
        if shared.audio:
            lines.append(
                f"leak: the audio of {shared.audio:,} of {test:,} test utterances is in training under other ids"
            )
        return tuple(lines)


@dataclass(frozen=True)
class LeakReport:
    """All folds.

    Attributes:
        folds: in order.
        tested: utterances that are tested; retested: in more than one fold.
        by_prefix: of the tested, those whose speaker is not the one in the dialogue's prefix, where the folds leak and
            go by that prefix; else 0.
        has_recordings, has_texts: whether the manifest has them, so that 0 means none.
    """

    folds: tuple[FoldLeaks, ...]
    tested: int
    retested: int
    by_prefix: int
    has_recordings: bool
    has_texts: bool

    @property
    def leaky(self) -> bool:
        """Whether any fold leaks."""
        return any(fold.leaky for fold in self.folds)

    def total(self, other: str, what: str) -> int:
        """Sum over folds of `Shared` ``what`` of one of a fold's three."""
        return sum(getattr(getattr(fold, other), what) for fold in self.folds)

    def verdict(self) -> list[str]:
        """Plain sentences: leaks first, then what is no leak but should be known."""
        tests = sum(fold.test for fold in self.folds)
        lines = []
        if not self.leaky:
            where = "the only fold" if len(self.folds) == 1 else f"any of the {len(self.folds)} folds"
            lines.append(f"No leak: training has no test speaker, no test utterance and no audio of one in {where}.")
        for other, kind, words in _SENTENCES:
            if count := self.total(other, kind):
                folds = sum(getattr(getattr(fold, other), kind) > 0 for fold in self.folds)
                where = f", in {folds} of {len(self.folds)} folds" if len(self.folds) > 1 else ""
                lines.append(words.format(f"{count:,} of {tests:,} test utterances") + where + ".")
        held_out = sum(fold.validation for fold in self.folds)
        for kind, words in (("same", "are in training themselves"), ("speaker", "are by speakers who are in training")):
            if count := self.total("validation_with_training", kind):
                lines.append(f"To know: {count:,} of {held_out:,} validation utterances {words}.")
        if self.by_prefix:
            lines.insert(
                1,
                "The folds go by the dialogue's prefix (Ses01F_…), which does not say who speaks: "
                f"{self.by_prefix:,} of {self.tested:,} utterances are spoken by the other one of the two. "
                "The speaker is the letter before the turn number.",
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        folds = [asdict(fold) | {"leaky": fold.leaky} for fold in self.folds]
        others = ("with_training", "with_validation", "validation_with_training")
        kinds = ("same", "audio", "speaker", "recording", "text", "script")
        return {
            "leaky": self.leaky,
            "verdict": self.verdict(),
            "tested": self.tested,
            "retested": self.retested,
            "other_speaker_than_prefix": self.by_prefix,
            "total": {other: {kind: self.total(other, kind) for kind in kinds} for other in others},
            "folds": folds,
        }


def find_leaks(utterances: pd.DataFrame, folds: Sequence[Fold]) -> LeakReport:
    """What the folds' parts share.

    Args:
        utterances: columns utterance_id, speaker, recording, text, sha256; every utterance of the folds among them.
    """
    facts = _facts(utterances)
    found = tuple(_fold_leaks(facts, fold) for fold in folds)
    tests = Counter(name for fold in folds for name in set(fold.test))
    by_prefix = 0
    if any(fold.with_training.speaker for fold in found) and _go_by_prefix(folds):
        by_prefix = sum(_prefix_speaker(name) != facts["speaker"][name] for name in tests)
    return LeakReport(
        folds=found,
        tested=len(tests),
        retested=sum(count > 1 for count in tests.values()),
        by_prefix=by_prefix,
        has_recordings=any(facts["recording"].values()),
        has_texts=any(facts["text"].values()),
    )


def _facts(utterances: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Kind of fact → id → its value, empty where there is none."""
    ids = utterances["utterance_id"]
    columns = {
        "same": ids,
        "audio": utterances["sha256"],
        "speaker": utterances["speaker"],
        "recording": utterances["recording"],
        "text": utterances["text"].map(lambda text: _NO_WORD.sub(" ", text).strip().casefold()),
        "script": utterances["recording"].map(_script_of),
    }
    return {kind: dict(zip(ids, values, strict=True)) for kind, values in columns.items()}


def _script_of(recording: str) -> str:
    """``script01_1`` for ``Ses05M_script01_1b``."""
    match = _SCRIPT.search(recording) if _PREFIX.match(recording) else None
    return match[0] if match else ""


def _fold_leaks(facts: dict[str, dict[str, str]], fold: Fold) -> FoldLeaks:
    return FoldLeaks(
        number=fold.number,
        name=fold.name,
        train=len(fold.train),
        validation=len(fold.validation),
        test=len(fold.test),
        test_speakers=fold.test_speakers,
        with_training=_shared(facts, fold.test, fold.train),
        with_validation=_shared(facts, fold.test, fold.validation),
        validation_with_training=_shared(facts, fold.validation, fold.train),
    )


def _shared(facts: dict[str, dict[str, str]], part: Sequence[str], other: Sequence[str]) -> Shared:
    """What ``part`` shares with ``other``, in utterances of ``part``."""
    there = {kind: {values[name] for name in other} - {""} for kind, values in facts.items()}
    hits = {kind: [name for name in part if facts[kind][name] in there[kind]] for kind in facts}
    same = set(hits["same"])
    speakers = {facts["speaker"][name] for name in hits["speaker"]}
    return Shared(
        same=len(same),
        audio=sum(name not in same for name in hits["audio"]),
        speaker=len(hits["speaker"]),
        recording=len(hits["recording"]),
        text=len(hits["text"]),
        script=len(hits["script"]),
        speakers=tuple(sorted(speakers, key=natural_key)),
    )


def _prefix_speaker(name: str) -> str:
    """``1F`` for ``Ses01F_impro01_M000``, whoever speaks; nothing for another form."""
    match = _PREFIX.match(name)
    return f"{match[1]}{match[2]}" if match else ""


def _go_by_prefix(folds: Sequence[Fold]) -> bool:
    """Whether all ids are IEMOCAP's, and no prefix of a test set is in its training set."""
    for fold in folds:
        test, train = ({_prefix_speaker(name) for name in ids} for ids in (fold.test, fold.train))
        if "" in test | train or test & train:
            return False
    return True
