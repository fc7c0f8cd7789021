"""Clips copied out of an opened shard, each checked against its digest when this process first reads it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfhca_cache.manifest import samples_16k
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.shard import Shard, clip_digest

_PART = 32  # clips a thread copies and checks at a time: 7 MB of HuBERT-base


@dataclass
class OpenShard:
    """An opened shard and which of its clips were checked: bool (N,)."""

    shard: Shard
    checked: np.ndarray


def clip_rows(utterances: pd.DataFrame, clip: ClipSpec) -> pd.DataFrame:
    """A row a clip of rows of the plan, in their order: utterance_id, clip, valid_samples and plan_row.

    ``clip`` counts from 0 within the utterance, ``plan_row`` is the clip's number in the plan, and ``valid_samples``
    are those at 16 kHz that come from signal.
    """
    counts = utterances["clips"].to_numpy()
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    samples = np.repeat(samples_16k(utterances), counts)
    return pd.DataFrame(
        {
            "utterance_id": np.repeat(utterances["utterance_id"].to_numpy(), counts),
            "clip": number,
            "valid_samples": np.minimum(clip.samples, samples - number * clip.samples),
            "plan_row": np.repeat(utterances["first_clip"].to_numpy(), counts) + number,
        }
    )


def copy_checked(opened: OpenShard, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> list[int]:
    """Copy rows of a shard to places of ``out``, then check the copy of those never checked before.

    Returns:
        the rows that are damaged: their bytes have another digest than when they were written.
    """

    def copy(part: slice) -> list[int]:
        return _copy_part(opened, rows[part], out, places[part])

    parts = [slice(at, at + _PART) for at in range(0, len(rows), _PART)]
    if len(parts) == 1:  # A thread costs more than so few clips.
        return copy(parts[0])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for bad in pool.map(copy, parts) for row in bad]


def _copy_part(opened: OpenShard, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> list[int]:
    out[places] = opened.shard.data[rows]
    new = ~opened.checked[rows]
    bad = [
        int(row)
        for row, place in zip(rows[new], places[new], strict=True)
        if clip_digest(out[place]) != opened.shard.digest[row].tobytes()
    ]
    if not bad:
        opened.checked[rows] = True
    return bad
