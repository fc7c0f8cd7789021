from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfhca_cache.errors import CacheError, CacheMismatchError, ManifestError, MfhcaError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.clips import cut_clips
from mfhca_cache.extraction.encoder import Encoder, load_encoder
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.spectrogram import spectrograms
from mfhca_cache.files import seal
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.progress import Progress
from mfhca_cache.spec import ClipSpec, EncoderSpec, ExtractSpec, SpectrogramSpec
from mfhca_cache.storage import layout
from mfhca_cache.storage.cache import open_cache

from .conftest import TINY, build_manifest, small_corpus, tone, write_wav
from .test_encoder import checkpoint

ALONE = ExtractSpec(encoder=None)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}


def test_the_cache_holds_what_the_parts_compute(small_manifest: Manifest, small_cache_folder: Path) -> None:
    loaded = open_cache(small_cache_folder).load(["spectrogram", "random-tiny"])
    encoder = load_encoder(EncoderSpec("random-tiny"))
    root = small_manifest.root
    assert root is not None
    for row in small_manifest.utterances.to_dict("records"):
        clips, valid = cut_clips(load_audio(root / row["path"]), ClipSpec())
        rows = np.flatnonzero(loaded["clips"]["utterance_id"] == row["utterance_id"])
        assert len(rows) == len(clips)
        picture = spectrograms(torch.from_numpy(clips), SpectrogramSpec())
        torch.testing.assert_close(loaded["spectrogram"][rows].float(), picture, rtol=1e-3, atol=0.05)
        hidden = encoder.encode(clips)
        torch.testing.assert_close(loaded["random-tiny"][rows].float(), hidden, rtol=2e-3, atol=2e-3)
        table = loaded["clips"].iloc[rows]
        assert list(table["valid_samples"]) == list(valid)
        assert list(table["valid_spectrogram"]) == [-(-int(n) // 160) for n in valid]
        assert list(table["valid_random-tiny"]) == [max(1, encoder.frames(int(n))) for n in valid]


def test_counts_add_up(small_manifest: Manifest, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = extract(small_manifest, tmp_path / "c", TINY, device="cpu", progress=seen.append)
    assert (report.utterances, report.ok, report.rejected) == (24, 24, ())
    assert report.clips == report.new_clips == 30
    assert report.splits == ("session1", "session2", "session3")
    assert report.bytes_written == sum(len(data) for data in shard_bytes(tmp_path / "c").values())
    counted = [item for item in seen if item.total]
    assert {item.total for item in counted} == {30}
    assert max(item.done for item in counted) == 30
    assert {"decoding", "random-tiny", "writing"} <= {item.stage for item in counted}


def test_the_same_command_again_does_nothing(small_manifest: Manifest, small_cache_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_cache_folder.rglob("*") if path.suffix != ".lock"}
    report = extract(small_manifest, small_cache_folder, TINY, device="cpu")
    assert (report.new_shards, report.new_clips, report.clips) == (0, 0, 30)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_split_selects_its_shards_only(small_manifest: Manifest, tmp_path: Path) -> None:
    report = extract(small_manifest, tmp_path / "c", ALONE, "session2")
    assert (report.splits, report.utterances) == (("session2",), 8)
    cache = open_cache(tmp_path / "c")
    assert cache.missing("spectrogram") == {"session1": 1, "session3": 1}
    assert set(cache.load("spectrogram")["clips"]["utterance_id"].str[:5]) == {"Ses02"}
    with pytest.raises(CacheError, match=r"run `mfhca extract --split session1`"):
        cache.load("spectrogram", ["Ses01_F000"])
    extract(small_manifest, tmp_path / "c", ALONE)
    assert cache.missing("spectrogram") == {}


def test_an_unknown_split_is_answered_with_the_valid_names(small_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="expected one of: session1, session2, session3, all"):
        extract(small_manifest, tmp_path / "c", ALONE, "session9")


def test_a_corpus_without_sessions_is_one_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / "w" / f"{name}.wav", tone(0.5))
    manifest = build_manifest(tmp_path / "w", [{"utterance_id": name, "session": ""} for name in ("a", "b")])
    assert extract(manifest, tmp_path / "c", ALONE).splits == ("all",)
    assert (tmp_path / "c" / "spectrogram" / "all-0000.json").exists()


def test_features_are_added_without_touching_the_others(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", ALONE)
    before = shard_bytes(tmp_path / "c")
    extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    after = shard_bytes(tmp_path / "c")
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    loaded = open_cache(tmp_path / "c").load(["spectrogram", "random-tiny"])
    assert len(loaded["spectrogram"]) == len(loaded["random-tiny"]) == 30


@pytest.fixture
def little_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips a shard, so that a small corpus has many and an utterance spans two."""
    monkeypatch.setattr(layout, "MAX_SHARD_CLIPS", 3)


@pytest.mark.usefixtures("little_shards")
def test_an_utterance_may_span_two_shards(small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path) -> None:
    report = extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    assert report.new_shards == 2 * 3 * 4
    whole, split = (open_cache(path).load("spectrogram") for path in (small_cache_folder, tmp_path / "c"))
    assert torch.equal(whole["spectrogram"], split["spectrogram"])
    assert whole["clips"].equals(split["clips"])


def test_plans_are_made_in_order(small_cache_folder: Path) -> None:
    plan = open_cache(small_cache_folder).plan
    assert list(plan.utterances["utterance_id"]) == sorted(plan.utterances["utterance_id"])
    assert [(s.first, s.stop) for s in plan.splits] == [(0, 10), (10, 20), (20, 30)]
    assert (plan.utterances["first_clip"].to_numpy()[1:] == plan.utterances["clips"].cumsum().to_numpy()[:-1]).all()


# What cannot be used


def test_bad_audio_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    for number in range(4):
        write_wav(tmp_path / "w" / f"u{number}.wav", tone(0.5, seed=number))
    write_wav(tmp_path / "w" / "silent.wav", np.zeros(8000))
    manifest = build_manifest(tmp_path / "w", [{"utterance_id": n} for n in ("u0", "u1", "u2", "u3", "silent")])
    (tmp_path / "w" / "u1.wav").unlink()
    write_wav(tmp_path / "w" / "u2.wav", tone(0.5, seed=99))
    report = extract(manifest, tmp_path / "c", ALONE)
    reasons = {item.path: item.reason.split(":")[0] for item in report.rejected}
    assert reasons == {"silent": "silence", "u1": "missing", "u2": "changed"}
    assert report.ok + len(report.rejected) == report.utterances == 5
    cache = open_cache(tmp_path / "c")
    assert cache.available(["spectrogram"]) == ["u0", "u3"]
    with pytest.raises(CacheError, match="it was rejected: silence"):
        cache.load("spectrogram", ["silent"])
    again = extract(manifest, tmp_path / "c", ALONE)
    assert (again.new_shards, again.rejected) == (0, report.rejected)


def test_a_file_that_comes_back_is_taken_in(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    moved = tmp_path / "w" / "Ses01_F000.wav"
    moved.rename(tmp_path / "away.wav")
    assert len(extract(manifest, tmp_path / "c", ALONE).rejected) == 1
    (tmp_path / "away.wav").rename(moved)
    report = extract(manifest, tmp_path / "c", ALONE)
    assert (report.rejected, report.new_shards) == ((), 1)
    assert open_cache(tmp_path / "c").verify() == []


def test_a_broken_file_that_is_copied_again_is_taken_in(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    path = tmp_path / "w" / "Ses01_F000.wav"
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[:-2]):
        path.write_bytes(broken)
        (lost,) = extract(manifest, tmp_path / "c", ALONE).rejected
        assert (lost.path, lost.reason.split(":")[0]) == ("Ses01_F000", "changed")
    path.write_bytes(whole)
    assert extract(manifest, tmp_path / "c", ALONE).rejected == ()


def test_a_file_that_comes_back_is_taken_in_with_an_encoder_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete feature of a hub's encoder is not loaded, unless a file has come back."""
    loads: list[str] = []

    def load(spec: EncoderSpec, device: str = "cpu") -> Encoder:
        loads.append(spec.name)
        encoder = load_encoder(EncoderSpec("random-tiny"))
        encoder.source = {"name": spec.name, "revision": spec.revision, "commit": "c0ffee"}
        return encoder

    monkeypatch.setattr("mfhca_cache.extraction.pipeline.load_encoder", load)
    spec = ExtractSpec(encoder=EncoderSpec("somebody/hubert"))
    manifest = small_corpus(tmp_path / "w", sessions=1)
    (tmp_path / "w" / "Ses01_F000.wav").rename(tmp_path / "away.wav")
    assert len(extract(manifest, tmp_path / "c", spec, device="cpu").rejected) == 1
    extract(manifest, tmp_path / "c", spec, device="cpu")
    assert loads == ["somebody/hubert"]
    (tmp_path / "away.wav").rename(tmp_path / "w" / "Ses01_F000.wav")
    assert extract(manifest, tmp_path / "c", spec, device="cpu").rejected == ()
    assert len(loads) == 2


def test_a_command_that_failed_leaves_no_plan_behind(small_manifest: Manifest, tmp_path: Path) -> None:
    padded = ExtractSpec(encoder=None, clip=ClipSpec(pad="features"))
    with pytest.raises(CacheError, match="expected one of"):
        extract(small_manifest, tmp_path / "c", padded, "session9")
    with pytest.raises(MfhcaError):
        extract(small_manifest, tmp_path / "c", ExtractSpec(encoder=EncoderSpec(str(tmp_path))), device="cpu")
    assert not (tmp_path / "c").exists()
    assert extract(small_manifest, tmp_path / "c", ALONE).ok == 24


def test_shards_of_another_plan_are_never_taken_for_this_ones(tmp_path: Path) -> None:
    extract(small_corpus(tmp_path / "w", sessions=1), tmp_path / "c", ALONE)
    other = small_corpus(tmp_path / "v", sessions=1, seconds=(0.6, 1.3, 3.2, 1.1))
    for name in ("cache.json", "utterances.csv"):
        (tmp_path / "c" / name).unlink()
    with pytest.raises(CacheError, match=r"cache\.json"):
        extract(other, tmp_path / "c", ALONE)
    extract(other, tmp_path / "d", ALONE)
    for name in ("cache.json", "utterances.csv"):
        shutil.copy(tmp_path / "d" / name, tmp_path / "c" / name)
    with pytest.raises(CacheError, match="belongs to another plan"):
        open_cache(tmp_path / "c").load("spectrogram")


def test_labels_that_are_no_emotion_words_are_told_to_take_all_rows(tmp_path: Path) -> None:
    write_wav(tmp_path / "w" / "a.wav", tone(0.5))
    manifest = build_manifest(tmp_path / "w", [{"utterance_id": "a", "label": "fru"}])
    with pytest.raises(ManifestError, match="--rows all"):
        extract(manifest, tmp_path / "c", ALONE)
    assert extract(manifest, tmp_path / "c", replace(ALONE, rows="all")).ok == 1


def test_a_corpus_that_is_gone_is_no_silent_success(small_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="--root DIR"):
        extract(small_manifest.with_root(tmp_path / "nowhere"), tmp_path / "c", ALONE)
    with pytest.raises(ManifestError, match="--root DIR"):
        extract(replace(small_manifest, root=None), tmp_path / "c", ALONE)
    (tmp_path / "empty").mkdir()
    report = extract(small_manifest.with_root(tmp_path / "empty"), tmp_path / "c", ALONE)
    assert (report.ok, len(report.rejected), report.new_shards) == (0, 24, 0)
    assert extract(small_manifest, tmp_path / "c", ALONE).ok == 24


# What differs from before


def test_other_settings_are_refused_with_what_differs(small_manifest: Manifest, small_cache_folder: Path) -> None:
    before = shard_bytes(small_cache_folder)
    with pytest.raises(CacheMismatchError, match=r"pre_emphasis: 0\.0 → 0\.97"):
        extract(small_manifest, small_cache_folder, replace(TINY, spectrogram=SpectrogramSpec(pre_emphasis=0.97)))
    with pytest.raises(CacheMismatchError, match=r"clip.pad: 'audio' → 'features'"):
        extract(small_manifest, small_cache_folder, replace(TINY, clip=ClipSpec(pad="features")))
    with pytest.raises(CacheMismatchError, match="dtype: 'float16' → 'float32'"):
        extract(small_manifest, small_cache_folder, replace(TINY, dtype="float32"))
    assert shard_bytes(small_cache_folder) == before


def test_other_audio_is_refused_with_its_ids(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    extract(manifest, tmp_path / "c", ALONE)
    changed = small_corpus(tmp_path / "w", sessions=1, seconds=(0.8, 1.2, 3.4, 0.9))
    with pytest.raises(CacheMismatchError, match=r"2 utterance\(s\) of other audio bytes .*: Ses01_F000, Ses01_M000"):
        extract(changed, tmp_path / "c", ALONE)
    fewer = replace(manifest, utterances=manifest.utterances.drop(index=0))
    with pytest.raises(CacheMismatchError, match=r"1 utterance.s. no longer in the manifest: Ses01_F000"):
        extract(fewer, tmp_path / "c", ALONE)


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    checkpoint(tmp_path / "enc", seed=0)
    spec = ExtractSpec(encoder=EncoderSpec(str(tmp_path / "enc")))
    extract(manifest, tmp_path / "c", spec, device="cpu")
    checkpoint(tmp_path / "enc", seed=1)
    with pytest.raises(CacheMismatchError, match="begun with other weights"):
        extract(manifest, tmp_path / "c", spec, device="cpu")


def test_corrected_labels_reach_the_cache(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    extract(manifest, tmp_path / "c", ALONE)
    table = manifest.utterances.copy()
    table.loc[0, "label"] = "exc"
    report = extract(replace(manifest, utterances=table), tmp_path / "c", ALONE)
    assert report.new_shards == 0
    assert "labels" in report.notes[0]
    assert open_cache(tmp_path / "c").utterances["label"].iloc[0] == "exc"


def test_a_feature_goes_on_with_the_engine_it_was_begun_with(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", TINY, "session1", device="cpu", batch=3)
    extract(small_manifest, tmp_path / "c", TINY, "session2", device="cpu", batch=5)
    assert open_cache(tmp_path / "c").features["random-tiny"].engine["batch"] == 3
    path = tmp_path / "c" / "random-tiny" / "feature.json"
    value = json.loads(path.read_text())
    del value["sha256"]
    value["engine"]["device"] = "cuda"
    path.write_text(json.dumps(seal(value)))
    with pytest.raises(CacheMismatchError, match="begun on cuda"):
        extract(small_manifest, tmp_path / "c", TINY, device="cpu")
    # What is complete needs no device: a laptop may ask.
    assert extract(small_manifest, tmp_path / "c", TINY, "session1", device="cpu").new_shards == 0


# Values


def test_values_beyond_float16_are_an_error_that_offers_float32(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    model = checkpoint(tmp_path / "enc")
    with torch.no_grad():
        model.encoder.layers[0].final_layer_norm.weight.fill_(1e6)
    model.save_pretrained(tmp_path / "enc")
    spec = ExtractSpec(encoder=EncoderSpec(str(tmp_path / "enc")))
    with pytest.raises(CacheError, match=r"float16 ends at 65,504.*--dtype float32"):
        extract(manifest, tmp_path / "c", spec, device="cpu")
    extract(manifest, tmp_path / "d", replace(spec, dtype="float32"), device="cpu")
    loaded = open_cache(tmp_path / "d").load("enc")["enc"]
    assert loaded.dtype == torch.float32
    assert float(loaded.abs().max()) > 65_504


def test_padded_features_encode_the_true_length(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    spec = replace(TINY, clip=ClipSpec(pad="features"))
    extract(manifest, tmp_path / "c", spec, device="cpu")
    loaded = open_cache(tmp_path / "c").load("random-tiny")
    encoder = load_encoder(EncoderSpec("random-tiny"))
    table = loaded["clips"]
    row = int(np.flatnonzero((table["utterance_id"] == "Ses01_F002") & (table["clip"] == 1))[0])
    samples = load_audio(tmp_path / "w" / "Ses01_F002.wav")[48_000:]
    frames = encoder.frames(len(samples))
    assert table["valid_random-tiny"][row] == frames == 19
    expected = encoder.encode(samples[None])[0]
    torch.testing.assert_close(loaded["random-tiny"][row, :frames].float(), expected, rtol=2e-3, atol=2e-3)
    assert not loaded["random-tiny"][row, frames:].any()


def test_pre_emphasis_changes_the_spectrogram_and_not_the_encoder(
    small_manifest: Manifest, small_cache_folder: Path, tmp_path: Path
) -> None:
    extract(small_manifest, tmp_path / "c", replace(TINY, spectrogram=SpectrogramSpec(pre_emphasis=0.97)), device="cpu")
    plain, loud = (open_cache(f).load(["spectrogram", "random-tiny"]) for f in (small_cache_folder, tmp_path / "c"))
    assert torch.equal(plain["random-tiny"], loud["random-tiny"])
    assert float((plain["spectrogram"] - loud["spectrogram"]).abs().max()) > 10


# Interruption: tests/test_faults.py has the kills


def test_a_torn_shard_is_made_again(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", ALONE)
    before = shard_bytes(tmp_path / "c")
    target = tmp_path / "c" / "spectrogram" / "session2-0000.h5"
    target.write_bytes(target.read_bytes()[:-1])
    (tmp_path / "c" / "spectrogram" / "session3-0000.json").unlink()
    report = extract(small_manifest, tmp_path / "c", ALONE)
    assert report.new_shards == 2
    assert shard_bytes(tmp_path / "c") == before


def test_extra_columns_of_a_table_reach_the_cache(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    table = manifest.utterances.assign(gender=list("ffffmmmm"))
    write_manifest(replace(manifest, utterances=table), tmp_path / "m.csv")
    from mfhca_cache.manifest import read_manifest

    extract(read_manifest(tmp_path / "m.csv"), tmp_path / "c", ALONE)
    assert list(open_cache(tmp_path / "c").utterances["gender"]) == list("ffffmmmm")
    assert isinstance(open_cache(tmp_path / "c").utterances, pd.DataFrame)
