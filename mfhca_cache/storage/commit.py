"""How a shard comes into force: its file, then its receipt.

A shard that is made again (its audio came back) replaces one that is in force. Between the two renames the old receipt
would stand beside the new file, and a kill there would take back clips that were committed. So the new receipt is first
published as ``<shard>.json.next``: whichever of the two receipts fits the file is the one in force.
"""

from __future__ import annotations

from pathlib import Path

from mfhca_cache.errors import CacheError, StaleShardError
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, shard_path
from mfhca_cache.storage.publish import publish, publish_json, remove_temporaries, sync_folder
from mfhca_cache.storage.shard import Receipt, open_shard, read_receipt


def commit_shard(folder: Path, name: str, content: bytes | memoryview, receipt: Receipt) -> None:
    """Publish a shard and its receipt, for who holds the shard's lock and has called `settle`.

    Args:
        folder: of the feature.
        name: of the shard, such as ``session1-0000``.

    Raises:
        CacheError: the disk is full or the folder is read-only; what was in force before still is.
    """
    following = _next(folder, name)
    replaces = (folder / f"{name}.json").exists()
    if replaces:
        publish_json(following, receipt.to_json())
    publish(folder / f"{name}.h5", content)
    publish_json(folder / f"{name}.json", receipt.to_json())
    if replaces:
        following.unlink(missing_ok=True)


def receipt_in_force(folder: Path, name: str) -> Receipt | None:
    """The receipt of a shard, or None where it was never committed.

    Raises:
        CacheError: the receipt is damaged.
    """
    following = _following(folder, name)
    if following is not None:
        return following
    path = folder / f"{name}.json"
    return read_receipt(path) if path.exists() else None


def shard_receipt(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
    """A shard's receipt, or None where there is none.

    Raises:
        StaleShardError: it is of other audio or transcripts than the plan lists.
        CacheError: the receipt is damaged, or is of other settings or another run of clips.
    """
    path = folder / info.name / f"{shard.name}.json"
    receipt = receipt_in_force(folder / info.name, shard.name)
    if receipt is None:
        return None
    stated = (receipt.shard, receipt.fingerprint, receipt.first, receipt.stop, receipt.dtype)
    wanted = (shard.name, info.fingerprint, shard.first, shard.stop, info.dtype)
    rejected = {item.path for item in receipt.rejected}
    expected = sources = plan.sources(info, shard)
    if info.per == "clip":
        expected = {name: digest for name, digest in sources.items() if name not in rejected}
    if stated != wanted or not info.fits(receipt.shape) or not rejected <= set(sources):
        raise CacheError(f"{path}: belongs to another plan or other settings; delete it and extract this shard again")
    if receipt.audio != expected:
        what = "transcripts" if info.per == "utterance" else "audio"
        again = "mfhca extract" + (f" --text-encoder {info.source.get('name')}" if info.per == "utterance" else "")
        raise StaleShardError(
            f"{path}: belongs to another plan: made from other {what}; `{again}` makes this shard anew"
        )
    return receipt


def whole_receipt(folder: Path, plan: Plan, info: FeatureInfo, shard: ShardRange) -> Receipt | None:
    """The receipt of a shard that opens; None where it is missing, foreign, or was torn when its writer died."""
    try:
        receipt = shard_receipt(folder, plan, info, shard)
        if receipt is not None:
            open_shard(shard_path(folder, info, shard), receipt)
    except CacheError:
        return None
    return receipt


def is_committed(folder: Path, name: str) -> bool:
    """Whether a shard has a receipt, sound or not."""
    return (folder / f"{name}.json").exists() or _following(folder, name) is not None


def is_settled(folder: Path, name: str) -> bool:
    """Whether no killed writer has left a shard's replacement half done, which `settle` would end."""
    return not _next(folder, name).exists()


def settle(folder: Path, name: str) -> None:
    """Clear what killed writers of a shard left, and end what they had begun. Only for who holds the shard's lock."""
    for suffix in ("h5", "json"):
        remove_temporaries(folder, f"{name}.{suffix}")
    end_replacement(folder, name)


def end_replacement(folder: Path, name: str) -> None:
    """End or take back the replacement of a shard that a killed writer left half done; the shard's lock is held."""
    if _next(folder, name).exists():
        if _following(folder, name) is not None:
            _next(folder, name).replace(folder / f"{name}.json")
            sync_folder(folder)
        else:
            _next(folder, name).unlink(missing_ok=True)


def _next(folder: Path, name: str) -> Path:
    return folder / f"{name}.json.next"


def _following(folder: Path, name: str) -> Receipt | None:
    """The receipt that was to follow, if the file is already the one that it describes."""
    if not _next(folder, name).exists():
        return None
    try:
        receipt = read_receipt(_next(folder, name))
        open_shard(folder / f"{name}.h5", receipt)
    except CacheError as error:
        # What cannot be read today may be in force all the same.
        if disk_refuses(error):
            raise
        return None
    return receipt


def disk_refuses(error: BaseException) -> bool:
    """Whether it was the system that would not read, which says nothing about the bytes."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, FileNotFoundError)
