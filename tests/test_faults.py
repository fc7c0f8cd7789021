"""What was committed stays, and nothing wrong is ever read, whatever stops the writer.

Each test takes a short sample; the same test marked ``faults`` counts by the hundred (`make test-faults`).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.storage.cache import open_cache

from . import faults
from .conftest import small_corpus
from .faults import ALONE, BOTH

LONG = pytest.mark.faults
Figure = Callable[[str], None]
Right = dict[str, dict[int, bytes]]


class Calm:
    """A small corpus, its manifest, and the cache that an undisturbed run makes of it."""

    def __init__(self, folder: Path, spec: Any = ALONE, clips: int = 2, sessions: int = 2) -> None:
        self.folder, self.spec, self.clips = folder, spec, clips
        self.manifest = small_corpus(folder / "corpus", sessions=sessions)
        self.csv = folder / "m.csv"
        write_manifest(self.manifest, self.csv)
        assert faults.run(faults.nothing) == 0
        started = time.monotonic()
        assert self.run(folder / "calm") == 0
        self.seconds = time.monotonic() - started
        self.right = faults.reference(folder / "calm")
        self.files = faults.files(folder / "calm")

    def start(self, cache: Path) -> Any:
        return faults.start(faults.extract_small, self.csv, cache, self.spec, self.clips)

    def run(self, cache: Path) -> int:
        return faults.finish(self.start(cache))

    @cached_property
    def steps(self) -> list[Any]:
        """Every write, flush and rename of a run into ``steps-cache``."""
        words = (self.folder / "steps", self.csv, self.folder / "steps-cache", self.spec, self.clips)
        assert faults.run(faults.record_steps, *words) == 0
        return list(pickle.loads((self.folder / "steps").read_bytes()))

    def check_finished(self, cache: Path) -> None:
        """Finish a cache that something happened to: it must become the calm one's twin."""
        assert self.run(cache) == 0
        assert faults.files(cache) == self.files
        assert open_cache(cache).verify() == []


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    return Calm(tmp_path_factory.mktemp("calm"))


# kill -9


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=LONG)])
def test_kills_at_random_moments_lose_nothing(calm: Calm, tmp_path: Path, kills: int, figure: Figure) -> None:
    moments, wild = random.Random(kills), tmp_path / "wild"
    hit = finished = 0
    kept: set[tuple[str, str]] = set()
    for _ in range(kills):
        if len(kept) == sum(name.endswith(".h5") for name in calm.files):
            calm.check_finished(wild)
            shutil.rmtree(wild)
            kept, finished = set(), finished + 1
        hit += faults.kill_after(calm.start(wild), moments.uniform(0, 0.9 * calm.seconds))
        now = faults.readable(wild, calm.right)
        assert kept <= now, "a committed shard was lost"
        kept = now
    calm.check_finished(wild)
    assert hit
    figure(
        f"kill -9 at {kills} random moments, {hit} of them while it ran: committed clips lost 0, wrong bytes 0; "
        f"{finished + 1} caches finished along the way, each byte for byte that of an undisturbed run"
    )


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=LONG)])
def test_a_kill_at_every_step_of_publishing_loses_nothing(
    calm: Calm, tmp_path: Path, every: int, figure: Figure
) -> None:
    small = Calm(tmp_path / "small", clips=5, sessions=1)
    total = 2 * sum(Path(words[0]).is_relative_to(tmp_path / "small/steps-cache") for _, words in small.steps)
    died = 0
    for step in range(0, total, every):
        wild = tmp_path / f"wild{step}"
        status = faults.run(faults.die_at, step, small.csv, wild, small.spec, small.clips)
        died += status == -signal.SIGKILL
        faults.readable(wild, small.right)
        small.check_finished(wild)
        assert not faults.temporaries(wild)
        shutil.rmtree(wild)
    assert died == len(range(0, total, every))
    figure(f"kill -9 before and after each of the {total // 2} steps of publishing: {died} kills, wrong bytes 0")


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=LONG)])
def test_a_kill_while_a_shard_is_made_again_takes_nothing_back(tmp_path: Path, every: int, figure: Figure) -> None:
    """Its file came back, so a shard is replaced: one of the two must always be in force."""
    small = Calm(tmp_path / "small", clips=99, sessions=1)
    away, back = tmp_path / "away.wav", small.folder / "corpus" / "Ses01_F001.wav"
    back.rename(away)
    assert small.run(tmp_path / "before") == 0
    others = sorted(set(small.manifest.utterances["utterance_id"]) - {"Ses01_F001"})
    away.rename(back)
    died = step = 0
    while True:
        wild = Path(shutil.copytree(tmp_path / "before", tmp_path / f"wild{step}"))
        status = faults.run(faults.die_at, step, small.csv, wild, small.spec, small.clips)
        cache = open_cache(wild)
        assert len(cache.load("spectrogram", others)["clips"]) == 9
        for name, clip in zip(others, cache.load("spectrogram", others)["spectrogram"], strict=False):
            if name < "Ses01_F002":
                first = int(cache.utterances.set_index("utterance_id").loc[name, "first_clip"])
                assert clip.numpy().tobytes() == small.right["spectrogram"][first]
        small.check_finished(wild)
        if status == 0:
            break
        died, step = died + 1, step + every
    assert died > 12 / every
    figure(f"kill -9 before and after each step of replacing a shard: {died} kills, committed clips lost 0")


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=LONG)])
def test_a_kill_while_labels_are_corrected_leaves_the_old_or_the_new(
    tmp_path: Path, every: int, figure: Figure
) -> None:
    small = Calm(tmp_path / "small", clips=99, sessions=1)
    table = small.manifest.utterances.copy()
    table.loc[0, "label"] = "exc"
    write_manifest(Manifest("iemocap", small.manifest.root, table), small.csv)
    died = step = 0
    while True:
        wild = Path(shutil.copytree(small.folder / "calm", tmp_path / f"wild{step}"))
        status = faults.run(faults.die_at, step, small.csv, wild, small.spec, small.clips)
        label = open_cache(wild).utterances["label"][0]
        assert label in ("ang", "exc")
        if status == 0:
            assert label == "exc"
            break
        assert small.run(wild) == 0
        assert open_cache(wild).utterances["label"][0] == "exc"
        assert not faults.temporaries(wild)
        died, step = died + 1, step + every
    assert died
    figure(f"kill -9 before and after each step of correcting labels: {died} kills, the cache always opened")


# Power


def _power_cuts(
    calm: Calm, steps: list[Any], folder: Path, moments: range, chances: tuple[float, ...]
) -> tuple[int, int]:
    """Cut the power at moments of a log; the number of states of the disk that were read, and of shards in them."""
    generator = random.Random(0)
    states = shards = 0
    for moment in moments:
        disk = faults.Disk(folder, steps[:moment])
        committed = {
            (Path(name).parent.name, Path(name).stem)
            for name in disk.durable()
            if name.endswith(".json") and "-0" in Path(name).name
        }
        for chance in chances:
            left = folder / "left"
            left.mkdir()
            disk.write(left, chance, generator)
            cache = left / "steps-cache"
            good = faults.readable(cache, calm.right)
            assert committed <= good, f"lost at step {moment}: {committed - good}"
            if generator.random() < 0.05:
                calm.check_finished(cache)
            shutil.rmtree(left)
            states, shards = states + 1, shards + len(good)
    return states, shards


@pytest.mark.parametrize(
    ("every", "chances"), [(11, (0.0, 0.5)), pytest.param(1, (0.0, 0.3, 0.6, 0.9, 1.0), marks=LONG)]
)
def test_a_power_cut_at_any_step_loses_no_committed_clip(
    calm: Calm, every: int, chances: tuple[float, ...], figure: Figure
) -> None:
    steps = calm.steps
    states, shards = _power_cuts(calm, steps, calm.folder, range(0, len(steps) + 1, every), chances)
    assert shards
    figure(
        f"power cut behind each of {len(steps)} writes, flushes and renames, what was not flushed being lost, torn, "
        f"zeroed or kept: {states} states of the disk, {shards} shards read from them, committed clips lost 0, wrong "
        "bytes 0"
    )


def test_the_log_is_whole_and_a_missing_flush_would_be_noticed(calm: Calm, tmp_path: Path) -> None:
    steps = calm.steps
    (tmp_path / "all").mkdir()
    faults.Disk(calm.folder, steps).write(tmp_path / "all", 1.0, random.Random(0))
    assert faults.files(tmp_path / "all" / "steps-cache") == calm.files
    # Receipts that are in force before their shard's bytes are on the disk.
    careless = [step for step in steps if not (step[0] == "fsync" and ".h5." in step[1][0])]
    with pytest.raises(AssertionError, match="lost at step"):
        _power_cuts(calm, careless, calm.folder, range(len(careless)), (0.0,))
    shutil.rmtree(calm.folder / "left")


# A full disk


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 kB: some shards fit, not all."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _extract_words(calm: Calm, cache: Path) -> tuple[str, ...]:
    return ("extract", "--manifest", str(calm.csv), "--cache", str(cache), "--encoder", "none", "--device", "cpu")


def _full(calm: Calm, cache: Path, output: Path) -> None:
    assert faults.run(faults.small_command, output, calm.clips, *_extract_words(calm, cache)) == 1
    text = output.read_text()
    assert "Error: " in text and "could not be" in text and "run the same command again" in text, text
    assert "Traceback" not in text
    assert not faults.temporaries(cache)


def test_a_full_disk_is_said_and_the_same_command_goes_on(calm: Calm, little_disk: Path, tmp_path: Path) -> None:
    _full(calm, little_disk / "c", tmp_path / "out")
    assert "No space left on device" in (tmp_path / "out").read_text()
    good = faults.readable(little_disk / "c", calm.right)
    assert good
    subprocess.run(["mount", "-o", "remount,size=64m", str(little_disk)], check=True)
    calm.check_finished(little_disk / "c")


@pytest.mark.parametrize("sizes", [(1_000, 100_000), pytest.param(tuple(range(1_000, 250_000, 5_000)), marks=LONG)])
def test_a_write_that_fails_anywhere_leaves_no_half_file(
    calm: Calm, tmp_path: Path, sizes: tuple[int, ...], figure: Figure
) -> None:
    for size in sizes:
        cache = tmp_path / f"c{size}"
        words = (tmp_path / "out", size, calm.clips, *_extract_words(calm, cache))
        assert faults.run(faults.limited_command, *words) == 1
        text = (tmp_path / "out").read_text()
        assert "Error: " in text and "Traceback" not in text and "File too large" in text, text
        assert not faults.temporaries(cache)
        faults.readable(cache, calm.right)
    calm.check_finished(tmp_path / f"c{sizes[-1]}")
    figure(f"writes that fail at {len(sizes)} sizes: half files 0, crashes 0")


# Several at once


@pytest.mark.parametrize("rounds", [1, pytest.param(15, marks=LONG)])
@pytest.mark.parametrize("count", [2, 3])
def test_several_extractors_share_a_cache_and_one_of_them_is_killed(
    calm: Calm, tmp_path: Path, count: int, rounds: int, figure: Figure
) -> None:
    moments = random.Random(count)
    hit = 0
    for number in range(rounds):
        cache = tmp_path / f"c{number}"
        runs = [calm.start(cache) for _ in range(count)]
        hit += faults.kill_after(runs[0], moments.uniform(0.05, calm.seconds))
        assert [faults.finish(run) for run in runs[1:]] == [0] * (count - 1)
        # The others have taken over what the killed one held.
        assert {name for name in faults.files(cache) if not name.endswith(".tmp")} == set(calm.files)
        calm.check_finished(cache)
        shutil.rmtree(cache)
    figure(
        f"{count} extractors on one cache, {rounds} times, one of them killed ({hit} while it ran): the others finished"
    )


def test_both_features_survive_kills_and_company(tmp_path: Path) -> None:
    calm = Calm(tmp_path / "calm", BOTH, clips=10, sessions=1)
    runs = [calm.start(tmp_path / "c") for _ in range(2)]
    faults.kill_after(runs[0], calm.seconds / 2)
    assert faults.finish(runs[1]) == 0
    calm.check_finished(tmp_path / "c")


def test_stale_locks_and_temporary_files_are_in_nobodys_way(calm: Calm, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    (cache / ".locks").mkdir(parents=True)
    (cache / "spectrogram").mkdir()
    for name in ("plan", "spectrogram.feature", "spectrogram.session1-0000"):
        (cache / ".locks" / f"{name}.lock").write_bytes(b"4711\nanother-computer\n")
    for name in ("session1-0000.h5", "session1-0000.json", "session1-0000.json.next", "feature.json"):
        (cache / "spectrogram" / f".{name}.4711-deadbeef.tmp").write_bytes(b"half a fi")
    for name in ("cache.json", "utterances.csv"):
        (cache / f".{name}.4711-deadbeef.tmp").write_bytes(b"half a fi")
    (cache / "spectrogram" / "session1-0001.json.next").write_bytes(b"{")
    calm.check_finished(cache)
    assert not faults.temporaries(cache)


# Being stopped


@pytest.mark.parametrize("times", [2, pytest.param(25, marks=LONG)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_so_and_loses_nothing(
    calm: Calm, tmp_path: Path, number: signal.Signals, times: int, figure: Figure
) -> None:
    moments = random.Random(int(number))
    cache, stopped = tmp_path / "c", 0
    kept: set[tuple[str, str]] = set()
    for _ in range(times):
        process = faults.start(faults.small_command, tmp_path / "out", calm.clips, *_extract_words(calm, cache))
        while not (tmp_path / "out").exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.8 * calm.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        status = faults.finish(process)
        text = (tmp_path / "out").read_text()
        assert status in (0, 128 + number, -number) and "Traceback" not in text, text
        # Before the command has begun, a signal ends it as it ends any process.
        assert status != -number or text == ""
        if status > 0:
            stopped += 1
            assert text.rstrip().endswith("the same command goes on from there."), text
        assert not faults.temporaries(cache)
        now = faults.readable(cache, calm.right)
        assert kept <= now
        kept = now
        (tmp_path / "out").unlink()
        if status == 0:
            shutil.rmtree(cache)
            kept = set()
    calm.check_finished(cache)
    figure(f"{number.name} at {times} random moments, {stopped} while it ran: half files 0, tracebacks 0")


@pytest.mark.parametrize("moments", [(0.0, 1.0), pytest.param(tuple(n / 4 for n in range(24)), marks=LONG)])
def test_ctrl_c_while_libraries_are_loaded_is_no_traceback(
    calm: Calm, tmp_path: Path, moments: tuple[float, ...], figure: Figure
) -> None:
    for moment in moments:
        code = "print('ready', flush=True); from mfhca_cache.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *_extract_words(calm, tmp_path / "c")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05 + moment)
        process.send_signal(signal.SIGINT)
        output, text = process.communicate(timeout=120)
        # Once the command has said its last word and the interpreter shuts down, a signal ends it as any process.
        over = process.returncode == -signal.SIGINT and "Next: " in output
        assert over or process.returncode in (0, 130), (process.returncode, output, text)
        assert "Traceback" not in text, text
    figure(f"Ctrl-C at {len(moments)} moments of a whole command, its loading included: tracebacks 0")


def test_an_interrupt_in_a_finaliser_is_not_lost() -> None:
    code = """
import signal, time
from mfhca_cache.cli import _lose_no_interrupt

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

_lose_no_interrupt()
try:
    last = Last()
    del last
    time.sleep(20)
    print("lost")
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


# Read-only folders


def test_a_read_only_cache_is_read_and_never_written(calm: Calm, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    try:
        shutil.copytree(calm.folder / "calm", folder / "c", ignore=shutil.ignore_patterns(".locks"))
        (folder / "c" / "spectrogram" / "session2-0000.json").unlink()
        shutil.copytree(calm.folder / "corpus", folder / "corpus")
        write_manifest(calm.manifest.with_root(folder / "corpus"), folder / "m.csv")
        out = tmp_path / "out"
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        (left, _) = faults.answer(faults.unprivileged, faults.readable, folder / "c", calm.right)
        assert len(left) == (len(calm.files) - 3) // 2 - 1
        words = ("extract", "--manifest", str(folder / "m.csv"), "--cache", str(folder / "c"), "--encoder", "none")
        assert faults.run(faults.unprivileged, faults.small_command, out, calm.clips, *words) == 1
        assert "read-only" in out.read_text() and "Traceback" not in out.read_text(), out.read_text()
        # What is complete asks for no writing.
        words = (*words, "--split", "session1", "--quiet")
        assert faults.run(faults.unprivileged, faults.small_command, out, calm.clips, *words) == 0, out.read_text()
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


# Elsewhere


def test_a_cache_that_was_moved_opens_and_goes_on(calm: Calm, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(calm.folder / "calm", tmp_path / "other" / "name"))
    (tmp_path / "link").symlink_to(moved)
    for place in (moved, tmp_path / "link"):
        assert faults.readable(place, calm.right) == faults.readable(calm.folder / "calm", calm.right)
    (moved / "spectrogram" / "session1-0001.json").unlink()
    calm.check_finished(tmp_path / "link")


@LONG
def test_the_whole_command_is_killed(figure: Figure) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "kill_extract.py"
    done = subprocess.run([sys.executable, script, "--kills", "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figure(f"whole commands (benchmarks/kill_extract.py): {done.stdout.splitlines()[-1]}")
