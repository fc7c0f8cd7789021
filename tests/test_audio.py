from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import AudioError
from mfhca_cache.extraction.audio import load_audio, resample
from mfhca_cache.extraction.clips import cut_clips, pre_emphasise
from mfhca_cache.spec import ClipSpec
from mfhca_cache.wav import probe, resampled_length

from .conftest import tone, write_wav


def reason(path: Path, sha256: str | None = None) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path, sha256)
    return caught.value.reason


def test_sixteen_bit_mono_comes_through_unchanged(tmp_path: Path) -> None:
    samples = (tone(0.5) * 2**15).round().clip(-(2**15), 2**15 - 1).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    loaded = load_audio(tmp_path / "a.wav")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, samples / np.float32(2**15))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_to_the_length_of_the_plan(tmp_path: Path, rate: int) -> None:
    write_wav(tmp_path / "a.wav", tone(0.777, rate=rate), rate)
    loaded = load_audio(tmp_path / "a.wav")
    assert len(loaded) == resampled_length(round(0.777 * rate), rate)


def test_resampling_keeps_a_tone() -> None:
    t = np.arange(48_000) / 48_000
    out = resample(np.sin(2 * np.pi * 440 * t).astype(np.float32), 48_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(out - expected)[100:-100].max() < 1e-3


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(0.2, 100), tone(0.2, 200, seed=1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    expected = (left.astype(np.float32) + right.astype(np.float32)) / 2
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), expected, atol=1e-7)


def test_flac_decodes_to_the_same_samples(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(0.3))
    samples, _ = soundfile.read(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.flac", samples, 16_000)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.flac"), load_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(tmp_path: Path, value: float) -> None:
    samples = tone(0.2)
    samples[100] = value
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "not-finite"


def test_bad_audio_is_rejected_by_name(tmp_path: Path) -> None:
    good = tone(0.2)
    soundfile.write(tmp_path / "loud.wav", good * 1e29, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(3200), 16_000)
    soundfile.write(tmp_path / "constant.wav", np.full(3200, 0.25), 16_000)
    soundfile.write(tmp_path / "anti.wav", np.stack([good, -good], axis=1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", good[:160], 16_000)
    write_wav(tmp_path / "whole.wav", good)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:-100])
    (tmp_path / "empty.wav").write_bytes(b"")
    found = {name: reason(tmp_path / f"{name}.wav") for name in ("loud", "silent", "constant", "anti", "short", "cut")}
    assert found == {
        "loud": "amplitude",
        "silent": "silence",
        "constant": "silence",
        "anti": "silence",
        "short": "too-short",
        "cut": "truncated",
    }
    assert reason(tmp_path / "empty.wav") == "empty"
    assert reason(tmp_path / "gone.wav") == "missing"


def test_a_truncated_flac_is_rejected(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(2.0), 16_000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    assert reason(tmp_path / "a.flac") in ("truncated", "unreadable")


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.2))
    before = probe(path).sha256
    assert len(load_audio(path, before)) == 3200
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    assert reason(path, before) == "changed"


@given(st.integers(1, 400_000), st.sampled_from([1.0, 3.0, 5.0]))
def test_clips_hold_every_sample_once_and_zeros_after(length: int, seconds: float) -> None:
    spec = ClipSpec(seconds)
    samples = np.arange(1, length + 1, dtype=np.float32)
    clips, valid = cut_clips(samples, spec)
    assert clips.shape == (spec.count(length), spec.samples)
    assert valid.sum() == length
    assert (valid > 0).all()
    np.testing.assert_array_equal(clips.reshape(-1)[:length], samples)
    assert not clips.reshape(-1)[length:].any()


def test_pre_emphasis_runs_over_the_whole_utterance() -> None:
    samples = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    out = pre_emphasise(samples, 0.97)
    expected = np.array([samples[0], *(samples[t] - np.float32(0.97) * samples[t - 1] for t in range(1, 100))])
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == np.float32
    assert pre_emphasise(samples, 0.0) is samples


def test_the_real_corpora_load_whole(real_speech: Path) -> None:
    for path, rate in (("emodb/wav/03a01Fa.wav", 22_050), ("ravdess/Actor_01/03-01-05-01-01-01-01.wav", 48_000)):
        info = probe(real_speech / path)
        assert info.sample_rate == rate
        samples = load_audio(real_speech / path, info.sha256)
        assert len(samples) == resampled_length(info.frames, rate)
        assert 0.01 < np.abs(samples).max() <= 1.1
