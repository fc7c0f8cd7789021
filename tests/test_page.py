from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mfhca_cache.cli.app import mfhca
from mfhca_cache.cli.train import train
from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import OPTIMISTIC_NOTE
from mfhca_cache.reporting import spaces
from mfhca_cache.reporting.figures import Drawing
from mfhca_cache.reporting.inside import find_cache
from mfhca_cache.reporting.joined import join
from mfhca_cache.reporting.page import write_page
from mfhca_cache.reporting.repeat import commands
from mfhca_cache.reporting.spaces import counterpart, median_fold
from mfhca_cache.reporting.stored import read_run, telling_utterances
from mfhca_cache.reporting.summary import run_predictions, summarise
from mfhca_cache.reporting.tables import speakers_table
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.options import TrainOptions

from .pages import OPTIONS, Read, copied

HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at the page alone: PNG and PDF take longer than all the rest."""
    monkeypatch.setattr(Drawing, "files", lambda _: {})


@pytest.fixture(scope="module")
def written(small_run: tuple[Path, Cache], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder, with its page and everything that it can show."""
    run = copied(small_run[0], tmp_path_factory.mktemp("runs") / "trial")
    assert write_page(run, small_run[1]).left_out == ()
    return run


@pytest.fixture(scope="module")
def page(written: Path) -> Read:
    return Read((written / "report.html").read_text(encoding="utf-8"))


def test_a_page_needs_nothing_but_itself(page: Read) -> None:
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    urls = {name for _, _, value in page.attributes for name in re.findall(r"url\(#([^)]+)\)", value)}
    assert targets | urls <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)", " ".join(value for _, _, value in page.attributes))


def test_a_page_can_be_heard(page: Read) -> None:
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("h1") == 1
    # scores; three curves; features with and before HCA; those of three folds; attention over some utterances
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) >= 1 + 3 + 2 + 3 + 4
    assert all(len(label) > 20 for label in labels)
    assert labels[0].startswith("Scores of 3 folds. Means: utterance WA ")
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == page.tags.count("th")


def test_a_page_has_the_run_and_its_caveats(page: Read, small_run: tuple[Path, Cache]) -> None:
    run, cache = small_run
    summary = summarise(run)
    for name in ("utterance_ua", "utterance_wa", "clip_ua"):
        for values in (summary.mean, summary.std, summary.pooled):
            assert f"{100 * values[name]:.2f}" in page.text
    assert "Random weights" in page.text and "its features mean nothing" in page.text
    assert "Protocol strict: each fold tests on one speaker" in page.text
    assert "optimistic" not in page.text.lower()
    assert "Fold 1 (1F)" in page.text and "(1f)" not in page.text
    assert "alexnet weights" not in page.text
    assert cache.plan.identity() in page.text
    assert cache.features["random-tiny"].fingerprint in page.text
    assert "its 8 training utterances as faint rings" in page.text


def test_figures_and_tables_are_files_too(page: Read, written: Path) -> None:
    run = written
    names = {path.name for path in (run / "figures").iterdir()}
    stems = ("scores", "confusion", "learning-curves", "tsne", "tsne-folds", "attention")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    for path in (run / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
    table = pd.read_csv(run / "tables" / "speakers.csv")
    assert list(table.columns) == ["speaker", "fold", "utterances", "WA", "UA", "angry", "happy", "neutral", "sad"]
    assert list(table["utterances"]) == [8, 8, 8]
    folds = (run / "tables" / "folds.tex").read_text()
    assert r"\toprule" in folds and "random-tiny has random weights" in folds
    assert page.tags.count("table") == 6


def test_the_same_run_gives_the_same_bytes(written: Path, small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, again = written, copied(small_run[0], tmp_path / "trial")
    write_page(again, small_run[1])
    for path in sorted([run / "report.html", *(run / "figures").iterdir(), *(run / "tables").iterdir()]):
        assert path.read_bytes() == (again / path.relative_to(run)).read_bytes(), path.name


def test_names_are_shown_and_never_run(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    names = {"angry": "<script>alert(1)</script>", "happy": "a&b", "neutral": r"$x^2$ \input{x} 100% _", "sad": "哀"}

    def change(record: dict[str, object]) -> None:
        record["classes"] = list(names.values())
        record["corpus"] = record["name"] = HOSTILE
        record["caveats"] = [f"`{HOSTILE}`"]

    run = copied(small_run[0], tmp_path / "run", change)
    for path in run.glob("fold*/predictions.csv"):
        table = pd.read_csv(path, dtype=str).replace(names).replace({"speaker": {"1F": HOSTILE}})
        table.rename(columns={f"p_{old}": f"p_{new}" for old, new in names.items()}).to_csv(path, index=False)
    write_page(run)
    read = Read((run / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(read.tags)
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    for shown in (*names.values(), HOSTILE):
        assert shown in read.text
    tex = (run / "tables" / "speakers.tex").read_text()
    assert r"\$x\textasciicircum{}2\$ \textbackslash{}input\{x\} 100\% \_" in tex
    assert r"\textless{}script\textgreater{}" in tex and r"a\&b" in tex


@pytest.mark.usefixtures("no_files")
def test_without_the_cache_the_page_says_what_is_left_out(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run
    alone = copied(run, tmp_path / "elsewhere" / "runs" / "trial")
    (alone / "figures").mkdir()
    (alone / "figures" / "tsne.png").write_bytes(b"of an earlier report")
    written = write_page(alone)
    text = Read(written.path.read_text()).text
    assert "is not at hand" in text and "mfhca report runs/trial --cache DIR" in text
    assert not (alone / "figures" / "tsne.png").exists()
    assert find_cache(alone, json.loads((alone / "run.json").read_text())) is None
    assert find_cache(run, json.loads((run / "run.json").read_text())) == cache.path


@pytest.mark.usefixtures("no_files")
def test_another_cache_is_refused_by_its_fingerprints(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run

    def other_weights(record: dict[str, dict[str, str]]) -> None:
        record["cache"]["random-tiny"] = "0" * 64

    written = write_page(copied(run, tmp_path / "a", other_weights), cache)
    assert "random-tiny in" in written.left_out[0] and "the fingerprints differ" in written.left_out[0]
    written = write_page(copied(run, tmp_path / "b", lambda r: r["cache"].update(plan="0" * 64)), cache)
    assert "has other clips than the run was trained on" in written.left_out[0]


@pytest.mark.usefixtures("no_files")
def test_a_model_of_ones_own_has_a_page_without_its_inside(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run
    own = copied(run, tmp_path / "own", lambda record: record.update(model_source={"file": "m.py", "sha256": "00"}))
    assert "the model is the reader's own" in write_page(own, cache).left_out[0]


@pytest.mark.usefixtures("no_files")
def test_missing_folds_are_named(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run
    part = copied(run, tmp_path / "part")
    for path in (part / "fold02").iterdir():
        path.unlink()
    (part / "fold02").rmdir()
    text = Read(write_page(part, cache, fold=3).path.read_text()).text
    assert "1 of 3 folds are not trained yet: 2M." in text
    assert "from the model of fold 3 (3F), the one that was asked for" in " ".join(text.split())
    with pytest.raises(TrainingError, match="fold 2 is not trained; expected one of 1, 3"):
        write_page(part, cache, fold=2)


@pytest.mark.usefixtures("no_files")
def test_optimistic_scores_are_marked_wherever_they_are_shown(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    said = "optimistic: the epoch was chosen on the test speaker"

    def peek(record: dict[str, object]) -> None:
        record.update(optimistic=True, protocol="test-selected", caveats=[said])

    run = copied(small_run[0], tmp_path / "run", peek)
    write_page(run)
    text = (run / "report.html").read_text()
    read = Read(text)
    assert "(optimistic)" in re.findall(r"<title>(.*)</title>", text)[0]
    assert "Optimistic scores" in read.text and said in read.text
    # Beside the title and both headline scores, and in the caption of every table of scores.
    assert text.count('<span class="badge">optimistic</span>') == 3
    assert read.text.count("In percent, optimistic") + read.text.count("in percent, optimistic") == 3
    # And in figures, which are taken out of the page: both matrices are HTML in it, so scores and three folds' curves.
    assert sum(text.count(f"{before}, optimistic</text>") for before in ("%", "of 2")) == 4
    for path in (run / "tables").glob("*.tex"):
        assert "Caution: optimistic: the epoch was chosen on the test speaker." in path.read_text(), path.name


@pytest.mark.usefixtures("no_files")
def test_several_seeds_share_a_page(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run = copied(small_run[0], tmp_path / "trial")
    other = copied(small_run[0], tmp_path / "trial-seed1", lambda record: record.update(seed=1))
    joined = join([summarise(run), summarise(other)])
    text = Read(write_page(run, joined=joined).path.read_text()).text
    assert "2 seeds (0, 1)" in text and "mean of folds and seeds" in text
    assert "All that follows is of seed 0 alone" in text
    assert "--seeds 2" in text
    assert "seed 1, pooled" in (run / "tables" / "seeds.tex").read_text()


@pytest.mark.usefixtures("no_files")
def test_intervals_have_their_place(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run = copied(small_run[0], tmp_path / "run")
    summary = summarise(run)
    interval = SimpleNamespace(low=0.1234, high=0.6789, level=0.95, method="t over 3 speakers", n=3)
    object.__setattr__(summary, "intervals", {"utterance_ua": interval})
    text = " ".join(Read(write_page(summary).path.read_text()).text.split())
    assert "95 % interval 12.34 to 67.89" in text
    assert "the 95 % interval of the score before them, t over 3 speakers." in text
    assert "12.34 & 67.89" in (run / "tables" / "scores.tex").read_text()


def test_speakers_and_telling_utterances_are_those_of_the_predictions(small_run: tuple[Path, Cache]) -> None:
    run = read_run(small_run[0])
    predictions = run_predictions(small_run[0])
    table = run.summary.speakers.set_index("speaker")
    mine = predictions[predictions["speaker"] == "2M"]
    right = mine["label"] == mine["prediction"]
    assert table.loc["2M", "wa"] == pytest.approx(right.mean())
    assert table.loc["2M", "recall_happy"] == pytest.approx(right[mine["label"] == "happy"].mean())
    assert table.loc["2M", "ua"] == pytest.approx(
        np.mean([right[mine["label"] == c].mean() for c in set(mine["label"])])
    )
    told = telling_utterances(run)
    for (label, is_right), part in told.groupby(["label", "right"]):
        assert len(part) == 1
        same = predictions[predictions["label"] == label]
        same = same[(same["label"] == same["prediction"]) == is_right]
        assert part["sure"].item() == same.filter(like="p_").max(axis=1).max()
    assert median_fold(run.results).ua == sorted(result.ua for result in run.results)[1]


def test_a_run_without_hca_is_found_beside(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run = copied(small_run[0], tmp_path / "runs" / "hca")
    stored = read_run(run)
    assert counterpart(stored, []) is None

    def without(record: dict[str, Any]) -> None:
        record["model_settings"]["fusion"] = "co-attention"

    copied(run, tmp_path / "runs" / "other-seed", lambda record: (without(record), record.update(seed=7)))
    assert counterpart(stored, []) is None
    other = copied(run, tmp_path / "runs" / "plain", without)
    found = counterpart(stored, [])
    assert found is not None and found.folder == other
    with pytest.raises(TrainingError, match="no run here"):
        counterpart(stored, [tmp_path / "nothing"])
    with pytest.raises(TrainingError, match=r"cannot stand beside .*: both have the fusion hca"):
        counterpart(stored, [run])


def test_a_run_that_differs_in_more_is_shown_only_where_it_is_named(
    small_run: tuple[Path, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(small_run[0], tmp_path / "runs" / "hca")

    def without(record: dict[str, Any]) -> None:
        record["model_settings"].update(fusion="co-attention", dropout=0.25)
        record["recipe"]["learning_rate"] = 0.5

    other = copied(run, tmp_path / "runs" / "plain", without)
    whole: list[Path] = []
    monkeypatch.setattr(spaces, "read_run", lambda path: whole.append(path) or read_run(path))
    assert counterpart(read_run(run), []) is None
    assert whole == []  # Its weights are not read to find that out.
    assert counterpart(read_run(run), [other]) is not None
    mine, theirs = (read_run(path).results[0].record for path in (run, other))
    assert [line.partition(":")[0] for line in spaces.unlike(mine, theirs)] == [
        "model_settings.dropout", "recipe.learning_rate"
    ]  # fmt: skip
    said = spaces._other(read_run(run), read_run(other), True)
    assert said is not None and "differs in more than that" in said and "recipe.learning_rate: 0.001 → 0.5" in said


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize(("name", "parameter"), [("svm", "C"), ("ridge", "alpha")])
def test_a_model_in_closed_form_has_a_page_of_its_own_words(
    small_run: tuple[Path, Cache], tmp_path: Path, name: str, parameter: str
) -> None:
    cross_validate(small_run[1], TrainOptions(name, "random-tiny", threads=1), run=tmp_path / name, device="cpu")
    run = read_run(tmp_path / name)
    written = write_page(tmp_path / name, small_run[1])
    assert "statistics of its inputs" in written.left_out[0] and len(written.left_out) == 1
    assert not [path for path in written.figures if "curves" in path.name]
    text = " ".join(Read(written.path.read_text()).text.split())
    assert f"fitted once for each {parameter} of " in text and "no learning curve" in text
    assert f"chooses its {parameter} on another" in text and "epoch." not in text.partition("Protocol and caveats")[2]
    assert "log-probabilities" not in text and "the mean and the standard deviation of all its frames" in text
    assert "fitted numbers" in text and "trainable parameters" not in text
    folds = pd.read_csv(tmp_path / name / "tables" / "folds.csv")
    chosen = [result.record["chosen"][parameter] for result in run.results]
    assert folds[parameter].tolist()[:3] == chosen and "epoch" not in folds
    assert f"{parameter} of each fold{', '.join(f'{value:g}' for value in chosen)}" in text
    shown = CliRunner().invoke(mfhca, ["report", str(tmp_path / name), "--no-page"]).output
    assert parameter in shown and "epoch" not in shown


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("protocol", ["strict-peeked", "session-peeked"])
def test_a_peeked_run_says_that_its_curves_show_the_test_set(
    small_run: tuple[Path, Cache], tmp_path: Path, protocol: str
) -> None:
    peeked = {"optimistic": True, "protocol": protocol, "caveats": [OPTIMISTIC_NOTE]}
    run = copied(small_run[0], tmp_path / "run", lambda record: record.update(peeked))
    text = " ".join(Read(write_page(run).path.read_text()).text.split())
    assert f"Protocol {protocol}: each fold tests on one" in text and "but chooses its epoch on the test" in text
    assert "these curves show the test set" in text
    plain = copied(small_run[0], tmp_path / "plain")
    assert "these curves show the test set" not in Read(write_page(plain).path.read_text()).text


def test_classes_may_be_called_as_columns_are(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    names = {"angry": "utterances", "happy": "WA", "neutral": "fold", "sad": "wa"}
    run = copied(small_run[0], tmp_path / "run", lambda record: record.update(classes=list(names.values())))
    for path in run.glob("fold*/predictions.csv"):
        table = pd.read_csv(path, dtype=str).replace({"label": names, "prediction": names})
        table.rename(columns={f"p_{old}": f"p_{new}" for old, new in names.items()}).to_csv(path, index=False)
    plain, table = (speakers_table(summarise(folder), "") for folder in (small_run[0], run))
    assert table.rows == plain.rows
    recalls = ["recall of utterances", "recall of WA", "recall of fold", "wa"]
    assert [heading for heading, _ in table.columns] == ["speaker", "fold", "utterances", "WA", "UA", *recalls]
    assert [row[1] for row in table.rows] == [1, 2, 3]


def test_a_run_of_its_usual_name_needs_no_name(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run
    # The second, trained with its changes in another order than the recipe and the model have them.
    for changes in (OPTIONS.changes, (("hidden", 16), ("batch", 16), ("channels", (4, 8)))):
        options = replace(OPTIONS, changes=changes, epochs=2)
        roles = {"spectrogram": "spectrogram", "encoder": "random-tiny"}
        folder = copied(run, tmp_path / run_name(cache, options, roles))
        training = commands(read_run(folder), cache)[2]
        assert "--name" not in training
        context = train.make_context("train", training.split()[2:])
        again = replace(options, changes=parse_changes(context.params["changes"], "mfhca"))
        assert run_name(cache, again, roles) == folder.name
    folds = {"name": "my folds.json", "shape": "x", "sha256": "0"}
    imported = replace(OPTIONS, folds="my folds.json")
    folder = copied(
        run,
        tmp_path / run_name(cache, imported, roles),
        lambda record: record.update(folds_from=folds, protocol="imported"),
    )
    training = commands(read_run(folder), cache)[2]
    assert "--folds 'my folds.json'" in training and "--name" not in training


def test_the_commands_repeat_the_run(small_run: tuple[Path, Cache]) -> None:
    run, cache = small_run
    manifest, extraction, training, report = commands(read_run(run), cache)
    assert manifest == "mfhca manifest iemocap CORPUS_FOLDER"
    assert extraction == "mfhca extract --encoder random-tiny"
    assert report == "mfhca report runs/trial"
    context = train.make_context("train", training.split()[2:])
    assert (context.params["preset"], context.params["name"], context.params["threads"]) == ("quick", "trial", 1)
    assert (context.params["features"], context.params["epochs"]) == ("spectrogram+random-tiny", 2)
    assert set(context.params["changes"]) == {"channels=4,8", "hidden=16", "batch=16"}
    assert "features spectrogram, random-tiny" in commands(read_run(run), None)[1]


@pytest.mark.usefixtures("no_files")
def test_report_writes_the_page(small_run: tuple[Path, Cache], tmp_path: Path) -> None:
    run, cache = small_run
    mine = copied(run, tmp_path / "runs" / "trial")

    def call(*words: str) -> str:
        result = CliRunner().invoke(mfhca, ["report", str(mine), *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(call("--no-page", "--json"))["corpus"] == "iemocap"
    assert not (mine / "report.html").exists()
    shown = call()
    assert "report.html" in shown and "is not at hand" in shown
    assert json.loads(call("--json", "--cache", str(cache.path), "--fold", "2"))["missing_folds"] == []
    assert "fold 2 (2M), the one that was asked for" in " ".join(Read((mine / "report.html").read_text()).text.split())
    # A cache that is found, and cannot be read, takes nothing from the page but what needs it.
    shutil.copytree(cache.path, tmp_path / "cache" / "small")
    (tmp_path / "cache" / "small" / "random-tiny" / "feature.json").write_text("{")
    shown = " ".join(call().split())
    assert "the cache cannot be read" in shown and "feature.json" in shown
    assert "the cache cannot be read" in Read((mine / "report.html").read_text()).text
    result = CliRunner().invoke(mfhca, ["report", str(mine), "--cache", str(tmp_path / "cache" / "small")])
    assert result.exit_code == 1 and "feature.json" in result.output
    result = CliRunner().invoke(mfhca, ["report", str(mine), "--fold", "9"])
    assert result.exit_code == 1 and "fold 9 is not trained" in result.output
