"""A cache's features as files that other programs read: NumPy, safetensors or Parquet, one a feature.

    DIR/clips.csv                one row a clip, in the order of the arrays: whose it is, and how much of it is signal
    DIR/<feature>.npy            (clips, …), to be mapped: numpy.load(path, mmap_mode="r")
    DIR/<feature>.safetensors    the same as one tensor of the feature's name
    DIR/<feature>.parquet        one row a clip, with the columns of clips.csv and the features, flattened
    DIR/utterances.csv           for features of utterances (text): one row an utterance, and which rows are its own
    DIR/export.json              what the features are

A feature of utterances is (rows, …) with the utterances' rows one behind the other; in Parquet it has one row an
utterance. Only utterances that all the features hold are exported, so that the files line up row by row. Digests are
checked as the features are read, and memory is bounded. The folder appears under its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import csv_bytes
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.spec import settings
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.storage.publish import free_bytes, sync_folder
from mfhca_cache.storage.writers import WRITERS, Chunk, load_pyarrow

_CHUNK_BYTES = 16 * 2**20
_CHUNK_UTTERANCES = 256  # of features of utterances, whose size is not known before they are read
_WORDS = ("speaker", "session", "label")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: where.
        format: npy, safetensors or parquet.
        files: feature → name of its file.
        utterances, clips: exported.
        left_out: utterance_id → why, of those asked for that not every feature holds.
        bytes: of all files.
    """

    folder: Path
    format: str
    files: dict[str, str]
    utterances: int
    clips: int
    left_out: dict[str, str]
    bytes: int


def export_cache(
    cache: Cache,
    folder: str | Path,
    format: str = "npy",
    *,
    features: Sequence[str] | None = None,
    split: str | None = None,
    progress: ProgressCallback = silent,
) -> ExportReport:
    """Write features as files for other programs.

    Args:
        cache: an opened cache.
        folder: a new folder, which appears when all is written.
        format: ``npy`` (to be mapped), ``safetensors``, or ``parquet`` (needs pyarrow).
        features: names; None for every feature of the cache.
        split: one split of the plan; None for all.
        progress: called with utterances done, over all features.

    Raises:
        CacheError: an unknown format, feature or split, nothing to export, damaged bytes, a folder that is there
            already, another export into it, too little space, or a write that failed.
    """
    folder = Path(folder)
    if format not in WRITERS:
        raise CacheError(f"format {format!r} is not known; expected one of: {', '.join(WRITERS)}")
    write = WRITERS[format]
    if format == "parquet":
        load_pyarrow()
    infos = [cache.feature(name) for name in dict.fromkeys(features or sorted(cache.features))]
    if not infos:
        raise CacheError(f"{cache.path}: no feature to export yet; `mfhca extract` makes them")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CacheError(f"{folder} is there already; name a new folder, or remove it first")
    rows, left_out = _chosen(cache, infos, split)
    tables = _tables(cache, infos, rows)
    _check_space(cache, infos, tables, folder, format)
    files = {info.name: f"{info.name}.{format}" for info in infos}
    with _Partial(folder) as partial:
        done = 0
        for info in infos:
            table = tables[info.per]

            def tell(count: int, before: int = done, name: str = info.name) -> None:
                progress(Progress(f"exporting {name}", before + count, len(infos) * len(rows), "utterances"))

            with (partial / files[info.name]).open("xb") as file:
                valid = write(file, info, table, _chunks(cache, info, table, tell))
                _to_disk(file)
            if info.per == "utterance":
                table[f"first_{info.name}"] = np.cumsum(valid) - valid
                table[f"rows_{info.name}"] = valid
            else:
                table[f"valid_{info.name}"] = valid
            done += len(rows)
        for per, table in tables.items():
            _write(partial / f"{per}s.csv", csv_bytes(table))
        counts = {f"{per}s": len(table) for per, table in tables.items()}
        _write(partial / "export.json", _description(cache, infos, files, format, counts))
        size = sum(path.stat().st_size for path in partial.iterdir() if not path.name.startswith("."))
    return ExportReport(folder, format, files, len(rows), int(rows["clips"].sum()), left_out, size)


def _chosen(cache: Cache, infos: Sequence[FeatureInfo], split: str | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """The utterances that all the features hold, and why the others are left out."""
    splits = [item.name for item in cache.plan.chosen(split)]
    names = [info.name for info in infos]
    there = set(cache.available(names, splits))
    table = cache.utterances
    asked = table[table["split"].isin(splits)]
    rejected = cache.rejected(names, splits)
    left_out = {name: rejected.get(name, "not extracted yet") for name in asked["utterance_id"] if name not in there}
    rows = asked[asked["utterance_id"].isin(there)]
    if rows.empty:
        raise CacheError(
            f"{cache.path}: no utterance of {', '.join(splits)} has {' and '.join(names)}; "
            "`mfhca cache ls` shows what is missing"
        )
    return rows, left_out


def _tables(cache: Cache, infos: Sequence[FeatureInfo], rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """``clip`` and ``utterance``, as far as the features are of them → one row each, with whose it is."""
    tables = {}
    if any(info.per == "clip" for info in infos):
        # Loaded without features: the clips' own table says how much of each is signal.
        clips = cache.load([], rows["utterance_id"])["clips"]
        clips = clips.join(rows.set_index("utterance_id")[list(_WORDS)], on="utterance_id")
        tables["clip"] = clips[["utterance_id", "clip", *_WORDS, "valid_samples"]]
    if any(info.per == "utterance" for info in infos):
        tables["utterance"] = rows[["utterance_id", *_WORDS]].reset_index(drop=True)
    return tables


def _check_space(
    cache: Cache, infos: Sequence[FeatureInfo], tables: dict[str, pd.DataFrame], folder: Path, format: str
) -> None:
    needed = 0
    for info in infos:
        size = len(tables[info.per]) * info.clip_bytes
        if info.per == "utterance":
            of = cache.plan.utterances.set_index("utterance_id")["split"]
            splits = set(of[tables["utterance"]["utterance_id"]])
            size = sum(receipt.nbytes for receipt in cache.receipts(info.name, splits).values() if receipt)
        # Parquet holds float32.
        needed += size * (4 // np.dtype(info.dtype).itemsize if format == "parquet" else 1)
    free = free_bytes(folder)
    if needed > free:
        raise CacheError(
            f"{folder}: the export takes up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "nothing was written"
        )


def _chunks(cache: Cache, info: FeatureInfo, table: pd.DataFrame, tell: Callable[[int], None]) -> Iterator[Chunk]:
    """The rows of ``table`` in order, a bounded number of utterances at a time; ``tell(utterances done)``."""
    counts = table.groupby("utterance_id", sort=False).size()
    before = (counts.cumsum() - counts).to_numpy()
    of_clips = info.per == "clip"
    group = before * info.clip_bytes // _CHUNK_BYTES if of_clips else before // _CHUNK_UTTERANCES
    utterances = done = 0
    for _, part in counts.groupby(group):
        loaded = cache.load(info.name, list(part.index))
        rows = slice(done, done + int(part.sum()))
        if of_clips:
            data, valid = loaded[info.name].numpy(), loaded["clips"][f"valid_{info.name}"].to_numpy()
        else:
            data = np.concatenate([tensor.numpy() for tensor in loaded[info.name]])
            valid = np.array([len(tensor) for tensor in loaded[info.name]])
        yield Chunk(rows, data, valid)
        utterances, done = utterances + len(part), rows.stop
        tell(utterances)


def _description(
    cache: Cache, infos: Sequence[FeatureInfo], files: dict[str, str], format: str, counts: dict[str, int]
) -> bytes:
    value = {
        "corpus": cache.corpus,
        "plan_sha256": cache.plan.identity(),
        "clip": settings(cache.clip),
        "rows": cache.plan.rows,
        "format": format,
        **counts,
        "features": {
            info.name: {
                "file": files[info.name],
                **{key: item for key, item in settings(info).items() if key not in ("name", "clips_per_shard")},
                "fingerprint": info.fingerprint,
            }
            for info in infos
        },
    }
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _to_disk(file)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Partial:
    """A hidden folder beside ``folder`` that takes its name when the block ends well, and else is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._guard = FileLock(self._partial / ".lock", timeout=0)

    def __enter__(self) -> Path:
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._guard.acquire()
            # What a killed export left.
            for path in self._partial.iterdir():
                if path.name != ".lock":
                    path.unlink()
        except Timeout:
            raise CacheError(f"another process is exporting into {self._folder}; wait for it") from None
        except OSError as error:
            raise CacheError(f"{self._partial}: could not be made ({error.strerror})") from error
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._guard.release()
            if isinstance(error, OSError):
                raise CacheError(
                    f"{self._folder}: could not be written ({error.strerror or error}); nothing is left of it. "
                    "Check free space and permissions, then run the same command again"
                ) from error
            return
        sync_folder(self._partial)
        (self._partial / ".lock").unlink()
        try:
            self._partial.replace(self._folder)
        except OSError as failure:
            raise CacheError(f"{self._folder}: could not take its name ({failure.strerror})") from failure
        finally:
            self._guard.release()
        sync_folder(self._folder.parent)
