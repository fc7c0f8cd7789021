"""Tables, transcripts and checkpoints from elsewhere: read, or refused with the product's own errors, and cheaply."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfhca_cache.corpora import read_corpus
from mfhca_cache.errors import CacheError, CorpusError, EncoderError, ManifestError, MfhcaError
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, csv_bytes, read_manifest, write_manifest
from mfhca_cache.spec import EncoderSpec
from mfhca_cache.storage.cache import open_cache

from . import faults
from .test_encoder import checkpoint
from .trees import label_line, write_dialogue, write_file

#: MiB that a refusal may cost beyond the libraries.
CHEAP = 80.0
Factory = pytest.TempPathFactory


def error_of(path: Path) -> str:
    try:
        read_manifest(path)
        return "read"
    except ManifestError as error:
        return str(error)


HEADER = b"corpus,utterance_id,path\n"
TABLES: dict[str, tuple[bytes, str]] = {
    "a million columns": (b"a," * 1_000_000 + b"b\n1\n", "no header of up to 200 columns"),
    "a million columns behind a quotation": (b'"a\n",' + b"a," * 1_000_000 + b"b\n1\n", "no header of up to"),
    "a row of a million cells": (HEADER + b"1," * 1_000_000 + b"2\n", "more cells than the header"),
    "a row of a million cells after blank lines": (HEADER + b"\n  \n" + b"1," * 1_000_000 + b"2\n", "more cells"),
    "a later row of a million cells": (HEADER + b"1,2,3\n" + b"1," * 1_000_000 + b"2\n", "not readable as a CSV"),
    "one endless line": (b"a" * 5_000_000, "no header"),
    "a quotation without end": (HEADER + b'"' + b"a,\n" * 1_000_000, "not readable as a CSV|missing"),
    "NUL": (bytes(100_000), "no header"),
    "NUL in a cell": (HEADER + b"x\0y,b,c\n", "missing"),
    "UTF-16": ("corpus,utterance_id\n1,2\n".encode("utf-16"), "no|UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "UTF-8"),
}


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    data, words = TABLES[name]
    message = error_of(write_file(tmp_path / "m.csv", data))
    assert any(word in message for word in words.split("|")) and len(message) < 2000, message[:300]


def test_refusing_a_table_costs_no_memory(tmp_path: Path) -> None:
    paths = [write_file(tmp_path / f"{number}.csv", data) for number, (data, _) in enumerate(TABLES.values())]
    endless = write_file(tmp_path / "endless.csv", HEADER)
    os.truncate(endless, 2**40)
    os.mkfifo(tmp_path / "pipe.csv")
    found, cost = faults.answer(errors_of, [*paths, endless, tmp_path / "pipe.csv"])
    assert "read" not in found and "at most" in found[-2] and "a pipe" in found[-1]
    assert cost < CHEAP, f"{cost:.0f} MiB"


def errors_of(paths: list[Path]) -> list[str]:
    return [error_of(path) for path in paths]


@pytest.mark.parametrize("path", ["../a.wav", "/etc/passwd", "a/../../b.wav", "C:/a.wav", "a\\b.wav", "a\0b.wav", "."])
def test_paths_that_lead_out_are_refused_in_a_manifest_and_in_a_cache(
    small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path, path: str
) -> None:
    table = small_manifest.utterances.copy()
    table.loc[3, "path"] = path
    write_file(tmp_path / "m.csv", csv_bytes(table))
    with pytest.raises(ManifestError, match=r"Ses01_F003.*inside the corpus folder|CSV"):
        read_manifest(tmp_path / "m.csv")
    cache = Path(shutil.copytree(small_cache_folder, tmp_path / "c"))
    write_file(cache / "utterances.csv", csv_bytes(table))
    with pytest.raises(CacheError, match=r"utterances\.csv"):
        open_cache(cache)


@pytest.mark.parametrize("data", [b'{"a":' * 100_000, b"[" * 10**6, b'{"rejected": [1]}', b'{"rejected": 1}', b"\xff"])
def test_a_neighbour_that_is_none(small_manifest: Manifest, tmp_path: Path, data: bytes) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    write_file(tmp_path / "m.json", data)
    assert "m.json: damaged" in error_of(tmp_path / "m.csv")


# Anything

CELLS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["..", "/", "1e999", "-1", "nan", '"', "'", "\0", "=1+1", "\x1b[2J", "ang", "session1", "0" * 64, "٣", "16000.5"]
)


@settings(max_examples=120)
@given(st.integers(0, 14), st.integers(0, 23), CELLS)
def test_a_manifest_with_any_cell_is_read_or_refused(
    small_manifest: Manifest, tmp_path_factory: Factory, column: int, row: int, cell: str
) -> None:
    table = small_manifest.utterances.astype(object).copy()
    table.iloc[row, column] = cell
    path = write_file(tmp_path_factory.getbasetemp() / "any" / "m.csv", csv_bytes(table))
    try:
        assert len(read_manifest(path).utterances) == 24
    except ManifestError as error:
        assert str(path) in str(error)


@settings(max_examples=150)
@given(st.binary(max_size=200), st.booleans(), st.integers(0, 400))
@example(b"\0", True, 0)
@example(b'"', True, 100)
def test_any_bytes_are_a_manifest_or_refused(
    small_manifest: Manifest, tmp_path_factory: Factory, data: bytes, inside: bool, at: int
) -> None:
    whole = csv_bytes(small_manifest.utterances)
    folder = tmp_path_factory.getbasetemp() / "bytes"
    path = write_file(folder / "m.csv", whole[:at] + data + whole[at:] if inside else data)
    for read in (read_manifest, lambda path: read_corpus("table", path)):
        try:
            read(path)
        except (ManifestError, CorpusError) as error:
            assert str(path) in str(error) or str(folder) in str(error)


@settings(max_examples=80)
@given(st.binary(max_size=60), st.integers(0, 3000))
def test_any_utterances_in_a_cache_are_those_of_the_plan_or_refused(
    small_cache_folder: Path, tmp_path_factory: Factory, data: bytes, at: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cached"
    content = (small_cache_folder / "utterances.csv").read_bytes()
    write_file(folder / "cache.json", (small_cache_folder / "cache.json").read_bytes())
    write_file(folder / "utterances.csv", content[:at] + data + content[at:])
    try:
        assert open_cache(folder).plan.clips == 30
        assert data == b""
    except CacheError as error:
        assert str(folder) in str(error)


LINES = st.sampled_from(
    ["[1.0 - 2.0]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]", "[", "[1 - 2] a b [1,2,3]",
     "Ses01F_impro01_F000 [1]: hi", "Ses0[[[[[[", "[9" + "9" * 400 + " - 1] x y [1, 1, 1]",
     "C-E2:\tAnger;\t()", "\x85", "\ufeff"]
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(LINES | st.text(max_size=40), max_size=8), st.binary(max_size=60), st.booleans())
def test_any_label_file_and_transcript_of_iemocap(
    tmp_path_factory: Factory, lines: list[str], tail: bytes, label: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "iemocap"
    write_dialogue(root, "Ses01F_impro01", {"F000": "neu", "M000": "ang"})
    folder = "EmoEvaluation" if label else "transcriptions"
    path = root / "Session1" / "dialog" / folder / "Ses01F_impro01.txt"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    try:
        found = read_corpus("iemocap", root)
        assert set(found.utterances["label"]) <= {"neu", "ang", "b", "y"}
    except MfhcaError as error:
        assert str(root) in str(error)


def test_label_files_that_explode_are_cut_off(tmp_path: Path) -> None:
    write_dialogue(tmp_path, "Ses01F_impro01", {"F000": "neu"})
    labels = tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    texts = tmp_path / "Session1" / "dialog" / "transcriptions" / "Ses01F_impro01.txt"
    labels.write_text(label_line("Ses01F_impro01_F000", "neu") + "\n" + "[\n" * 500_000)
    texts.write_text("Ses0" + "[" * 3_000_000)
    found, cost = faults.answer(count_rejected, tmp_path)
    assert found == (1, 101) and cost < CHEAP, (found, cost)
    os.truncate(labels, 2**40)
    labels.with_name("Ses01F_impro02.txt").symlink_to("/dev/zero")
    found, cost = faults.answer(count_rejected, tmp_path)
    assert "at most" in found and cost < CHEAP, (found, cost)


def count_rejected(root: Path) -> tuple[int, int]:
    found = read_corpus("iemocap", root)
    return len(found.utterances), len(found.rejected)


# Weights


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "renamed safetensors", "its own code"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, form: str) -> None:
    folder, canary = tmp_path / "enc", tmp_path / "canary"
    checkpoint(folder)
    weights = folder / "pytorch_model.bin"
    if form == "its own code":
        text = (folder / "config.json").read_text()
        code = '"auto_map": {"AutoModel": "modelling.Model", "AutoConfig": "modelling.Config"},'
        (folder / "config.json").write_text(text.replace("{", "{" + code, 1).replace('"hubert"', '"of_its_own"'))
        (folder / "modelling.py").write_text(f"open({str(canary)!r}, 'w')")
    else:
        (folder / "model.safetensors").unlink()
        if form == "renamed safetensors":
            weights = folder / "model.safetensors"
        if form in ("zip", "legacy"):
            torch.save({"a": Trap(canary)}, weights, _use_new_zipfile_serialization=form == "zip")
        else:
            weights.write_bytes(pickle.dumps({"a": Trap(canary)}))
    with pytest.raises(EncoderError, match="enc"):
        load_encoder(EncoderSpec(str(folder)))
    assert not canary.exists()


def test_a_hostile_manifest_extracts_nothing_from_elsewhere(small_manifest: Manifest, tmp_path: Path) -> None:
    """A root that a manifest's neighbour names is the user's to trust; what lies in it stays in it."""
    table = small_manifest.utterances.head(2).copy()
    write_manifest(Manifest("iemocap", Path("/nonexistent"), table), tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="--root DIR"):
        extract(read_manifest(tmp_path / "m.csv"), tmp_path / "c", faults.ALONE)
