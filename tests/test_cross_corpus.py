"""Training on one corpus and testing on another."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfhca_cache.errors import FoldError, TrainingError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.folds import cross_corpus_fold
from mfhca_cache.labels import class_map
from mfhca_cache.manifest import COLUMNS, Manifest, make_manifest
from mfhca_cache.reporting.inside import find_cache
from mfhca_cache.reporting.page import write_page
from mfhca_cache.reporting.repeat import commands
from mfhca_cache.reporting.stored import read_run
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.spec import SpectrogramSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training import mapped, processes
from mfhca_cache.training.cross_corpus import joint_table, make_cross_fold
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.data import fit_scaling
from mfhca_cache.training.job import load_job_data, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import FoldResult, load_checkpoint, read_fold
from mfhca_cache.training.seeds import cross_validate_seeds
from mfhca_cache.wav import probe

from .conftest import TINY, small_corpus, tone, write_wav
from .test_cli import run
from .test_side_by_side import same

ENCODER = TrainOptions(features="encoder", preset="frozen", epochs=2, threads=1)
BOTH = TrainOptions(preset="quick", epochs=1, threads=1)


def german(root: Path, speakers: tuple[str, ...] = ("1F", "08", "09"), labels: str = "WFNT") -> Manifest:
    """A corpus in Emo-DB's labels, one of whose speakers and some of whose ids are called as in the other corpus."""
    rows = []
    for number, speaker in enumerate(speakers):
        for at, label in enumerate(labels):
            name = f"Ses0{number + 1}_F00{at}"
            seconds = 3.3 if label == "N" else 0.8 + 0.1 * at
            write_wav(root / f"{name}.wav", tone(seconds, 130 + 30 * number + 11 * at, seed=900 + len(rows)))
            row = {"corpus": "emodb", "utterance_id": name, "path": f"{name}.wav", "speaker": speaker, "label": label}
            rows.append(row)
    return described(root, "emodb", rows)


def described(root: Path, corpus: str, rows: list[dict[str, str]]) -> Manifest:
    """Rows with what their audio says of itself."""
    table = []
    for row in rows:
        info = probe(root / row["path"])
        found = {"seconds": info.seconds, "sample_rate": info.sample_rate, "channels": info.channels}
        table.append({**dict.fromkeys(COLUMNS, ""), **found, "sha256": info.sha256, **row})
    return make_manifest(corpus, root, pd.DataFrame(table))


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other corpus's cache. Tests must not change it."""
    folder = tmp_path_factory.mktemp("german")
    extract(german(folder / "audio"), folder / "cache", TINY, device="cpu")
    return folder / "cache"


@pytest.fixture
def other(other_folder: Path) -> Cache:
    return open_cache(other_folder)


def test_one_fold_with_whole_unheard_speakers_for_the_epoch(small_cache: Cache, other: Cache) -> None:
    chosen = set()
    for seed in range(6):
        job = prepare(small_cache, replace(ENCODER, seed=seed), "cpu", other)
        (fold,) = job.folds
        assert (fold.name, fold.protocol, fold.optimistic) == ("emodb", "cross-corpus", False)
        assert job.own_names(fold.test) == list(other.utterances["utterance_id"])
        assert sorted(job.own_names(fold.test_speakers)) == ["08", "09", "1F"]
        (speaker,) = job.own_names(fold.validation_speakers)
        chosen.add(speaker)
        own = small_cache.utterances
        assert set(job.own_names(fold.validation)) == set(own.loc[own["speaker"] == speaker, "utterance_id"])
        assert set(job.own_names(fold.train)) == set(own.loc[own["speaker"] != speaker, "utterance_id"])
        assert not set(fold.train) & set(fold.test), "the same ids mean others"
    assert len(chosen) > 1, "the seed chooses"


def test_what_is_stored_has_each_corpuss_own_names(small_cache: Cache, other: Cache, tmp_path: Path) -> None:
    (result,) = cross_validate(small_cache, BOTH, run=tmp_path / "run", device="cpu", test_cache=other)
    record = result.record
    assert (record["corpus"], record["test_corpus"], record["protocol"]) == ("iemocap", "emodb", "cross-corpus")
    assert record["test_plan"] == other.plan.identity() != record["cache"]["plan"] == small_cache.plan.identity()
    assert sorted(record["test_speakers"]) == ["08", "09", "1F"]
    assert list(result.predictions["utterance_id"]) == list(other.utterances["utterance_id"])
    whose = dict(zip(other.utterances["utterance_id"], other.utterances["speaker"], strict=True))
    assert list(result.predictions["speaker"]) == [whose[name] for name in result.predictions["utterance_id"]]
    assert list(result.predictions["label"][:4]) == ["angry", "happy", "neutral", "sad"]
    # The stored model, on the other corpus's clips read by themselves, gives what was stored.
    model, scaling, description = load_checkpoint(tmp_path / "run" / "fold01" / "model.safetensors")
    assert scaling is not None and description["corpus"] == "iemocap"
    name = "Ses02_F002"  # Two clips, and an id of both corpora.
    loaded = other.load(["spectrogram", "random-tiny"], [name])
    frames = torch.tensor(loaded["clips"]["valid_spectrogram"].to_numpy())
    with torch.no_grad():
        logits = model(scaling.apply(loaded["spectrogram"], frames), loaded["random-tiny"].float())
    mean = logits.log_softmax(1).mean(0).softmax(0)
    row = result.predictions.set_index("utterance_id").loc[name]
    assert row["clips"] == 2
    assert row.filter(like="p_").tolist() == pytest.approx(mean.tolist(), abs=1e-5)
    # And the statistics are those of training clips alone.
    job = prepare(small_cache, BOTH, "cpu", other)
    mine = prepare(small_cache, replace(BOTH, protocol="strict"), "cpu")
    data = load_job_data(mine, mine.folds)
    expected = fit_scaling(data, data.clips_of(job.own_names(job.folds[0].train)))
    assert expected is not None and torch.equal(scaling.mean, expected.mean) and torch.equal(scaling.std, expected.std)


def test_the_summary_names_both_and_shows_no_figure_of_the_paper(
    small_cache: Cache, other: Cache, tmp_path: Path
) -> None:
    cross_validate(small_cache, ENCODER, run=tmp_path / "run", device="cpu", test_cache=other)
    summary = summarise(tmp_path / "run")
    assert (summary.settings["corpus"], summary.settings["test_corpus"]) == ("iemocap", "emodb")
    assert summary.paper is None and not summary.optimistic and summary.to_json()["test_corpus"] == "emodb"


def test_the_page_is_of_the_corpus_that_is_tested(small_cache: Cache, other: Cache, tmp_path: Path) -> None:
    cross_validate(small_cache, BOTH, run=tmp_path / "run", device="cpu", test_cache=other)
    identity = json.loads((tmp_path / "run" / "run.json").read_text())
    assert find_cache(tmp_path / "run", identity, [small_cache.path, other.path]) == other.path
    # The corpus that trains has utterances of the same names, which are others.
    written = write_page(tmp_path / "run", small_cache)
    assert "has other clips than the run was tested on" in written.left_out[0]
    assert not list((tmp_path / "run" / "figures").glob("tsne*"))
    assert write_page(tmp_path / "run", other).left_out == ()
    text = (tmp_path / "run" / "report.html").read_text()
    assert "iemocap → emodb" in re.findall(r"<title>(.*)</title>", text)[0]
    said = " ".join(text.split())
    assert "one model is trained on iemocap" in said and "and is tested on all of emodb" in said
    assert "they are of iemocap, and lie in another cache" in said and "come from a file" not in said
    assert other.plan.identity() in said and small_cache.plan.identity() in said
    assert r"iemocap $\to$ emodb, mfhca on" in (tmp_path / "run" / "tables" / "scores.tex").read_text()
    one, first, two, second, training, _ = commands(read_run(tmp_path / "run"), None)
    assert (one, two) == ("mfhca manifest iemocap CORPUS_FOLDER", "mfhca manifest emodb CORPUS_FOLDER")
    assert first.startswith("mfhca extract   #") and second.startswith(
        "mfhca extract --manifest manifests/emodb.csv   #"
    )
    assert "--cache cache/iemocap --test-cache cache/emodb" in training


def test_two_tables_are_told_apart_in_the_commands(small_cache: Cache, other: Cache, tmp_path: Path) -> None:
    cross_validate(small_cache, ENCODER, run=tmp_path / "run", device="cpu", test_cache=other)
    run = read_run(tmp_path / "run")
    run.results[0].record.update(corpus="table", test_corpus="table")
    one, _, two, second, training, _ = commands(run, other)
    assert one.endswith("-o manifests/table.csv") and two.endswith("-o manifests/table-test.csv")
    assert second.endswith("--manifest manifests/table-test.csv --cache cache/table-test") and "#" not in second
    assert "--cache cache/table --test-cache cache/table-test" in training


def test_processes_seeds_and_features_outside_of_memory_change_no_number(
    small_cache: Cache, other: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(small_cache, BOTH, "cpu", other)
    (plain,) = cross_validate(small_cache, job=job)
    found: list[FoldResult] = []
    processes.train_in_processes(job, job.folds, 2, found.append)
    assert same(found[0], plain)
    seeds = cross_validate_seeds(small_cache, BOTH, (0, 1), run=tmp_path / "run", device="cpu", test_cache=other)
    assert same(seeds[0][0], plain) and not seeds[1][0].predictions.equals(plain.predictions)
    again = cross_validate(small_cache, BOTH, run=tmp_path / "run", device="cpu", test_cache=other)
    assert again[0].record["seconds"] == seeds[0][0].record["seconds"], "kept, not trained anew"
    monkeypatch.setattr(mapped, "free_memory", lambda device: 1000)
    (outside,) = cross_validate(small_cache, job=job)
    assert same(outside, plain)


def test_clips_of_two_caches_come_in_the_order_asked(small_cache: Cache, other: Cache) -> None:
    job = prepare(small_cache, ENCODER, "cpu", other)
    data = load_job_data(job, job.folds)
    parts = [(part.cache, part.cache.clip_table(["random-tiny"], part.own_ids)) for part in job.parts(job.table)]
    feature = mapped.MappedFeature([(c, t["plan_row"].to_numpy()) for c, t in parts], "random-tiny", "cpu")
    count = sum(len(table) for _, table in parts)
    wanted = torch.from_numpy(np.random.default_rng(0).permutation(count))
    assert feature.shape[0] == count and torch.equal(feature[wanted], data.inputs["encoder"][wanted])
    assert torch.equal(feature[wanted[:0]], data.inputs["encoder"][wanted[:0]])


def test_another_corpus_to_test_is_another_run(small_cache: Cache, other: Cache, tmp_path: Path) -> None:
    cross_validate(small_cache, ENCODER, run=tmp_path / "run", device="cpu", test_cache=other)
    extract(german(tmp_path / "fewer", ("08",)), tmp_path / "cache", TINY, device="cpu")
    with pytest.raises(TrainingError, match=r"(?s)holds a run of other settings.*test_plan"):
        cross_validate(
            small_cache, ENCODER, run=tmp_path / "run", device="cpu", test_cache=open_cache(tmp_path / "cache")
        )
    assert read_fold(tmp_path / "run" / "fold01").record["utterances"]["test"] == 12


def test_pairs_that_are_not_fair_are_refused(small_cache: Cache, other: Cache, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="hold the same utterances; a corpus is not tested on itself"):
        prepare(small_cache, ENCODER, "cpu", small_cache)
    extract(small_corpus(tmp_path / "iemocap", 1), tmp_path / "part", replace(TINY, spectrogram=None), device="cpu")
    with pytest.raises(TrainingError, match="both of iemocap, so the test speakers may be in training"):
        prepare(small_cache, ENCODER, "cpu", open_cache(tmp_path / "part"))
    # The same recording under another corpus's name.
    german(tmp_path / "mixed")
    mixed = tmp_path / "mixed" / "Ses01_F000.wav"
    write_wav(mixed, tone(0.7, 220.0, seed=0))
    row = {"corpus": "emodb", "utterance_id": "taken", "path": mixed.name, "speaker": "x", "label": "W"}
    manifest = described(tmp_path / "mixed", "emodb", [row])
    extract(manifest, tmp_path / "shares", replace(TINY, encoder=None), device="cpu")
    with pytest.raises(TrainingError, match=r"have 1 audio file\(s\) in common.*Ses01_F000 and taken"):
        prepare(small_cache, replace(ENCODER, features="spectrogram"), "cpu", open_cache(tmp_path / "shares"))
    with pytest.raises(TrainingError, match="'test-selected' and a cache to test on"):
        prepare(small_cache, replace(ENCODER, protocol="test-selected"), "cpu", other)
    with pytest.raises(TrainingError, match="needs a second cache to test on"):
        prepare(small_cache, replace(ENCODER, protocol="cross-corpus"), "cpu")
    with pytest.raises(
        TrainingError, match="class map all: iemocap has the classes ang, hap, neu, sad, and emodb F, N"
    ):
        prepare(small_cache, replace(ENCODER, classes="all"), "cpu", other)


def test_features_of_other_settings_are_refused(small_cache: Cache, tmp_path: Path) -> None:
    spec = replace(TINY, encoder=None, spectrogram=SpectrogramSpec(pre_emphasis=0.5))
    extract(german(tmp_path / "audio", ("08",)), tmp_path / "cache", spec, device="cpu")
    with pytest.raises(TrainingError, match=r"(?s)spectrogram is not the same in.*pre_emphasis.*0\.0.*0\.5"):
        prepare(small_cache, replace(ENCODER, features="spectrogram"), "cpu", open_cache(tmp_path / "cache"))
    with pytest.raises(TrainingError, match=r"has no feature random-tiny, which .* has; it has spectrogram"):
        prepare(small_cache, ENCODER, "cpu", open_cache(tmp_path / "cache"))


def test_a_split_of_the_tested_cache_that_is_missing_names_its_command(
    small_cache: Cache, other_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(other_folder, tmp_path / "cache")
    (tmp_path / "cache" / "random-tiny" / "all-0000.json").unlink()
    with pytest.raises(TrainingError, match=rf"random-tiny of all is not extracted yet.*\n.*--cache {tmp_path}/cache"):
        cross_validate(small_cache, ENCODER, device="cpu", test_cache=open_cache(tmp_path / "cache"))


def test_a_class_without_utterances_is_said(small_cache: Cache, tmp_path: Path) -> None:
    extract(german(tmp_path / "audio", ("08",), "WNT"), tmp_path / "cache", replace(TINY, encoder=None), device="cpu")
    options = replace(ENCODER, features="spectrogram")
    (fold,) = prepare(small_cache, options, "cpu", open_cache(tmp_path / "cache")).folds
    assert fold.notes == ("no test utterance is happy; UA is the mean over the classes that are there",)
    assert fold.caveats == fold.notes


def rows(corpus: str, speakers: list[str]) -> pd.DataFrame:
    names = [f"{speaker}-{label}" for speaker in speakers for label in ("angry", "happy", "neutral", "sad")]
    table = pd.DataFrame({"utterance_id": names, "label": [name.split("-")[1] for name in names]})
    return table.assign(
        speaker=[name.split("-")[0] for name in names], corpus=corpus, session="", recording="", text=""
    )


def test_tables_whose_speakers_share_names_are_told_apart_and_said_so(
    small_cache: Cache, other: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = iter([rows("table", ["a", "b", "c"]), rows("table", ["c", "d"])])
    classes = class_map("four-class", "table", pd.Series(["angry", "happy", "neutral", "sad"]))

    def labelled(*_: object) -> tuple[pd.DataFrame, object]:
        table = next(tables)
        return table.assign(**{"class": table["label"]}), classes

    monkeypatch.setattr("mfhca_cache.training.cross_corpus.labelled_utterances", labelled)
    table, _, _ = joint_table(small_cache, other, "four-class", [])
    fold = make_cross_fold(table, classes, "table", 0)
    assert fold.test_speakers == ("test:c", "test:d") and len(fold.train) == 8 and not fold.optimistic
    assert fold.notes == ("both corpora are tables, and 1 speaker name(s) are in both (c): taken for other people",)


def test_a_fifth_of_the_speakers_chooses_the_epoch() -> None:
    table = pd.concat([rows("a", [f"s{n}" for n in range(10)]), rows("b", ["t"])], ignore_index=True)
    fold = cross_corpus_fold(table, (table["corpus"] == "b").to_numpy(), "b", 3)
    assert len(fold.validation_speakers) == 2 and (len(fold.train), len(fold.validation), len(fold.test)) == (32, 8, 4)
    assert fold == cross_corpus_fold(table, (table["corpus"] == "b").to_numpy(), "b", 3)
    few = pd.concat([rows("a", ["s"]), rows("b", ["t"])], ignore_index=True)
    with pytest.raises(FoldError, match="needs at least 2 speakers to train on"):
        cross_corpus_fold(few, (few["corpus"] == "b").to_numpy(), "b")


def test_the_command(
    small_cache_folder: Path, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--cache", small_cache_folder, "--test-cache", other_folder, "--features", "encoder", "--preset", "frozen")
    words = (*words, "--epochs", "1", "--device", "cpu")
    text = " ".join(run("train", *words).output.split())
    name = "iemocap-to-emodb-mfhca-random-tiny-cross-corpus-frozen"
    for said in (f"runs/{name}", "test 3 speakers of emodb (12), validation speaker", "of iemocap (4), training 20"):
        assert said in text
    assert "iemocap → emodb · mfhca on random-tiny · cross-corpus" in text and "The paper" not in text
    assert "iemocap → emodb" in run("report", f"runs/{name}").output
    value = json.loads(run("train", *words, "--seeds", "2", "--json").output)
    assert (value["seeds"], value["folds"]) == ([0, 1], 2)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [name, f"{name}-seed1"]
    for more in (("--protocol", "strict"), ("--folds", "x.csv"), ("--engine", "ray")):
        assert "--test-cache" in run("train", *words, *more, expect=2).output
