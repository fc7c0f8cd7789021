"""One part of an extraction, so that the jobs of an array never do the same work twice.

The runs of clips that shards are made of are dealt out in the plan's order: part 2 of 8 has the 2nd, the 10th, the
18th … of them, whatever is in the cache already.
"""

from __future__ import annotations

from collections.abc import Sequence

from mfhca_cache.errors import MfhcaError
from mfhca_cache.storage.layout import FeatureInfo, ShardRange, Split


def check_part(part: tuple[int, int] | None) -> None:
    """Check that a part is k of n with 1 ≤ k ≤ n.

    Raises:
        MfhcaError: it is not.
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise MfhcaError(f"shard: got {part[0]}/{part[1]}; expected k/n with 1 ≤ k ≤ n, such as 2/8")


def shards_of_part(
    features: Sequence[FeatureInfo], splits: Sequence[Split], part: tuple[int, int] | None
) -> list[tuple[FeatureInfo, ShardRange]]:
    """The shards that a part answers for, in the plan's order; every one where ``part`` is None."""
    runs: dict[tuple[int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
    for split in splits:
        for info in features:
            for shard in info.shards(split):
                runs.setdefault((shard.first, shard.stop), []).append((info, shard))
    k, n = part or (1, 1)
    return [item for run in sorted(runs)[k - 1 :: n] for item in runs[run]]
