"""Clips copied out of shards: the same as one at a time, each checked once, whatever the order and the threads."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import CacheError
from mfhca_cache.progress import Progress
from mfhca_cache.storage import layout, reading, receipts
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.dataset import _stack
from mfhca_cache.storage.layout import shard_path
from mfhca_cache.storage.reading import OpenMaps
from mfhca_cache.storage.shard import open_shard

from .features import add_feature

#: Three splits of ten clips, in shards of four: the third of a split has two.
SHAPE = (5, 8)
LOST = "Ses02_F001"


@pytest.fixture(scope="module")
def folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a feature in nine shards, one utterance of it rejected."""
    copy = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("reading") / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_CLIPS", 4)
        add_feature(copy, "noise", SHAPE, without=LOST)
    return copy


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(folder, tmp_path / "cache"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["one thread", "threads", "small clips"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> str:
    """Each way through the copying, whatever the size of the clips."""
    monkeypatch.setattr(reading, "_SMALL_CLIP_BYTES", 10**9 if request.param == "small clips" else 0)
    threshold = 0 if request.param == "threads" else 10**9
    monkeypatch.setattr(reading, "_THREADED_COPY_BYTES", threshold)
    monkeypatch.setattr(reading, "_THREADED_CHECK_BYTES", threshold)
    return str(request.param)


def slowly(cache: Cache) -> dict[int, tuple[bytes, int]]:
    """The plan's clip → its bytes and valid frames, by opening every shard."""
    found = {}
    info = cache.feature("noise")
    for shard in cache.plan.shards(info):
        receipt = cache.receipts("noise")[shard.name]
        assert receipt is not None
        opened = open_shard(shard_path(cache.path, info, shard), receipt)
        for row, clip in enumerate(opened.clip.tolist()):
            found[clip] = (opened.data[row].tobytes(), int(opened.valid[row]))
    return found


def read(cache: Cache, wanted: list[int]) -> list[tuple[bytes, int]]:
    out = np.empty((len(wanted), *SHAPE), dtype=np.float16)
    valid = cache.copy_clips("noise", np.array(wanted, dtype=np.int64), out)
    return [(clip.tobytes(), int(count)) for clip, count in zip(out, valid, strict=True)]


def flip(cache: Path, clip: int, shard: str = "session1-0000", first: int = 0) -> None:
    """Flip a bit of a clip, in place."""
    path = cache / "noise" / f"{shard}.h5"
    receipt = json.loads(path.with_suffix(".json").read_text())
    at = receipt["offset"] + (clip - first) * receipt["nbytes"] // receipt["shape"][0] + 3
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 8]))


# The same as one at a time


@given(st.data())
def test_any_clips_in_any_order_are_those_of_their_shards(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = open_cache(folder)
    right = slowly(cache)
    assert len(right) == 29
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_THREADED_COPY_BYTES", "_THREADED_CHECK_BYTES", "_SMALL_CLIP_BYTES"):
            patch.setattr(reading, name, data.draw(st.sampled_from([0, 200, 10**9]), name))
        for _ in range(3):  # The first time some are checked, then they are not; fresh shards and known ones mix.
            wanted = data.draw(st.lists(st.sampled_from(sorted(right)), max_size=40))
            assert read(cache, wanted) == [right[clip] for clip in wanted]


def test_a_call_crosses_shards_in_each_way(folder: Path, way: str) -> None:
    cache = open_cache(folder)
    right = slowly(cache)
    everything = sorted(right)
    for wanted in (everything, everything[::-1], everything[::3] + everything[1::3], [2, 2, 7, 2, 12, 29, 7]):
        assert read(cache, wanted) == [right[clip] for clip in wanted]


def test_no_clips_open_nothing(folder: Path) -> None:
    cache = open_cache(folder)
    out = np.empty((0, *SHAPE), dtype=np.float16)
    assert cache.copy_clips("noise", np.zeros(0, dtype=np.int64), out).shape == (0,)
    assert not cache._maps.order


def test_valid_frames_alone_read_no_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(folder)
    right = slowly(cache)
    monkeypatch.setattr(reading, "clip_digest", lambda _: pytest.fail("a clip was read"))
    assert cache.copy_clips("noise", np.array([9, 0]), None).tolist() == [right[9][1], right[0][1]]


def test_progress_ends_with_all_of_them(folder: Path, way: str) -> None:
    cache, told = open_cache(folder), list[Progress]()
    out = np.empty((10, *SHAPE), dtype=np.float16)
    cache.copy_clips("noise", np.arange(10), out, told.append)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert (told[-1].done, told[-1].total, told[-1].stage) == (10, 10, "loading noise")


@pytest.mark.parametrize("wanted", [[30], [-1], [3, 10**12]])
def test_clips_that_the_plan_does_not_have(folder: Path, wanted: list[int]) -> None:
    with pytest.raises(CacheError, match=r"got the clip -?\d+; the plan has 30"):
        read(open_cache(folder), wanted)


def test_a_clip_of_a_rejected_utterance(folder: Path) -> None:
    cache = open_cache(folder)
    table = cache.utterances.set_index("utterance_id")
    lost = int(table.loc[LOST, "first_clip"])
    with pytest.raises(CacheError, match=r"session2-0000\.h5: its clips are not those of before"):
        read(cache, [0, lost])
    assert len(cache.available(["noise"])) == 23 and LOST not in cache.available(["noise"])
    with pytest.raises(CacheError, match="it was rejected: made so"):
        cache.load("noise", [LOST])


@pytest.mark.parametrize(("shape", "kind"), [((2, 5, 8), "float32"), ((2, 5, 7), "float16"), ((3, 5, 8), "float16")])
def test_an_array_that_is_not_as_stored(folder: Path, shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(CacheError, match=r"out: got .*; expected float16 of shape \(2, 5, 8\)"):
        open_cache(folder).copy_clips("noise", np.array([0, 1]), np.empty(shape, kind))


# Checked once


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A count of the digests that are computed from now on."""
    count, real = [0], reading.clip_digest

    def digest(clip: np.ndarray) -> bytes:
        count[0] += 1
        return real(clip)

    monkeypatch.setattr(reading, "clip_digest", digest)
    return count


def test_a_clip_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    cache, count = open_cache(folder), counted(monkeypatch)
    read(cache, [0, 5, 9])
    assert count == [3]
    read(cache, [9, 0, 5, 5])
    assert count == [3]
    read(cache, [8, 9, 10])
    assert count == [5]
    read(open_cache(folder), [0])
    assert count == [6]


def test_a_clip_damaged_after_another_was_checked_is_found(copy: Path, way: str) -> None:
    cache = open_cache(copy)
    right = slowly(cache)
    assert read(cache, [0, 1]) == [right[0], right[1]]
    flip(copy, 2)
    for wanted in ([2], [0, 2], [3, 2, 1, 2], [2]):
        with pytest.raises(CacheError, match=r"session1-0000\.h5: 1 clip\(s\) are damaged .* clip 2 of the plan"):
            read(cache, wanted)
    assert read(cache, [1, 3, 0]) == [right[1], right[3], right[0]]
    flip(copy, 2)
    assert read(cache, [2]) == [right[2]]


def test_damage_in_two_shards_is_said_of_the_first(copy: Path, way: str) -> None:
    for clip, shard, first in ((3, "session1-0000", 0), (1, "session1-0000", 0), (4, "session1-0001", 4)):
        flip(copy, clip, shard, first)
    with pytest.raises(CacheError, match=r"session1-0000\.h5: 2 clip\(s\) are damaged .* clip 1 of the plan"):
        read(open_cache(copy), list(range(10)))


def test_what_is_handed_out_is_what_was_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file changes between the copy and the check: the copy that was made before is right, and is handed out.
    cache, real = open_cache(copy), reading.clip_digest
    right = slowly(cache)

    def digest(clip: np.ndarray) -> bytes:
        flip(copy, 0)
        return real(clip)

    monkeypatch.setattr(reading, "clip_digest", digest)
    assert read(cache, [0]) == [right[0]]


def test_an_interrupted_read_leaves_no_thread_at_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.setattr(reading, "_THREADED_CHECK_BYTES", 0)
    cache = open_cache(folder)

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    out = np.empty((10, *SHAPE), dtype=np.float16)
    with pytest.raises(KeyboardInterrupt):
        cache.copy_clips("noise", np.arange(10), out, stop)
    assert read(cache, list(range(10))) == [slowly(cache)[clip] for clip in range(10)]


def _read_in_a_child(cache: Cache, right: dict[int, tuple[bytes, int]]) -> None:
    torch.set_num_threads(2)
    os._exit(0 if read(cache, sorted(right)) == [right[clip] for clip in sorted(right)] else 1)


def test_a_forked_process_has_threads_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.setattr(reading, "_THREADED_CHECK_BYTES", 0)
    monkeypatch.setattr(reading, "_THREADED_COPY_BYTES", 0)
    cache = open_cache(folder)
    right = slowly(cache)
    read(cache, [0, 1, 2, 3])
    child = multiprocessing.get_context("fork").Process(target=_read_in_a_child, args=(cache, right))
    child.start()
    child.join(60)
    assert child.exitcode == 0


# Maps that are let go of


def test_few_maps_at_a_time_read_the_same(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, count = open_cache(folder), counted(monkeypatch)
    right = slowly(cache)
    cache._maps = OpenMaps(most=2)
    order = np.random.default_rng(0).permutation(sorted(right)).tolist()
    for _ in range(2):
        assert read(cache, order) == [right[clip] for clip in order]
        assert len(cache._maps.order) <= 2
        held = [array for array in cache._opened["noise"]._arrays if array is not None]
        assert len(held) <= 2
    assert count == [29]


def test_a_shard_written_anew_while_its_map_was_let_go_of_is_noticed(copy: Path) -> None:
    cache = open_cache(copy)
    cache._maps = OpenMaps(most=1)
    read(cache, [0])
    read(cache, [20])
    path = copy / "noise" / "session1-0000.h5"
    shutil.copy(path, copy / "other")
    (copy / "other").replace(path)
    with pytest.raises(CacheError, match=r"session1-0000\.h5: it was written anew .* open the cache again"):
        read(cache, [0])
    assert read(open_cache(copy), [0])


def test_a_share_of_the_files_that_the_system_lets_a_process_open() -> None:
    assert 32 <= reading.most_maps() <= 1024


# Receipts that are asked once


def age(cache: Path) -> None:
    """Make every receipt old enough to be believed unchanged."""
    for path in (cache / "noise").glob("*.json"):
        os.utime(path, (time.time() - 100,) * 2)


def test_receipts_are_read_once_and_again_where_they_change(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = list[str](), receipts.shard_receipt

    def shard_receipt(*args: object) -> object:
        asked.append(args[-1].name)  # type: ignore[attr-defined]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(receipts, "shard_receipt", shard_receipt)
    age(copy)
    cache = open_cache(copy)
    assert len(cache.available(["noise"])) == 23 and len(asked) == 9
    assert (
        cache.missing("noise") == {}
        and set(cache.rejected(["noise"])) == {LOST}
        and len(cache.available(["noise"])) == 23
    )
    assert len(asked) == 9
    path = copy / "noise" / "session3-0001.json"
    content = path.read_bytes()
    path.unlink()
    assert cache.missing("noise") == {"session3": 1} and len(asked) == 9
    path.write_bytes(content)
    assert cache.missing("noise") == {} and asked[9:] == ["session3-0001"]
    # Written a moment ago: it may be written again within the same tick of the clock.
    assert cache.missing("noise") == {} and asked[9:] == ["session3-0001"] * 2
    path.write_bytes(content.replace(b'"first": 24', b'"first": 23'))
    with pytest.raises(CacheError, match=r"session3-0001\.json: the receipt is damaged"):
        cache.missing("noise")


def test_what_is_available_needs_no_shard_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(copy)
    right = set(cache.plan.utterances["utterance_id"]) - {LOST}
    monkeypatch.setattr(Cache, "_open", lambda *_: pytest.fail("a shard was opened"))
    assert set(cache.available(["noise"])) == right
    assert cache.available(["noise", "spectrogram"], {"session2"}) == [n for n in sorted(right) if n[:5] == "Ses02"]


def test_a_shard_that_holds_less_than_its_receipt_explains_is_asked_itself(folder: Path, tmp_path: Path) -> None:
    cache = open_cache(folder)
    shard = next(s for s in cache.plan.shards(cache.feature("noise")) if s.name == "session2-0000")
    held = receipts.Held(rows=3, rejected=())
    stored = cache._stored(cache.feature("noise"), shard, held)
    assert stored.tolist() == [True, False, True, True]


# Batches without a copy


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [1, 2], [3], [0, 0]])
def test_tensors_that_lie_one_behind_the_other_are_stacked_without_a_copy(order: list[int]) -> None:
    base = torch.arange(4 * 6).reshape(4, 2, 3)
    values = [base[number] for number in order]
    stacked = _stack(values)
    assert torch.equal(stacked, torch.stack(values)) and stacked.is_contiguous()
    in_order = all(after == before + 1 for before, after in pairwise(order))
    assert (stacked.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()) is in_order


def test_tensors_of_elsewhere_are_stacked() -> None:
    make: Callable[[int], torch.Tensor] = lambda number: torch.full((2, 3), number)  # noqa: E731
    values = [make(0), make(1), torch.arange(6).reshape(3, 2).T]
    assert torch.equal(_stack(values), torch.stack(values))
