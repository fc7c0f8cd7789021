"""Emo-DB (Burkhardt et al. 2005): ten actors, ten German sentences, seven emotions.

A name such as ``03a01Fa.wav`` says: speaker 03, sentence a01, emotion F (Freude, happy), version a.
"""

from __future__ import annotations

import re
from pathlib import Path

from mfhca_cache.corpora.common import OnFile, Utterance, collect_named, holds_name, is_folder
from mfhca_cache.manifest import Manifest

LAYOUT = "a folder of files such as 03a01Fa.wav, or one that holds them in wav/"

_NAME = re.compile(r"(\d{2})([ab]\d{2})([WFNTALE])([a-z]?)")

#: The sentence of each code.
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def looks_like(root: Path) -> bool:
    """Whether a file of the folder, or of its ``wav/``, has a name of Emo-DB."""
    return holds_name(_folder(root), _NAME, depth=0)


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """Emo-DB as a manifest; labels are the letters W F N T A L E, there are neither sessions nor recordings.

    Args:
        root: the folder of the wavs, or the one that holds ``wav/``.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no utterance was found.
    """
    return collect_named("emodb", _folder(root), root, _parse, progress)


def _parse(path: Path) -> Utterance | str:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return "name: expected such as 03a01Fa.wav: speaker, sentence, one of W F N T A L E, version"
    speaker, sentence, label, _ = match.groups()
    return Utterance(path.stem, path, speaker, label, text=SENTENCES.get(sentence, ""))


def _folder(root: Path) -> Path:
    return root / "wav" if is_folder(root / "wav") else root
