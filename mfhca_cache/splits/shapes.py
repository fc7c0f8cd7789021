"""Folds as others publish them: a file or a folder → which names are in which part of which fold.

    mfhca        a CSV with the columns fold, utterance_id, part (train, validation, test), or a JSON file
                 {"folds": [{"name": …, "train": [id, …], "validation": […], "test": […]}, …]}
    emobox       a corpus's folder (EmoBox: data/iemocap) with fold_1/, fold_2/ …, each with
                 <corpus>_train_fold_1.jsonl, <corpus>_test_fold_1.jsonl and, for some corpora,
                 <corpus>_valid_fold_1.jsonl; a line is
                 {"key": "<corpus>-<id>", "dataset": …, "wav": "downloads/<corpus>/<path>", "emo": …, …}.
                 The .json beside each is an object of key → {"wav", "length", "emo", "dataset", "channel"}
    s3prl        a folder (s3prl: downstream/emotion/meta_data) with Session1/ …, each with train_meta_data.json and
                 test_meta_data.json: {"labels": {class: number}, "meta_data": [{"path", "label", "speaker"}, …]}
    speechbrain  train.json, valid.json and test.json (SpeechBrain: IEMOCAP's prepare script), objects of
                 id → {"wav", "length", "emo"}; where there are several folds, a folder for each

What a file says of speakers is not read: the manifest knows them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mfhca_cache.errors import FoldError, ManifestError
from mfhca_cache.manifest import natural_key, read_table
from mfhca_cache.spec import fingerprint

SHAPES = ("mfhca", "emobox", "s3prl", "speechbrain")
PARTS = ("train", "validation", "test")
COLUMNS = ("fold", "utterance_id", "part")
EXPECTED = (
    "a CSV with the columns fold, utterance_id, part, a JSON file with folds, or a folder of EmoBox (fold_1/), "
    "s3prl (Session1/train_meta_data.json) or SpeechBrain (train.json)"
)

_WORDS = {
    "train": "train", "training": "train", "test": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
_PART_IN_NAME = re.compile(rf"(?:^|[_.-])({'|'.join(_WORDS)})(?=[_.-]|$)")
_EMOBOX_NAME = re.compile(r"_fold_\d+$")
_MAX_BYTES = 256 * 2**20


class Mention(NamedTuple):
    """One utterance as a file names it.

    Attributes:
        name: its id or key; empty where there is only a path.
        path: of its audio, as the file has it; empty where there is only an id.
        dataset: the corpus that the file says it is of, which EmoBox puts before the id.
    """

    name: str
    path: str = ""
    dataset: str = ""

    def __str__(self) -> str:
        return self.name or self.path


@dataclass(frozen=True)
class FoldParts:
    """One fold as a file has it; a part that the file does not have is empty."""

    name: str
    train: tuple[Mention, ...]
    validation: tuple[Mention, ...]
    test: tuple[Mention, ...]


@dataclass(frozen=True)
class FoldFile:
    """What was read.

    Attributes:
        path: the file or folder.
        shape: one of `SHAPES`.
        sha256: of the file; of a folder, the fingerprint of ``{relative name: SHA-256}`` of the files that were read.
        folds: in the file's order; folders in natural order.
        notes: what a reader of the result should know.
    """

    path: Path
    shape: str
    sha256: str
    folds: tuple[FoldParts, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's or the folder's own name."""
        return self.path.resolve().name


def read_fold_file(path: str | Path) -> FoldFile:
    """Read folds from a file or a folder of one of the shapes above.

    Raises:
        FoldError: nothing there, another shape, or a fold without training or test utterances.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FoldError(f"{path}: no such file or folder; expected {EXPECTED}")
    if path.suffix.lower() == ".csv":
        folds = _read_csv(path)
    elif path.suffix.lower() in (".json", ".jsonl"):
        folds = _read_ours(path)
    else:
        raise FoldError(f"{path}: expected {EXPECTED}")
    return FoldFile(path, "mfhca", _sha256(path), _whole(folds, path))


def _read_csv(path: Path) -> list[FoldParts]:
    _load(path)  # Its size, before pandas sees it.
    try:
        table = read_table(path)
    except ManifestError as error:
        raise FoldError(str(error)) from error
    table.columns = table.columns.str.strip()
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise FoldError(
            f"{path}: got the columns {', '.join(map(str, table.columns[:12]))}; {', '.join(missing)} missing; "
            f"expected {', '.join(COLUMNS)}"
        )
    folds: dict[str, dict[str, list[Mention]]] = {}
    rows = zip(*(table[name].fillna("") for name in COLUMNS), strict=True)
    for number, (fold, name, part) in enumerate(rows, start=2):
        if part.strip().lower() not in _WORDS or not name.strip() or not fold.strip():
            got = f"fold {fold!r}, utterance_id {name!r}, part {part!r}"
            raise FoldError(f"{path}: row {number} has {got}; expected a part of train, validation or test, and no gap")
        folds.setdefault(fold, {}).setdefault(_WORDS[part.strip().lower()], []).append(Mention(name))
    return [_parts(fold, parts) for fold, parts in folds.items()]


def _read_ours(path: Path) -> list[FoldParts]:
    value = _json(path, _load(path)) if path.suffix.lower() == ".json" else None
    if isinstance(value, dict) and isinstance(value.get("folds"), list):
        items = value["folds"]
        if not all(isinstance(item, dict) and isinstance(item.get("name"), str | int) for item in items):
            raise FoldError(f'{path}: expected every fold to be an object with "name", "train" and "test"')
        named = [
            (_text(str(item["name"]), path), {key: rows for key, rows in item.items() if key in _WORDS})
            for item in items
        ]
        names = [name for name, _ in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise FoldError(f"{path}: the fold {twice[0]!r} is there twice")
    elif isinstance(value, dict) and value and set(value) <= set(_WORDS):
        named = [(path.stem, value)]
    else:
        part = f"; this is one part of a fold: name its folder, {path.parent}" if _part_of(path) else ""
        raise FoldError(f"{path}: holds no folds{part}; expected {EXPECTED}")
    folds = []
    for name, parts in named:
        mentions: dict[str, list[Mention]] = {}
        for key, rows in parts.items():
            if not isinstance(rows, list):
                raise FoldError(f"{path}: fold {name!r} has no list of utterances for {key}")
            mentions.setdefault(_WORDS[key], []).extend(_mentions(rows, path))
        folds.append(_parts(name, mentions))
    return folds


def _read_folder(path: Path) -> FoldFile:
    """The folder's own part files as one fold, or those of each folder in it."""
    files = _part_files(path)
    inner = sorted((item for item in path.iterdir() if item.is_dir()), key=lambda item: natural_key(item.name))
    folders = [path] if {"train", "test"} <= set(files) else [item for item in inner if _part_files(item)]
    if not folders:
        raise FoldError(f"{path}: holds no folds; expected {EXPECTED}")
    folds, notes, digests, shape = [], [], dict[str, str](), ""
    for folder in folders:
        parts: dict[str, list[Mention]] = {}
        for part, (first, *others) in _part_files(folder).items():
            content = _load(first)
            digests[first.relative_to(path).as_posix()] = hashlib.sha256(content).hexdigest()
            parts[part] = _rows(first, content)
            shape = shape or _shape_of(first)
            names = set(map(str, parts[part]))
            differ = [other.name for other in others if set(map(str, _rows(other, _load(other)))) != names]
            if differ:
                notes.append(f"{folder.name}: {first.name} is used; {', '.join(differ)} has other utterances")
        folds.append(_parts(folder.resolve().name, parts))
    return FoldFile(path, shape, fingerprint(digests), _whole(folds, path), tuple(notes))


def _part_files(folder: Path) -> dict[str, list[Path]]:
    """Part → its files, the one to read first: EmoBox's own loader opens ``<corpus>_<part>_fold_<n>.jsonl``."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jsonl") and file.name[0] != "." and (part := _part_of(file)) and file.is_file():
            found.setdefault(part, []).append(file)
    for files in found.values():
        files.sort(key=lambda file: (not _EMOBOX_NAME.search(file.stem), file.suffix != ".jsonl", file.name))
    return found


def _part_of(path: Path) -> str | None:
    match = _PART_IN_NAME.search(path.stem.lower())
    return _WORDS[match[1]] if match else None


def _shape_of(path: Path) -> str:
    if path.stem.endswith("_meta_data"):
        return "s3prl"
    return "emobox" if re.search(r"_fold_?\d+$", path.stem) else "speechbrain"


def _rows(path: Path, content: bytes) -> list[Mention]:
    """The utterances of one part's file, whatever its shape."""
    if path.suffix == ".jsonl":
        lines = enumerate(content.split(b"\n"), start=1)
        return _mentions([_json(path, line, number) for number, line in lines if line.strip()], path)
    value = _json(path, content)
    if isinstance(value, dict) and isinstance(value.get("meta_data"), list):
        return _mentions(value["meta_data"], path)
    if isinstance(value, dict):
        return _mentions([{**row, "key": key} if isinstance(row, dict) else row for key, row in value.items()], path)
    return _mentions(value, path)


def _mentions(rows: Any, path: Path) -> list[Mention]:
    if not isinstance(rows, list):
        raise FoldError(f"{path}: expected utterances, got {type(rows).__name__}")
    return [_mention(row, number, path) for number, row in enumerate(rows, start=1)]


def _mention(row: Any, number: int, path: Path) -> Mention:
    """An id, or an object with ``key`` (``id``, ``utterance_id``), or with ``wav`` (``path``)."""
    if isinstance(row, str) and row:
        return Mention(_text(row, path))
    if isinstance(row, dict):
        name, audio, dataset = (
            next((row[key] for key in keys if isinstance(row.get(key), str)), "")
            for keys in (("key", "id", "utterance_id"), ("wav", "path"), ("dataset",))
        )
        if name or audio:
            return Mention(_text(name, path), _text(audio, path), dataset)
    raise FoldError(f"{path}: utterance {number} has neither an id nor a path; got {str(row)[:80]!r}")


def _text(name: str, path: Path) -> str:
    """A name that can be written: JSON can spell halves of characters that UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FoldError(f"{path}: the name {name[:80]!a} is no text that UTF-8 can spell") from None
    return name


def _parts(name: str, parts: dict[str, list[Mention]]) -> FoldParts:
    train, validation, test = (tuple(parts.get(part, ())) for part in PARTS)
    return FoldParts(name, train, validation, test)


def _whole(folds: Sequence[FoldParts], path: Path) -> tuple[FoldParts, ...]:
    """The folds, once each is known to have training and test utterances."""
    if not folds:
        raise FoldError(f"{path}: holds no folds; expected {EXPECTED}")
    for fold in folds:
        if lacking := [part for part in ("train", "test") if not getattr(fold, part)]:
            raise FoldError(f"{path}: fold {fold.name!r} has no utterances for {' and '.join(lacking)}")
    return tuple(folds)


def _load(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise FoldError(f"{path}: larger than {_MAX_BYTES // 2**20} MiB; expected a list of utterances")
        return path.read_bytes()
    except OSError as error:
        raise FoldError(f"{path}: could not be read ({error.strerror or error})") from error


def _json(path: Path, content: bytes, line: int | None = None) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        where = f"{path}, line {line}" if line else str(path)
        raise FoldError(f"{where}: not readable as JSON ({error})") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(_load(path)).hexdigest()
