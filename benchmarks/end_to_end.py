"""A whole corpus end to end, beside what the encoder, the decoder and the disk could do at most, each measured alone.

A generated corpus with the lengths of IEMOCAP's utterances is extracted: decoding, spectrogram, encoder, shards on the
disk. First in turn, then with decoding and writing overlapping the encoder; the same features and bytes both times. The
limits do their part alone and as the extraction does it: the encoder on clips that lie in memory, the decoder with the
same number of threads, the disk with the same bytes, written and flushed.

    python benchmarks/end_to_end.py                                            # a CPU: two dozen utterances
    python benchmarks/end_to_end.py --device cuda --utterances 5531 --rounds 3   # IEMOCAP's size: 7 h of audio
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from make_random_hubert import write_random_hubert
from measure import Measured, Result, finish, parser, side_by_side

from mfhca_cache.allocator import keep_freed_memory
from mfhca_cache.corpora.voice import Voice, speak
from mfhca_cache.extraction import engine, overlap
from mfhca_cache.extraction.build import Tools, compute_feature
from mfhca_cache.extraction.decode import ClipRun, DecodedClips, Room, decode_clips
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.engine import resume_engine
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import COLUMNS, Manifest, make_manifest
from mfhca_cache.progress import Progress
from mfhca_cache.spec import SAMPLE_RATE, EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.layout import FeatureInfo, Plan
from mfhca_cache.storage.publish import publish
from mfhca_cache.wav import probe

#: IEMOCAP's four classes: utterances, and the seconds that must suffice for them on a GPU.
IEMOCAP, IEMOCAP_SECONDS = 5531, 60
#: Of what the slowest part alone could do.
SHARE = 0.7


def write_corpus(root: Path, utterances: int, sessions: int = 5, seed: int = 0) -> Manifest:
    """Wavs (16 kHz, 16 bit) of log-normal lengths, 4.55 s on average as IEMOCAP's, and their manifest."""
    rng = np.random.default_rng(seed)
    voice = Voice(140.0, 2.0, 4.5, 0.0, 0.89, 0.15, 1.05)
    speech = speak(voice, 60.0, rng)
    mu, sigma = np.log(4.55) - 0.72**2 / 2, 0.72
    rows = []
    for number in range(utterances):
        samples = int(np.clip(rng.lognormal(mu, sigma), 0.6, 34.0) * SAMPLE_RATE)
        at = int(rng.integers(0, len(speech) - samples))
        session, name = 1 + number * sessions // utterances, f"u{number:06d}"
        path = root / f"session{session}" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech[at : at + samples] * rng.uniform(0.5, 1.5), SAMPLE_RATE, subtype="PCM_16")
        info = probe(path)
        row: dict[str, object] = dict.fromkeys(COLUMNS, "")
        row |= {"corpus": "iemocap", "utterance_id": name, "path": f"session{session}/{name}.wav", "label": "neu"}
        row |= {"speaker": f"{session}{'FM'[number % 2]}", "session": f"session{session}" if sessions > 1 else ""}
        row |= {"seconds": info.seconds, "sample_rate": info.sample_rate, "channels": 1, "sha256": info.sha256}
        rows.append(row)
    return make_manifest("iemocap", root, pd.DataFrame(rows))


class EndToEnd:
    """`extract` into a cache that was begun and holds nothing; how long it took until the first clips were decoded."""

    def __init__(self, manifest: Manifest, cache: Path, spec: ExtractSpec, device: str) -> None:
        self._arguments = (manifest, cache, spec)
        self._device = device
        self.loading: list[float] = []

    def run(self, ahead: int, jobs: int = 1) -> None:
        """Extract everything, so many runs of clips ahead."""
        for path in self._arguments[1].glob("*/*-[0-9][0-9][0-9][0-9].*"):
            path.unlink()
        usual, overlap.AHEAD = overlap.AHEAD, ahead
        began, loaded = time.perf_counter(), list[float]()

        def progress(report: Progress) -> None:
            if report.total and not loaded:
                loaded.append(time.perf_counter() - began)

        try:
            extract(*self._arguments, device=self._device, jobs=jobs, progress=progress)
        finally:
            overlap.AHEAD = usual
        self.loading += loaded


def decoder_alone(plan: Plan, root: Path, runs: list[tuple[int, int]], threads: int) -> Callable[[], None]:
    """Decode and cut every run of clips, with the extraction's threads and nothing else to do."""

    def work() -> None:
        room = Room()
        with ThreadPoolExecutor(threads) as pool:
            for first, stop in runs:
                run = ClipRun(plan, root, first, stop, room=room)
                run.joined([part.result() for part in [pool.submit(part) for part in run.parts(4 * threads)]])

    return work


def encoder_alone(info: FeatureInfo, tools: Tools, clips: list[DecodedClips]) -> Callable[[], None]:
    """Encode clips that lie in memory, and convert what comes out to the stored type."""

    def work() -> None:
        for part in clips:
            compute_feature(info, part, tools, lambda stage, done: None)

    return work


def disk_alone(folder: Path, sizes: list[int]) -> Callable[[], None]:
    """Write and flush files of the shards' sizes."""
    content = memoryview(np.random.default_rng(0).bytes(max(sizes)))

    def work() -> None:
        for number, size in enumerate(sizes):
            publish(folder / f"{number}.bin", content[:size])

    return work


def main() -> int:
    """Measure everything in turn, and show how far from its limits an extraction stays."""
    found = parser(__doc__ or "")
    found.set_defaults(rounds=3)
    found.add_argument("--utterances", type=int, default=24, help=f"default 24; {IEMOCAP:,} is IEMOCAP's size")
    found.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    found.add_argument("--encoder", help="name or folder  [HuBERT-base geometry with random weights]")
    found.add_argument("--jobs", type=int, default=1, help="also with so many processes, each with its own GPU")
    found.add_argument("--folder", type=Path, help="where corpus and caches are written  [a temporary one]")
    options = found.parse_args()
    keep_freed_memory()  # As the command does.
    engine.FEW_CLIPS = 0  # Few clips stand for many: the runtime is chosen as for a corpus.
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        results = measure(Path(name), options.utterances, options.device, options.encoder, options.jobs, options.rounds)
    finish(results, options.json)
    return 0


def measure(
    folder: Path, utterances: int, device: str, encoder: str | None, jobs: int, rounds: int, warm_up: int = 1
) -> list[Result]:
    """The tables: clips a second end to end and of each part alone, and IEMOCAP's size against the clock."""
    if encoder is None:
        encoder = str(folder / "random-hubert-base")
        write_random_hubert(Path(encoder))
    manifest = write_corpus(folder / "corpus", utterances)
    spec = ExtractSpec(encoder=EncoderSpec(encoder), rows="all")
    extract(manifest, folder / "cache", spec, device=device)
    cache = open_cache(folder / "cache")
    plan, root = cache.plan, folder / "corpus"
    info = next(item for item in cache.features.values() if item.kind == "encoder")
    where = str(info.engine["device"])
    threads = overlap.decoders(where)
    runs = [(item.first, item.stop) for item in plan.shards(info)]
    sizes = [path.stat().st_size for path in (folder / "cache").glob("*/*.h5")]
    tools = Tools(spec, alone := load_encoder(EncoderSpec(encoder), where))
    resume_engine(folder / "cache", info, alone)  # By the runtime that the extraction chose.
    # As many clips as a few shards hold are enough for a rate, and any number fits the memory then.
    clips = [decode_clips(plan, root, *run) for run in runs[:4]]
    held = sum(len(part.numbers) for part in clips)
    whole = EndToEnd(manifest, folder / "cache", spec, device)
    ways: dict[str, Callable[[], None]] = {
        "end to end, in turn": lambda: whole.run(0),
        "end to end, overlapped": lambda: whole.run(1),
        "decoder alone": decoder_alone(plan, root, runs, threads),
        "disk alone": disk_alone(folder, sizes),
    }
    if jobs > 1:
        ways[f"end to end, {jobs} processes"] = lambda: whole.run(1, jobs)
    ways["encoder alone"] = encoder_alone(info, tools, clips)
    rates = side_by_side(ways, plan.clips, rounds, warm_up)
    rates["encoder alone"] = tuple(rate * held / plan.clips for rate in rates["encoder alone"])
    alone = {way: float(np.median(rates[way])) for way in ways if way.endswith("alone")}
    slowest = min(alone, key=lambda way: alone[way])
    each = 3 if jobs > 1 else 2
    loading = float(np.median(whole.loading[each * warm_up :]))
    first = f"of it {loading:.1f} s before the first clip, to load the encoder"
    notes = {
        "end to end, overlapped": first,
        "decoder alone": f"{threads} thread{'s' if threads > 1 else ''}",
        "disk alone": f"{sum(sizes) / plan.clips / 1000:,.0f} kB a clip, written and flushed",
        "encoder alone": f"{held} clips in memory, converted to {info.dtype}",
    }
    measured = [
        Measured(way, rates[way], None if way in alone else alone[slowest], notes.get(way, ""))
        for way in sorted(ways, key=lambda way: way in alone)
    ]
    steady = tuple(plan.clips / max(1e-9, plan.clips / rate - loading) for rate in rates["end to end, overlapped"])
    measured.insert(2, Measured("end to end, overlapped, once loaded", steady, alone[slowest]))
    title = f"{utterances:,} utterances, {plan.clips:,} clips, spectrogram and {Path(encoder).name}, {where}"
    target = f"{SHARE:.0%} of the slowest alone, which is the {slowest.removesuffix(' alone')}"
    return [
        Result(title, "clips/s", tuple(measured), target + ("" if where == "cuda" else "; aimed at on CUDA")),
        clock(utterances, where, rates["end to end, overlapped"], plan.clips),
    ]


def clock(utterances: int, where: str, rates: tuple[float, ...], clips: int) -> Result:
    """IEMOCAP's size against the clock, where that was measured."""
    way, target = "extract, fp32", f"{IEMOCAP:,} utterances in under {IEMOCAP_SECONDS} s on one GPU"
    if where != "cuda" or utterances < IEMOCAP:
        why = "no GPU here" if not torch.cuda.is_available() else f"needs --device cuda --utterances {IEMOCAP}"
        return Result("IEMOCAP's size on CUDA", "utterances/s", (Measured(way, (), note=why),), target)
    each = tuple(utterances * rate / clips for rate in rates)
    seconds = utterances / float(np.median(each))
    note = f"{seconds:.1f} s for {utterances:,} utterances"
    return Result("IEMOCAP's size on CUDA", "utterances/s", (Measured(way, each, None, note),), target)


if __name__ == "__main__":
    sys.exit(main())
