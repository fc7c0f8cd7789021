"""Writing a feature in a format that other programs read, chunk by chunk, so that memory stays bounded."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from mfhca_cache.errors import CacheError
from mfhca_cache.storage.layout import FeatureInfo


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table and their features.

    Attributes:
        rows: which rows of the table.
        data: (clips, …), or the rows of all its utterances one behind the other.
        valid: valid frames of each clip, or how many rows each utterance has.
    """

    rows: slice
    data: np.ndarray
    valid: np.ndarray


#: Writes a table's features to an empty file; the valid frames (or rows) of each of its rows, int64.
Writer = Callable[[BinaryIO, FeatureInfo, pd.DataFrame, Iterator[Chunk]], np.ndarray]


def write_npy(file: BinaryIO, info: FeatureInfo, table: pd.DataFrame, chunks: Iterator[Chunk]) -> np.ndarray:
    """One array, ready to be mapped."""
    descr = np.dtype(info.dtype).newbyteorder("<").str

    def header(count: int) -> bytes:
        # NumPy leaves room in a header for the first length to grow.
        out = io.BytesIO()
        value = {"descr": descr, "fortran_order": False, "shape": (count, *_row_shape(info))}
        np.lib.format.write_array_header_2_0(out, value)
        return out.getvalue()

    return _stream(file, info, table, chunks, header)


def write_safetensors(file: BinaryIO, info: FeatureInfo, table: pd.DataFrame, chunks: Iterator[Chunk]) -> np.ndarray:
    """One tensor of the feature's name. The library's own writer wants all of it in memory."""
    row_bytes = int(np.prod(_row_shape(info))) * np.dtype(info.dtype).itemsize

    def text(count: int) -> bytes:
        value = {
            "__metadata__": {"feature": info.name, "fingerprint": info.fingerprint},
            info.name: {
                "dtype": {"float16": "F16", "float32": "F32"}[info.dtype],
                "shape": [count, *_row_shape(info)],
                "data_offsets": [0, count * row_bytes],
            },
        }
        return json.dumps(value).encode()

    room = -(-len(text(10**15)) // 8) * 8
    return _stream(file, info, table, chunks, lambda count: room.to_bytes(8, "little") + text(count).ljust(room))


def write_parquet(file: BinaryIO, info: FeatureInfo, table: pd.DataFrame, chunks: Iterator[Chunk]) -> np.ndarray:
    """A row a clip or utterance. float16 is written as float32, which holds it exactly and every reader knows."""
    pa, parquet = load_pyarrow()
    of_clips = info.per == "clip"
    width = int(np.prod(_row_shape(info)))
    kinds = {name: pa.int32() if table[name].dtype.kind in "iu" else pa.string() for name in table.columns}
    schema = pa.schema(
        [
            *kinds.items(),
            ("valid_frames" if of_clips else "rows", pa.int32()),
            ("features", pa.list_(pa.float32(), width) if of_clips else pa.large_list(pa.float32())),
        ],
        metadata={
            "shape": json.dumps(info.shape if of_clips else (-1, *_row_shape(info))),
            "feature": info.name,
            "fingerprint": info.fingerprint,
        },
    )
    valid = np.zeros(len(table), dtype=np.int64)
    words = [name for name, kind in kinds.items() if kind == pa.string()]
    with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=words) as writer:
        for chunk in chunks:
            flat = pa.array(np.ascontiguousarray(chunk.data, dtype=np.float32).reshape(-1))
            if of_clips:
                features = pa.FixedSizeListArray.from_arrays(flat, width)
            else:
                edges = np.concatenate([[0], np.cumsum(chunk.valid)]) * width
                features = pa.LargeListArray.from_arrays(pa.array(edges, pa.int64()), flat)
            part = table.iloc[chunk.rows]
            columns = [pa.array(part[name].to_numpy(), kind) for name, kind in kinds.items()]
            columns += [pa.array(chunk.valid, pa.int32()), features]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            valid[chunk.rows] = chunk.valid
    return valid


def load_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, which only this needs.

    Raises:
        CacheError: not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise CacheError(
            "Parquet needs pyarrow, which is not installed: pip install 'mfhca-cache[parquet]', "
            "or export as npy or safetensors"
        ) from error


WRITERS: dict[str, Writer] = {"npy": write_npy, "safetensors": write_safetensors, "parquet": write_parquet}


def _stream(
    file: BinaryIO,
    info: FeatureInfo,
    table: pd.DataFrame,
    chunks: Iterator[Chunk],
    header: Callable[[int], bytes],
) -> np.ndarray:
    """Write a header for so many rows, which is as long for any number, then the features, little-endian."""
    valid, count = np.zeros(len(table), dtype=np.int64), 0
    file.write(header(0))
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk.data).astype(np.dtype(info.dtype).newbyteorder("<"), copy=False).data)
        valid[chunk.rows] = chunk.valid
        count += len(chunk.data)
    # How many rows texts have is known once they are read.
    file.seek(0)
    file.write(header(count))
    return valid


def _row_shape(info: FeatureInfo) -> tuple[int, ...]:
    return info.shape if info.per == "clip" else info.shape[1:]
