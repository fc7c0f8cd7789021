"""IEMOCAP (Busso et al. 2008): five sessions of two actors, improvised and scripted dialogues.

Layout::

    Session1/sentences/wav/<dialogue>/<utterance>.wav
    Session1/dialog/EmoEvaluation/<dialogue>.txt      [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5, 2.5, 2.5]
    Session1/dialog/transcriptions/<dialogue>.txt     Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.

The letter in ``Ses01F`` says who wears the motion-capture markers in that dialogue, not who speaks. The speaker is the
letter before the turn number: ``Ses01F_impro01_M000`` is spoken by 1M. The three ratings are valence, activation (here:
arousal) and dominance, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mfhca_cache.corpora.common import OnFile, Utterance, audio_files, collect, is_folder, relative_path
from mfhca_cache.errors import CorpusError
from mfhca_cache.files import read_regular
from mfhca_cache.manifest import Manifest, Rejected, natural_key

LAYOUT = "a folder that holds Session1 … Session5, each with sentences/wav and dialog/EmoEvaluation"

_SESSION = re.compile(r"Session([1-5])")
_UTTERANCE = re.compile(r"Ses0([1-5])[FM]_\w+_([FM])(?:XX)?\d+")
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_LABEL_LINE = re.compile(rf"\[{_NUMBER}-{_NUMBER}\]\s+(\S+)\s+(\S+)\s+\[{_NUMBER},{_NUMBER},{_NUMBER}\]\s*")
# No bracket in the id: a line of nothing else would take the square of its length.
_TEXT_LINE = re.compile(r"(Ses0[^\s\[]+)\s*\[[^\]]*\]\s*:\s*(.*)")
#: A dialogue's label file has about 30 kB.
_MAX_TEXT_BYTES = 4 * 2**20
_MAX_BAD_LINES = 100
_ANY_SESSION = tuple(f"Session{number}" for number in range(1, 6))


class _Label(NamedTuple):
    label: str
    valence: float
    arousal: float
    dominance: float


def looks_like(root: Path) -> bool:
    """Whether a folder has the layout of IEMOCAP and is not the generated corpus."""
    # Here and not above: the generated corpus has this module's layout, so its reader imports this one.
    from mfhca_cache.corpora.synthetic import is_marked

    return _has_layout(root) and not is_marked(root)


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """IEMOCAP as a manifest: all utterances of all labels, so `iemocap_counts` can compare it with the published one.

    Rejected are: a wav without a label, a label without a wav, wavs of a dialogue that has no label file (each wav
    once), a name that does not say who speaks, an id that is in the folder of another session, damaged audio.

    Args:
        root: the folder that holds Session1 … Session5; fewer of them are fine.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no session folder, or no utterance in any of them.
    """
    return read_as("iemocap", root, progress)


def read_as(corpus: str, root: Path, progress: OnFile | None = None) -> Manifest:
    """`read` for another corpus of the same layout, whose name stands in the manifest."""
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    sessions = [root / name for name in _ANY_SESSION if is_folder(root / name)]
    if not sessions:
        raise CorpusError(f"{root}: got no Session folder; expected {LAYOUT}{_hint(root)}")
    for session in sessions:
        _read_session(root, session, utterances, rejected)
    return collect(corpus, root, utterances, rejected, progress)


def speaker_of(utterance_id: str) -> str | None:
    """``1M`` for ``Ses01F_impro01_M000``: the session and the letter before the turn number; None for another form."""
    match = _UTTERANCE.fullmatch(utterance_id)
    return f"{match[1]}{match[2]}" if match else None


def _has_layout(root: Path) -> bool:
    parts = ("sentences/wav", "dialog/EmoEvaluation")
    return any(is_folder(root / session / part) for session in _ANY_SESSION for part in parts)


def _hint(root: Path) -> str:
    """What to name instead, where the folder given is a session or lies in one."""
    real = root.resolve()
    for folder in (real, *real.parents):
        if _SESSION.fullmatch(folder.name) and _has_layout(folder.parent):
            what = f"this is {folder.name}" if folder == real else f"this lies inside {folder.name}"
            return f"; {what}: name its parent {folder.parent}"
    return ""


def _read_session(root: Path, session: Path, utterances: list[Utterance], rejected: list[Rejected]) -> None:
    dialogues: dict[str, list[Path]] = {}
    wav_folder = session / "sentences" / "wav"
    if not is_folder(wav_folder):
        rejected.append(Rejected(relative_path(root, wav_folder), "no-wav: the folder is missing or cannot be read"))
        return
    seen = len(rejected)
    for path in audio_files(wav_folder, root, rejected):
        dialogues.setdefault(path.parent.name if path.parent != wav_folder else "", []).append(path)
    label_folder = session / "dialog" / "EmoEvaluation"
    label_files = {path.stem: path for path in _text_files(label_folder)}
    loose = dialogues.pop("", [])
    rejected += [Rejected(relative_path(root, path), "name: it lies in no dialogue's folder") for path in loose]
    # A wav that was rejected already is no missing wav.
    known = {Path(item.path).stem for item in rejected[seen:]}
    for dialogue in sorted({*dialogues, *label_files}, key=natural_key):
        wavs = dialogues.get(dialogue, [])
        label_file = label_files.get(dialogue)
        if label_file is None:
            expected = relative_path(root, label_folder / f"{dialogue}.txt")
            reason = f"no-label: the label file {expected} is missing; all {len(wavs)} wavs of the dialogue left out"
            rejected += [Rejected(relative_path(root, path), reason) for path in wavs]
            continue
        labels = _read_labels(root, label_file, rejected)
        texts = _read_texts(session / "dialog" / "transcriptions" / f"{dialogue}.txt")
        for path in wavs:
            made = _utterance(root, session, path, labels.get(path.stem), texts.get(path.stem, ""), label_file)
            if isinstance(made, Utterance):
                utterances.append(made)
            else:
                rejected.append(made)
        for missing in sorted(set(labels) - {path.stem for path in wavs} - known, key=natural_key):
            reason = f"no-wav: it has a label in {relative_path(root, label_file)}, but the wav is missing"
            rejected.append(Rejected(relative_path(root, wav_folder / dialogue / f"{missing}.wav"), reason))


def _utterance(
    root: Path, session: Path, path: Path, label: _Label | str | None, text: str, label_file: Path
) -> Utterance | Rejected:
    """The utterance of a wav, or why there is none."""
    name = relative_path(root, path)
    speaker = speaker_of(path.stem)
    if speaker is None:
        return Rejected(name, "name: it does not say who speaks; expected such as Ses01F_impro01_M000 or …_MXX0")
    if session.name != f"Session{speaker[0]}":
        return Rejected(name, f"name: the id is of session {speaker[0]}, the folder is {session.name}")
    if label is None:
        return Rejected(name, f"no-label: {relative_path(root, label_file)} has no label line of this id")
    if isinstance(label, str):
        return Rejected(name, label)
    return Utterance(
        utterance_id=path.stem,
        path=path,
        speaker=speaker,
        label=label.label,
        session=session.name.lower(),
        recording=path.parent.name,
        text=text,
        valence=label.valence,
        arousal=label.arousal,
        dominance=label.dominance,
    )


def _text_files(folder: Path) -> list[Path]:
    """The ``.txt`` files of a folder itself, without hidden ones and without its sub-folders."""
    if not is_folder(folder):
        return []
    return [path for path in folder.iterdir() if path.suffix == ".txt" and path.name[0] != "." and path.is_file()]


def _read_labels(root: Path, path: Path, rejected: list[Rejected]) -> dict[str, _Label | str]:
    """Id → label of one dialogue, or why it has none; lines of raters, the heading and blank lines are passed over."""
    labels: dict[str, _Label | str] = {}
    try:
        lines = list(_lines(path))
    except (OSError, ValueError) as error:
        rejected.append(Rejected(relative_path(root, path), f"unreadable: the label file cannot be read ({error})"))
        return labels
    before = len(rejected)
    for number, line in enumerate(lines, start=1):
        if not line.startswith("["):
            continue
        match = _LABEL_LINE.fullmatch(line)
        if match is None and len(rejected) - before == _MAX_BAD_LINES:
            reason = f"bad-label: more than {_MAX_BAD_LINES} such lines; line {number} and the rest are not looked at"
            rejected.append(Rejected(relative_path(root, path), reason))
            return labels
        if match is None:
            expected = "[start - end] id label [valence, activation, dominance]"
            reason = f"bad-label: line {number} is {line[:80]!r}; expected {expected}"
            rejected.append(Rejected(relative_path(root, path), reason))
            continue
        name, label = match[3], _Label(match[4], float(match[5]), float(match[6]), float(match[7]))
        if labels.setdefault(name, label) != label:
            labels[name] = f"bad-label: {relative_path(root, path)} labels it twice, differently; see line {number}"
    return labels


def _read_texts(path: Path) -> dict[str, str]:
    """Id → words of one dialogue; lines without an id are passed over; a missing file has no words."""
    try:
        matches = [_TEXT_LINE.fullmatch(line) for line in _lines(path)]
    except (OSError, ValueError):
        return {}
    return {match[1]: " ".join(match[2].split()) for match in matches if match}


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text in UTF-8 or else Latin-1, whichever line ends it has."""
    data = read_regular(path, _MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    # Not splitlines: in Latin-1 it would also split at 0x85.
    return (line.strip() for line in re.split(r"\r\n|\r|\n", text))
