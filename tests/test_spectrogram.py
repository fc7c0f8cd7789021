from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfhca_cache.errors import MfhcaError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.clips import cut_clips
from mfhca_cache.extraction.spectrogram import clip_shape, magnitudes, spectrograms
from mfhca_cache.spec import ClipSpec, SpectrogramSpec

SPEC = SpectrogramSpec()


def by_librosa(clip: np.ndarray) -> np.ndarray:
    """librosa's magnitudes in float64, frames first, the frames and bins of the specification."""
    stft = librosa.stft(
        clip.astype(np.float64),
        n_fft=800,
        hop_length=160,
        win_length=640,
        window="hamming",
        center=True,
        pad_mode="constant",
    )
    return np.abs(stft)[:200, :300].T


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1.0), st.integers(400, 48_000))
@settings(max_examples=20, deadline=None)
def test_magnitudes_equal_librosas(seed: int, loudness: float, length: int) -> None:
    clip = np.zeros(48_000, dtype=np.float32)
    clip[:length] = loudness * np.random.default_rng(seed).standard_normal(length)
    ours = magnitudes(torch.from_numpy(clip[None]), SPEC)[0].numpy()
    theirs = by_librosa(clip)
    assert ours.shape == (300, 200)
    assert np.abs(ours - theirs).max() <= 1e-6 * theirs.max()


def test_magnitudes_of_speech_equal_librosas(real_speech: Path) -> None:
    for path in sorted((real_speech / "emodb/wav").glob("*.wav"))[:8]:
        clip = cut_clips(load_audio(path), ClipSpec())[0]
        theirs = by_librosa(clip[0])
        assert np.abs(magnitudes(torch.from_numpy(clip), SPEC)[0].numpy() - theirs).max() <= 1e-6 * theirs.max()


def test_decibels_are_relative_to_one_and_floored() -> None:
    clip = np.zeros((1, 48_000), dtype=np.float32)
    silent = spectrograms(torch.from_numpy(clip), SPEC)
    assert torch.equal(silent, torch.full((1, 300, 200), -100.0))
    noise = np.random.default_rng(0).standard_normal((2, 48_000)).astype(np.float32)
    got = spectrograms(torch.from_numpy(noise), SPEC).numpy()
    expected = np.stack([librosa.amplitude_to_db(by_librosa(row), ref=1.0, amin=1e-5, top_db=None) for row in noise])
    np.testing.assert_allclose(got, expected, atol=2e-2)
    np.testing.assert_allclose(np.median(np.abs(got - expected)), 0, atol=1e-4)


def test_a_tone_lies_in_its_bin() -> None:
    t = np.arange(48_000) / 16_000
    clip = np.sin(2 * np.pi * 1000.0 * t).astype(np.float32)[None]
    assert set(magnitudes(torch.from_numpy(clip), SPEC)[0, 10:290].argmax(1).tolist()) == {50}  # 20 Hz a bin


def test_clips_of_a_batch_do_not_touch() -> None:
    clips = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 48_000)).astype(np.float32))
    together = spectrograms(clips, SPEC)
    for number in range(3):
        torch.testing.assert_close(
            together[number], spectrograms(clips[number : number + 1], SPEC)[0], rtol=0, atol=1e-4
        )


def test_other_clip_lengths() -> None:
    clip = ClipSpec(seconds=5.0)
    assert clip_shape(clip, SPEC) == (500, 200)
    assert spectrograms(torch.zeros(1, clip.samples), SPEC).shape == (1, 500, 200)


@pytest.mark.parametrize("change", [{"window": 900}, {"hop": 0}, {"bins": 402}, {"pre_emphasis": 1.0}])
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(MfhcaError, match="expected"):
        SpectrogramSpec(**change)  # type: ignore[arg-type]
