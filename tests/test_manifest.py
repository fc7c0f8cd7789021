from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mfhca_cache.errors import ManifestError
from mfhca_cache.labels import class_map
from mfhca_cache.manifest import (
    COLUMNS,
    Manifest,
    Rejected,
    count_table,
    csv_bytes,
    is_inside,
    is_session,
    make_manifest,
    natural_key,
    read_manifest,
    read_table,
    samples_16k,
    select_rows,
    write_manifest,
)


def row(name: str = "u1", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "corpus": "iemocap", "utterance_id": name, "path": f"a/{name}.wav", "speaker": "1F", "session": "session1",
        "recording": "d1", "label": "neu", "valence": 2.5, "arousal": math.nan, "dominance": 3.0, "text": "Yes.",
        "seconds": 1.5, "sample_rate": 16_000, "channels": 1, "sha256": "0" * 64,
    }  # fmt: skip
    return values | changes


def manifest_of(*rows: dict[str, Any], **more: Any) -> Manifest:
    return make_manifest("iemocap", None, pd.DataFrame(list(rows)), **more)


def test_columns_types_and_order() -> None:
    table = manifest_of(row("b", extra="x"), row("a", extra="y")).utterances
    assert tuple(table.columns) == (*COLUMNS, "extra") and table["utterance_id"].tolist() == ["a", "b"]
    assert table["seconds"].dtype == np.float64 and table["sample_rate"].dtype == np.int64
    assert table["text"].dtype == object and table["extra"].tolist() == ["y", "x"]


# Writing and reading

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = WORDS.filter(lambda text: text.strip() != "")
PLAIN = {
    "utterance_id": "u", "speaker": "NA", "label": "NA", "recording": "", "text": "", "valence": 0.1, "frames": 3,
    "sample_rate": 11_025,
}  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "utterance_id": NAMES,
                "speaker": NAMES,
                "label": NAMES,
                "recording": WORDS,
                "text": WORDS,
                "valence": st.floats(-1e9, 1e9) | st.just(math.nan),
                "frames": st.integers(1, 4_000 * 1200),
                "sample_rate": st.sampled_from([4_000, 11_025, 16_000, 22_050, 44_100, 384_000]),
            }
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one["utterance_id"],
    )
)
@example(rows=[PLAIN | {"utterance_id": '1,"2"\n\'#', "speaker": "#s", "text": 'a,"b"\r\nc\rd # é 語'}])
@example(
    rows=[PLAIN | {"utterance_id": "007", "speaker": "nan", "label": "None", "recording": "null", "text": " 1e5 "}]
)
@example(rows=[PLAIN | {"text": '"'}, PLAIN | {"utterance_id": "\ufeff", "text": "\r"}])
def test_a_manifest_reads_back_exactly(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    made = manifest_of(
        *(row(one["utterance_id"], path="a.wav", seconds=one.pop("frames") / one["sample_rate"]) | one for one in rows)
    )
    path = tmp_path / "m.csv"
    path.write_bytes(csv_bytes(made.utterances))
    again = read_manifest(path)
    pd.testing.assert_frame_equal(again.utterances, made.utterances, check_exact=True)
    assert csv_bytes(again.utterances) == csv_bytes(made.utterances)


def test_the_neighbour_remembers_root_and_rejected(tmp_path: Path) -> None:
    made = manifest_of(row(), rejected=(Rejected("x.wav", "truncated: é"),)).with_root(tmp_path)
    path = tmp_path / "deep" / "m.csv"
    write_manifest(made, path)
    again = read_manifest(path)
    assert again.root == tmp_path and again.rejected == made.rejected and again.corpus == "iemocap"
    assert path.read_bytes().endswith(b"\n") and b"\r" not in path.read_bytes()
    path.with_suffix(".json").unlink()
    alone = read_manifest(path)
    assert alone.root is None and alone.rejected == () and alone.utterances.equals(made.utterances)


@pytest.mark.parametrize("memory", ["", "[]", "{", '{"rejected": [1]}', '{"rejected": [{"path": "x"}]}'])
def test_a_damaged_neighbour(tmp_path: Path, memory: str) -> None:
    write_manifest(manifest_of(row()), tmp_path / "m.csv")
    (tmp_path / "m.json").write_text(memory)
    with pytest.raises(ManifestError, match=r"m.json: damaged .* name the corpus folder with --root"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header"),
        (b"path,speaker", "no header"),
        (b"," * 500 + b"\n", "no header"),
        (b"a,b\n1,2,3,4\n1\n", "more cells|not readable"),
        (b"a,b\n1,2\n1,2,3\n", "not readable as a CSV"),
        (b"a,b\n1,2,3\n1,2,3\n", "more cells than the header"),
        (b"a,b\n\xff,2\n", "not readable as a CSV table in UTF-8"),
        (b'a,b\n"1,2\n', "not readable as a CSV"),
        (b"\xff\xfea,b\n", "not readable as a CSV"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_table(tmp_path / "m.csv")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file; `mfhca manifest"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="not readable"):
        read_manifest(tmp_path)


def test_rows_of_two_corpora(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(csv_bytes(manifest_of(row("a"), row("b", corpus="emodb")).utterances))
    with pytest.raises(ManifestError, match=r"\['emodb', 'iemocap'\]; expected one corpus"):
        read_manifest(tmp_path / "m.csv")


def test_a_manifest_of_no_rows(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(ManifestError, match="holds no utterances"):
        read_manifest(tmp_path / "m.csv")


# Checking


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utterance_id": " "}, "utterance_id ' '; expected an id"),
        ({"path": "../x.wav"}, r"path '../x.wav'; expected a path inside"),
        ({"path": "/x.wav"}, "expected a path inside"),
        ({"path": "//host/x.wav"}, "expected a path inside"),
        ({"path": "C:/x.wav"}, "expected a path inside"),
        ({"path": "a\\x.wav"}, "expected a path inside"),
        ({"path": ""}, "expected a path inside"),
        ({"speaker": ""}, "speaker ''; expected a name"),
        ({"label": None}, "label ''; expected a raw label"),
        ({"session": "Session1"}, "session 'Session1'; expected nothing, or a lower-case word"),
        ({"session": "all"}, "session 'all'"),
        ({"session": "a/b"}, "session 'a/b'"),
        ({"sample_rate": 3999}, "sample_rate 3999; expected 4000 to 384000 Hz"),
        ({"sample_rate": 16000.5}, "sample_rate 16000.5; expected a number"),
        ({"sample_rate": "fast"}, "sample_rate 'fast'; expected a number"),
        ({"sample_rate": 1e300}, "sample_rate"),
        ({"channels": 0}, "channels 0; expected 1 to 32"),
        ({"channels": math.inf}, "channels inf; expected a number"),
        ({"seconds": 0}, "seconds 0.0; expected more than 0, at most 1200"),
        ({"seconds": 1200.1}, "seconds"),
        ({"seconds": ""}, "seconds ''; expected a number"),
        ({"seconds": math.nan}, "seconds nan; expected a number"),
        ({"valence": "high"}, "valence 'high'; expected a number"),
        ({"sha256": "0" * 63}, "expected 64 hex digits"),
        ({"sha256": "G" * 64}, "expected 64 hex digits"),
    ],
)
def test_rows_that_cannot_be_right(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifest_of(row("fine"), row("wrong") | changes, source="m.csv")


def test_the_row_at_fault_and_the_number_of_others_are_named() -> None:
    with pytest.raises(ManifestError, match=r"^m.csv: 'b' has speaker ''; expected a name \(and 1 more rows\)$"):
        manifest_of(row("a"), row("c", speaker=""), row("b", speaker=" ".strip()), source="m.csv")
    with pytest.raises(ManifestError, match=r"'a' has utterance_id 'a'; expected each id once"):
        manifest_of(row("a"), row("a"))
    with pytest.raises(ManifestError, match=r"the column\(s\) label, text are missing; expected corpus, "):
        make_manifest("iemocap", None, pd.DataFrame([row()]).drop(columns=["label", "text"]))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("a.wav", True), ("a/b.wav", True), ("./a.wav", True), ("a..b/c.wav", True), ("é/語 x.wav", True),
        ("ab:c.wav", True),
        ("", False), (".", False), ("..", False), ("a/../b", False), ("/a", False), ("//a", False), ("///a", False),
        ("c:a", False), ("C:/a", False), ("a\0b", False), ("a\\b", False),
    ],
)  # fmt: skip
def test_paths_that_stay_inside(path: str, inside: bool) -> None:
    assert is_inside(path) is inside


@given(st.text(st.sampled_from("a./\\:C\0 "), max_size=8))
def test_a_path_that_stays_inside_joins_inside(path: str) -> None:
    if is_inside(path):
        root = Path("/data/corpus")
        assert (root / path).is_relative_to(root) and ".." not in (root / path).parts


def test_names_of_sessions() -> None:
    assert all(map(is_session, ("", "session1", "2.b-c_d", "a" * 64)))
    assert not any(map(is_session, ("all", "A", ".a", "a" * 65, "a b", "a\n", "../a", " ")))


# What is derived from rows


def test_natural_order() -> None:
    assert sorted(["s10", "s2", "S1", "s", "10", "9", "s2b"], key=natural_key) == [
        "9",
        "10",
        "S1",
        "s",
        "s2",
        "s2b",
        "s10",
    ]


@given(st.lists(st.text(max_size=8), max_size=5))
def test_natural_order_takes_any_text(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    assert sorted(ordered) == sorted(names)


def test_samples_at_16_khz() -> None:
    table = manifest_of(
        row("a", seconds=33_075 / 22_050, sample_rate=22_050),
        row("b", seconds=1 / 3, sample_rate=48_000),
        row("c", seconds=0.1),
    ).utterances
    assert samples_16k(table).tolist() == [24_000, 5_334, 1_600] and samples_16k(table).dtype == np.int64


def test_selecting_rows() -> None:
    table = manifest_of(row("a", label="exc"), row("b", label="xxx"), row("c", label="sad")).utterances
    assert select_rows(table, "all", "iemocap").equals(table)
    assert select_rows(table, "four-class", "iemocap")["utterance_id"].tolist() == ["a", "c"]


def test_counting_by_session_and_by_speaker() -> None:
    rows = [
        row("a", label="exc", session="s10"),
        row("b", label="xxx", session="s1"),
        row("c", label="sad", session="s2"),
    ]
    table = manifest_of(*rows).utterances
    classes = class_map("four-class", "iemocap", table["label"])
    counted = count_table(table, classes)
    assert counted.index.tolist() == ["s2", "s10", "all"] and counted.index.name == "session"
    assert counted.loc["all"].to_dict() == {"angry": 0, "happy": 1, "neutral": 0, "sad": 1, "all": 2}
    by_speaker = count_table(table.assign(session="", speaker=["2", "10", "1"]), classes)
    assert by_speaker.index.tolist() == ["1", "2", "all"] and by_speaker.index.name == "speaker"


def test_the_neighbour_is_plain_json(tmp_path: Path) -> None:
    write_manifest(manifest_of(row()), tmp_path / "m.csv")
    memory = json.loads((tmp_path / "m.json").read_text())
    assert memory == {"corpus": "iemocap", "root": None, "utterances": 1, "rejected": []}
