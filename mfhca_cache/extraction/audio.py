"""Any audio file → 16 kHz mono float32, or an AudioError that says why not.

soundfile decodes, soxr through librosa resamples. Channels are averaged: SER corpora record one speaker a file, and
the mean keeps whichever channel holds the voice. What is silent after that (also stereo in anti-phase) is rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mfhca_cache.containers import with_flac_frames
from mfhca_cache.errors import AudioError
from mfhca_cache.files import leads_outside
from mfhca_cache.spec import MIN_SAMPLES, SAMPLE_RATE
from mfhca_cache.wav import AudioBytes, AudioInfo, probe_bytes, read_bytes, resampled_length

#: Peak above which samples cannot be audio scaled to ±1 (18 dB over full scale).
MAX_PEAK = 8.0
#: Peak-to-peak below which there is no signal: half a step of 16-bit audio.
SILENCE = 2.0**-16
#: Frames decoded at a time: a long recording of many channels is never in memory as a whole.
_BLOCK = 2**20
#: Encodings that libsndfile goes on reading exactly where it stopped; others start anew at each block.
_EXACT = ("PCM", "FLOAT", "DOUBLE")


def load_audio(path: Path, sha256: str | None = None, root: Path | None = None) -> np.ndarray:
    """Read a file as the encoder hears it.

    Args:
        path: the file.
        sha256: what the manifest says of its bytes; None to trust any.
        root: the corpus folder, which no symbolic link on the way may lead out of; None to follow any.

    Returns:
        float32 of shape (samples,) at 16 kHz, mono, about ±1.

    Raises:
        AudioError: with ``reason`` link, missing, changed, unreadable, truncated, not-finite, amplitude, silence,
            too-short, too-long, or what `mfhca_cache.wav.probe` finds in the header.
    """
    if root is not None and leads_outside(root, path):
        raise AudioError("link", "a symbolic link that leads out of the corpus folder; copy the file into it")
    data = read_bytes(path) if sha256 is None else _expected_bytes(path, sha256)
    info = probe_bytes(data, sha256)
    mono = mixed(_decode(data, info), info.frames)
    del data  # A long file's bytes need not lie beside what they are resampled to.
    samples = resample(mono, info.sample_rate)
    if len(samples) < MIN_SAMPLES:
        raise AudioError(
            "too-short", f"got {1000 * len(samples) / SAMPLE_RATE:.0f} ms; an encoder frame needs 25 ms of audio"
        )
    return samples


def _expected_bytes(path: Path, sha256: str) -> bytes:
    """The bytes that the manifest describes. Others, broken or not, may be put right: they are `changed`."""
    try:
        data = read_bytes(path)
    except AudioError as error:
        reason = "missing" if error.reason == "missing" else "changed"
        raise AudioError(reason, str(error)) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise AudioError("changed", "the file is not the one in the manifest (its SHA-256 differs)")
    return data


def to_mono(channels: np.ndarray) -> np.ndarray:
    """Mean over channels: float32 (frames, channels) → (frames,), after checking the values.

    Raises:
        AudioError: not-finite, amplitude or silence.
    """
    return mixed([channels], len(channels))


def mixed(blocks: Iterable[np.ndarray], frames: int) -> np.ndarray:
    """`to_mono` of one block of frames after the other, so many in all.

    Raises:
        AudioError: not-finite, amplitude or silence; truncated where there are fewer frames, or more.
    """
    mono, at = np.empty(frames, dtype=np.float32), 0
    # The extremes alone: NaN passes through them, and no copy of the samples is made.
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for block in blocks:
        if at + len(block) <= frames:
            block.mean(axis=1, dtype=np.float32, out=mono[at : at + len(block)])
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
        at += len(block)
    if at != frames:
        raise AudioError("truncated", f"got {at:,} frames, the header says {frames:,}; copy the file again")
    peak = float(max(high.max(), -low.min()))
    if not np.isfinite(peak):
        raise AudioError("not-finite", "the file holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError("amplitude", f"got a peak of {peak:.3g}; expected samples scaled to ±1")
    if float(np.ptp(mono)) < SILENCE:
        loud = float((high - low).max()) >= SILENCE
        raise AudioError("silence", "the channels cancel each other" if loud else "the file is silent from end to end")
    return mono


def resample(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """float32 (n,) at ``sample_rate`` Hz → (ceil(n · 16000 / rate),) at 16 kHz, by soxr's high quality."""
    if sample_rate == SAMPLE_RATE:
        return samples
    import librosa

    length = resampled_length(len(samples), sample_rate)
    out = librosa.resample(samples, orig_sr=sample_rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    return np.asarray(librosa.util.fix_length(out, size=length), dtype=np.float32)


def _decode(data: bytes, info: AudioInfo) -> Iterator[np.ndarray]:
    """Blocks of float32 of shape (frames, channels)."""
    import soundfile

    if data[:4] == b"fLaC" and _flac_goes_on(data, info.frames):
        raise AudioError("bad-header", f"more audio follows the {info.frames:,} frames that the header declares")
    try:
        with soundfile.SoundFile(AudioBytes(data)) as file:
            size = max(1, _BLOCK // info.channels) if file.subtype.startswith(_EXACT) else -1
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                yield block
                if len(block) < size or size < 0:
                    break
    except (soundfile.LibsndfileError, RuntimeError) as error:
        detail = str(error).split(": ", 1)[-1].rstrip(".")
        raise AudioError(
            "unreadable",
            f"decoding failed before the {info.frames:,} frames that the header declares ({detail}); "
            "the file is cut short or damaged, copy it again",
        ) from error


def _flac_goes_on(data: bytes, frames: int) -> bool:
    """Whether a FLAC stream holds more than its header says, where libsndfile stops reading."""
    import soundfile

    try:
        # With a header that declares one frame more, that frame can be sought only if it is there.
        with soundfile.SoundFile(AudioBytes(with_flac_frames(data, frames + 1))) as file:
            return bool(file.seek(frames) == frames)
    except (soundfile.LibsndfileError, RuntimeError):
        return False
