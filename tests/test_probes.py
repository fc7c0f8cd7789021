"""The linear probe and self-attentive pooling: what they compute, padding, layers, and training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import (
    AttentivePooling,
    AttentivePoolingSettings,
    LinearProbe,
    LinearProbeSettings,
    build_model,
    count_parameters,
)
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint
from mfhca_cache.training.trainer import evaluate, train_fold

from .features import add_feature
from .test_alexnet import every_gradient

LAYERS, FRAMES, WIDTH = 3, 9, 8


def probe(kind: str, layers: int = LAYERS) -> nn.Module:
    """A probe on 8-wide features with every weight random."""
    torch.manual_seed(1)
    model: nn.Module
    if kind == "linear-probe":
        model = LinearProbe(LinearProbeSettings(encoder_layers=layers, encoder_width=WIDTH, hidden=6))
    else:
        statistics = kind == "attentive statistics"
        model = AttentivePooling(AttentivePoolingSettings(5, layers, WIDTH, 6, statistics))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.double().eval()


KINDS = ("linear-probe", "attentive-pooling", "attentive statistics")


@pytest.fixture(scope="module")
def layered_folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cache, with layers of which the second has the label in it, the same pooled, and one layer pooled."""
    folder = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("layers") / "cache"))
    add_feature(folder, "layers.all", (LAYERS, FRAMES, WIDTH), layer=1, layers=[0, 1, 2])
    add_feature(folder, "layers.all.mean", (LAYERS, WIDTH), layers=[0, 1, 2], pool="mean")
    add_feature(folder, "layers.mean", (WIDTH,), pool="mean")
    return folder


@pytest.fixture
def layered(layered_folder: Path) -> Cache:
    return open_cache(layered_folder)


def test_the_linear_probe_is_superbs() -> None:
    model = probe("linear-probe")
    encoder, mask = torch.randn(2, LAYERS, FRAMES, WIDTH).double(), torch.arange(FRAMES) < torch.tensor([[4], [9]])
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    weights = np.exp(state["layer_weights"]) / np.exp(state["layer_weights"]).sum()
    expected = []
    for clip, frames in zip(encoder.numpy(), (4, 9), strict=True):
        mixed = sum(weight * layer for weight, layer in zip(weights, clip, strict=True))
        projected = mixed[:frames] @ state["projection.weight"].T + state["projection.bias"]
        expected.append(projected.mean(0) @ state["classifier.weight"].T + state["classifier.bias"])
    with torch.no_grad():
        np.testing.assert_allclose(model(encoder, mask), expected, rtol=1e-10)
        # Pooled beforehand over the same frames it is the same probe.
        pooled = torch.stack([encoder[0, :, :4].mean(1), encoder[1].mean(1)])
        np.testing.assert_allclose(model(pooled), expected, rtol=1e-10)


@pytest.mark.parametrize("statistics", [False, True])
def test_attentive_pooling_is_the_mean_by_learned_weights(statistics: bool) -> None:
    model = probe(KINDS[1 + statistics])
    assert isinstance(model, AttentivePooling)
    encoder, mask = torch.randn(2, LAYERS, FRAMES, WIDTH).double(), torch.arange(FRAMES) < torch.tensor([[4], [9]])
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    layer = np.exp(state["layer_weights"]) / np.exp(state["layer_weights"]).sum()
    with torch.no_grad():
        weights, found = model.weights(encoder, mask), model.features(encoder, mask)
    for at, frames in enumerate((4, 9)):
        mixed = np.einsum("l,lfd->fd", layer, encoder[at].numpy())[:frames]
        h = mixed @ state["projection.weight"].T + state["projection.bias"]
        scores = np.exp(h @ state["attention.weight"][0])
        a = scores / scores.sum()
        mean = a @ h
        parts = [mean, np.sqrt(a @ (h - mean) ** 2)] if statistics else [mean]
        np.testing.assert_allclose(weights[at, :frames], a, rtol=1e-9)
        assert not weights[at, frames:].any()
        np.testing.assert_allclose(found[at], np.concatenate(parts), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_padding_changes_no_logits(kind: str, layers: int) -> None:
    model = probe(kind, layers).float()
    torch.manual_seed(2)
    clips = torch.randn(4, layers, FRAMES, WIDTH) if layers > 1 else torch.randn(4, FRAMES, WIDTH)
    padded = torch.cat([clips, 50 * torch.randn(*clips.shape[:-2], 7, WIDTH)], -2)
    mask = (torch.arange(FRAMES + 7) < FRAMES).expand(4, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, mask), model(clips), rtol=0, atol=1e-5)
        assert (model(padded) - model(clips)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_gradients_reach_every_parameter_of_a_probe(kind: str, layers: int) -> None:
    encoder = torch.randn(8, layers, FRAMES, WIDTH).double()
    mask = torch.arange(FRAMES) < torch.arange(1, 9)[:, None]
    found = every_gradient(probe(kind, layers), encoder=encoder, mask=mask)
    assert not [name for name, largest in found.items() if largest == 0]
    assert ("layer_weights" in found) == (layers > 1)


def test_a_clip_of_one_frame_has_finite_gradients() -> None:
    encoder, mask = torch.zeros(2, FRAMES, WIDTH).double(), torch.arange(FRAMES).expand(2, -1) < 1
    model = probe("attentive statistics", 1)
    model(encoder, mask).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


def test_features_of_other_shapes_are_refused() -> None:
    for shape in ((2, LAYERS + 1, FRAMES, WIDTH), (2, LAYERS, FRAMES, WIDTH + 1), (2, WIDTH), (2, FRAMES, WIDTH)):
        with pytest.raises(TrainingError, match=r"expects \(B, 3, L, 8\) or \(B, 3, 8\)"):
            probe("linear-probe")(torch.zeros(shape).double())
    with pytest.raises(TrainingError, match=r"expects \(B, L, 8\) or \(B, 8\)"):
        probe("linear-probe", 1)(torch.zeros(2, LAYERS, FRAMES, WIDTH).double())
    assert probe("linear-probe", 1)(torch.zeros(2, 1, FRAMES, WIDTH).double()).shape == (2, 4)


def test_parameters_are_those_of_superb() -> None:
    # 12 blocks and their input, 768 wide.
    settings = {"encoder_layers": 13, "encoder_width": 768}
    linear = build_model("linear-probe", settings=LinearProbeSettings.from_dict(settings))
    assert count_parameters(linear) == 13 + 768 * 256 + 256 + 256 * 4 + 4
    attentive = build_model("attentive-pooling", settings=AttentivePoolingSettings.from_dict(settings))
    assert count_parameters(attentive) == count_parameters(linear) + 256
    both = build_model("attentive-pooling", settings=AttentivePoolingSettings(statistics=True))
    assert count_parameters(both) == 768 * 256 + 256 + 256 + 512 * 4 + 4


# In a run


@pytest.mark.parametrize(
    ("model", "feature", "layers"),
    [
        ("linear-probe", "layers.all", LAYERS),
        ("linear-probe", "layers.all.mean", LAYERS),
        ("linear-probe", "layers.mean", 1),
        ("linear-probe", "random-tiny", 1),
        ("attentive-pooling", "layers.all", LAYERS),
        ("attentive-pooling", "random-tiny", 1),
    ],
)
def test_probes_train_on_every_kind_of_feature(model: str, feature: str, layers: int, layered: Cache) -> None:
    options = TrainOptions(model, feature, epochs=2, threads=1)
    assert options.preset == "frozen"
    result = train_fold(layered, 1, options, device="cpu")
    assert result.record["model_settings"]["encoder_layers"] == layers
    assert result.record["features"] == {"encoder": feature}
    assert len(result.curve) == 2


def test_the_probe_finds_the_layer_that_knows(layered: Cache) -> None:
    options = TrainOptions("linear-probe", "layers.all", epochs=30, threads=1, changes=(("learning_rate", 0.02),))
    result = train_fold(layered, 1, options, device="cpu")
    model = result.model()
    assert isinstance(model, LinearProbe) and model.layer_weights is not None
    assert int(model.layer_weights.argmax()) == 1
    assert result.ua == 1.0


@pytest.mark.parametrize("model", ["linear-probe", "attentive-pooling"])
def test_a_probes_run_goes_on_and_is_rebuilt_with_its_predictions(model: str, layered: Cache, tmp_path: Path) -> None:
    options = TrainOptions(model, "layers.all", epochs=2, threads=1)
    run = tmp_path / "run"
    (first,) = cross_validate(layered, options, fold=1, run=run, device="cpu")
    stamp = (run / "fold01" / "result.json").stat().st_mtime_ns
    cross_validate(layered, options, fold=2, run=run, device="cpu")
    cross_validate(layered, options, fold=1, run=run, device="cpu")
    assert (run / "fold01" / "result.json").stat().st_mtime_ns == stamp
    alone = train_fold(layered, 1, options, device="cpu")
    assert all(torch.equal(first.state[name], alone.state[name]) for name in first.state)
    rebuilt, scaling, _ = load_checkpoint(run / "fold01" / "model.safetensors")
    assert scaling is None
    job = prepare(layered, options, "cpu")
    data = load_job_data(job, [job.folds[0]])
    found = evaluate(rebuilt, data, data.clips_of(job.folds[0].test), scaling)
    # One clip an utterance, but for the third, which has two.
    stored = first.predictions.filter(like="p_").to_numpy()
    np.testing.assert_allclose(stored[[0, 1, 3]], np.exp(found[[0, 1, 4]]), atol=2e-6)


def test_valid_frames_reach_the_probe(layered: Cache) -> None:
    options = TrainOptions("linear-probe", "layers.all", epochs=1, threads=1)
    job = prepare(layered, options, "cpu")
    data = load_job_data(job, job.folds)
    clips = data.clips_of(job.folds[0].test)
    model = train_fold(layered, 1, options, device="cpu", job=job, data=data).model()
    before = evaluate(model, data, clips, None)
    values = data.inputs["encoder"]
    assert isinstance(values, torch.Tensor)
    for clip, valid in enumerate(data.frames["encoder"].tolist()):
        values[clip, :, valid:] = 100.0
    np.testing.assert_allclose(evaluate(model, data, clips, None), before, atol=1e-5)


def test_probes_say_what_they_cannot_take(layered: Cache) -> None:
    for model, feature, message in (
        ("attentive-pooling", "layers.mean", r"shape \(8,\), and attentive-pooling needs frames: \(frames, width\)"),
        ("attentive-pooling", "layers.all.mean", r"needs frames"),
        ("linear-probe", "spectrogram", "spectrogram is no input of linear-probe, which takes encoder"),
        (
            "linear-probe",
            "encoder",
            "several: layers.all, layers.all.mean, layers.mean, random-tiny. Name one, such as ",
        ),
        ("linear-probe", "random-tiny+layers.all", "names two encoders"),
    ):
        with pytest.raises(TrainingError, match=re.escape(message) if "(" not in message else message):
            prepare(layered, TrainOptions(model, feature), "cpu")
    changes = parse_changes(["statistics=true", "hidden=32", "patience=2"], "attentive-pooling")
    options = TrainOptions("attentive-pooling", changes=changes)
    assert options.settings == AttentivePoolingSettings(hidden=32, statistics=True)
    assert options.recipe.patience == 2
    with pytest.raises(TrainingError, match="'encoder_layers' cannot be changed"):
        TrainOptions("linear-probe", changes=(("encoder_layers", 2),))
