"""The paper's tables on a cache: which runs their rows are, trained and resumed, and shown."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

from mfhca_cache.cli import ablate as command
from mfhca_cache.cli.app import mfhca
from mfhca_cache.distributed.train import TrainItem
from mfhca_cache.errors import TrainingError
from mfhca_cache.models import build_model, count_parameters
from mfhca_cache.progress import Progress
from mfhca_cache.reporting.ablation import LACKING, NOT_BUILT, NOT_TRAINED, PARTLY, REFUSED, TRAINED, tabulate
from mfhca_cache.reporting.ablation_files import to_frame, to_latex
from mfhca_cache.reporting.parameters import (
    CLAIMED,
    alexnet_classifier_parameters,
    base_encoder_parameters,
    compare_parameters,
)
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.training import ablation as ablation_module
from mfhca_cache.training.ablation import Ablation, plan_ablation, train_ablation
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.encoders import describe_encoder
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.row_inputs import row_inputs
from mfhca_cache.training.tables import TABLES, find_published

from .features import add_feature
from .test_cli import run

#: Three folds of a network that takes next to nothing.
CHEAP = TrainOptions(preset="quick", protocol="session", changes=(("epochs", 1), ("channels", (2, 4))))
WORDS = ("--preset", "quick", "--protocol", "session", "--epochs", "1", "--set", "channels=2,4", "--jobs", "1")


@pytest.fixture(scope="module")
def two_folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cache with noise that says it is wav2vec 2.0's beside its HuBERT."""
    folder = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("two") / "cache"))
    add_feature(folder, "noise-w2v2", (149, 64), architecture={"model_type": "wav2vec2"}, layers="last")
    return folder


@pytest.fixture
def two(two_folder: Path) -> Cache:
    return open_cache(two_folder)


@pytest.fixture
def here(small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to train in, with the cache where the command looks for it."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "iemocap").symlink_to(small_cache_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(cache: Cache, table: str, tmp_path: Path, options: TrainOptions = CHEAP, **how: Any) -> Ablation:
    return plan_ablation(cache, table, options, runs=tmp_path / "runs", device="cpu", **how)


def elsewhere(cache: Cache) -> Cache:
    """The cache as if its corpus were another, with labels of the same names."""
    return replace(cache, plan=replace(cache.plan, corpus="synthetic"))


@pytest.fixture
def of_base_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables take the small encoders for trained ones of the width that the paper's have."""

    def described(info: FeatureInfo) -> dict[str, Any]:
        return {**describe_encoder(info), "width": 768, "random_weights": False}

    monkeypatch.setattr("mfhca_cache.reporting.ablation.describe_encoder", described)


# The tables


def test_the_whole_of_mfhca_has_one_figure_in_every_table() -> None:
    for table in TABLES.values():
        (full,) = table.find([table.full])
        assert full.published == (74.24, 74.57), table.name


def test_table_two_is_every_combination_of_the_paper() -> None:
    rows = {(row.label, *row.cells): dict(row.changes) for row in TABLES["table2"].rows}
    assert len(rows) == len(TABLES["table2"].rows) == 11
    for (label, mf, hca), changes in rows.items():
        spectrogram, both = "Spec" in label, "+" in label
        assert changes.get("spectrogram_network") == ("alexnet" if spectrogram and mf == "✗" else None), label
        assert changes.get("fusion") == ("co-attention" if both and hca == "✗" else None), label


def test_a_run_finds_its_own_figure_and_none_for_settings_that_the_paper_does_not_have() -> None:
    both = {"spectrogram": "spectrogram", "encoder": "hubert-base-ls960"}
    for name, feature in (("hubert", "hubert-base-ls960"), ("w2v2", "wav2vec2-base")):
        for row in TABLES["table2"].rows:
            if row.inputs[-1] in (name, "spectrogram"):
                roles = ["spectrogram"] * ("spectrogram" in row.inputs) + ["encoder"] * (name in row.inputs)
                features = {role: feature if role == "encoder" else role for role in roles}
                assert (find_published("mfhca", features, dict(row.changes)) or ())[:2] == row.published
    for name in ("table3", "table4"):
        for row in TABLES[name].rows:
            found = find_published("mfhca", both, {k: list(v) if k == "channels" else v for k, v in row.changes})
            assert found is not None and found[:2] == row.published
    assert find_published("mfhca", both, {"rate": 8}) == (72.22, 73.34, "Table IV: r 1/8")
    assert find_published("mfhca", both, {"channels": [16, 32]}) == (73.76, 74.02, "Table III: channels 16-32")
    assert (find_published("mfhca", both, {}) or ())[2] == "Table II: Spec + Hubert with MF and HCA"
    assert find_published("mfhca", both, {"rate": 8, "fusion": "co-attention"}) is None
    assert find_published("mfhca", both, {"channels": [8, 16, 24]}) is None
    assert find_published("mfhca", {"encoder": "hubert-base-ls960"}, {"rate": 8}) == (69.99, 70.57, "Table II: Hubert")


def test_the_papers_encoders_are_known_by_family_size_and_layer_and_by_name_where_nothing_else_is_known() -> None:
    base = {"family": "hubert", "layers": "last", "width": 768, "random_weights": False}
    alone = {"encoder": "hubert-base-ls960"}

    def found(name: str, **changes: Any) -> float | None:
        figures = find_published("mfhca", {"encoder": name}, {}, {name: {**base, **changes}})
        return figures and figures[0]

    assert found("my-own-name") == found("hubert-base-ls960") == 69.99
    for other in ({"layers": [9]}, {"width": 1024}, {"family": "wavlm"}, {"random_weights": True}):
        assert found("hubert-base-ls960", **other) is None, other
    assert found("wavlm-base", family="") is None and found("hubert-base-ls960", family="") == 69.99
    assert (find_published("mfhca", alone, {}, {}) or ())[:2] == (69.99, 70.57)
    roles = {"spectrogram": "spectrogram", "mfcc": "mfcc-40", "encoder": "x"}
    assert find_published("co-attention", roles, {}, {"x": base}) is None
    assert (find_published("co-attention", roles, {}, {"x": {**base, "family": "wav2vec2"}}) or ())[1] == 72.70


def test_rows_are_found_by_number_name_and_label() -> None:
    table = TABLES["table2"]
    assert [row.name for row in table.find(["11", "SPEC-MF", "hubert"])] == ["spec-mf", "hubert", "spec-hubert-mf-hca"]
    assert len(table.find([])) == 11
    with pytest.raises(TrainingError, match=r"row '12' is not known; expected one of 1 \(spec\), 2 \(spec-mf\)"):
        table.find(["12"])
    with pytest.raises(TrainingError, match=r"row 'spec \+ w2v2' means several rows"):
        table.find(["Spec + W2V2"])
    assert [row.name for row in TABLES["table1"].find(["Co-attention [13]"])] == ["co-attention"]


# Which runs rows are


@pytest.mark.parametrize("preset", ["paper", "frozen", "quick"])
def test_rows_of_the_same_settings_are_the_very_run_that_train_makes(
    small_cache: Cache, tmp_path: Path, preset: str
) -> None:
    options = TrainOptions(preset=preset)
    plain = run_name(small_cache, options, prepare(small_cache, options, "cpu").roles)
    for name, table in TABLES.items():
        ablation = planned(small_cache, name, tmp_path, options)
        (full,) = (item for item in ablation.rows if item.row.name == table.full)
        assert full.runs == (tmp_path / "runs" / plain,)
        assert full.jobs[0].options.settings == options.settings
        runs = [run for item in ablation.rows for run in item.runs]
        assert len(set(runs)) == len(runs)


def test_half_a_preset_has_half_the_channels(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table3", tmp_path, TrainOptions(preset="quick"))
    assert [item.row.label for item in ablation.rows] == ["8-16", "8-16-24", "8-16-32", "8-16-24-32", "8-16-32-64"]
    channels = [getattr(item.jobs[0].options.settings, "channels", ()) for item in ablation.rows]
    assert channels == [(8, 16), (8, 16, 24), (8, 16, 32), (8, 16, 24, 32), (8, 16, 32, 64)]
    assert "8/16 of the paper's channels, as in preset quick" in tabulate(ablation).remarks()


def test_what_a_table_varies_cannot_be_set_for_all_its_rows(small_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="rate: the rows of table4 differ in this"):
        planned(small_cache, "table4", tmp_path, TrainOptions(changes=(("rate", 8),)))
    with pytest.raises(TrainingError, match="table: got 'table5'"):
        planned(small_cache, "table5", tmp_path)


def test_changes_and_epochs_are_in_the_names(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table4", tmp_path, TrainOptions(preset="quick", epochs=2, seed=3), seeds=2)
    assert ablation.folder.name == "iemocap-table4-strict-quick-epochs2-seed3-seeds2"
    assert [path.name for path in ablation.rows[0].runs] == [
        f"iemocap-mfhca-spectrogram+random-tiny-strict-quick-epochs2-rate2-seed{seed}" for seed in (3, 4)
    ]
    assert ablation.rows[0].jobs[1].options.recipe.epochs == 2


def test_a_rival_takes_only_the_changes_that_it_can_have(small_cache: Cache, tmp_path: Path) -> None:
    rows = {item.row.name: item for item in planned(small_cache, "table1", tmp_path).rows}
    assert rows["mfhca"].jobs[0].options.changes == CHEAP.changes
    assert rows["linear-probe"].jobs[0].options.changes == (("epochs", 1),)
    assert rows["ridge"].jobs[0].options.changes == ()
    other = planned(small_cache, "table1", tmp_path, TrainOptions(preset="paper", protocol="session"))
    assert {item.row.name: item.runs for item in other.rows}["ridge"] == rows["ridge"].runs


def test_weights_of_alexnet_go_to_the_rows_that_have_it(small_cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "alexnet.pth"
    file.write_bytes(b"weights")
    ablation = planned(small_cache, "table2", tmp_path, alexnet_weights=str(file))
    assert ablation.folder.name.endswith("-epochs1-channels2.4-alexnetweightsalexnet.pth")
    for item in ablation.rows:
        for job, path in zip(item.jobs, item.runs, strict=True):
            there = "spectrogram" in item.row.inputs and item.row.cells[0] == "✗"
            assert (job.alexnet is not None) == there == ("alexnetweightsalexnet.pth" in path.name), item.row.name
    assert sum(job.alexnet is not None for item in ablation.rows for job in item.jobs) == 3
    assert f"alexnet_weights {file}" in tabulate(ablation).changed
    row = next(row for row in TABLES["table1"].rows if row.name == "co-attention")
    options = ablation_module._options(row, CHEAP, ("spectrogram", "mfcc-40", "random-tiny"), str(file))
    assert options.changes == (("epochs", 1), ("alexnet_weights", str(file)))
    everywhere = TrainOptions(changes=(("spectrogram_network", "alexnet"), ("alexnet_weights", str(file))))
    rows = {item.row.name: item for item in planned(small_cache, "table1", tmp_path, everywhere).rows}
    assert rows["mfhca"].jobs[0].alexnet is not None
    assert rows["linear-probe"].jobs[0].options.changes == ()
    with pytest.raises(TrainingError, match="alexnet_weights: no row of table4 has AlexNet"):
        planned(small_cache, "table4", tmp_path, alexnet_weights=str(file))
    with pytest.raises(TrainingError, match=r"alexnet_weights: .*none\.pth cannot be read"):
        planned(small_cache, "table2", tmp_path, alexnet_weights=str(tmp_path / "none.pth"))


# Features


def test_rows_read_the_encoder_of_their_family(two: Cache) -> None:
    assert row_inputs(two, ("spectrogram", "hubert")).features == ("spectrogram", "random-tiny")
    assert row_inputs(two, ("spectrogram", "w2v2")).features == ("spectrogram", "noise-w2v2")
    assert row_inputs(two, ("encoder",)).features == ("random-tiny",)
    assert row_inputs(two, ("baseline",)).features == ("noise-w2v2",)
    swapped = row_inputs(two, ("w2v2",), w2v2="random-tiny")
    assert swapped.features == ("random-tiny",)
    assert swapped.notes == ("wav2vec 2.0 stands for random-tiny, as asked",)


def test_the_only_encoder_stands_in_where_a_table_is_not_about_encoders(small_cache: Cache, two: Cache) -> None:
    found = row_inputs(small_cache, ("baseline",))
    assert found.features == ("random-tiny",)
    assert found.notes == ("reads random-tiny; published with wav2vec 2.0",)
    only = replace(two, features={k: v for k, v in two.features.items() if k != "random-tiny"})
    assert row_inputs(only, ("encoder",)).features == ("noise-w2v2",)
    assert row_inputs(only, ("hubert",)).features == ()


def test_several_of_a_family_must_be_named(two_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_folder, tmp_path / "cache"))
    add_feature(folder, "another", (149, 64), architecture={"model_type": "wav2vec2"}, layers="last")
    several = open_cache(folder)
    with pytest.raises(TrainingError, match=r"several wav2vec 2.0 encoders: another, noise-w2v2\. Name one.*--w2v2"):
        row_inputs(several, ("w2v2",))
    rows = {item.row.name: item for item in planned(several, "table2", tmp_path).rows}
    assert "several wav2vec 2.0 encoders" in rows["spec-w2v2"].problem
    assert rows["hubert"].jobs
    named = planned(several, "table2", tmp_path, w2v2="another").rows
    assert "another" in str({item.row.name: item.runs for item in named}["spec-w2v2"])
    with pytest.raises(TrainingError, match="both name another"):
        planned(several, "table2", tmp_path, w2v2="another", hubert="another")
    with pytest.raises(TrainingError, match=r"--hubert spectrogram: .* has no such frames of an encoder"):
        planned(several, "table2", tmp_path, hubert="spectrogram")


def test_all_layers_are_read_where_they_are_those_of_the_encoder(small_cache: Cache) -> None:
    last = row_inputs(small_cache, ("layers",))
    assert last.features == ("random-tiny",)
    assert "--encoder random-tiny --layers all --features none`" in last.notes[0]
    info = small_cache.features["random-tiny"]
    every = replace(info, name="random-tiny.all", shape=(3, 149, 64), settings={**info.settings, "layers": [0, 1, 2]})
    other = replace(every, name="other.all", settings={**every.settings, "weights_sha256": "0" * 64})
    both = replace(small_cache, features={**small_cache.features, "random-tiny.all": every, "other.all": other})
    assert row_inputs(both, ("layers",)) == replace(last, features=("random-tiny.all",), notes=())


def test_what_a_cache_lacks_comes_with_a_command_that_parses(small_cache: Cache, tmp_path: Path) -> None:
    lacks = {
        item.row.name: item.lacks
        for table in ("table1", "table2")
        for item in planned(small_cache, table, tmp_path).rows
        if item.lacks
    }
    assert set(lacks) == {
        "co-attention", "ridge-log-mel", "spec-w2v2", "spec-w2v2-mf", "spec-w2v2-hca", "spec-w2v2-mf-hca",
    }  # fmt: skip
    (mfcc,), (log_mel,), (w2v2,) = lacks["co-attention"], lacks["ridge-log-mel"], lacks["spec-w2v2"]
    assert mfcc.what == "no feature mfcc-40" and "--features mfcc" in mfcc.command
    assert "--features log-mel" in log_mel.command
    assert "--encoder facebook/wav2vec2-base --features none" in w2v2.command
    for lack in (mfcc, log_mel, w2v2):
        _, name, *words = shlex.split(lack.command)
        extract = mfhca.get_command(click.Context(mfhca), name)
        assert extract is not None
        extract.make_context(name, words)


# Training


def trained(folder: Path) -> dict[str, int]:
    """Each fold's folder → when its result was written."""
    return {
        str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/fold*/result.json")
    }


def stopping(after: int) -> Callable[[Progress], None]:
    """Ctrl-C when so many folds have been trained."""

    def stop(report: Progress) -> None:
        if report.unit == "folds" and report.done == after:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_table_goes_on_fold_by_fold(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table4", tmp_path, rows=["1/2", "1/16"])
    with pytest.raises(KeyboardInterrupt):
        train_ablation(ablation, jobs=1, progress=stopping(4))
    before = trained(tmp_path / "runs")
    assert len(before) == 4
    table = tabulate(ablation)
    assert [row.state for row in table.rows] == [TRAINED, NOT_TRAINED, NOT_TRAINED, PARTLY]
    assert "row 4: 1 of 3 folds are trained" in table.remarks()
    seen: list[Progress] = []
    assert train_ablation(ablation, jobs=1, progress=seen.append) == {}
    after = trained(tmp_path / "runs")
    assert len(after) == 6 and before.items() <= after.items()
    folds = [report for report in seen if report.unit == "folds"]
    assert [report.done for report in folds] == sorted(report.done for report in folds)
    assert (folds[0].done, folds[0].resumed, folds[-1].done, folds[-1].total) == (4, 4, 6, 6)
    assert any(report.stage.startswith("row 4 (1/16), fold") for report in seen)
    assert [row.state for row in tabulate(ablation).rows] == [TRAINED, NOT_TRAINED, NOT_TRAINED, TRAINED]


def test_what_train_or_another_table_has_trained_is_not_trained_again(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "runs" / run_name(small_cache, CHEAP, prepare(small_cache, CHEAP, "cpu").roles)
    results = cross_validate(small_cache, CHEAP, run=plain, device="cpu")
    monkeypatch.setattr("mfhca_cache.training.crossval.train_and_store", lambda *_: pytest.fail("trained again"))
    for table in (TABLES[name] for name in ("table1", "table2", "table4")):
        ablation = planned(small_cache, table.name, tmp_path, rows=[table.full])
        train_ablation(ablation, jobs=1)
        (row,) = (row for row in tabulate(ablation).rows if row.name == table.full)
        assert row.state == TRAINED
        assert row.mean["utterance_ua"] == pytest.approx(sum(result.ua for result in results) / 3)


def test_seeds_are_trained_one_after_the_other_and_joined(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table2", tmp_path, rows=["hubert"], seeds=2)
    train_ablation(ablation, jobs=1)
    (row,) = (row for row in tabulate(ablation).rows if row.folds)
    assert (row.folds, row.of, len(row.runs)) == (6, 6, 2)
    assert row.runs[1] == row.runs[0] + "-seed1"
    assert row.seconds > 0 and row.seconds_a_fold == pytest.approx(row.seconds / 6)


def test_one_row_that_fails_does_not_keep_the_others(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cross_validate

    def fail(cache: Cache, **how: Any) -> Any:
        if "alexnet" in str(how["run"]):
            raise TrainingError("the loss is not finite")
        return real(cache, **how)

    monkeypatch.setattr(ablation_module, "cross_validate", fail)
    ablation = planned(small_cache, "table2", tmp_path, rows=["spec", "hubert"])
    assert train_ablation(ablation, fold=1, jobs=1) == {"spec": "the loss is not finite"}
    assert [row.state for row in tabulate(ablation).rows][:3] == [NOT_TRAINED, NOT_TRAINED, PARTLY]

    def full(*_: Any, **__: Any) -> Any:
        raise TrainingError("could not be written") from OSError("no space left")

    monkeypatch.setattr(ablation_module, "cross_validate", full)
    with pytest.raises(TrainingError, match="could not be written"):
        train_ablation(ablation, jobs=1)


def test_a_folder_of_other_settings_is_neither_trained_nor_shown(small_cache: Cache, tmp_path: Path) -> None:
    options = TrainOptions(preset="quick", protocol="session", features="encoder", epochs=2)
    name = run_name(small_cache, options, prepare(small_cache, options, "cpu").roles)
    cross_validate(small_cache, options, fold=1, run=tmp_path / "runs" / name, device="cpu")
    plain = TrainOptions(preset="quick", protocol="session")
    ablation = planned(small_cache, "table2", tmp_path, plain, rows=["hubert"])
    with pytest.raises(TrainingError, match=r"(?s)options.recipe.epochs: 2 → 20.*put these into another folder"):
        train_ablation(ablation)
    row = tabulate(ablation).rows[2]
    assert (row.state, row.folds, row.mean) == (REFUSED, 0, {})
    assert "holds a run of other settings" in row.problem


# The table


@pytest.mark.usefixtures("of_base_size")
def test_the_papers_figures_stand_beside_iemocap_alone(small_cache: Cache, two: Cache, tmp_path: Path) -> None:
    plain = TrainOptions(preset="frozen", protocol="session")
    for name in TABLES:
        ours = tabulate(planned(two, name, tmp_path, plain))
        assert ours.comparable and ours.published_header == "paper"
        assert {row.state for row in ours.rows} <= {NOT_TRAINED, NOT_BUILT} | ({LACKING} if name == "table1" else set())
        assert [row.published for row in ours.rows] == [row.published for row in TABLES[name].rows]
        assert not any("no figure" in line for line in ours.remarks())
        other = tabulate(planned(elsewhere(small_cache), name, tmp_path, plain))
        assert not other.comparable
        assert other.shows_published == (name == "table1")
        if name == "table1":
            assert other.published_header == "published, IEMOCAP"
            assert any("say nothing of scores on synthetic" in line for line in other.cautions())
        else:
            assert not any(row.published for row in other.rows)
            assert any("are not set beside synthetic" in line for line in other.remarks())
    two_classes = tmp_path / "two.json"
    two_classes.write_text(json.dumps({"high": ["ang", "hap"], "low": ["neu", "sad"]}))
    fewer = tabulate(planned(small_cache, "table2", tmp_path, replace(CHEAP, classes=str(two_classes))))
    assert not fewer.shows_published
    assert any("are not set beside iemocap with 2 classes" in line for line in fewer.remarks())


@pytest.mark.usefixtures("of_base_size")
def test_the_papers_figures_stand_not_beside_other_settings_or_encoders(two: Cache, tmp_path: Path) -> None:
    def without(table: str, options: TrainOptions, **how: Any) -> set[int]:
        found = tabulate(planned(two, table, tmp_path, options, **how))
        assert found.comparable and not any("not set beside" in line for line in found.remarks())
        numbers = [row.number for row in found.rows if row.published is None and not row.apart]
        said = "the paper has no figure for these settings and features"
        assert any(said in line for line in found.remarks()) == bool(numbers)
        return set(numbers)

    plain = TrainOptions(preset="frozen", protocol="session")
    assert without("table2", plain) == set()
    assert without("table2", replace(plain, changes=(("rate", 8),))) == {2, 5, 7, 9, 11}  # Those with MF.
    assert without("table2", plain, hubert="noise-w2v2", w2v2="random-tiny") == {3, *range(4, 12)}
    assert without("table1", replace(plain, changes=(("rate", 8),))) == {6}
    for table, rows in (("table3", 5), ("table4", 4)):
        assert without(table, replace(plain, preset="quick")) == set(range(1, rows + 1))


def test_the_table_has_a_figure_where_the_report_has_it(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table2", tmp_path, rows=["hubert"])
    train_ablation(ablation, fold=1, jobs=1)
    run = ablation.rows[2].runs[0]
    path = run / "fold01" / "result.json"
    record = json.loads(path.read_text())
    assert record["encoders"] == {
        "random-tiny": {"family": "hubert", "layers": "last", "width": 64, "random_weights": True}
    }
    base = {"family": "hubert", "layers": "last", "width": 768, "random_weights": False}
    before = {key: value for key, value in record.items() if key != "encoders"}
    for changed, figures in (
        ({"encoders": {"random-tiny": base}}, (69.99, 70.57)),
        ({"encoders": {"random-tiny": {**base, "layers": [9]}}}, None),
        ({}, None),
        ({"features": {"encoder": "hubert-base-ls960"}}, (69.99, 70.57)),
    ):
        path.write_text(json.dumps({**before, **changed}))
        paper = summarise(run).paper
        assert (paper and paper[:2]) == tabulate(ablation).rows[2].published == figures


def test_a_row_whose_model_cannot_be_made_leaves_the_table(small_cache: Cache, tmp_path: Path) -> None:
    # 64 is no multiple of it.
    options = replace(CHEAP, changes=(*CHEAP.changes, ("attention_grid", 30)))
    rows = tabulate(planned(small_cache, "table2", tmp_path, options)).rows
    assert rows[10].state == NOT_TRAINED and rows[10].parameters is None
    assert rows[0].parameters and rows[2].parameters


def test_systems_that_are_not_built_say_so(small_cache: Cache, tmp_path: Path) -> None:
    table = tabulate(planned(small_cache, "table1", tmp_path))
    states = {row.name: row.state for row in table.rows}
    assert {name for name, state in states.items() if state == NOT_BUILT} == {
        "hnsd", "smw-cat", "e2e-asr", "cross-representation",
    }  # fmt: skip
    assert states["co-attention"] == LACKING and states["mfhca"] == NOT_TRAINED
    assert [row.apart for row in table.rows] == [False] * 6 + [True] * 5
    assert not any(row.published for row in table.rows if row.apart)


def test_the_claim_is_counted() -> None:
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

    with torch.device("meta"):
        for encoder in (HubertModel(HubertConfig()), Wav2Vec2Model(Wav2Vec2Config())):
            assert sum(parameter.numel() for parameter in encoder.parameters()) == base_encoder_parameters()
        layers = nn.ModuleList((nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 4)))
        assert count_parameters(layers) == alexnet_classifier_parameters()
        mfhca_parameters = count_parameters(build_model("mfhca"))
    whole, without_unused, bare, bare_without_unused = compare_parameters()
    assert bare.mfhca == bare_without_unused.mfhca == mfhca_parameters
    # As counted in the released code, whose MFHCA has 38,293 numbers more that it never uses.
    assert bare.mfhca_released == 4_718_582 - 38_293
    rounded = [round(item.baseline / 1e6, 1) for item in (whole, bare, bare_without_unused)]
    assert rounded == [174.6, 80.3, 25.7]
    assert round(whole.mfhca_released / 1e6, 1) == 99.1
    assert [round(item.fewer_released, 1) for item in (whole, bare)] == [43.3, 94.2]
    assert all(abs(item.fewer - CLAIMED) > 5 for item in (whole, without_unused, bare, bare_without_unused))


def test_random_weights_and_optimism_are_told(small_cache: Cache, tmp_path: Path) -> None:
    options = replace(CHEAP, protocol="test-selected")
    ablation = planned(small_cache, "table2", tmp_path, options, rows=["hubert"])
    train_ablation(ablation, fold=1, jobs=1)
    table = tabulate(ablation)
    row = table.rows[2]
    assert row.random_weights and row.optimistic
    assert any("random-tiny has random weights" in line for line in table.cautions())
    assert any("optimistic" in line for line in table.cautions())
    assert "(optimistic)" in to_latex(table) and "Hubert (random weights)" in to_latex(table)


def test_sentences_end_once_and_commands_can_be_pasted(small_cache: Cache, tmp_path: Path) -> None:
    text = to_latex(tabulate(planned(small_cache, "table2", tmp_path)))
    assert "on the test speaker.\\par" in text and ".." not in text
    ablation = plan_ablation(small_cache, "table2", CHEAP, runs=tmp_path / "my runs", rows=["hubert"], device="cpu")
    table = tabulate(ablation)
    rows = [replace(row, state=TRAINED if row.name in ("hubert", table.full) else row.state) for row in table.rows]
    ((name, line),) = replace(table, rows=tuple(rows)).compare_commands()
    assert name == "hubert" and shlex.split(line) == ["mfhca", "compare", rows[2].runs[0], rows[10].runs[0]]


def test_latex_shows_every_character_and_numbers_stay_numbers(small_cache: Cache, tmp_path: Path) -> None:
    ablation = planned(small_cache, "table2", tmp_path, rows=["hubert"])
    train_ablation(ablation, jobs=1)
    table = tabulate(ablation)
    text = to_latex(table)
    assert text.count(r"\\") == 1 + 11 and text.count("{") == text.count("}")
    assert not [
        line for line in text.splitlines()[1:] if "%" in line.replace(r"\%", "") or "_" in line.replace(r"\_", "")
    ]
    frame = to_frame(table)
    assert list(frame["row"]) == list(range(1, 12))
    assert frame.loc[2, "mean_utterance_wa"] == table.rows[2].mean["utterance_wa"]
    assert frame.loc[0, "published_iemocap_ua"] == 62.25 and frame["published_iemocap_ua"].isna()[2]
    assert frame.loc[0, "state"] == NOT_TRAINED and frame.loc[0, "folds"] == 0


def test_the_page_has_the_figures_that_the_tables_have() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    for table in TABLES.values():
        for row in (row for row in table.rows if row.published):
            figures = [f"{value:.2f}" for value in row.published or ()]
            if table.name == "table2":
                assert [row.label, *row.cells, *figures] in rows
            else:
                label = row.label.replace("repr.", "representation")
                assert any(label in cells and " ".join(figures) in " ".join(cells) for cells in rows), row.name
    for item in compare_parameters():
        shown = [item.counted, f"{item.baseline / 1e6:.1f} M", f"{item.fewer:.1f} %", f"{item.fewer_released:.1f} %"]
        assert any([cells[0], cells[1], cells[3], cells[-1]] == shown for cells in rows if len(cells) == 6)


# The command


def test_the_command_trains_shows_and_writes(here: Path) -> None:
    text = run("ablate", "table2", *WORDS, "--row", "hubert", "--row", "2").output
    assert "Table II: ablation of MF and HCA · iemocap · session · preset quick" in text
    assert "Hubert" in text and "random weights" in text and "62.13/62.25" in text and "69.99" not in text
    assert "rows 2, 3, 8, 9, 10, 11: the paper has no figure for these settings and features" in " ".join(text.split())
    assert "Row 4 (spec-w2v2) is left out: no features of a wav2vec 2.0 encoder. To add it:" in text
    folder = here / "runs" / "iemocap-table2-session-quick-epochs1-channels2.4"
    assert sorted(path.name for path in folder.iterdir()) == ["table.csv", "table.json", "table.md", "table.tex"]
    with (folder / "table.csv").open() as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states[:4] == [NOT_TRAINED, TRAINED, TRAINED, LACKING]
    assert (here / "runs" / "iemocap-mfhca-random-tiny-session-quick-epochs1-channels2.4" / "report.json").exists()
    value = json.loads(run("ablate", "table2", *WORDS[:-2], "--show", "--json").output)
    assert value == {**json.loads((folder / "table.json").read_text()), "files": value["files"], "failed": {}}
    assert value["rows"][0]["published"] == {"wa": 62.13, "ua": 62.25} and value["rows"][2]["published"] is None
    assert value["rows"][2]["cells"] == {"MF": "✗", "HCA": "✗"}
    assert run("ablate", "table2", *WORDS[:-2], "--show", "--quiet").output == ""


@pytest.mark.usefixtures("here")
def test_nothing_to_train_is_an_error_with_the_command() -> None:
    text = run("ablate", "table2", "--row", "spec-w2v2", "--row", "5", expect=1).output
    assert "none of the rows asked for can be trained" in text
    assert text.count("--encoder facebook/wav2vec2-base --features none") == 2
    assert "row 1 (hnsd): not built yet" in run("ablate", "table1", "--row", "1", expect=1).output
    assert "row '99' is not known" in run("ablate", "table4", "--row", "99", expect=1).output
    run("ablate", "table5", expect=2)
    run("ablate", "table4", "--jobs", "none", expect=2)


@pytest.mark.usefixtures("here")
def test_table_one_shows_the_claim_and_every_system() -> None:
    text = run("ablate", "table1", "--preset", "quick", "--protocol", "session", "--row", "svm", "--jobs", "1").output
    assert "the paper claims 54.26 % fewer than co-attention [13]" in text
    for words in ("HNSD [18]", "not built yet", "70.50/72.50", "SVM, statistics", "174.6 M", "43.3 %"):
        assert words in text
    assert max(map(len, text.split("Parameters:")[0].splitlines()[1:14])) <= 100


@pytest.mark.usefixtures("here")
def test_a_failure_ends_with_status_1_after_all_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(ablation_module, "cross_validate", fail)
    text = run("ablate", "table4", *WORDS, "--row", "1/8", expect=1).output
    assert "Wrote runs/iemocap-table4" in text
    assert "Error: 1 row could not be trained; the others are kept." in text and "the loss is not finite" in text


@pytest.mark.usefixtures("here")
def test_the_command_takes_weights_of_alexnet(tmp_path: Path) -> None:
    (tmp_path / "alexnet.pth").write_bytes(b"weights")
    words = ("ablate", "table2", *WORDS, "--set", "alexnet_weights=alexnet.pth")
    text = " ".join(run(*words, "--show").output.split())
    assert "alexnet_weights alexnet.pth" in text
    assert "runs/iemocap-table2-session-quick-epochs1-channels2.4-alexnetweightsalexnet.pth/table.json" in text
    assert "given once" not in text
    assert "give it once" in run(*words, "--set", "alexnet_weights=b.pth", expect=1).output


def test_with_ray_rows_that_are_one_run_are_one_item_and_failures_are_told(
    here: Path, two_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainItem] = []

    def train(cache: Cache, items: list[TrainItem], failed: Callable[[Path, str], object], **_: Any) -> None:
        asked.extend(items)
        for item in items:
            if "alexnet" in item.run.name:
                failed(item.run, "the loss is not finite")
                failed(item.run, "a second fold's is not either")

    monkeypatch.setattr(command, "train_on_ray", train)
    words = [*WORDS[:-2], "--cache", str(two_folder), "--w2v2", "random-tiny", "--engine", "ray"]
    text = run("ablate", "table2", *words, "--row", "spec-w2v2", "--row", "spec-hubert", "--row", "3", expect=1).output
    assert len(asked) == len({item.run for item in asked}) == 2
    assert "Wrote runs/iemocap-table2" in text and "2 rows could not be trained; the others are kept." in text
    assert "row spec-w2v2: the loss is not finite" in text and "row spec-hubert: the loss is not finite" in text


def test_with_ray_rows_and_seeds_are_items_of_one_call(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainItem] = []
    monkeypatch.setattr(command, "train_on_ray", lambda cache, items, **_: asked.extend(items))
    words = [word for word in WORDS if word not in ("--jobs", "1")]
    words.insert(words.index("--epochs") + 1, "1")
    run("ablate", "table4", *words, "--seeds", "2", "--engine", "ray", "--fold", "2")
    assert len(asked) == len({item.run for item in asked}) == 8
    assert {item.options.seed for item in asked} == {0, 1} and {item.fold for item in asked} == {"2"}
    assert [getattr(item.options.settings, "rate", 0) for item in asked[::2]] == [2, 4, 8, 16]
    run("ablate", "table4", "--engine", "ray", "--jobs", "2", expect=2)
    assert not list(here.glob("runs/*/fold*"))
