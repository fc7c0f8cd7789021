"""How many utterances a whole IEMOCAP holds, and how a corpus on disk differs from that.

The counts are those that the literature reports for the four classes: 5,531 utterances, of which 1,103 angry, 1,636
happy (595 happy and 1,041 excited), 1,708 neutral and 1,084 sad.
"""

from __future__ import annotations

import pandas as pd

from mfhca_cache.labels import FOUR_CLASS_LABELS, FOUR_CLASSES

#: Session → raw label → utterances.
PUBLISHED_SESSIONS: dict[str, dict[str, int]] = {
    "session1": {"ang": 229, "hap": 135, "exc": 143, "neu": 384, "sad": 194},
    "session2": {"ang": 137, "hap": 117, "exc": 210, "neu": 362, "sad": 197},
    "session3": {"ang": 240, "hap": 135, "exc": 151, "neu": 320, "sad": 305},
    "session4": {"ang": 327, "hap": 65, "exc": 238, "neu": 258, "sad": 143},
    "session5": {"ang": 170, "hap": 143, "exc": 299, "neu": 384, "sad": 245},
}

#: Speaker → utterances of angry, happy (hap + exc), neutral, sad: the order of `labels.FOUR_CLASSES`.
PUBLISHED_SPEAKERS: dict[str, tuple[int, int, int, int]] = {
    "1F": (147, 132, 171, 78),
    "1M": (82, 146, 213, 116),
    "2F": (67, 166, 135, 113),
    "2M": (70, 161, 227, 84),
    "3F": (92, 128, 130, 172),
    "3M": (148, 158, 190, 133),
    "4F": (205, 185, 76, 62),
    "4M": (122, 118, 182, 81),
    "5F": (78, 159, 221, 132),
    "5M": (92, 283, 163, 113),
}

#: Utterances of the four classes in a whole corpus.
PUBLISHED_TOTAL = sum(sum(counts) for counts in PUBLISHED_SPEAKERS.values())


def compare_with_published(utterances: pd.DataFrame) -> list[str]:
    """Each difference between a corpus and the published counts, as a line to print; empty where there is none.

    Sessions that are there are compared by raw label (``session 2: sad 196, published 197``), their speakers by class
    (``speaker 2F: sad 112, published 113``). A session that is absent is one line.

    Args:
        utterances: rows of an IEMOCAP manifest; ``session``, ``speaker`` and ``label`` are read.
    """
    lines = []
    for session, published in PUBLISHED_SESSIONS.items():
        number = session.removeprefix("session")
        rows = utterances[utterances["session"] == session]
        if rows.empty:
            lines.append(f"session {number}: absent, published {sum(published.values())} of the four classes")
            continue
        counts = rows["label"].value_counts()
        lines += _different(f"session {number}", {name: int(counts.get(name, 0)) for name in published}, published)
        for speaker in (f"{number}F", f"{number}M"):
            labels = rows["label"][rows["speaker"] == speaker]
            got = {name: int(labels.isin(FOUR_CLASS_LABELS["iemocap"][name]).sum()) for name in FOUR_CLASSES}
            expected = dict(zip(FOUR_CLASSES, PUBLISHED_SPEAKERS[speaker], strict=True))
            lines += _different(f"speaker {speaker}", got, expected)
    return lines


def _different(where: str, got: dict[str, int], published: dict[str, int]) -> list[str]:
    return [
        f"{where}: {name} {got[name]}, published {count}" for name, count in published.items() if got[name] != count
    ]


def published_table() -> pd.DataFrame:
    """The published counts, shaped as `manifest.count_table`: sessions and ``all`` by the four classes and ``all``."""
    maps = FOUR_CLASS_LABELS["iemocap"]
    table = pd.DataFrame(
        {
            name: [sum(counts[label] for label in maps[name]) for counts in PUBLISHED_SESSIONS.values()]
            for name in FOUR_CLASSES
        },
        index=list(PUBLISHED_SESSIONS),
    )
    table["all"] = table.sum(axis=1)
    table.loc["all"] = table.sum(axis=0)
    return table
