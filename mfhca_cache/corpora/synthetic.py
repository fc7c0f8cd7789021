"""A small generated corpus in IEMOCAP's folder layout, to try everything without a licence or a download.

Ten speakers in five sessions, improvised and scripted dialogues in which both speak, all raw labels that matter, and
what makes the real corpus hard to read: AppleDouble files, sub-folders of single raters, utterances without agreement.
Scores on it say that the parts work together, and nothing about real speech.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mfhca_cache.corpora import iemocap
from mfhca_cache.corpora.common import OnFile
from mfhca_cache.corpora.voice import Voice, speak
from mfhca_cache.errors import CorpusError
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import SAMPLE_RATE

LAYOUT = "a folder that write_corpus or `mfhca demo` made, with its README.txt"

MARKER = "README.txt"
_MARK = "Generated speech in the folder layout of IEMOCAP; no recording of anyone."

#: Raw labels in the order in which a speaker's utterances take them, so that four utterances hold all four classes.
_LABELS = ("neu", "ang", "sad", "hap", "neu", "exc", "ang", "sad", "neu", "hap", "exc", "ang", "neu", "sad")
_OTHER_LABELS = ("xxx", "oth")
_RATINGS = {
    "ang": (1.9, 3.7, 3.9), "hap": (3.9, 3.2, 3.1), "exc": (4.0, 3.8, 3.4), "neu": (2.9, 2.7, 2.9),
    "sad": (2.2, 2.2, 2.6), "xxx": (2.8, 3.0, 3.0), "oth": (2.9, 3.1, 3.1),
}  # fmt: skip
_SENTENCES = (
    "I did not expect to see you here.",
    "Where did you put the letter?",
    "They said it would take another week.",
    "Well, that is how it is.",
    "You could have told me before.",
    "We are going to the coast tomorrow.",
)
_APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(58)


@dataclass(frozen=True)
class _Turn:
    """One utterance to be written."""

    name: str
    dialogue: str
    speaker: str
    label: str
    start: float
    seconds: float
    ratings: tuple[float, ...]
    text: str


def looks_like(root: Path) -> bool:
    """Whether a folder was written by `write_corpus`, to its end."""
    return is_marked(root)


def is_marked(root: Path) -> bool:
    """Whether the folder holds the mark that `write_corpus` leaves when it is done."""
    try:
        with (root / MARKER).open(encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip() == _MARK
    except OSError:
        return False


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """The generated corpus as a manifest, by the reader of IEMOCAP.

    Raises:
        CorpusError: the folder was not written by `write_corpus`.
    """
    if not is_marked(root):
        raise CorpusError(f"{root}: got a folder without the mark of a generated corpus; expected {LAYOUT}")
    return iemocap.read_as("synthetic", root, progress)


def write_corpus(root: Path, utterances_per_speaker: int = 14, seed: int = 0, progress: OnFile | None = None) -> None:
    """Write the corpus: 16 kHz, 16-bit wavs of 0.6 to 9 s, labels, transcripts and the usual traps.

    The same arguments give the same bytes. Each speaker also has one utterance more, labelled ``xxx`` or ``oth``.

    Args:
        root: a new or empty folder.
        utterances_per_speaker: of the four classes, for each of the ten speakers; at least 4, so that each speaker
            has all four.
        seed: of the random numbers.
        progress: called as ``progress(done, total)`` after each utterance.

    Raises:
        CorpusError: fewer than 4 utterances, or a folder that holds something.
    """
    if not 4 <= utterances_per_speaker <= 900:
        raise CorpusError(f"utterances per speaker: got {utterances_per_speaker}; expected 4 to 900")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CorpusError(f"{root}: is not empty; delete it or name another folder")
    total = 10 * (utterances_per_speaker + 1)
    done = 0
    for session in range(1, 6):
        folder = root / f"Session{session}"
        turns = _turns(session, utterances_per_speaker, seed)
        _write_texts(folder, turns)
        for turn in turns:
            _write_wav(folder / "sentences" / "wav" / turn.dialogue, turn, seed)
            done += 1
            if progress is not None:
                progress(done, total)
    # Last, so that a corpus whose writer was interrupted is not taken for a whole one.
    settings = f"write_corpus(utterances_per_speaker={utterances_per_speaker}, seed={seed})"
    (root / MARKER).write_text(f"{_MARK}\n{settings}\n", encoding="utf-8")


def _turns(session: int, utterances_per_speaker: int, seed: int) -> list[_Turn]:
    """The utterances of a session, dealt out to four dialogues in which both speak."""
    dialogues = tuple(f"Ses0{session}{name}" for name in ("F_impro01", "M_impro05a", "F_script02_1", "M_script01_1b"))
    rng = np.random.default_rng([seed, session])
    clock = dict.fromkeys(dialogues, 0.0)
    turns = []
    for index in range(utterances_per_speaker + 1):
        for letter in "FM":
            dialogue = dialogues[(index + (letter == "M")) % len(dialogues)]
            if index < utterances_per_speaker:
                label, number = _LABELS[index % len(_LABELS)], f"{letter}{index:03d}"
            else:
                label, number = _OTHER_LABELS[letter == "M"], f"{letter}XX0"
            # Mostly 1 to 4 s, as in the real corpus, with a few very short and a few long ones.
            seconds = float(np.clip(rng.lognormal(np.log(2.1), 0.5), 0.6, 9.0))
            clock[dialogue] += 1.0
            turn = _Turn(
                name=f"{dialogue}_{number}",
                dialogue=dialogue,
                speaker=f"{session}{letter}",
                label=label,
                start=clock[dialogue],
                seconds=round(seconds, 3),
                ratings=tuple(float(np.clip(rng.normal(mean, 0.4), 1, 5)) for mean in _RATINGS[label]),
                text=str(rng.choice(_SENTENCES)),
            )
            clock[dialogue] += seconds
            turns.append(turn)
    return turns


def _write_texts(folder: Path, turns: list[_Turn]) -> None:
    """Label files, transcripts and the folders of dialogues, each with the traps of the real corpus beside it."""
    labels, texts, wavs = (
        folder / "dialog" / "EmoEvaluation",
        folder / "dialog" / "transcriptions",
        folder / "sentences/wav",
    )
    for sub in ("Attribute", "Categorical", "Self-evaluation"):
        (labels / sub).mkdir(parents=True)
    texts.mkdir()
    for dialogue in dict.fromkeys(turn.dialogue for turn in turns):
        own = [turn for turn in turns if turn.dialogue == dialogue]
        (wavs / dialogue).mkdir(parents=True)
        heading = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        (labels / f"{dialogue}.txt").write_text(heading + "\n".join(map(_label_lines, own)), encoding="utf-8")
        spoken = [f"{t.name} [{t.start:08.4f}-{t.start + t.seconds:08.4f}]: {t.text}\n" for t in own]
        (texts / f"{dialogue}.txt").write_text("".join(spoken) + f"{own[0].name[-4]}: [LAUGHTER]\n", encoding="utf-8")
        raters = "".join(f"{turn.name} :Anger; ()\n" for turn in own)
        (labels / "Categorical" / f"{dialogue}_e1_cat.txt").write_text(raters, encoding="utf-8")
        (labels / "Attribute" / f"{dialogue}_e1_atr.txt").write_text(raters, encoding="utf-8")
        (labels / "Self-evaluation" / f"{dialogue}_f_cat.txt").write_text(raters, encoding="utf-8")
        for trap in (labels / f"._{dialogue}.txt", wavs / dialogue / f"._{own[0].name}.wav"):
            trap.write_bytes(_APPLE_DOUBLE)
    for place in (labels, wavs):
        (place / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1" + bytes(24))


def _label_lines(turn: _Turn) -> str:
    """An utterance's own line, the raters' lines below it, and an empty one."""
    ratings = ", ".join(f"{value:.4f}" for value in turn.ratings)
    own = f"[{turn.start:.4f} - {turn.start + turn.seconds:.4f}]\t{turn.name}\t{turn.label}\t[{ratings}]"
    valence, activation, dominance = (round(value) for value in turn.ratings)
    raters = f"C-E2:\tNeutral;\t()\nA-E3:\tval {valence}; act {activation}; dom  {dominance};\t()\n"
    return f"{own}\n{raters}"


def _write_wav(folder: Path, turn: _Turn, seed: int) -> None:
    import soundfile

    # Seeded by the name, so that an utterance does not depend on how many come before it.
    rng = np.random.default_rng([seed, *turn.name.encode()])
    audio = speak(_voice(turn, seed, rng), turn.seconds, rng)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    (folder / f"{turn.name}.wav").write_bytes(buffer.getvalue())


#: What each label does to a voice: pitch in semitones, movement in semitones, rate as a factor, level in dB, tilt,
#: breath. Differences from neutral, which is (0, 0, 1, 0, 0, 0).
_MANNERS = {
    "ang": (3.5, 1.2, 1.12, 9.0, -0.28, -0.04),
    "hap": (5.0, 2.4, 1.12, 4.5, -0.07, 0.0),
    "exc": (6.5, 3.0, 1.20, 6.0, -0.09, 0.0),
    "neu": (0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    "sad": (-1.0, -0.9, 0.76, -5.0, 0.05, 0.25),
    "xxx": (1.5, 0.8, 1.0, 1.0, 0.0, 0.0),
    "oth": (1.5, 0.8, 1.0, 1.0, 0.0, 0.0),
}  # fmt: skip


def _voice(turn: _Turn, seed: int, rng: np.random.Generator) -> Voice:
    """The speaker's own voice, moved by the label as much as this speaker and this utterance show it."""
    own = np.random.default_rng([seed, *turn.speaker.encode(), 0])
    woman = turn.speaker.endswith("F")
    speaker = Voice(
        pitch=(200.0 if woman else 115.0) * 2 ** (own.normal(0, 1.5) / 12),
        movement=own.uniform(1.6, 2.6),
        rate=own.uniform(4.0, 5.2),
        level=own.normal(0, 1.5),
        tilt=own.uniform(0.86, 0.92),
        breath=own.uniform(0.08, 0.2),
        tract=(1.15 if woman else 1.0) * own.uniform(0.95, 1.05),
    )
    pitch, movement, rate, level, tilt, breath = _MANNERS[turn.label]
    shown = own.uniform(0.85, 1.15) * rng.uniform(0.5, 1.3)
    return replace(
        speaker,
        pitch=speaker.pitch * 2 ** ((shown * pitch + rng.normal(0, 1.2)) / 12),
        movement=max(0.4, speaker.movement + shown * movement + rng.normal(0, 0.5)),
        rate=speaker.rate * rate**shown * np.exp(rng.normal(0, 0.08)),
        level=speaker.level + shown * level + rng.normal(0, 1.5),
        tilt=float(np.clip(speaker.tilt + shown * tilt + rng.normal(0, 0.02), 0.5, 0.97)),
        breath=max(0.03, speaker.breath + shown * breath + rng.normal(0, 0.03)),
    )
