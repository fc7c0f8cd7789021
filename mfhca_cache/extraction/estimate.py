"""What an extraction would take, before it is begun: clips, disk, and time from a short trial. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mfhca_cache.errors import ManifestError
from mfhca_cache.extraction.agree import check_plan, corpus_root, wanted_plan
from mfhca_cache.extraction.build import Tools, compute_feature
from mfhca_cache.extraction.decode import DecodedClips, decode_clips
from mfhca_cache.extraction.engine import AskedEngine, asked_engine, choose_engines, first_clips, resume_engine
from mfhca_cache.extraction.part import check_part, shards_of_part
from mfhca_cache.extraction.pipeline import Agreement
from mfhca_cache.extraction.text import encode_texts
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import Manifest
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import ExtractSpec
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Unit
from mfhca_cache.storage.publish import free_bytes

#: A trial ends after so many timed batches, or after the one that brings it over so many seconds.
TRIAL_BATCHES = 4
TRIAL_SECONDS = 10.0
#: Transcripts that a trial encodes.
TRIAL_TEXTS = 32
#: Of a shard beside its arrays: HDF5's structures and the receipt. Of a row: its number, frames, digest and source.
_SHARD_BYTES = 8192
_ROW_BYTES = 28 + 90


@dataclass(frozen=True)
class SplitEstimate:
    """A split's utterances, seconds of speech and clips, and how many clips some feature lacks."""

    name: str
    utterances: int
    seconds: float
    clips: int
    clips_left: int


@dataclass(frozen=True)
class FeatureEstimate:
    """A feature's share of the work.

    Attributes:
        name, shape, dtype: what it is; the shape of one clip, or (0, width) of one utterance.
        per: what is counted: ``clip`` or ``utterance``.
        device: where it is computed.
        count, count_left: clips or utterances asked for, and lacking.
        bytes, bytes_left: on disk once all is there, and of what is lacking; estimates, and for a text of the longest
            transcript tried.
        seconds_each: measured in the trial, without decoding; None where it was not tried.
        random_weights: its features mean nothing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    per: Unit
    device: str
    count: int
    count_left: int
    bytes: int
    bytes_left: int
    seconds_each: float | None
    random_weights: bool


@dataclass(frozen=True)
class Estimate:
    """What an extraction would take.

    Attributes:
        cache: the cache's folder.
        begun: whether there is a cache already.
        splits, features: what was asked for.
        bytes_left: to be written; an estimate.
        bytes_free: on the disk of the cache.
        seconds: that it would take, by the trial; 0 where nothing is left, None where no trial could be made.
        trial_clips, trial_texts: clips and transcripts of the corpus that the trial computed and timed.
        notes: what a person should know, such as why there was no trial.
    """

    cache: Path
    begun: bool
    splits: tuple[SplitEstimate, ...]
    features: tuple[FeatureEstimate, ...]
    bytes_left: int
    bytes_free: int
    seconds: float | None
    trial_clips: int
    trial_texts: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.bytes_left <= self.bytes_free


def estimate(
    manifest: Manifest,
    cache_dir: str | Path,
    spec: ExtractSpec | None = None,
    split: str | None = None,
    *,
    shard: tuple[int, int] | None = None,
    device: str = "auto",
    batch: int | None = None,
    runtime: str = "auto",
    progress: ProgressCallback = silent,
) -> Estimate:
    """Say what `extract` with the same arguments would take.

    A few utterances drawn evenly from those that are left are decoded and their features computed and timed, after
    one batch to warm up; nothing is written.

    Raises:
        EncoderError: the encoder cannot be loaded.
        CacheMismatchError: the cache was begun with other settings, weights or audio.
        CacheError: an unknown split.
        MfhcaError: a part that is not 1 ≤ k ≤ n.
    """
    check_part(shard)
    spec, folder = spec or ExtractSpec(), Path(cache_dir)
    plan = wanted_plan(manifest, spec)
    check_plan(folder, plan)
    splits = plan.chosen(split)
    names = tuple(item.name for item in splits)
    engine, survey = asked_engine(plan, runtime, batch), Survey(folder, plan, manifest.root)
    features, tools = Agreement(folder, manifest.root, plan, spec, names, device, engine, progress, survey).features()
    asked = shards_of_part(plan, features, names, shard)
    left = [item for item in asked if not survey.is_done(*item)]
    trial, notes = _Trial(), list[str]()
    if any(info.per == "clip" for info, _ in left):
        try:
            root = corpus_root(manifest)
            features, words = _chosen(folder, plan, root, features, tools, left, engine, progress)
            notes += words
            by_name = {info.name: info for info in features}
            asked, left = ([(by_name[info.name], shard) for info, shard in items] for items in (asked, left))
            trial = _try_clips(plan, root, tools, left, progress)
        except ManifestError as error:
            notes.append(f"no time could be measured: {error}")
        if trial.rejected and not trial.clips:
            notes.append(f"no time could be measured: no file tried could be used; the first: {trial.rejected}")
    _try_texts(plan, tools, left, trial)
    found = tuple(_feature(info, asked, left, trial) for info in features)
    inside, lacking = _clips(plan, asked), _clips(plan, left)
    table = plan.utterances
    return Estimate(
        cache=folder,
        begun=(folder / "cache.json").exists(),
        splits=tuple(
            SplitEstimate(
                item.name,
                int((table["split"] == item.name).sum()),
                float(table["seconds"][table["split"] == item.name].sum()),
                int(inside[item.first : item.stop].sum()),
                int(lacking[item.first : item.stop].sum()),
            )
            for item in splits
        ),
        features=found,
        bytes_left=sum(item.bytes_left for item in found),
        bytes_free=free_bytes(folder),
        seconds=_seconds(plan, found, left, trial),
        trial_clips=trial.clips,
        trial_texts=trial.texts,
        notes=tuple(notes),
    )


@dataclass
class _Trial:
    """Seconds that the trial took, each feature's and decoding, over so many clips and transcripts."""

    seconds: dict[str, float] = field(default_factory=dict)
    decoding: float = 0.0
    clips: int = 0
    texts: int = 0
    tokens: int = 0
    rejected: str = ""


def _chosen(
    folder: Path,
    plan: Plan,
    root: Path,
    features: list[FeatureInfo],
    tools: Tools,
    left: list[tuple[FeatureInfo, ShardRange]],
    asked: AskedEngine,
    progress: ProgressCallback,
) -> tuple[list[FeatureInfo], list[str]]:
    """The features with the engine that extraction would begin them with, or goes on with; and notes on it."""
    trial = partial(first_clips, plan, root, left)
    features, notes = choose_engines(folder, features, tools.encoder, tools.spec, trial, asked, progress)
    for info, encoder in ((info, tools.encoder) for info in features if info.kind == "encoder"):
        if encoder is not None and any(of.name == info.name for of, _ in left):
            resume_engine(folder, info, encoder)
            # Nothing is written: what memory does not hold now is no record.
            encoder.portions.lowered = None
    return features, notes


def _try_clips(
    plan: Plan, root: Path, tools: Tools, left: list[tuple[FeatureInfo, ShardRange]], progress: ProgressCallback
) -> _Trial:
    """Time batches of clips of what is left, as extraction would compute them."""
    infos = list({info.name: info for info, _ in left if info.per == "clip"}.values())
    trial = _Trial(dict.fromkeys((info.name for info in infos), 0.0))
    drawn = _batches(plan, root, tools, left, max(info.engine["batch"] for info in infos), trial)
    for number, (took, clips) in enumerate(drawn):
        # The first batch warms up, and counts only where there is no other.
        if number == 1:
            trial = _Trial(dict.fromkeys(trial.seconds, 0.0))
        trial.decoding += took
        trial.clips += len(clips.numbers)
        for info in infos:
            before = time.monotonic()
            compute_feature(info, clips, tools, lambda stage, done: None)
            trial.seconds[info.name] += time.monotonic() - before
        progress(Progress("timing a few clips", number + 1, TRIAL_BATCHES + 1, "batches"))
        if number >= TRIAL_BATCHES or (number and trial.decoding + sum(trial.seconds.values()) > TRIAL_SECONDS):
            break
    return trial


def _try_texts(plan: Plan, tools: Tools, left: list[tuple[FeatureInfo, ShardRange]], trial: _Trial) -> None:
    """Time a few transcripts of what is left, one after the other, and see how long they are."""
    rows = [row for info, shard in left if info.per == "utterance" for row in range(shard.first, shard.stop)]
    if not rows or tools.text_encoder is None:
        return
    (name,) = {info.name for info, _ in left if info.per == "utterance"}
    before = time.monotonic()
    for row in np.random.default_rng(0).permutation(rows)[:TRIAL_TEXTS]:
        found = encode_texts(plan, tools.text_encoder, int(row), int(row) + 1)
        trial.texts += 1
        trial.tokens = max(trial.tokens, int(found.valid.max(initial=0)))
    trial.seconds[name] = time.monotonic() - before


def _batches(
    plan: Plan, root: Path, tools: Tools, left: list[tuple[FeatureInfo, ShardRange]], batch: int, trial: _Trial
) -> Iterator[tuple[float, DecodedClips]]:
    """Seconds of decoding and clips of utterances drawn from what is left, the same ones each time."""
    table = plan.utterances
    wanted = _clips(plan, [item for item in left if item[0].per == "clip"])
    lacking = np.concatenate([[0], np.cumsum(wanted)])
    emphasis = tools.spec.spectrogram.pre_emphasis if tools.spec.spectrogram else 0.0
    first, stop = table["first_clip"].to_numpy(), (table["first_clip"] + table["clips"]).to_numpy()
    rows = np.flatnonzero(lacking[stop] > lacking[first])
    took, parts = 0.0, list[DecodedClips]()
    for row in np.random.default_rng(0).permutation(rows):
        before = time.monotonic()
        clips = decode_clips(plan, root, int(first[row]), int(stop[row]), emphasis)
        took += time.monotonic() - before
        if clips.rejected and not trial.rejected:
            trial.rejected = f"{clips.rejected[0].path}: {clips.rejected[0].reason}"
        if len(clips.numbers):
            parts.append(clips)
        if sum(len(part.numbers) for part in parts) >= batch:
            yield took, _joined(parts)
            took, parts = 0.0, []
    if parts:
        yield took, _joined(parts)


def _joined(parts: list[DecodedClips]) -> DecodedClips:
    return replace(
        parts[0],
        numbers=np.concatenate([part.numbers for part in parts]),
        signal=np.concatenate([part.signal for part in parts]),
        emphasised=np.concatenate([part.emphasised for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
    )


def _clips(plan: Plan, shards: list[tuple[FeatureInfo, ShardRange]]) -> np.ndarray:
    """bool (clips of the plan,): whether one of the shards is about a clip."""
    inside = np.zeros(plan.clips, dtype=bool)
    for info, shard in shards:
        inside[slice(*plan.clips_of(info, shard))] = True
    return inside


def _feature(
    info: FeatureInfo,
    asked: list[tuple[FeatureInfo, ShardRange]],
    left: list[tuple[FeatureInfo, ShardRange]],
    trial: _Trial,
) -> FeatureEstimate:
    mine, lacking = ([shard for of, shard in shards if of.name == info.name] for shards in (asked, left))
    count, count_left = (sum(shard.stop - shard.first for shard in shards) for shards in (mine, lacking))
    tried, each = trial.clips, info.clip_bytes
    if info.per == "utterance":
        # A shard's texts are as long as its longest.
        tried, each = trial.texts, trial.tokens * info.shape[-1] * np.dtype(info.dtype).itemsize
    size, size_left = (
        rows * (each + _ROW_BYTES) + len(shards) * _SHARD_BYTES
        for rows, shards in ((count, mine), (count_left, lacking))
    )
    return FeatureEstimate(
        name=info.name,
        shape=info.shape,
        dtype=info.dtype,
        per=info.per,
        device=str(info.engine["device"]),
        count=count,
        count_left=count_left,
        bytes=size,
        bytes_left=size_left,
        seconds_each=trial.seconds[info.name] / tried if tried and info.name in trial.seconds else None,
        random_weights=info.random_weights,
    )


def _seconds(
    plan: Plan, features: tuple[FeatureEstimate, ...], left: list[tuple[FeatureInfo, ShardRange]], trial: _Trial
) -> float | None:
    """Seconds of everything that is left; None where some of it was not tried."""
    if any(item.count_left and item.seconds_each is None for item in features):
        return None
    computing = sum(item.count_left * (item.seconds_each or 0.0) for item in features)
    decoded = int(_clips(plan, [item for item in left if item[0].per == "clip"]).sum())
    return computing + (decoded * trial.decoding / trial.clips if trial.clips else 0.0)
