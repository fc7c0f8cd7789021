from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfhca_cache.errors import AudioError
from mfhca_cache.wav import SUFFIXES, AudioInfo, probe, probe_bytes, read_bytes, resampled_length

from .trees import APPLE_DOUBLE, wav_bytes, write_file

# A damaged file must not make soundfile print a traceback from inside its callbacks.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

GOOD = wav_bytes()
#: Where the fields of a plain 44-byte header lie.
CHANNELS, RATE, BITS, DATA_SIZE = 22, 24, 34, 40


def patched(data: bytes, at: int, value: int, kind: str = "<I") -> bytes:
    changed = bytearray(data)
    struct.pack_into(kind, changed, at, value)
    return bytes(changed)


def refusal(data: bytes) -> AudioError:
    with pytest.raises(AudioError) as caught:
        probe_bytes(data)
    return caught.value


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_good_file(tmp_path: Path) -> None:
    info = probe(write_file(tmp_path / "a.wav", GOOD))
    assert (info.frames, info.sample_rate, info.channels, info.seconds) == (1600, 16_000, 1, 0.1)
    assert len(info.sha256) == 64 and info == probe_bytes(GOOD)
    assert probe_bytes(wav_bytes(seed=1)).sha256 != info.sha256


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_what_wavs_may_hold(subtype: str, rate: int) -> None:
    info = probe_bytes(wav_bytes(0.2, rate, channels=2, subtype=subtype))
    assert (info.frames, info.sample_rate, info.channels) == (round(0.2 * rate), rate, 2)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "AIFF", "W64", "RF64", "WAVEX", "NIST"])
def test_other_containers_read_whatever_the_name(tmp_path: Path, kind: str) -> None:
    subtype = "VORBIS" if kind == "OGG" else "PCM_16"
    info = probe(write_file(tmp_path / "named.wav", wav_bytes(0.5, kind=kind, subtype=subtype)))
    assert (info.frames, info.sample_rate) == (8000, 16_000)


def test_extra_chunks_are_allowed_on_both_sides() -> None:
    fmt, data = GOOD[12:36], GOOD[36:]
    odd = chunk(b"LIST", b"INFOISFT\x05\0\0\0Pro T")
    info = probe_bytes(
        riff(chunk(b"JUNK", bytes(27)), fmt, odd, data, chunk(b"bext", bytes(602)), chunk(b"id3 ", b"x"))
    )
    assert info.frames == 1600
    # Bytes that belong to no chunk at the end of a file are usual too.
    assert probe_bytes(GOOD + b"\0").frames == 1600


@pytest.mark.parametrize("cut", [1, 2, 1000, 3199])
def test_a_truncated_file(cut: int) -> None:
    error = refusal(GOOD[:-cut])
    assert error.reason == "truncated"
    assert f"declares 3,200 bytes of audio, the file has {3200 - cut:,}" in str(error)


@pytest.mark.parametrize("kept", range(1, 44))
def test_a_file_cut_inside_its_header_is_refused(kept: int) -> None:
    assert refusal(GOOD[:kept]).reason in {"bad-header", "unreadable", "no-frames"}


def test_nothing_at_all_and_only_a_header(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="0 bytes") as caught:
        probe(write_file(tmp_path / "a.wav", b""))
    assert caught.value.reason == "empty"
    assert refusal(b"").reason == "unreadable"
    # Cut right after the header; the header says that 3,200 bytes follow.
    assert refusal(GOOD[:44]).reason == "truncated"
    assert refusal(wav_bytes(0.0)).reason == "no-frames"
    assert refusal(riff(GOOD[12:36])).reason == "no-frames"


@pytest.mark.parametrize(("size", "reason"), [(0, "no-frames"), (2**31 - 1, "truncated"), (2**32 - 1, "truncated")])
def test_forged_sizes_of_the_data(size: int, reason: str) -> None:
    assert refusal(patched(GOOD, DATA_SIZE, size)).reason == reason


def test_a_forged_size_of_the_whole_is_harmless() -> None:
    for size in (0, 2**31 - 1, 2**32 - 1):
        assert probe_bytes(patched(GOOD, 4, size)).frames == 1600


@pytest.mark.parametrize("rate", [0, 1, 3_999, 384_001, 2**31 - 1, 2**32 - 1])
def test_forged_rates(rate: int) -> None:
    error = refusal(patched(GOOD, RATE, rate))
    assert error.reason == "bad-header" and f"{rate} Hz" in str(error)


@pytest.mark.parametrize("channels", [0, 33, 65_535])
def test_forged_channels(channels: int) -> None:
    assert refusal(patched(GOOD, CHANNELS, channels, "<H")).reason in {"bad-header", "unreadable", "no-frames"}


def test_forged_bits_a_sample() -> None:
    for bits in (0, 7, 65_535):
        changed = patched(GOOD, BITS, bits, "<H")
        try:
            assert probe_bytes(changed).frames > 0
        except AudioError as error:
            assert error.reason in {"bad-header", "unreadable", "no-frames"}


def test_a_file_longer_than_any_utterance() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1201 * 4000, dtype=np.int16), 4000, format="FLAC")
    error = refusal(buffer.getvalue())
    assert error.reason == "too-long" and "1201 s" in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (APPLE_DOUBLE, "AppleDouble"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<HTML>no</HTML>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
    ],
)
def test_impostors_are_named(data: bytes, words: str) -> None:
    error = refusal(data)
    assert error.reason == "not-audio" and words in str(error)


def test_riff_that_is_no_wave() -> None:
    assert refusal(b"RIFF\x04\0\0\0AVI " + bytes(40)).reason == "bad-header"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="not there") as caught:
        read_bytes(tmp_path / "nothing.wav")
    assert caught.value.reason == "missing"
    for path in (tmp_path, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(AudioError):
            read_bytes(path)


def test_endings_are_lower_case() -> None:
    assert all(ending == ending.lower() and ending[0] == "." for ending in SUFFIXES)


BASES = [
    GOOD,
    wav_bytes(kind="FLAC"),
    wav_bytes(kind="RF64"),
    wav_bytes(kind="AIFF"),
    wav_bytes(kind="WAVEX", channels=2),
]


def only_audio_error(data: bytes) -> None:
    try:
        info = probe_bytes(data)
    except AudioError as error:
        assert error.reason and str(error)
    else:
        assert isinstance(info, AudioInfo)
        assert info.frames > 0 and 4_000 <= info.sample_rate <= 384_000 and 1 <= info.channels <= 32


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"FORM", b"OggS", b"RF64\xff\xff\xff\xffWAVEds64"]),
)
@example(b"", b"RIFF")
@example(b"", b"RF64\xff\xff\xff\xffWAVEds64")
def test_arbitrary_bytes_raise_nothing_else(data: bytes, start: bytes) -> None:
    only_audio_error(start + data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 400),
)
def test_mutated_files_raise_nothing_else(base: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    changed = bytearray(base)
    for at, value in changes:
        changed[at] = value
    only_audio_error(bytes(changed[: len(changed) - cut]))


@given(st.integers(1, 10**9), st.integers(4_000, 384_000))
def test_resampled_length_is_exact(frames: int, rate: int) -> None:
    length = resampled_length(frames, rate)
    assert (length - 1) * rate < frames * 16_000 <= length * rate


@given(st.integers(1, 384_000 * 1200), st.integers(4_000, 384_000))
def test_seconds_give_the_frames_back(frames: int, rate: int) -> None:
    assert round(AudioInfo(frames, rate, 1, "").seconds * rate) == frames
