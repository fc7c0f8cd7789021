"""Peak host memory of an extraction and of training one fold, at several sizes of the corpus.

Each figure is a process of its own: the most that was resident (VmHWM) less what the libraries and the encoder's
weights had taken before the work began. An extraction's should stay what it is however large the corpus, once that
fills more than one shard of 512 clips; training keeps the features in memory, so it is given with and without them.

    python benchmarks/memory.py
    python benchmarks/memory.py --utterances 1000 2000 4000 --encoder random-hubert-base
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from end_to_end import write_corpus
from measure import Measured, Result, finish, parser

from mfhca_cache.allocator import keep_freed_memory
from mfhca_cache.extraction.checkpoint import RANDOM_TINY
from mfhca_cache.manifest import read_manifest, write_manifest
from mfhca_cache.progress import Progress
from mfhca_cache.spec import EncoderSpec, ExtractSpec

#: What the libraries, beside the weights, are aimed to stay under.
LIMIT_MIB = 2048


def resident(peak: bool) -> float:
    """MiB of this process that are resident now, or at most were."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def extracted(csv: Path, cache: Path, encoder: str, device: str) -> dict[str, float]:
    """Extract a corpus; MiB beside what was there when the first clips were about to be decoded."""
    from mfhca_cache.extraction.pipeline import extract

    before = list[float]()

    def progress(report: Progress) -> None:
        if report.total and not before:
            before.append(resident(peak=False))

    report = extract(
        read_manifest(csv), cache, ExtractSpec(encoder=EncoderSpec(encoder), rows="all"), device=device,
        progress=progress,
    )  # fmt: skip
    return {"clips": report.clips, "mib": resident(peak=True) - before[0], "loaded": before[0]}


def trained(cache: Path, device: str) -> dict[str, float]:
    """Train one epoch of one fold from spectrograms; MiB beside the libraries, and MiB of features among them."""
    from mfhca_cache.storage.cache import open_cache
    from mfhca_cache.training.options import TrainOptions
    from mfhca_cache.training.trainer import train_fold

    opened = open_cache(cache)
    options = TrainOptions(features="spectrogram", preset="quick", epochs=1, classes="all")
    before = resident(peak=False)
    train_fold(opened, 1, options, device=device)
    data = opened.plan.clips * opened.features["spectrogram"].clip_bytes / 2**20
    return {"clips": opened.plan.clips, "mib": resident(peak=True) - before, "data": data}


def child(*words: object) -> dict[str, float]:
    """What one of the two above finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    value: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return value


def answer(work: str, *words: str) -> None:
    """In the process of its own."""
    keep_freed_memory()  # As the command does.
    found = (
        trained(Path(words[0]), words[1]) if work == "train" else extracted(Path(words[0]), Path(words[1]), *words[2:])
    )
    print(json.dumps(found))


def main() -> int:
    """Measure both at each size."""
    found = parser(__doc__ or "")
    found.set_defaults(rounds=1)
    found.add_argument(
        "--utterances", type=int, nargs="+", default=[500, 1000, 2000], help="sizes (default 500 1000 2000)"
    )
    found.add_argument("--encoder", default=RANDOM_TINY, help="name or folder (default random-tiny)")
    found.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = found.parse_args()
    extracting, training, beside = list[Measured](), list[Measured](), list[Measured]()
    with tempfile.TemporaryDirectory() as name:
        for size in options.utterances:
            folder = Path(name) / str(size)
            manifest = write_corpus(folder / "corpus", size, sessions=1)
            # Ten speakers of four classes, for folds.
            table = manifest.utterances.copy()
            table["speaker"] = [f"s{number % 10}" for number in range(size)]
            table["label"] = [("ang", "hap", "neu", "sad")[number // 10 % 4] for number in range(size)]
            write_manifest(replace(manifest, utterances=table), folder / "m.csv")
            peaks = [
                child("extract", folder / "m.csv", folder / f"c{number}", options.encoder, options.device)
                for number in range(options.rounds)
            ]
            way = f"{size:,} utterances, {peaks[0]['clips']:,.0f} clips"
            note = f"{peaks[0]['loaded']:,.0f} MiB with libraries and weights before"
            extracting.append(Measured(way, tuple(item["mib"] for item in peaks), LIMIT_MIB, note))
            peaks = [child("train", folder / "c0", options.device) for _ in range(options.rounds)]
            note = f"{peaks[0]['data']:,.0f} MiB of them features, as stored"
            training.append(Measured(way, tuple(item["mib"] for item in peaks), None, note))
            beside.append(Measured(way, tuple(item["mib"] - item["data"] for item in peaks)))
    title = f"Peak host memory of an extraction beside the weights, {options.encoder}, {options.device}"
    target = f"flat in the corpus's size, and under {LIMIT_MIB:,} MiB with all libraries"
    results = [
        Result(title, "MiB", tuple(extracting), target),
        Result(f"Peak host memory of training one fold, {options.device}", "MiB", tuple(training)),
        Result(f"The same beside the features, {options.device}", "MiB", tuple(beside), "flat in the corpus's size"),
    ]
    finish(results, options.json)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        answer(*sys.argv[2:])
    else:
        sys.exit(main())
