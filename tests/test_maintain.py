"""ls, verify, repair and rm: what is in a cache, whether it is sound, and what is taken out of it."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfhca_cache.errors import CacheError
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec, LogMelSpec, MFCCSpec, SpectrogramSpec
from mfhca_cache.storage import check, layout, maintain
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.inventory import list_cache
from mfhca_cache.storage.maintain import holding, remove, repair

from .conftest import TINY, small_corpus
from .test_cli import run
from .test_features import bert, of_text, spoken


@pytest.fixture(scope="module")
def many_folder(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three clips a shard: twelve shards a feature. Tests must not change it."""
    folder = tmp_path_factory.mktemp("many") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_CLIPS", 3)
        extract(small_manifest, folder, TINY, device="cpu")
    return folder


@pytest.fixture
def many(many_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(many_folder, tmp_path / "cache" / "iemocap"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but its locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }


def receipt_of(shard: Path) -> dict[str, int]:
    value: dict[str, int] = json.loads(shard.with_suffix(".json").read_text())
    return value


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def hold(folder: Path, name: str) -> FileLock:
    """Another process's lock."""
    (folder / ".locks").mkdir(exist_ok=True)
    return FileLock(folder / ".locks" / f"{name}.lock")


# ls


def test_ls_counts_what_is_there(many: Path) -> None:
    found = list_cache(many)
    assert (found.plan.corpus, found.plan.clips, found.faults) == ("iemocap", 30, ())
    assert found.seconds == pytest.approx(6 * (0.7 + 1.2 + 3.4 + 0.9))
    for item in found.features:
        assert (item.rows, item.shards, item.missing, item.damaged, item.rejected) == (30, 12, {}, 0, 0)
        assert item.complete
        assert item.bytes == sum(path.stat().st_size for path in (many / item.info.name).iterdir())
    for name in ("session2-0000", "session2-0001", "session3-0003"):
        (many / "random-tiny" / f"{name}.json").unlink()
    shard = many / "spectrogram" / "session1-0000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    tiny, spectrogram = list_cache(many).features
    assert (tiny.rows, tiny.missing, tiny.complete) == (30 - 3 - 3 - 1, {"session2": 2, "session3": 1}, False)
    assert (spectrogram.rows, spectrogram.damaged, spectrogram.complete) == (27, 1, False)


def test_ls_counts_rejected_utterances(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    (tmp_path / "w" / "Ses01_F002.wav").unlink()
    extract(manifest, tmp_path / "c", TINY, device="cpu")
    for item in list_cache(tmp_path / "c").features:
        assert (item.rejected, item.rows, item.complete) == (1, 8, True)


def test_ls_shows_all_caches_and_names_the_one_that_cannot_be_read(
    small_cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no cache in cache/" in run("cache", "ls", expect=2).output
    for name in ("one", "two", "three"):
        shutil.copytree(small_cache_folder, tmp_path / "cache" / name)
    (Path("cache/two/random-tiny/session2-0000.json")).unlink()
    (Path("cache/three/cache.json")).write_text("{}")
    text = run("cache", "ls", expect=1).output
    assert text.count("24 utterances of 6 speakers") == 2
    assert "30 of 30" in text and "20 of 30" in text and "incomplete" in text
    assert "random weights" in text
    assert "not extracted yet: session2 (1 shard)" in text
    again = "mfhca extract --cache cache/two --manifest MANIFEST.csv --encoder random-tiny --split session2"
    assert again in " ".join(text.split())
    assert "Error: cache/three: cache.json or utterances.csv is damaged" in text
    value = json.loads(run("cache", "ls", "--cache", "cache/two", "--json").output)
    feature = value[0]["features"][0]
    assert (feature["name"], feature["missing"], feature["random_weights"]) == ("random-tiny", {"session2": 1}, True)
    assert feature["source"]["name"] == "random-tiny" and feature["shape"] == [149, 64]


# verify


def test_a_sound_cache_verifies(many: Path) -> None:
    for deep in (False, True):
        found = check_cache(many, deep=deep)
        assert (found.faults, found.strays, found.shards) == ((), (), 24)
        assert found.bytes == sum(path.stat().st_size for path in many.glob("*/*.h5"))
        assert open_cache(many).verify(deep=deep) == []


@pytest.mark.parametrize(
    ("damage", "shallow"),
    [("array", False), ("head", True), ("tail", True), ("truncated", True), ("receipt", True), ("gone", True)],
)
def test_verify_names_the_damaged_file(many: Path, damage: str, shallow: bool) -> None:
    shard = many / "spectrogram" / "session2-0001.h5"
    receipt = receipt_of(shard)
    at_fault = shard
    if damage == "array":
        flip(shard, receipt["offset"] + 12345)
    elif damage == "head":
        flip(shard, 100)
    elif damage == "tail":
        flip(shard, receipt["size"] - 1)
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "gone":
        shard.unlink()
    else:
        at_fault = shard.with_suffix(".json")
        at_fault.write_bytes(at_fault.read_bytes().replace(b'"first": ', b'"first": 1'))
    for deep in (False, True):
        found = check_cache(many, deep=deep).faults
        assert len(found) == (shallow or deep)
        if found:
            assert found[0].path == at_fault and str(at_fault) in found[0].message
            assert (found[0].kind, found[0].feature, found[0].split) == ("damaged", "spectrogram", "session2")
    result = run("cache", "verify", "--cache", many, "--deep", expect=1)
    assert str(at_fault) in result.output and f"mfhca cache repair --cache {many}" in result.output
    value = json.loads(run("cache", "verify", "--cache", many, "--deep", "--json", expect=1).stdout)
    assert (value["sound"], len(value["faults"])) == (False, 1)


def test_verify_notes_what_belongs_to_nothing(many: Path) -> None:
    (many / "spectrogram" / "session1-0000.json").unlink()
    for name in (
        "spectrogram/.session1-0001.h5.123-0a1b2c3d.tmp",
        "spectrogram/.feature.json.123-0a1b2c3d.tmp",
        ".utterances.csv.9-00000000.tmp",
        "spectrogram/notes.txt",
        "spectrogram/session9-0000.h5",
    ):
        (many / name).write_bytes(b"x")
    found = check_cache(many)
    assert found.faults == ()
    assert {str(item.path.relative_to(many)): item.kind for item in found.strays} == {
        "spectrogram/session1-0000.h5": "uncommitted",
        "spectrogram/.session1-0001.h5.123-0a1b2c3d.tmp": "temporary",
        "spectrogram/.feature.json.123-0a1b2c3d.tmp": "temporary",
        ".utterances.csv.9-00000000.tmp": "temporary",
        "spectrogram/notes.txt": "unknown",
        "spectrogram/session9-0000.h5": "unknown",
    }
    # What a living writer is at work on is no stray.
    with (
        hold(many, "spectrogram.session1-0000"),
        hold(many, "spectrogram.session1-0001"),
        hold(many, "spectrogram.feature"),
        hold(many, "plan"),
    ):
        assert {item.kind for item in check_cache(many).strays} == {"unknown"}
    text = run("cache", "verify", "--cache", many).output
    assert "session1-0000.h5: a shard without a receipt" in text and "no fault" in text


def test_a_damaged_description_is_named_with_what_helps_and_it_does(small_manifest: Manifest, many: Path) -> None:
    before = contents(many)
    description = many / "random-tiny" / "feature.json"
    description.write_text(description.read_text().replace('"last"', '"lost"', 1))
    (fault,) = check_cache(many).faults
    assert (fault.kind, fault.path) == ("description", description)
    assert "delete it and run the `mfhca extract` that made the feature" in fault.message
    assert "feature.json" in run("cache", "ls", "--cache", many).output
    done = repair(many)
    assert (done.removed, [item.path for item in done.left]) == ([], [description])
    description.unlink()
    (fault,) = check_cache(many).faults
    assert fault.path == description and "no such file" in fault.message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_CLIPS", 3)
        assert extract(small_manifest, many, TINY, device="cpu").new_shards == 0
    assert contents(many) == before


def test_a_damaged_plan_is_named_with_what_helps_and_it_does(
    small_manifest: Manifest, many: Path, tmp_path: Path
) -> None:
    before = contents(many)
    (many / "cache.json").write_bytes(b"\0" * 100)
    (fault,) = check_cache(many).faults
    assert fault.kind == "description" and "put cache.json and utterances.csv back" in fault.message
    assert "put cache.json" in run("cache", "verify", "--cache", many, expect=1).output
    assert "put cache.json" in run("cache", "repair", "--cache", many, expect=1).output
    assert {**contents(many), "cache.json": b""} == {**before, "cache.json": b""}
    extract(small_manifest, tmp_path / "new", replace(TINY, encoder=None), "session1")
    for name in ("cache.json", "utterances.csv"):
        shutil.copy(tmp_path / "new" / name, many / name)
    assert contents(many) == before


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    for name in ("verify", "repair", "ls"):
        assert "no cache here" in run("cache", name, "--cache", tmp_path, expect=1).output
    assert list(tmp_path.iterdir()) == []


# repair


def test_repair_drops_what_is_damaged_and_extraction_brings_it_back(small_manifest: Manifest, many: Path) -> None:
    before = contents(many)
    flip(many / "spectrogram" / "session2-0001.h5", 50_000)
    flip(many / "random-tiny" / "session3-0000.h5", 10)
    (many / "random-tiny" / "session1-0002.h5").unlink()
    (many / "random-tiny" / "session1-0001.json").unlink()
    (many / "random-tiny" / ".session1-0003.h5.1-00000000.tmp").write_bytes(b"half")
    damaged = contents(many)
    gone = {
        "spectrogram/session2-0001.json", "spectrogram/session2-0001.h5", "random-tiny/session3-0000.json",
        "random-tiny/session3-0000.h5", "random-tiny/session1-0002.json", "random-tiny/session1-0001.h5",
        "random-tiny/.session1-0003.h5.1-00000000.tmp",
    }  # fmt: skip
    dry = repair(many, dry_run=True)
    assert {str(item.path.relative_to(many)) for item in dry.removed} == gone
    assert contents(many) == damaged
    done = repair(many)
    assert done.removed == dry.removed and done.left == [] and done.busy == []
    assert done.again == {"random-tiny": ["session1", "session3"], "spectrogram": ["session2"]}
    assert contents(many) == {name: data for name, data in before.items() if name in damaged and name not in gone}
    assert check_cache(many, deep=True).faults == ()
    assert extract(small_manifest, many, TINY, device="cpu").new_shards == 4
    assert contents(many) == before
    assert repair(many).removed == []


def test_repair_says_the_exact_commands(
    small_manifest: Manifest, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(small_manifest, Path("manifests/iemocap.csv"))
    for name in ("spectrogram/session2-0001", "random-tiny/session2-0000", "spectrogram/session1-0000"):
        (many / f"{name}.h5").unlink()
    before = contents(many)
    text = run("cache", "repair", "--dry-run").output
    assert text.count("Would remove") == 3 and contents(many) == before
    value = json.loads(run("cache", "repair", "--json").output)
    assert value["commands"] == [
        "mfhca extract --cache cache/iemocap --encoder random-tiny --split session2",
        "mfhca extract --cache cache/iemocap --encoder none --split session1",
    ]
    for command in value["commands"]:
        run(*command.split()[1:])
    assert "nothing to repair" in run("cache", "repair").output
    assert check_cache(many, deep=True).faults == ()


DAMAGE = st.sampled_from(["whole", "array", "head", "short", "receipt", "no shard", "no receipt"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DAMAGE, min_size=24, max_size=24), st.integers(0, 2**32 - 1))
def test_repair_never_drops_what_verifies(many_folder: Path, damages: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(many_folder, Path(place) / "c"))
        shards = sorted(folder.glob("*/*.h5"))
        whole = contents(folder)
        for path, damage in zip(shards, damages, strict=True):
            receipt = receipt_of(path)
            if damage == "array":
                flip(path, int(generator.integers(receipt["offset"], receipt["offset"] + receipt["nbytes"])))
            elif damage == "head":
                flip(path, int(generator.integers(receipt["offset"])))
            elif damage == "short":
                path.write_bytes(path.read_bytes()[: int(generator.integers(receipt["size"]))])
            elif damage == "receipt":
                path.with_suffix(".json").write_bytes(generator.bytes(40))
            elif damage != "whole":
                (path if damage == "no shard" else path.with_suffix(".json")).unlink()
        assert repair(folder).left == []
        kept = {str(p.relative_to(folder)) for p, damage in zip(shards, damages, strict=True) if damage == "whole"}
        names = {name for name in whole if "-0" not in name} | kept | {f"{name[:-3]}.json" for name in kept}
        assert contents(folder) == {name: whole[name] for name in names}


def test_repair_leaves_intact_shards_of_another_cache(many: Path, tmp_path: Path) -> None:
    """The wrong cache.json must not cost the shards; the right one makes all well again."""
    other = small_corpus(tmp_path / "v", sessions=3, seconds=(0.6, 1.3, 3.2, 1.1))
    extract(other, tmp_path / "other", replace(TINY, encoder=None))
    before = contents(many)
    for name in ("cache.json", "utterances.csv"):
        shutil.copy(tmp_path / "other" / name, many / name)
    swapped = contents(many)
    # The encoder's and the spectrogram's shards are all of the other plan now; one of them is damaged too.
    flip(many / "spectrogram" / "session2-0001.h5", 50_000)
    done = repair(many)
    assert {item.path.name for item in done.removed} == {"session2-0001.h5", "session2-0001.json"}
    assert {item.kind for item in done.left} == {"foreign"} and len(done.left) == 23
    after = contents(many)
    assert after == {name: data for name, data in swapped.items() if name in after} and len(after) == len(before) - 2
    assert run("cache", "repair", "--cache", many, expect=1).output.count("Left: intact, but of another plan") == 23


def test_repair_leaves_what_the_system_will_not_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(many)
    real = check.file_sha256

    def failing(path: Path) -> str:
        if path.name == "session2-0001.h5":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(check, "file_sha256", failing)
    done = repair(many)
    assert [item.kind for item in done.left] == ["unreadable"] * 2 and done.removed == []
    assert contents(many) == before
    assert "Input/output error" in run("cache", "verify", "--deep", "--cache", many, expect=1).output


def test_repair_leaves_a_shard_whose_disk_is_not_mounted(many: Path, tmp_path: Path) -> None:
    shard = many / "spectrogram" / "session2-0001.h5"
    (tmp_path / "disk").mkdir()
    shard.rename(tmp_path / "disk" / shard.name)
    shard.symlink_to(tmp_path / "disk" / shard.name)
    assert check_cache(many, deep=True).faults == ()
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    done = repair(many)
    assert [item.kind for item in done.left] == ["unreadable"] and done.removed == []


def test_repair_leaves_what_another_process_is_writing(many: Path) -> None:
    flip(many / "spectrogram" / "session2-0001.h5", 50_000)
    (many / "spectrogram" / "session2-0000.json").unlink()
    before = contents(many)
    with hold(many, "spectrogram.session2-0001"), hold(many, "spectrogram.session2-0000"):
        for dry_run in (True, False):
            done = repair(many, dry_run=dry_run)
            assert (done.removed, sorted(done.busy)) == (
                [],
                ["spectrogram/session2-0000", "spectrogram/session2-0001"],
            )
    assert contents(many) == before


# rm


def test_a_replacement_that_was_cut_short_is_sound_and_repair_ends_it(many: Path) -> None:
    before = contents(many)
    receipt = many / "spectrogram" / "session1-0000.json"
    following = receipt.with_name("session1-0000.json.next")
    # As a kill between the renames leaves it: the new file, the receipt that fits it, and the old receipt.
    following.write_bytes(receipt.read_bytes())
    receipt.write_bytes((many / "spectrogram" / "session1-0001.json").read_bytes())
    half = many / "spectrogram" / ".session1-0001.json.next.7-00000000.tmp"
    half.write_bytes(b"{")
    found = check_cache(many, deep=True)
    assert not found.faults and [(stray.path, stray.lock) for stray in found.strays] == [
        (half, "spectrogram.session1-0001")
    ]
    assert [item.path for item in repair(many).removed] == [half]
    assert contents(many) == before
    following.write_bytes(receipt.read_bytes())
    remove(many, "spectrogram", "session1")
    assert not list((many / "spectrogram").glob("session1*")) and not check_cache(many).strays


def test_rm_takes_a_feature_and_nothing_else(many: Path) -> None:
    before = contents(many)
    assert len(holding(many, "random-tiny").shards) == 12
    gone, left = remove(many, "random-tiny")
    assert left == [] and gone.bytes == sum(len(data) for name, data in before.items() if "random-tiny/session" in name)
    assert contents(many) == {name: data for name, data in before.items() if not name.startswith("random-tiny/")}
    assert not (many / "random-tiny").exists()
    assert list(open_cache(many).features) == ["spectrogram"]


def test_rm_of_a_split_keeps_the_rest(small_manifest: Manifest, many: Path) -> None:
    before = contents(many)
    remove(many, "random-tiny", "session2")
    kept = {name: data for name, data in before.items() if not name.startswith("random-tiny/session2")}
    assert contents(many) == kept
    assert open_cache(many).missing("random-tiny") == {"session2": 4}
    extract(small_manifest, many, TINY, device="cpu")
    assert contents(many) == before


def test_rm_asks_and_says_what_it_did(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(many)
    words = ("cache", "rm", "random-tiny", "--cache", many)
    assert "12 shards" in run(*words, expect=1).output
    assert contents(many) == before
    assert "say --yes" in run(*words, "--json", expect=2).output
    (many / "random-tiny" / "notes.txt").write_text("mine")
    text = run(*words, "--yes").output
    assert "Removed random-tiny" in text and "Left: " in text and "notes.txt" in text
    assert (many / "random-tiny" / "notes.txt").read_text() == "mine"
    value = json.loads(
        run("cache", "rm", "spectrogram", "--split", "session1", "--yes", "--json", "--cache", many).output
    )
    assert (len(value["shards"]), value["split"]) == (4, "session1")


@pytest.mark.parametrize("name", ["nothing", "..", ".", "", ".locks", "random-tiny/..", "cache.json"])
def test_rm_of_what_is_no_feature_is_refused(many: Path, name: str) -> None:
    before = contents(many)
    with pytest.raises(CacheError, match="this cache has: random-tiny, spectrogram"):
        remove(many, name)
    with pytest.raises(CacheError, match="expected one of: session1, session2, session3, all"):
        remove(many, "spectrogram", "session9")
    assert contents(many) == before


def test_rm_refuses_while_another_process_writes(many: Path) -> None:
    before = contents(many)
    for name in ("random-tiny.session3-0002", "random-tiny.feature"):
        with hold(many, name), pytest.raises(CacheError, match=r"another process is writing .* nothing was removed"):
            remove(many, "random-tiny")
    assert contents(many) == before


def test_rm_killed_anywhere_leaves_a_valid_cache(
    small_manifest: Manifest, many_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = maintain._unlink, 0

    def mortal(path: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= path.exists()
        real(path)

    monkeypatch.setattr(maintain, "_unlink", mortal)
    for survived in range(0, 25, 3):
        folder = Path(shutil.copytree(many_folder, tmp_path / f"c{survived}"))
        left = survived
        with pytest.raises(KeyboardInterrupt):
            remove(folder, "random-tiny")
        assert check_cache(folder, deep=True).faults == ()
        cache = open_cache(folder)
        assert len(cache.load("random-tiny")["clips"]) <= 30
        assert len(cache.load("spectrogram")["clips"]) == 30
        left = 1000
        remove(folder, "random-tiny")
        assert list(open_cache(folder).features) == ["spectrogram"]


def test_every_command_of_the_group_has_help_with_an_example() -> None:
    for name in ("ls", "verify", "repair", "rm", "merge", "export"):
        text = run("cache", name, "--help").output
        assert f"mfhca cache {name}" in text.split("Example:")[1]
        assert "--quiet" in text and "--json" in text


def test_the_commands_shown_carry_the_settings_of_the_cache(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(small_manifest, Path("manifests/iemocap.csv"))
    spec = replace(TINY, spectrogram=SpectrogramSpec(pre_emphasis=0.97), rows="all", dtype="float32")
    extract(small_manifest, "cache/x", spec, "session1", device="cpu")
    text = run("cache", "ls").output
    command = next(line.strip() for line in text.splitlines() if "--encoder random-tiny" in line)
    assert command == (
        "mfhca extract --cache cache/x --encoder random-tiny --pre-emphasis 0.97 --rows all --dtype float32"
    )
    run(*command.split()[1:])
    assert "complete" in run("cache", "ls").output and "incomplete" not in run("cache", "ls").output


def test_each_kind_of_feature_has_a_command_that_goes_on_with_it(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {})
    write_manifest(manifest, Path("manifests/iemocap.csv"))
    for spec in (
        ExtractSpec(encoder=None, spectrogram=None, log_mel=LogMelSpec(mels=26), mfcc=MFCCSpec()),
        ExtractSpec(encoder=EncoderSpec("random-tiny", layers="all", pool="mean"), spectrogram=None),
        ExtractSpec(encoder=EncoderSpec("random-tiny", layers=(0, 2)), spectrogram=None),
        of_text(tmp_path / "bert"),
    ):
        extract(manifest, "cache/iemocap", spec, "session1", device="cpu")
    text = run("cache", "ls").output
    assert "8 of 24" in text and "tokens × 32" in text and "layers 0+1+2, pool mean" in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("  mfhca extract")]
    assert len(commands) == 5
    for command in commands:
        run(*command.split()[1:])
    found = list_cache("cache/iemocap")
    assert sorted(item.info.name for item in found.features) == [
        "bert", "log-mel-26", "mfcc-40", "random-tiny.0-2", "random-tiny.all.mean",
    ]  # fmt: skip
    assert all(item.complete for item in found.features)
