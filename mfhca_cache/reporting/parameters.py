"""The paper's "54.26 % fewer parameters than [13]", counted: both systems as built here, at the paper's sizes.

What is counted decides the answer: the frozen encoder, which both have; and AlexNet's three fully connected layers,
which torchvision's model brings along and [13] never uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mfhca_cache.models import build_model, count_parameters, released

#: Percent, section III-B of the paper.
CLAIMED = 54.26
SIZES = "300 × 200 spectrogram, 149 × 768 encoder features, 300 × 40 MFCC, four classes"

_WIDTH, _BLOCKS, _INNER = 768, 12, 3072
#: Kernel sizes of the seven convolutions of the feature extractor, all of 512 channels and without bias.
_KERNELS, _CHANNELS = (10, 3, 3, 3, 3, 2, 2), 512
#: Of the positional convolution.
_POSITIONS, _GROUPS = 128, 16


@dataclass(frozen=True)
class Comparison:
    """Parameters of the baseline [13] and of MFHCA, counted in one way.

    Attributes:
        counted: what is counted, in words.
        baseline, mfhca: numbers of parameters.
        mfhca_released: of the variant that the authors' code runs.
    """

    counted: str
    baseline: int
    mfhca: int
    mfhca_released: int

    @property
    def fewer(self) -> float:
        """Of `mfhca` than `baseline`, in percent."""
        return 100 * (1 - self.mfhca / self.baseline)

    @property
    def fewer_released(self) -> float:
        """Of `mfhca_released` than `baseline`, in percent."""
        return 100 * (1 - self.mfhca_released / self.baseline)


def compare_parameters() -> tuple[Comparison, ...]:
    """The claim, in each way of counting that could be meant."""
    with torch.device("meta"):
        baseline = count_parameters(build_model("co-attention"))
        mfhca = count_parameters(build_model("mfhca"))
        as_released = count_parameters(build_model("mfhca", settings=released()))
    encoder, unused = base_encoder_parameters(), alexnet_classifier_parameters()
    return tuple(
        Comparison(counted, baseline + more + unused * whole, mfhca + more, as_released + more)
        for counted, more, whole in (
            ("with the encoder", encoder, 1),
            ("with the encoder, without AlexNet's unused layers", encoder, 0),
            ("without the encoder", 0, 1),
            ("without the encoder and AlexNet's unused layers", 0, 0),
        )
    )


def base_encoder_parameters() -> int:
    """Of HuBERT base and of wav2vec 2.0 base, whose geometry is the same, with the vector that masks in training."""
    before = (1, *[_CHANNELS] * (len(_KERNELS) - 1))
    extractor = sum(count * _CHANNELS * kernel for count, kernel in zip(before, _KERNELS, strict=True))
    extractor += 2 * _CHANNELS  # Group norm after the first.
    projection = 2 * _CHANNELS + _linear(_CHANNELS, _WIDTH)
    # Weight normalisation keeps a length for each of the 128 positions.
    positions = _WIDTH * (_WIDTH // _GROUPS) * _POSITIONS + _WIDTH + _POSITIONS
    norm = 2 * _WIDTH
    block = 4 * _linear(_WIDTH, _WIDTH) + _linear(_WIDTH, _INNER) + _linear(_INNER, _WIDTH) + 2 * norm
    return extractor + projection + positions + norm + _BLOCKS * block + _WIDTH


def alexnet_classifier_parameters(classes: int = 4) -> int:
    """Of torchvision's three fully connected layers behind AlexNet's features."""
    return _linear(9216, 4096) + _linear(4096, 4096) + _linear(4096, classes)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
