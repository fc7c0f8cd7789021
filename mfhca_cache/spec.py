"""What a clip, a spectrogram, an encoder and an extraction are: frozen settings, and the fingerprint of them.

Settings that change the numbers in a cache live here. Settings that only change how fast they are made (device,
batch, threads) are the engine's, in `mfhca_cache.extraction`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from mfhca_cache.errors import MfhcaError

#: Every clip is cut at this rate; whatever comes in is resampled to it.
SAMPLE_RATE = 16_000  # Hz
#: The version of the cache's format. A reader refuses a newer one.
FORMAT_VERSION = 1
#: Shorter audio holds not one frame of a HuBERT-like encoder (25 ms).
MIN_SAMPLES = 400
#: A longer file is no utterance, and is refused before it is decoded.
MAX_SECONDS = 1200.0

Padding = Literal["audio", "features"]
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class ClipSpec:
    """How utterances are cut: ceil(n / samples) clips, the last one zero-padded on the right.

    Attributes:
        seconds: length of a clip.
        pad: ``audio`` (the paper): the padding zeros are signal to the encoder. ``features``: the encoder sees
            the true length, and the features are padded.
    """

    seconds: float = 3.0
    pad: Padding = "audio"

    def __post_init__(self) -> None:
        if self.pad not in ("audio", "features"):
            raise MfhcaError(f"pad: got {self.pad!r}; expected 'audio' or 'features'")
        if not 0.1 <= self.seconds <= 60:
            raise MfhcaError(f"clip length: got {self.seconds} s; expected 0.1 to 60 s (the paper: 3 s)")

    @property
    def samples(self) -> int:
        """Samples of a clip at 16 kHz: 48,000 for 3 s."""
        return round(self.seconds * SAMPLE_RATE)

    def count(self, samples: int) -> int:
        """Clips of an utterance of so many samples at 16 kHz."""
        return -(-samples // self.samples)

    def valid_samples(self, samples: int, clip: int) -> int:
        """Samples of the utterance's ``clip``-th clip (from 0) that are signal and not padding."""
        return min(self.samples, samples - clip * self.samples)


@dataclass(frozen=True)
class SpectrogramSpec:
    """Magnitude spectrogram in dB: a 40 ms Hamming window every 10 ms, DFT of 800 points, the first 200 bins.

    Attributes:
        window: samples of the periodic Hamming window (640 = 40 ms), centred in the DFT.
        hop: samples between frames (160 = 10 ms).
        n_fft: points of the DFT (20 Hz a bin).
        bins: bins kept, from 0 Hz on.
        floor_db: quieter is set to this; dB are relative to a magnitude of 1.0.
        pre_emphasis: coefficient a of y[t] = x[t] − a·x[t−1] over the utterance; 0 is off.
    """

    window: int = 640
    hop: int = 160
    n_fft: int = 800
    bins: int = 200
    floor_db: float = -100.0
    pre_emphasis: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.n_fft or not 0 < self.bins <= self.n_fft // 2 + 1:
            raise MfhcaError(
                f"spectrogram: got window {self.window}, hop {self.hop}, n_fft {self.n_fft}, bins {self.bins}; "
                "expected 0 < hop ≤ window ≤ n_fft and bins ≤ n_fft / 2 + 1"
            )
        if not 0.0 <= self.pre_emphasis < 1.0:
            raise MfhcaError(f"pre-emphasis: got {self.pre_emphasis}; expected 0 (off) up to, but not, 1")

    def frames(self, samples: int) -> int:
        """Frames whose centre lies in so many samples: 300 for 48,000."""
        return -(-samples // self.hop)


@dataclass(frozen=True)
class LogMelSpec:
    """Log-mel power spectrogram in dB: a 25 ms Hann window every 10 ms, Slaney's mel bands from 0 to 8 kHz.

    Attributes:
        mels: number of bands.
        window: samples of the periodic Hann window (400 = 25 ms), centred in the DFT.
        hop: samples between frames (160 = 10 ms).
        n_fft: points of the DFT; 1024 leaves no band of 128 without a bin.
        floor_db: quieter is set to this; dB are relative to a power of 1.0.
    """

    mels: int = 128
    window: int = 400
    hop: int = 160
    n_fft: int = 1024
    floor_db: float = -100.0

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.n_fft or not 0 < self.mels <= 128:
            raise MfhcaError(
                f"log-mel: got {self.mels} bands, window {self.window}, hop {self.hop}, n_fft {self.n_fft}; "
                "expected 1 to 128 bands and 0 < hop ≤ window ≤ n_fft"
            )

    @property
    def feature(self) -> str:
        """The feature's folder in a cache: ``log-mel-128``."""
        return f"log-mel-{self.mels}"

    def frames(self, samples: int) -> int:
        """Frames whose centre lies in so many samples: 300 for 48,000."""
        return -(-samples // self.hop)


@dataclass(frozen=True)
class MFCCSpec:
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II over the bands of a log-mel spectrogram.

    Attributes:
        coefficients: how many are kept, from the 0th on.
        log_mel: what they are taken of.
    """

    coefficients: int = 40
    log_mel: LogMelSpec = field(default_factory=LogMelSpec)

    def __post_init__(self) -> None:
        if not 0 < self.coefficients <= self.log_mel.mels:
            raise MfhcaError(f"MFCC: got {self.coefficients} coefficients; expected 1 to {self.log_mel.mels}")

    @property
    def feature(self) -> str:
        """The feature's folder in a cache: ``mfcc-40``."""
        return f"mfcc-{self.coefficients}"


Layers = Literal["last", "all"] | tuple[int, ...]
Precision = Literal["fp32", "bf16", "fp16"]
#: Precision → its name in torch and in an engine.
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class EncoderSpec:
    """Which frozen encoder, by hub name, local folder or the built-in ``random-tiny``, and what is kept of it.

    Layer k is the output of the k-th transformer block, 0 the first block's input. The last layer is the model's own
    final hidden state, after a final layer norm where it has one.

    Attributes:
        name: ``facebook/hubert-base-ls960``, a folder written by ``save_pretrained``, or ``random-tiny``.
        revision: a commit, tag or branch of the hub; None for the hub's default branch.
        layers: ``last``: (frames, width) a clip. ``all``, from 0 on, or numbers in ascending order:
            (layers, frames, width); one number alone: (frames, width).
        pool: ``mean`` keeps the mean over the frames that come from signal instead of the frames.
        precision: what the encoder multiplies in; ``bf16`` and ``fp16`` are faster and make features of their own.
    """

    name: str = "facebook/hubert-base-ls960"
    revision: str | None = None
    layers: Layers = "last"
    pool: Literal["mean"] | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise MfhcaError(f"precision: got {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.pool not in (None, "mean"):
            raise MfhcaError(f"pool: got {self.pool!r}; expected 'mean' or nothing")
        if self.layers in ("last", "all"):
            return
        numbers = self.layers if isinstance(self.layers, tuple) else ()
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not numbers or not whole or list(numbers) != sorted(set(numbers)):
            raise MfhcaError(
                f"layers: got {self.layers!r}; expected 'last', 'all' or ascending layer numbers such as 6,9,12"
            )

    @property
    def stem(self) -> str:
        """The name without its owner, usable for a folder; with ``@revision`` where one is pinned."""
        stem = self.name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
        stem = _folder_name(stem)
        if not stem or stem in ("spectrogram", "clips", "utterances"):
            raise MfhcaError(f"encoder {self.name!r} gives no usable folder name; rename its folder")
        if self.revision is not None:
            # A commit is told apart by its first twelve digits; another name is kept whole.
            commit = len(self.revision) == 40 and all(c in "0123456789abcdef" for c in self.revision)
            # A pull request's revision, refs/pr/1, must not become folders of its own.
            stem += f"@{_folder_name(self.revision[:12] if commit else self.revision)}"
        return stem

    @property
    def feature(self) -> str:
        """The feature's folder in a cache: ``hubert-base-ls960``, ``hubert-base-ls960@revision.6-9-12.mean.bf16``."""
        stem = self.stem
        if self.layers != "last":
            stem += ".all" if self.layers == "all" else "." + "-".join(map(str, self.layers))
        stem += f".{self.pool}" if self.pool else ""
        return stem + (f".{self.precision}" if self.precision != "fp32" else "")


def parse_layers(text: str) -> Layers:
    """``last``, ``all`` or ``6,9,12``, as the command line has it.

    Raises:
        MfhcaError: none of these.
    """
    if text in ("last", "all"):
        return text  # type: ignore[return-value]
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise MfhcaError(f"layers: got {text!r}; expected last, all, or numbers such as 6,9,12") from None


def _folder_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text).lstrip(".-")


@dataclass(frozen=True)
class ExtractSpec:
    """Everything that decides which numbers stage one writes.

    Attributes:
        encoder: the frozen speech encoder, or None.
        text_encoder: a frozen text encoder for the manifest's transcripts, or None; its last layer, unpooled.
        clip: how utterances are cut.
        spectrogram, log_mel, mfcc: acoustic features beside it, or None.
        rows: ``four-class`` (rows of the four classes) or ``all``.
        dtype: how features are stored: ``float16`` (2e-4 relative error) or ``float32``.
    """

    encoder: EncoderSpec | None = field(default_factory=EncoderSpec)
    text_encoder: EncoderSpec | None = None
    clip: ClipSpec = field(default_factory=ClipSpec)
    spectrogram: SpectrogramSpec | None = field(default_factory=SpectrogramSpec)
    log_mel: LogMelSpec | None = None
    mfcc: MFCCSpec | None = None
    rows: Literal["four-class", "all"] = "four-class"
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.rows not in ("four-class", "all"):
            raise MfhcaError(f"rows: got {self.rows!r}; expected 'four-class' or 'all'")
        if self.dtype not in DTYPES:
            raise MfhcaError(f"dtype: got {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if not any((self.encoder, self.text_encoder, self.spectrogram, self.log_mel, self.mfcc)):
            raise MfhcaError("nothing to extract: name a feature or an encoder")
        if self.text_encoder and (self.text_encoder.layers != "last" or self.text_encoder.pool):
            raise MfhcaError("a text encoder gives its last layer, one vector a token; layers and pool are for speech")
        if self.text_encoder and self.text_encoder.precision != "fp32":
            raise MfhcaError("a text encoder computes in fp32; another precision is for speech encoders")


def settings(value: Any) -> dict[str, Any]:
    """A frozen dataclass as a plain dict, ready for JSON."""
    return dataclasses.asdict(value)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """``name: before → now`` for each leaf of two JSON values that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name}: {before!r} → {now!r}"]
