"""One training watched by two choices of the epoch, and the protocols side by side."""

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
from scipy import stats

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import OPTIMISTIC_NOTE, peeked
from mfhca_cache.progress import Progress
from mfhca_cache.reporting.gap import CONTRASTS, Contrast, summarise_gap, write_gap
from mfhca_cache.reporting.intervals import Estimate
from mfhca_cache.reporting.paired import paired_difference
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training import gap as gap_module
from mfhca_cache.training.crossval import begin_run, cross_validate, has_fold
from mfhca_cache.training.gap import GAP_PROTOCOLS, GapItem, plan_gap, train_gap, train_watched
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import FoldResult, fold_folder, read_fold
from mfhca_cache.training.trainer import train_fold

from .test_cli import run
from .test_side_by_side import same

ENCODER = TrainOptions(features="encoder", preset="frozen", epochs=8, changes=(("patience", 2), ("batch", 4)))
PEEKED = replace(ENCODER, protocol="strict-peeked")


@pytest.fixture(scope="module")
def plain(small_cache_folder: Path) -> dict[str, list[FoldResult]]:
    """Six folds under strict and under strict-peeked, each trained by itself."""
    cache = open_cache(small_cache_folder)
    return {options.protocol: cross_validate(cache, options, device="cpu") for options in (ENCODER, PEEKED)}


def items(cache: Cache, folder: Path) -> tuple[GapItem, GapItem]:
    """strict, and who watches it."""
    plan = plan_gap(cache, ENCODER, runs=folder, name="x", device="cpu")[0]
    return plan["strict"], plan["strict-peeked"]


def stored(item: GapItem) -> list[FoldResult]:
    return [read_fold(fold_folder(item.run, fold.number)) for fold in item.job.folds]


def as_plain(found: list[FoldResult], wanted: list[FoldResult]) -> bool:
    """Whether stored folds are those that were trained by themselves, to the last bit of the weights."""
    for one, two in zip(found, wanted, strict=True):
        # In JSON tuples are lists.
        records = [json.loads(json.dumps(r.record | {"seconds": 0})) for r in (one, two)]
        weights = all(one.state[name].equal(value) for name, value in two.state.items())
        curves = [r.curve.drop(columns="seconds") for r in (one, two)]
        if records[0] != records[1] or not weights or not np.allclose(curves[0]["train_loss"], curves[1]["train_loss"]):
            return False
    return True


def test_watching_changes_no_number(small_cache: Cache, plain: dict[str, list[FoldResult]]) -> None:
    job = prepare(small_cache, ENCODER, "cpu")
    watching = prepare(small_cache, PEEKED, "cpu")
    assert [fold.train for fold in job.folds] == [fold.train for fold in watching.folds]
    job = replace(job, beside=tuple(watching.folds))
    lengths = set()
    for fold, strict, other in zip(job.folds, plain["strict"], plain["strict-peeked"], strict=True):
        found = train_fold(small_cache, fold, job=job)
        assert same(found, strict)
        assert len(found.beside) == 1 and same(found.beside[0], other)
        assert found.beside[0].record["protocol"] == "strict-peeked" and found.beside[0].record["optimistic"]
        lengths.add(len(found.curve) - len(found.beside[0].curve))
    assert {0} != lengths, "each choice spends its own patience"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_watching_changes_no_number_on_a_gpu(small_cache: Cache) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = TrainOptions(preset="quick", epochs=3)
    alone = cross_validate(small_cache, options, device="cuda", jobs=6)
    others = prepare(small_cache, replace(options, protocol="strict-peeked"), "cuda").folds
    job = replace(prepare(small_cache, options, "cuda"), beside=tuple(others))
    watched = cross_validate(small_cache, job=job, jobs=6)
    assert all(same(one, two) for one, two in zip(watched, alone, strict=True))
    assert all(len(result.beside) == 1 for result in watched)


def test_the_epoch_is_the_best_on_the_test_speaker(plain: dict[str, list[FoldResult]]) -> None:
    for result in plain["strict-peeked"]:
        curve = result.curve.sort_values(["validation_ua", "validation_loss"], ascending=[False, True], kind="stable")
        assert result.record["best_epoch"] == curve["epoch"].iloc[0]
        assert result.ua == pytest.approx(curve["validation_ua"].iloc[0]), "validation is the test set"
        assert result.record["validation_speakers"] == result.record["test_speakers"]
        assert OPTIMISTIC_NOTE in result.predictions["caveat"].iloc[0] and "caveat" in result.curve


def test_processes_and_a_run_that_was_begun_before(
    small_cache: Cache, plain: dict[str, list[FoldResult]], tmp_path: Path
) -> None:
    item, other = items(small_cache, tmp_path)
    cross_validate(small_cache, fold=2, run=item.run, job=item.job)
    stamp = (fold_folder(item.run, 2) / "result.json").stat().st_mtime_ns
    said: list[Progress] = []
    train_watched(item, other, jobs=2, progress=said.append)
    assert as_plain(stored(item), plain["strict"]) and as_plain(stored(other), plain["strict-peeked"])
    assert (fold_folder(item.run, 2) / "result.json").stat().st_mtime_ns == stamp, "kept, not written anew"
    assert ["as it was before" in report.detail for report in said if report.detail.startswith("1F")] == [True]
    # What `mfhca train` would find is the same run.
    assert all(
        same(one, two)
        for one, two in zip(cross_validate(small_cache, run=other.run, job=other.job), stored(other), strict=True)
    )
    said.clear()
    train_watched(item, other, progress=said.append)
    assert [(report.unit, report.done) for report in said] == [("folds", 6)], "nothing is left to train"


def test_stopped_anywhere_it_goes_on(
    small_cache: Cache, plain: dict[str, list[FoldResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, other = items(small_cache, tmp_path)

    def stop(report: Progress) -> None:
        if report.stage.startswith("fold 3") and report.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_watched(item, other, progress=stop)
    assert [has_fold(item.run, number) for number in (1, 2, 3)] == [True, True, False]
    # Killed between the two results of fold 3: the optimistic one is there, and never the other one alone.
    written: list[Path] = []
    write = gap_module.write_fold

    def die_behind_the_first(run: Path, result: FoldResult) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(run)
        return write(run, result)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gap_module, "write_fold", die_behind_the_first)
        train_watched(item, other)
    assert written == [other.run]
    assert has_fold(other.run, 3) and not has_fold(item.run, 3)
    train_watched(item, other)
    assert as_plain(stored(item), plain["strict"]) and as_plain(stored(other), plain["strict-peeked"])


def test_a_fold_that_comes_out_otherwise_is_refused_and_kept(small_cache: Cache, tmp_path: Path) -> None:
    item, other = items(small_cache, tmp_path)
    cross_validate(small_cache, fold=1, run=item.run, job=item.job)
    path = fold_folder(item.run, 1) / "result.json"
    record = json.loads(path.read_text())
    record["best_epoch"] += 1
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with pytest.raises(
        TrainingError, match=r"(?s)fold01 was trained before.*best_epoch: .*versions.torch.*1\.0.*--name"
    ):
        train_watched(item, other)
    assert json.loads(path.read_text()) == record and not has_fold(other.run, 1)


def test_folders_of_other_settings_are_refused_before_anything_is_trained(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_gap(small_cache, ENCODER, runs=tmp_path, name="x", device="cpu")
    other = replace(ENCODER, protocol="test-selected", epochs=9)
    begin_run(plan[0]["test-selected"].run, prepare(small_cache, other, "cpu"))
    monkeypatch.setattr(gap_module, "train_and_store", lambda *_: pytest.fail("trained"))
    with pytest.raises(TrainingError, match=r"(?s)x-test-selected holds a run of other settings.*epochs: 9 → 8"):
        train_gap(plan)
    assert [path.name for path in tmp_path.iterdir()] == ["x-test-selected"]
    # The second choice of the epoch was begun with other threads than its training.
    shutil.rmtree(tmp_path / "x-test-selected")
    strict, watching = plan[0]["session"], plan[0]["session-peeked"]
    begin_run(strict.run, strict.job)
    begin_run(watching.run, replace(watching.job, threads=strict.job.threads + 1))
    with pytest.raises(TrainingError, match="x-session-peeked holds a run of other settings"):
        train_gap(plan)


def test_only_one_training_is_watched(small_cache: Cache, tmp_path: Path) -> None:
    items_of = plan_gap(small_cache, ENCODER, runs=tmp_path, device="cpu")[0]
    with pytest.raises(TrainingError, match="strict and test-selected do not have the same training sets"):
        train_watched(items_of["strict"], items_of["test-selected"])
    with pytest.raises(TrainingError, match="got folds from a file"):
        plan_gap(small_cache, replace(ENCODER, folds="x.csv"), runs=tmp_path)
    with pytest.raises(TrainingError, match="ridge is fitted without epochs"):
        plan_gap(small_cache, TrainOptions(model="ridge", features="encoder"), runs=tmp_path, device="cpu")


def test_noise_that_a_model_of_ones_own_draws_while_it_is_watched_is_put_back(
    small_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs_noisy.py").write_text(
        "import torch\n"
        "class Noisy(torch.nn.Module):\n"
        "    def __init__(self, shapes, n_classes):\n"
        "        super().__init__()\n"
        "        self.out = torch.nn.Linear(next(iter(shapes.values()))[-1], n_classes)\n"
        "    def forward(self, features, masks):\n"
        "        return self.out(torch.dropout(next(iter(features.values())).mean(1), 0.5, True))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = TrainOptions(model="theirs_noisy:Noisy", features="random-tiny", epochs=3)
    job = prepare(small_cache, options, "cpu")
    alone = train_fold(small_cache, 1, job=job)
    watching = prepare(small_cache, replace(options, protocol="strict-peeked"), "cpu").folds
    watched = train_fold(small_cache, 1, job=replace(job, beside=tuple(watching)))
    assert same(watched, alone) and len(watched.beside) == 1


@pytest.fixture(scope="module")
def gap_runs(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """All protocols, two seeds, few epochs."""
    options = replace(ENCODER, epochs=3, changes=(("batch", 4),))
    plan = plan_gap(open_cache(small_cache_folder), options, (0, 1), runs=tmp_path_factory.mktemp("runs"), device="cpu")
    return train_gap(plan)


def test_each_protocol_is_a_run_of_its_own(gap_runs: dict[str, list[Path]]) -> None:
    assert list(gap_runs) == ["strict", "strict-peeked", "test-selected", "session", "session-peeked"]
    for protocol, folders in gap_runs.items():
        assert [path.name for path in folders] == [
            f"iemocap-mfhca-random-tiny-{protocol}-frozen-batch4{s}" for s in ("", "-seed1")
        ]
        for seed, folder in enumerate(folders):
            summary = summarise(folder)
            assert (summary.settings["protocol"], summary.settings["seed"]) == (protocol, seed)
            assert summary.optimistic == (protocol not in ("strict", "session"))
            assert (OPTIMISTIC_NOTE in summary.caveats) == summary.optimistic
            options = json.loads((folder / "run.json").read_text())["options"]
            assert options["protocol"] == protocol
    for protocol in ("strict", "session"):
        for one, other in zip(gap_runs[protocol], gap_runs[peeked(protocol)], strict=True):
            records = [read_fold(fold_folder(path, 1)).record for path in (one, other)]
            assert records[0]["test_speakers"] == records[1]["test_speakers"]
            assert records[0]["utterances"]["train"] == records[1]["utterances"]["train"]


def test_what_the_gap_amounts_to(gap_runs: dict[str, list[Path]], tmp_path: Path) -> None:
    summary = summarise_gap(gap_runs)
    assert list(summary.protocols) == list(GAP_PROTOCOLS) and summary.seeds == [0, 1]
    assert [(item.protocol, item.base) for item in summary.contrasts] == list(CONTRASTS)
    folds = {
        name: np.mean([summarise(path).folds["utterance_ua"].to_numpy() for path in paths], axis=0)
        for name, paths in gap_runs.items()
    }
    for item in summary.contrasts[:2]:  # A fold is a speaker.
        differences = folds[item.protocol] - folds[item.base]
        found, speakers = item.paired["utterance_ua"], item.speakers["utterance_ua"]
        assert list(speakers) == ["1M", "1F", "2M", "2F", "3M", "3F"]
        assert list(speakers.values()) == pytest.approx(differences)
        assert item.mean["utterance_ua"] == pytest.approx(differences.mean()) == pytest.approx(found.difference)
        low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert (found.interval is not None) == (np.ptp(differences) > 1e-9)
        if found.interval is not None:
            assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
            assert found.interval.method == "t over 6 speakers' differences, averaged over 2 seeds"
            assert f"std {100 * differences.std(ddof=1):.1f}, 95 % interval" in item.sentence
    pooled = summary.contrasts[2].pooled["clip_wa"]
    one, other = (np.mean([summarise(path).pooled["clip_wa"] for path in gap_runs[n]]) for n in ("session", "strict"))
    assert pooled == pytest.approx(one - other)
    assert (
        "5 instead of 4" in summary.contrasts[1].holds and "3 larger folds instead of 6" in summary.contrasts[2].holds
    )
    # Sessions test two speakers a fold; each speaker is still held against its own score.
    tested = pd.concat([read_fold(path).predictions for path in sorted(gap_runs["session"][0].glob("fold*"))])
    right = (tested["label"] == tested["prediction"]).groupby(tested["speaker"]).mean()
    again = pd.concat([read_fold(path).predictions for path in sorted(gap_runs["session"][1].glob("fold*"))])
    right = (right + (again["label"] == again["prediction"]).groupby(again["speaker"]).mean()) / 2
    assert summary.contrasts[3].paired["utterance_wa"].b == pytest.approx(right.mean())
    paths = write_gap(summary, tmp_path / "gap")
    value = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(name))
    assert value["protocols"]["strict-peeked"]["optimistic"] and not value["protocols"]["strict"]["optimistic"]
    assert value["published"]["points"] == {"5": 2.7, "10": 4.7}
    assert {key: value[key] for key in ("corpus", "model", "features", "preset", "seeds")} == {
        "corpus": "iemocap", "model": "mfhca", "features": {"encoder": "random-tiny"}, "preset": "frozen",
        "seeds": [0, 1],
    }  # fmt: skip
    joined, written = summary.protocols["strict"], value["protocols"]["strict"]
    assert (
        written["intervals"]["utterance_ua"]["low"]
        == joined.intervals["utterance_ua"].low
        < written["mean"]["utterance_ua"]
    )
    assert written["pooled_intervals"].keys() == joined.pooled_intervals.keys()
    table = pd.read_csv(paths[1]).set_index("what")
    assert table.loc["strict", "utterance_wa_pooled_high"] == joined.pooled_intervals["utterance_wa"].high
    assert np.isnan(table.loc["session", "clip_wa_mean_low"]), "clips of two speakers a fold have no interval"
    assert "optimistic" in paths[1].read_text()
    shutil.copytree(gap_runs["strict"][0], tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "fold02")
    with pytest.raises(TrainingError, match="not trained yet: 1F; `mfhca gap` goes on"):
        summarise_gap({**gap_runs, "strict": [tmp_path / "part", gap_runs["strict"][1]]})


def test_sentences_without_an_interval() -> None:
    def sentence(*values: float) -> str:
        a, b = (
            Estimate(np.array(value), np.array(v))
            for value, v in ((np.mean(values), values - np.mean(values)), (0.0, np.zeros(len(values))))
        )
        speakers = {str(number): value for number, value in enumerate(values)}
        found = paired_difference(a, b, "t")
        return Contrast("x", "y", "it all", {}, {}, {"utterance_ua": found}, {"utterance_ua": speakers}).sentence

    assert sentence(0.1) == "x − y: +10.0 points of UA, of one speaker, so without a spread. It holds it all."
    assert "+10.0 points of UA, mean over 2 speakers; the same for each, so without" in sentence(0.1, 0.1)
    assert "no speaker's UA differs, so without an interval" in sentence(0.0, 0.0)
    # t of 2 degrees of freedom, two-sided 95 %, from a table: 4.302652729911275 * 20 / √3 = 49.7.
    assert "(std 20.0, 95 % interval −39.7 to +59.7). It holds it all. Zero is within" in sentence(0.1, 0.3, -0.1)


def test_the_command(small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "iemocap").symlink_to(small_cache_folder)
    monkeypatch.chdir(tmp_path)
    words = ("--features", "encoder", "--preset", "frozen", "--epochs", "1", "--device", "cpu", "--jobs", "1")
    run("train", *words, "--fold", "2M")
    text = " ".join(run("gap", *words).output.split())
    folder = "runs/iemocap-mfhca-random-tiny-gap-frozen"
    for said in (
        "trained again, and held against what is stored, which was made without it: 2M",
        "epoch chosen on the test set (optimistic)",
        "strict-peeked − strict: ",
        "selection alone: the trainings of strict, their epochs chosen on the test set",
        "selection, and one more speaker in training (5 instead of 4)",
        "in 3 larger folds instead of 6",
        "+2.7 points on 5 folds, +4.7 on 10",
        "strict-peeked, test-selected, session-peeked are optimistic",
        f"Wrote {folder}/gap.json",
    ):
        assert said in text
    assert text.count("optimistic") >= 6
    assert "[95 % interval over speakers]" in text
    again = json.loads(run("gap", *words, "--json").output)
    assert again == json.loads((tmp_path / folder / "gap.json").read_text())
    shown = run("gap", *words).output
    assert "6 folds, 6 done before" in shown
    tables = [line for line in shown.splitlines() if line[:1] in "┏┃┡│└"]
    assert tables and max(map(len, tables)) <= 100 and not any("…" in line for line in tables)
    before = (tmp_path / folder / "gap.json").read_text()
    assert f"Wrote {folder}-seed1/gap.json" in run("gap", *words, "--seed", "1").output
    assert (tmp_path / folder / "gap.json").read_text() == before
    assert "optimistic" in run("report", "runs/iemocap-mfhca-random-tiny-strict-peeked-frozen").output
    run("gap", *words, "--name", "a/b", expect=2)
    run("gap", *words, "--jobs", "0", expect=2)


def test_the_command_takes_every_model_with_epochs(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainOptions] = []

    def stop(cache: Cache, options: TrainOptions, *_: object, **__: object) -> None:
        asked.append(options)
        raise TrainingError("seen enough")

    monkeypatch.setattr("mfhca_cache.cli.gap.plan_gap", stop)
    words = ("gap", "--cache", small_cache_folder, "--runs", tmp_path, "--device", "cpu")
    for model, change in (
        ("linear-probe", ()),
        ("attentive-pooling", ("--set", "hidden=32")),
        ("co-attention", ("--set", "lstm_width=64")),
    ):
        run(*words, "--model", model, *change, expect=1)
    assert [options.features for options in asked] == ["encoder", "encoder", "spectrogram+mfcc+encoder"]
    assert [options.changes for options in asked[1:]] == [(("hidden", 32),), (("lstm_width", 64),)]
    assert {options.preset for options in asked} == {"frozen"}
