"""RAVDESS (Livingstone and Russo 2018): 24 actors, two English statements, eight emotions; the audio-only speech.

A name such as ``03-01-05-02-01-02-12.wav`` says: modality (03 audio only), channel (01 speech, 02 song), emotion,
intensity, statement, repetition, actor.
"""

from __future__ import annotations

import re
from pathlib import Path

from mfhca_cache.corpora.common import OnFile, Utterance, collect_named, holds_name
from mfhca_cache.manifest import Manifest

LAYOUT = "a folder that holds files such as 03-01-05-02-01-02-12.wav, usually in Actor_01 … Actor_24"

_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
_MODALITIES = {"01": "video with sound", "02": "video without sound"}

#: The words of each statement.
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}


def looks_like(root: Path) -> bool:
    """Whether a file in the folder, or in the folders in it, has a name of RAVDESS."""
    return holds_name(root, _NAME)


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """RAVDESS as a manifest; labels are the emotion's two digits, there are neither sessions nor recordings.

    Song and video are rejected.

    Args:
        root: the folder that holds the actors' folders, or the files.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no utterance was found.
    """
    return collect_named("ravdess", root, root, _parse, progress)


def _parse(path: Path) -> Utterance | str:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return (
            "name: expected such as 03-01-05-02-01-02-12.wav: "
            "modality-channel-emotion-intensity-statement-repetition-actor"
        )
    if match[1] != "03":
        return f"modality: {_MODALITIES[match[1]]}, not audio only"
    if match[2] != "01":
        return "channel: song, not speech"
    return Utterance(path.stem, path, match[7], match[3], text=STATEMENTS[match[5]])
