"""One run of clips, or of transcripts → the shards of its features, computed and published."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from mfhca_cache.errors import CacheError, EncoderError
from mfhca_cache.extraction.decode import DecodedClips
from mfhca_cache.extraction.encoder import Encoder
from mfhca_cache.extraction.mel import log_mels, mfccs
from mfhca_cache.extraction.runtimes import threads
from mfhca_cache.extraction.spectrogram import spectrograms
from mfhca_cache.extraction.text import TextEncoder, encode_texts
from mfhca_cache.manifest import Rejected
from mfhca_cache.spec import MIN_SAMPLES, EncoderSpec, ExtractSpec
from mfhca_cache.storage.commit import commit_shard
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.shard import encode_shard


@dataclass(frozen=True)
class Tools:
    """What features are computed with: settings, and the encoders unless they have nothing to do."""

    spec: ExtractSpec
    encoder: Encoder | None = None
    text_encoder: TextEncoder | None = None


@dataclass(frozen=True)
class Made:
    """A shard's arrays as stored, and what they come from."""

    numbers: np.ndarray
    data: np.ndarray
    valid: np.ndarray
    audio: dict[str, str]
    rejected: tuple[Rejected, ...]


#: ``tell(stage, clips done)`` follows the work.
Tell = Callable[[str, int], None]


def make_clips(info: FeatureInfo, clips: DecodedClips, tools: Tools, tell: Tell) -> Made:
    """Compute a feature of a run of clips."""
    data, valid = compute_feature(info, clips, tools, tell)
    return Made(clips.numbers, data, valid, clips.audio, clips.rejected)


def make_texts(info: FeatureInfo, plan: Plan, shard: ShardRange, encoder: TextEncoder) -> Made:
    """Encode the transcripts of a shard's utterances."""
    with threads(info.engine["threads"]):
        texts = encode_texts(plan, encoder, shard.first, shard.stop)
    data = stored(torch.from_numpy(texts.data), info)
    # The digests of those without words too: a transcript that is added later makes the shard anew.
    return Made(texts.numbers, data, texts.valid, plan.texts(shard.first, shard.stop), texts.rejected)


def compute_feature(info: FeatureInfo, clips: DecodedClips, tools: Tools, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """A feature of the clips as stored, and their valid frames."""
    with threads(info.engine["threads"]):
        if info.kind == "encoder":
            if tools.encoder is None or tools.spec.encoder is None:
                raise EncoderError(f"{info.name}: its encoder was not loaded")
            return encoder_data(info, tools.encoder, tools.spec.encoder, clips, lambda done: tell(info.name, done))
        tell(info.name, 0)
        return acoustic_data(info, tools.spec, clips)


def acoustic_data(info: FeatureInfo, spec: ExtractSpec, clips: DecodedClips) -> tuple[np.ndarray, np.ndarray]:
    """Spectrograms, log-mel or MFCC (N, frames, …) as stored, and valid frames (N,)."""
    signal, hop = clips.signal, 1
    compute: Callable[[torch.Tensor], torch.Tensor]
    if info.kind == "spectrogram" and spec.spectrogram:
        signal, hop, compute = clips.emphasised, spec.spectrogram.hop, partial(spectrograms, spec=spec.spectrogram)
    elif info.kind == "log-mel" and spec.log_mel:
        hop, compute = spec.log_mel.hop, partial(log_mels, spec=spec.log_mel)
    elif info.kind == "mfcc" and spec.mfcc:
        hop, compute = spec.mfcc.log_mel.hop, partial(mfccs, spec=spec.mfcc)
    else:
        raise CacheError(f"{info.name}: the extraction's settings name no {info.kind}")
    out = np.empty((len(clips.numbers), *info.shape), dtype=info.dtype)
    batch, device = info.engine["batch"], info.engine["device"]
    for at in range(0, len(out), batch):
        part = torch.from_numpy(signal[at : at + batch]).to(device)
        out[at : at + len(part)] = stored(compute(part), info)
    return out, -(-clips.valid // hop)


def encoder_data(
    info: FeatureInfo, encoder: Encoder, asked: EncoderSpec, clips: DecodedClips, tell: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden layers as stored, (N, …, frames, width) or their means (N, …, width), and valid frames (N,).

    A batch holds clips of one length only.
    """
    count, batch = len(clips.numbers), info.engine["batch"]
    out = np.zeros((count, *info.shape), dtype=info.dtype)
    most = encoder.frames(clips.signal.shape[1])
    frames = np.array([np.clip(encoder.frames(int(n)), 1, most) for n in clips.valid], dtype=np.int64)
    # pad=audio: the padding is signal. pad=features: only the true samples are encoded, and the features are padded.
    whole = np.full(count, clips.signal.shape[1])
    lengths = whole if info.settings["clip"]["pad"] == "audio" else np.maximum(clips.valid, MIN_SAMPLES)
    groups = [(np.flatnonzero(lengths == length), length) for length in np.unique(lengths)[::-1]]
    batches = [(group[at : at + batch], length) for group, length in groups for at in range(0, len(group), batch)]
    done = 0
    for places, hidden in _encoded(encoder, clips.signal, batches, asked):
        if asked.pool:
            means = [part[..., :n, :].mean(dim=-2) for part, n in zip(hidden, frames[places].tolist(), strict=True)]
            out[places] = stored(torch.stack(means), info)
        else:
            out[places, ..., : hidden.shape[-2], :] = stored(hidden, info)
        done += len(places)
        tell(done)
    return out, frames


def _encoded(
    encoder: Encoder, signal: np.ndarray, batches: list[tuple[np.ndarray, int]], asked: EncoderSpec
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The places of each batch, of clips of one length, and their hidden layers."""

    def cut() -> Iterator[np.ndarray]:
        for places, length in batches:
            # Places that lie side by side are a view of the signal, not a copy.
            beside = places[-1] - places[0] + 1 == len(places)
            clips = signal[slice(places[0], places[-1] + 1) if beside else places, :length]
            encoder.check_batching(clips)
            yield clips

    for (places, _), hidden in zip(batches, encoder.encode_many(cut(), asked.layers), strict=True):
        yield places, hidden


def stored(values: torch.Tensor, info: FeatureInfo) -> np.ndarray:
    """Values on any device as the feature's type holds them, on the CPU: converted before they are copied.

    Raises:
        EncoderError: NaN or infinity.
        CacheError: a value beyond the type.
    """
    # NaN passes through the extremes.
    low, high = (float(value) for value in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    largest = max(-low, high)
    if not math.isfinite(largest):
        raise EncoderError(f"{info.name} gave NaN or infinity; the encoder's weights are damaged or overflow")
    if info.dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise CacheError(
            f"{info.name} has a value of {largest:.4g}, and float16 ends at 65,504; "
            "extract into another cache (--cache DIR) with --dtype float32"
        )
    return values.to(getattr(torch, info.dtype)).cpu().numpy()


def publish_made(folder: Path, info: FeatureInfo, shard: ShardRange, made: Made) -> int:
    """Write a shard, then its receipt, which commits it; the bytes written. For who holds the shard's lock."""
    content, receipt = encode_shard(
        made.data,
        made.numbers,
        made.valid,
        name=shard.name,
        fingerprint=info.fingerprint,
        extent=(shard.first, shard.stop),
        audio=made.audio,
        rejected=made.rejected,
        versions=_versions(),
    )
    commit_shard(folder / info.name, shard.name, content, receipt)
    return len(content)


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("mfhca-cache", "torch", "transformers", "librosa", "h5py")}
