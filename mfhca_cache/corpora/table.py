"""Any corpus that a CSV describes: ``path, speaker, label``, one row an utterance.

Optional columns: ``utterance_id`` (else the path without its ending), ``session``, ``recording``, ``text``,
``valence``, ``arousal``, ``dominance``. Paths are relative to the folder of the CSV. Other columns are not taken over.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

import pandas as pd

from mfhca_cache.corpora.common import OnFile, Utterance, collect, is_folder
from mfhca_cache.errors import CorpusError, ManifestError
from mfhca_cache.files import leads_outside
from mfhca_cache.manifest import Manifest, Rejected, is_inside, is_session, read_table

LAYOUT = "a CSV with the columns path, speaker, label, or a folder that holds exactly one CSV"

REQUIRED = ("path", "speaker", "label")
_RATINGS = ("valence", "arousal", "dominance")


def looks_like(root: Path) -> bool:
    """Whether the path is a CSV with the three columns, or a folder with exactly one CSV, which has them."""
    try:
        with _find_csv(root).open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(100_000)
    except (OSError, CorpusError):
        return False
    return set(REQUIRED) <= {name.strip().strip('"').strip() for name in header.split(",")}


def read(root: Path, progress: OnFile | None = None) -> Manifest:
    """The table's utterances as a manifest, whose root is the folder of the CSV.

    A row with a missing or damaged file, a path that leads out of the folder, an empty speaker or label, a session that
    is no plain word, or a rating that is no number is rejected with its row number (the heading is row 1).

    Args:
        root: the CSV, or the folder that holds exactly one.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no CSV or several, not readable, a column missing, or no usable row.
    """
    csv = _find_csv(root)
    try:
        table = read_table(csv)
    except ManifestError as error:
        raise CorpusError(str(error)) from error
    table.columns = table.columns.str.strip()
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise CorpusError(
            f"{csv}: got the columns {', '.join(table.columns[:12])}; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; expected path, speaker, label"
        )
    if table.columns.has_duplicates:
        raise CorpusError(f"{csv}: a column's name is there twice: {', '.join(table.columns[:12])}")
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(_cells(table), start=2):
        reason = _why_not(csv.parent, row)
        if reason:
            rejected.append(Rejected(row["path"] or csv.name, f"{reason} (row {number})"))
        else:
            utterances.append(_utterance(csv.parent, row, f"row {number}"))
    return collect("table", csv.parent, utterances, rejected, progress)


def _find_csv(root: Path) -> Path:
    if not is_folder(root):
        if root.suffix.lower() == ".csv" and root.is_file():
            return root
        raise CorpusError(f"{root}: is no CSV; expected {LAYOUT}")
    found = sorted(path for path in root.iterdir() if _is_csv(path))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5])
        fix = f"got {len(found)} ({names}); name the one meant" if found else "got none"
        raise CorpusError(f"{root}: {fix}; expected {LAYOUT}")
    return found[0]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.name[0] != "." and path.is_file()


def _cells(table: pd.DataFrame) -> list[dict[str, str]]:
    """Each row's cells as stripped strings; short rows end in empty ones."""
    stripped = table.fillna("").astype(str).apply(lambda column: column.str.strip())
    return [{str(name): str(value) for name, value in row.items()} for row in stripped.to_dict("records")]


def _why_not(folder: Path, row: dict[str, str]) -> str:
    """Why a row cannot be taken, or nothing."""
    for name in REQUIRED:
        if not row[name]:
            return f"bad-row: the {name} is empty"
    path = row["path"]
    if "\\" in path:
        return "bad-row: got a backslash in the path; expected forward slashes"
    if not is_inside(path):
        return "bad-row: the path is absolute or holds '..'; expected one relative to the CSV's folder, and inside it"
    full = folder / path
    if leads_outside(folder, full):
        return "link: a symbolic link that leads out of the CSV's folder; copy the file into it"
    if _is_no_file(full):
        return "not-audio: a folder or a device, not a file"
    if not is_session(row.get("session", "").lower()):
        return f"bad-row: got the session {row['session']!r}; expected a plain word such as session1, but not all"
    for name in _RATINGS:
        if not _is_rating(row.get(name, "")):
            return f"bad-row: got the {name} {row[name]!r}; expected a number or nothing"
    return ""


def _is_no_file(path: Path) -> bool:
    """Whether something is there that is no file, such as a pipe, which would never end."""
    try:
        return path.exists() and not path.is_file()
    except OSError:
        return False


def _is_rating(cell: str) -> bool:
    try:
        return not cell or math.isfinite(float(cell))
    except ValueError:
        return False


def _utterance(folder: Path, row: dict[str, str], source: str) -> Utterance:
    path = PurePosixPath(row["path"])
    ratings = [float(row.get(name) or "nan") for name in _RATINGS]
    return Utterance(
        utterance_id=row.get("utterance_id") or str(path.with_suffix("")),
        path=folder / path,
        speaker=row["speaker"],
        label=row["label"],
        session=row.get("session", "").lower(),
        recording=row.get("recording", ""),
        text=row.get("text", ""),
        valence=ratings[0],
        arousal=ratings[1],
        dominance=ratings[2],
        source=source,
    )
