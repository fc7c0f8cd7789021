"""Stage one from end to end: a manifest and settings in, committed shards out.

Shard by shard: decode the audio, cut clips, compute what is missing, publish. A run that is killed loses the shard
that it was building; the next run goes on behind the last one that was committed. Several runs may work on one cache:
each takes shards that no other holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from mfhca_cache.extraction.agree import (
    agreed_device,
    agreed_feature,
    begin_feature,
    check_plan,
    corpus_root,
    keep_plan,
    wanted_plan,
)
from mfhca_cache.extraction.build import Tools, decode_clips, publish_features, publish_texts
from mfhca_cache.extraction.checkpoint import RANDOM_TINY, local_folder
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.features import (
    acoustic_feature,
    acoustic_features,
    begun_feature,
    encoder_feature,
    is_source,
    new_engine,
    text_feature,
)
from mfhca_cache.extraction.part import Part, check_part, shards_of_part
from mfhca_cache.extraction.text import load_text_encoder
from mfhca_cache.extraction.work import Task, find_tasks, is_done, mended
from mfhca_cache.manifest import Manifest, Rejected
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.commit import settle, shard_receipt
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.publish import CacheLock, lock


@dataclass(frozen=True)
class ExtractReport:
    """What a run of `extract` did, and what lies in the cache now.

    Attributes:
        cache: the cache's folder.
        features: names of the features asked for.
        splits: names of the splits asked for.
        utterances: rows of those splits; ok + rejected.
        rejected: utterances that hold no clips, with the reason.
        clips: clips of those splits that lie in the cache now.
        new_clips: clips that this run computed.
        new_texts: utterances whose transcripts this run encoded.
        new_shards: shards that this run published, over all features.
        bytes_written: by this run.
        seconds: that it took.
        notes: what a person should know, such as corrected labels.
        shard: k (or several) and n where this run was part k of n; all the counts are then of that part.
        covered: the shards that it answers for, as ``feature/shard``.
    """

    cache: Path
    features: tuple[str, ...]
    splits: tuple[str, ...]
    utterances: int
    rejected: tuple[Rejected, ...]
    clips: int
    new_clips: int
    new_texts: int
    new_shards: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()
    shard: Part | None = None
    covered: tuple[str, ...] = ()

    @property
    def ok(self) -> int:
        """Utterances whose clips are in the cache."""
        return self.utterances - len(self.rejected)


def extract(
    manifest: Manifest,
    cache_dir: str | Path,
    spec: ExtractSpec | None = None,
    split: str | None = None,
    *,
    shard: Part | None = None,
    device: str = "auto",
    batch: int | None = None,
    progress: ProgressCallback = silent,
) -> ExtractReport:
    """Extract what is missing of a corpus's features into its cache.

    Args:
        manifest: the corpus; its root must be known and there.
        cache_dir: the cache's own folder, made where there is none.
        spec: what to extract; by default the spectrogram and HuBERT-base.
        split: a session, or ``all``; None for all.
        shard: (k, n) for part k of n of those splits, dealt out shard by shard, or ((k, …), n) for several, or for
            none: then the cache is begun and nothing built; None for everything.
        device: auto, cpu or cuda; a feature begun before keeps its own.
        batch: clips an encoder call, for a feature that is begun now.
        progress: called after each batch.

    Raises:
        ManifestError: the root is unknown or gone.
        EncoderError: the encoder cannot be loaded.
        CacheMismatchError: the cache was begun with other settings, weights or audio; nothing is changed.
        CacheError: an unknown split, a full disk, or a value that float16 cannot hold.
        MfhcaError: a part that is not 1 ≤ k ≤ n.
    """
    check_part(shard)
    started = time.monotonic()
    spec = spec or ExtractSpec()
    folder = Path(cache_dir)
    plan = wanted_plan(manifest, spec)
    check_plan(folder, plan)
    splits = tuple(item.name for item in plan.chosen(split))
    features, tools = Agreement(folder, manifest.root, plan, spec, splits, device, batch, progress).features()
    retry = mended(folder, plan, features, manifest.root)
    run = _Run(folder, plan, tools, retry, progress)
    covered = shards_of_part(plan, features, splits, shard)
    # Nothing is written before everything that can be asked for wrongly has been agreed on.
    tasks = run.tasks(covered)
    if any(task.per == "clip" for task in tasks):
        run.root = corpus_root(manifest)
    notes = keep_plan(folder, plan)
    if tasks or any(begun_feature(folder, info.name) is None for info in features):
        features = [begin_feature(folder, info) for info in features]
        covered = shards_of_part(plan, features, splits, shard)
        tasks = run.tasks(covered)
    for per in ("clip", "utterance"):
        total = len({n for info, item in covered if info.per == per for n in range(item.first, item.stop)})
        run.work([task for task in tasks if task.per == per], total)
    return replace(
        _report(run, covered, notes),
        features=tuple(info.name for info in features),
        splits=splits,
        shard=shard,
        seconds=time.monotonic() - started,
    )


@dataclass
class _Run:
    """What one run carries from shard to shard."""

    folder: Path
    plan: Plan
    tools: Tools
    retry: set[str]
    progress: ProgressCallback
    root: Path = Path()
    unit: str = "clips"
    total: int = 0
    done: int = 0
    resumed: int = 0
    new_clips: int = 0
    new_texts: int = 0
    new_shards: int = 0
    bytes_written: int = 0

    def tasks(self, covered: list[tuple[FeatureInfo, ShardRange]]) -> list[Task]:
        """What is lacking of the shards that this run answers for."""
        features = list({info.name: info for info, _ in covered}.values())
        splits = {shard.split for _, shard in covered}
        mine = {(info.per, shard.first, shard.stop) for info, shard in covered}
        found = find_tasks(self.folder, self.plan, features, splits, self.retry)
        return [task for task in found if (task.per, task.first, task.stop) in mine]

    def work(self, tasks: list[Task], total: int) -> None:
        """Build every task's shards; those that another run holds, after it has let go of them.

        Args:
            tasks: all of clips, or all of utterances.
            total: clips or utterances that the run answers for.
        """
        self.unit = f"{tasks[0].per}s" if tasks else ""
        self.done = self.resumed = total - len({n for task in tasks for n in range(task.first, task.stop)})
        # Features whose shards differ in length go over the same clips at different times.
        self.total = self.resumed + sum(task.stop - task.first for task in tasks)
        for patient in (False, True):
            tasks = [left for task in tasks if (left := self._build(task, patient)) is not None]

    def _build(self, task: Task, patient: bool) -> Task | None:
        """Build what no other run holds of a task; what is left of it, or None."""
        with _taken(self.folder, task, patient) as taken:
            # Another run may have published some of them between the search and the lock.
            todo = tuple(item for item in taken if not is_done(self.folder, self.plan, *item, self.retry))
            if todo:
                self._publish(replace(task, shards=todo))
            held = tuple(item for item in task.shards if item not in taken)
        if held:
            return replace(task, shards=held)
        self.done += task.stop - task.first
        return None

    def _publish(self, task: Task) -> None:
        if task.per == "utterance":
            if self.tools.text_encoder is not None:
                encoder = self.tools.text_encoder
                self.bytes_written += publish_texts(self.folder, self.plan, task, encoder, self._tell)
                self.new_texts += task.stop - task.first
                self.new_shards += len(task.shards)
            return
        self._tell("decoding", 0)
        spectrogram = self.tools.spec.spectrogram
        emphasis = spectrogram.pre_emphasis if spectrogram else 0.0
        clips = decode_clips(self.plan, self.root, task.first, task.stop, emphasis)
        if clips.unreachable:
            return
        self.bytes_written += publish_features(self.folder, task, clips, self.tools, self._tell)
        self.new_clips += len(clips.numbers)
        self.new_shards += len(task.shards)

    def _tell(self, stage: str, done: int) -> None:
        self.progress(Progress(stage, self.done + done, self.total, self.unit, self.resumed, self.bytes_written))


@dataclass(frozen=True)
class Agreement:
    """What is asked for, to be held against what the cache was begun with."""

    folder: Path
    root: Path | None
    plan: Plan
    spec: ExtractSpec
    splits: tuple[str, ...]
    device: str
    batch: int | None
    progress: ProgressCallback

    def features(self) -> tuple[list[FeatureInfo], Tools]:
        """The features asked for, as they were or will be begun, and what computes them."""
        spec, found = self.spec, list[FeatureInfo]()
        for name, kind in acoustic_features(spec).items():
            engine, _ = self._engine(name)
            found.append(agreed_feature(self.folder, acoustic_feature(spec, kind, engine)))
        encoder = text_encoder = None
        if (asked := spec.encoder) is not None and not self._settled(asked, found):
            engine, device = self._engine(asked.feature)
            encoder = load_encoder(asked, device)
            found.append(agreed_feature(self.folder, encoder_feature(spec, asked, encoder, engine)))
        if (asked := spec.text_encoder) is not None and not self._settled(asked, found):
            engine, device = self._engine(asked.feature)
            text_encoder = load_text_encoder(asked, device)
            found.append(agreed_feature(self.folder, text_feature(spec, asked, text_encoder, engine)))
        return found, Tools(spec, encoder, text_encoder)

    def _settled(self, asked: EncoderSpec, found: list[FeatureInfo]) -> bool:
        """Take a feature as it is, without loading its encoder, if it is whole and its checkpoint cannot change."""
        done = self._whole(asked.feature)
        # A hub's checkpoint does not change under its commit. A folder's may, so its weights are looked at every time.
        from_hub = asked.name != RANDOM_TINY and not local_folder(asked.name)
        if done and from_hub and is_source(done, asked) and done.dtype == self.spec.dtype:
            found.append(done)
            return True
        self.progress(Progress(f"loading {asked.name}", 0, 0, "clips"))
        return False

    def _engine(self, name: str) -> tuple[dict[str, Any], str]:
        """The engine of a feature, and where its encoder is loaded: on the CPU if there is nothing left to compute."""
        if done := self._whole(name):
            return done.engine, "cpu"
        device = agreed_device(self.folder, name, self.device)
        return new_engine(device, self.batch), device

    def _whole(self, name: str) -> FeatureInfo | None:
        """The feature if it was begun and lacks nothing: then neither its device nor its encoder is needed."""
        begun = begun_feature(self.folder, name)
        if begun is None:
            return None
        retry = mended(self.folder, self.plan, [begun], self.root)
        return None if find_tasks(self.folder, self.plan, [begun], self.splits, retry) else begun


@contextlib.contextmanager
def _taken(folder: Path, task: Task, patient: bool) -> Iterator[list[tuple[FeatureInfo, ShardRange]]]:
    """Lock those of a task's shards that no other run holds (or all of them, waiting), and clear leftovers."""
    taken: list[tuple[FeatureInfo, ShardRange]] = []
    locks: list[CacheLock] = []
    try:
        for info, shard in task.shards:
            guard = lock(folder, f"{info.name}.{shard.name}")
            with contextlib.suppress(Timeout):
                guard.acquire(timeout=-1 if patient else 0)
                locks.append(guard)
                taken.append((info, shard))
                settle(folder / info.name, shard.name)
        yield taken
    finally:
        for guard in locks:
            guard.release()


def _report(run: _Run, covered: list[tuple[FeatureInfo, ShardRange]], notes: list[str]) -> ExtractReport:
    """What the covered shards hold now, and what the run did."""
    plan, table = run.plan, run.plan.utterances
    inside = np.zeros(plan.clips + 1, dtype=np.int64)
    reasons: dict[str, str] = {}
    wordless: dict[str, str] = {}
    of_clips = any(info.per == "clip" for info, _ in covered)
    for info, shard in covered:
        # Without a transcript an utterance still has its clips, and these alone are counted where there are any.
        aside = info.per == "utterance" and of_clips
        lost = wordless if aside else reasons
        first, stop = plan.clips_of(info, shard)
        inside[first + 1 : stop + 1] |= not aside
        receipt = shard_receipt(run.folder, plan, info, shard)
        if receipt is None:
            ids = plan.sources(info, shard)
            lost |= dict.fromkeys(set(ids) - set(lost), "missing: none of its shard's files can be read")
        else:
            lost |= {item.path: item.reason for item in receipt.rejected}
    if wordless:
        example = f"such as {min(wordless)} ({wordless[min(wordless)]})"
        notes = [*notes, f"{len(wordless)} utterance(s) have no features of their text, {example}"]
    # An utterance may lie in two parts: each counts the clips that are its own.
    before = np.cumsum(inside)
    clips = before[(table["first_clip"] + table["clips"]).to_numpy()] - before[table["first_clip"].to_numpy()]
    asked = table["utterance_id"][clips > 0]
    return ExtractReport(
        cache=run.folder,
        features=(),
        splits=(),
        utterances=len(asked),
        rejected=tuple(Rejected(name, reasons[name]) for name in asked if name in reasons),
        clips=int(clips[(~table["utterance_id"].isin(list(reasons))).to_numpy()].sum()),
        new_clips=run.new_clips,
        new_texts=run.new_texts,
        new_shards=run.new_shards,
        bytes_written=run.bytes_written,
        seconds=0.0,
        notes=tuple(notes),
        covered=tuple(f"{info.name}/{shard.name}" for info, shard in covered),
    )
