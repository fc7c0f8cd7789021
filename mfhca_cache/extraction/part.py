"""One part of an extraction, so that the jobs of an array never do the same work twice.

The runs of clips (or of transcripts) that shards are made of are dealt out in the plan's order: part 2 of 8 has the
2nd, the 10th, the 18th … of them, whatever is in the cache already.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mfhca_cache.errors import MfhcaError
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Unit


def check_part(part: tuple[int, int] | None) -> None:
    """Check that a part is k of n with 1 ≤ k ≤ n.

    Raises:
        MfhcaError: it is not.
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise MfhcaError(f"shard: got {part[0]}/{part[1]}; expected k/n with 1 ≤ k ≤ n, such as 2/8")


def shards_of_part(
    plan: Plan, features: Sequence[FeatureInfo], splits: Collection[str], part: tuple[int, int] | None
) -> list[tuple[FeatureInfo, ShardRange]]:
    """The shards that a part answers for, in the plan's order, clips first; every one where ``part`` is None."""
    runs: dict[tuple[Unit, int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
    for info in features:
        for shard in plan.shards(info, splits):
            runs.setdefault((info.per, shard.first, shard.stop), []).append((info, shard))
    k, n = part or (1, 1)
    return [item for run in sorted(runs)[k - 1 :: n] for item in runs[run]]
