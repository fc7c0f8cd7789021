"""An audio file's container: what its header says, checked against the bytes that are there.

Usual libraries read a truncated wav, a forged rate or an empty file without complaint. So the header is compared
with the file here, before anything is decoded, and the same bytes are hashed.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.errors import AudioError
from mfhca_cache.spec import MAX_SECONDS, SAMPLE_RATE

#: Endings that corpus readers look for.
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".sph")
#: No speech corpus lies outside these; a value beyond them is a damaged header.
SAMPLE_RATES = (4_000, 384_000)  # Hz
MAX_CHANNELS = 32
#: Nothing of MAX_SECONDS is larger (8 channels of 32 bits at 96 kHz).
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file is: frames a channel, Hz, channels, and the SHA-256 of its bytes (64 hex digits)."""

    frames: int
    sample_rate: int
    channels: int
    sha256: str

    @property
    def seconds(self) -> float:
        """Length in seconds, exact enough that ``round(seconds * sample_rate)`` gives the frames back."""
        return self.frames / self.sample_rate


def resampled_length(frames: int, sample_rate: int) -> int:
    """Samples at 16 kHz of so many frames at another rate: ceil(frames · 16000 / rate), in whole numbers."""
    return -(-frames * SAMPLE_RATE // sample_rate)


class AudioBytes(io.BytesIO):
    """Bytes in memory for soundfile, silent on damaged files.

    A forged header makes libsndfile seek to before the start; BytesIO would raise inside its callback, where nothing
    catches it and a traceback is printed. Here the position stays, and libsndfile takes note and fails.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """`io.BytesIO.seek`, which stays where it is instead of raising."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        AudioError: missing, unreadable, empty or larger than any utterance.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AudioError("too-long", f"got {size / 2**30:.1f} GiB; no utterance is larger than 4 GiB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise AudioError("missing", "the file is not there") from None
    except (OSError, ValueError) as error:
        raise AudioError("missing", f"the file cannot be read ({error})") from error
    if not data:
        raise AudioError("empty", "the file has 0 bytes")
    return data


def probe(path: Path) -> AudioInfo:
    """Read a file, check its header against its bytes, and hash it.

    Raises:
        AudioError: with ``reason`` one of missing, unreadable, empty, not-audio, truncated, no-frames, bad-header,
            too-long.
    """
    return probe_bytes(read_bytes(path))


def probe_bytes(data: bytes) -> AudioInfo:
    """`probe` of bytes already in memory."""
    import soundfile

    _check_magic(data)
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        _check_riff(data)
    try:
        info = soundfile.info(AudioBytes(data))
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise AudioError("unreadable", f"not decodable as audio: {str(error).split(': ', 1)[-1]}") from error
    if not SAMPLE_RATES[0] <= info.samplerate <= SAMPLE_RATES[1]:
        raise AudioError("bad-header", f"got a sample rate of {info.samplerate} Hz; expected 4,000 to 384,000")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioError("bad-header", f"got {info.channels} channels; expected 1 to {MAX_CHANNELS}")
    if info.frames <= 0:
        raise AudioError("no-frames", "the header is sound but no audio follows it")
    if info.frames / info.samplerate > MAX_SECONDS:
        raise AudioError(
            "too-long",
            f"got {info.frames / info.samplerate:.0f} s; an utterance has at most {MAX_SECONDS:.0f} s",
        )
    return AudioInfo(info.frames, info.samplerate, info.channels, hashlib.sha256(data).hexdigest())


def _check_magic(data: bytes) -> None:
    """Name the usual impostors, which libsndfile only calls an unknown format."""
    head = data[:64].lstrip().lower()
    if data[:4] == b"\x00\x05\x16\x07":
        raise AudioError("not-audio", "an AppleDouble file (macOS metadata), not audio; delete it")
    if head.startswith(b"version https://git-lfs"):
        raise AudioError("not-audio", "a Git LFS pointer, not audio; run `git lfs pull` in the corpus")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise AudioError("not-audio", "a web page, not audio; download the file again")


def _check_riff(data: bytes) -> None:
    """Compare the sizes that a RIFF/WAVE header declares with the bytes that are there.

    The usual tail chunks and odd padding are allowed; fewer bytes of audio than declared are not.
    """
    if len(data) < 12 or data[8:12] != b"WAVE":
        raise AudioError("bad-header", "starts as RIFF but is no WAVE file")
    order = ">" if data[:4] == b"RIFX" else "<"
    long_size = _rf64_data_size(data) if data[:4] == b"RF64" else None
    position = 12
    while position + 8 <= len(data):
        name = data[position : position + 4]
        size = struct.unpack_from(f"{order}I", data, position + 4)[0]
        body = position + 8
        if name == b"fmt " and body + 16 <= len(data):
            rate = struct.unpack_from(f"{order}I", data, body + 4)[0]
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                raise AudioError("bad-header", f"got a sample rate of {rate} Hz; expected 4,000 to 384,000")
        if name == b"data":
            declared = long_size if long_size is not None and size == 0xFFFFFFFF else size
            _check_data_chunk(declared, len(data) - body)
            return
        position = body + size + (size & 1)
    raise AudioError("no-frames", "a WAVE header without a data chunk: no audio follows it")


def _check_data_chunk(declared: int, available: int) -> None:
    if declared > available:
        raise AudioError(
            "truncated",
            f"the header declares {declared:,} bytes of audio, the file has {available:,}; copy the file again",
        )
    if declared == 0:
        detail = f"{available:,} bytes follow a data size of 0" if available else "no audio follows the header"
        raise AudioError("no-frames", detail)


def _rf64_data_size(data: bytes) -> int | None:
    at = data.find(b"ds64", 12, 64)
    return struct.unpack_from("<Q", data, at + 16)[0] if at >= 0 and at + 24 <= len(data) else None
