"""Clips out of a cache: in random batches and in order, the first time (checked) and later, against other ways.

All ways read the same clips of noise, of HuBERT-base's shape unless another is asked for, into float16 arrays that are
there already; everything lies in the page cache. `np.memmap` maps the shards' own arrays. The limit of later reads is
that map, the limit of first reads is the digest's own rate on all cores.

    python benchmarks/reading.py [--clips 2048] [--batch 32] [--json FILE]
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from made_table import made_table
from measure import Measured, Result, finish, parser, side_by_side

from mfhca_cache.manifest import make_manifest
from mfhca_cache.spec import ClipSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.commit import commit_shard
from mfhca_cache.storage.descriptions import write_feature, write_plan
from mfhca_cache.storage.layout import FeatureInfo, clips_per_shard, make_plan
from mfhca_cache.storage.shard import encode_shard

#: Copies clips by their numbers into an array.
Read = Callable[[np.ndarray, np.ndarray], Any]
FEATURE = "hubert"
ENGINE = {"name": "torch", "device": "cpu", "precision": "float32", "threads": 1, "batch": 8}


def build(folder: Path, clips: int, shape: tuple[int, ...]) -> Cache:
    """A cache of one feature of noise, an utterance a clip."""
    rows = make_manifest("table", None, made_table(clips, clips, 0)).utterances
    plan = make_plan("table", rows, ClipSpec(), "all")
    folder.mkdir(parents=True)
    write_plan(folder, plan)
    per_shard = clips_per_shard(2 * int(np.prod(shape)))
    info = FeatureInfo(FEATURE, "encoder", {"name": "noise"}, shape, "float16", per_shard, ENGINE, {})
    write_feature(folder, info)
    generator = np.random.default_rng(0)
    for shard in plan.shards(info):
        count = shard.stop - shard.first
        content, receipt = encode_shard(
            generator.standard_normal((count, *shape), dtype=np.float32).astype(np.float16),
            np.arange(shard.first, shard.stop),
            np.full(count, shape[0]),
            name=shard.name,
            fingerprint=info.fingerprint,
            extent=(shard.first, shard.stop),
            audio=plan.audio(shard.first, shard.stop),
            rejected=(),
            versions={},
        )
        commit_shard(folder / FEATURE, shard.name, content, receipt)
    return open_cache(folder)


class Maps:
    """`np.memmap` of each shard's array, and h5py's datasets of the same."""

    def __init__(self, cache: Cache) -> None:
        info = cache.feature(FEATURE)
        receipts = [receipt for receipt in cache.receipts(FEATURE).values() if receipt]
        paths = [cache.path / FEATURE / f"{receipt.shard}.h5" for receipt in receipts]
        self.per_shard = info.clips_per_shard
        self.arrays = [
            np.memmap(path, receipt.dtype, "r", receipt.offset, receipt.shape)
            for path, receipt in zip(paths, receipts, strict=True)
        ]
        self.datasets = [h5py.File(path, "r")["data"] for path in paths]

    def copy(self, wanted: np.ndarray, out: np.ndarray) -> None:
        """Clip by clip, as one writes it."""
        for place, clip in enumerate(wanted.tolist()):
            shard, row = divmod(clip, self.per_shard)
            out[place] = self.arrays[shard][row]

    def copy_all(self, out: np.ndarray) -> None:
        """Shard by shard."""
        for number, array in enumerate(self.arrays):
            out[number * self.per_shard :][: len(array)] = array

    def copy_h5py(self, wanted: np.ndarray, out: np.ndarray) -> None:
        """By lists of rows, ascending as h5py wants them."""
        for number in np.unique(wanted // self.per_shard).tolist():
            places = np.flatnonzero(wanted // self.per_shard == number)
            places = places[np.argsort(wanted[places])]
            out[places] = self.datasets[number][(wanted[places] % self.per_shard).tolist()]


def batches(clips: int, batch: int) -> Iterator[np.ndarray]:
    """All clips in random order, a batch at a time, for ever another order."""
    generator = np.random.default_rng(1)
    while True:
        order = generator.permutation(clips)
        yield from (order[at : at + batch] for at in range(0, clips - batch + 1, batch))


def each(read: Read, wanted: list[np.ndarray], out: np.ndarray) -> Callable[[], None]:
    """A way that reads each batch into the array."""

    def way() -> None:
        for one in wanted:
            read(one, out)

    return way


def npy_files(folder: Path, maps: Maps) -> Read:
    """One .npy a clip."""
    folder.mkdir()
    number = 0
    for array in maps.arrays:
        for clip in array:
            np.save(folder / f"{number:07d}.npy", clip)
            number += 1

    def read(wanted: np.ndarray, out: np.ndarray) -> None:
        for place, clip in enumerate(wanted.tolist()):
            out[place] = np.load(folder / f"{clip:07d}.npy")

    return read


def lhotse_file(folder: Path, maps: Maps) -> Read | None:
    """One dataset a clip, by lhotse; None where it is not installed."""
    try:
        io: Any = importlib.import_module("lhotse.features.io")
    except ImportError:
        return None
    with io.NumpyHdf5Writer(folder / "lhotse") as writer:
        for number, clip in enumerate(clip for array in maps.arrays for clip in array):
            writer.write(f"{number:07d}", np.asarray(clip))
        reader = io.NumpyHdf5Reader(writer.storage_path)

    def read(wanted: np.ndarray, out: np.ndarray) -> None:
        for place, clip in enumerate(wanted.tolist()):
            out[place] = reader.read(f"{clip:07d}")

    return read


def hashing(digest: Callable[[Any], Any], data: np.ndarray, cores: int) -> Callable[[], None]:
    """Digests of every clip, by so many threads."""
    clips = data.view(np.uint8).reshape(len(data), -1)

    def some(first: int) -> None:
        for clip in clips[first::cores]:
            digest(clip)

    def way() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(some, range(cores)))

    return way


def digests() -> dict[str, Callable[[Any], Any]]:
    """Name → of a clip's bytes."""
    found: dict[str, Callable[[Any], Any]] = {
        "SHA-256 (the format's)": lambda data: hashlib.sha256(data).digest(),
        "BLAKE2b": lambda data: hashlib.blake2b(data, digest_size=16).digest(),
        "CRC-32 (damage alone)": zlib.crc32,
    }
    for name, module, function in (("BLAKE3", "blake3", "blake3"), ("XXH3-128 (damage alone)", "xxhash", "xxh3_128")):
        try:
            make = getattr(importlib.import_module(module), function)
        except ImportError:
            continue
        found[name] = lambda data, make=make: make(data).digest()
    return found


def measure(folder: Path, args: Any) -> list[Result]:
    """The tables."""
    shape = (args.frames, args.width)
    cache = build(folder / "cache", args.clips, shape)
    maps = Maps(cache)
    out = np.ones((args.batch, *shape), dtype=np.float16)
    whole = np.ones((args.clips, *shape), dtype=np.float16)
    everything = np.arange(args.clips)
    npy, lhotse = npy_files(folder / "npy", maps), lhotse_file(folder, maps)
    order = batches(args.clips, args.batch)
    wanted = [next(order) for _ in range(args.reads)]
    work, cores = args.batch * args.reads, len(os.sched_getaffinity(0))
    size = f"{' × '.join(map(str, shape))} float16 clips, {args.clips:,} of them, page cache warm"
    cache.copy_clips(FEATURE, everything, whole)
    dataset = cache.dataset(FEATURE)

    ways: dict[str, Callable[[], Any]] = {
        "np.memmap, clip by clip": each(maps.copy, wanted, out),
        "ours: Cache.copy_clips": each(lambda rows, into: cache.copy_clips(FEATURE, rows, into), wanted, out),
        "ours: Dataset, new tensors": each(lambda rows, _: dataset.__getitems__(rows.tolist()), wanted, out),
        "h5py, list of rows": each(maps.copy_h5py, wanted, out),
        "one .npy a clip": each(npy, wanted, out),
    }
    if lhotse:
        ways["lhotse NumpyHdf5Writer"] = each(lhotse, wanted, out)
    random = table(f"Random batches of {args.batch}, later ({size})", ways, work, args, 0)

    ways = {
        "np.memmap, shard by shard": lambda: maps.copy_all(whole),
        "ours: Cache.copy_clips": lambda: cache.copy_clips(FEATURE, everything, whole),
        "h5py, shard by shard": lambda: [
            data.read_direct(whole, dest_sel=np.s_[n * maps.per_shard : n * maps.per_shard + len(data)])
            for n, data in enumerate(maps.datasets)
        ],
        "one .npy a clip": lambda: npy(everything, whole),
    }
    if lhotse:
        ways["lhotse NumpyHdf5Writer"] = lambda: lhotse(everything, whole)
    sequential = table(f"In order, later ({size})", ways, args.clips, args, 0)

    def first(read: Callable[[Cache], Any]) -> Callable[[], None]:
        # Opened before the clock starts; its shards are opened by the read.
        fresh = iter([open_cache(cache.path) for _ in range(args.rounds + 1)])
        return lambda: read(next(fresh))

    parts = [everything[at : at + args.batch] for at in range(0, args.clips, args.batch)]
    shuffled = np.random.default_rng(2).permutation(args.clips)
    mixed = [shuffled[at : at + args.batch] for at in range(0, args.clips - args.batch + 1, args.batch)]
    ways = {
        "SHA-256 alone, all cores": hashing(lambda data: hashlib.sha256(data).digest(), whole, cores),
        "ours: in order": first(lambda new: new.copy_clips(FEATURE, everything, whole)),
        f"ours: in order, {args.batch} at a time": first(
            lambda new: [new.copy_clips(FEATURE, part, out[: len(part)]) for part in parts]
        ),
        f"ours: random batches of {args.batch}": first(
            lambda new: [new.copy_clips(FEATURE, part, out[: len(part)]) for part in mixed]
        ),
        "np.memmap, unchecked": lambda: Maps(cache).copy_all(whole),
        "one .npy a clip, unchecked": lambda: npy(everything, whole),
    }
    if lhotse:
        ways["lhotse NumpyHdf5Writer, unchecked"] = lambda: lhotse(everything, whole)
    checking = table(f"The first read of a process ({size})", ways, args.clips, args, 0)

    found = digests()
    gigabytes = whole.nbytes / 1e9
    ways = {}
    for name, digest in found.items():
        ways[f"{name}, 1 core"] = hashing(digest, whole, 1)
        ways[f"{name}, {cores} cores"] = hashing(digest, whole, cores)
    compared = table(f"Digests of {size}", ways, gigabytes, args, None, unit="GB/s")
    if not lhotse:
        missing = Measured("lhotse NumpyHdf5Writer", (), note="lhotse is not installed")
        random, sequential = (Result(r.title, r.unit, (*r.ways, missing), r.target) for r in (random, sequential))
    return [random, sequential, checking, compared]


TARGETS = {
    "Random": "ours at 0.90 of np.memmap or more, and above all others",
    "In": "ours at 0.90 of np.memmap or more, and above all others",
    "The": "as near to the digest's own rate as may be",
}


def table(
    title: str, ways: dict[str, Callable[[], Any]], work: float, args: Any, limit: int | None, unit: str = "clips/s"
) -> Result:
    """Ways measured in turn; ``limit`` is the number of the way that is everybody's limit."""
    rates = side_by_side(ways, work, args.rounds)
    most = None if limit is None else float(np.median(list(rates.values())[limit]))
    measured = tuple(Measured(name, found, most) for name, found in rates.items())
    return Result(title, unit, measured, TARGETS.get(title.split()[0], ""))


def main() -> None:
    """Build, measure, show."""
    options = parser(__doc__ or "")
    options.add_argument("--clips", type=int, default=2048)
    options.add_argument("--frames", type=int, default=149)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--reads", type=int, default=40, help="random batches a round (default 40)")
    options.add_argument("--folder", type=Path, help="where to build; a temporary folder by default")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        finish(measure(Path(folder), args), args.json)


if __name__ == "__main__":
    main()
