"""What grows with a corpus beside its features: the table, the plan, and a receipt a shard, up to ten million clips.

A cache is made of that many clips, with receipts as long as real ones and features of one number a clip. Then each step
is done once and timed, with the most memory that the process held while it was done (Linux; the table that the steps
before it have loaded is counted in).

    python benchmarks/metadata.py [--clips 100000] [--json FILE]
    python benchmarks/metadata.py --clips 10000000 --folder DIR     # about 5 GB of files, and minutes to make
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from made_table import made_table
from measure import machine
from rich.console import Console
from rich.table import Table

from mfhca_cache.extraction.agree import check_plan
from mfhca_cache.extraction.part import shards_of_part
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import make_manifest
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.descriptions import write_feature, write_plan
from mfhca_cache.storage.inventory import list_cache
from mfhca_cache.storage.layout import FeatureInfo, Plan, make_plan
from mfhca_cache.storage.shard import encode_shard

FEATURE = FeatureInfo(
    "pooled", "encoder", {"name": "noise", "pool": "mean"}, (1,), "float16", 512,
    {"name": "torch", "device": "cpu", "precision": "float32", "threads": 1, "batch": 8}, {},
)  # fmt: skip
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Step:
    """A step: seconds it took, of them on a processor, and GiB of memory at most (None where no system says)."""

    name: str
    seconds: float
    cpu_seconds: float
    gib: float | None


class Steps:
    """Does steps, and notes what each took."""

    def __init__(self) -> None:
        self.done: list[Step] = []

    def do(self, name: str, step: Callable[[], Any]) -> Any:
        """Do one; what it returns."""
        gc.collect()
        if _PROCESS.exists():
            (_PROCESS / "clear_refs").write_text("5")  # the high-water mark starts anew
        before, cpu = time.perf_counter(), time.process_time()
        value = step()
        took = Step(name, time.perf_counter() - before, time.process_time() - cpu, _most_memory())
        self.done.append(took)
        print(f"  {took.name}: {took.seconds:,.2f} s", flush=True)
        return value


def _most_memory() -> float | None:
    if not _PROCESS.exists():
        return None
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


def write_shards(folder: Path, plan: Plan) -> int:
    """Every shard and its receipt, without flushing them to the disk; how many."""
    write_feature(folder, FEATURE)
    shards = plan.shards(FEATURE)
    versions = {"mfhca-cache": "0.0", "torch": "0.0", "transformers": "0.0", "librosa": "0.0", "h5py": "0.0"}
    for shard in shards:
        count = shard.stop - shard.first
        content, receipt = encode_shard(
            np.zeros((count, 1), dtype=np.float16),
            np.arange(shard.first, shard.stop),
            np.ones(count),
            name=shard.name,
            fingerprint=FEATURE.fingerprint,
            extent=(shard.first, shard.stop),
            audio=plan.audio(shard.first, shard.stop),
            rejected=(),
            versions=versions,
        )
        (folder / FEATURE.name / f"{shard.name}.h5").write_bytes(content)
        text = json.dumps(receipt.to_json(), indent=2, ensure_ascii=False) + "\n"
        (folder / FEATURE.name / f"{shard.name}.json").write_text(text, encoding="utf-8")
    return len(shards)


def begin(folder: Path, rows: pd.DataFrame, steps: Steps) -> int:
    """Make a cache of the rows, with all that an extraction does before its first clip; its shards."""
    manifest = steps.do("check the manifest's rows", lambda: make_manifest("table", None, rows))
    plan = steps.do("make_plan", lambda: make_plan("table", manifest.utterances, ClipSpec(), "all"))
    steps.do("identity", plan.identity)
    folder.mkdir(parents=True)
    steps.do("write the plan (once a cache)", lambda: write_plan(folder, plan))
    steps.do("plan.audio of every shard", lambda: [len(plan.audio(s.first, s.stop)) for s in plan.shards(FEATURE)])
    shards = write_shards(folder, plan)
    steps.do("check_plan (an extraction begins)", lambda: check_plan(folder, plan))
    splits = [split.name for split in plan.splits]
    asked = shards_of_part(plan, [FEATURE], splits, None)
    left = steps.do("find what is left to extract", lambda: Survey(folder, plan).tasks(asked))
    if left:
        raise SystemExit(f"{len(left)} shards are said to be missing")
    return shards


def use(folder: Path, steps: Steps) -> None:
    """Open the cache, and ask it what there is."""
    cache: Cache = steps.do("open_cache", lambda: open_cache(folder))
    if len(steps.do("available", lambda: cache.available([FEATURE.name]))) != len(cache.plan.utterances):
        raise SystemExit("not all utterances are there")
    steps.do("available, once more", lambda: cache.available([FEATURE.name]))
    steps.do("clip_table", lambda: cache.clip_table([FEATURE.name]))
    wanted = np.random.default_rng(0).integers(0, cache.plan.clips, 32)
    out = np.empty((32, 1), dtype=np.float16)
    steps.do("read 32 clips", lambda: cache.copy_clips(FEATURE.name, wanted, out))


def look(folder: Path, steps: Steps) -> None:
    """List and verify it."""
    steps.do("list (mfhca cache ls)", lambda: list_cache(folder))
    faults = steps.do("verify, shallow", lambda: check_cache(folder).faults)
    if faults:
        raise SystemExit(f"{len(faults)} faults: {faults[0]}")


def main() -> None:
    """Make, measure, show."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=100_000)
    options.add_argument("--utterances", type=int, help="0.45 of the clips by default")
    options.add_argument("--sessions", type=int, help="one for 100,000 clips by default, and at least 5")
    options.add_argument("--folder", type=Path, help="where to make the cache; a temporary folder by default")
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    args = options.parse_args()
    utterances = args.utterances or int(0.45 * args.clips)
    sessions = args.sessions or max(5, args.clips // 100_000)
    steps = Steps()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = Path(folder) / "cache"
        shards = begin(place, made_table(utterances, args.clips, sessions), steps)
        use(place, steps)
        look(place, steps)
        size = (place / "utterances.csv").stat().st_size
    title = (
        f"{args.clips:,} clips of {utterances:,} utterances in {sessions} sessions, {shards:,} shards, utterances.csv "
        f"of {size / 1e6:,.0f} MB"
    )
    shown = Table(title=title, title_justify="left")
    for number, name in enumerate(["step", "seconds", "on a processor", "GiB at most"]):
        shown.add_column(name, justify="right" if number else "left")
    for step in steps.done:
        shown.add_row(
            step.name, f"{step.seconds:,.2f}", f"{step.cpu_seconds:,.2f}", "" if step.gib is None else f"{step.gib:.2f}"
        )
    Console(width=max(100, Console().width)).print(shown)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        value = {"machine": machine(), "title": title, "steps": [asdict(step) for step in steps.done]}
        args.json.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
