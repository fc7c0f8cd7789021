"""Stage one from end to end: a manifest and settings in, committed shards out.

Shard by shard: decode the audio, cut clips, compute what is missing, publish. A run that is killed loses the shard
that it was building; the next run goes on behind the last one that was committed. Several runs may work on one cache:
each takes shards that no other holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mfhca_cache.extraction.agree import (
    agreed_device,
    agreed_feature,
    agreed_runtime,
    begin_feature,
    check_plan,
    corpus_root,
    keep_plan,
    wanted_plan,
)
from mfhca_cache.extraction.build import Tools
from mfhca_cache.extraction.checkpoint import RANDOM_TINY, local_folder
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.engine import AskedEngine, asked_engine, choose_engines, first_clips, resume_engine
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
from mfhca_cache.extraction.processes import Crew, check_jobs, jobs_of
from mfhca_cache.extraction.report import ExtractReport, report_of
from mfhca_cache.extraction.run import Run
from mfhca_cache.extraction.text import load_text_encoder
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import Manifest
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.layout import FeatureInfo, Plan


def extract(
    manifest: Manifest,
    cache_dir: str | Path,
    spec: ExtractSpec | None = None,
    split: str | None = None,
    *,
    shard: Part | None = None,
    device: str = "auto",
    batch: int | None = None,
    runtime: str = "auto",
    jobs: int | None = None,
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
        batch: clips an encoder call, for a feature that is begun now; None for what a short trial finds.
        runtime: what runs the encoder: auto, torch, onednn, openvino or cuda-graph; a feature begun before keeps its
            own.
        jobs: processes that share the work, this one among them; None for one a GPU, and one on a CPU.
        progress: called after each batch, with what all processes have done.

    Raises:
        ManifestError: the root is unknown or gone.
        EncoderError: the encoder cannot be loaded.
        CacheMismatchError: the cache was begun with other settings, weights or audio; nothing is changed.
        CacheError: an unknown split, a full disk, or a value that float16 cannot hold.
        MfhcaError: a part that is not 1 ≤ k ≤ n.
    """
    check_part(shard)
    check_jobs(jobs)
    started = time.monotonic()
    spec = spec or ExtractSpec()
    folder = Path(cache_dir)
    plan = wanted_plan(manifest, spec)
    check_plan(folder, plan)
    splits = plan.chosen(split)
    names = tuple(item.name for item in splits)
    survey, engine = Survey(folder, plan, manifest.root), asked_engine(plan, runtime, batch)
    asked = Agreement(folder, manifest.root, plan, spec, names, device, engine, progress, survey, jobs or 1)
    features, tools = asked.features()
    covered = shards_of_part(plan, features, names, shard)
    run = Run(folder, plan, tools, progress)
    # Nothing is written before everything that can be asked for wrongly has been agreed on.
    tasks = survey.tasks(covered)
    if any(task.per == "clip" for task in tasks):
        run.root = corpus_root(manifest)
    notes = keep_plan(folder, plan)
    if tasks or any(begun_feature(folder, info.name) is None for info in features):
        trial = partial(first_clips, plan, run.root, [item for task in tasks for item in task.shards])
        features, words = choose_engines(folder, features, tools.encoder, spec, trial, engine, progress)
        notes += words
        features = [begin_feature(folder, info) for info in features]
        covered = shards_of_part(plan, features, names, shard)
        tasks = survey.tasks(covered)
    for info in features:
        if info.kind == "encoder" and tools.encoder is not None and tasks:
            resume_engine(folder, info, tools.encoder)
    run.retry = survey.mended(covered)
    arguments = {"manifest": manifest, "cache_dir": folder.absolute(), "spec": spec, "split": split, "shard": shard}
    arguments |= {"device": device, "batch": batch, "runtime": runtime}
    with Crew(jobs_of(jobs, tasks) - 1, arguments) as run.crew:
        for per in ("clip", "utterance"):
            total = len({n for info, item in covered if info.per == per for n in range(item.first, item.stop)})
            run.work([task for task in tasks if task.per == per], total)
        notes += run.finish()
    if tools.encoder is not None and (most := tools.encoder.portions.most):
        notes.append(f"memory ended, and the encoder went on with {most} clips a call; the cache records that")
    survey.forget(item for task in tasks for item in task.shards)
    return replace(
        report_of(run, survey, covered, notes),
        features=tuple(info.name for info in features),
        splits=names,
        shard=shard,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Agreement:
    """What is asked for, to be held against what the cache was begun with."""

    folder: Path
    root: Path | None
    plan: Plan
    spec: ExtractSpec
    splits: tuple[str, ...]
    device: str
    asked: AskedEngine
    progress: ProgressCallback
    survey: Survey
    jobs: int = 1

    def features(self) -> tuple[list[FeatureInfo], Tools]:
        """The features asked for, as they were or will be begun, and what computes them."""
        spec, found = self.spec, list[FeatureInfo]()
        for name, kind in acoustic_features(spec).items():
            engine, _ = self._engine(name)
            found.append(agreed_feature(self.folder, acoustic_feature(spec, kind, engine)))
        encoder = text_encoder = None
        if (asked := spec.encoder) is not None and not self._settled(asked, found):
            engine, device = self._engine(asked.feature, asked)
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

    def _engine(self, name: str, encoder: EncoderSpec | None = None) -> tuple[dict[str, Any], str]:
        """The engine of a feature, and where its encoder is loaded: on the CPU if there is nothing left to compute."""
        if done := self._whole(name):
            return done.engine, "cpu"
        device = agreed_device(self.folder, name, self.device)
        if encoder is not None:
            agreed_runtime(self.folder, encoder, device, self.asked.runtime)
        engine = new_engine(device, self.asked.batch, encoder.precision if encoder else "fp32")
        if device == "cpu":
            engine["threads"] = max(1, engine["threads"] // self.jobs)
        return engine, device

    def _whole(self, name: str) -> FeatureInfo | None:
        """The feature if it was begun and lacks nothing: then neither its device nor its encoder is needed."""
        begun = begun_feature(self.folder, name)
        if begun is None:
            return None
        return None if self.survey.tasks((begun, item) for item in self.plan.shards(begun, self.splits)) else begun
