"""Statistics pooling, and the models that are fitted to it: against NumPy and scikit-learn, and as runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import SVM, Ridge, RidgeSettings, StatisticsModel, SVMSettings, build_model, count_parameters
from mfhca_cache.models.statistics import kernel, moments, pool
from mfhca_cache.reporting.summary import summarise, write_report
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.dataset import frame_mask
from mfhca_cache.training import closed_form
from mfhca_cache.training.changes import changes_name, parse_changes
from mfhca_cache.training.closed_form import fit_ridge, fit_svms, standardisation, utterance_vectors
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.job import load_job_data, model_settings, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint, read_fold
from mfhca_cache.training.trainer import evaluate, train_fold

from .features import add_feature

LAYERS, FRAMES, WIDTH = 3, 9, 8
MODELS = ("ridge", "svm")


@pytest.fixture(scope="module")
def layered_folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cache, with a feature of layers of which one has the label in it, and one pooled over time."""
    folder = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("layers") / "cache"))
    add_feature(folder, "layers.all", (LAYERS, FRAMES, WIDTH), layer=1, layers=[0, 1, 2])
    add_feature(folder, "layers.mean", (WIDTH,), pool="mean")
    return folder


@pytest.fixture
def layered(layered_folder: Path) -> Cache:
    return open_cache(layered_folder)


# Statistics


@given(st.integers(1, 4), st.lists(st.integers(1, FRAMES), min_size=1, max_size=4), st.integers(0, 9))
@settings(max_examples=25)
def test_statistics_are_those_of_the_signal_frames(layers: int, valid: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(-60, 5, (len(valid), layers, FRAMES, WIDTH)).astype(np.float32)
    mask = frame_mask(torch.tensor(valid), FRAMES)
    found = pool(*moments(torch.from_numpy(x), mask), True)
    for at, frames in enumerate(valid):
        signal = x[at, :, :frames].astype(np.float64)
        expected = np.concatenate([signal.mean(1).ravel(), signal.std(1).ravel()])
        np.testing.assert_allclose(found[at], expected, rtol=1e-5, atol=1e-4)
    # Clips added up are the utterance of all their frames.
    together = [part.sum(0, keepdim=True) for part in moments(torch.from_numpy(x), mask)]
    signal = np.concatenate([x[at, :, :frames] for at, frames in enumerate(valid)], 1).astype(np.float64)
    expected = np.concatenate([signal.mean(1).ravel(), signal.std(1).ravel()])
    np.testing.assert_allclose(pool(*together, True)[0], expected, rtol=1e-5, atol=1e-4)


def test_an_utterances_vector_is_that_of_all_its_clips(layered: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["spectrogram", "layers.all", "layers.mean"]
    job = prepare(layered, TrainOptions("ridge", "+".join(names)), "cpu")
    data = load_job_data(job, job.folds)
    test = job.folds[0].test
    whole = utterance_vectors(data, data.clips_of(test))
    monkeypatch.setattr(closed_form, "_BATCH_NUMBERS", 1)  # A clip a batch.
    by_clip = utterance_vectors(data, data.clips_of(test))
    torch.testing.assert_close(whole.values, by_clip.values, rtol=1e-6, atol=1e-6)
    assert whole.values.shape == (4, 2 * 200 + 2 * LAYERS * WIDTH + WIDTH)
    assert model_settings(job).statistics == whole.values.shape[1]  # type: ignore[union-attr]
    for row, name in enumerate(test):
        loaded = layered.load(names, [name])
        parts = []
        for feature in names[:2]:
            signal = [
                clip[..., :valid, :].double().numpy()
                for clip, valid in zip(loaded[feature], loaded["clips"][f"valid_{feature}"], strict=True)
            ]
            frames = np.concatenate(signal, -2)
            parts += [frames.mean(-2).ravel(), frames.std(-2).ravel()]
        parts.append(loaded["layers.mean"].double().numpy().mean(0))
        np.testing.assert_allclose(whole.values[row], np.concatenate(parts), rtol=1e-4, atol=1e-4)


def test_standardisation_is_scikit_learns_and_leaves_constants_alone() -> None:
    values = torch.randn(20, 5) * 3 + 7
    values[:, 2] = 4.25
    mean, std = standardisation(values)
    reference = StandardScaler().fit(values.double().numpy())
    np.testing.assert_allclose(mean, reference.mean_, rtol=1e-6)
    np.testing.assert_allclose(std, reference.scale_, rtol=1e-6)
    assert std[2] == 1


# Fits


@pytest.mark.parametrize("size", [(40, 6), (6, 40)])
@pytest.mark.parametrize("alpha", [0.5, 300.0])
def test_ridge_is_scikit_learns(size: tuple[int, int], alpha: float) -> None:
    rng = np.random.default_rng(3)
    x, y, weights = rng.normal(size=size) + 2, rng.normal(size=(size[0], 3)), rng.uniform(0.2, 3, size[0])
    found = fit_ridge(torch.from_numpy(x), torch.from_numpy(y), alpha, torch.from_numpy(weights))
    reference = SklearnRidge(alpha=alpha).fit(x, y, sample_weight=weights)
    np.testing.assert_allclose(found[0], reference.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found[1], reference.intercept_, rtol=1e-8)


@pytest.mark.parametrize("kind", ["rbf", "linear"])
def test_the_svm_is_scikit_learns_one_against_the_rest(kind: str) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 3], [10, 14, 16])  # a class that training lacks
    x = rng.normal(size=(40, 6)) + labels[:, None] * 0.4
    gram = kernel(torch.from_numpy(x), torch.from_numpy(x), kind).numpy()
    dual, bias = fit_svms(gram, labels, 4, C=2.0, balanced=True)
    new = rng.normal(size=(9, 6))
    found = kernel(torch.from_numpy(new), torch.from_numpy(x), kind) @ dual.T + bias
    for number in (0, 1, 3):
        reference = SVC(C=2.0, kernel=kind, gamma=1 / 6, class_weight="balanced").fit(x, labels == number)
        np.testing.assert_allclose(found[:, number], reference.decision_function(new), rtol=1e-3, atol=2e-3)
    assert (found[:, 2] == -100).all()
    other, _ = fit_svms(gram, labels, 4, C=2.0, balanced=False)
    assert not torch.allclose(dual, other)


def test_a_model_has_what_was_fitted_and_no_parameter_to_train() -> None:
    ridge = build_model("ridge", ["a"], RidgeSettings(statistics=10))
    assert isinstance(ridge, Ridge) and count_parameters(ridge) == 2 * 10 + 4 * 10 + 4
    svm = build_model("svm", ["a"], SVMSettings(statistics=10, support_vectors=7))
    assert isinstance(svm, SVM) and count_parameters(svm) == 2 * 10 + 7 * 10 + 4 * 7 + 4
    assert not list(ridge.parameters()) and not list(svm.parameters())
    with pytest.raises(TrainingError, match="names of features, one at least"):
        build_model("svm")


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_score(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"statistics": 2 * 2 * WIDTH, **({"support_vectors": 5} if name == "svm" else {})}
    model = build_model(name, ["a"], (SVMSettings if name == "svm" else RidgeSettings)(**sizes))  # type: ignore[arg-type]
    for buffer in model.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    clips = torch.randn(3, 2, FRAMES, WIDTH, generator=generator)
    padded = torch.cat([clips, 50 * torch.randn(3, 2, 5, WIDTH, generator=generator)], 2)
    mask = (torch.arange(FRAMES + 5) < FRAMES).expand(3, -1)
    found = model({"a": padded}, {"a": mask})
    torch.testing.assert_close(found, model({"a": clips}, {"a": mask[:, :FRAMES]}), rtol=0, atol=1e-5)
    assert (model({"a": padded}, {"a": torch.ones_like(mask)}) - found).abs().max() > 1e-2


# Runs


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("features", ["spectrogram", "layers.all+layers.mean"])
def test_a_run_leaves_what_every_run_leaves(name: str, features: str, layered: Cache, tmp_path: Path) -> None:
    options = TrainOptions(name, features)
    run = tmp_path / "run"
    (first,) = cross_validate(layered, options, fold=1, run=run, device="cpu")
    stamp = (run / "fold01" / "result.json").stat().st_mtime_ns
    results = cross_validate(layered, options, run=run, device="cpu")
    assert (run / "fold01" / "result.json").stat().st_mtime_ns == stamp
    alone = train_fold(layered, 1, options, device="cpu")
    assert all(torch.equal(first.state[key], alone.state[key]) for key in first.state)
    record = read_fold(run / "fold01").record
    assert record["recipe"] == {} and record["stopped"] == "grid"
    assert record["parameters"] == sum(value.numel() for value in first.state.values())
    curve = read_fold(run / "fold01").curve
    grid = options.settings.grid  # type: ignore[attr-defined]
    parameter = "C" if name == "svm" else "alpha"
    assert list(curve[parameter]) == list(grid) and record["epochs"] == len(grid)
    order = curve.sort_values(["validation_ua", "validation_loss"], ascending=[False, True], kind="stable")
    assert record["best_epoch"] == order["epoch"].iloc[0]
    assert record["chosen"] == {parameter: order[parameter].iloc[0]}
    summary = summarise(run)
    assert len(summary.folds) == len(results) == 6
    assert pd.read_csv(write_report(summary)[1])["utterance_ua"].between(0, 1).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_the_stored_predictions(name: str, layered: Cache, tmp_path: Path) -> None:
    options = TrainOptions(name, "layers.all")
    (result,) = cross_validate(layered, options, fold=1, run=tmp_path / "run", device="cpu")
    model, scaling, description = load_checkpoint(tmp_path / "run" / "fold01" / "model.safetensors")
    assert scaling is None and description["inputs"] == ["layers.all"]
    assert isinstance(model, StatisticsModel)
    assert model.state_dict().keys() == result.model().state_dict().keys()
    stored = result.predictions.filter(like="p_").to_numpy()
    for row, utterance in enumerate(result.predictions["utterance_id"]):
        # An utterance is a clip of all its frames.
        loaded = layered.load("layers.all", [utterance])
        valid = torch.from_numpy(loaded["clips"]["valid_layers.all"].to_numpy().copy())
        frames = torch.cat(list(loaded["layers.all"]), 1).unsqueeze(0).float()
        mask = frame_mask(valid, FRAMES).reshape(1, -1)
        scores = model({"layers.all": frames}, {"layers.all": mask})
        np.testing.assert_allclose(stored[row], scores.softmax(1)[0], atol=2e-6)
    job = prepare(layered, options, "cpu")
    data = load_job_data(job, [job.folds[0]])
    clips = data.clips_of(job.folds[0].test)
    right = evaluate(model, data, clips, None).argmax(1) == data.labels[clips].numpy()
    assert result.record["scores"]["clip"]["wa"] == pytest.approx(right.mean())
    assert result.ua >= 0.75  # The label is planted in one of the layers.


def test_the_test_speaker_has_no_say(layered: Cache) -> None:
    job = prepare(layered, TrainOptions("ridge", "layers.all"), "cpu")
    data = load_job_data(job, job.folds)
    fold = job.folds[0]
    before = train_fold(layered, fold, job=job, data=data)
    values = data.inputs["layers.all"]
    assert isinstance(values, torch.Tensor)
    values[data.clips_of(fold.test)] = 7.0
    after = train_fold(layered, fold, job=job, data=data)
    assert all(torch.equal(before.state[key], after.state[key]) for key in before.state)
    assert not before.predictions.equals(after.predictions)


def test_test_selected_is_marked(layered: Cache) -> None:
    result = train_fold(layered, 1, TrainOptions("svm", "layers.all", protocol="test-selected"), device="cpu")
    assert "optimistic" in result.record["caveats"][0] and result.record["optimistic"]
    assert "optimistic" in result.curve["caveat"].iloc[0] and "caveat" in result.predictions


def test_folds_in_processes_give_the_same_numbers(layered: Cache, tmp_path: Path) -> None:
    options = TrainOptions("svm", "layers.all", threads=1)
    one = cross_validate(layered, options, run=tmp_path / "a", device="cpu")
    two = cross_validate(layered, options, run=tmp_path / "b", device="cpu", jobs=2)
    for first, second in zip(one, two, strict=True):
        assert first.predictions.equals(second.predictions)
        assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)


def test_options_of_training_are_refused_and_settings_are_its_own(layered: Cache, tmp_path: Path) -> None:
    for change in ({"epochs": 3}, {"learning_rate": 0.1}, {"precision": "bf16"}):
        with pytest.raises(TrainingError, match="fitted in closed form"):
            TrainOptions("svm", **change)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"'patience' cannot be changed; those of the model that can: balanced, g"):
        TrainOptions("ridge", changes=(("patience", 3),))
    with pytest.raises(TrainingError, match="'support_vectors' cannot be changed"):
        TrainOptions("svm", changes=(("support_vectors", 3),))
    changes = parse_changes(["grid=0.5,2", "kernel=linear", "balanced=false"], "svm")
    options = TrainOptions("svm", "layers.all", changes=changes)
    assert options.settings == SVMSettings(grid=(0.5, 2.0), kernel="linear", balanced=False)
    assert changes_name(changes) == "-grid0.5.2-kernellinear-balancedfalse"
    for text in ("grid=0", "grid=a,b", "kernel=cubic"):
        with pytest.raises(TrainingError, match=text.split("=")[0]):
            TrainOptions("svm", changes=parse_changes([text], "svm"))
    run = tmp_path / "run"
    (result,) = cross_validate(layered, options, fold=1, run=run, device="cpu")
    assert len(result.curve) == 2
    assert "recipe" not in json.loads((run / "run.json").read_text())["options"]
    with pytest.raises(TrainingError, match="kernel: 'linear' → 'rbf'"):
        cross_validate(layered, replace(options, changes=changes[:1]), fold=2, run=run, device="cpu")
    assert run_name(layered, TrainOptions("ridge"), {"layers.all": "layers.all"}) == (
        "iemocap-ridge-layers.all-strict-frozen"
    )


def test_a_kernel_that_does_not_fit_in_memory_is_refused(layered: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "free_memory", lambda _: 100)
    with pytest.raises(TrainingError, match=r"the kernel of 16 utterances takes .* --model ridge needs none"):
        train_fold(layered, 1, TrainOptions("svm", "layers.all"), device="cpu")
    train_fold(layered, 1, TrainOptions("ridge", "layers.all"), device="cpu")


def test_several_encoders_are_to_be_named(layered: Cache) -> None:
    with pytest.raises(TrainingError, match=r"several: layers\.all, layers\.mean, random-tiny\. Name one, such as l"):
        prepare(layered, TrainOptions("ridge"), "cpu")
