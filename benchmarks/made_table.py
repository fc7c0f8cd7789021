"""A corpus that exists as a table alone, for benchmarks of what is done with tables and with features."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mfhca_cache.manifest import COLUMNS

_LABELS = ("ang", "exc", "hap", "neu", "sad")
_WORDS = ("well", "i", "think", "that", "we", "should", "go", "home", "now", "before", "it", "gets", "dark")


def made_table(utterances: int, clips: int, sessions: int, seed: int = 0) -> pd.DataFrame:
    """A manifest's rows.

    Args:
        utterances: rows.
        clips: of three seconds, over all rows; each has one or more.
        sessions: of about as many rows each, two speakers a session; 0 for a corpus without.
        seed: of lengths, labels, words and digests.
    """
    generator = np.random.default_rng(seed)
    more = np.bincount(generator.integers(0, utterances, clips - utterances), minlength=utterances)
    # The last clip of an utterance is at least a tenth of a second long.
    seconds = np.round(3.0 * more + generator.uniform(0.1, 3.0, utterances), 4)
    session = np.arange(utterances) * max(sessions, 1) // utterances
    digits = generator.bytes(32 * utterances).hex()
    take = generator.integers(0, len(_WORDS), (utterances, 8))
    speakers = [f"spk{number:05d}{sex}" for number in range(max(sessions, 1)) for sex in "FM"]
    table = dict.fromkeys(COLUMNS, np.array([""] * utterances, dtype=object))
    table |= {
        "corpus": np.array(["table"] * utterances, dtype=object),
        "utterance_id": np.array([f"s{s:05d}_utt{n:09d}" for n, s in enumerate(session.tolist())], dtype=object),
        "path": np.array([f"s{s:05d}/wav/utt{n:09d}.wav" for n, s in enumerate(session.tolist())], dtype=object),
        "speaker": np.array(speakers, dtype=object)[2 * session + np.arange(utterances) % 2],
        "label": np.array(_LABELS, dtype=object)[generator.integers(0, len(_LABELS), utterances)],
        "text": np.array([" ".join(_WORDS[word] for word in row) for row in take.tolist()], dtype=object),
        "seconds": seconds,
        "sample_rate": np.full(utterances, 16_000),
        "channels": np.full(utterances, 1),
        "sha256": np.array([digits[64 * n : 64 * n + 64] for n in range(utterances)], dtype=object),
    }
    if sessions:
        table["session"] = np.array([f"session{n + 1}" for n in range(sessions)], dtype=object)[session]
    return pd.DataFrame(table)
