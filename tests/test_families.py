"""Encoders of several families, made from their published configurations with few blocks and random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction.checkpoint import quiet_transformers
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.spec import EncoderSpec

LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, **LAYER_NORM}


@dataclass(frozen=True)
class Family:
    """What the published config.json and preprocessor_config.json say, as far as it matters."""

    model: str
    width: int
    normalise: bool
    mask: bool
    config: dict[str, Any]


FAMILIES = {
    "hubert-base": Family("Hubert", 768, True, False, {}),
    "hubert-large": Family("Hubert", 1024, True, True, LARGE),
    "wav2vec2-base": Family("Wav2Vec2", 768, True, False, {}),
    "wav2vec2-large": Family("Wav2Vec2", 1024, True, True, LARGE),
    "wavlm-base-plus": Family("WavLM", 768, False, False, {}),
    "wavlm-large": Family("WavLM", 1024, True, True, LARGE),
    "data2vec-audio-base": Family(
        "Data2VecAudio", 768, True, True, {"conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 5}
    ),
    "unispeech-sat-base": Family("UniSpeechSat", 768, True, False, {}),
}


def save(folder: Path, family: Family) -> torch.nn.Module:
    config = getattr(transformers, f"{family.model}Config")(num_hidden_layers=2, intermediate_size=256, **family.config)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.model}Model")(config)
    with quiet_transformers():
        model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=family.normalise, return_attention_mask=family.mask)
    extractor.save_pretrained(folder)
    result: torch.nn.Module = model.eval()
    return result


def speechlike(count: int, samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((count, samples)) + 0.05).astype(np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_its_own_models_layers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = save(tmp_path / name, family)
    encoder = load_encoder(EncoderSpec(str(tmp_path / name)))
    assert (encoder.width, encoder.blocks, encoder.normalise) == (family.width, 2, family.normalise)
    assert (encoder.frames(48_000), encoder.frames(400), encoder.frames(16_000)) == (149, 1, 49)
    clips = speechlike(3, 9_000)
    normal = (clips - clips.mean(1, keepdims=True)) / np.sqrt(clips.var(1, keepdims=True) + 1e-7)
    with torch.inference_mode():
        output = model(torch.from_numpy(normal if family.normalise else clips), output_hidden_states=True)
    got = encoder.encode(clips, "all")
    assert got.shape == (3, 3, encoder.frames(9_000), family.width)
    torch.testing.assert_close(got[:, 0], output.hidden_states[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[:, 1], output.hidden_states[1], rtol=1e-4, atol=1e-4)
    # The last layer is the final hidden state, whether or not a layer norm follows the last block.
    torch.testing.assert_close(got[:, 2], output.last_hidden_state, rtol=1e-4, atol=1e-4)
    assert torch.equal(encoder.encode(clips), got[:, 2])
    assert torch.equal(encoder.encode(clips, (0, 2)), got[:, [0, 2]])
    assert torch.equal(encoder.encode(clips, (1,)), got[:, 1])
    # No mask is passed, whatever the feature extractor would make: a batch is of one length, and none is padded.
    alone = encoder.encode(clips[1:2])
    assert float((alone[0] - got[1, 2]).norm() / alone.norm()) < 1e-5
    encoder.check_batching(clips)


def whisper(folder: Path, mels: int) -> torch.nn.Module:
    config = transformers.WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=mels, vocab_size=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    with quiet_transformers():
        model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    result: torch.nn.Module = model.eval()
    return result


@pytest.mark.parametrize("mels", [80, 128])
def test_whisper_hears_its_thirty_seconds_and_keeps_the_clips_frames(mels: int, tmp_path: Path) -> None:
    model = whisper(tmp_path / "w", mels)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "w")))
    assert (encoder.width, encoder.blocks, encoder.normalise) == (64, 2, False)
    assert (encoder.frames(48_000), encoder.frames(48_001), encoder.frames(400)) == (150, 151, 2)
    clips = speechlike(2, 48_000)
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    padded = np.pad(clips, ((0, 0), (0, 480_000 - 48_000)))
    features = extractor(list(padded), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        expected = model.get_encoder()(features).last_hidden_state[:, :150]
    got = encoder.encode(clips)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert encoder.encode(clips, "all").shape == (2, 3, 150, 64)
    with pytest.raises(EncoderError, match=r"hears 30 s; got clips of 31 s"):
        encoder.encode(speechlike(1, 31 * 16_000))


def test_whispers_decoder_may_be_absent_but_not_its_encoder(tmp_path: Path) -> None:
    import safetensors.torch as files

    whisper(tmp_path / "w", 80)
    path = tmp_path / "w" / "model.safetensors"
    state = files.load_file(path)
    files.save_file({k: v for k, v in state.items() if "decoder" not in k}, path, {"format": "pt"})
    load_encoder(EncoderSpec(str(tmp_path / "w")))
    files.save_file({k: v for k, v in state.items() if "encoder.conv1" not in k}, path, {"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 2 weights.*encoder\.conv1\.bias"):
        load_encoder(EncoderSpec(str(tmp_path / "w")))


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"'random-tiny' has the layers 0 to 2; got --layers 1,6"):
        load_encoder(EncoderSpec("random-tiny", layers=(1, 6)))


def test_an_encoder_whose_clips_depend_on_their_neighbours_is_refused() -> None:
    encoder = load_encoder(EncoderSpec("random-tiny"))
    inner = encoder._model.feature_projection.forward
    # As a batch norm left in training mode would: what is subtracted comes from the whole batch.
    encoder._model.feature_projection.forward = lambda x: inner(x - x.mean(dim=0, keepdim=True))
    clips = speechlike(3, 4_000) * np.array([[1.0], [3.0], [0.3]], dtype=np.float32)
    with pytest.raises(EncoderError, match="differs from the same clip alone"):
        encoder.check_batching(clips)
