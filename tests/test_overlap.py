"""Decoding ahead and writing behind: the same bytes, bounded memory, and an end that is prompt and clean."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mfhca_cache.errors import CacheError
from mfhca_cache.extraction import decode, overlap, run
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.build import publish_made
from mfhca_cache.extraction.clips import cut_clips, place_clips
from mfhca_cache.extraction.decode import ClipRun, Room, decode_clips
from mfhca_cache.extraction.overlap import Helpers
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import Manifest
from mfhca_cache.progress import Progress
from mfhca_cache.spec import ClipSpec, ExtractSpec, SpectrogramSpec
from mfhca_cache.storage import commit, layout
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.publish import lock

from . import faults
from .conftest import TINY, build_manifest, small_corpus, tone, write_wav
from .test_extract import shard_bytes

LOUD = ExtractSpec(encoder=None, spectrogram=SpectrogramSpec(pre_emphasis=0.97))


@pytest.fixture
def little_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips a shard: twelve runs of clips, whose utterances span two of them."""
    monkeypatch.setattr(layout, "MAX_SHARD_CLIPS", 3)


def receipts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*-0*.json"))}


def helpers_left() -> list[str]:
    return [item.name for item in threading.enumerate() if item.name.startswith(("decode", "write"))]


# The same bytes


@pytest.mark.usefixtures("little_shards")
@pytest.mark.parametrize("spec", [TINY, LOUD], ids=["encoder", "pre-emphasis"])
def test_the_bytes_are_those_of_a_run_in_turn_whatever_the_threads_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ExtractSpec
) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=2)
    (tmp_path / "w" / "Ses01_F002.wav").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(overlap, "AHEAD", 0)
        patch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
        extract(manifest, tmp_path / "turn", spec, device="cpu")
    dawdle = np.random.default_rng(0)

    def late(path: Path, *words: object) -> np.ndarray:
        time.sleep(dawdle.uniform(0, 0.02))
        return load_audio(path, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "load_audio", late)
    monkeypatch.setattr(overlap, "decoders", lambda device: 3)
    for ahead in (1, 3):
        monkeypatch.setattr(overlap, "AHEAD", ahead)
        extract(manifest, tmp_path / f"c{ahead}", spec, device="cpu")
        assert shard_bytes(tmp_path / f"c{ahead}") == shard_bytes(tmp_path / "turn")
        assert receipts(tmp_path / f"c{ahead}") == receipts(tmp_path / "turn")
    assert not helpers_left()


@pytest.mark.usefixtures("little_shards")
def test_the_next_clips_are_decoded_and_the_last_written_while_the_encoder_works(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each of the three held until the others have gone on: in turn, this would wait for ever."""
    events: list[str] = []
    seen = threading.Condition()

    def note(event: str, wanted: Callable[[], bool] = lambda: True) -> None:
        with seen:
            events.append(event)
            seen.notify_all()
            assert seen.wait_for(wanted, timeout=20), events

    def decoded(path: Path, *words: object) -> np.ndarray:
        note("decode")
        return load_audio(path, *words)  # type: ignore[arg-type]

    def published(*words: object) -> int:
        # The first shard is written once a later one has been computed.
        note("write", lambda: events.count("compute") >= 2)
        return publish_made(*words)  # type: ignore[arg-type]

    def progress(report: Progress) -> None:
        if report.stage == "random-tiny" and report.total:
            # The first clips are encoded only once those of the second run are being decoded.
            note("compute", lambda: events.count("decode") > 3)

    monkeypatch.setattr(decode, "load_audio", decoded)
    monkeypatch.setattr(run, "publish_made", published)
    extract(small_manifest, tmp_path / "c", TINY, "session1", device="cpu", progress=progress)
    assert len(shard_bytes(tmp_path / "c")) == 8


def test_parts_of_a_run_give_what_one_gives(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    cache = tmp_path / "c"
    extract(manifest, cache, ExtractSpec(encoder=None))
    plan = open_cache(cache).plan
    whole = decode_clips(plan, tmp_path / "w", 0, plan.clips, 0.97)
    for first, stop, count in ((0, plan.clips, 3), (2, 4, 1), (3, 9, 50), (9, 10, 2)):
        clips = ClipRun(plan, tmp_path / "w", first, stop, 0.97)
        part = clips.joined([decoded() for decoded in clips.parts(count)])
        assert list(part.numbers) == list(range(first, stop))
        assert np.array_equal(part.signal, whole.signal[first:stop])
        assert np.array_equal(part.emphasised, whole.emphasised[first:stop])
        assert np.array_equal(part.valid, whole.valid[first:stop])
        assert part.audio == plan.audio(first, stop)


def test_clips_are_placed_as_they_are_cut() -> None:
    spec = ClipSpec(seconds=0.1)
    samples = np.arange(1, 4001, dtype=np.float32)
    clips, valid = cut_clips(samples, spec)
    for number, count in ((0, 3), (1, 2), (2, 1), (0, 1)):
        out = np.full((count, spec.samples), np.nan, dtype=np.float32)
        assert list(place_clips(samples, spec, out, number)) == list(valid[number : number + count])
        assert np.array_equal(out, clips[number : number + count])


# Errors and interrupts


@pytest.mark.usefixtures("little_shards")
def test_an_error_while_writing_ends_the_run_at_the_next_batch(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def full(*words: object) -> int:
        failed.set()
        raise CacheError("the disk is full")

    def progress(report: Progress) -> None:
        if report.stage == "random-tiny":
            assert failed.wait(20)

    monkeypatch.setattr(run, "publish_made", full)
    seen: list[str] = []

    def watch(report: Progress) -> None:
        seen.append(report.stage)
        progress(report)

    with pytest.raises(CacheError, match="the disk is full"):
        extract(small_manifest, tmp_path / "c", TINY, device="cpu", progress=watch)
    # The spectrograms' shard failed while the first clips were encoded: nothing more was begun.
    assert seen.count("decoding") == 1 and not shard_bytes(tmp_path / "c")
    assert not helpers_left()
    monkeypatch.undo()
    extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    assert open_cache(tmp_path / "c").verify() == []


def test_an_error_while_decoding_is_raised_as_it_is(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> np.ndarray:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(decode, "load_audio", broken)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        extract(small_manifest, tmp_path / "c", ExtractSpec(encoder=None))
    assert not helpers_left()


@pytest.mark.usefixtures("little_shards")
def test_an_interrupt_ends_at_once_and_cleanly(small_manifest: Manifest, tmp_path: Path) -> None:
    committed = 0

    def progress(report: Progress) -> None:
        nonlocal committed
        if report.stage == "random-tiny" and report.done > 6:
            committed = len(receipts(tmp_path / "c"))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        extract(small_manifest, tmp_path / "c", TINY, device="cpu", progress=progress)
    assert time.monotonic() - began < 20
    assert not helpers_left() and not faults.temporaries(tmp_path / "c")
    assert committed <= len(receipts(tmp_path / "c")) <= committed + 2
    # Every lock is free again, for any thread.
    for path in (tmp_path / "c" / ".locks").iterdir():
        with lock(tmp_path / "c", path.stem).acquire(timeout=0):
            pass
    assert extract(small_manifest, tmp_path / "c", TINY, device="cpu").clips == 30


def test_what_waits_to_be_written_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_WAITING", 100)
    go, written = threading.Event(), list[int]()

    def write(number: int) -> Callable[[], None]:
        def act() -> None:
            assert go.wait(20)
            written.append(number)

        return act

    def hand_over() -> None:
        for number, size in enumerate((60, 40, 500, 1)):
            helpers.write(size, write(number))
            handed.append(number)

    handed: list[int] = []
    with Helpers(1) as helpers:
        other = threading.Thread(target=hand_over)
        other.start()
        time.sleep(0.2)
        # Two fit; what is larger than everything waits to be alone.
        assert handed == [0, 1] and written == []
        go.set()
        other.join(20)
    assert written == [0, 1, 2, 3]


def test_what_is_not_begun_is_given_up_after_an_error() -> None:
    begun, go, written = threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        begun.set()
        assert go.wait(20)
        written.append(0)

    with pytest.raises(KeyboardInterrupt), Helpers(1) as helpers:
        helpers.write(1, first)
        helpers.write(1, lambda: written.append(1))
        assert begun.wait(20)
        threading.Timer(0.1, go.set).start()
        raise KeyboardInterrupt
    # The one that was being written is whole.
    assert written == [0] and helpers.stopping.is_set()


# Memory


def test_room_is_shared_and_a_giant_waits_to_be_alone() -> None:
    room, order = Room(100), list[str]()

    def take(name: str, size: int, seconds: float) -> None:
        with room.of(size):
            order.append(f"+{name}")
            time.sleep(seconds)
            order.append(f"-{name}")

    threads = []
    for name, size in (("a", 60), ("b", 40), ("giant", 1000)):
        threads.append(threading.Thread(target=take, args=(name, size, 0.3)))
        threads[-1].start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    assert order == ["+a", "+b", "-a", "-b", "+giant", "-giant"]


def test_a_long_recording_is_mixed_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stereo = np.stack([tone(3.0, rate=48_000), 0.5 * tone(3.0, 200, rate=48_000)], axis=1)
    found = {}
    for name, subtype in (("a.wav", "PCM_16"), ("b.flac", "PCM_24"), ("c.ogg", "VORBIS"), ("d.wav", "FLOAT")):
        soundfile.write(tmp_path / name, stereo, 48_000, subtype=subtype)
        found[name] = load_audio(tmp_path / name)
    monkeypatch.setattr("mfhca_cache.extraction.audio._BLOCK", 10_001)
    for name, samples in found.items():
        assert np.array_equal(load_audio(tmp_path / name), samples), name


def _long_extraction(folder: Path) -> None:
    name = "long"
    row = {"utterance_id": name, "session": "", "label": "neu"}
    extract(build_manifest(folder / "w", [row]), folder / "c", LOUD)


def test_a_long_stereo_recording_takes_little_more_than_itself(tmp_path: Path) -> None:
    """Ten minutes: its file, 115 MB, and its mean over channels, as much; then 200 clips, twice, and spectrograms."""
    path = tmp_path / "w" / "long.wav"
    path.parent.mkdir()
    second = np.stack([tone(1.0, rate=48_000)] * 2, axis=1)
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(599):
            file.write(second)
    _, cost = faults.answer(_long_extraction, tmp_path)
    assert open_cache(tmp_path / "c").plan.clips == 200
    # With all of its channels in memory as float32 it would be 230 MB more.
    assert cost < 480


def test_long_clips_make_short_shards(tmp_path: Path) -> None:
    """A shard's audio lies in memory as a whole."""
    write_wav(tmp_path / "w" / "a.wav", tone(0.5))
    manifest = build_manifest(tmp_path / "w", [{"utterance_id": "a", "session": ""}])
    for seconds, clips in ((3.0, 512), (60.0, 34)):
        cache = tmp_path / f"c{seconds}"
        extract(manifest, cache, ExtractSpec(encoder=None, clip=ClipSpec(seconds=seconds)))
        assert open_cache(cache).features["spectrogram"].clips_per_shard == clips


# Looking


@pytest.mark.usefixtures("little_shards")
def test_each_shard_is_looked_at_once(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    looks: list[str] = []
    kept = commit.read_receipt
    monkeypatch.setattr(commit, "read_receipt", lambda path: looks.append(str(path)) or kept(path))
    assert extract(small_manifest, tmp_path / "c", TINY, device="cpu").new_shards == 0
    assert len(looks) == len(set(looks)) == 24


def test_a_look_finds_what_a_reader_would_refuse(small_manifest: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    extract(small_manifest, cache, ExtractSpec(encoder=None))
    opened = open_cache(cache)
    (info,) = opened.features.values()
    first, second, third = opened.plan.shards(info)
    before = shard_bytes(cache)

    def done() -> list[bool]:
        survey = Survey(cache, opened.plan)
        return [survey.is_done(info, shard) for shard in (first, second, third)]

    assert done() == [True, True, True]
    torn, flipped = (cache / info.name / f"{shard.name}.h5" for shard in (first, second))
    torn.write_bytes(torn.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[100] ^= 1
    flipped.write_bytes(content)
    (cache / info.name / f"{third.name}.json").unlink()
    assert done() == [False, False, False]
    assert extract(small_manifest, cache, ExtractSpec(encoder=None)).new_shards == 3
    assert shard_bytes(cache) == before
