"""Speech-like sound by source and filter: glottal pulses and breath, through the formants of changing vowels.

It says nothing, but it has what carries emotion in speech: pitch and its movement, rate, loudness, spectral tilt and
breathiness. Pulses after Rosenberg (1971), formant frequencies after Peterson and Barney (1952).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfhca_cache.spec import SAMPLE_RATE

Floats = NDArray[np.float64]

#: Formants of five vowels of a male voice in Hz; a shorter vocal tract scales all of them.
_VOWELS = np.array(
    [
        [730.0, 1090.0, 2440.0, 3500.0],
        [530.0, 1840.0, 2480.0, 3500.0],
        [270.0, 2290.0, 3010.0, 3500.0],
        [570.0, 840.0, 2410.0, 3400.0],
        [300.0, 870.0, 2240.0, 3300.0],
    ]
)
_BANDWIDTHS = np.array([80.0, 100.0, 140.0, 200.0])  # Hz
#: Level of the active speech, dB of full scale, of a manner of 0 dB.
_LEVEL = -30.0
_ROOM_NOISE = -72.0  # dB of full scale


@dataclass(frozen=True)
class Voice:
    """How one utterance is spoken: the speaker's voice and the manner together.

    Attributes:
        pitch: mean fundamental, Hz.
        movement: standard deviation of the pitch from syllable to syllable, semitones.
        rate: syllables a second.
        level: dB relative to ordinary speech.
        tilt: pole of the glottal low-pass, 0 (harsh) to 1 (soft).
        breath: noise beside the pulses, relative.
        tract: factor of the formants; about 1 for men, 1.15 for women.
    """

    pitch: float
    movement: float
    rate: float
    level: float
    tilt: float
    breath: float
    tract: float


def speak(voice: Voice, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """An utterance, float32 of shape (round(seconds · 16000),), within ±1."""
    from scipy.signal import lfilter

    samples = round(seconds * SAMPLE_RATE)
    starts, lengths = _syllables(voice.rate, samples, rng)
    centres = starts + lengths / 2
    at = np.arange(samples, dtype=np.float64)
    which = np.clip(np.searchsorted(starts, at, side="right") - 1, 0, len(starts) - 1)
    within = (at - starts[which]) / lengths[which]
    accent = 10 ** (rng.normal(0, 2.0, len(starts)) / 20)
    envelope = np.where((within >= 0) & (within < 1), np.sin(np.pi * np.clip(within, 0, 1)) ** 0.7, 0.0) * accent[which]

    pitch = _pitch(voice, at, centres, rng)
    source = lfilter([1 - voice.tilt], [1, -voice.tilt], _pulses(pitch, rng))
    source = source / max(float(np.std(source)), 1e-9)
    source = (source + voice.breath * rng.standard_normal(samples)) * envelope
    speech = _vowels(source, centres, at, voice.tract, rng)
    speech += 0.3 * _consonants(within, which, len(starts), rng) * float(np.std(speech))

    level = np.sqrt(np.mean(speech[envelope > 0.1 * envelope.max()] ** 2))
    speech *= 10 ** ((_LEVEL + voice.level) / 20) / max(float(level), 1e-9)
    speech += 10 ** (_ROOM_NOISE / 20) * rng.standard_normal(samples)
    # tanh keeps the rare peak of a loud utterance inside the 16 bits without the click of clipping.
    return np.tanh(speech).astype(np.float32)


def _syllables(rate: float, samples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Starts and lengths of the syllables in samples; some are followed by a pause."""
    count = max(1, round(0.9 * samples / SAMPLE_RATE * rate))
    lengths = rng.uniform(0.7, 1.3, count)
    gaps = np.where(rng.random(count) < 0.12, rng.uniform(0.5, 1.5, count), rng.uniform(0.02, 0.12, count))
    scale = samples / (lengths.sum() + gaps.sum() + 0.4)
    starts = 0.2 + np.concatenate([[0.0], np.cumsum(lengths + gaps)[:-1]])
    return starts * scale, lengths * scale


def _pitch(voice: Voice, at: Floats, centres: Floats, rng: np.random.Generator) -> Floats:
    """Hz at each sample: an accent a syllable, a fall over the utterance, slow drift and jitter of 1 %."""
    accents = np.interp(at, centres, rng.normal(0, voice.movement, len(centres)))
    fall = np.linspace(0.5, -0.5, len(at)) * (1 + 0.5 * voice.movement)
    knots = np.arange(0, len(at) + 800, 800)
    drift = np.interp(at, knots, rng.normal(0, 0.25, len(knots)))
    fine = np.arange(0, len(at) + 160, 160)
    jitter = np.interp(at, fine, rng.normal(0, 0.15, len(fine)))
    return np.clip(voice.pitch * 2 ** ((accents + fall + drift + jitter) / 12), 50, 600)


def _pulses(pitch: Floats, rng: np.random.Generator) -> Floats:
    """The flow's derivative: Rosenberg pulses whose height varies by 5 % from one to the next."""
    phase = np.cumsum(pitch) / SAMPLE_RATE
    cycle = phase.astype(np.int64)
    part = phase - cycle
    opening = 0.5 * (1 - np.cos(np.pi * part / 0.4))
    closing = np.cos(0.5 * np.pi * (part - 0.4) / 0.16)
    flow = np.where(part < 0.4, opening, np.where(part < 0.56, closing, 0.0))
    height = 1 + 0.05 * rng.standard_normal(int(cycle[-1]) + 1)
    pulses: Floats = np.diff(flow, prepend=0.0) * height[cycle]
    return pulses


def _vowels(source: Floats, centres: Floats, at: Floats, tract: float, rng: np.random.Generator) -> Floats:
    """The source through each vowel's formants, faded from one syllable's vowel to the next one's."""
    from scipy.signal import sosfilt

    chosen = rng.integers(0, len(_VOWELS), len(centres))
    speech = np.zeros_like(source)
    for vowel in np.unique(chosen):
        weight = np.interp(at, centres, (chosen == vowel).astype(float))
        speech += weight * sosfilt(_resonators(_VOWELS[vowel] * tract), source)
    return speech


def _resonators(formants: Floats) -> Floats:
    """Second-order sections of resonators in a row, each of gain 1 at 0 Hz."""
    radius = np.exp(-np.pi * _BANDWIDTHS / SAMPLE_RATE)
    middle = -2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE)
    one, zero = np.ones_like(radius), np.zeros_like(radius)
    return np.stack([1 + middle + radius**2, zero, zero, one, middle, radius**2], axis=1)


def _consonants(within: Floats, which: NDArray[np.int64], count: int, rng: np.random.Generator) -> Floats:
    """Hiss at the start of a third of the syllables."""
    hissing = (rng.random(count) < 0.35)[which] & (within > -0.1) & (within < 0.22)
    hiss: Floats = np.diff(rng.standard_normal(len(within)), prepend=0.0)
    return np.where(hissing, hiss * np.sin(np.pi * np.clip((within + 0.1) / 0.32, 0, 1)), 0.0)
