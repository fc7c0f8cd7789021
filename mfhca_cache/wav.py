"""An audio file before it is decoded: rate, channels, length and digest, or why it must not be used.

Usual libraries read a truncated wav, a forged rate or an empty file without complaint. So the header is compared
with the file's bytes, what it would decode to is bounded, and the same bytes are hashed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from mfhca_cache.containers import check_container, check_rate
from mfhca_cache.errors import AudioError
from mfhca_cache.files import read_regular, regular_size
from mfhca_cache.spec import MAX_SECONDS, SAMPLE_RATE

#: Endings that corpus readers look for.
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".sph")
MAX_CHANNELS = 32
#: Decoded samples over all channels: 20 minutes of stereo at 48 kHz, 512 MiB as float32. A few hundred kilobytes of
#: FLAC can decode to any length.
MAX_DECODED = 2**27
#: Of a file: MAX_DECODED samples of 32 bits, and as much again for what else a container may hold.
MAX_BYTES = 2**30
#: What a speech corpus may come in. The rest of libsndfile's formats are old and hardly tested.
_UNKNOWN_FRAMES = 2**62  # libsndfile's answer for a stream that does not say
CONTAINERS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "NIST", "FLAC", "OGG", "MP3", "MPEG")


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
        size = regular_size(path)
        if size > MAX_BYTES:
            raise AudioError("too-long", f"got {size / 2**30:.1f} GiB; no utterance is larger than 1 GiB")
        data = read_regular(path, MAX_BYTES)
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


def probe_bytes(data: bytes, sha256: str | None = None) -> AudioInfo:
    """`probe` of bytes already in memory, and of which the digest may be known."""
    import soundfile

    check_container(data)
    try:
        info = soundfile.info(AudioBytes(data))
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise AudioError("unreadable", f"not decodable as audio: {str(error).split(': ', 1)[-1]}") from error
    if info.format not in CONTAINERS:
        raise AudioError("unreadable", f"got the format {info.format_info}; convert it to WAV or FLAC")
    check_rate(info.samplerate)
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioError("bad-header", f"got {info.channels} channels; expected 1 to {MAX_CHANNELS}")
    if info.frames <= 0:
        raise AudioError("no-frames", "the header is sound but no audio follows it")
    if info.frames > _UNKNOWN_FRAMES:
        raise AudioError("bad-header", "the header does not say how long the audio is; write the file again")
    _check_length(info.frames, info.samplerate, info.channels)
    return AudioInfo(info.frames, info.samplerate, info.channels, sha256 or hashlib.sha256(data).hexdigest())


def _check_length(frames: int, sample_rate: int, channels: int) -> None:
    """Refuse what would cost more memory than any utterance does, before it is decoded."""
    seconds = frames / sample_rate
    if seconds > MAX_SECONDS:
        raise AudioError("too-long", f"got {seconds:.0f} s; an utterance has at most {MAX_SECONDS:.0f} s")
    if frames * channels > MAX_DECODED:
        raise AudioError(
            "too-long",
            f"got {seconds:.0f} s of {channels} channels at {sample_rate:,} Hz, {frames * channels:,} samples; "
            f"an utterance has at most {MAX_DECODED:,}. Cut the recording into utterances",
        )
