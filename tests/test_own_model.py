"""Models of the reader's own: the contract, its errors, and what a run keeps of them."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from mfhca_cache.cli.app import mfhca
from mfhca_cache.errors import TrainingError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.reporting.summary import paper_figures, summarise
from mfhca_cache.spec import EncoderSpec, ExtractSpec, LogMelSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training import mapped
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.data import fit_scaling, require_extracted
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint, read_fold
from mfhca_cache.training.trainer import train_fold

from .features import add_feature
from .own_models import Base, Flat

ROOT = Path(__file__).parents[1]
OWN = TrainOptions("tests.own_models:Flat", "random-tiny", epochs=2)
SOURCE = (ROOT / "tests" / "own_models.py").read_text()


@pytest.fixture(scope="module")
def shapes_folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with features of one layer, of several, and averaged over time."""
    folder = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("shapes") / "cache"))
    add_feature(folder, "layers", (3, 20, 8), layer=1, layers="all")
    add_feature(folder, "mean", (16,), pool="mean")
    add_feature(folder, "layer-means", (3, 16), layers="all", pool="mean")
    return folder


def own(name: str, **changes: Any) -> TrainOptions:
    return replace(OWN, model=f"tests.own_models:{name}", **changes)


# Training


@pytest.mark.parametrize(
    "features", ["random-tiny", "layers", "mean", "layer-means", "mean+spectrogram+layers", "encoder"]
)
def test_features_of_every_shape_train_in_their_order(shapes_folder: Path, features: str) -> None:
    cache = open_cache(shapes_folder)
    if features == "encoder":  # which of the four?
        with pytest.raises(TrainingError, match="it has several"):
            prepare(cache, replace(OWN, features=features))
        return
    result = train_fold(cache, 1, replace(OWN, features=features, epochs=1), device="cpu")
    names = features.split("+")
    assert result.record["inputs"] == names
    shapes = result.record["model_settings"]["shapes"]
    assert list(shapes) == names and shapes == {name: cache.features[name].shape for name in names}
    assert len(result.predictions) == 4


@pytest.mark.parametrize("protocol", ["strict", "test-selected", "session"])
def test_every_protocol_gives_the_same_kind_of_result(small_cache: Cache, tmp_path: Path, protocol: str) -> None:
    options = replace(OWN, protocol=protocol, epochs=1)
    cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    mfhcas = train_fold(small_cache, 1, TrainOptions(features="encoder", preset="frozen", epochs=1), device="cpu")
    result = read_fold(tmp_path / "run" / "fold01")
    assert set(result.record) == set(mfhcas.record)
    assert result.record["optimistic"] == (protocol == "test-selected")
    summary = summarise(tmp_path / "run")
    assert summary.settings["model"] == "tests.own_models:Flat"
    assert summary.mean["utterance_ua"] == result.ua


def test_a_label_that_is_in_one_layer_is_learned(shapes_folder: Path) -> None:
    options = replace(OWN, features="layers", epochs=20, learning_rate=0.05)
    assert train_fold(open_cache(shapes_folder), 1, options, device="cpu").ua == 1.0


def test_the_same_seed_gives_the_same_numbers(small_cache: Cache) -> None:
    one, two = (train_fold(small_cache, 1, OWN, device="cpu") for _ in range(2))
    assert one.predictions.equals(two.predictions)
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


def test_the_spectrogram_is_standardised_and_kept_with_the_model(small_cache: Cache, tmp_path: Path) -> None:
    options = replace(OWN, features="spectrogram")
    cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "fold01" / "model.safetensors"
    model, scaling, description = load_checkpoint(path, Flat)
    assert isinstance(model, Flat) and not model.training and scaling is not None
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {*model.state_dict(), "scaling.mean", "scaling.std"}
    job = prepare(small_cache, TrainOptions(features="spectrogram"), "cpu")
    data = load_job_data(job, job.folds)
    ours = fit_scaling(data, data.clips_of(job.folds[0].train))
    assert ours is not None and torch.equal(scaling.mean, ours.mean) and torch.equal(scaling.std, ours.std)
    # The rebuilt model predicts what was stored.
    name = "Ses01_M000"
    loaded = small_cache.load("spectrogram", [name])
    frames = torch.tensor(loaded["clips"]["valid_spectrogram"].to_numpy())
    inputs = scaling.apply(loaded["spectrogram"], frames)
    found = model({"spectrogram": inputs}, {}).softmax(1)[0].tolist()
    table = read_fold(tmp_path / "run" / "fold01").predictions.set_index("utterance_id")
    assert found == pytest.approx(table.loc[name].filter(like="p_").tolist(), abs=1e-5)
    assert description["model"] == "tests.own_models:Flat"


def test_a_last_batch_of_one_clip_is_no_error(small_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(small_cache, OWN, "cpu")
    fold = job.folds[0]
    table = small_cache.utterances.set_index("utterance_id")["clips"]
    train = [name for name in fold.train if table[name] == 1]
    train = train[: 1 + (len(train) - 1) // 4 * 4]
    recipe = replace(OWN.recipe, batch=4)
    object.__setattr__(job.options, "recipe", recipe)
    assert len(train) % 4 == 1
    train_fold(small_cache, replace(fold, train=tuple(train)), job=job)


def test_features_larger_than_memory_give_the_same_numbers(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OWN, features="spectrogram+layers+mean")
    cache = open_cache(shapes_folder)
    inside = train_fold(cache, 1, options, device="cpu")
    said: list[str] = []
    monkeypatch.setattr(mapped, "free_memory", lambda device: 40_000)
    outside = train_fold(cache, 1, options, device="cpu", progress=lambda report: said.append(report.detail))
    assert sum("do not fit in memory and are read batch by batch" in line for line in said) == 2
    assert outside.predictions.equals(inside.predictions)
    assert outside.curve["train_loss"].equals(inside.curve["train_loss"])
    assert all(torch.equal(outside.state[name], inside.state[name]) for name in inside.state)


def test_the_small_features_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "free_memory", lambda device: 100)
    assert mapped.that_fit({"big": 50, "small": 10, "smaller": 5}, "cpu") == {"small", "smaller"}
    assert mapped.that_fit({"big": 61}, "cpu") == set()


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**27 < mapped.free_memory("cpu") <= 2**62


def test_presets_and_the_learning_rate() -> None:
    assert (OWN.preset, TrainOptions().preset) == ("frozen", "paper")
    assert replace(OWN, preset="paper").recipe.learning_rate == 1e-5
    assert replace(OWN, learning_rate=0.5).recipe.learning_rate == 0.5
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="learning rate: got"):
            TrainOptions(learning_rate=rate)


def test_the_papers_figures_stand_beside_mfhca_alone() -> None:
    arguments = ("iemocap", {"spectrogram": "spectrogram"}, ["angry", "happy", "neutral", "sad"])
    assert paper_figures(*arguments) is not None
    assert paper_figures(*arguments, "my_module:MyModel") is None


def test_the_command_for_what_is_missing_means_the_feature_that_is_missing(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    spec = ExtractSpec(
        encoder=EncoderSpec("random-tiny", layers="all", pool="mean"), spectrogram=None, log_mel=LogMelSpec(mels=26)
    )
    extract(small_manifest, tmp_path / "c", spec, "session1", device="cpu")
    cache = open_cache(tmp_path / "c")
    names = ("random-tiny.all.mean", "log-mel-26")
    with pytest.raises(TrainingError) as told:
        require_extracted(cache, names, cache.utterances["utterance_id"], "fold 1")
    lines = [line.split() for line in str(told.value).splitlines() if line.strip().startswith("mfhca extract")]
    assert [line[-1] for line in lines] == ["session2", "session3"] * 2
    write_manifest(small_manifest, tmp_path / "m.csv")
    for line in lines:
        words = [str(tmp_path / "m.csv") if word == "MANIFEST.csv" else word for word in line[1:]]
        assert CliRunner().invoke(mfhca, [*words, "--device", "cpu"]).exit_code == 0
    assert not any(open_cache(tmp_path / "c").missing(name) for name in names)
    assert sorted(open_cache(tmp_path / "c").features) == sorted(names)


def test_mfhca_says_which_shapes_it_takes(shapes_folder: Path) -> None:
    for name, shape in (("layers", r"\(3, 20, 8\)"), ("mean", r"\(16,\)"), ("layer-means", r"\(3, 16\)")):
        with pytest.raises(TrainingError, match=rf"a clip of {name} has shape {shape}.*needs \(frames, width\)"):
            prepare(open_cache(shapes_folder), TrainOptions(features=name))
    assert prepare(open_cache(shapes_folder), TrainOptions(features="encoder")).roles == {"encoder": "random-tiny"}


# What a run keeps


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the reader's own in the current folder, imported afresh."""
    path = tmp_path / "my_module.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    return path


def change(path: Path, monkeypatch: pytest.MonkeyPatch, more: str = "# another line\n") -> None:
    path.write_text(path.read_text() + more)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    importlib.invalidate_caches()


def test_a_result_names_the_source(small_cache: Cache, module: Path) -> None:
    record = train_fold(small_cache, 1, replace(OWN, model="my_module:Flat"), device="cpu").record
    digest = __import__("hashlib").sha256(SOURCE.encode()).hexdigest()
    assert record["model"] == "my_module:Flat"
    assert record["model_source"] == {"file": str(module), "sha256": digest}
    assert record["model_settings"] == {"shapes": {"random-tiny": (149, 64)}, "n_classes": 4}
    assert json.loads(json.dumps(record))["parameters"] == 4 * 64 + 4 + 2 * 64


def test_a_changed_source_does_not_go_on_with_a_run(
    small_cache: Cache, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OWN, model="my_module:Flat", epochs=1)
    name = run_name(small_cache, options, {"random-tiny": "random-tiny"})
    assert name == "iemocap-Flat-random-tiny-strict-frozen"
    run = tmp_path / "runs" / name
    cross_validate(small_cache, options, fold=1, run=run, device="cpu")
    change(module, monkeypatch)
    with pytest.raises(
        TrainingError, match=rf"model_sha256.*\n.*my_module\.py is not what.*\n.*--name {name}-[0-9a-f]{{8}},"
    ):
        cross_validate(small_cache, options, fold=2, run=run, device="cpu")
    module.write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "my_module")
    assert len(cross_validate(small_cache, options, fold="all", run=run, device="cpu")) == 6


def test_another_order_of_features_or_learning_rate_is_another_run(shapes_folder: Path, tmp_path: Path) -> None:
    cache = open_cache(shapes_folder)
    options = replace(OWN, features="mean+random-tiny", epochs=1)
    cross_validate(cache, options, fold=1, run=tmp_path / "run", device="cpu")
    with pytest.raises(TrainingError, match="inputs:"):
        cross_validate(cache, replace(options, features="random-tiny+mean"), fold=2, run=tmp_path / "run")
    with pytest.raises(TrainingError, match=r"options\.recipe\.learning_rate: 0\.001 → 0\.01"):
        cross_validate(cache, replace(options, learning_rate=0.01), fold=2, run=tmp_path / "run")


def test_a_file_changed_after_its_import_is_refused(
    small_cache: Cache, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OWN, model="my_module:Flat")
    prepare(small_cache, options, "cpu")
    module.write_text(SOURCE + "# edited while Python runs\n")
    with pytest.raises(
        TrainingError, match=r"my_module\.py changed after this Python imported it; .*importlib\.reload"
    ):
        prepare(small_cache, options, "cpu")
    importlib.reload(sys.modules["my_module"])
    prepare(small_cache, options, "cpu")


def test_rebuilding_needs_the_class_and_says_so(
    small_cache: Cache, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OWN, model="my_module:Flat", epochs=1)
    (result,) = cross_validate(small_cache, options, fold=1, run=tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "fold01" / "model.safetensors"
    monkeypatch.delitem(sys.modules, "my_module")
    for attempt in (lambda: load_checkpoint(path), result.model, read_fold(path.parent).model):
        with pytest.raises(TrainingError, match=r"my_module:Flat \(.*my_module\.py\) and not its code; give the class"):
            attempt()
    assert "my_module" not in sys.modules, "a name in a file must not be imported"
    with pytest.raises(TrainingError, match="not the weights of this class"):
        load_checkpoint(path, Base)
    change(module, monkeypatch)
    with pytest.warns(UserWarning, match=r"is not the file that this model was trained from"):
        model, scaling, _ = load_checkpoint(path, importlib.import_module("my_module").Flat)
    assert scaling is None
    assert all(torch.equal(result.state[name], value) for name, value in model.state_dict().items())


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Model", r"there is no module 'nowhere' in the current folder"),
        ("tests.nowhere:Model", r"there is no module 'tests.nowhere'"),
        ("nowhere.deeper:Model", r"there is no module 'nowhere'"),
        ("tests.own_models:Flatt", r"own_models\.py has no 'Flatt'; its nn\.Module classes: Flat, Base, Raises"),
        ("tests.own_models:Shapes", r"has a 'Shapes' that is no nn\.Module class"),
        ("tests.own_models:a_function", r"has a 'a_function' that is no nn\.Module class"),
        ("my/own_models.py:Flat", r"expected MODULE:CLASS.*so my\.own_models:Flat;"),
        ("./my/own_models.py:Flat", r"expected MODULE:CLASS.*so my\.own_models:Flat;"),
        ("own_models.py:Flat", r"expected MODULE:CLASS.*so own_models:Flat;"),
        ("tests.own_models:", r"expected MODULE:CLASS"),
        (":Flat", r"expected MODULE:CLASS"),
        ("..tests:Flat", r"expected MODULE:CLASS"),
        ("a b:Flat", r"expected MODULE:CLASS"),
    ],
)
def test_names_that_lead_nowhere(small_cache: Cache, name: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        prepare(small_cache, replace(OWN, model=name), "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Raises",
            r'(?s)failed in forward\(.*own_models\.py", line \d+, in forward.*in finish.*RuntimeError: mat1 and',
        ),
        ("PerFrame", r"forward gave shape \(16, 149, 4\); expected logits of shape \(16, 4\).*own_models\.py, line"),
        ("Tuple", r"forward gave a tuple; expected logits of shape \(16, 4\)"),
        ("NotANumber", r"fold 1 \(1M\): the loss became nan in epoch 1; the learning rate \(0\.001\)"),
        ("OnlyInEvaluation", r"the validation loss became nan in epoch 1"),
        ("Uninitialised", r"the loss became nan"),
        ("Detached", r"failed in the backward pass:\nRuntimeError: element 0 of tensors does not require grad"),
        ("Exits", r"(?s)failed in forward.*SystemExit: 3"),
        (
            "NoShapes",
            r"(?s)failed in NoShapes\(shapes=\{'random-tiny': \(149, 64\)\}, n_classes=4\):\nType.*own",
        ),
        ("NoForward", r"missing the required \"forward\" function"),
        ("OneArgument", r"(?s)failed in forward\(features, masks\).*takes 2 positional arguments but 3 were given"),
        ("Untrainable", r"it has no parameters to train"),
        ("Lazy", r"lazy layers, whose sizes are not known yet"),
        ("TakenName", r"'scaling\.mean' of its state_dict is the spectrogram's scaling"),
        ("ExtraState", r"'_extra_state', which is no tensor"),
    ],
)
def test_errors_of_a_model_are_told_in_its_own_lines(small_cache: Cache, name: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        train_fold(small_cache, 1, own(name, epochs=1), device="cpu")
    assert "mfhca_cache/" not in str(caught.value) and "torch/nn" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class M(torch:\n", r"(?s)failed when it was imported:.*my_module\.py\", line 1.*SyntaxError"),
        ("import numpy\n\n1 / 0\n", r"(?s)my_module\.py\", line 3, in <module>\n    1 / 0\n.*ZeroDivisionError"),
        ("import not_installed_here\n", r"(?s)my_module\.py\", line 1.*No module named 'not_installed_here'"),
        ("import sys\nsys.exit('usage')\n", r"(?s)my_module\.py\", line 2.*SystemExit: usage"),
    ],
)  # fmt: skip
def test_errors_of_the_module_itself(small_cache: Cache, module: Path, text: str, message: str) -> None:
    module.write_text(text)
    with pytest.raises(TrainingError, match=message):
        prepare(small_cache, replace(OWN, model="my_module:M"), "cpu")


# The command


def train(*words: object, expect: int = 0) -> Result:
    result = CliRunner().invoke(mfhca, ["train", *map(str, words)])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == expect, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def here(module: Path, small_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """In the folder of my_module.py, which Python does not look into by itself; the words that name the cache."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(module.parent)])
    return ["--cache", small_cache_folder, "--fold", 1, "--features", "random-tiny", "--epochs", 1]


def test_the_command_finds_models_in_the_current_folder(here: list[object], module: Path) -> None:
    text = train(*here, "--model", "my_module:Flat", "--learning-rate", 0.01).output
    assert "my_module:Flat on random-tiny" in text and "preset frozen" in text
    run = module.parent / "runs" / "iemocap-Flat-random-tiny-strict-frozen"
    assert json.loads((run / "fold01" / "result.json").read_text())["recipe"]["learning_rate"] == 0.01
    assert "iemocap-Flat" in CliRunner().invoke(mfhca, ["report", str(run), "--json"]).output


def test_the_command_shows_errors_without_a_traceback(here: list[object]) -> None:
    text = train(*here, "--model", "my_module:Raises", expect=1).output
    assert re.search(r'Error: model my_module:Raises failed in forward.*\n  File ".*my_module\.py", line \d+', text)
    assert re.search("expected mfhca, .* or MODULE:CLASS", train(*here, "--model", "cnn", expect=2).output)
    assert "no feature 'mfcc'" in train(*here, "--model", "my_module:Flat", "--features", "mfcc", expect=1).output


def test_the_page_and_its_example_are_true() -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    (lines,) = re.findall(r"`(examples/own_model\.py)` is a whole model in (\d+) lines", page)
    assert len((ROOT / lines[0]).read_text().splitlines()) == int(lines[1]) < 30
    for line in re.findall(r"^    (mfhca [^#\n]+)", page, flags=re.MULTILINE):
        _, name, *words = line.split()
        command = mfhca.get_command(click.Context(mfhca), name)
        assert command is not None
        command.make_context(name, words)
