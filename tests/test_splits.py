"""Folds from elsewhere: the shapes of EmoBox, s3prl and SpeechBrain, matched, checked for leaks, and written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.corpora import read_corpus
from mfhca_cache.errors import FoldError
from mfhca_cache.folds import IMPORTED, PROTOCOLS, Fold, make_folds
from mfhca_cache.manifest import COLUMNS, Manifest, make_manifest, select_rows, write_manifest
from mfhca_cache.splits.choose import folds_of
from mfhca_cache.splits.export import export_folds
from mfhca_cache.splits.leaks import find_leaks
from mfhca_cache.splits.match import make_fold, match_folds
from mfhca_cache.splits.shapes import SHAPES, FoldFile, FoldParts, Mention, read_fold_file

from .test_cli import run
from .trees import OTHER_THAN_PREFIX, wav_bytes, write_file, write_published


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows of a manifest; each gives utterance_id and what differs from the defaults."""
    whole = []
    for row in rows:
        name = str(row["utterance_id"])
        defaults: dict[str, object] = dict.fromkeys(COLUMNS, "")
        defaults |= {"corpus": "iemocap", "path": f"wav/{name}.wav", "speaker": "1F", "label": "neu", "seconds": 1.5}
        defaults |= {"sample_rate": 16_000, "channels": 1, "sha256": hashlib.sha256(name.encode()).hexdigest()}
        whole.append({**defaults, **row})
    return make_manifest("iemocap", None, pd.DataFrame(whole)).utterances


def speakers(count: int = 4, each: int = 5) -> pd.DataFrame:
    """``each`` utterances of speakers a, b, …, whose ids begin with the speaker."""
    names = [(speaker, number) for speaker in "abcdefgh"[:count] for number in range(each)]
    return table([{"utterance_id": f"{s}{n}", "speaker": s, "text": f"Sentence {n}"} for s, n in names])


def parts_of(fold: Fold) -> tuple[tuple[str, ...], ...]:
    return fold.train, fold.validation, fold.test


EMOBOX_ROW = {"dataset": "iemocap", "type": "raw", "sample_rate": 16000, "num_frame": 1.0, "task": "category"}


def emobox(folder: Path, parts: dict[str, list[str]], number: int = 1, suffix: str = "jsonl") -> None:
    """A fold as EmoBox publishes it: the corpus before the id, its wav under downloads/."""
    for part, names in parts.items():
        rows = {
            f"iemocap-{name}": {"wav": f"downloads/iemocap/wav/{name}.wav", "length": 1.5, "emo": "neu", "channel": 1}
            for name in names
        }
        lines = "".join(json.dumps({"key": key, **EMOBOX_ROW, **row}) + "\n" for key, row in rows.items())
        text = lines if suffix == "jsonl" else json.dumps({k: v | {"dataset": "iemocap"} for k, v in rows.items()})
        write_file(folder / f"fold_{number}" / f"iemocap_{part}_fold_{number}.{suffix}", text)


def s3prl(folder: Path, parts: dict[str, list[str]], number: int = 1) -> None:
    """A fold as s3prl publishes it: paths inside the corpus, and the dialogue's prefix as the speaker."""
    for part, names in parts.items():
        rows = [{"path": f"wav/{name}.wav", "label": "neu", "speaker": "Ses01F"} for name in names]
        text = json.dumps({"labels": {"neu": 0}, "meta_data": rows})
        write_file(folder / f"Session{number}" / f"{part}_meta_data.json", text)


def speechbrain(folder: Path, parts: dict[str, list[str]]) -> None:
    """A fold as SpeechBrain's IEMOCAP recipe prepares it: absolute paths of another computer."""
    for part, names in parts.items():
        rows = {name: {"wav": f"/data/iemocap/wav/{name}.wav", "length": 1.5, "emo": "neu"} for name in names}
        write_file(folder / f"{part}.json", json.dumps(rows, indent=2))


TWO = {"train": ["a0", "a1", "b0"], "test": ["c0", "c1"]}
THREE = {**TWO, "valid": ["d0"]}


def test_emobox_is_read_with_and_without_validation(tmp_path: Path) -> None:
    emobox(tmp_path, THREE, 1)
    emobox(tmp_path, TWO, 2)
    emobox(tmp_path, TWO, 10)
    write_file(tmp_path / "label_map.json", '{"neu": "Neutral"}')
    write_file(tmp_path / "iemocap.jsonl", "")
    found = match_folds(speakers(), read_fold_file(tmp_path))
    assert found.file.shape == "emobox"
    assert [fold.name for fold in found.folds] == ["fold_1", "fold_2", "fold_10"]
    assert parts_of(found.folds[0]) == (("a0", "a1", "b0"), ("d0",), ("c0", "c1"))
    assert found.folds[1].validation == ()
    assert found.unknown == ()
    assert len(found.unnamed) == 20 - 6


def test_emoboxs_json_is_read_where_there_is_no_jsonl_and_compared_where_there_is(tmp_path: Path) -> None:
    emobox(tmp_path, TWO, suffix="json")
    alone = match_folds(speakers(), read_fold_file(tmp_path))
    emobox(tmp_path, TWO)
    both = read_fold_file(tmp_path)
    assert parts_of(match_folds(speakers(), both).folds[0]) == parts_of(alone.folds[0])
    assert both.notes == ()
    emobox(tmp_path, {"test": ["c0", "c1", "c2"]}, suffix="json")
    other = read_fold_file(tmp_path)
    assert "iemocap_test_fold_1.jsonl is used; iemocap_test_fold_1.json has other utterances" in other.notes[0]
    assert match_folds(speakers(), other).folds[0].test == ("c0", "c1")


def test_s3prl_is_read_by_path(tmp_path: Path) -> None:
    s3prl(tmp_path, TWO, 1)
    s3prl(tmp_path, TWO, 2)
    found = match_folds(speakers(), read_fold_file(tmp_path))
    assert found.file.shape == "s3prl"
    assert [fold.name for fold in found.folds] == ["Session1", "Session2"]
    assert parts_of(found.folds[1]) == (("a0", "a1", "b0"), (), ("c0", "c1"))
    assert found.folds[0].test_speakers == ("c",), "the manifest's speaker, not the file's"
    one = match_folds(speakers(), read_fold_file(tmp_path / "Session2"))
    assert [fold.name for fold in one.folds] == ["Session2"]


def test_speechbrain_is_read_as_one_fold_or_as_a_folder_of_folds(tmp_path: Path) -> None:
    speechbrain(tmp_path / "spk1", THREE)
    speechbrain(tmp_path / "spk2", THREE)
    one = match_folds(speakers(), read_fold_file(tmp_path / "spk1"))
    assert one.file.shape == "speechbrain"
    assert parts_of(one.folds[0]) == (("a0", "a1", "b0"), ("d0",), ("c0", "c1"))
    assert [fold.name for fold in match_folds(speakers(), read_fold_file(tmp_path)).folds] == ["spk1", "spk2"]


def test_our_csv_takes_the_usual_words_for_parts(tmp_path: Path) -> None:
    lines = [
        "utterance_id,part,fold",
        "a0,training,x",
        "b0,Train,x",
        "c0,test,x",
        "d0,dev,x",
        "a1,train,y",
        "b1,test,y",
    ]
    found = match_folds(speakers(), read_fold_file(write_file(tmp_path / "f.csv", "\n".join([*lines, ""]))))
    assert [(fold.name, *parts_of(fold)) for fold in found.folds] == [
        ("x", ("a0", "b0"), ("d0",), ("c0",)),
        ("y", ("a1",), (), ("b1",)),
    ]
    assert all(fold.protocol == IMPORTED for fold in found.folds)


def test_our_json_takes_one_fold_or_several(tmp_path: Path) -> None:
    several = {"folds": [{"name": "x", **TWO}, {"name": "y", "train": ["a0"], "test": ["b0"], "dev": ["c0"]}]}
    for name, value in (("many.json", several), ("one.json", THREE)):
        write_file(tmp_path / name, json.dumps(value))
    found = match_folds(speakers(), read_fold_file(tmp_path / "many.json"))
    assert [(fold.name, fold.validation) for fold in found.folds] == [("x", ()), ("y", ("c0",))]
    assert match_folds(speakers(), read_fold_file(tmp_path / "one.json")).folds[0].name == "one"


def test_names_are_found_by_id_path_and_file_name() -> None:
    rows = table(
        [
            {"utterance_id": "one", "path": "x/1.wav"},
            {"utterance_id": "two", "path": "y/1.wav"},
            {"utterance_id": "three", "path": "z/3.flac"},
            {"utterance_id": "a.b", "path": "dots.wav"},
        ]
    )
    for name, expected in (
        ("one", "one"),
        ("/elsewhere/y/1.wav", "two"),
        ("C:\\corpus\\x\\1.wav", "one"),
        ("1.wav", None),
        ("other/1.wav", None),
        ("3.wav", "three"),
        ("3", "three"),
        ("other/3.wav", None),
        ("other/three.wav", "three"),
        ("a.b", "a.b"),
        ("a", None),
        ("iemocap-one", None),
    ):
        found = match_folds(rows, _file([name, "three", "a.b"], ["two"]))
        assert (name in found.unknown) == (expected is None), name
        assert set(found.folds[0].train) == {"three", "a.b"} | ({expected} if expected else set()), name


def _file(train: list[str], test: list[str]) -> FoldFile:
    fold = FoldParts("x", tuple(map(Mention, train)), (), tuple(map(Mention, test)))
    return FoldFile(Path("f"), "mfhca", "0" * 64, (fold,))


def test_what_does_not_match_is_reported(tmp_path: Path) -> None:
    parts = {"train": ["a0", "a0", "nobody"], "test": ["c0", "gone"]}
    found = match_folds(speakers(), read_fold_file(write_file(tmp_path / "f.json", json.dumps(parts))))
    assert found.unknown == ("nobody", "gone")
    assert (found.mentions, found.repeated) == (4, 1)
    assert "a0" not in found.unnamed and "a1" in found.unnamed
    with pytest.raises(FoldError, match=r"none of its names for test is .*; got such as 'zz'.*same corpus"):
        match_folds(speakers(), read_fold_file(write_file(tmp_path / "g.json", '{"train": ["a0"], "test": ["zz"]}')))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "no such file or folder"),
        ("f.txt", "a", "expected a CSV with the columns"),
        ("f.jsonl", '{"key": "a"}\n', "holds no folds; expected"),
        ("f.csv", "fold,utterance_id\nx,a\n", "part missing"),
        ("f.csv", "fold,utterance_id,part\nx,a,exam\n", "row 2 has fold 'x', utterance_id 'a', part 'exam'"),
        ("f.csv", "fold,utterance_id,part\n,a,test\n", "row 2"),
        ("f.csv", "fold,utterance_id,part\nx,a,train\n", "fold 'x' has no utterances for test"),
        ("f.csv", "fold,utterance_id,part\n", "holds no folds"),
        ("f.csv", "", "no header"),
        ("f.json", "{", "not readable as JSON"),
        ("f.json", "[" * 100_000, "not readable as JSON"),
        ("f.json", "[]", "holds no folds"),
        ("f.json", '{"folds": [1]}', "expected every fold to be an object"),
        ("f.json", '{"folds": []}', "holds no folds"),
        ("f.json", '{"train": "a", "test": ["b"]}', "no list of utterances for train"),
        ("f.json", '{"train": [{"length": 1}], "test": ["b"]}', "utterance 1 has neither an id nor a path"),
        ("f.json", '{"folds": [{"name": "x", "train": ["a"], "test": ["b"]}, {"name": "x"}]}', "'x' is there twice"),
        ("f.json", '{"train": ["\\ud800"], "test": ["b"]}', "no text that UTF-8 can spell"),
        ("f.json", '{"folds": [{"name": "\\udfff", "train": ["a"], "test": ["b"]}]}', "no text that UTF-8 can spell"),
        ("train_meta_data.json", '{"meta_data": []}', "one part of a fold: name its folder"),
    ],
)
def test_other_files_are_refused_with_what_was_expected(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        write_file(tmp_path / name, content)
    with pytest.raises(FoldError, match=message):
        read_fold_file(tmp_path / name)


def test_folders_without_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FoldError, match="holds no folds"):
        read_fold_file(tmp_path)
    emobox(tmp_path, {"train": ["a0"]})
    with pytest.raises(FoldError, match="fold 'fold_1' has no utterances for test"):
        read_fold_file(tmp_path)
    write_file(tmp_path / "fold_1" / "iemocap_test_fold_1.jsonl", '{"key": "a"}\n\nnot json\n')
    with pytest.raises(FoldError, match=r"line 3: not readable as JSON"):
        read_fold_file(tmp_path)


_JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["train", "test"]),
    lambda x: st.lists(x) | st.dictionaries(st.text() | st.sampled_from(["train", "test", "folds", "name", "key"]), x),
)


@given(_JSON)
def test_any_json_is_folds_or_an_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.mktemp("json")
    for name in ("f.json", "fold_1/x_train_fold_1.json", "fold_1/x_test_fold_1.json"):
        write_file(folder / name, json.dumps(value))
    for path in (folder / "f.json", folder):
        try:
            match_folds(speakers(), read_fold_file(path))
        except FoldError:
            continue


def test_a_folders_sha256_changes_with_what_was_read_and_only_with_it(tmp_path: Path) -> None:
    emobox(tmp_path / "one", TWO)
    before = read_fold_file(tmp_path / "one").sha256
    (tmp_path / "one").rename(tmp_path / "moved")
    write_file(tmp_path / "moved" / "README.md", "notes")
    assert read_fold_file(tmp_path / "moved").sha256 == before
    emobox(tmp_path / "moved", {"train": ["a0", "a1"]})
    assert read_fold_file(tmp_path / "moved").sha256 != before


# Writing, and reading again


_NAMES = st.text(min_size=1, max_size=6).filter(lambda t: t.strip() != "" and "\x00" not in t and t.isprintable())


@st.composite
def cut(draw: st.DrawFn) -> tuple[pd.DataFrame, list[Fold]]:
    """A table of utterances with any ids, and folds of any cut."""
    ids = draw(st.lists(_NAMES, min_size=3, max_size=12, unique=True))
    rows = table([{"utterance_id": name, "path": f"wav/{n}.wav", "speaker": f"s{n % 3}"} for n, name in enumerate(ids)])
    ids = list(rows["utterance_id"])
    folds = []
    for number, name in enumerate(draw(st.lists(_NAMES, min_size=1, max_size=3, unique=True)), start=1):
        order = draw(st.permutations(ids))
        first, second = sorted(draw(st.lists(st.integers(1, len(ids) - 1), min_size=2, max_size=2, unique=True)))
        test, validation = order[:first], order[first:second] if draw(st.booleans()) else []
        folds.append(make_fold(rows, number, name, order[second:], validation, test))
    return rows.assign(**{"class": rows["label"]}), folds


@given(cut(), st.sampled_from([*SHAPES, "json"]))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[pd.DataFrame, list[Fold]], shape: str
) -> None:
    rows, folds = made
    path = tmp_path_factory.mktemp("out") / {"mfhca": "f.csv", "json": "f.json"}.get(shape, "f")
    export_folds(path, folds, rows, "mfhca" if shape == "json" else shape)
    again = match_folds(rows, read_fold_file(path))
    assert [parts_of(fold) for fold in again.folds] == [parts_of(fold) for fold in folds]
    assert again.unknown == () and again.repeated == 0
    assert again.file.shape == ("mfhca" if shape == "json" else shape)
    if again.file.shape == "mfhca":
        assert again.folds == folds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_our_protocols_survive_every_shape(tmp_path: Path, shape: str, protocol: str) -> None:
    rows = speakers()
    folds = make_folds(rows, protocol)
    path = tmp_path / ("f.csv" if shape == "mfhca" else "f")
    export_folds(path, folds, rows.assign(**{"class": rows["label"]}), shape)
    again = match_folds(rows, read_fold_file(path))
    assert [parts_of(fold) for fold in again.folds] == [parts_of(fold) for fold in folds]
    assert [fold.overlaps for fold in again.folds] == [fold.overlaps for fold in folds]
    assert [fold.optimistic for fold in again.folds] == [protocol not in ("strict", "session")] * len(folds)


def test_what_others_read_is_written_as_they_have_it(tmp_path: Path) -> None:
    rows = speakers().assign(**{"class": "neutral"})
    folds = [make_fold(rows, 1, "x", ["a0"], ["b0"], ["c0"])]
    export_folds(tmp_path / "e", folds, rows, "emobox")
    line = json.loads((tmp_path / "e/fold_1/iemocap_valid_fold_1.jsonl").read_text())
    assert line == {
        "key": "iemocap-b0", "dataset": "iemocap", "wav": "downloads/iemocap/wav/b0.wav", "type": "raw",
        "sample_rate": 16000, "num_frame": 24000.0, "task": "category", "length": 1.5, "emo": "neutral", "channel": 1,
    }  # fmt: skip
    assert json.loads((tmp_path / "e/label_map.json").read_text()) == {"neutral": "neutral"}
    export_folds(tmp_path / "s", folds, rows, "s3prl")
    assert json.loads((tmp_path / "s/Session1/test_meta_data.json").read_text()) == {
        "labels": {"neutral": 0},
        "meta_data": [{"path": "wav/c0.wav", "label": "neutral", "speaker": "c"}],
    }
    export_folds(tmp_path / "b", folds, rows, "speechbrain")
    assert json.loads((tmp_path / "b/fold_1/train.json").read_text()) == {
        "a0": {"wav": "{data_root}/wav/a0.wav", "length": 1.5, "emo": "neutral"}
    }


def test_nothing_of_others_is_written_over(tmp_path: Path) -> None:
    rows = speakers().assign(**{"class": "neutral"})
    folds = [make_fold(rows, 1, "x", ["a0"], ["b0"], ["c0"])]
    write_file(tmp_path / "mine" / "train.json", "{}")
    with pytest.raises(FoldError, match="new or an empty folder"):
        export_folds(tmp_path / "mine", folds, rows, "speechbrain")
    with pytest.raises(FoldError, match=r"a name that ends in \.csv or \.json"):
        export_folds(tmp_path / "mine", folds, rows)
    with pytest.raises(FoldError, match="is a folder of files"):
        export_folds(tmp_path / "f.csv", folds, rows, "emobox")


# Leaks


def test_a_sound_fold_has_no_leak() -> None:
    report = find_leaks(speakers(), make_folds(speakers(), "strict"))
    assert not report.leaky
    assert report.verdict()[0].startswith("No leak: training has no test speaker")
    assert report.total("with_training", "text") == 20
    assert (report.tested, report.retested, report.by_prefix) == (20, 0, 0)


def test_each_kind_of_leak_is_counted_in_utterances() -> None:
    rows = speakers()
    rows.loc[rows["utterance_id"] == "d4", "sha256"] = rows.loc[rows["utterance_id"] == "a0", "sha256"].iloc[0]
    rows.loc[rows["utterance_id"].isin(["a1", "d3"]), "recording"] = "evening"
    rows.loc[rows["utterance_id"] == "d2", "text"] = "sentence, 1!"
    fold = make_fold(rows, 1, "x", ["a0", "a1", "c0", "d0"], ["c1", "d3"], ["c0", "d2", "d3", "d4"])
    (found,) = find_leaks(rows, [fold]).folds
    shared = found.with_training
    assert (shared.same, shared.audio, shared.speaker, shared.recording) == (1, 1, 4, 1)
    assert shared.text == 2, "c0 itself, and d2, whose words differ from a1's in case and punctuation alone"
    assert shared.speakers == ("c", "d")
    assert found.with_validation.same == 1
    assert found.validation_with_training.speaker == 2
    assert len(found.leaks) == 3
    assert find_leaks(rows, [fold]).leaky


def test_validation_that_knows_the_test_speaker_is_optimistic_but_no_leak() -> None:
    report = find_leaks(speakers(), make_folds(speakers(), "test-selected"))
    assert not report.leaky
    assert "Optimistic: 20 of 20 test utterances are by speakers of the validation set" in report.verdict()[1]


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A whole corpus of IEMOCAP's counts, each utterance with audio of its own."""
    root = tmp_path_factory.mktemp("published") / "IEMOCAP_full_release"
    write_published(root)
    found = read_corpus("iemocap", root)
    rows = found.utterances
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in rows["utterance_id"]]
    return replace(found, utterances=rows.assign(sha256=digests))


def by_prefix(manifest: Manifest, path: Path) -> Path:
    """Ten folds of the four classes, cut by the dialogue's prefix, which several toolkits take for the speaker."""
    ids = list(select_rows(manifest.utterances, "four-class", "iemocap")["utterance_id"])
    lines = ["fold,utterance_id,part"]
    for prefix in sorted({name[:6] for name in ids}):
        lines += [f"{prefix},{name},{'test' if name[:6] == prefix else 'train'}" for name in ids]
    return write_file(path, "\n".join([*lines, ""]))


def test_folds_by_the_dialogues_prefix_are_found_out(iemocap: Manifest, tmp_path: Path) -> None:
    chosen = folds_of(iemocap, str(by_prefix(iemocap, tmp_path / "prefix.csv")))
    report = find_leaks(chosen.utterances, chosen.folds)
    assert report.leaky and all(fold.leaky for fold in report.folds)
    assert report.total("with_training", "speaker") == report.tested == 5531
    assert report.by_prefix == OTHER_THAN_PREFIX == 2750
    assert report.total("with_training", "same") == report.total("with_training", "audio") == 0
    assert "2,750 of 5,531 utterances are spoken by the other one" in " ".join(report.verdict())
    assert chosen.matched is not None
    assert len(chosen.matched.unnamed) == len(iemocap.utterances) - 5531


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_our_own_folds_of_iemocap_have_no_leak(iemocap: Manifest, protocol: str) -> None:
    chosen = folds_of(iemocap, protocol)
    report = find_leaks(chosen.utterances, chosen.folds)
    assert not report.leaky and report.by_prefix == 0
    assert report.total("with_training", "script") == 2588, "every script is acted in every session"
    # The other speaker of each dialogue is in training only where the test speaker chooses the epoch.
    assert report.total("with_training", "recording") == (5531 if protocol == "test-selected" else 0)


def test_ravdess_has_two_statements_so_all_words_overlap(tmp_path: Path) -> None:
    for actor in range(1, 5):
        for emotion in ("03", "04", "05"):
            for statement in ("01", "02"):
                name = f"03-01-{emotion}-01-{statement}-01-{actor:02d}"
                write_file(tmp_path / f"Actor_{actor:02d}" / f"{name}.wav", wav_bytes(seed=len(name) * actor))
    manifest = read_corpus("ravdess", tmp_path)
    chosen = folds_of(manifest, "strict")
    report = find_leaks(chosen.utterances, chosen.folds)
    assert report.total("with_training", "text") == report.tested == 24
    assert not report.has_recordings


# The commands


@pytest.fixture
def manifest_csv(tmp_path: Path) -> Path:
    path = tmp_path / "m.csv"
    write_manifest(Manifest("iemocap", None, speakers()), path)
    return path


def test_leak_check_ends_with_status_1_only_where_it_leaks(manifest_csv: Path, tmp_path: Path) -> None:
    assert "No leak" in run("leak-check", manifest_csv, "strict").output
    assert "Optimistic" in run("leak-check", manifest_csv, "test-selected").output
    leaky = write_file(tmp_path / "f.json", json.dumps({"train": ["a0", "b0"], "test": ["a1", "gone"]}))
    text = run("leak-check", manifest_csv, leaky, expect=1).output
    assert "Leak: 1 of 1 test utterances are by speakers who are in training" in text
    assert "3 of 4 names are in the manifest; not there: gone" in text
    assert "17 rows of the manifest are in no fold" in text
    assert run("leak-check", manifest_csv, leaky, "--quiet", expect=1).output == ""
    value = json.loads(run("leak-check", manifest_csv, leaky, "--json", expect=1).output)
    assert value["leaky"] and value["total"]["with_training"]["speaker"] == 1
    assert (value["unknown"], value["source"]["shape"]) == (["gone"], "mfhca")
    assert value["folds"][0]["with_training"]["speakers"] == ["a"]
    assert "expected strict, test-selected, session" in run("leak-check", manifest_csv, "none", expect=1).output


def test_leak_check_finds_the_prefix_out(iemocap: Manifest, tmp_path: Path) -> None:
    write_manifest(iemocap, tmp_path / "m.csv")
    text = run("leak-check", tmp_path / "m.csv", by_prefix(iemocap, tmp_path / "p.csv"), expect=1).output
    assert "Leak: 5,531 of 5,531 test utterances are by speakers who are in training, in 10 of 10 folds." in text
    assert "2,750 of 5,531 utterances are spoken by the other one" in text
    assert "5,531 of 5,531 names are in the manifest" in text


def test_folds_are_shown_and_written(manifest_csv: Path, tmp_path: Path) -> None:
    text = run("folds", manifest_csv, "strict").output
    assert "1 (a)" in text and "4 (d)" in text
    run("folds", manifest_csv, "strict", "-o", tmp_path / "f.csv")
    assert (tmp_path / "f.csv").read_text().splitlines()[:2] == ["fold,utterance_id,part", "a,c0,train"]
    for shape in ("emobox", "s3prl", "speechbrain"):
        assert (
            "Wrote" in run("folds", manifest_csv, tmp_path / "f.csv", "-o", tmp_path / shape, "--format", shape).output
        )
        value = json.loads(run("folds", manifest_csv, tmp_path / shape, "--json").output)
        assert value["source"]["shape"] == shape
        assert [fold["test"] for fold in value["folds"]] == [[f"{s}{n}" for n in range(5)] for s in "abcd"]
    run("folds", manifest_csv, "strict", "--format", "s3prl", expect=2)
    assert "or a CSV with the columns" in run("folds", manifest_csv, tmp_path / "nothing", expect=1).output
