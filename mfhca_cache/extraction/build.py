"""One run of clips, or of transcripts → the shards of its features, published."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfhca_cache.errors import AudioError, CacheError, EncoderError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.clips import cut_clips, pre_emphasise
from mfhca_cache.extraction.encoder import Encoder
from mfhca_cache.extraction.mel import log_mels, mfccs
from mfhca_cache.extraction.spectrogram import spectrograms
from mfhca_cache.extraction.text import TextEncoder, encode_texts
from mfhca_cache.extraction.work import RETRY_REASONS, Task
from mfhca_cache.manifest import Rejected
from mfhca_cache.spec import MIN_SAMPLES, EncoderSpec, ExtractSpec
from mfhca_cache.storage.commit import commit_shard
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.shard import encode_shard


@dataclass(frozen=True)
class DecodedClips:
    """The audio of a run of clips.

    Attributes:
        numbers: (N,) int64, rows of the plan.
        signal: (N, samples) float32 at 16 kHz.
        emphasised: the same after pre-emphasis; ``signal`` itself where that is off.
        valid: (N,) int64, samples that are signal and not padding.
        audio: utterance_id → SHA-256 of its file.
        rejected: utterances that could not be used.
    """

    numbers: np.ndarray
    signal: np.ndarray
    emphasised: np.ndarray
    valid: np.ndarray
    audio: dict[str, str]
    rejected: tuple[Rejected, ...]

    @property
    def unreachable(self) -> bool:
        """Whether there is nothing but files that may come back: a wrong root, an unmounted disk."""
        return not len(self.numbers) and all(item.reason.split(":")[0] in RETRY_REASONS for item in self.rejected)


@dataclass(frozen=True)
class Tools:
    """What features are computed with: settings, and the encoders unless they have nothing to do."""

    spec: ExtractSpec
    encoder: Encoder | None = None
    text_encoder: TextEncoder | None = None


@dataclass(frozen=True)
class _Made:
    """A shard's arrays, and what they come from."""

    numbers: np.ndarray
    data: np.ndarray
    valid: np.ndarray
    audio: dict[str, str]
    rejected: tuple[Rejected, ...]


#: ``tell(stage, clips done)`` follows the work.
Tell = Callable[[str, int], None]


def decode_clips(plan: Plan, root: Path, first: int, stop: int, pre_emphasis: float = 0.0) -> DecodedClips:
    """Decode the utterances that the plan's clips ``first`` to ``stop`` belong to, and cut those clips."""
    table = plan.utterances
    touched = (table["first_clip"] < stop) & (table["first_clip"] + table["clips"] > first)
    empty = np.zeros((0, plan.clip.samples), dtype=np.float32)
    numbers, valid = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    signal, emphasised = [empty], [empty]
    audio: dict[str, str] = {}
    rejected: list[Rejected] = []
    for row in table[touched].to_dict("records"):
        try:
            samples = load_audio(root / row["path"], row["sha256"], root)
            if plan.clip.count(len(samples)) != row["clips"]:
                raise AudioError("length", f"got {len(samples):,} samples at 16 kHz, the manifest: {row['seconds']} s")
        except AudioError as error:
            rejected.append(Rejected(row["utterance_id"], f"{error.reason}: {error}"))
            continue
        audio[row["utterance_id"]] = row["sha256"]
        inside = slice(max(0, first - row["first_clip"]), min(row["clips"], stop - row["first_clip"]))
        clips, clip_valid = cut_clips(samples, plan.clip)
        numbers.append(np.arange(row["first_clip"], row["first_clip"] + row["clips"])[inside])
        signal.append(clips[inside])
        valid.append(clip_valid[inside])
        if pre_emphasis:
            emphasised.append(cut_clips(pre_emphasise(samples, pre_emphasis), plan.clip)[0][inside])
    joined = np.concatenate(signal)
    loud = np.concatenate(emphasised) if pre_emphasis else joined
    return DecodedClips(np.concatenate(numbers), joined, loud, np.concatenate(valid), audio, tuple(rejected))


def publish_features(folder: Path, task: Task, clips: DecodedClips, tools: Tools, tell: Tell) -> int:
    """Compute and publish the task's shards of clips; bytes written."""
    written = 0
    for number, (info, shard) in enumerate(task.shards, start=1):
        data, valid = compute_feature(info, clips, tools, tell)
        tell("writing", len(clips.numbers) if number == len(task.shards) else 0)
        made = _Made(clips.numbers, data, valid, clips.audio, clips.rejected)
        written += _publish(folder, info, shard, made)
    return written


def publish_texts(folder: Path, plan: Plan, task: Task, encoder: TextEncoder, tell: Tell) -> int:
    """Encode and publish the task's shards of transcripts; bytes written."""
    written = 0
    for info, shard in task.shards:
        tell(info.name, 0)
        with _threads(info.engine["threads"]):
            texts = encode_texts(plan, encoder, shard.first, shard.stop)
        data = np.empty(texts.data.shape, dtype=info.dtype)
        _store(data, ..., texts.data, info)
        tell("writing", shard.stop - shard.first)
        # The digests of those without words too: a transcript that is added later makes the shard anew.
        made = _Made(texts.numbers, data, texts.valid, plan.texts(shard.first, shard.stop), texts.rejected)
        written += _publish(folder, info, shard, made)
    return written


def compute_feature(info: FeatureInfo, clips: DecodedClips, tools: Tools, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """A feature of the clips as stored, and their valid frames."""
    with _threads(info.engine["threads"]):
        if info.kind == "encoder":
            if tools.encoder is None or tools.spec.encoder is None:
                raise EncoderError(f"{info.name}: its encoder was not loaded")
            return encoder_data(info, tools.encoder, tools.spec.encoder, clips, lambda done: tell(info.name, done))
        tell(info.name, 0)
        return acoustic_data(info, tools.spec, clips)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with the number of threads that the feature was begun with."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        _store(out, slice(at, at + len(part)), compute(part).cpu().numpy(), info)
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
    done = 0
    for length in np.unique(lengths)[::-1]:
        group = np.flatnonzero(lengths == length)
        for at in range(0, len(group), batch):
            places = group[at : at + batch]
            encoder.check_batching(clips.signal[places, :length])
            hidden = encoder.encode(clips.signal[places, :length], asked.layers)
            if asked.pool:
                means = [part[..., :n, :].mean(dim=-2) for part, n in zip(hidden, frames[places].tolist(), strict=True)]
                _store(out, places, torch.stack(means).numpy(), info)
            else:
                _store(out, (places, ..., slice(0, hidden.shape[-2]), slice(None)), hidden.numpy(), info)
            done += len(places)
            tell(done)
    return out, frames


def _store(out: np.ndarray, where: Any, values: np.ndarray, info: FeatureInfo) -> None:
    """Copy float32 values into the stored type, refusing what that type cannot hold."""
    if not np.isfinite(values).all():
        raise EncoderError(f"{info.name} gave NaN or infinity; the encoder's weights are damaged or overflow")
    largest = float(np.abs(values).max(initial=0.0))
    if info.dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise CacheError(
            f"{info.name} has a value of {largest:.4g}, and float16 ends at 65,504; "
            "extract into another cache (--cache DIR) with --dtype float32"
        )
    out[where] = values


def _publish(folder: Path, info: FeatureInfo, shard: ShardRange, made: _Made) -> int:
    """Write the shard, then its receipt, which commits it; the bytes written."""
    content, receipt = encode_shard(
        made.data,
        made.numbers,
        made.valid,
        name=shard.name,
        fingerprint=info.fingerprint,
        extent=(shard.first, shard.stop),
        audio=made.audio,
        rejected=made.rejected,
        versions={name: metadata.version(name) for name in ("mfhca-cache", "torch", "transformers", "librosa", "h5py")},
    )
    commit_shard(folder / info.name, shard.name, content, receipt)
    return len(content)
