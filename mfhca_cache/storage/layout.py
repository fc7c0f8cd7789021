"""What a cache holds and where: the plan, which clips there are, and the features, which cut it into shards.

The plan numbers all clips of the corpus once, split after split, in order of utterance_id. A split is a session, or
``all`` where the corpus has no sessions. Every feature cuts each split's clips into shards of at most 512 clips and
256 MiB, so all features of a cache line up by clip, whatever their width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import natural_key, samples_16k
from mfhca_cache.spec import FORMAT_VERSION, ClipSpec, differences, fingerprint, settings

MAX_SHARD_CLIPS = 512
MAX_SHARD_BYTES = 256 * 2**20
#: What of an engine decides the last digits of what it computes; the rest is what was measured of it.
ENGINE = ("name", "version", "device", "precision", "threads", "batch")
#: What a row of a shard is.
Unit = Literal["clip", "utterance"]
#: A change in one of these makes other clips; the other columns may be corrected later.
IDENTITY = ("utterance_id", "session", "seconds", "sample_rate", "sha256")


@dataclass(frozen=True)
class Split:
    """A run of the plan's clips: ``first`` up to, but not including, ``stop``."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class ShardRange:
    """A shard's name, such as ``session1-0000``, its split and its run of the plan's clips."""

    name: str
    split: str
    first: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Which clips there are.

    Attributes:
        corpus: name of the corpus.
        clip: how utterances are cut.
        rows: ``four-class`` or ``all``.
        utterances: the manifest's rows in the plan's order, with ``split``, ``first_clip`` and ``clips``.
        splits: in order.
    """

    corpus: str
    clip: ClipSpec
    rows: str
    utterances: pd.DataFrame
    splits: tuple[Split, ...]

    @property
    def clips(self) -> int:
        """Clips of the whole plan."""
        return self.splits[-1].stop

    def chosen(self, split: str | None) -> tuple[Split, ...]:
        """The splits that ``--split`` means: one by name, or every one (``all`` or None).

        Raises:
            CacheError: no such split; the message lists the valid names.
        """
        if split is None or split.lower() == "all":
            return self.splits
        found = tuple(item for item in self.splits if item.name == split.lower())
        if not found:
            names = [item.name for item in self.splits]
            valid = ", ".join(names if "all" in names else [*names, "all"])
            raise CacheError(f"split {split!r} is not in {self.corpus}; expected one of: {valid}")
        return found

    def units(self, per: Unit) -> tuple[Split, ...]:
        """The splits as runs of clips, or of rows of ``utterances``."""
        if per == "clip":
            return self.splits
        edges = np.searchsorted(self.utterances["first_clip"], [split.stop for split in self.splits]).tolist()
        return tuple(
            Split(split.name, first, stop)
            for split, (first, stop) in zip(self.splits, pairwise([0, *edges]), strict=True)
        )

    def shards(self, info: FeatureInfo, splits: Collection[str] | None = None) -> list[ShardRange]:
        """A feature's shards in order, of the splits named or of all."""
        chosen = [split for split in self.units(info.per) if splits is None or split.name in splits]
        return [shard for split in chosen for shard in info.shards(split)]

    def audio(self, first: int, stop: int) -> dict[str, str]:
        """utterance_id → SHA-256 of the audio, of the utterances that the clips ``first`` to ``stop`` belong to."""
        table = self.utterances
        begin, end = np.searchsorted(table["first_clip"], [first, stop - 1], side="right")
        part = table.iloc[begin - 1 : end]
        return dict(zip(part["utterance_id"], part["sha256"], strict=True))

    def texts(self, first: int, stop: int) -> dict[str, str]:
        """utterance_id → SHA-256 of the transcript, of the utterances ``first`` to ``stop``."""
        part = self.utterances.iloc[first:stop]
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in part["text"]]
        return dict(zip(part["utterance_id"], digests, strict=True))

    def sources(self, info: FeatureInfo, shard: ShardRange) -> dict[str, str]:
        """utterance_id → SHA-256 of what a feature's shard is made from: the audio, or the transcript."""
        return (self.texts if info.per == "utterance" else self.audio)(shard.first, shard.stop)

    def clips_of(self, info: FeatureInfo, shard: ShardRange) -> tuple[int, int]:
        """First and stop of the clips that a shard is about, also where its rows are utterances."""
        if info.per == "clip":
            return shard.first, shard.stop
        edges = [*self.utterances["first_clip"], self.clips]
        return int(edges[shard.first]), int(edges[shard.stop])

    def identity(self) -> str:
        """Fingerprint of what the clips are cut from: ids, sessions, lengths and audio digests, in order."""
        return fingerprint([[str(value) for value in row] for row in self.utterances[list(IDENTITY)].to_numpy()])


@dataclass(frozen=True)
class FeatureInfo:
    """What a feature is, as its feature.json says.

    Attributes:
        name: its folder.
        kind: ``spectrogram``, ``log-mel``, ``mfcc``, ``encoder`` or ``text``.
        settings: everything that decides the numbers, the encoder's weights among it.
        shape: of one clip: (300, 200), (149, 768), (13, 149, 768) for layers, (768,) pooled. Of one utterance of
            a text: (0, 768), where 0 stands for as many rows as the longest text of the shard has.
        dtype: float16 or float32.
        clips_per_shard: at most so many (utterances, for a feature of utterances).
        engine: what computes it, see `ENGINE`: fixed when the feature is begun, but for a batch that memory lowers.
        source: where an encoder came from: name, revision, commit.
        random_weights: the encoder was never trained; its features mean nothing.
        per: what a row of its shards is: a ``clip``, or an ``utterance`` of any length.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    clips_per_shard: int
    engine: dict[str, Any]
    source: dict[str, Any]
    random_weights: bool = False
    per: Unit = "clip"

    @property
    def fingerprint(self) -> str:
        """Covers the settings, the encoder's weights and the format's version."""
        return fingerprint({"format": FORMAT_VERSION, "kind": self.kind, "settings": self.settings})

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip as stored; 0 where utterances are of any length."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def frame_axis(self) -> int | None:
        """The axis of ``shape`` that counts frames (or tokens), or None where they were pooled."""
        return None if self.settings.get("pool") else len(self.shape) - 2

    @property
    def frames(self) -> int | None:
        """Frames of one clip; None where they were pooled, and for a feature of utterances."""
        return None if self.frame_axis is None or self.per != "clip" else self.shape[self.frame_axis]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shard's array of this shape, rows first, is one of the feature's."""
        if self.per == "clip":
            return shape[1:] == self.shape
        return len(shape) == 1 + len(self.shape) and shape[2:] == self.shape[1:]

    def shards(self, split: Split) -> list[ShardRange]:
        """The shards of a split, given in the feature's own units (see `Plan.units`), in order."""
        edges = [*range(split.first, split.stop, self.clips_per_shard), split.stop]
        return [
            ShardRange(f"{split.name}-{number:04d}", split.name, first, stop)
            for number, (first, stop) in enumerate(pairwise(edges))
        ]


def clips_per_shard(clip_bytes: int) -> int:
    """Clips of a shard: as many as 256 MiB hold, at most 512, at least one."""
    return max(1, min(MAX_SHARD_CLIPS, MAX_SHARD_BYTES // clip_bytes))


def make_plan(corpus: str, utterances: pd.DataFrame, clip: ClipSpec, rows: str) -> Plan:
    """Number the clips of the rows: by split in natural order, within a split by utterance_id."""
    table = utterances.copy()
    with_sessions = bool((table["session"] != "").any())
    if with_sessions and (table["session"] == "").any():
        row = table[table["session"] == ""].iloc[0]
        raise CacheError(
            f"{row['utterance_id']!r} has no session, other rows have; fill the column for all or for none"
        )
    table["split"] = table["session"] if with_sessions else "all"
    order = {name: number for number, name in enumerate(sorted(set(table["split"]), key=natural_key))}
    table = table.assign(_order=table["split"].map(order)).sort_values(["_order", "utterance_id"], kind="stable")
    table = table.drop(columns="_order").reset_index(drop=True)
    table["clips"] = -(-samples_16k(table) // clip.samples)
    table["first_clip"] = table["clips"].cumsum() - table["clips"]
    splits = tuple(
        Split(str(name), int(part["first_clip"].iloc[0]), int((part["first_clip"] + part["clips"]).iloc[-1]))
        for name, part in table.groupby("split", sort=False)
    )
    return Plan(corpus, clip, rows, table, splits)


def plan_differences(have: Plan, wanted: Plan) -> list[str]:
    """What differs between two plans: corpus, settings, or which utterances of what audio; empty if nothing does."""
    before = {"corpus": have.corpus, "clip": settings(have.clip), "rows": have.rows}
    changed = differences(before, {"corpus": wanted.corpus, "clip": settings(wanted.clip), "rows": wanted.rows})
    if not changed and have.identity() != wanted.identity():
        changed = _changed_utterances(have, wanted)
    return changed


def _changed_utterances(have: Plan, wanted: Plan) -> list[str]:
    """What differs between two lists of utterances, with the first few ids of each kind."""
    before = have.utterances.set_index("utterance_id", drop=False)
    now = wanted.utterances.set_index("utterance_id", drop=False)
    both = before.index.intersection(now.index)
    found = [
        ("no longer in the manifest", before.index.difference(now.index)),
        ("new in the manifest", now.index.difference(before.index)),
    ]
    for column in IDENTITY[1:]:
        word = "other audio bytes (sha256)" if column == "sha256" else f"another {column}"
        found.append((f"of {word}", both[(before.loc[both, column] != now.loc[both, column]).to_numpy()]))
    return [
        f"{len(ids)} utterance(s) {words}: {', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}"
        for words, ids in found
        if len(ids)
    ]


def shard_path(folder: Path, info: FeatureInfo, shard: ShardRange) -> Path:
    """Where a shard's file lies in a cache's folder; its receipt has the suffix ``.json``."""
    return folder / info.name / f"{shard.name}.h5"
