"""Real faults for tests: processes that die at a given step, a disk that loses its power, a disk that is full.

Processes are forked from a server that has imported the library once, so that a hundred of them take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfhca_cache.errors import CacheError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import read_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage import layout
from mfhca_cache.storage.cache import open_cache

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.faults", "mfhca_cache.cli.extract", "mfhca_cache.cli.manifest", "soundfile", "librosa.core", "soxr",
        "transformers.models.hubert.modeling_hubert", "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    ]
)  # fmt: skip

BOTH = ExtractSpec(encoder=EncoderSpec("random-tiny"))
ALONE = ExtractSpec(encoder=None)


# Processes


def start(work: Callable[..., Any], *words: Any) -> Any:
    """Run a function of a module in a process of its own."""
    process = CONTEXT.Process(target=work, args=words)
    process.start()
    return process


def finish(process: Any, seconds: float = 120) -> int:
    """Its exit status, negative where a signal ended it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running after {seconds} s")
    return int(process.exitcode)


def nothing() -> None:
    """Start the server that processes are forked from."""


def unprivileged(work: Callable[..., Any], *words: Any) -> Any:
    """Call a function in a process that may write only where the permissions say so, even as root."""
    version, every_capability_dropped = struct.pack("Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(version, every_capability_dropped) == 0
    return work(*words)


def run(work: Callable[..., Any], *words: Any, seconds: float = 120) -> int:
    return finish(start(work, *words), seconds)


def answer(work: Callable[..., Any], *words: Any) -> tuple[Any, float]:
    """What a function returns in a process of its own, or the error that it raises; and its peak memory in MiB."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send, args=(sender, work, words))
    process.start()
    sender.close()
    try:
        result: tuple[Any, float] = receiver.recv()
    except EOFError:
        raise AssertionError(f"the process died with status {finish(process)}") from None
    finish(process)
    return result


def _send(sender: Any, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    # What a fault costs is counted from here: the libraries themselves take hundreds of megabytes.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        value = work(*words)
    except Exception as error:
        value = error
    cost = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    try:
        pickle.dumps(value)
    except Exception:
        value = repr(value)
    # An AudioError cannot be unpickled, having two arguments.
    sender.send((f"{type(value).__name__}: {value}" if isinstance(value, Exception) else value, cost))


def extract_small(csv: Path, cache: Path, spec: ExtractSpec = BOTH, clips: int = 2) -> None:
    """Extract with so few clips a shard that a small corpus has many shards."""
    layout.MAX_SHARD_CLIPS = clips
    os.sched_getaffinity = lambda _: {0}  # One thread: several of these run beside each other.
    extract(read_manifest(csv), cache, spec, device="cpu")


def command(output: Path, *words: str) -> None:
    """`mfhca` with its output in a file."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["mfhca", *words]
    from mfhca_cache.cli import main

    main()


def small_command(output: Path, clips: int, *words: str) -> None:
    """`command` with few clips a shard and one thread."""
    layout.MAX_SHARD_CLIPS = clips
    os.sched_getaffinity = lambda _: {0}
    command(output, *words)


def limited_command(output: Path, size: int, clips: int, *words: str) -> None:
    """`small_command`, in which every write beyond so many bytes of a file fails, as on a full disk."""
    output.write_bytes(bytes(4000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    small_command(output, clips, *words)


# Steps


Hook = Callable[[str, tuple[Any, ...]], None]


@contextlib.contextmanager
def watched(folder: Path, before: Hook, after: Hook) -> Iterator[None]:
    """Call hooks around every create, write, fsync, rename, mkdir and unlink in a folder, in this process."""
    root = str(folder)
    kept = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "mkdir", "unlink")}
    kept_open = Path.open

    def around(kind: str, words: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        if not any(isinstance(word, str) and (word + "/").startswith(root + "/") for word in words):
            return act()
        before(kind, words)
        result = act()
        after(kind, words)
        return result

    def watch(name: str, kind: str) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            names = tuple(os.fspath(word) for word in words if isinstance(word, str | os.PathLike))
            if name == "fsync":
                names = (str(Path(f"/proc/self/fd/{words[0]}").readlink()),)
            return around(kind, names, lambda: kept[name](*words, **options))

        return call

    class Watched(io.FileIO):
        """A file whose writes come in two halves."""

        def write(self, data: Any) -> int:
            done = 0
            for part in (memoryview(data)[: len(data) // 2], memoryview(data)[len(data) // 2 :]):
                words = (os.fspath(self.name), bytes(part))
                written = around("write", words, lambda part=part: super(Watched, self).write(part))
                assert written == len(part)
                done += written
            return done

    def open_watched(self: Path, mode: str = "r", *words: Any, **options: Any) -> Any:
        if "x" in mode or "w" in mode:
            return around("create", (str(self),), lambda: Watched(str(self), mode.replace("b", "")))
        return kept_open(self, mode, *words, **options)

    kinds = {"fsync": "fsync", "replace": "rename", "rename": "rename", "mkdir": "mkdir", "unlink": "unlink"}
    for name, kind in kinds.items():
        setattr(os, name, watch(name, kind))
    Path.open = open_watched  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(os, name, function)
        Path.open = kept_open  # type: ignore[method-assign]


def die_at(step: int, csv: Path, cache: Path, spec: ExtractSpec, clips: int) -> None:
    """Extract, and be killed with SIGKILL right before (even) or after (odd) the given step of publishing."""
    count = -1

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(cache, hook, hook):
        extract_small(csv, cache, spec, clips)


def record_steps(log: Path, csv: Path, cache: Path, spec: ExtractSpec, clips: int) -> None:
    """Extract, and write down every step in the folder that the cache lies in."""
    steps: list[tuple[str, tuple[Any, ...]]] = []
    with watched(cache.parent, lambda *_: None, lambda kind, words: steps.append((kind, words))):
        extract_small(csv, cache, spec, clips)
    log.write_bytes(pickle.dumps(steps))


# Power


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


class Disk:
    """What a disk may hold after the power went away behind some of a log's steps.

    The model grants only what POSIX promises: a file's bytes after its fsync, a change of a folder (a name made,
    renamed or removed in it) after that folder's fsync. Everything else may be there, be missing, or be torn.

    Args:
        root: a folder that was there before.
        steps: as `record_steps` writes them down.
    """

    def __init__(self, root: Path, steps: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.root = root
        names: dict[str, _File] = {}
        self._files: list[_File] = []
        #: (kind, path, file, durable), one for each change of a folder.
        self._entries: list[list[Any]] = []
        for kind, words in steps:
            path = words[0]
            if kind == "create":
                names[path] = _File()
                self._entries.append(["name", path, names[path], False])
            elif kind == "write":
                names[path].data += words[1]
            elif kind == "rename":
                file = names[words[1]] = names.pop(path)
                self._entries.append(["remove", path, None, False])
                self._entries.append(["name", words[1], file, False])
            elif kind == "unlink":
                names.pop(path, None)
                self._entries.append(["remove", path, None, False])
            elif kind == "mkdir":
                self._entries.append(["folder", path, None, False])
            elif path in names:
                names[path].synced = len(names[path].data)
            else:
                for entry in self._entries:
                    entry[3] |= os.path.dirname(entry[1]) == path  # noqa: PTH120 (a name in a log)

    def durable(self) -> set[str]:
        """Names that a power cut cannot take away."""
        held: set[str] = set()
        for kind, path, _, durable in self._entries:
            if durable:
                (held.discard if kind == "remove" else held.add)(path)
        return {path for path in held if self._has_folders(path, held)}

    def _has_folders(self, path: str, held: set[str]) -> bool:
        parents = [parent for parent in Path(path).parents if parent.is_relative_to(self.root)]
        return all(str(parent) in held for parent in parents if parent != self.root)

    def write(self, folder: Path, chance: float, generator: random.Random) -> None:
        """Write what is left into a folder; what was never synced is kept with the given chance, torn or not."""
        held: dict[str, _File | None] = {}
        for kind, path, file, durable in self._entries:
            if durable or generator.random() < chance:
                if kind == "remove":
                    held.pop(path, None)
                else:
                    held[path] = file
        for path, file in held.items():
            if not self._has_folders(path, set(held)):
                continue
            target = folder / Path(path).relative_to(self.root)
            if file is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_left_of(file, chance, generator))


def _left_of(file: _File, chance: float, generator: random.Random) -> bytes:
    """The bytes of a file after a power cut: what was synced, and of the rest what luck leaves."""
    synced, rest = bytes(file.data[: file.synced]), bytes(file.data[file.synced :])
    if chance >= 1 or not rest:
        return synced + rest
    kind = generator.choice(("lost", "torn", "zeros", "garbage"))
    if kind == "lost" or chance <= 0:
        return synced
    if kind == "torn":
        return synced + rest[: generator.randrange(len(rest) + 1)]
    return synced + (bytes(len(rest)) if kind == "zeros" else generator.randbytes(len(rest)))


# What must hold


def reference(cache: Path) -> dict[str, dict[int, bytes]]:
    """Feature → the plan's clip → its bytes, of a cache that nothing happened to."""
    opened = open_cache(cache)
    found = {}
    for name in opened.features:
        tensor = opened.load(name)[name].numpy()
        found[name] = {clip: tensor[clip].tobytes() for clip in range(len(tensor))}
        assert len(tensor) == opened.plan.clips
    return found


def readable(cache: Path, right: dict[str, dict[int, bytes]]) -> set[tuple[str, str]]:
    """(feature, shard) of every shard that opens and reads; an AssertionError where one byte of it is wrong."""
    good: set[tuple[str, str]] = set()
    try:
        opened = open_cache(cache)
    except CacheError:
        return good
    for name in opened.features:
        for shard in opened.plan.shards(opened.features[name]):
            try:
                loaded = opened._open(name, shard).shard
                out = np.empty((len(loaded.clip), *opened.features[name].shape), opened.features[name].dtype)
                wanted = np.asarray(loaded.clip)
                if len(wanted):
                    opened.copy_clips(name, wanted, out)
            except CacheError:
                continue
            for row, clip in enumerate(wanted):
                assert out[row].tobytes() == right[name][int(clip)], f"wrong bytes: {name} {shard.name} {clip}"
            good.add((name, shard.name))
    return good


def files(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but its locks."""
    found = sorted(path for path in cache.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def temporaries(cache: Path) -> list[Path]:
    return [*cache.rglob("*.tmp"), *cache.rglob("*.next")]


def kill_after(process: Any, seconds: float) -> bool:
    """Kill it with SIGKILL after a time; whether it was still running."""
    time.sleep(seconds)
    process.kill()
    return finish(process) == -signal.SIGKILL
