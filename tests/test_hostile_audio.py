"""Audio files that lie, explode or are none: refused with the reason before they cost memory, or read if sound.

Each goes the way of a user's file: into a table, through `mfhca manifest table`, and through extraction.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mfhca_cache.containers import with_flac_frames
from mfhca_cache.corpora import read_corpus
from mfhca_cache.errors import AudioError, CorpusError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.wav import MAX_DECODED, probe

from . import faults
from .conftest import build_manifest, tone
from .trees import APPLE_DOUBLE, wav_bytes, write_file

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

GOOD = wav_bytes(0.5)
CHANNELS, RATE, BYTES_A_SECOND, BLOCK, DATA_SIZE = 22, 24, 28, 32, 40
#: MiB that a refusal may cost beyond the libraries.
CHEAP = 40.0


def patched(at: int, value: int, kind: str = "<I") -> bytes:
    changed = bytearray(GOOD)
    struct.pack_into(kind, changed, at, value)
    return bytes(changed)


def encoded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_value(value: float) -> bytes:
    samples = tone(0.5)
    samples[77] = value
    return encoded(samples)


def silent_flac(seconds: int, rate: int = 16_000, channels: int = 1) -> bytes:
    """A bomb: silence in FLAC takes next to nothing."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, channels, "PCM_16", format="FLAC") as file:
        for _ in range(seconds):
            file.write(np.zeros((rate, channels), dtype=np.int16))
    return buffer.getvalue()


BOTH_SIDES = np.stack([tone(0.5), -tone(0.5)], axis=1)

#: What → its bytes and the reason for which it is refused, or None where it is sound audio.
FILES: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", "empty"),
    "header only": (wav_bytes(0.0), "no-frames"),
    "header only, of audio that was there": (GOOD[:44], "truncated"),
    "data cut short": (GOOD[:-1000], "truncated"),
    "data size 0": (patched(DATA_SIZE, 0), "no-frames"),
    "data size 2^31-1": (patched(DATA_SIZE, 2**31 - 1), "truncated"),
    "data size 2^32-1": (patched(DATA_SIZE, 2**32 - 1), "truncated"),
    "rate 0": (patched(RATE, 0), "bad-header"),
    "rate 2e9": (patched(RATE, 2_000_000_000), "bad-header"),
    "rate mislabelled": (patched(RATE, 48_000), "bad-header"),
    "65,535 channels": (patched(CHANNELS, 65_535, "<H"), "bad-header"),
    "2 channels in blocks of 1": (patched(CHANNELS, 2, "<H"), "bad-header"),
    "no channels": (patched(CHANNELS, 0, "<H"), "unreadable"),
    "NaN": (with_value(np.nan), "not-finite"),
    "infinity": (with_value(np.inf), "not-finite"),
    "1e29": (with_value(1e29), "amplitude"),
    "8 bits": (wav_bytes(0.5, subtype="PCM_U8"), None),
    "A-law": (wav_bytes(0.5, 8_000, subtype="ALAW"), None),
    "8 kHz": (wav_bytes(0.5, 8_000), None),
    "bytes a second never stated": (patched(BYTES_A_SECOND, 0), None),
    "silence": (encoded(np.zeros(8000)), "silence"),
    "anti-phase": (encoded(BOTH_SIDES), "silence"),
    "clipped": (encoded(np.clip(30 * tone(0.5), -1, 1), subtype="PCM_16"), None),
    "10 ms": (wav_bytes(0.01), "too-short"),
    "FLAC under .wav": (encoded(tone(0.5), kind="FLAC", subtype="PCM_16"), None),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not-audio"),
    "AppleDouble": (APPLE_DOUBLE, "not-audio"),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not-audio"),
    "text": (b"just some words\n" * 40, "unreadable"),
    "gzip": (gzip.compress(GOOD), "unreadable"),
    "an hour of FLAC": (silent_flac(3600), "too-long"),
    "an hour that says a second": (with_flac_frames(silent_flac(3600), 16_000), "bad-header"),
    "a second that says a minute": (with_flac_frames(silent_flac(1), 960_000), "unreadable"),
    "a FLAC that does not say": (with_flac_frames(silent_flac(1), 0), "bad-header"),
    "eight channels of 384 kHz": (with_flac_frames(silent_flac(1, 384_000, 8), 384_000 * 1200), "too-long"),
    "AIFF cut short": (wav_bytes(0.5, kind="AIFF")[:-1], "truncated"),
    "Wave64 cut short": (wav_bytes(0.5, kind="W64")[:-1], "truncated"),
    "SPHERE cut short": (wav_bytes(0.5, kind="NIST")[:-1], "truncated"),
    "AU cut short": (wav_bytes(0.5, kind="AU")[:-1], "truncated"),
    "Ogg cut short": (wav_bytes(0.5, kind="OGG", subtype="VORBIS")[:-1], "truncated"),
    "FLAC cut short": (wav_bytes(0.5, kind="FLAC")[:-1], "unreadable"),
    "a container of nobody's": (wav_bytes(0.5, kind="CAF"), "unreadable"),
    "chunks without end": (GOOD[:12] + (b"JUNK" + bytes(4)) * 400_000, "no-frames"),
}


@dataclass
class Read:
    """What a user sees of the files: reasons by file, and the manifest and the cache of the rest."""

    reasons: dict[str, str]
    left: set[str]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    root = tmp_path_factory.mktemp("audio")
    names = {f"f{number:02d}": what for number, what in enumerate(FILES)}
    rows = ["path,speaker,label", *(f"{name}.wav,s1,neu" for name in names)]
    write_file(root / "t.csv", "\n".join(rows) + "\n")
    for name, what in names.items():
        write_file(root / f"{name}.wav", FILES[what][0])
    manifest = read_corpus("table", root / "t.csv")
    reasons = {names[Path(item.path).stem]: item.reason for item in manifest.rejected}
    report = extract(manifest, root / "cache", ExtractSpec(encoder=None, rows="all"))
    reasons |= {names[item.path]: item.reason for item in report.rejected}
    there = open_cache(root / "cache").available(["spectrogram"])
    return Read(reasons, {names[name] for name in there})


@pytest.mark.parametrize("what", list(FILES))
def test_a_file_is_refused_with_its_reason_or_read(read: Read, what: str) -> None:
    expected = FILES[what][1]
    if expected is None:
        assert what in read.left
    else:
        assert read.reasons[what].split(":")[0] == expected
        assert what not in read.left
    assert len(read.left) + len(read.reasons) == len(FILES)


def test_a_refusal_costs_no_memory(tmp_path: Path) -> None:
    bad = [(data, reason) for data, reason in FILES.values() if reason is not None]
    paths = [(write_file(tmp_path / f"{number}.wav", data),) for number, (data, _) in enumerate(bad)]
    huge = write_file(tmp_path / "huge.wav", GOOD)
    os.truncate(huge, 2**40)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    paths += [(huge,), (tmp_path / "pipe.wav",), (tmp_path / "zero.wav",)]
    found, cost = faults.answer(reasons, paths)
    assert found == [*(reason for _, reason in bad), "too-long", "missing", "missing"]
    assert cost < CHEAP, f"{cost:.0f} MiB"


def reasons(paths: list[tuple[Path]]) -> list[str | None]:
    found: list[str | None] = []
    for (path,) in paths:
        try:
            load_audio(path)
            found.append(None)
        except AudioError as error:
            found.append(error.reason)
    return found


def test_what_is_decoded_is_bounded_over_all_channels(tmp_path: Path) -> None:
    frames = MAX_DECODED // 8 + 1
    data = with_flac_frames(silent_flac(1, 96_000, 8), frames)
    with pytest.raises(AudioError, match="134,217,736 samples") as caught:
        probe(write_file(tmp_path / "a.flac", data))
    assert caught.value.reason == "too-long"


def test_a_name_that_is_no_utf_8_is_refused_and_shown(tmp_path: Path) -> None:
    for name in (b"03a01Fa.wav", b"03a02W\xff.wav"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(wav_bytes(0.5, seed=len(name)))
    manifest = read_corpus("emodb", tmp_path)
    assert list(manifest.utterances["utterance_id"]) == ["03a01Fa"]
    assert [item.path for item in manifest.rejected] == ["03a02W\\udcff.wav"]
    output = tmp_path / "out"
    named = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    Path(tmp_path / "x").mkdir()
    os.rename(tmp_path / "x", named)  # noqa: PTH104
    Path(named, "03a01Fa.wav").write_bytes(wav_bytes(0.5))
    csv = str(tmp_path / "m.csv")
    assert faults.run(faults.command, output, "manifest", "emodb", named, "-o", csv) == 0, output.read_text()
    words = ("extract", "--manifest", csv, "--cache", named + "/c", "--encoder", "none")
    assert faults.run(faults.command, output, *words) == 0, output.read_text()
    assert "\\udcff" in output.read_text()


# Links


def linked(tmp_path: Path) -> Manifest:
    """A corpus of which one file and one folder are links out of it."""
    write_file(tmp_path / "secret" / "a.wav", wav_bytes(0.5, seed=1))
    write_file(tmp_path / "secret" / "deep" / "b.wav", wav_bytes(0.5, seed=2))
    root = tmp_path / "corpus"
    write_file(root / "in.wav", wav_bytes(0.5, seed=3))
    (root / "a.wav").symlink_to(tmp_path / "secret" / "a.wav")
    (root / "deep").symlink_to(tmp_path / "secret" / "deep")
    (root / "same.wav").symlink_to("in.wav")
    rows = [{"utterance_id": name} for name in ("a", "in", "same")]
    return build_manifest(root, [*rows, {"utterance_id": "deep/b"}])


def test_a_link_out_of_the_corpus_is_not_followed_at_extraction(tmp_path: Path) -> None:
    manifest = linked(tmp_path)
    report = extract(manifest, tmp_path / "c", faults.ALONE)
    assert {item.path: item.reason.split(":")[0] for item in report.rejected} == {"a": "link", "deep/b": "link"}
    assert open_cache(tmp_path / "c").available(["spectrogram"]) == ["in", "same"]
    assert extract(manifest, tmp_path / "c", faults.ALONE).new_shards == 0
    # The root itself may be a link: people keep corpora on other disks.
    (tmp_path / "elsewhere").symlink_to(tmp_path / "corpus")
    again = extract(manifest.with_root(tmp_path / "elsewhere"), tmp_path / "d", faults.ALONE)
    assert again.ok == 2
    # Once the file lies in the corpus it is taken in.
    (tmp_path / "corpus" / "a.wav").unlink()
    write_file(tmp_path / "corpus" / "a.wav", wav_bytes(0.5, seed=1))
    assert [item.path for item in extract(manifest, tmp_path / "c", faults.ALONE).rejected] == ["deep/b"]


# Anything

KINDS = ("WAV", "FLAC", "RF64", "AIFF", "WAVEX", "W64", "NIST", "AU", "OGG", "MP3")
BASES = [
    wav_bytes(0.05, kind=kind, subtype={"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")) for kind in KINDS
]
MAGICS = [
    b"",
    b"RIFF\0\0\0\0WAVE",
    b"fLaC",
    b"FORM\0\0\0\0AIFF",
    b"OggS",
    b"riff",
    b".snd",
    b"NIST_1A\n   1024\n",
    b"ID3",
]


def check_audio(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        samples = load_audio(path)
    except AudioError as error:
        assert error.reason and str(error)
        return
    assert samples.dtype == np.float32 and len(samples) >= 400 and np.isfinite(samples).all()


@settings(max_examples=150)
@given(st.binary(max_size=300), st.sampled_from(MAGICS))
def test_arbitrary_bytes_are_audio_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    check_audio(tmp_path_factory.getbasetemp() / "any.wav", start + data)


@settings(max_examples=200)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    st.integers(0, 500),
)
def test_mutated_audio_is_audio_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, base: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    changed = bytearray(base)
    for at, value in changes:
        changed[at % len(base)] = value
    check_audio(tmp_path_factory.getbasetemp() / "any.wav", bytes(changed[: len(changed) - cut]))


@pytest.mark.faults
def test_thousands_of_mutated_files_crash_no_decoder(tmp_path: Path, figure: Callable[[str], None]) -> None:
    count = 12_000
    for seed in range(0, count, 1000):
        found, cost = faults.answer(load_mutated, tmp_path / "a.wav", seed, 1000)
        assert found == 1000, found
        assert cost < 400
    figure(f"audio files with 1 to 4 bytes changed, of {len(KINDS)} containers: {count:,}, crashes 0, other errors 0")


def load_mutated(path: Path, seed: int, count: int) -> int:
    import random

    generator = random.Random(seed)
    for _ in range(count):
        data = bytearray(generator.choice(BASES))
        for _ in range(generator.choice((1, 1, 2, 4))):
            data[generator.randrange(min(len(data), generator.choice((64, 200, 10**9))))] = generator.randrange(256)
        check_audio(path, bytes(data))
    return count


def test_a_table_of_nothing_but_bad_files_says_why(tmp_path: Path) -> None:
    write_file(tmp_path / "t.csv", "path,speaker,label\na.wav,s,neu\n")
    write_file(tmp_path / "a.wav", FILES["an hour of FLAC"][0])
    with pytest.raises(CorpusError, match=r"a\.wav: too-long: got 3600 s"):
        read_corpus("table", tmp_path)
    value: Any = len(FILES["an hour of FLAC"][0])
    assert value < 200_000
