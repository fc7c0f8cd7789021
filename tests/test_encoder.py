from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from mfhca_cache.errors import EncoderError, MfhcaError
from mfhca_cache.extraction.checkpoint import quiet_transformers
from mfhca_cache.extraction.encoder import Encoder, load_encoder
from mfhca_cache.spec import EncoderSpec

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def checkpoint(folder: Path, seed: int = 0, normalise: bool = True, **changes: object) -> HubertModel:
    """A small HuBERT of random weights, saved as transformers saves one."""
    torch.manual_seed(seed)
    model = HubertModel(HubertConfig(**{**SMALL, **changes}))
    with quiet_transformers():
        model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return model.eval()


def clips(count: int = 2, samples: int = 48_000, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((count, samples)) + 0.05).astype(np.float32)


def test_a_local_checkpoint_gives_its_own_models_final_layer(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "enc")
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc")))
    x = clips()
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-7)
    with torch.inference_mode():
        expected = model(torch.from_numpy(normal)).last_hidden_state
    got = encoder.encode(x)
    assert got.shape == (2, 149, 32)
    assert (encoder.frames(48_000), encoder.width) == (149, 32)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_normalisation_is_the_feature_extractors_own(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "raw", normalise=False)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "raw")))
    assert not encoder.normalise
    x = clips()
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).last_hidden_state
    torch.testing.assert_close(encoder.encode(x), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_gives_what_single_clips_give(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc")
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc")))
    x = clips(3)
    together = encoder.encode(x)
    alone = torch.cat([encoder.encode(x[n : n + 1]) for n in range(3)])
    assert float((together - alone).norm() / alone.norm()) < 1e-6


def old_spelling(model: HubertModel) -> dict[str, torch.Tensor]:
    """The state as older checkpoints spell it, without what they may lack."""
    spell = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, value in model.state_dict().items():
        for new, old in spell.items():
            name = name.replace(new, old)
        if name != "masked_spec_embed":
            state[name] = value
    return state


def save_bin(folder: Path, state: dict[str, torch.Tensor]) -> EncoderSpec:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    return EncoderSpec(str(folder))


def test_an_old_bin_gives_the_same_encoder(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "enc")
    new = load_encoder(EncoderSpec(str(tmp_path / "enc")))
    old = load_encoder(save_bin(tmp_path / "enc", old_spelling(model)))
    assert old.weights_sha256 == new.weights_sha256
    assert torch.equal(old.encode(clips()), new.encode(clips()))


def test_missing_weights_are_an_error_and_never_random(tmp_path: Path) -> None:
    state = old_spelling(checkpoint(tmp_path / "enc"))
    del state["encoder.layers.0.attention.k_proj.weight"]
    with pytest.raises(EncoderError, match=r"lacks 1 weights.*k_proj\.weight"):
        load_encoder(save_bin(tmp_path / "enc", state))


def test_weights_of_another_shape_are_an_error(tmp_path: Path) -> None:
    state = old_spelling(checkpoint(tmp_path / "enc"))
    state["encoder.layers.0.attention.k_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(EncoderError, match="enc"):
        load_encoder(save_bin(tmp_path / "enc", state))


class Trap:
    """Pickles as a call that would leave a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_pickled_checkpoint_does_not_run(tmp_path: Path) -> None:
    state = old_spelling(checkpoint(tmp_path / "enc"))
    spec = save_bin(tmp_path / "enc", {**state, "trap": Trap(tmp_path / "ran")})  # type: ignore[dict-item]
    with pytest.raises(EncoderError, match="holds more than weights"):
        load_encoder(spec)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_its_feature_extractor_says_so(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc")
    (tmp_path / "enc" / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match=r"preprocessor_config\.json is missing.*normalised"):
        load_encoder(EncoderSpec(str(tmp_path / "enc")))


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc")
    with pytest.raises(EncoderError, match="no revisions"):
        load_encoder(EncoderSpec(str(tmp_path / "enc"), revision="main"))


def test_without_network_the_error_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    spec = EncoderSpec("nobody/no-such-hubert", revision="0123abcd")
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec)
    text = str(caught.value)
    assert "hf download nobody/no-such-hubert --revision 0123abcd" in text
    assert "--encoder no-such-hubert" in text


def test_a_text_model_is_no_speech_encoder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=9)
    with quiet_transformers():
        BertModel(config).save_pretrained(tmp_path / "bert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "bert")
    with pytest.raises(EncoderError, match="expected a model that takes the waveform"):
        load_encoder(EncoderSpec(str(tmp_path / "bert")))


def test_random_tiny_is_the_same_every_time_and_says_what_it_is() -> None:
    before = torch.random.get_rng_state()
    one, two = load_encoder(EncoderSpec("random-tiny")), load_encoder(EncoderSpec("random-tiny"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.weights_sha256 == two.weights_sha256
    assert one.random_weights
    assert torch.equal(one.encode(clips()), two.encode(clips()))
    assert one.frames(48_000) == 149


def test_a_checkpoint_that_calls_itself_random_stays_marked(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc")
    assert not load_encoder(EncoderSpec(str(tmp_path / "enc"))).random_weights
    config = json.loads((tmp_path / "enc" / "config.json").read_text())
    (tmp_path / "enc" / "config.json").write_text(json.dumps({**config, "random_weights": True}))
    assert load_encoder(EncoderSpec(str(tmp_path / "enc"))).random_weights


@pytest.mark.parametrize(
    ("name", "revision", "feature"),
    [
        ("facebook/hubert-base-ls960", None, "hubert-base-ls960"),
        ("facebook/hubert-base-ls960", "0123456789abcdef" * 2 + "01234567", "hubert-base-ls960@0123456789ab"),
        ("facebook/hubert-base-ls960", "release-2023-02", "hubert-base-ls960@release-2023-02"),
        ("/models/my hubert/", None, "my-hubert"),
        ("random-tiny", None, "random-tiny"),
    ],
)
def test_a_features_folder_is_named_for_its_encoder(name: str, revision: str | None, feature: str) -> None:
    assert EncoderSpec(name, revision).feature == feature


def test_a_name_that_cannot_be_a_folder_is_refused() -> None:
    with pytest.raises(MfhcaError, match="folder name"):
        _ = EncoderSpec("..").feature


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc")
    spec = EncoderSpec(str(tmp_path / "enc"))
    cpu, cuda = load_encoder(spec).encode(clips()), load_encoder(spec, "cuda").encode(clips())
    assert float((cpu - cuda).norm() / cpu.norm()) < 1e-5
    assert isinstance(load_encoder(spec), Encoder)
