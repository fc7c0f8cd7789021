"""One part of an extraction, so that the jobs of an array never do the same work twice.

The runs of clips (or of transcripts) that shards are made of are dealt out in the plan's order: part 2 of 8 has the
2nd, the 10th, the 18th … of them, whatever is in the cache already. Who plans for many may name several parts at once:
with as many parts as there are runs, each part is one run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mfhca_cache.errors import MfhcaError
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange, Unit

#: (k, n) for part k of n, or ((k, …), n) for several of the n, or for none: then a cache is begun and nothing built.
Part = tuple[int, int] | tuple[tuple[int, ...], int]


def check_part(part: Part | None) -> None:
    """Check that a part is k of n with 1 ≤ k ≤ n.

    Raises:
        MfhcaError: it is not.
    """
    if part is None:
        return
    for k in numbers(part) or (1,):
        if not 1 <= k <= part[1]:
            raise MfhcaError(f"shard: got {k}/{part[1]}; expected k/n with 1 ≤ k ≤ n, such as 2/8")


def numbers(part: Part) -> tuple[int, ...]:
    """The numbers of the parts that are meant, ascending."""
    return (part[0],) if isinstance(part[0], int) else tuple(sorted(part[0]))


def runs_of(
    plan: Plan, features: Sequence[FeatureInfo], splits: Collection[str]
) -> dict[tuple[Unit, int, int], list[tuple[FeatureInfo, ShardRange]]]:
    """The runs of clips, then of transcripts, in the plan's order, each with the shards that are made from it."""
    runs: dict[tuple[Unit, int, int], list[tuple[FeatureInfo, ShardRange]]] = {}
    for info in features:
        for shard in plan.shards(info, splits):
            runs.setdefault((info.per, shard.first, shard.stop), []).append((info, shard))
    return {run: runs[run] for run in sorted(runs)}


def shards_of_part(
    plan: Plan, features: Sequence[FeatureInfo], splits: Collection[str], part: Part | None
) -> list[tuple[FeatureInfo, ShardRange]]:
    """The shards that a part answers for, in the plan's order, clips first; every one where ``part`` is None."""
    runs = list(runs_of(plan, features, splits).values())
    if part is None:
        return [item for run in runs for item in run]
    mine = set(numbers(part))
    return [item for place, run in enumerate(runs) if place % part[1] + 1 in mine for item in run]
