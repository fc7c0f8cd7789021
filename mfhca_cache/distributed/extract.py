"""Stage one over a cluster: the missing shards of a cache, dealt out as tasks.

The command plans once: it writes the cache's plan, has one node begin the features, and looks which shards are
missing. A task is a list of them, long enough that loading the encoder hardly counts and short enough that no node
waits long for the last; its shards are committed one by one, so a task that is run again goes on behind them.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mfhca_cache.distributed.cluster import Answer, Cluster, Task, check_shared, join_cluster
from mfhca_cache.errors import CacheError, ClusterError
from mfhca_cache.extraction.agree import check_plan, corpus_root, keep_plan, wanted_plan
from mfhca_cache.extraction.part import Part, runs_of, shards_of_part
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.report import ExtractReport
from mfhca_cache.extraction.work import Survey
from mfhca_cache.extraction.work import Task as Lacking
from mfhca_cache.manifest import Manifest
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import ExtractSpec
from mfhca_cache.storage.commit import shard_receipt
from mfhca_cache.storage.descriptions import read_feature, read_plan
from mfhca_cache.storage.layout import FeatureInfo, Plan
from mfhca_cache.storage.shard import file_sha256

#: Tasks for each place that one can run in: the last ones end at about the same time.
_TASKS_A_SLOT = 4
_LOOK_SECONDS = 2.0
_NAMED = 8


def extract_on_ray(
    manifest: Manifest,
    cache_dir: str | Path,
    spec: ExtractSpec | None = None,
    split: str | None = None,
    *,
    address: str | None = None,
    device: str = "auto",
    progress: ProgressCallback = silent,
    **begin: Any,
) -> ExtractReport:
    """`mfhca_cache.extract` by the nodes of a Ray cluster, which see the corpus and the cache under the same paths.

    Args:
        manifest, cache_dir, spec, split: as there.
        address: ``HOST:PORT`` of the cluster, ``auto``, or None for a cluster of this machine alone.
        device: auto (cuda where the cluster has GPUs), cpu or cuda; a feature begun before keeps its own.
        begin: what else `mfhca_cache.extract` takes for a feature that is begun now, such as ``batch``.
        progress: called about once a second.

    Raises:
        ClusterError: Ray is not installed, there is no such cluster, or a node lacks the corpus or the cache.
        CacheError: shards that are missing when all is done, because their workers died; names them.
        MfhcaError: as `mfhca_cache.extract`.
    """
    started = time.monotonic()
    spec = spec or ExtractSpec()
    folder, root = Path(cache_dir).absolute(), corpus_root(manifest).absolute()
    plan = wanted_plan(manifest, spec)
    check_plan(folder, plan)
    splits = [item.name for item in plan.chosen(split)]
    with join_cluster(address) as cluster:
        where = cluster.device(device)
        # The plan lies there before any task: by it, a node sees that it sees the same cache.
        notes = keep_plan(folder, plan)
        common = {"folder": str(folder), "root": str(root), "seen": file_sha256(folder / "cache.json"), "spec": spec}
        common |= {"split": split, "device": device, "begin": begin}
        features = _begin(cluster, common, where, progress)
        work = _find(folder, plan, features, splits, root)
        if work.lacking:
            lost = _run(cluster, work, common, progress)
            _check_all_there(work, root, lost)
    # Everything is there: nothing is computed here, but checked and counted.
    report = extract(manifest, folder, spec, split)
    return replace(
        report, cache=Path(cache_dir), notes=tuple(dict.fromkeys([*notes, *report.notes])), **_new(work, started)
    )


@dataclass(frozen=True)
class _Work:
    """What is to be done: which of the plan's runs of clips, by number from 1, lack which shards."""

    folder: Path
    plan: Plan
    features: list[FeatureInfo]
    splits: list[str]
    runs: int
    lacking: dict[int, Lacking]
    before: set[str]
    unit: str
    resumed: int


def _begin(cluster: Cluster, common: dict[str, Any], device: str, progress: ProgressCallback) -> list[FeatureInfo]:
    """Have one node load the encoder and begin the features, or agree with what they were begun with."""
    progress(Progress("beginning the features on a node", 0, 0, "clips"))
    task = Task("begin", {**common, "part": ((), 1)})
    answers, lost = cluster.run(build, [task], cpus=1, gpu=device == "cuda")
    if lost:
        raise ClusterError(f"the features could not be begun: {lost['begin']}")
    folder = Path(common["folder"])
    absent = [name for name in answers["begin"]["features"] if not (folder / name / "feature.json").exists()]
    if absent:
        raise ClusterError(
            f"node {answers['begin']['node']} has begun {absent[0]} in {folder}, and node {platform.node()} does not "
            "see it; expected storage that every node has under the same path"
        )
    return [read_feature(folder, name) for name in answers["begin"]["features"]]


def _find(folder: Path, plan: Plan, features: list[FeatureInfo], splits: list[str], root: Path) -> _Work:
    numbers = {run: number for number, run in enumerate(runs_of(plan, features, splits), start=1)}
    found = Survey(folder, plan, root).tasks(shards_of_part(plan, features, splits, None))
    lacking = {numbers[item.per, item.first, item.stop]: item for item in found}
    per = "clip" if any(item.per == "clip" for item in found) else "utterance"
    every = {n for unit, first, stop in numbers if unit == per for n in range(first, stop)}
    resumed = len(every) - len({n for item in found if item.per == per for n in range(item.first, item.stop)})
    return _Work(folder, plan, features, splits, len(numbers), lacking, _names(folder, features), per + "s", resumed)


def _run(cluster: Cluster, work: _Work, common: dict[str, Any], progress: ProgressCallback) -> dict[str, str]:
    """Run the tasks; the names of those whose workers died too often, and why."""
    needed = {info.name for item in work.lacking.values() for info, _ in item.shards}
    engines = [info.engine for info in work.features if info.name in needed]
    gpu = any(engine["device"] == "cuda" for engine in engines)
    if gpu:
        cluster.device("cuda")
    cpus = cluster.cpus_of_task(max(int(engine["threads"]) for engine in engines), gpu)
    ks = sorted(work.lacking)
    count = min(len(ks), _TASKS_A_SLOT * cluster.slots(cpus, gpu))
    # Neighbours go to different tasks: clips of one session are of like cost.
    lists = {_called(work, ks[k::count]): tuple(ks[k::count]) for k in range(count)}
    tasks = [Task(name, {**common, "part": (some, work.runs)}) for name, some in lists.items()]
    looked = [0.0]

    def tell(answers: dict[str, Answer]) -> None:
        if time.monotonic() - looked[0] < _LOOK_SECONDS and len(answers) < len(tasks):
            return
        looked[0] = time.monotonic()
        done = {k for name in answers for k in lists[name]} | _committed(work)
        counted = {k: item.stop - item.first for k, item in work.lacking.items() if f"{item.per}s" == work.unit}
        total = work.resumed + sum(counted.values())
        clips = work.resumed + sum(counted[k] for k in done & set(counted))
        detail = f"{len(done):,} of {len(ks):,} runs of clips"
        progress(Progress("extracting on Ray", clips, total, work.unit, work.resumed, detail=detail))

    _, lost = cluster.run(build, tasks, cpus=cpus, gpu=gpu, tell=tell)
    return lost


def _called(work: _Work, ks: list[int]) -> str:
    """``spectrogram/session1-0000 … session5-0001``, for messages."""
    first, last = (work.lacking[k].shards[0] for k in (ks[0], ks[-1]))
    return f"{first[0].name}/{first[1].name}" + (f" … {last[1].name}" if len(ks) > 1 else "")


def _names(folder: Path, features: list[FeatureInfo]) -> set[str]:
    """``feature/shard`` of every receipt, by one listing a folder: asking for each file would load a shared disk."""
    return {
        f"{info.name}/{name.removesuffix('.json')}"
        for info in features
        for name in os.listdir(folder / info.name)  # noqa: PTH208
        if name.endswith(".json")
    }


def _committed(work: _Work) -> set[int]:
    """The numbers of the runs whose receipts have come since; for progress only."""
    new = _names(work.folder, work.features) - work.before
    return {k for k, item in work.lacking.items() if all(f"{info.name}/{s.name}" in new for info, s in item.shards)}


def _check_all_there(work: _Work, root: Path, lost: dict[str, str]) -> None:
    """The last look, at the storage itself.

    Raises:
        CacheError: what is missing, by name.
    """
    _names(work.folder, work.features)  # Makes a network file system look again.
    left = Survey(work.folder, work.plan, root).tasks(shards_of_part(work.plan, work.features, work.splits, None))
    names = [f"{info.name}/{shard.name}" for item in left for info, shard in item.shards]
    if not names:
        return
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    reason = (
        f"a worker died again and again ({next(iter(lost.values()))})" if lost else "none of their audio can be read"
    )
    raise CacheError(
        f"{work.folder}: {len(names):,} shard(s) are still missing: {shown}: {reason}. What is there is kept; the same "
        "command goes on from there"
    )


def _new(work: _Work, started: float) -> dict[str, Any]:
    """What has come since, by the receipts: a task that was run again counts once."""
    clips = texts = shards = written = 0
    for item in work.lacking.values():
        receipts = [shard_receipt(work.folder, work.plan, info, shard) for info, shard in item.shards]
        written += sum(receipt.size for receipt in receipts if receipt)
        shards += len(receipts)
        rows = max((receipt.shape[0] for receipt in receipts if receipt), default=0)
        clips, texts = (clips + rows, texts) if item.per == "clip" else (clips, texts + item.stop - item.first)
    seconds = time.monotonic() - started
    return {"new_clips": clips, "new_texts": texts, "new_shards": shards, "bytes_written": written, "seconds": seconds}


def build(
    folder: str,
    root: str,
    seen: str,
    spec: ExtractSpec,
    split: str | None,
    device: str,
    begin: dict[str, Any],
    part: Part,
) -> Answer:
    """On a node: build the runs of clips that ``part`` names, or only begin the features.

    Args:
        folder, root: of the cache and of the corpus.
        seen: SHA-256 of the cache's cache.json as the command sees it.

    Raises:
        ClusterError: this node does not see them.
    """
    check_shared(Path(folder) / "cache.json", seen)
    if not Path(root).is_dir():
        raise ClusterError(
            f"node {platform.node()}: the corpus folder {root} is not there; corpora must lie on storage that every "
            "node has under the same path"
        )
    report = extract(_manifest(folder, root, seen), folder, spec, split, shard=part, device=device, jobs=1, **begin)
    return {"features": list(report.features), "shards": report.new_shards, "node": platform.node()}


@lru_cache(maxsize=1)
def _manifest(folder: str, root: str, seen: str) -> Manifest:
    """The rows that the cache was planned from, read once by a node's process."""
    plan = read_plan(Path(folder))
    return Manifest(plan.corpus, Path(root), plan.utterances.drop(columns=["split", "clips", "first_clip"]))
