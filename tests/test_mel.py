from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from mfhca_cache.errors import MfhcaError
from mfhca_cache.extraction.mel import log_mels, mfccs
from mfhca_cache.spec import LogMelSpec, MFCCSpec

from .conftest import tone


def clips() -> np.ndarray:
    return np.stack([tone(3.0, 150.0, seed=1), 0.01 * tone(3.0, 310.0, seed=2)])


def librosas(clip: np.ndarray, mels: int) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=clip, sr=16_000, n_fft=1024, hop_length=160, win_length=400, window="hann", center=True,
        pad_mode="constant", power=2.0, n_mels=mels,
    )  # fmt: skip
    return np.asarray(librosa.power_to_db(power, top_db=None)[:, :300].T)


@pytest.mark.parametrize("mels", [26, 80, 128])
def test_log_mel_is_librosas(mels: int) -> None:
    got = log_mels(torch.from_numpy(clips()), LogMelSpec(mels=mels)).numpy()
    assert got.shape == (2, 300, mels)
    np.testing.assert_allclose(got, [librosas(clip, mels) for clip in clips()], atol=1e-4)


def test_mfcc_is_librosas() -> None:
    got = mfccs(torch.from_numpy(clips()), MFCCSpec()).numpy()
    expected = [librosa.feature.mfcc(S=librosas(clip, 128).T, n_mfcc=40).T for clip in clips()]
    assert got.shape == (2, 300, 40)
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_single_precision_stays_within_a_hundredth_of_a_decibel() -> None:
    exact = log_mels(torch.from_numpy(clips()), LogMelSpec())
    single = log_mels(torch.from_numpy(clips()).float(), LogMelSpec())
    loud = exact > -80
    assert loud.any() and float((exact - single)[loud].abs().max()) < 0.01


def test_silence_lies_on_the_floor_and_every_band_hears() -> None:
    assert (log_mels(torch.zeros(1, 48_000), LogMelSpec()) == -100).all()
    noise = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    assert (log_mels(noise, LogMelSpec()).mean(dim=1) > -30).all()


@pytest.mark.parametrize(("spec", "values"), [(LogMelSpec, {"mels": 0}), (LogMelSpec, {"window": 100}),
                                              (MFCCSpec, {"coefficients": 129})])  # fmt: skip
def test_impossible_settings_are_refused(spec: type, values: dict[str, int]) -> None:
    with pytest.raises(MfhcaError, match="expected"):
        spec(**values)
