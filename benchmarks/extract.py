"""An encoder of HuBERT-base's geometry over the same clips: one at a time through transformers, against ours.

The first way is EmoBox's: read a file, encode it alone, write one .npy. Ours reads the same files, encodes them in
batches of the size that the product finds, by each of its runtimes, and writes one shard. Every way runs in a process
of its own and waits while another is timed, because the allocator setting that `mfhca` makes before PyTorch is imported
is on for ours and off for the first way; the second way is the first with it.

The limit is timed in turn with the ways: large matrix products by the best library (`limits.py`) of as many FLOP as the
clips take.

    python benchmarks/extract.py
    python benchmarks/extract.py --clips 64 --rounds 5 --json extract.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

#: GFLOP of a 3-second clip: the feature extractor's convolutions 14.7, the transformer 27.5, the rest 0.2.
HUBERT_BASE_GFLOP = 42.4
SECONDS = 3
RATE = 16_000


@dataclass(frozen=True)
class Way:
    """One way of doing the work.

    Attributes:
        name: as the table has it.
        device: ``cpu`` or ``cuda``.
        runtime: of ours; None for one clip at a time through transformers.
        precision: of the products.
        keeps_memory: whether the allocator setting is on.
    """

    name: str
    device: str
    runtime: str | None
    precision: str = "fp32"
    keeps_memory: bool = True


SINGLY = "one at a time through transformers, one .npy each"
LIMIT = "the limit: products of as many FLOP"
WAYS = (
    Way(SINGLY, "cpu", None, keeps_memory=False),
    Way("the same with the allocator setting", "cpu", None),
    *(Way(f"ours, {name}", "cpu", name) for name in ("torch", "onednn", "openvino")),
    *(Way(f"ours, {name}, bf16", "cpu", name, "bf16") for name in ("torch", "onednn", "openvino")),
    Way(f"{LIMIT}, fp32", "cpu", "limit"),
    Way(f"{LIMIT}, bf16", "cpu", "limit", "bf16"),
)
CUDA_WAYS = (
    Way(SINGLY, "cuda", None, keeps_memory=False),
    Way("ours, fp32", "cuda", "auto"),
    Way("ours, bf16", "cuda", "auto", "bf16"),
    Way("ours, fp16", "cuda", "auto", "fp16"),
    *(Way(f"{LIMIT}, {precision}", "cuda", "limit", precision) for precision in ("fp32", "bf16", "fp16")),
)


def write_clips(folder: Path, count: int) -> None:
    """Generated voices of 3 s, as 16-bit wav files."""
    import numpy as np
    import soundfile

    from mfhca_cache.corpora.voice import Voice, speak

    voice = Voice(pitch=140.0, movement=2.0, rate=4.0, level=0.0, tilt=0.9, breath=0.05, tract=1.0)
    for number in range(count):
        samples = speak(voice, SECONDS, np.random.default_rng(number))
        soundfile.write(folder / f"{number:05d}.wav", samples, RATE, subtype="PCM_16")


def singly(encoder: Path, device: str, paths: list[Path], out: Path) -> tuple[Callable[[], None], dict[str, Any]]:
    """EmoBox's way: one file, one call, one .npy."""
    import numpy as np
    import soundfile
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval().to(device)

    def work() -> None:
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32")
            values = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values.to(device)
            with torch.no_grad():
                hidden = model(values).last_hidden_state
            np.save(out / f"{path.stem}.npy", hidden[0].cpu().numpy())

    return work, {"batch": 1}


def ours(encoder: Path, way: Way, paths: list[Path], out: Path) -> tuple[Callable[[], None], dict[str, Any]]:
    """The product's functions: the engine chosen as `mfhca extract` does, batches of its size, one shard."""
    import numpy as np
    import torch

    from mfhca_cache.extraction.audio import load_audio
    from mfhca_cache.extraction.clips import cut_clips
    from mfhca_cache.extraction.encoder import load_encoder
    from mfhca_cache.extraction.engine import AskedEngine, choose_engine
    from mfhca_cache.extraction.features import new_engine
    from mfhca_cache.spec import ClipSpec, EncoderSpec
    from mfhca_cache.storage.commit import commit_shard
    from mfhca_cache.storage.shard import encode_shard

    spec = EncoderSpec(str(encoder), precision=cast(Any, way.precision))
    loaded = load_encoder(spec, way.device)

    def read() -> np.ndarray:
        return np.concatenate([cut_clips(load_audio(path), ClipSpec())[0] for path in paths])

    numbers = loaded.layer_numbers("last")
    engine = choose_engine(
        loaded,
        numbers,
        new_engine(way.device, None, spec.precision),
        AskedEngine(str(way.runtime)),
        lambda: read()[:16],
    )
    torch.set_num_threads(engine["threads"])

    def work() -> None:
        clips = read()
        batches = (clips[at : at + engine["batch"]] for at in range(0, len(clips), engine["batch"]))
        found = [part.half().numpy() for part in loaded.encode_many(batches)]
        data = np.concatenate(found)
        rows = np.arange(len(data))
        content, receipt = encode_shard(
            data, rows, np.full(len(data), data.shape[1]), name="all-0000", fingerprint="0" * 64,
            extent=(0, len(data)), audio={path.stem: "0" * 64 for path in paths}, rejected=(), versions={},
        )  # fmt: skip
        commit_shard(out, "all-0000", content, receipt)

    return work, engine


def limit(way: Way, clips: int) -> tuple[Callable[[], None], dict[str, Any]]:
    """Products of as many FLOP as the clips take, by the library that is best at them."""
    import limits
    import torch
    from measure import side_by_side

    from mfhca_cache.extraction.encoder import exact_float32

    if way.device == "cpu" and way.precision == "bf16" and not limits.has_bf16():
        raise RuntimeError("this processor has no bf16 products")
    size = limits.SIZE if way.device == "cpu" else 8192
    ways = limits.matmul_ways(way.precision, size) if way.device == "cpu" else limits.cuda_way(way.precision, size)
    times = max(1, round(clips * HUBERT_BASE_GFLOP / (2 * size**3 / 1e9)))
    with torch.inference_mode(), exact_float32():
        rates = side_by_side(ways, 1.0, rounds=3)
        best = max(rates, key=lambda name: max(rates[name]))

    def work() -> None:
        with torch.inference_mode(), exact_float32():
            for _ in range(times):
                ways[best]()
            if way.device == "cuda":
                torch.cuda.synchronize()

    # The work is a whole number of products: what that is of the clips' own corrects the rate.
    return work, {"batch": 0, "library": best, "work": times * 2 * size**3 / 1e9 / HUBERT_BASE_GFLOP / clips}


def serve(way: Way, encoder: Path, clips: Path) -> None:
    """A way's own process: get ready, say so, and do the work once for every line that comes in."""
    if way.keeps_memory:
        from mfhca_cache.allocator import keep_freed_memory

        keep_freed_memory()
    paths = sorted(clips.glob("*.wav"))
    with tempfile.TemporaryDirectory() as out:
        try:
            if way.runtime is None:
                work, engine = singly(encoder, way.device, paths, Path(out))
            elif way.runtime == "limit":
                work, engine = limit(way, len(paths))
            else:
                work, engine = ours(encoder, way, paths, Path(out))
        except Exception as error:  # A row that says why is better than no table.
            print(json.dumps({"error": str(error).splitlines()[0]}), flush=True)
            return
        print(json.dumps(engine), flush=True)
        for _ in sys.stdin:
            work()
            print("done", flush=True)


class Worker:
    """A way in a process of its own, which does the work when it is called."""

    def __init__(self, number: int, device: str, encoder: Path, clips: Path) -> None:
        words = ["--serve", device, str(number), str(encoder), str(clips)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.engine: dict[str, Any] = json.loads(self._line())

    def __call__(self) -> None:
        """Do the work once."""
        pipe = cast(IO[str], self._process.stdin)
        pipe.write("go\n")
        pipe.flush()
        if self._line().strip() != "done":
            raise RuntimeError("a way's process ended before its work was done")

    def _line(self) -> str:
        return cast(IO[str], self._process.stdout).readline() or '{"error": "its process ended"}'

    def close(self) -> None:
        """Let the process end."""
        cast(IO[str], self._process.stdin).close()
        self._process.wait()


def table(device: str, options: argparse.Namespace, encoder: Path, clips: Path) -> Any:
    """One device's table."""
    import limits
    import torch
    from measure import Measured, Result, side_by_side

    here = device == "cpu" or torch.cuda.is_available()
    ways = WAYS if device == "cpu" else CUDA_WAYS
    if options.fp32:
        ways = tuple(way for way in ways if way.precision == "fp32")
    numbers = {way.name: n for n, way in enumerate(WAYS if device == "cpu" else CUDA_WAYS)}
    workers = {way.name: Worker(numbers[way.name], device, encoder, clips) for way in ways} if here else {}
    able = {name: worker for name, worker in workers.items() if "error" not in worker.engine}
    try:
        found = side_by_side(able, options.clips, options.rounds) if able else {}
    finally:
        for worker in able.values():
            worker.close()
    tops = {
        way.precision: statistics.median(found[way.name]) * able[way.name].engine["work"]
        for way in ways
        if way.runtime == "limit" and way.name in found
    }
    rows = []
    for way in ways:
        if not here:
            rows.append(Measured(way.name, (), note=limits.NO_GPU))
        elif way.runtime == "limit" and way.name in found:
            rates = tuple(rate * able[way.name].engine["work"] for rate in found[way.name])
            rows.append(Measured(way.name, rates, note=f"{tops[way.precision] * HUBERT_BASE_GFLOP:,.0f} GFLOP/s"))
        else:
            note = _note(way, workers[way.name].engine)
            rows.append(Measured(way.name, found.get(way.name, ()), tops.get(way.precision), note))
    target = "1.5 × (onednn) and 1.8 × (openvino), 65 % and 80 % of the limit"
    if device == "cuda":
        target = "6 × in fp32 and 20 × in fp16"
    title = f"{options.clips} clips of 3 s, HuBERT-base geometry, {device}"
    return Result(title, "clips/s", tuple(rows), target)


def _note(way: Way, engine: dict[str, Any]) -> str:
    if "error" in engine:
        return str(engine["error"])
    words = [f"batch {engine['batch']}"]
    if "relative_error" in engine:
        words.append(f"error {engine['relative_error']:.1e}")
    if way.runtime == "auto":
        words.append(str(engine["name"]))
    if not way.keeps_memory:
        words.append("allocator as it comes")
    return ", ".join(words)


def main() -> None:
    """Make the encoder and the clips, time the ways in turn, print and perhaps write the tables."""
    if sys.argv[1:2] == ["--serve"]:
        device, number, encoder, clips = sys.argv[2:]
        serve((WAYS if device == "cpu" else CUDA_WAYS)[int(number)], Path(encoder), Path(clips))
        return
    from measure import finish, parser

    options_parser = parser(__doc__ or "")
    options_parser.add_argument("--clips", type=int, default=16, help="of 3 s (default 16)")
    options_parser.add_argument("--fp32", action="store_true", help="leave the lower precisions out")
    options_parser.add_argument("--device", choices=["cpu", "cuda", "both"], default="both", help="(default both)")
    options_parser.set_defaults(rounds=3)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        encoder, clips = Path(name) / "encoder", Path(name) / "clips"
        clips.mkdir()
        from make_random_hubert import write_random_hubert

        write_random_hubert(encoder)
        write_clips(clips, options.clips)
        devices = ["cpu", "cuda"] if options.device == "both" else [options.device]
        finish([table(device, options, encoder, clips) for device in devices], options.json)


if __name__ == "__main__":
    main()
