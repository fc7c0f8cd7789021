"""What a feature is before its first shard: its settings, its shape, and the engine that it is begun with.

A feature that was begun before goes on with its own engine, so that a resumed run writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mfhca_cache.device import allowed_cores
from mfhca_cache.extraction.batch_size import DEFAULT_BATCH
from mfhca_cache.extraction.encoder import Encoder
from mfhca_cache.extraction.runtimes import version
from mfhca_cache.extraction.spectrogram import clip_shape
from mfhca_cache.extraction.text import TextEncoder
from mfhca_cache.spec import PRECISIONS, EncoderSpec, ExtractSpec, Precision, settings
from mfhca_cache.storage.descriptions import read_feature
from mfhca_cache.storage.layout import FeatureInfo, clips_per_shard

SPECTROGRAM = "spectrogram"
#: Utterances of a shard of text: small, so that a corrected transcript costs little.
_TEXT_SHARD = 256
#: Of the audio that a shard is made from, in float32: 700 clips of 3 s, but only 34 of a minute.
_MAX_SIGNAL_BYTES = 128 * 2**20


def new_engine(device: str, batch: int | None, precision: Precision = "fp32") -> dict[str, Any]:
    """The engine of a feature that is begun now on ``cpu`` or ``cuda``: plain PyTorch, and the usual batch.

    What computes an encoder may be chosen anew: see `mfhca_cache.extraction.engine`.
    """
    cores = allowed_cores()
    return {
        "name": "torch",
        "version": version("torch"),
        "device": device,
        "precision": PRECISIONS[precision],
        "threads": cores,
        "batch": batch or DEFAULT_BATCH[device],
    }


def acoustic_features(spec: ExtractSpec) -> dict[str, str]:
    """Names of the features that need no model → their kind."""
    named = {
        "spectrogram": spec.spectrogram and SPECTROGRAM,
        "log-mel": spec.log_mel and spec.log_mel.feature,
        "mfcc": spec.mfcc and spec.mfcc.feature,
    }
    return {name: kind for kind, name in named.items() if name}


def acoustic_feature(spec: ExtractSpec, kind: str, engine: dict[str, Any]) -> FeatureInfo:
    """What the feature of this kind and these settings is."""
    if kind == "spectrogram" and spec.spectrogram:
        name, of, unit, shape = SPECTROGRAM, spec.spectrogram, "dB re 1.0", clip_shape(spec.clip, spec.spectrogram)
        return _feature(name, kind, {**settings(of), "unit": unit}, shape, spec, engine)
    if kind == "log-mel" and spec.log_mel:
        shape = (spec.log_mel.frames(spec.clip.samples), spec.log_mel.mels)
        values = {**settings(spec.log_mel), "unit": "dB re a power of 1.0"}
        return _feature(spec.log_mel.feature, kind, values, shape, spec, engine)
    if kind == "mfcc" and spec.mfcc:
        shape = (spec.mfcc.log_mel.frames(spec.clip.samples), spec.mfcc.coefficients)
        return _feature(spec.mfcc.feature, kind, settings(spec.mfcc), shape, spec, engine)
    raise ValueError(f"no settings of {kind}")


def encoder_feature(spec: ExtractSpec, asked: EncoderSpec, encoder: Encoder, engine: dict[str, Any]) -> FeatureInfo:
    """What the asked layers of a speech encoder are."""
    numbers = encoder.layer_numbers(asked.layers)
    values = {
        "layers": asked.layers if asked.layers == "last" else list(numbers),
        "pool": asked.pool,
        "architecture": encoder.architecture,
        "preprocessing": encoder.preprocessing,
        "weights_sha256": encoder.weights_sha256,
    }
    # Left out in float32, so that features from before there was a choice keep their fingerprints.
    values |= {"precision": asked.precision} if asked.precision != "fp32" else {}
    frames = () if asked.pool else (encoder.frames(spec.clip.samples),)
    shape = (*((len(numbers),) if len(numbers) > 1 else ()), *frames, encoder.width)
    info = _feature(asked.feature, "encoder", values, shape, spec, engine)
    return FeatureInfo(**{**vars(info), "source": encoder.source, "random_weights": encoder.random_weights})


def text_feature(spec: ExtractSpec, asked: EncoderSpec, encoder: TextEncoder, engine: dict[str, Any]) -> FeatureInfo:
    """What the final hidden layer of a text encoder over the transcripts is."""
    values = {
        "architecture": encoder.architecture,
        "tokenizer_sha256": encoder.tokenizer_sha256,
        "weights_sha256": encoder.weights_sha256,
        "dtype": spec.dtype,
    }
    return FeatureInfo(
        name=asked.feature,
        kind="text",
        settings=values,
        shape=(0, encoder.width),
        dtype=spec.dtype,
        clips_per_shard=_TEXT_SHARD,
        engine=engine,
        source=encoder.source,
        random_weights=encoder.random_weights,
        per="utterance",
    )


def _feature(
    name: str, kind: str, values: dict[str, Any], shape: tuple[int, ...], spec: ExtractSpec, engine: dict[str, Any]
) -> FeatureInfo:
    values = {**values, "clip": settings(spec.clip), "dtype": spec.dtype}
    info = FeatureInfo(name, kind, values, shape, spec.dtype, 1, engine, source={})
    most = max(1, min(clips_per_shard(info.clip_bytes), _MAX_SIGNAL_BYTES // (4 * spec.clip.samples)))
    return FeatureInfo(**{**vars(info), "clips_per_shard": most})


def is_source(info: FeatureInfo, encoder: EncoderSpec) -> bool:
    """Whether a feature was made by the encoder of this name and revision."""
    return (info.source.get("name"), info.source.get("revision")) == (encoder.name, encoder.revision)


def begun_feature(folder: Path, name: str) -> FeatureInfo | None:
    """The feature as it was begun in this cache, or None."""
    return read_feature(folder, name) if (folder / name / "feature.json").exists() else None
