"""Clips → log-mel spectrograms and MFCC, by torch on the device; mel bands and DCT as librosa and SciPy define them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from mfhca_cache.extraction.spectrogram import centred_magnitudes
from mfhca_cache.spec import SAMPLE_RATE, LogMelSpec, MFCCSpec


def log_mels(clips: torch.Tensor, spec: LogMelSpec) -> torch.Tensor:
    """Float (B, samples) → dB (B, frames, mels): 10·log10 of the power in each band, not under the floor.

    The same as librosa's ``power_to_db(melspectrogram(sr=16000, n_fft=1024, hop_length=160, win_length=400,
    window="hann", center=True, pad_mode="constant", power=2, n_mels=128), top_db=None)``, frames first.
    """
    window = torch.hann_window(spec.window, periodic=True, dtype=clips.dtype, device=clips.device)
    power = centred_magnitudes(clips, window, spec.n_fft, spec.hop).square()
    mel = power @ torch.from_numpy(_bands(spec.n_fft, spec.mels)).to(clips)
    return 10.0 * torch.log10(mel.clamp(min=10.0 ** (spec.floor_db / 10.0)))


def mfccs(clips: torch.Tensor, spec: MFCCSpec) -> torch.Tensor:
    """Float (B, samples) → (B, frames, coefficients): orthonormal DCT-II of `log_mels`, the first coefficients."""
    return log_mels(clips, spec.log_mel) @ torch.from_numpy(_basis(spec.log_mel.mels, spec.coefficients)).to(clips)


@lru_cache(maxsize=8)
def _bands(n_fft: int, mels: int) -> np.ndarray:
    """float64 (n_fft // 2 + 1, mels): what each bin gives to each band; made once, and not for every batch."""
    from librosa.filters import mel as mel_bands

    return np.ascontiguousarray(mel_bands(sr=SAMPLE_RATE, n_fft=n_fft, n_mels=mels, dtype=np.float64).T)


@lru_cache(maxsize=8)
def _basis(mels: int, coefficients: int) -> np.ndarray:
    """float64 (mels, coefficients): the first rows of the orthonormal DCT-II."""
    import scipy.fft

    return np.ascontiguousarray(scipy.fft.dct(np.eye(mels), type=2, norm="ortho", axis=0)[:coefficients].T)
