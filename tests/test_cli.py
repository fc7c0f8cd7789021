from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mfhca_cache.cli.app import COMMANDS, mfhca
from mfhca_cache.corpora.synthetic import write_corpus

from .conftest import small_corpus, tone, write_wav


def run(*words: object, expect: int = 0) -> Result:
    """Run a command in this process; a traceback is never an answer."""
    result = CliRunner().invoke(mfhca, [str(word) for word in words])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == expect, result.output
    return result


def test_every_command_has_a_help_with_an_example() -> None:
    for name in COMMANDS:
        text = run(name, "--help").output
        assert "Example:" in text, name
        assert f"mfhca {name}" in text.split("Example:")[1], name
        for option in ("--quiet", "--json"):
            assert option in text, name


def test_the_group_lists_each_command_with_its_own_first_line() -> None:
    assert "Example" in run("--help").output
    context = click.Context(mfhca)
    for name, short in COMMANDS.items():
        command = mfhca.get_command(context, name)
        assert command is not None and command.help is not None
        assert " ".join(command.help.split("\n\n")[0].split()) == short


def test_help_loads_no_torch() -> None:
    code = "import sys; from mfhca_cache.cli.app import mfhca; mfhca(['--help'], standalone_mode=False); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated corpus in IEMOCAP's layout."""
    root = tmp_path_factory.mktemp("synthetic") / "corpus"
    write_corpus(root, utterances_per_speaker=4)
    return root


@pytest.fixture(scope="module")
def walked(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the usual path was walked by the commands: manifest, extract, one fold."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("manifest", "synthetic", synthetic)
        run("extract", "--encoder", "random-tiny", "--device", "cpu")
        run("train", "--features", "encoder", "--preset", "frozen", "--epochs", "2", "--fold", "2F", "--name", "trial")
    return folder


@pytest.fixture
def here(walked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(walked)
    return walked


def test_jobs_are_a_number_or_found(here: Path) -> None:
    settings = ["--features", "encoder", "--preset", "frozen", "--epochs", "1", "--fold", "1M"]
    assert "--jobs 'two': expected auto" in run("train", *settings, "--jobs", "two", expect=2).output
    run("train", *settings, "--jobs", "2", "--precision", "bf16", "--threads", "1", "--name", "bf16")
    record = json.loads((here / "runs" / "bf16" / "fold01" / "result.json").read_text())
    assert (record["precision"], record["threads"]) == ("bf16", 1)


def test_the_usual_path_finds_its_files_by_itself(here: Path) -> None:
    assert (here / "manifests" / "synthetic.csv").exists()
    assert (here / "cache" / "synthetic" / "random-tiny" / "session5-0000.json").exists()
    assert (here / "runs" / "trial" / "fold04" / "result.json").exists()


def test_manifest_shows_what_was_found(synthetic: Path, tmp_path: Path) -> None:
    text = run("manifest", "synthetic", synthetic, "-o", tmp_path / "m.csv").output
    assert "session5" in text and "angry" in text
    assert "10 speakers" in text
    value = json.loads(run("manifest", "synthetic", synthetic, "-o", tmp_path / "m.csv", "--json").output)
    assert value["counts"]["all"]["all"] == 40
    assert value["rejected"] == []


def test_manifest_lists_every_rejected_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "w" / "03a01Fa.wav", tone(0.5))
    (tmp_path / "w" / "03a02Wa.wav").write_bytes(b"")
    (tmp_path / "w" / "notes.wav").write_bytes(b"x")
    text = run("manifest", "emodb", tmp_path / "w", "-o", tmp_path / "m.csv").output
    assert "2 rejected" in text
    assert "03a02Wa.wav: empty" in text and "notes.wav" in text


def test_a_wrong_corpus_says_which_one_it_looks_like(synthetic: Path, tmp_path: Path) -> None:
    result = run("manifest", "ravdess", synthetic, "-o", tmp_path / "m.csv", expect=1)
    assert result.output.startswith("Error:") and "synthetic" in result.output
    assert "Traceback" not in result.output
    run("manifest", "timit", synthetic, expect=2)


def test_extract_again_says_that_there_is_nothing_to_do(here: Path) -> None:
    assert "Nothing to do" in run("extract", "--encoder", "random-tiny").output
    value = json.loads(run("extract", "--encoder", "random-tiny", "--json").output)
    assert (value["new_shards"], value["ok"], value["utterances"]) == (0, 40, 40)
    assert run("extract", "--encoder", "random-tiny", "--quiet").output == ""


def test_extract_marks_random_weights(here: Path) -> None:
    assert "random-tiny has random weights" in run("extract", "--encoder", "random-tiny").output


def test_extract_with_an_unknown_split_lists_the_valid_ones(here: Path) -> None:
    text = run("extract", "--encoder", "random-tiny", "--split", "session7", expect=1).output
    assert "session1, session2, session3, session4, session5, all" in text


def test_extract_takes_a_corpus_that_has_moved(walked: Path, synthetic: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(synthetic, tmp_path / "moved")
    csv = tmp_path / "m.csv"
    shutil.copy(walked / "manifests" / "synthetic.csv", csv)
    command = ("extract", "--manifest", csv, "--cache", tmp_path / "c", "--encoder", "none", "--split", "session1")
    assert "name the folder with --root" in run(*command, expect=1).output
    assert "8 utterances + 0 rejected = 8" in run(*command, "--root", moved).output


def test_more_than_one_percent_rejected_ends_with_status_1_after_all_is_done(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    from mfhca_cache.manifest import write_manifest

    write_manifest(manifest, tmp_path / "m.csv")
    (tmp_path / "w" / "Ses01_F001.wav").unlink()
    result = run("extract", "--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c", "--encoder", "none", expect=1)
    assert "7 utterances + 1 rejected = 8" in result.output
    assert "Ses01_F001: missing" in result.output
    assert "12.5% of the utterances were rejected" in result.output
    assert (tmp_path / "c" / "spectrogram" / "session1-0000.json").exists()


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    rows = ["path,speaker,label"]
    for name, label in (("a[b]", "[/sad]"), ("c", "[red]")):
        write_wav(tmp_path / f"{name}.wav", tone(0.3))
        rows.append(f"{name}.wav,s1,{label}")
    (tmp_path / "t.csv").write_text("\n".join([*rows, "[gone].wav,s2,x", ""]))
    text = run("manifest", "table", tmp_path / "t.csv", "-o", tmp_path / "m.csv").output
    assert "[/sad] 1" in text and "[red] 1" in text and "[gone].wav" in text


def test_bad_values_end_in_a_message(tmp_path: Path, synthetic: Path, here: Path) -> None:
    run("manifest", "synthetic", synthetic, "-o", tmp_path / "m.json", expect=2)
    run("extract", "--encoder", "random-tiny", "--device", "cuda:²", expect=2)
    run("train", "--device", "cpu:", expect=2)
    (tmp_path / "file").write_text("")
    assert (
        "could not be made" in run("manifest", "synthetic", synthetic, "-o", tmp_path / "file/m.csv", expect=1).output
    )
    for words in (
        ("extract", "--encoder", "~nobody-here/x"),
        ("train", "--fold", "²"),
        ("train", "--classes", tmp_path / "gone.json"),
        ("train", "--name", "n" * 300),
        ("report", tmp_path / ("n" * 300)),
    ):
        assert "Error: " in run(*words, expect=1).output


def test_the_demo_touches_no_folder_of_others(tmp_path: Path) -> None:
    precious = tmp_path / "corpus" / "precious.wav"
    write_wav(precious, tone(0.1))
    assert "choose another --folder" in run("demo", "--folder", tmp_path, expect=2).output
    assert precious.exists()


def test_without_a_manifest_the_usage_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "mfhca manifest CORPUS ROOT" in run("extract", expect=2).output
    assert "mfhca extract" in run("train", expect=2).output


def test_train_goes_on_and_report_repeats_it(here: Path) -> None:
    words = ("--features", "encoder", "--preset", "frozen", "--epochs", "2", "--name", "trial")
    text = run("train", *words, "--fold", "4").output
    assert "4 (2F)" in text and "UA" in text
    value = json.loads(run("report", "runs/trial", "--no-page", "--json").output)
    assert [fold["name"] for fold in value["folds"]] == ["2F"]
    assert len(value["missing_folds"]) == 9
    assert value["paper"] is None
    shown = run("report", "runs/trial").output
    assert "strict" in shown and "random weights" in shown and "Not trained yet: 1M" in shown
    assert (here / "runs" / "trial" / "report.csv").exists()


def test_test_selected_is_optimistic_in_every_output(here: Path) -> None:
    words = (
        "--features",
        "encoder",
        "--preset",
        "frozen",
        "--epochs",
        "1",
        "--protocol",
        "test-selected",
        "--fold",
        "1",
    )
    name = "synthetic-mfhca-random-tiny-test-selected-frozen"
    assert "optimistic" in run("train", *words).output
    assert "optimistic" in run("report", here / "runs" / name, "--no-page").output
    assert "optimistic" in run("report", here / "runs" / name, "--no-page", "--json").output
    assert "optimistic" in run("train", *words, "--json").output


@pytest.mark.usefixtures("here")
def test_train_refuses_what_does_not_exist() -> None:
    assert "fold '11' is not known" in run("train", "--fold", "11", expect=1).output
    assert "expected spectrogram+encoder" in run("train", "--features", "mfcc", expect=1).output
    run("train", "--name", "../escape", expect=2)
    assert "no run here" in run("report", "runs/nothing", expect=1).output


def test_sigterm_ends_clearly_and_leaves_no_half_file(synthetic: Path, walked: Path, tmp_path: Path) -> None:
    csv = walked / "manifests" / "synthetic.csv"
    words = ["extract", "--manifest", csv, "--cache", tmp_path / "c", "--encoder", "random-tiny"]
    code = "from mfhca_cache.cli import main; import sys; sys.argv[0] = 'mfhca'; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "c" / "spectrogram").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("extraction was done before the signal came")
    assert process.returncode == 143
    assert "the same command goes on from there" in err
    assert not list((tmp_path / "c").rglob("*.tmp"))
    assert synthetic.exists()


def test_ctrl_c_while_arguments_are_read_has_its_usual_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "make_context", interrupted)
    result = CliRunner().invoke(mfhca, ["train"])
    assert result.exit_code == 130 and "Stopped before anything was done" in result.output
