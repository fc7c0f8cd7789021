"""Stage one from end to end: a manifest and settings in, committed shards out.

Shard by shard: decode the audio, cut clips, compute what is missing, publish. A run that is killed loses the shard
that it was building; the next run goes on behind the last one that was committed. Several runs may work on one cache:
each takes shards that no other holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from mfhca_cache.extraction.build import decode_clips, publish_features
from mfhca_cache.extraction.encoder import RANDOM_TINY, Encoder, load_encoder, local_folder
from mfhca_cache.extraction.work import (
    SPECTROGRAM,
    Task,
    begun_feature,
    encoder_feature,
    find_tasks,
    is_done,
    is_source,
    mended,
    new_engine,
    spectrogram_feature,
)
from mfhca_cache.manifest import Manifest, Rejected
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.commit import settle
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Split
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
        new_shards: shards that this run published, over all features.
        bytes_written: by this run.
        seconds: that it took.
        notes: what a person should know, such as corrected labels.
    """

    cache: Path
    features: tuple[str, ...]
    splits: tuple[str, ...]
    utterances: int
    rejected: tuple[Rejected, ...]
    clips: int
    new_clips: int
    new_shards: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()

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
        device: auto, cpu or cuda; a feature begun before keeps its own.
        batch: clips an encoder call, for a feature that is begun now.
        progress: called after each batch.

    Raises:
        ManifestError: the root is unknown or gone.
        EncoderError: the encoder cannot be loaded.
        CacheMismatchError: the cache was begun with other settings, weights or audio; nothing is changed.
        CacheError: an unknown split, a full disk, or a value that float16 cannot hold.
    """
    started = time.monotonic()
    spec = spec or ExtractSpec()
    folder = Path(cache_dir)
    plan = wanted_plan(manifest, spec)
    check_plan(folder, plan)
    splits = plan.chosen(split)
    features, encoder = _agreed_features(folder, manifest.root, plan, spec, splits, device, batch, progress)
    retry = mended(folder, plan, features, manifest.root)
    run = _Run(folder, plan, spec, encoder, retry, progress, total=sum(s.stop - s.first for s in splits))
    # Nothing is written before everything that can be asked for wrongly has been agreed on.
    tasks = find_tasks(folder, plan, features, splits, retry)
    if tasks:
        run.root = corpus_root(manifest)
    notes = keep_plan(folder, plan)
    if tasks:
        features = [begin_feature(folder, info) for info in features]
        run.work(find_tasks(folder, plan, features, splits, retry))
    return _report(run, features, splits, time.monotonic() - started, notes)


@dataclass
class _Run:
    """What one run carries from shard to shard."""

    folder: Path
    plan: Plan
    spec: ExtractSpec
    encoder: Encoder | None
    retry: set[str]
    progress: ProgressCallback
    total: int
    root: Path = Path()
    done: int = 0
    resumed: int = 0
    new_clips: int = 0
    new_shards: int = 0
    bytes_written: int = 0

    def work(self, tasks: list[Task]) -> None:
        """Build every task's shards; those that another run holds, after it has let go of them."""
        self.done = self.resumed = self.total - sum(task.stop - task.first for task in tasks)
        for patient in (False, True):
            tasks = [left for task in tasks if (left := self._build(task, patient)) is not None]

    def _build(self, task: Task, patient: bool) -> Task | None:
        """Build what no other run holds of a task; what is left of it, or None."""
        with _taken(self.folder, task, patient) as taken:
            # Another run may have published some of them between the search and the lock.
            todo = tuple(item for item in taken if not is_done(self.folder, self.plan, *item, self.retry))
            if todo:
                self._publish(Task(task.first, task.stop, todo))
            held = tuple(item for item in task.shards if item not in taken)
        if held:
            return Task(task.first, task.stop, held)
        self.done += task.stop - task.first
        return None

    def _publish(self, task: Task) -> None:
        self._tell("decoding", 0)
        clips = decode_clips(self.plan, self.root, task.first, task.stop, self.spec.spectrogram.pre_emphasis)
        if clips.unreachable:
            return
        self.bytes_written += publish_features(
            self.folder,
            task,
            clips,
            spectrogram=self.spec.spectrogram,
            pad=self.plan.clip.pad,
            encoder=self.encoder,
            tell=self._tell,
        )
        self.new_clips += len(clips.numbers)
        self.new_shards += len(task.shards)

    def _tell(self, stage: str, clips: int) -> None:
        self.progress(Progress(stage, self.done + clips, self.total, "clips", self.resumed, self.bytes_written))


def _agreed_features(
    folder: Path,
    root: Path | None,
    plan: Plan,
    spec: ExtractSpec,
    splits: tuple[Split, ...],
    device: str,
    batch: int | None,
    progress: ProgressCallback,
) -> tuple[list[FeatureInfo], Encoder | None]:
    """The features asked for, as they were or will be begun, and the encoder unless it has nothing to do."""

    def whole(name: str) -> FeatureInfo | None:
        """The feature if it was begun and lacks nothing: then neither its device nor its encoder is needed."""
        begun = begun_feature(folder, name)
        if begun and not find_tasks(folder, plan, [begun], splits, mended(folder, plan, [begun], root)):
            return begun
        return None

    done = whole(SPECTROGRAM)
    engine = done.engine if done else new_engine(agreed_device(folder, SPECTROGRAM, device), batch)
    features = [agreed_feature(folder, spectrogram_feature(spec, engine))]
    if spec.encoder is None:
        return features, None
    done = whole(spec.encoder.feature)
    # A hub's checkpoint does not change under its commit. A folder's may, so its weights are looked at every time.
    from_hub = spec.encoder.name != RANDOM_TINY and not local_folder(spec.encoder.name)
    if done and from_hub and is_source(done, spec.encoder):
        return [*features, done], None
    engine = done.engine if done else new_engine(agreed_device(folder, spec.encoder.feature, device), batch)
    progress(Progress(f"loading {spec.encoder.name}", 0, 0, "clips"))
    encoder = load_encoder(spec.encoder, "cpu" if done else engine["device"])
    features.append(agreed_feature(folder, encoder_feature(spec, encoder, engine)))
    return features, encoder


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


def _report(
    run: _Run, features: list[FeatureInfo], splits: tuple[Split, ...], seconds: float, notes: list[str]
) -> ExtractReport:
    cache = open_cache(run.folder)
    names = tuple(info.name for info in features)
    table = run.plan.utterances
    asked_splits = [split.name for split in splits]
    asked = table[table["split"].isin(asked_splits)]
    begun = all(name in cache.features for name in names)
    there = set(cache.available(names, asked_splits)) if begun else set()
    reasons = cache.rejected(names) if begun else {}
    unread = "missing: none of its shard's files can be read"
    return ExtractReport(
        cache=run.folder,
        features=names,
        splits=tuple(asked_splits),
        utterances=len(asked),
        rejected=tuple(Rejected(i, reasons.get(i, unread)) for i in asked["utterance_id"] if i not in there),
        clips=int(asked["clips"][asked["utterance_id"].isin(there)].sum()),
        new_clips=run.new_clips,
        new_shards=run.new_shards,
        bytes_written=run.bytes_written,
        seconds=seconds,
        notes=tuple(notes),
    )
