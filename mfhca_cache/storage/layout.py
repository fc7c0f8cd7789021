"""What a cache holds and where: the plan, which clips there are, and the features, which cut it into shards.

The plan numbers all clips of the corpus once, split after split, in order of utterance_id. A split is a session, or
``all`` where the corpus has no sessions. Every feature cuts each split's clips into shards of at most 512 clips and
256 MiB, so all features of a cache line up by clip, whatever their width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import is_ascending, natural_key, samples_16k
from mfhca_cache.spec import FORMAT_VERSION, ClipSpec, canonical_json, differences, fingerprint, settings

MAX_SHARD_CLIPS = 512
MAX_SHARD_BYTES = 256 * 2**20
#: What of an engine decides the last digits of what it computes; the rest is what was measured of it.
ENGINE = ("name", "version", "device", "precision", "threads", "batch")
#: What a row of a shard is.
Unit = Literal["clip", "utterance"]
#: A change in one of these makes other clips; the other columns may be corrected later.
IDENTITY = ("utterance_id", "session", "seconds", "sample_rate", "sha256")

_CHUNK_ROWS = 2**16
#: What JSON escapes beside the quotation mark.
_ESCAPED = bytes(range(32)) + b"\\"


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

    def __getstate__(self) -> dict[str, Any]:
        """Its fields alone, without what was derived from them."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

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

    def rows_of_run(self, per: Unit, first: int, stop: int) -> slice:
        """Rows of ``utterances`` that a run of clips, or of utterances, belongs to."""
        if per == "utterance":
            return slice(first, stop)
        begin, end = np.searchsorted(self._first_clips, [first, stop - 1], side="right").tolist()
        return slice(begin - 1, end)

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Rows of ``utterances`` that ids have, int64; -1 for an id that is not there."""
        return self._index.get_indexer(pd.Index(list(ids), dtype=object)).astype(np.int64)

    def audio(self, first: int, stop: int) -> dict[str, str]:
        """utterance_id → SHA-256 of the audio, of the utterances that the clips ``first`` to ``stop`` belong to."""
        return self._listed("sha256", self.rows_of_run("clip", first, stop))

    def texts(self, first: int, stop: int) -> dict[str, str]:
        """utterance_id → SHA-256 of the transcript, of the utterances ``first`` to ``stop``."""
        texts = self._listed("text", slice(first, stop))
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    def ids(self, rows: slice) -> list[str]:
        """The ids of some rows of ``utterances``."""
        return list(self._columns["utterance_id"][rows].tolist())

    def _listed(self, column: str, rows: slice) -> dict[str, str]:
        """utterance_id → its cell in a column, of some rows of ``utterances``."""
        return dict(zip(self.ids(rows), self._columns[column][rows].tolist(), strict=True))

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self._columns["utterance_id"], dtype=object)

    @cached_property
    def _first_clips(self) -> np.ndarray:
        return self.utterances["first_clip"].to_numpy()

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        # A row of a DataFrame costs more than all that is done with it.
        return {name: self.utterances[name].to_numpy() for name in ("utterance_id", "sha256", "text")}

    def sources(self, info: FeatureInfo, shard: ShardRange) -> dict[str, str]:
        """utterance_id → SHA-256 of what a feature's shard is made from: the audio, or the transcript."""
        return (self.texts if info.per == "utterance" else self.audio)(shard.first, shard.stop)

    def clips_of(self, info: FeatureInfo, shard: ShardRange) -> tuple[int, int]:
        """First and stop of the clips that a shard is about, also where its rows are utterances."""
        if info.per == "clip":
            return shard.first, shard.stop
        first, stop = (
            int(self._first_clips[row]) if row < len(self._first_clips) else self.clips
            for row in (shard.first, shard.stop)
        )
        return first, stop

    def identity(self) -> str:
        """Fingerprint of what the clips are cut from: ids, sessions, lengths and audio digests, in order."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256(b"[")
        for at in range(0, len(self.utterances), _CHUNK_ROWS):
            digest.update(b"," if at else b"")
            digest.update(_canonical_rows(self.utterances.iloc[at : at + _CHUNK_ROWS]))
        digest.update(b"]")
        return digest.hexdigest()


def _canonical_rows(utterances: pd.DataFrame) -> bytes:
    """The values of `IDENTITY` as strings, a list a row, in canonical JSON without the outermost brackets."""
    columns = [list(map(str, utterances[name].tolist())) for name in IDENTITY]
    text = '"],["'.join(map('","'.join, zip(*columns, strict=True)))
    data = f'["{text}"]'.encode()
    # Quotes are those put in here, and nothing else is to be escaped.
    if data.count(b'"') == 2 * len(IDENTITY) * len(utterances) and data.translate(None, _ESCAPED) == data:
        return data
    return canonical_json(list(zip(*columns, strict=True)))[1:-1]


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
        source: where an encoder came from: name, revision, commit, class, number of parameters.
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
    table = utterances.copy(deep=False)
    named = (table["session"] != "").to_numpy()
    if named.any() and not named.all():
        row = table[~named].iloc[0]
        raise CacheError(
            f"{row['utterance_id']!r} has no session, other rows have; fill the column for all or for none"
        )
    table["split"] = table["session"] if named.any() else "all"
    if not is_ascending(table["utterance_id"]):
        table = table.sort_values("utterance_id", kind="stable")
    codes, found = pd.factorize(table["split"])
    names = sorted(map(str, found), key=natural_key)
    rank = {name: number for number, name in enumerate(names)}
    ranks = np.array([rank[str(name)] for name in found], dtype=np.int64)[codes]
    if (np.diff(ranks) < 0).any():
        table = table.iloc[np.argsort(ranks, kind="stable")]
    table = table.reset_index(drop=True)
    table["clips"] = -(-samples_16k(table) // clip.samples)
    table["first_clip"] = table["clips"].cumsum() - table["clips"]
    # Where the next split's rows begin, and behind the last row.
    stops = np.cumsum(np.bincount(ranks, minlength=len(names)))
    edges = [0, *(table["first_clip"] + table["clips"]).to_numpy()[stops - 1].tolist()]
    splits = tuple(Split(name, first, stop) for name, (first, stop) in zip(names, pairwise(edges), strict=True))
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
