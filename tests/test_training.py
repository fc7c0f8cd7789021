from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfhca_cache.errors import FoldError, LabelError, TrainingError
from mfhca_cache.labels import FOUR_CLASSES
from mfhca_cache.manifest import Manifest
from mfhca_cache.reporting.summary import paper_figures, summarise, write_report
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.descriptions import read_plan, write_utterances
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.data import Scaling, fit_scaling, gather
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import PRESETS, TrainOptions
from mfhca_cache.training.result import load_checkpoint, read_fold
from mfhca_cache.training.trainer import evaluate, train_fold

ENCODER = TrainOptions(features="encoder", preset="frozen", epochs=3)


def test_the_paper_preset_is_what_the_paper_states() -> None:
    recipe = PRESETS["paper"].recipe
    assert (recipe.optimiser, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-5, 0.0)
    assert (recipe.batch, recipe.patience, recipe.epochs) == (32, 10, 100)


def test_scaling_comes_from_training_clips_valid_frames_alone(small_cache: Cache) -> None:
    job = prepare(small_cache, TrainOptions(features="spectrogram"), "cpu")
    data = load_job_data(job, job.folds)
    fold = job.folds[0]
    scaling = fit_scaling(data, data.clips_of(fold.train))
    assert scaling is not None
    frames = []
    loaded = small_cache.load("spectrogram", fold.train)
    for picture, valid in zip(loaded["spectrogram"], loaded["clips"]["valid_spectrogram"], strict=True):
        frames.append(picture[:valid].numpy().astype(np.float64))
    stacked = np.concatenate(frames)
    np.testing.assert_allclose(scaling.mean, stacked.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaling.std, np.maximum(stacked.std(0), 1e-3), rtol=1e-4)


def test_padding_frames_are_zero_after_scaling() -> None:
    scaling = Scaling(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    scaled = scaling.apply(torch.full((2, 3, 2), 6.0, dtype=torch.float16), torch.tensor([1, 3]))
    assert scaled.tolist() == [[[2.5, 1.0], [0.0, 0.0], [0.0, 0.0]], [[2.5, 1.0]] * 3]


def test_a_fold_gives_scores_predictions_curve_and_a_model(small_cache: Cache) -> None:
    result = train_fold(small_cache, "2F", replace(ENCODER, features="spectrogram+encoder", epochs=1), device="cpu")
    record = result.record
    assert (record["fold"], record["name"], record["protocol"], record["optimistic"]) == (4, "2F", "strict", False)
    assert record["utterances"] == {"train": 16, "validation": 4, "test": 4}
    assert record["random_weights"]
    assert "random weights" in record["caveats"][0]
    assert set(record["cache"]) == {"plan", "spectrogram", "random-tiny"}
    table = result.predictions
    assert list(table["utterance_id"]) == [f"Ses02_F00{n}" for n in range(4)]
    assert list(table["clips"]) == [1, 1, 2, 1]
    assert list(table["label"]) == ["angry", "happy", "neutral", "sad"]
    np.testing.assert_allclose(table[["p_angry", "p_happy", "p_neutral", "p_sad"]].sum(axis=1), 1, atol=1e-5)
    correct = (table["label"] == table["prediction"]).mean()
    assert record["scores"]["utterance"]["wa"] == pytest.approx(correct)
    assert record["scores"]["clip"]["count"] == 5
    assert np.sum(record["confusion"]["clip"]) == 5
    assert len(result.curve) == 1


def test_the_rebuilt_model_gives_the_stored_predictions(small_cache: Cache, tmp_path: Path) -> None:
    (result,) = cross_validate(small_cache, ENCODER, fold=3, run=tmp_path / "run", device="cpu")
    model, scaling, description = load_checkpoint(tmp_path / "run" / "fold03" / "model.safetensors")
    assert scaling is None
    assert description["classes"] == ["angry", "happy", "neutral", "sad"]
    job = prepare(small_cache, ENCODER, "cpu")
    data = load_job_data(job, [job.folds[2]])
    clips = data.clips_of(job.folds[2].test)
    # One clip an utterance, but for the third; its two clips are averaged.
    found = evaluate(model, data, clips, scaling)
    mean = np.stack([found[0], found[1], found[2:4].mean(0), found[4]])
    probabilities = np.exp(mean) / np.exp(mean).sum(1, keepdims=True)
    np.testing.assert_allclose(result.predictions.filter(like="p_").to_numpy(), probabilities, atol=2e-6)
    assert {name: value.tolist() for name, value in result.model().state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }


def test_the_same_seed_gives_the_same_numbers(small_cache: Cache) -> None:
    options = replace(ENCODER, features="spectrogram+encoder", epochs=2)
    first = train_fold(small_cache, 1, options, device="cpu")
    torch.manual_seed(999)
    again = train_fold(small_cache, 1, options, device="cpu")
    assert first.predictions.equals(again.predictions)
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    other = train_fold(small_cache, 1, replace(options, seed=1), device="cpu")
    assert not first.curve["train_loss"].equals(other.curve["train_loss"])


def test_a_fold_does_not_depend_on_which_others_are_trained(small_cache: Cache) -> None:
    alone = train_fold(small_cache, 2, ENCODER, device="cpu")
    among = cross_validate(small_cache, ENCODER, device="cpu")[1]
    assert alone.predictions.equals(among.predictions)
    assert alone.curve["train_loss"].equals(among.curve["train_loss"])


def test_training_learns(small_cache: Cache) -> None:
    result = train_fold(small_cache, 1, replace(ENCODER, epochs=25, protocol="test-selected"), device="cpu")
    assert result.curve["train_loss"].iloc[-1] < 0.7 * result.curve["train_loss"].iloc[0]


def test_the_best_epoch_is_chosen_on_validation_ua_then_loss(small_cache: Cache) -> None:
    result = train_fold(small_cache, 1, replace(ENCODER, epochs=12), device="cpu")
    curve = result.curve
    best = curve.sort_values(["validation_ua", "validation_loss"], ascending=[False, True], kind="stable").iloc[0]
    assert result.record["best_epoch"] == best["epoch"]
    assert result.record["validation"]["ua"] == pytest.approx(best["validation_ua"])


def test_training_stops_when_patience_is_spent(small_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    still = replace(PRESETS["frozen"], recipe=replace(PRESETS["frozen"].recipe, learning_rate=1e-30, patience=3))
    monkeypatch.setitem(PRESETS, "frozen", still)
    result = train_fold(small_cache, 1, replace(ENCODER, epochs=30), device="cpu")
    assert (result.record["epochs"], result.record["best_epoch"], result.record["stopped"]) == (4, 1, "patience")


def test_test_selected_is_marked_wherever_it_is_stored(small_cache: Cache, tmp_path: Path) -> None:
    options = replace(ENCODER, protocol="test-selected", epochs=1)
    cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    summary = summarise(tmp_path / "run")
    assert "optimistic" in summary.caveats[0]
    for path in write_report(summary):
        assert "optimistic" in path.read_text()
    for name in ("predictions.csv", "curve.csv"):
        assert "optimistic" in (tmp_path / "run" / "fold01" / name).read_text()
    assert "optimistic" in str(load_checkpoint(tmp_path / "run" / "fold01" / "model.safetensors")[2])
    record = json.loads((tmp_path / "run" / "fold01" / "result.json").read_text())
    assert record["optimistic"] and "optimistic" in record["caveats"][0]


# Runs


def test_a_run_goes_on_where_it_stopped(small_cache: Cache, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cross_validate(small_cache, ENCODER, fold="1F", run=run, device="cpu")
    stamp = (run / "fold02" / "result.json").stat().st_mtime_ns
    (run / ".fold03.1-aa.tmp").mkdir()  # what a killed writer leaves
    results = cross_validate(small_cache, ENCODER, run=run, device="cpu")
    assert [result.record["name"] for result in results] == ["1M", "1F", "2M", "2F", "3M", "3F"]
    assert (run / "fold02" / "result.json").stat().st_mtime_ns == stamp
    whole = cross_validate(small_cache, ENCODER, device="cpu")
    assert [a.predictions.equals(b.predictions) for a, b in zip(results, whole, strict=True)]
    summary = summarise(run)
    assert summary.missing == []
    assert len(summary.folds) == 6


def test_a_run_of_other_settings_is_refused(small_cache: Cache, tmp_path: Path) -> None:
    cross_validate(small_cache, ENCODER, fold=1, run=tmp_path / "run", device="cpu")
    with pytest.raises(TrainingError, match=r"(?s)options\.seed: 0 → 7.*--name run-seed7") as caught:
        cross_validate(small_cache, replace(ENCODER, seed=7), fold=2, run=tmp_path / "run", device="cpu")
    assert "never mixed" in str(caught.value)


def test_corrected_speakers_make_another_run(small_cache_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_cache_folder, tmp_path / "c"))
    cross_validate(open_cache(folder), ENCODER, fold=1, run=tmp_path / "run", device="cpu")
    plan = read_plan(folder)
    table = plan.utterances.replace({"speaker": {"1F": "1G"}})
    write_utterances(folder, replace(plan, utterances=table))
    with pytest.raises(TrainingError, match=r"(?s)other settings.*utterances:"):
        cross_validate(open_cache(folder), ENCODER, fold=2, run=tmp_path / "run", device="cpu")


def test_a_fold_whose_result_was_deleted_is_made_again(small_cache: Cache, tmp_path: Path) -> None:
    options = replace(ENCODER, epochs=1)
    cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    (tmp_path / "run" / "fold01" / "result.json").unlink()
    cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    assert read_fold(tmp_path / "run" / "fold01").number == 1


def test_a_fold_of_ones_own_may_not_leak(small_cache: Cache) -> None:
    fold = prepare(small_cache, ENCODER, "cpu").folds[0]
    with pytest.raises(FoldError, match="1M would be in both"):
        train_fold(small_cache, replace(fold, train=fold.train + fold.test), ENCODER, device="cpu")


def test_stored_folds_read_back_equal(small_cache: Cache, tmp_path: Path) -> None:
    (result,) = cross_validate(small_cache, ENCODER, fold=1, run=tmp_path / "run", device="cpu")
    again = read_fold(tmp_path / "run" / "fold01")
    assert again.record == json.loads(json.dumps(result.record))
    pd.testing.assert_frame_equal(again.predictions, result.predictions)
    pd.testing.assert_frame_equal(again.curve, result.curve)
    (tmp_path / "run" / "fold01" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"not readable as a fold.*train it again"):
        read_fold(tmp_path / "run" / "fold01")


def test_missing_splits_are_named_with_their_commands(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(small_cache_folder, tmp_path / "c"))
    # The one table that `mfhca extract` takes by itself.
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "iemocap.csv").touch()
    monkeypatch.chdir(tmp_path)
    (folder / "random-tiny" / "session3-0000.json").unlink()
    with pytest.raises(TrainingError) as caught:
        train_fold(open_cache(folder), 1, ENCODER, device="cpu")
    assert "random-tiny of session3 is not extracted yet" in str(caught.value)
    assert f"mfhca extract --cache {folder} --encoder random-tiny --split session3" in str(caught.value)


def test_rejected_utterances_are_left_out_and_counted(small_manifest: Manifest, tmp_path: Path) -> None:
    from mfhca_cache.extraction.pipeline import extract

    from .conftest import TINY, small_corpus

    manifest = small_corpus(tmp_path / "w")
    (tmp_path / "w" / "Ses01_M000.wav").unlink()
    extract(manifest, tmp_path / "c", TINY, device="cpu")
    result = train_fold(open_cache(tmp_path / "c"), "1M", replace(ENCODER, epochs=1), device="cpu")
    assert result.record["rejected"] == 1
    assert len(result.predictions) == 3


def test_names_that_do_not_fit_are_refused(small_cache: Cache) -> None:
    for options, kind, words in (
        (TrainOptions(features="mfcc"), TrainingError, "no feature 'mfcc'"),
        (TrainOptions(features="encoder+random-tiny"), TrainingError, "two encoders"),
        (TrainOptions(classes="six"), LabelError, "class map 'six' is not known"),
    ):
        with pytest.raises(kind, match=words):
            prepare(small_cache, options)
    with pytest.raises(FoldError, match="fold '9'"):
        train_fold(small_cache, 9, ENCODER, device="cpu")
    for change in ({"preset": "best"}, {"protocol": "loso"}, {"epochs": 0}):
        with pytest.raises(TrainingError, match="expected"):
            TrainOptions(**change)  # type: ignore[arg-type]


def test_runs_are_named_by_what_they_are(small_cache: Cache) -> None:
    roles = prepare(small_cache, TrainOptions(), "cpu").roles
    assert run_name(small_cache, TrainOptions(), roles) == "iemocap-mfhca-spectrogram+random-tiny-strict-paper"


def test_a_class_map_of_ones_own(small_cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "arousal.json"
    path.write_text(json.dumps({"high": ["ang", "hap"], "low": ["sad"]}))
    result = train_fold(small_cache, 1, replace(ENCODER, classes=str(path), epochs=1), device="cpu")
    assert result.record["classes"] == ["high", "low"]
    assert list(result.predictions["label"]) == ["high", "high", "low"]


def test_data_of_several_roles_line_up(small_cache: Cache) -> None:
    job = prepare(small_cache, TrainOptions(), "cpu")
    data = load_job_data(job, job.folds)
    assert data.inputs["spectrogram"].dtype == torch.float16
    clips = data.clips_of(["Ses02_M002"])
    batch = gather(data, clips, None)
    direct = small_cache.load(["spectrogram", "random-tiny"], ["Ses02_M002"])
    assert torch.equal(batch["spectrogram"], direct["spectrogram"].float())
    assert torch.equal(batch["encoder"], direct["random-tiny"].float())


# Reports


def test_a_summary_is_the_arithmetic_of_its_folds(small_cache: Cache, tmp_path: Path) -> None:
    results = cross_validate(small_cache, ENCODER, run=tmp_path / "run", device="cpu")
    summary = summarise(tmp_path / "run")
    uas = [result.ua for result in results]
    assert summary.mean["utterance_ua"] == pytest.approx(np.mean(uas))
    assert summary.std["utterance_ua"] == pytest.approx(np.std(uas, ddof=1))
    everything = pd.concat([result.predictions for result in results])
    recall = [(part["prediction"] == name).mean() for name, part in everything.groupby("label")]
    assert summary.pooled["utterance_ua"] == pytest.approx(np.mean(recall))
    assert summary.pooled["utterance_wa"] == pytest.approx((everything["label"] == everything["prediction"]).mean())
    paths = write_report(summary)
    assert json.loads(paths[0].read_text())["pooled"] == summary.pooled
    table = pd.read_csv(paths[1])
    ends = ["mean", "std", "pooled", "mean_low", "mean_high", "pooled_low", "pooled_high"]
    assert list(table["name"]) == ["1M", "1F", "2M", "2F", "3M", "3F", *ends]
    by_name = table.set_index("name")["utterance_ua"]
    assert by_name["pooled"] == pytest.approx(summary.pooled["utterance_ua"])
    assert by_name["mean_low"] < by_name["mean"] < by_name["mean_high"]


def test_the_papers_figures_stand_only_beside_the_papers_corpus() -> None:
    both = {"spectrogram": "spectrogram", "encoder": "hubert-base-ls960"}
    assert (paper_figures("iemocap", both, FOUR_CLASSES) or ())[:2] == (74.24, 74.57)
    assert paper_figures("emodb", both, FOUR_CLASSES) is None
    assert paper_figures("iemocap", {"spectrogram": "spectrogram", "encoder": "random-tiny"}, FOUR_CLASSES) is None
    assert (paper_figures("iemocap", {"spectrogram": "spectrogram"}, FOUR_CLASSES) or ())[:2] == (62.21, 62.37)


def test_every_row_of_table_ii_has_its_figures() -> None:
    both = {"spectrogram": "spectrogram", "encoder": "wav2vec2-base-960h"}
    rows = {("alexnet", "co-attention"): 71.30, ("mf", "co-attention"): 72.32}
    rows |= {("alexnet", "hca"): 72.09, ("mf", "hca"): 73.44}
    for (network, fusion), ua in rows.items():
        settings = {"spectrogram_network": network, "fusion": fusion}
        assert (paper_figures("iemocap", both, FOUR_CLASSES, settings=settings) or ())[1] == ua
    alone = {"spectrogram": "spectrogram"}
    settings = {"spectrogram_network": "alexnet", "fusion": "hca"}
    assert (paper_figures("iemocap", alone, FOUR_CLASSES, settings=settings) or ())[:2] == (62.13, 62.25)
    assert (paper_figures("iemocap", both | {"mfcc": "mfcc-40"}, FOUR_CLASSES, "co-attention") or ())[1] == 72.70
    hubert = both | {"mfcc": "mfcc-40", "encoder": "hubert-base-ls960"}
    assert paper_figures("iemocap", hubert, FOUR_CLASSES, "co-attention") is None
    assert paper_figures("iemocap", {"encoder": "hubert-base-ls960"}, FOUR_CLASSES, "linear-probe") is None


def test_the_papers_figures_stand_not_beside_other_classes() -> None:
    both = {"spectrogram": "spectrogram", "encoder": "hubert-base-ls960"}
    assert paper_figures("iemocap", both, ["high", "low"]) is None


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run here"):
        summarise(tmp_path)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_repeats_itself(small_cache: Cache) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = replace(ENCODER, features="spectrogram+encoder", epochs=2)
    one, two = (train_fold(small_cache, 1, options, device="cuda") for _ in range(2))
    assert one.predictions.equals(two.predictions)
