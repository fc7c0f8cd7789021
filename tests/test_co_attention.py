"""Co-attention: the fusion that stands in for HCA, and the baseline in full, against plain NumPy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.models import MFHCA, MFHCASettings, build_model, count_parameters
from mfhca_cache.models.ca_mser import CAMSER, CoAttentionSettings
from mfhca_cache.models.co_attention import CoAttention
from mfhca_cache.spec import EncoderSpec, ExtractSpec, MFCCSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint
from mfhca_cache.training.trainer import evaluate, train_fold

from .features import add_feature
from .test_alexnet import CONVOLUTIONS, every_gradient

#: Sizes that train in seconds; AlexNet's are fixed.
SMALL = (("lstm_width", 8), ("hidden", 16))


@pytest.fixture(scope="module")
def mfcc_folder(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus with spectrograms, MFCC and random-tiny."""
    folder = tmp_path_factory.mktemp("mfcc") / "cache"
    extract(small_manifest, folder, ExtractSpec(encoder=EncoderSpec("random-tiny"), mfcc=MFCCSpec()), device="cpu")
    return folder


@pytest.fixture
def mfcc_cache(mfcc_folder: Path) -> Cache:
    return open_cache(mfcc_folder)


# The fusion


def test_the_fusion_is_the_frames_weighted_by_the_spectrogram() -> None:
    torch.manual_seed(0)
    fusion = CoAttention(7, MFHCASettings(encoder_width=5, encoder_frames=9, hidden=3, dropout=0.0)).double().eval()
    f_spec, f_hubert = torch.randn(2, 7).double(), torch.randn(2, 9, 5).double()
    state = {name: value.numpy() for name, value in fusion.state_dict().items()}
    w = np.maximum(f_spec.numpy() @ state["weights.weight"].T + state["weights.bias"], 0)
    attended = np.einsum("bl,bld->bd", w, f_hubert.numpy())
    encoder = np.maximum(attended @ state["encoder_out.weight"].T + state["encoder_out.bias"], 0)
    spec = np.maximum(f_spec.numpy() @ state["spec_out.0.weight"].T + state["spec_out.0.bias"], 0)
    with torch.no_grad():
        np.testing.assert_allclose(fusion(f_spec, f_hubert), np.concatenate([spec, encoder], 1), rtol=1e-10)


def test_behind_alexnet_the_spectrograms_part_is_alexnets_own() -> None:
    settings = MFHCASettings(spectrogram_network="alexnet", fusion="co-attention", hidden=6, encoder_frames=4)
    fusion = CoAttention(6, settings).eval()
    f_spec = torch.rand(2, 6)
    with torch.no_grad():
        assert torch.equal(fusion(f_spec, torch.randn(2, 4, 768))[:, :6], f_spec)


#: Numbers of the parts: MF as the paper has it; AlexNet to 128; the classifier on 256; HCA's BiLSTM and Eq. 10.
MF_PART, ALEXNET_PART, CLASSIFIER = 54_120, CONVOLUTIONS + 9216 * 128 + 128, 49_924
HCA_PART = 2 * 4 * 384 * (768 + 384 + 2) + 1024 * 768 + 768
#: w from f_spec's width, and the encoder's layer of Eq. 11; both fusions have them.
COMMON = {width: width * 149 + 149 + 768 * 128 + 128 for width in (128, 288)}


@pytest.mark.parametrize(
    ("network", "fusion", "parameters"),
    [
        ("mf", "hca", MF_PART + HCA_PART + COMMON[288] + 288 * 128 + 128),
        ("mf", "co-attention", MF_PART + COMMON[288] + 288 * 128 + 128),
        ("alexnet", "hca", ALEXNET_PART + HCA_PART + COMMON[128] + 128 * 128 + 128),
        ("alexnet", "co-attention", ALEXNET_PART + COMMON[128]),
    ],
)
def test_every_row_of_table_ii_is_the_same_modules(network: str, fusion: str, parameters: int) -> None:
    model = build_model(settings=MFHCASettings.from_dict({"spectrogram_network": network, "fusion": fusion}))
    assert isinstance(model, MFHCA)
    assert count_parameters(model) == parameters + CLASSIFIER
    assert count_parameters(model.classifier) == CLASSIFIER
    model.eval()
    with torch.no_grad():
        fused = model.features(torch.randn(2, 300, 200), torch.randn(2, 149, 768))
        assert fused.shape == (2, 256)
        assert model.classifier(fused).shape == (2, 4)


@pytest.mark.parametrize("network", ["mf", "alexnet"])
def test_gradients_reach_every_parameter_of_the_fusion(network: str) -> None:
    torch.manual_seed(0)
    sizes = {"encoder_width": 64, "encoder_frames": 9, "hidden": 16, "channels": (4, 6), "dropout": 0.0}
    chosen = {"spectrogram_network": network, "fusion": "co-attention"}
    model = build_model(settings=MFHCASettings.from_dict(sizes | chosen))
    found = every_gradient(model, spectrogram=torch.randn(8, 70, 66), encoder=torch.randn(8, 9, 64))
    assert not [name for name, largest in found.items() if largest == 0]


def test_features_of_another_size_are_refused() -> None:
    model = build_model(settings=MFHCASettings(fusion="co-attention", encoder_width=8, encoder_frames=9))
    for shape in ((2, 9, 7), (2, 8, 8), (2, 9)):
        with pytest.raises(TrainingError, match=r"the model expects \(B, 9, 8\)"):
            model(spectrogram=torch.randn(2, 40, 36), encoder=torch.randn(shape))


# The baseline in full


def test_the_baseline_has_the_shapes_that_it_states() -> None:
    torch.manual_seed(0)
    model = CAMSER().eval()
    assert (model.weights.in_features, model.weights.out_features) == (256, 149)
    assert model.mfcc_out.in_features == 153_600
    with torch.no_grad():
        fused = model.features(torch.randn(2, 300, 200), torch.randn(2, 300, 40), torch.randn(2, 149, 768))
        assert fused.shape == (2, 384)
        assert model.classifier(fused).shape == (2, 4)
    # 25.7 M: AlexNet without its classifier.
    lstm = 2 * 4 * 256 * (40 + 256 + 2) + 2 * 4 * 256 * (512 + 256 + 2)
    ends = 153_600 * 128 + 128 + 256 * 149 + 149 + 768 * 128 + 128 + 384 * 128 + 128 + 128 * 128 + 128 + 128 * 4 + 4
    assert count_parameters(model) == CONVOLUTIONS + 9216 * 128 + 128 + lstm + ends == 25_700_697


def test_the_mfcc_branch_is_the_norm_of_frames_and_two_lstms() -> None:
    torch.manual_seed(0)
    settings = CoAttentionSettings(mfcc_frames=6, mfcc_width=5, lstm_width=3, hidden=4)
    model = CAMSER(settings).eval()
    mfcc = torch.randn(2, 6, 5)
    reference = nn.LSTM(5, 3, num_layers=2, batch_first=True, bidirectional=True)
    state = {}
    for layer in (0, 1):
        for name, value in model.lstm[layer].state_dict().items():
            state[name.replace("l0", f"l{layer}")] = value
    reference.load_state_dict(state)
    with torch.no_grad():
        normed = mfcc / mfcc.square().sum(2, keepdim=True).sqrt()
        expected = torch.relu(model.mfcc_out(reference(normed)[0].flatten(1)))
        torch.testing.assert_close(model._mfcc(mfcc), expected)
        torch.testing.assert_close(model._mfcc(3 * mfcc), expected)


def test_the_whole_is_its_parts_in_order() -> None:
    torch.manual_seed(0)
    settings = CoAttentionSettings(5, mfcc_frames=6, mfcc_width=5, lstm_width=3, hidden=4, encoder_width=8)
    model = CAMSER(replace(settings, encoder_frames=7)).double().eval()
    spectrogram, mfcc = torch.randn(2, 70, 66).double(), torch.randn(2, 6, 5).double()
    encoder = torch.randn(2, 7, 8).double()
    with torch.no_grad():
        spec = model.alexnet(spectrogram.unsqueeze(1).repeat(1, 3, 1, 1))
        cepstra = model._mfcc(mfcc)
        w = torch.relu(model.weights(torch.cat([spec, cepstra], 1)))
        third = torch.relu(model.encoder_out(torch.stack([w[i] @ encoder[i] for i in range(2)])))
        fused = torch.cat([spec, cepstra, third], 1)
        torch.testing.assert_close(model.features(spectrogram, mfcc, encoder), fused)
        x = fused
        for at in (1, 4):
            x = torch.relu(model.classifier[at](x))
        torch.testing.assert_close(model(spectrogram, mfcc, encoder), model.classifier[6](x))


def test_gradients_reach_every_parameter_of_the_baseline() -> None:
    torch.manual_seed(0)
    settings = CoAttentionSettings(
        mfcc_frames=6, mfcc_width=5, lstm_width=8, hidden=24, encoder_frames=7, encoder_width=8, dropout=0.0
    )
    inputs = {"spectrogram": torch.randn(8, 70, 66), "mfcc": torch.randn(8, 6, 5), "encoder": torch.randn(8, 7, 8)}
    found = every_gradient(CAMSER(settings), **inputs)
    assert not [name for name, largest in found.items() if largest == 0]


def test_bfloat16_and_channels_last_train_the_baseline(mfcc_cache: Cache) -> None:
    options = TrainOptions("co-attention", epochs=1, threads=1, precision="bf16", changes=SMALL)
    result = train_fold(mfcc_cache, 1, options, device="cpu")
    assert np.isfinite(result.curve["train_loss"]).all()


def test_a_run_of_the_baseline_repeats_goes_on_and_is_rebuilt(mfcc_cache: Cache, tmp_path: Path) -> None:
    options = TrainOptions("co-attention", epochs=2, threads=1, changes=SMALL)
    assert (options.features, options.preset) == ("spectrogram+mfcc+encoder", "frozen")
    run = tmp_path / "run"
    (first,) = cross_validate(mfcc_cache, options, fold=1, run=run, device="cpu")
    torch.manual_seed(5)
    alone = train_fold(mfcc_cache, 1, options, device="cpu")
    assert first.predictions.equals(alone.predictions)
    assert all(torch.equal(first.state[name], alone.state[name]) for name in first.state)
    stamp = (run / "fold01" / "result.json").stat().st_mtime_ns
    cross_validate(mfcc_cache, options, fold=2, run=run, device="cpu")
    cross_validate(mfcc_cache, options, fold=1, run=run, device="cpu")
    assert (run / "fold01" / "result.json").stat().st_mtime_ns == stamp
    record = first.record
    assert record["features"] == {"spectrogram": "spectrogram", "mfcc": "mfcc-40", "encoder": "random-tiny"}
    assert (record["model"], record["model_settings"]["encoder_width"]) == ("co-attention", 64)
    assert (record["model_settings"]["mfcc_frames"], record["model_settings"]["mfcc_width"]) == (300, 40)
    model, scaling, _ = load_checkpoint(run / "fold01" / "model.safetensors")
    job = prepare(mfcc_cache, options, "cpu")
    data = load_job_data(job, [job.folds[0]])
    log_probabilities = evaluate(model, data, data.clips_of(job.folds[0].test), scaling)
    # One clip an utterance, but for the third, which has two.
    stored = first.predictions.filter(like="p_").to_numpy()
    np.testing.assert_allclose(stored[[0, 1, 3]], np.exp(log_probabilities[[0, 1, 4]]), atol=2e-6)


# Features by role


def test_what_the_baseline_needs_and_the_cache_lacks_is_said_with_its_command(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "iemocap.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError) as caught:
        prepare(small_cache, TrainOptions("co-attention"), "cpu")
    command = f"mfhca extract --cache {small_cache.path} --encoder none --features mfcc"
    assert f"--features mfcc needs the feature mfcc; it has none; `{command}` adds it" in str(caught.value)
    for features, message in (
        ("spectrogram+encoder", r"needs spectrogram \+ mfcc \+ encoder; .* names no mfcc\. .* has: random-tiny, spect"),
        ("spectrogram+log-mel", "no feature 'log-mel'"),
    ):
        with pytest.raises(TrainingError, match=message):
            prepare(small_cache, TrainOptions("co-attention", features), "cpu")


def test_a_second_encoder_is_named(mfcc_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mfcc_folder, tmp_path / "c"))
    add_feature(folder, "wav2vec2-base", (20, 32))
    add_feature(folder, "wav2vec2-base.all", (3, 20, 32))
    cache = open_cache(folder)
    with pytest.raises(TrainingError, match=r"several: .* Name one, such as spectrogram\+mfcc\+random-tiny"):
        prepare(cache, TrainOptions("co-attention"), "cpu")
    options = TrainOptions("co-attention", "spectrogram+mfcc+wav2vec2-base")
    job = prepare(cache, options, "cpu")
    assert job.roles["encoder"] == "wav2vec2-base"
    assert run_name(cache, options, job.roles) == (
        "iemocap-co-attention-spectrogram+mfcc-40+wav2vec2-base-strict-frozen"
    )
    with pytest.raises(TrainingError, match=r"shape \(3, 20, 32\), and co-attention needs \(frames, width\)"):
        prepare(cache, TrainOptions("co-attention", "spectrogram+mfcc+wav2vec2-base.all"), "cpu")


def test_settings_are_the_models_own() -> None:
    changes = parse_changes(["lstm_width=32", "lstm-dropout=0.2"], "co-attention")
    options = TrainOptions("co-attention", changes=changes)
    assert isinstance(options.settings, CoAttentionSettings)
    assert (options.settings.lstm_width, options.settings.lstm_dropout) == (32, 0.2)
    with pytest.raises(TrainingError, match=r"'rate' cannot be changed; .* of the model: alexnet_weights, dropout"):
        TrainOptions("co-attention", changes=parse_changes(["rate=8"], "co-attention"))
    with pytest.raises(TrainingError, match=r"'mfcc_width' cannot be changed \(the cache and the class map decide it"):
        TrainOptions("co-attention", changes=(("mfcc_width", 13),))
    with pytest.raises(TrainingError, match=r"lstm_dropout: got 1\.5"):
        CoAttentionSettings(lstm_dropout=1.5)
    with pytest.raises(TrainingError, match="settings of co-attention: got MFHCASettings"):
        build_model("co-attention", settings=MFHCASettings())
    with pytest.raises(TrainingError, match="inputs of co-attention"):
        build_model("co-attention", ("spectrogram",))
    with pytest.raises(TrainingError, match="model 'cnn' is not known; expected one of mfhca, co-attention"):
        TrainOptions("cnn")
