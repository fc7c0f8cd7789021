"""Damaged files: whichever bit is flipped and wherever a file is cut, what is read is right or refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from mfhca_cache.errors import CacheError, MfhcaError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, read_manifest, write_manifest
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.maintain import repair
from mfhca_cache.storage.shard import read_receipt

from . import faults
from .conftest import small_corpus, tone, write_wav
from .faults import ALONE

LONG = pytest.mark.faults
Figure = Callable[[str], None]


class Whole:
    """A small cache, what it holds, and a copy of it to damage."""

    def __init__(self, folder: Path) -> None:
        self.manifest = small_corpus(folder / "corpus", sessions=1)
        self.csv = folder / "m.csv"
        write_manifest(self.manifest, self.csv)
        extract(self.manifest, folder / "whole", ALONE)
        self.right = faults.reference(folder / "whole")
        self.files = faults.files(folder / "whole")
        self.copy = Path(shutil.copytree(folder / "whole", folder / "copy"))
        self.shard = self.copy / "spectrogram" / "session1-0000.h5"
        self.table = open_cache(self.copy).utterances

    def mend(self) -> None:
        for name, content in self.files.items():
            (self.copy / name).write_bytes(content)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def whole(shared: Whole) -> Iterator[Whole]:
    yield shared
    shared.mend()


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def regions(path: Path) -> dict[str, list[int]]:
    """Class of bytes of a shard's file → the bytes."""
    receipt = read_receipt(path.with_suffix(".json"))
    content = path.read_bytes()
    found: dict[str, list[int]] = {"superblock": list(range(96))}
    with h5py.File(path) as file:
        for name in ("data", "clip", "valid", "digest"):
            start = file[name].id.get_offset()
            found[name] = list(range(start, start + file[name].id.get_storage_size()))
    taken = {at for places in found.values() for at in places}
    rest = [at for at in range(receipt.size) if at not in taken]
    found["headers"] = [at for at in rest if content[at]]
    found["padding"] = [at for at in rest if not content[at]]
    assert sum(map(len, found.values())) == receipt.size and all(found.values())
    return found


@pytest.mark.parametrize("each", [6, pytest.param(300, marks=LONG)])
def test_a_bit_flipped_in_any_part_of_a_shard_is_never_returned(whole: Whole, each: int, figure: Figure) -> None:
    generator = random.Random(each)
    content = whole.shard.read_bytes()
    parts = regions(whole.shard)
    for name, places in parts.items():
        for _ in range(each):
            whole.shard.write_bytes(flipped(content, 8 * generator.choice(places) + generator.randrange(8)))
            assert faults.readable(whole.copy, whole.right) == set(), name
            (fault,) = open_cache(whole.copy).verify()
            assert "session1-0000" in fault and "extract" in fault
            whole.shard.write_bytes(content)
    figure(f"bits flipped in {', '.join(parts)} of a shard: {each * len(parts)}, read as data 0, missed by verify 0")


@pytest.mark.parametrize("part", ["superblock", "headers", "data", "clip", "valid", "digest", "padding"])
def test_the_fix_that_is_named_brings_the_same_bytes_back(whole: Whole, part: str) -> None:
    place = regions(whole.shard)[part][-1]
    whole.shard.write_bytes(flipped(whole.shard.read_bytes(), 8 * place))
    (fault,) = open_cache(whole.copy).verify()
    if "mfhca cache repair" in fault:
        assert len(repair(whole.copy).removed) == 2
    extract(whole.manifest, whole.copy, ALONE)
    assert faults.files(whole.copy) == whole.files


DESCRIPTIONS = ("cache.json", "utterances.csv", "spectrogram/feature.json", "spectrogram/session1-0000.json")


def _read_everything(whole: Whole) -> None:
    """What is read of a damaged cache is right, or it is refused."""
    good = faults.readable(whole.copy, whole.right)
    try:
        cache = open_cache(whole.copy)
    except CacheError as error:
        assert str(whole.copy) in str(error)
        assert not good
        return
    assert cache.utterances.equals(whole.table)
    assert cache.corpus == "iemocap" and cache.features["spectrogram"].random_weights is False
    if ("spectrogram", "session1-0000") not in good:
        assert cache.verify()


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("every", [397, pytest.param(7, marks=LONG)])
def test_a_bit_flipped_in_a_description_is_noticed_or_harmless(
    whole: Whole, name: str, every: int, figure: Figure
) -> None:
    content = whole.files[name]
    for bit in range(0, 8 * len(content), every):
        (whole.copy / name).write_bytes(flipped(content, bit))
        _read_everything(whole)
    figure(f"bits flipped in {name}: {8 * len(content) // every}, wrong descriptions or bytes read 0")


@pytest.mark.parametrize("name", [*DESCRIPTIONS, "spectrogram/session1-0000.h5"])
@pytest.mark.parametrize("count", [12, pytest.param(400, marks=LONG)])
def test_a_file_cut_anywhere_is_noticed(whole: Whole, name: str, count: int, figure: Figure) -> None:
    content = whole.files[name]
    generator = random.Random(0)
    lengths = {0, 1, len(content) - 1, *(generator.randrange(len(content)) for _ in range(count))}
    for length in lengths:
        (whole.copy / name).write_bytes(content[:length])
        assert faults.readable(whole.copy, whole.right) == set() or length == len(content) - 1
        _read_everything(whole)
    figure(f"{name} cut at {len(lengths)} places: wrong bytes read 0")


def test_a_damaged_table_of_utterances_is_written_anew_from_the_manifest(whole: Whole) -> None:
    path = whole.copy / "utterances.csv"
    for content in (b"", flipped(path.read_bytes(), 1600), path.read_bytes().replace(b",ang,", b",sad,", 1)):
        path.write_bytes(content)
        with pytest.raises(CacheError, match="writes it anew"):
            open_cache(whole.copy)
        report = extract(whole.manifest, whole.copy, ALONE)
        assert report.new_shards == 0 and "damaged" in report.notes[0]
        assert path.read_bytes() == whole.files["utterances.csv"]


@pytest.mark.parametrize("every", [397, pytest.param(29, marks=LONG)])
def test_a_bit_flipped_in_a_manifest_never_mixes_audio(
    whole: Whole, tmp_path: Path, every: int, figure: Figure
) -> None:
    content = whole.csv.read_bytes()
    path = tmp_path / "m.csv"
    shutil.copy(whole.csv.with_suffix(".json"), tmp_path / "m.json")
    refused = 0
    for bit in range(0, 8 * len(content), every):
        path.write_bytes(flipped(content, bit))
        try:
            extract(read_manifest(path), whole.copy, ALONE)
        except MfhcaError:
            refused += 1
        good = faults.readable(whole.copy, whole.right)
        assert good == {("spectrogram", "session1-0000")}
        whole.mend()
    assert refused
    figure(f"bits flipped in a manifest: {8 * len(content) // every}, {refused} refused, wrong bytes in the cache 0")


def test_a_damaged_neighbour_of_the_manifest_is_named(whole: Whole, tmp_path: Path) -> None:
    shutil.copy(whole.csv, tmp_path / "m.csv")
    content = whole.csv.with_suffix(".json").read_bytes()
    for length in range(len(content) - 2):
        (tmp_path / "m.json").write_bytes(content[:length])
        with pytest.raises(MfhcaError, match=r"m\.json: damaged"):
            read_manifest(tmp_path / "m.csv")


def test_a_shard_without_a_receipt_and_the_reverse(whole: Whole) -> None:
    receipt = whole.shard.with_suffix(".json")
    for gone in (receipt, whole.shard):
        gone.unlink()
        assert faults.readable(whole.copy, whole.right) == set()
        assert extract(whole.manifest, whole.copy, ALONE).new_shards == 1
        assert faults.files(whole.copy) == whole.files


def test_one_audio_byte_changed_is_refused_before_and_after(whole: Whole, tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    path = tmp_path / "w" / "Ses01_F001.wav"
    path.write_bytes(flipped(path.read_bytes(), 8 * 2000))
    report = extract(manifest, tmp_path / "c", ALONE)
    assert [item.path for item in report.rejected] == ["Ses01_F001"]
    assert "changed" in report.rejected[0].reason
    # The cache holds the audio of its own time, whatever became of the files.
    write_wav(whole.manifest.root / "Ses01_F001.wav", tone(1.2, seed=77))  # type: ignore[operator]
    again = Manifest("iemocap", whole.manifest.root, whole.manifest.utterances)
    assert extract(again, whole.copy, ALONE).new_shards == 0
    with pytest.raises(CacheError, match="other"):
        extract(_of_other_audio(whole.manifest), whole.copy, ALONE)
    assert faults.files(whole.copy) == whole.files


def _of_other_audio(manifest: Manifest) -> Manifest:
    table = manifest.utterances.copy()
    table.loc[0, "sha256"] = "0" * 64
    return replace(manifest, utterances=table)
