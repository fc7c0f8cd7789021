"""Clips → magnitude spectrograms in dB, by torch on the device.

Centred frames with zero padding at the edges, a periodic Hamming window of 640 samples in a DFT of 800 points, every
160 samples; frames 0–299 and bins 0–199 of a 3-second clip; dB relative to a magnitude of 1.0, floored at −100 dB.
"""

from __future__ import annotations

import torch

from mfhca_cache.spec import ClipSpec, SpectrogramSpec


def magnitudes(clips: torch.Tensor, spec: SpectrogramSpec) -> torch.Tensor:
    """|DFT| of each frame: float (B, samples) → (B, frames, bins) of the same type.

    The same as librosa's ``stft(n_fft=800, hop_length=160, win_length=640, window="hamming", center=True,
    pad_mode="constant")``, frames first.
    """
    window = torch.hamming_window(spec.window, periodic=True, dtype=clips.dtype, device=clips.device)
    return centred_magnitudes(clips, window, spec.n_fft, spec.hop)[:, :, : spec.bins]


def centred_magnitudes(clips: torch.Tensor, window: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    """|DFT| of frames centred on every ``hop``-th sample, with zeros beyond the edges.

    Args:
        clips: float (B, samples).
        window: float (≤ n_fft,), centred in the DFT.

    Returns:
        (B, ceil(samples / hop), n_fft // 2 + 1).
    """
    spectrum = torch.stft(
        clips,
        n_fft=n_fft,
        hop_length=hop,
        win_length=len(window),
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    # The frame centred on the first sample after the clip is dropped: 301 → 300.
    return spectrum[:, :, : -(-clips.shape[1] // hop)].abs().transpose(1, 2)


def spectrograms(clips: torch.Tensor, spec: SpectrogramSpec) -> torch.Tensor:
    """Float (B, samples) → dB (B, frames, bins): 20·log10 of the magnitude, not under the floor."""
    floor = 10.0 ** (spec.floor_db / 20.0)
    return 20.0 * torch.log10(magnitudes(clips, spec).clamp(min=floor))


def clip_shape(clip: ClipSpec, spec: SpectrogramSpec) -> tuple[int, int]:
    """(frames, bins) of a clip: (300, 200)."""
    return spec.frames(clip.samples), spec.bins
