"""The utterance table: one row an utterance, as a CSV that any tool can read.

``<name>.csv`` holds the rows; ``<name>.json`` beside it remembers where the corpus lies on this computer and which
files were rejected. The table alone is enough: then the corpus folder is named anew.

Columns:
    corpus           name of the reader: iemocap, emodb, ravdess, cremad, table, synthetic
    utterance_id     unique in the table
    path             of the audio, relative to the corpus root, with forward slashes
    speaker          the person who speaks, never the recording
    session          lower-case name such as session1, or empty where the corpus has none
    recording        what was recorded in one go (IEMOCAP: the dialogue), or empty
    label            the raw label, as the corpus writes it
    valence, arousal, dominance    ratings on the corpus's own scale, or empty
    text             the words spoken, or empty
    seconds          frames / sample_rate
    sample_rate      Hz, of the file
    channels         of the file
    sha256           of the file's bytes, 64 hex digits

Columns beyond these are kept as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from mfhca_cache.containers import SAMPLE_RATES
from mfhca_cache.errors import ManifestError
from mfhca_cache.files import parse_json, read_regular
from mfhca_cache.labels import ClassMap, class_map
from mfhca_cache.spec import MAX_SECONDS, SAMPLE_RATE
from mfhca_cache.storage.publish import publish, publish_json
from mfhca_cache.wav import MAX_CHANNELS

TEXT_COLUMNS = (
    "corpus",
    "utterance_id",
    "path",
    "speaker",
    "session",
    "recording",
    "label",
    "text",
    "sha256",
)
FLOAT_COLUMNS = ("valence", "arousal", "dominance", "seconds")
INTEGER_COLUMNS = ("sample_rate", "channels")
COLUMNS = (
    "corpus", "utterance_id", "path", "speaker", "session", "recording", "label", "valence", "arousal", "dominance",
    "text", "seconds", "sample_rate", "channels", "sha256",
)  # fmt: skip

_SESSION = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX_DIGITS = b"0123456789abcdef"
_ODD = ("..", "\\", "\0", ":", "\n/", "\n.", "\n\n")
_MAX_COLUMNS = 200
_MAX_HEADER_BYTES = 1_000_000
#: Ten million utterances take about 3 GB.
MAX_TABLE_BYTES = 4 * 2**30
#: Ten million rows of 26 columns. A row of two bytes costs a pointer for each column of the header.
_MAX_CELLS = 2**28
_CHUNK_ROWS = 2**16
_MAX_MEMORY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rejected:
    """A file or row that was left out: its path relative to the root, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """A corpus as a table.

    Attributes:
        corpus: name of the reader that made it.
        root: the corpus folder, or None where it is not known on this computer.
        utterances: DataFrame of `COLUMNS`, one row an utterance, sorted by utterance_id.
        rejected: files that were left out, with the reason.
    """

    corpus: str
    root: Path | None
    utterances: pd.DataFrame
    rejected: tuple[Rejected, ...] = ()

    def with_root(self, root: str | Path) -> Manifest:
        """The same table for a corpus that lies elsewhere."""
        return replace(self, root=Path(root))


def samples_16k(utterances: pd.DataFrame) -> np.ndarray:
    """Samples of each utterance once resampled to 16 kHz, int64 of shape (rows,)."""
    rates = utterances["sample_rate"].to_numpy(np.int64)
    # Halves go to the even number, as in Python's round.
    frames = np.rint(utterances["seconds"].to_numpy(np.float64) * rates).astype(np.int64)
    return -(-frames * SAMPLE_RATE // rates)


def select_rows(utterances: pd.DataFrame, rows: str, corpus: str) -> pd.DataFrame:
    """The rows that ``extract --rows`` means: ``all``, or ``four-class`` for those of the four classes."""
    if rows == "all":
        return utterances
    return utterances[class_map(rows, corpus, utterances["label"]).apply(utterances["label"]).notna()]


def count_table(utterances: pd.DataFrame, classes: ClassMap) -> pd.DataFrame:
    """Utterances by session (rows; by speaker where there are no sessions) and class (columns), with totals ``all``."""
    by = "session" if (utterances["session"] != "").any() else "speaker"
    named = utterances.assign(_class=classes.apply(utterances["label"])).dropna(subset="_class")
    table = pd.crosstab(named[by], named["_class"]).reindex(columns=list(classes.classes), fill_value=0)
    table = table.loc[sorted(table.index, key=natural_key)]
    table["all"] = table.sum(axis=1)
    table.loc["all"] = table.sum(axis=0)
    return table.rename_axis(index=by, columns="class")


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which s2 comes before s10."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def make_manifest(
    corpus: str, root: Path | None, rows: pd.DataFrame, rejected: tuple[Rejected, ...] = (), source: str = ""
) -> Manifest:
    """Check rows and make a manifest of them.

    Raises:
        ManifestError: a column missing, an id twice, a value out of bounds: each with its row.
    """
    table = _checked(rows, source or f"manifest of {corpus}")
    return Manifest(corpus, root, table, rejected)


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write ``path`` (CSV) and its ``.json`` neighbour, each by rename so that a reader never sees half a file."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise ManifestError(f"{path}: expected a name that ends in .csv; the .json beside it remembers the root")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ManifestError(f"{path.parent}: could not be made ({error.strerror})") from error
    publish(path, csv_bytes(manifest.utterances))
    memory = {
        "corpus": manifest.corpus,
        "root": str(manifest.root.resolve()) if manifest.root else None,
        "utterances": len(manifest.utterances),
        "rejected": [{"path": item.path, "reason": item.reason} for item in manifest.rejected],
    }
    publish_json(path.with_suffix(".json"), memory)


def csv_bytes(utterances: pd.DataFrame) -> bytes:
    """The table as CSV: UTF-8, LF, floats in full so that they read back exactly."""
    text = _csv(utterances, csv.QUOTE_MINIMAL)
    # Python's csv writer leaves a lone carriage return unquoted, which readers then take for the end of a line.
    return (_csv(utterances, csv.QUOTE_NONNUMERIC) if "\r" in text else text).encode()


def _csv(utterances: pd.DataFrame, quoting: Literal[0, 2]) -> str:
    return utterances.to_csv(index=False, lineterminator="\n", quoting=quoting)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest written by `write_manifest`, or any CSV with its columns.

    Raises:
        ManifestError: not a CSV, a column missing, or a row that cannot be right; the row and value are named.
    """
    path = Path(path)
    table = _checked(read_table(path), str(path))
    corpora = sorted(set(table["corpus"]))
    if len(corpora) != 1:
        raise ManifestError(f"{path}: got rows of the corpora {corpora}; expected one corpus a manifest")
    memory = _read_memory(path.with_suffix(".json"))
    root = memory.get("root")
    rejected = tuple(Rejected(str(item["path"]), str(item["reason"])) for item in memory.get("rejected", []))
    return Manifest(corpora[0], Path(root) if isinstance(root, str) else None, table, rejected)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV as strings, empty cells as empty strings.

    Raises:
        ManifestError: missing, not text, not a table, or of absurdly many columns.
    """
    try:
        return parse_table(read_regular(path, MAX_TABLE_BYTES), path)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; `mfhca manifest CORPUS ROOT` writes one") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not readable as a CSV table in UTF-8 ({error})") from error


def parse_table(data: bytes, source: Path) -> pd.DataFrame:
    """`read_table` of bytes that were read from ``source``."""
    # Counted before pandas sees them: a million columns cost gigabytes. A quotation left open would hide more of them.
    header = data[:_MAX_HEADER_BYTES].split(b"\n", 1)[0]
    if len(header) in (len(data), _MAX_HEADER_BYTES) or header.count(b",") >= _MAX_COLUMNS or header.count(b'"') % 2:
        raise ManifestError(f"{source}: the first line is no header of up to {_MAX_COLUMNS} columns and a line end")
    # pandas would take each cell of the first row beyond the header for an index of its own: a million take minutes.
    if _first_row_cells(data[len(header) + 1 :][:_MAX_HEADER_BYTES], source) > header.count(b",") + 1:
        raise ManifestError(f"{source}: {_MORE_CELLS}")
    cells = (header.count(b",") + 1) * (data.count(b"\n") + data.count(b"\r"))
    if cells > _MAX_CELLS:
        raise ManifestError(f"{source}: {cells:,} cells; expected at most {_MAX_CELLS:,}")
    try:
        # As objects, what a column repeats is held once; pandas' own strings would hold it a row each.
        table = pd.read_csv(io.BytesIO(data), dtype=object, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise ManifestError(f"{source}: not readable as a CSV table in UTF-8 ({error})") from error
    # Rows with one cell more than the header make pandas shift every column by one without a word.
    if not isinstance(table.index, pd.RangeIndex):
        raise ManifestError(f"{source}: {_MORE_CELLS}")
    return table


_MORE_CELLS = "the rows have more cells than the header; is there a comma at each line's end?"


def _first_row_cells(data: bytes, source: Path) -> int:
    """Cells of the first row that holds something, as far as ``data`` reaches."""
    try:
        for row in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")):
            if any(cell.strip() for cell in row) or len(row) > 1:
                return len(row)
    except csv.Error as error:
        raise ManifestError(f"{source}: not readable as a CSV table in UTF-8 ({error})") from error
    return 0


def _read_memory(path: Path) -> dict[str, Any]:
    """The neighbour that remembers the root; its absence is no error, its damage is."""
    if not path.exists():
        return {}
    try:
        memory = parse_json(read_regular(path, _MAX_MEMORY_BYTES))
        if not all(isinstance(item, dict) and {"path", "reason"} <= set(item) for item in memory.get("rejected", [])):
            raise ValueError("expected an object with root and rejected")
    except (OSError, ValueError, TypeError) as error:
        raise ManifestError(f"{path}: damaged ({error}); delete it and name the corpus folder with --root") from error
    return memory


def _checked(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows in their canonical types and order, or a ManifestError that names the first row at fault."""
    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise ManifestError(f"{source}: the column(s) {', '.join(missing)} are missing; expected {', '.join(COLUMNS)}")
    if rows.empty:
        raise ManifestError(f"{source}: holds no utterances")
    extra = [name for name in rows.columns if name not in COLUMNS]
    table = rows[[*COLUMNS, *extra]].copy(deep=False)
    for name in TEXT_COLUMNS:
        table[name] = _words(table[name])
    for name in extra:
        # One kind of string wherever a table comes from: two tables of the same words are then equal.
        table[name] = table[name].astype(object) if isinstance(table[name].dtype, pd.StringDtype) else table[name]
    for name in (*FLOAT_COLUMNS, *INTEGER_COLUMNS):
        table[name] = _numbers(table, name, source)
    if not is_ascending(table["utterance_id"]):
        table = table.sort_values("utterance_id", kind="stable")
    table = table.reset_index(drop=True)
    _check_values(table, source)
    return table


def is_ascending(column: pd.Series) -> bool:
    """Whether strings are in order by code point, any of them more than once."""
    values = column.to_numpy()
    return bool((values[:-1] <= values[1:]).all())


def _words(column: pd.Series) -> pd.Series:
    """A column as Python strings, empty where there is nothing."""
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=False) == "string":
        return column
    return column.fillna("").astype(str).astype(object)


def _numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series:
    # errors="coerce" turns an empty cell into NaN, which only the ratings may be.
    numbers = _exact(table[name], pd.to_numeric(table[name], errors="coerce"))
    if name in ("valence", "arousal", "dominance"):
        wrong = numbers.isna()
        if all(_is_blank(cell) for cell in pd.unique(table.loc[wrong, name])):
            wrong[:] = False
        else:
            wrong &= ~table[name].map(_is_blank).astype(bool)
    else:
        wrong = numbers.isna() | ~np.isfinite(numbers)
    if name in INTEGER_COLUMNS:
        wrong |= numbers != numbers.round()
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ManifestError(f"{source}: {row['utterance_id']!r} has {name} {_shown(row[name])}; expected a number")
    return numbers.astype("int64") if name in INTEGER_COLUMNS else numbers.astype("float64")


def _exact(cells: pd.Series, numbers: pd.Series) -> pd.Series:
    """Numbers read from text, as the nearest doubles; pandas 2 takes neighbours of some, which make another plan."""
    if pd.api.types.is_numeric_dtype(cells.dtype) or numbers.dtype.kind != "f":
        return numbers
    found = numbers.to_numpy(np.float64, copy=True)
    known = np.flatnonzero(np.isfinite(found))
    found[known] = [float(cell) for cell in cells.to_numpy()[known]]
    return pd.Series(found, index=numbers.index)


def _is_blank(cell: Any) -> bool:
    return bool(pd.isna(cell)) or str(cell).strip() == ""


def _check_values(table: pd.DataFrame, source: str) -> None:
    """Check every row of a table that is sorted by utterance_id."""
    ids = table["utterance_id"].to_numpy()
    _refuse(table, np.array([not name.strip() for name in ids]), "utterance_id", "an id", source)
    twice = np.zeros(len(ids), dtype=bool)
    twice[1:] = ids[1:] == ids[:-1]
    twice[:-1] |= twice[1:]
    _refuse(table, twice, "utterance_id", "each id once", source)
    _refuse(table, _leading_out(table["path"]), "path", "a path inside the corpus folder", source)
    _refuse(table, _distinct(table["speaker"], _is_blank), "speaker", "a name", source)
    _refuse(table, _distinct(table["label"], _is_blank), "label", "a raw label", source)
    _refuse(
        table,
        _distinct(table["session"], lambda name: not is_session(name)),
        "session",
        "nothing, or a lower-case word such as session1 (but not all)",
        source,
    )
    rates = table["sample_rate"].between(*SAMPLE_RATES)
    _refuse(table, ~rates, "sample_rate", f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz", source)
    _refuse(table, ~table["channels"].between(1, MAX_CHANNELS), "channels", f"1 to {MAX_CHANNELS}", source)
    seconds = (table["seconds"] > 0) & (table["seconds"] <= MAX_SECONDS)
    _refuse(table, ~seconds, "seconds", f"more than 0, at most {MAX_SECONDS:.0f}", source)
    _refuse(table, _no_digests(table["sha256"]), "sha256", "64 hex digits", source)


def _distinct(column: pd.Series, is_wrong: Callable[[str], bool]) -> np.ndarray:
    """Which cells are wrong, bool (rows,), looking once at what a column repeats."""
    wrong = [value for value in pd.unique(column) if is_wrong(value)]
    return column.isin(wrong).to_numpy() if wrong else np.zeros(len(column), dtype=bool)


def _leading_out(column: pd.Series) -> np.ndarray:
    """Which paths do not stay inside the folder, bool (rows,)."""
    found = np.zeros(len(column), dtype=bool)
    for at in range(0, len(column), _CHUNK_ROWS):
        paths = column.iloc[at : at + _CHUNK_ROWS].tolist()
        text = "\n{}\n".format("\n".join(paths))
        # A path without any of these is relative, of some name, and stays inside; `is_inside` looks at the others.
        if any(odd in text for odd in _ODD):
            found[at : at + len(paths)] = [not is_inside(path) for path in paths]
    return found


def _no_digests(column: pd.Series) -> np.ndarray:
    """Which cells are no SHA-256 in hex digits, bool (rows,)."""
    found = np.zeros(len(column), dtype=bool)
    for at in range(0, len(column), _CHUNK_ROWS):
        cells = column.iloc[at : at + _CHUNK_ROWS].tolist()
        text = "".join(cells)
        sound = text.isascii() and set(map(len, cells)) == {64} and not text.encode().translate(None, _HEX_DIGITS)
        if not sound:
            found[at : at + len(cells)] = [not _SHA256.fullmatch(cell) for cell in cells]
    return found


def _refuse(table: pd.DataFrame, wrong: pd.Series | np.ndarray, column: str, expected: str, source: str) -> None:
    if wrong.any():
        row = table[wrong].iloc[0]
        more = f" (and {int(wrong.sum()) - 1} more rows)" if wrong.sum() > 1 else ""
        raise ManifestError(
            f"{source}: {row['utterance_id']!r} has {column} {_shown(row[column])}; expected {expected}{more}"
        )


def _shown(value: Any) -> str:
    """A cell for a message: text in quotation marks, a number plain."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def is_session(name: str) -> bool:
    """Whether a session's name is allowed: empty, or a lower-case word that is not ``all``; shards are named by it."""
    return name == "" or (bool(_SESSION.fullmatch(name)) and name != "all")


def is_inside(path: str) -> bool:
    """Whether a relative path, with forward slashes, stays inside the folder that it is relative to."""
    pure = PurePosixPath(path)
    absolute = pure.is_absolute() or bool(PureWindowsPath(path).drive)
    return bool(pure.parts) and "\0" not in path and "\\" not in path and not absolute and ".." not in pure.parts
