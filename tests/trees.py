"""Corpus folders for tests: tiny wavs under the names and in the layouts that the real corpora have."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile

from mfhca_cache.corpora.iemocap_counts import PUBLISHED_SESSIONS, PUBLISHED_SPEAKERS, PUBLISHED_TOTAL

#: Of the 5,531, those whose speaker is not the one in the dialogue's prefix, and those of improvised dialogues.
OTHER_THAN_PREFIX = 2750
IMPROVISED = 2943
#: Utterances of labels outside the four classes, for each speaker of the published tree.
OTHERS = ("xxx", "fru", "sur", "fea", "dis", "oth")

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(58)


def wav_bytes(
    seconds: float = 0.1,
    rate: int = 16_000,
    seed: int = 0,
    channels: int = 1,
    subtype: str = "PCM_16",
    kind: str = "WAV",
) -> bytes:
    """Noise as an audio file in memory."""
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    audio = 0.1 * np.random.default_rng(seed).standard_normal(shape)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def write_file(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def label_line(name: str, label: str, ratings: str = "2.5000, 3.5000, 4.5000", start: float = 6.2901) -> str:
    return f"[{start:.4f} - {start + 2:.4f}]\t{name}\t{label}\t[{ratings}]"


def write_dialogue(
    root: Path, dialogue: str, labels: Mapping[str, str], contents: tuple[bytes, ...] = (), end: str = "\n"
) -> None:
    """One dialogue of IEMOCAP, with every trap: ``labels`` is turn (``F000``) → raw label."""
    contents = contents or (wav_bytes(),)
    session = root / f"Session{dialogue[4]}"
    wavs, evaluation = session / "sentences" / "wav" / dialogue, session / "dialog" / "EmoEvaluation"
    wavs.mkdir(parents=True, exist_ok=True)
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    texts = []
    for index, (turn, label) in enumerate(labels.items()):
        name = f"{dialogue}_{turn}"
        (wavs / f"{name}.wav").write_bytes(contents[index % len(contents)])
        lines += [
            label_line(name, label, start=2.0 * index),
            "C-E2:\tAnger;\t()",
            "A-E3:\tval 3; act 3; dom  3;\t()",
            "",
        ]
        texts.append(f"{name} [{2 * index:08.4f}-{2 * index + 1:08.4f}]: Words, of {turn}: yes.")
        texts.append(f"{turn[0]}: [BREATHING]")
    write_file(evaluation / f"{dialogue}.txt", end.join(lines))
    write_file(session / "dialog" / "transcriptions" / f"{dialogue}.txt", end.join(texts) + end)
    for folder in ("Attribute", "Categorical", "Self-evaluation"):
        first = next(iter(labels), "F000")
        write_file(evaluation / folder / f"{dialogue}_e1.txt", label_line(f"{dialogue}_{first}", "sad") + "\n")
    write_file(wavs / f"._{dialogue}_F000.wav", APPLE_DOUBLE)
    write_file(wavs / ".DS_Store", b"\x00\x00\x00\x01Bud1")
    write_file(evaluation / f"._{dialogue}.txt", APPLE_DOUBLE)
    write_file(evaluation / ".DS_Store", b"\x00\x00\x00\x01Bud1")


def write_published(root: Path) -> int:
    """A tree of IEMOCAP's published counts, by session, speaker and label; returns the number of its wavs.

    As in the real corpus 2,750 of the 5,531 utterances are not spoken by the one in the dialogue's prefix, and 2,943
    are improvised. Each speaker has one utterance more of each label in `OTHERS`.
    """
    contents = tuple(wav_bytes(seed=seed) for seed in range(7))
    dialogues: dict[str, dict[str, str]] = {}
    for index, (speaker, label) in enumerate(_published_labels()):
        session, letter = speaker
        # Spread evenly, to the exact number of each.
        other = _is_chosen(index, OTHER_THAN_PREFIX)
        improvised = _is_chosen((index * 2741) % PUBLISHED_TOTAL, IMPROVISED)
        prefix = {"F": "M", "M": "F"}[letter] if other else letter
        variants = ("impro01", "impro05a") if improvised else ("script01_1", "script01_1b")
        dialogue = dialogues.setdefault(f"Ses0{session}{prefix}_{variants[index % 2]}", {})
        dialogue[f"{letter}{len(dialogue):03d}"] = label
    for speaker in PUBLISHED_SPEAKERS:
        session, letter = speaker
        dialogue = dialogues[f"Ses0{session}F_impro01"]
        for index, label in enumerate(OTHERS):
            dialogue[f"{letter}XX{index}"] = label
    for name, labels in dialogues.items():
        write_dialogue(root, name, labels, contents, end="\r\n" if name.endswith("1b") else "\n")
    return sum(map(len, dialogues.values()))


def _published_labels() -> Iterator[tuple[str, str]]:
    """(speaker, raw label) of the 5,531; how many of a speaker's happy ones are excited is not published."""
    for session, counts in PUBLISHED_SESSIONS.items():
        number = session[-1]
        angry, happy, neutral, sad = PUBLISHED_SPEAKERS[f"{number}F"]
        hap = min(happy, round(counts["hap"] * happy / (counts["hap"] + counts["exc"])))
        women = {"ang": angry, "hap": hap, "exc": happy - hap, "neu": neutral, "sad": sad}
        for label, total in counts.items():
            yield from [(f"{number}F", label)] * women[label]
            yield from [(f"{number}M", label)] * (total - women[label])


def _is_chosen(index: int, wanted: int) -> bool:
    return (index + 1) * wanted // PUBLISHED_TOTAL > index * wanted // PUBLISHED_TOTAL
