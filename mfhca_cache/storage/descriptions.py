"""A cache's descriptions as files: cache.json and utterances.csv, which hold the plan, and a feature.json a feature."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from mfhca_cache.errors import CacheError, MfhcaError
from mfhca_cache.files import is_intact, read_regular, seal
from mfhca_cache.manifest import MAX_TABLE_BYTES, csv_bytes, make_manifest, parse_table
from mfhca_cache.spec import DTYPES, FORMAT_VERSION, ClipSpec, settings
from mfhca_cache.storage.layout import MAX_SHARD_BYTES, FeatureInfo, Plan, Split, Unit, make_plan
from mfhca_cache.storage.publish import make_folder, publish, publish_json, remove_temporaries
from mfhca_cache.storage.shard import check_format, read_json

#: Of a clip: sixty seconds of every layer of a large encoder take a third of it.
MAX_CLIP_BYTES = 2**30
_ENGINE_COUNTS = ("threads", "batch")
_PUT_BACK = (
    "put the file back or run `mfhca extract` with the manifest, which writes it anew, or begin another cache with "
    "--cache"
)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write utterances.csv, then cache.json, which commits it."""
    table = _table_bytes(plan)
    publish(folder / "utterances.csv", table)
    _write_description(folder, plan, [_sha256(table)])


def write_utterances(folder: Path, plan: Plan) -> None:
    """Write the plan's rows anew, where labels and the like have changed, so that a kill leaves the old or the new."""
    table = _table_bytes(plan)
    before = read_json(folder / "cache.json").get("utterances_sha256")
    known = [item for item in before if isinstance(item, str)] if isinstance(before, list) else []
    _write_description(folder, plan, [*known[-1:], _sha256(table)])
    publish(folder / "utterances.csv", table)
    _write_description(folder, plan, [_sha256(table)])


def _write_description(folder: Path, plan: Plan, tables: list[str]) -> None:
    """Write cache.json; ``tables`` are the digests that utterances.csv may have."""
    value = {"format": FORMAT_VERSION, **_identity(plan), "utterances": len(plan.utterances), "clips": plan.clips}
    value |= {"utterances_sha256": tables, "splits": [settings(split) for split in plan.splits]}
    publish_json(folder / "cache.json", seal(value))


def _identity(plan: Plan) -> dict[str, Any]:
    """What of cache.json decides which clips there are."""
    clip = settings(plan.clip)
    return {"corpus": plan.corpus, "clip": clip, "rows": plan.rows, "plan_sha256": plan.identity()}


def _table_bytes(plan: Plan) -> bytes:
    """The plan's rows, without the columns that the plan derives."""
    return csv_bytes(plan.utterances.drop(columns=["split", "clips", "first_clip"]))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_plan(folder: Path) -> Plan:
    """Read and check a cache's plan.

    Raises:
        CacheError: no cache, damaged, of another format, or utterances.csv of other audio than the plan's.
    """
    path = folder / "cache.json"
    if not path.exists():
        raise CacheError(f"{folder}: no cache here (cache.json is missing); `mfhca extract` makes one in a new folder")
    value = read_json(path)
    try:
        check_format(value["format"], path)
        _check_seal(value)
        clip = ClipSpec(**value["clip"])
        csv = folder / "utterances.csv"
        table = read_regular(csv, MAX_TABLE_BYTES)
        rows = make_manifest("cache", None, parse_table(table, csv), source="utterances.csv").utterances
        plan = make_plan(str(value["corpus"]), rows, clip, str(value["rows"]))
        stated = [Split(**split) for split in value["splits"]]
        # A cache begun before there were digests of the table has none.
        tables = list(value.get("utterances_sha256", [_sha256(table)]))
    except CacheError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, MfhcaError) as error:
        raise CacheError(f"{folder}: cache.json or utterances.csv is damaged ({error}); {_PUT_BACK}") from error
    if plan.identity() != value.get("plan_sha256") or list(plan.splits) != stated:
        raise CacheError(
            f"{folder}/utterances.csv lists other utterances or audio than cache.json was planned for; {_PUT_BACK}"
        )
    # A label or a speaker that was changed here would end in a wrong score.
    if _sha256(table) not in tables:
        raise CacheError(f"{folder}/utterances.csv is not as it was written (its SHA-256 differs); {_PUT_BACK}")
    return plan


def remove_plan_leftovers(folder: Path) -> None:
    """Remove what killed writers of the plan left. Only for who holds the lock ``plan``."""
    for name in ("cache.json", "utterances.csv"):
        remove_temporaries(folder, name)


def is_plan_of(folder: Path, plan: Plan) -> bool:
    """Whether cache.json is whole and was written for this plan, whatever became of utterances.csv beside it."""
    try:
        value = read_json(folder / "cache.json")
        _check_seal(value)
    except (CacheError, ValueError):
        return False
    wanted = {"format": FORMAT_VERSION, **_identity(plan)}
    return {key: value.get(key) for key in wanted} == wanted


def _check_seal(value: dict[str, Any]) -> None:
    if not is_intact(value):
        raise ValueError("its checksum differs")


def write_feature(folder: Path, info: FeatureInfo) -> None:
    """Write ``<cache>/<feature>/feature.json``."""
    make_folder(folder / info.name)
    value = {"format": FORMAT_VERSION, **settings(info), "fingerprint": info.fingerprint}
    publish_json(folder / info.name / "feature.json", seal(value))


def read_feature(folder: Path, name: str) -> FeatureInfo:
    """Read and check a feature.json.

    Raises:
        CacheError: missing, damaged, of another format, or its fingerprint is not that of its settings.
    """
    path = folder / name / "feature.json"
    value = read_json(path)
    try:
        check_format(value["format"], path)
        known = {item.name for item in fields(FeatureInfo)}
        info = FeatureInfo(**{key: item for key, item in value.items() if key in known} | {"name": name})
        info = replace(info, shape=tuple(info.shape))
        if info.fingerprint != value["fingerprint"]:
            raise ValueError("its fingerprint is not that of its settings")
        _check_feature(info)
        _check_seal(value)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CacheError(
            f"{path}: damaged ({error}); put it back from a copy, or delete it and run the `mfhca extract` that made "
            "the feature: shards of the same settings and weights are kept"
        ) from error
    return info


def _check_feature(info: FeatureInfo) -> None:
    """A ValueError where a feature.json's values are of other types than stated, or beyond what a feature is."""
    sizes = info.shape if info.per == "clip" else info.shape[1:]
    if info.per not in get_args(Unit) or info.dtype not in DTYPES or not sizes:
        raise ValueError(f"got a {info.per} of shape {info.shape} and type {info.dtype!r}")
    if not all(_is_count(size, 2**31) for size in sizes):
        raise ValueError(f"got a clip of shape {info.shape} and type {info.dtype!r}")
    shard_bytes = info.clip_bytes * info.clips_per_shard if _is_count(info.clips_per_shard, 2**20) else math.inf
    if shard_bytes > max(MAX_CLIP_BYTES, MAX_SHARD_BYTES):
        raise ValueError(f"got {info.clips_per_shard} clips a shard of {info.clip_bytes:,} bytes each")
    if not isinstance(info.source, dict) or type(info.random_weights) is not bool or not isinstance(info.kind, str):
        raise ValueError("got a value of another type than a feature.json has")
    engine = info.engine
    if engine["device"] not in ("cpu", "cuda") or not all(_is_count(engine[key], 2**20) for key in _ENGINE_COUNTS):
        raise ValueError(f"got the engine {engine}")
    if not all(isinstance(engine.get(key, ""), str) for key in ("name", "version", "precision")):
        raise ValueError(f"got the engine {engine}")


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most
