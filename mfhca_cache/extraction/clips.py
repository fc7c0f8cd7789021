"""An utterance → clips of equal length, the last one zero-padded on the right."""

from __future__ import annotations

import numpy as np

from mfhca_cache.spec import ClipSpec


def cut_clips(samples: np.ndarray, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cut an utterance.

    Args:
        samples: float32 (n,) at 16 kHz, n > 0.
        spec: length of a clip.

    Returns:
        clips, float32 (ceil(n / spec.samples), spec.samples), and the valid samples of each, int64.
    """
    count = spec.count(len(samples))
    clips = np.zeros((count, spec.samples), dtype=np.float32)
    clips.reshape(-1)[: len(samples)] = samples
    valid = np.array([spec.valid_samples(len(samples), clip) for clip in range(count)], dtype=np.int64)
    return clips, valid


def place_clips(samples: np.ndarray, spec: ClipSpec, out: np.ndarray, number: int) -> np.ndarray:
    """`cut_clips`, of the clips from ``number`` on, into their place.

    Args:
        samples: float32 (n,) at 16 kHz.
        spec: length of a clip.
        out: (count, spec.samples) float32, written to its end.
        number: of the first clip, counted from the utterance's beginning.

    Returns:
        valid samples of each, int64 (count,).
    """
    part = samples[number * spec.samples : (number + len(out)) * spec.samples]
    flat = out.reshape(-1)
    flat[: len(part)] = part
    flat[len(part) :] = 0.0
    return np.clip(len(samples) - spec.samples * np.arange(number, number + len(out)), 0, spec.samples)


def pre_emphasise(samples: np.ndarray, coefficient: float) -> np.ndarray:
    """y[0] = x[0], y[t] = x[t] − a·x[t−1] over a whole utterance, float32; a = 0 gives x itself."""
    if coefficient == 0.0:
        return samples
    return np.append(samples[:1], samples[1:] - np.float32(coefficient) * samples[:-1])
