"""The plan: which clips there are, in which order, by what identity."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import CacheError
from mfhca_cache.manifest import COLUMNS, make_manifest, natural_key
from mfhca_cache.spec import ClipSpec, fingerprint
from mfhca_cache.storage import layout
from mfhca_cache.storage.layout import IDENTITY, FeatureInfo, Plan, ShardRange, Split, make_plan

ENGINE: dict[str, Any] = {"device": "cpu", "threads": 1, "batch": 1}


def plan_of(*rows: tuple[str, str, float, int]) -> Plan:
    """A plan of rows of utterance_id, session, seconds and sample_rate."""
    table = [
        dict.fromkeys(COLUMNS, "")
        | {"corpus": "iemocap", "path": "a.wav", "speaker": "s", "label": "neu", "channels": 1}
        | dict(zip(("utterance_id", "session", "seconds", "sample_rate"), row, strict=True))
        | {"sha256": f"{number:064x}"}
        for number, row in enumerate(rows)
    ]
    return make_plan("iemocap", make_manifest("iemocap", None, pd.DataFrame(table)).utterances, ClipSpec(), "all")


FIVE = (
    ("b", "session10", 3.0, 16_000),
    ("a", "session2", 1 / 3, 44_100),
    ('c "é"\\', "session2", 7.25, 16_000),
    ("d\t\x01\n", "session10", 0.1, 8_000),
    ("語", "session2", 1e-4, 48_000),
)


def feature(per_shard: int, per: layout.Unit = "clip") -> FeatureInfo:
    return FeatureInfo("f", "encoder", {}, (0, 4) if per == "utterance" else (4,), "float16", per_shard, ENGINE, {},
                       per=per)  # fmt: skip


def test_identities_are_those_of_caches_that_exist() -> None:
    # Computed by the version that first wrote such caches.
    assert plan_of(*FIVE).identity() == "34cbde0975c583d182f17cec3b30dd4ca5eb8ff38ba2aaa28f3607e706917d9a"
    assert plan_of(*FIVE[:2]).identity() == "076454e176437bf32173f529c68292b4fdc024f6df8b6fc0a20585fcbdc5e489"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda text: text.strip())
ROWS = st.lists(
    st.tuples(
        WORDS | st.sampled_from(['","', '"],["', "\\", "x\x1fy", "\x7f", "a"]),
        st.sampled_from(["session1", "session2", "session10"]),
        st.floats(0.001, 1200),
        st.sampled_from([4_000, 11_025, 44_100, 384_000]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[0],
)


@given(ROWS, st.integers(1, 9))
def test_a_plan_is_in_order_and_its_identity_is_the_fingerprint_of_its_rows(
    rows: list[tuple[str, str, float, int]], chunk: int
) -> None:
    plan = plan_of(*rows)
    table = plan.utterances
    ordered = sorted(rows, key=lambda row: (natural_key(row[1]), row[0]))
    assert table["utterance_id"].tolist() == [row[0] for row in ordered]
    assert table["split"].tolist() == [row[1] for row in ordered]
    samples = [-(-round(seconds * rate) * 16_000 // rate) for _, _, seconds, rate in ordered]
    assert table["clips"].tolist() == [-(-count // 48_000) for count in samples]
    assert table["first_clip"].tolist() == [0, *np.cumsum(table["clips"])[:-1].tolist()]
    assert plan.splits[0].first == 0 and plan.splits[-1].stop == plan.clips == table["clips"].sum()
    for split in plan.splits:
        mine = table[table["split"] == split.name]
        assert (split.first, split.stop - split.first) == (mine["first_clip"].iloc[0], mine["clips"].sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_CHUNK_ROWS", chunk)
        expected = fingerprint([[str(value) for value in row] for row in table[list(IDENTITY)].to_numpy()])
        assert plan.identity() == expected


@given(ROWS, st.integers(1, 5))
def test_a_shard_knows_whose_it_is(rows: list[tuple[str, str, float, int]], per_shard: int) -> None:
    rows = [(name, session, seconds % 20 + 0.01, rate) for name, session, seconds, rate in rows]
    plan = plan_of(*rows)
    table = plan.utterances
    for per in ("clip", "utterance"):
        info = feature(per_shard, per)
        shards = plan.shards(info)
        assert [shard.first for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
        for shard in shards:
            assert 1 <= shard.stop - shard.first <= per_shard
            touched = (table["first_clip"] < shard.stop) & (table["first_clip"] + table["clips"] > shard.first)
            mine = table[touched] if per == "clip" else table.iloc[shard.first : shard.stop]
            assert plan.ids(plan.rows_of_run(per, shard.first, shard.stop)) == mine["utterance_id"].tolist()
            assert list(plan.sources(info, shard)) == mine["utterance_id"].tolist()
            first, stop = plan.clips_of(info, shard)
            if per == "utterance":
                assert (first, stop - first) == (mine["first_clip"].iloc[0], mine["clips"].sum())
            else:
                assert plan.audio(first, stop) == dict(zip(mine["utterance_id"], mine["sha256"], strict=True))


def test_edges_of_a_plan() -> None:
    plan = plan_of(*FIVE)
    assert plan.splits == (Split("session2", 0, 5), Split("session10", 5, 7))
    assert plan.audio(1, 2) == plan.audio(3, 4) == {'c "é"\\': f"{2:064x}"}
    assert list(plan.audio(0, 5)) == ["a", 'c "é"\\', "語"] and list(plan.audio(6, 7)) == ["d\t\x01\n"]
    assert plan.rows_of(["b", "no such", "a"]).tolist() == [3, -1, 0]
    assert plan.shards(feature(512), {"session10"}) == [ShardRange("session10-0000", "session10", 5, 7)]
    assert plan.clips_of(feature(9, "utterance"), ShardRange("x", "x", 3, 5)) == (5, 7)


def test_without_sessions_there_is_one_split() -> None:
    plan = plan_of(*((name, "", seconds, rate) for name, _, seconds, rate in FIVE))
    assert plan.splits == (Split("all", 0, 7),) and set(plan.utterances["split"]) == {"all"}
    with pytest.raises(CacheError, match="'a' has no session, other rows have"):
        plan_of(FIVE[0], ("a", "", 1.0, 16_000))


def test_a_plan_is_pickled_without_what_it_remembers() -> None:
    plan = plan_of(*FIVE)
    before = len(pickle.dumps(plan))
    plan.identity(), plan.audio(0, 1), plan.rows_of(["a"])
    content = pickle.dumps(plan)
    assert len(content) == before
    again = pickle.loads(content)
    assert again.identity() == plan.identity() and again.splits == plan.splits
