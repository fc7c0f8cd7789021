"""CREMA-D (Cao et al. 2014): 91 actors, twelve English sentences, six emotions.

A name such as ``1001_DFA_ANG_XX.wav`` says: actor, sentence, emotion, level (LO, MD, HI, or XX where there is none).
"""

from __future__ import annotations

import re
from pathlib import Path

from mfhca_cache.corpora.common import OnFile, Utterance, collect_named, holds_name, is_folder
from mfhca_cache.manifest import Manifest

LAYOUT = "a folder of files such as 1001_DFA_ANG_XX.wav, or one that holds them in AudioWAV/"

#: The words of each sentence.
SENTENCES = {
    "DFA": "Don't forget a jacket",
    "IEO": "It's eleven o'clock",
    "IOM": "I'm on my way to the meeting",
    "ITH": "I think I have a doctor's appointment",
    "ITS": "I think I've seen this before",
    "IWL": "I would like a new alarm clock",
    "IWW": "I wonder what this is about",
    "MTI": "Maybe tomorrow it will be cold",
    "TAI": "The airplane is almost full",
    "TIE": "That is exactly what happened",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}

# The published corpus spells one level X instead of XX (1040_ITH_SAD_X).
_NAME = re.compile(rf"(1\d{{3}})_({'|'.join(SENTENCES)})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX?)")


def looks_like(root: Path) -> bool:
    """Whether a file of the folder, or of its ``AudioWAV/``, has a name of CREMA-D."""
    return holds_name(_folder(root), _NAME, depth=0)


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """CREMA-D as a manifest; labels are ANG DIS FEA HAP NEU SAD, there are neither sessions nor recordings.

    Args:
        root: the folder of the wavs, or the one that holds ``AudioWAV/``; its ``AudioMP3/`` is not read.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no utterance was found.
    """
    return collect_named("cremad", _folder(root), root, _parse, progress)


def _parse(path: Path) -> Utterance | str:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return "name: expected such as 1001_DFA_ANG_XX.wav: actor, sentence, emotion, level"
    return Utterance(path.stem, path, match[1], match[3], text=SENTENCES[match[2]])


def _folder(root: Path) -> Path:
    return root / "AudioWAV" if is_folder(root / "AudioWAV") else root
