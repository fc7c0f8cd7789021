from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import mfhca_cache
from mfhca_cache.errors import CacheError, TrainingError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.storage.dataset import frame_mask
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import TrainOptions

from .conftest import TINY
from .features import add_feature
from .test_features import bert, of_text, spoken

BOTH = ["spectrogram", "random-tiny"]


@pytest.fixture
def copy(small_cache_folder: Path, tmp_path: Path) -> Path:
    """A cache of its own for a test that changes it."""
    return Path(shutil.copytree(small_cache_folder, tmp_path / "cache"))


def flip(folder: Path, feature: str, clip: int) -> None:
    """Flip a bit of a clip of the first shard."""
    shard = folder / feature / "session1-0000.h5"
    receipt = mfhca_cache.storage.shard.read_receipt(shard.with_suffix(".json"))
    content = bytearray(shard.read_bytes())
    content[receipt.offset + clip * receipt.nbytes // receipt.shape[0] + 11] ^= 4
    shard.write_bytes(content)


# Items


def test_items_are_the_clips_of_load(small_cache: Cache) -> None:
    loaded = small_cache.load(BOTH)
    dataset = small_cache.dataset(BOTH)
    assert len(dataset) == 30
    for number, item in enumerate(dataset):
        row = loaded["clips"].iloc[number]
        assert set(item) == {*BOTH, *(f"valid_{name}" for name in BOTH), "utterance_id", "clip", "label"}
        assert (item["utterance_id"], item["clip"]) == (row["utterance_id"], row["clip"])
        for name in BOTH:
            assert torch.equal(item[name], loaded[name][number]) and item[name].dtype == torch.float16
            assert item[f"valid_{name}"] == row[f"valid_{name}"]
    labels = small_cache.utterances.set_index("utterance_id")["label"]
    assert all(item["label"] == labels[item["utterance_id"]] for item in dataset)
    assert torch.equal(dataset[-1]["spectrogram"], loaded["spectrogram"][29])
    with pytest.raises(IndexError):
        dataset[30]


def test_an_utterance_is_all_its_clips(small_cache: Cache) -> None:
    dataset = small_cache.dataset(BOTH, by="utterance")
    assert len(dataset) == 24 == len(dataset.utterances)
    assert [item["utterance_id"] for item in dataset] == list(dataset.utterances["utterance_id"])
    name = "Ses02_F002"  # the one with two clips
    item = small_cache.utterance(name, BOTH)
    direct = small_cache.load(BOTH, [name])
    assert set(item) == {*BOTH, *(f"valid_{feature}" for feature in BOTH), "utterance_id", "clips", "label"}
    assert (item["label"], item["clips"]) == ("neu", 2)
    for feature in BOTH:
        assert torch.equal(item[feature], direct[feature]) and len(item[feature]) == 2
        assert item[f"valid_{feature}"].tolist() == list(direct["clips"][f"valid_{feature}"])
    assert torch.equal(
        dataset[list(dataset.utterances["utterance_id"]).index(name)]["spectrogram"], item["spectrogram"]
    )
    with pytest.raises(CacheError, match="no utterance 'Ses09_F000'"):
        small_cache.utterance("Ses09_F000", "spectrogram")


def test_wrong_names_are_answered(small_cache: Cache) -> None:
    with pytest.raises(CacheError, match=r"no feature 'mfcc'; this cache has: random-tiny, spectrogram"):
        small_cache.dataset("mfcc")
    with pytest.raises(CacheError, match="by: got 'speaker'; expected 'clip' or 'utterance'"):
        small_cache.dataset("spectrogram", by="speaker")  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="no feature was named"):
        small_cache.dataset([])


# where=


def test_where_chooses_utterances_in_every_form(small_cache: Cache) -> None:
    table = small_cache.utterances
    mask = (table["speaker"] != "1F") & (table["label"] == "neu")
    wanted = list(table.loc[mask, "utterance_id"])
    forms: list[Any] = [
        "speaker != '1F' and label == 'neu'",
        "label.str.startswith('n') and speaker not in ['1F']",
        mask,
        mask.to_numpy(),
        list(mask),
        lambda rows: (rows["speaker"] != "1F") & (rows["label"] == "neu"),
        wanted,
        tuple(wanted),
        table.loc[mask, "utterance_id"],
    ]
    for where in forms:
        dataset = small_cache.dataset("spectrogram", where)
        assert list(dataset.utterances["utterance_id"]) == wanted
        assert len(dataset) == 10, where
    assert small_cache.select("speaker == '1F'") == [f"Ses01_F00{n}" for n in range(4)]
    assert small_cache.select() == list(table["utterance_id"])


def test_ids_keep_their_order_and_may_repeat(small_cache: Cache) -> None:
    ids = ["Ses03_M002", "Ses01_F000", "Ses03_M002"]
    dataset = small_cache.dataset("spectrogram", ids, by="utterance")
    assert [item["utterance_id"] for item in dataset] == ids
    assert [len(item["spectrogram"]) for item in dataset] == [2, 1, 2]
    assert list(small_cache.dataset("spectrogram", ids).clips["clip"]) == [0, 1, 0, 0, 1]
    assert len(small_cache.dataset("spectrogram", [])) == 0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("speaker == '9F'", r"chooses none of 24 utterances"),
        ("speaker", r"got 24 values; expected 24 booleans"),
        ("nobody == 1", r"is not a condition.*on the columns .*speaker"),
        ("speaker == @name", r"is not a condition"),
        ("speaker = '1F'", r"expected 24 booleans"),
        ("speaker ==", r"is not a condition"),
        ("Ses01_F000", r"one utterance is where=\['Ses01_F000'\]"),
        ([True, False], r"the mask: got 2 values; expected 24 booleans"),
        (np.zeros(24, dtype=bool), r"where chooses none"),
        (["Ses09_F000"], r"no utterance 'Ses09_F000'"),
        (lambda table: "1F", r"the function's result: got str"),
        (lambda table: table.query("speaker == '1F'"), r"got DataFrame"),
    ],
)
def test_a_where_that_means_nothing_is_an_error(small_cache: Cache, where: Any, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        small_cache.dataset("spectrogram", where)


def test_masks_and_tables_of_elsewhere_are_refused(small_cache: Cache) -> None:
    table = small_cache.utterances.sort_values("label")
    with pytest.raises(CacheError, match="its index is not that of"):
        small_cache.dataset("spectrogram", table["label"] == "neu")
    with pytest.raises(CacheError, match=r"give its ids: where=table\['utterance_id'\]"):
        small_cache.dataset("spectrogram", table)


def test_conditions_choose_among_what_is_there_and_ids_demand_it(copy: Path) -> None:
    (copy / "random-tiny" / "session2-0000.json").unlink()
    cache = open_cache(copy)
    assert len(cache.dataset(BOTH)) == 20
    assert len(cache.dataset(BOTH, "label == 'neu'", by="utterance")) == 4
    with pytest.raises(CacheError, match="chooses 4 utterances, and none of them has the features"):
        cache.dataset(BOTH, "speaker == '2F'")
    with pytest.raises(CacheError, match=r"'Ses02_F000' has no spectrogram and random-tiny.*--split session2"):
        cache.dataset(BOTH, ["Ses02_F000"])
    assert len(cache.dataset("spectrogram", ["Ses02_F000"])) == 1


# Batches


def test_a_batch_by_clip_has_masks_of_frames(small_cache: Cache) -> None:
    dataset = small_cache.dataset(BOTH, "label == 'neu'")
    (batch,) = DataLoader(dataset, batch_size=12, collate_fn=dataset.collate)
    assert batch["spectrogram"].shape == (12, 300, 200)
    assert batch["mask_spectrogram"].shape == (12, 300) and batch["mask_spectrogram"].dtype == torch.bool
    assert torch.equal(batch["mask_spectrogram"].sum(1), batch["valid_spectrogram"])
    assert batch["valid_spectrogram"].tolist()[:2] == [300, 40]  # 3.4 s: a whole clip and 0.4 s
    assert batch["clip"].tolist() == [0, 1] * 6
    assert batch["label"] == ["neu"] * 12
    assert batch["utterance_id"] == list(dataset.clips["utterance_id"])
    plain = next(iter(DataLoader(dataset, batch_size=12)))  # torch's own collation does, too
    assert torch.equal(plain["spectrogram"], batch["spectrogram"])


def test_a_batch_by_utterance_is_padded_and_masked(small_cache: Cache) -> None:
    dataset = small_cache.dataset(BOTH, ["Ses01_F001", "Ses01_F002"], by="utterance")
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    assert batch["mask"].tolist() == [[True, False], [True, True]]
    assert batch["random-tiny"].shape == (2, 2, 149, 64)
    assert not batch["random-tiny"][0, 1].any()
    assert batch["mask_spectrogram"].shape == (2, 2, 300)
    assert batch["valid_spectrogram"].tolist() == [[120, 0], [300, 40]]
    assert batch["mask_spectrogram"].sum(2).tolist() == [[120, 0], [300, 40]]
    for number, item in enumerate(dataset):
        clips = len(item["random-tiny"])
        assert torch.equal(batch["random-tiny"][number, :clips], item["random-tiny"])


def test_features_of_every_shape_are_padded_and_masked(copy: Path) -> None:
    add_feature(copy, "layers", (3, 20, 8), layers="all")
    add_feature(copy, "means", (3, 16), layers="all", pool="mean")
    names, ids = ["layers", "means"], ["Ses01_F001", "Ses01_F002"]
    clips = open_cache(copy).dataset(names, ids)
    batch = clips.collate([clips[number] for number in range(3)])
    assert batch["layers"].shape == (3, 3, 20, 8) and batch["means"].shape == (3, 3, 16)
    assert batch["mask_layers"].sum(1).tolist() == [8, 20, 3] and "mask_means" not in batch
    whole = open_cache(copy).dataset(names, ids, by="utterance")
    batch = whole.collate([whole[0], whole[1]])
    assert batch["layers"].shape == (2, 2, 3, 20, 8) and batch["means"].shape == (2, 2, 3, 16)
    assert batch["mask_layers"].sum(2).tolist() == [[8, 0], [20, 3]] and "mask_means" not in batch


@pytest.fixture(scope="module")
def with_text(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of one session's clips and transcripts, one of them empty."""
    folder = tmp_path_factory.mktemp("text")
    bert(folder / "bert")
    manifest = spoken(small_manifest, {"Ses01_F000": ""})
    extract(manifest, folder / "cache", replace(TINY, encoder=None), "session1", device="cpu")
    extract(manifest, folder / "cache", of_text(folder / "bert"), "session1", device="cpu")
    return folder / "cache"


def test_text_lies_beside_clips_and_utterances(with_text: Path) -> None:
    cache = open_cache(with_text)
    ids = ["Ses01_F002", "Ses01_M001", "Ses01_F002"]
    loaded = cache.load("bert", ids)["bert"]
    assert len({len(text) for text in loaded}) == 2
    whole = cache.dataset(["bert", "spectrogram"], ids, by="utterance")
    assert [item["clips"] for item in whole] == [2, 1, 2]
    for item, text in zip(whole, loaded, strict=True):
        assert torch.equal(item["bert"], text) and item["valid_bert"] == len(text)
    batch = whole.collate([whole[0], whole[1]])
    assert batch["bert"].shape == (2, max(map(len, loaded)), 32) and batch["spectrogram"].shape == (2, 2, 300, 200)
    assert batch["mask"].tolist() == [[True, True], [True, False]]
    assert batch["mask_bert"].sum(1).tolist() == [len(loaded[0]), len(loaded[1])]
    assert torch.equal(batch["bert"][1][batch["mask_bert"][1]], loaded[1])
    clips = cache.dataset(["spectrogram", "bert"], ids)
    assert [item["clip"] for item in clips] == [0, 1, 0, 0, 1]
    for item, place in zip(clips, (0, 0, 1, 2, 2), strict=True):
        assert torch.equal(item["bert"], loaded[place])
    batch = clips.collate([clips[number] for number in range(5)])
    assert batch["mask_bert"].sum(1).tolist() == [len(loaded[place]) for place in (0, 0, 1, 2, 2)]
    assert len(cache.dataset(["spectrogram", "bert"], by="utterance")) == 7  # an empty text is none
    assert len(cache.dataset("spectrogram", by="utterance")) == 8


def test_training_on_text_is_refused_clearly(with_text: Path) -> None:
    with pytest.raises(TrainingError, match=r"bert has features of utterances.*training takes features of clips"):
        prepare(open_cache(with_text), TrainOptions("tests.own_models:Flat", "bert"), "cpu")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 8))
def test_a_frame_mask_counts_its_frames(valid: list[int], frames: int) -> None:
    mask = frame_mask(torch.tensor(valid), frames)
    assert mask.shape == (len(valid), frames)
    assert mask.sum(1).tolist() == [min(count, frames) for count in valid]
    assert mask.tolist() == [sorted(row, reverse=True) for row in mask.tolist()]


# Processes


def test_a_pickled_dataset_holds_nothing_open(small_cache: Cache) -> None:
    dataset = small_cache.dataset(BOTH)
    before = dataset[3]
    content = pickle.dumps(dataset)
    assert len(content) < 100_000 < 30 * 300 * 200 * 2
    again = pickle.loads(content)
    assert not again.cache._opened
    assert torch.equal(again[3]["spectrogram"], before["spectrogram"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(
    method: str, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = open_cache("cache").dataset(BOTH)  # a relative path, and the parent has read from it
    alone = [dataset[number] for number in range(len(dataset))]
    loader = DataLoader(
        dataset, batch_size=7, num_workers=2, collate_fn=dataset.collate, multiprocessing_context=method
    )
    batches = list(loader)
    for name in BOTH:
        assert torch.equal(torch.cat([batch[name] for batch in batches]), torch.stack([item[name] for item in alone]))
    assert [x for batch in batches for x in batch["utterance_id"]] == [item["utterance_id"] for item in alone]


def test_a_damaged_clip_is_an_error_wherever_it_is_read(copy: Path) -> None:
    flip(copy, "random-tiny", 5)
    dataset = open_cache(copy).dataset(BOTH)
    assert dataset[4]["clip"] == 0
    with pytest.raises(CacheError, match=r"session1-0000\.h5: 1 clip\(s\) are damaged"):
        dataset[5]
    with pytest.raises(CacheError, match="are damaged"):
        dataset[5]  # and not only the first time
    for number in (0, 4, 6, 29):
        dataset[number]
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(CacheError, match=r"clip 5 of the plan"):
        list(loader)


def test_a_shard_that_lost_a_clip_gives_no_other_in_its_place(copy: Path) -> None:
    # A clip less in the shard, as if its utterance had been rejected when the shard was extracted again.
    add_feature(copy, "layers", (3, 20, 8))
    dataset = open_cache(copy).dataset("layers")
    nine = dataset[9]["layers"]
    content = pickle.dumps(dataset)
    for lost, number in (("Ses01_F001", 1), ("Ses01_M003", 9)):
        add_feature(copy, "layers", (3, 20, 8), without=lost)
        with pytest.raises(CacheError, match="its clips are not those of before; open the cache again"):
            pickle.loads(content)[number]
        assert len(open_cache(copy).dataset("layers")) == 29
    add_feature(copy, "layers", (3, 20, 8), without="Ses01_F001")
    assert torch.equal(pickle.loads(content)[9]["layers"], nine)


def test_many_datasets_read_one_cache_at_once(small_cache: Cache) -> None:
    from concurrent.futures import ThreadPoolExecutor

    whole = small_cache.load("spectrogram")["spectrogram"]
    fresh = open_cache(small_cache.path)

    def total(_: int) -> bool:
        return torch.equal(torch.stack([item["spectrogram"] for item in fresh.dataset("spectrogram")]), whole)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(total, range(8)))
