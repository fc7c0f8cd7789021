"""A cache's features as files that other programs read: NumPy, safetensors or Parquet, one a feature.

    DIR/clips.csv            one row a clip, in the order of the arrays: whose it is, and how much of it is signal
    DIR/<feature>.npy        (clips, …), to be mapped: numpy.load(path, mmap_mode="r")
    DIR/<feature>.safetensors    the same as one tensor of the feature's name
    DIR/<feature>.parquet    the rows of clips.csv with a column of features, flattened
    DIR/export.json          what the features are

Only utterances that all the features hold are exported, so that the files line up row by row. Digests are checked as
the clips are read, and memory is bounded. The folder appears under its name when it is whole.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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

FORMATS = ("npy", "safetensors", "parquet")
_CHUNK_BYTES = 64 * 2**20
_DESCRIPTIONS = ("utterance_id", "clip", "speaker", "session", "label", "valid_samples")


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
        progress: called with clips done, over all features.

    Raises:
        CacheError: an unknown format, feature or split, nothing to export, damaged bytes, a folder that is there
            already, another export into it, too little space, or a write that failed.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise CacheError(f"format {format!r} is not known; expected one of: {', '.join(FORMATS)}")
    write = {"npy": _write_npy, "safetensors": _write_safetensors, "parquet": _write_parquet}[format]
    if format == "parquet":
        _pyarrow()
    infos = [cache.feature(name) for name in dict.fromkeys(features or sorted(cache.features))]
    if not infos:
        raise CacheError(f"{cache.path}: no feature to export yet; `mfhca extract` makes them")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CacheError(f"{folder} is there already; name a new folder, or remove it first")
    clips, left_out = _chosen(cache, infos, split)
    needed = len(clips) * sum(info.clip_bytes * (1 if format != "parquet" else _widened(info)) for info in infos)
    if needed > free_bytes(folder):
        raise CacheError(
            f"{folder}: the export takes up to {needed / 1e9:.2f} GB and {free_bytes(folder) / 1e9:.2f} GB are free; "
            "nothing was written"
        )
    files = {info.name: f"{info.name}.{format}" for info in infos}
    with _Partial(folder) as partial:
        valid: dict[str, np.ndarray] = {}
        for number, info in enumerate(infos):

            def tell(done: int, number: int = number, name: str = info.name) -> None:
                progress(Progress(f"exporting {name}", number * len(clips) + done, len(infos) * len(clips), "clips"))

            with (partial / files[info.name]).open("xb") as file:
                valid[f"valid_{info.name}"] = write(file, cache, info, clips, tell)
                _to_disk(file)
        for name, column in valid.items():
            clips[name] = column
        _write(partial / "clips.csv", csv_bytes(clips))
        _write(partial / "export.json", _description(cache, infos, files, format, len(clips)))
        size = sum(path.stat().st_size for path in partial.iterdir() if not path.name.startswith("."))
    count = int(clips["utterance_id"].nunique())
    return ExportReport(folder, format, files, count, len(clips), left_out, size)


def _chosen(cache: Cache, infos: Sequence[FeatureInfo], split: str | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row a clip of what all the features hold, and why the other utterances are left out."""
    splits = [item.name for item in cache.plan.chosen(split)]
    names = [info.name for info in infos]
    there = set(cache.available(names, splits))
    table = cache.utterances
    asked = table[table["split"].isin(splits)]
    rejected = cache.rejected(names)
    left_out = {name: rejected.get(name, "not extracted yet") for name in asked["utterance_id"] if name not in there}
    rows = asked[asked["utterance_id"].isin(there)]
    if rows.empty:
        raise CacheError(
            f"{cache.path}: no utterance of {', '.join(splits)} has {' and '.join(names)}; "
            "`mfhca cache ls` shows what is missing"
        )
    # Loaded without features: the clips' own table says how much of each is signal.
    clips = cache.load([], rows["utterance_id"])["clips"]
    words = rows.set_index("utterance_id")[["speaker", "session", "label"]]
    return clips.join(words, on="utterance_id")[list(_DESCRIPTIONS)], left_out


def _chunks(cache: Cache, info: FeatureInfo, clips: pd.DataFrame) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows of ``clips``, their features and their valid frames, by utterances of about 64 MiB together."""
    counts = clips.groupby("utterance_id", sort=False).size()
    group = (counts.cumsum() - counts) * info.clip_bytes // _CHUNK_BYTES
    done = 0
    for _, part in counts.groupby(group.to_numpy()):
        loaded = cache.load(info.name, list(part.index))
        rows = slice(done, done + int(part.sum()))
        yield rows, loaded[info.name].numpy(), loaded["clips"][f"valid_{info.name}"].to_numpy()
        done = rows.stop


def _stream(
    file: BinaryIO, cache: Cache, info: FeatureInfo, clips: pd.DataFrame, tell: Callable[[int], None]
) -> np.ndarray:
    """Write the features one after the other, little-endian; their valid frames."""
    valid = np.zeros(len(clips), dtype=np.int32)
    for rows, data, frames in _chunks(cache, info, clips):
        file.write(np.ascontiguousarray(data).astype(np.dtype(info.dtype).newbyteorder("<"), copy=False).data)
        valid[rows] = frames
        tell(rows.stop)
    return valid


def _write_npy(
    file: BinaryIO, cache: Cache, info: FeatureInfo, clips: pd.DataFrame, tell: Callable[[int], None]
) -> np.ndarray:
    header = {
        "descr": np.dtype(info.dtype).newbyteorder("<").str,
        "fortran_order": False,
        "shape": (len(clips), *info.shape),
    }
    np.lib.format.write_array_header_2_0(file, header)
    return _stream(file, cache, info, clips, tell)


def _write_safetensors(
    file: BinaryIO, cache: Cache, info: FeatureInfo, clips: pd.DataFrame, tell: Callable[[int], None]
) -> np.ndarray:
    # The library's own writer wants the whole tensor in memory; the format is a header and the bytes.
    header = {
        "__metadata__": {"feature": info.name, "fingerprint": info.fingerprint},
        info.name: {
            "dtype": {"float16": "F16", "float32": "F32"}[info.dtype],
            "shape": [len(clips), *info.shape],
            "data_offsets": [0, len(clips) * info.clip_bytes],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return _stream(file, cache, info, clips, tell)


def _write_parquet(
    file: BinaryIO, cache: Cache, info: FeatureInfo, clips: pd.DataFrame, tell: Callable[[int], None]
) -> np.ndarray:
    """A row a clip. float16 is written as float32, which holds it exactly and which every reader of Parquet knows."""
    pa, parquet = _pyarrow()
    width = int(np.prod(info.shape))
    words = [(name, pa.string()) for name in ("utterance_id", "speaker", "session", "label")]
    fields = {**dict(words), "clip": pa.int32(), "valid_samples": pa.int32()}
    schema = pa.schema(
        [
            *((name, fields[name]) for name in _DESCRIPTIONS),
            ("valid_frames", pa.int32()),
            ("features", pa.list_(pa.float32(), width)),
        ],
        metadata={"shape": json.dumps(info.shape), "feature": info.name, "fingerprint": info.fingerprint},
    )
    valid = np.zeros(len(clips), dtype=np.int32)
    with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=list(dict(words))) as writer:
        for rows, data, frames in _chunks(cache, info, clips):
            flat = pa.array(np.ascontiguousarray(data, dtype=np.float32).reshape(-1))
            part = clips.iloc[rows]
            columns = [pa.array(part[name].to_numpy(), fields[name]) for name in _DESCRIPTIONS]
            columns += [pa.array(frames, pa.int32()), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            valid[rows] = frames
            tell(rows.stop)
    return valid


def _widened(info: FeatureInfo) -> int:
    """How many times its stored size a feature takes as float32."""
    return 4 // np.dtype(info.dtype).itemsize


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise CacheError(
            "Parquet needs pyarrow, which is not installed: pip install 'mfhca-cache[parquet]', "
            "or export as npy or safetensors"
        ) from error


def _description(cache: Cache, infos: Sequence[FeatureInfo], files: dict[str, str], format: str, clips: int) -> bytes:
    value = {
        "corpus": cache.corpus,
        "plan_sha256": cache.plan.identity(),
        "clip": settings(cache.clip),
        "rows": cache.plan.rows,
        "format": format,
        "clips": clips,
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
