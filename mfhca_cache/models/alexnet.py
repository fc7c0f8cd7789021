"""AlexNet's convolutions on the spectrogram: the paper's "MF ✗", as the baseline [13] has it (CA-MSER, ICASSP 2022).

Layer sizes are those of torchvision's AlexNet (Krizhevsky 2014, arXiv 1404.5997), whose classifier [13] does not use.
[13] starts from weights trained on ImageNet: a file of them, with torchvision's names, can be given. Without one the
convolutions start as He et al. 2015 (arXiv 1502.01852) have it: from torch's smaller weights five convolutions without
batch norm hardly learn.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.resize import adaptive_average

#: Rows and columns that the last map is averaged to; with its 256 channels 9216 numbers.
GRID = (6, 6)
#: Frames and bins below which nothing is left after the last pooling.
LEAST = 63


class AlexNet(nn.Module):
    """Five convolutions, their map averaged to 6 × 6, and one linear layer: (B, 3, T, F) → ``f_spec`` (B, width).

    Args:
        width: of ``f_spec``; 128 in [13].
        dropout: probability before the linear layer.

    Attributes:
        in_channels: 3, of which each is the same spectrogram here.
    """

    in_channels = 3

    def __init__(self, width: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        # Numbered as in torchvision, so that its files fit.
        self.features = nn.Sequential(
            nn.Conv2d(self.in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(256 * GRID[0] * GRID[1], width)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, T, F) → (B, width), not negative.

        Raises:
            TrainingError: the image has other channels, or is too small.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels or min(image.shape[2:]) < LEAST:
            raise TrainingError(
                f"spectrogram image: got shape {tuple(image.shape)}; AlexNet expects (B, {self.in_channels}, T, F), "
                f"T and F at least {LEAST}; use longer clips, or spectrogram_network=mf"
            )
        pooled = adaptive_average(self.features(image), GRID).flatten(1)  # (B, 9216)
        return F.relu(self.projection(self.dropout(pooled)))


@dataclass(frozen=True)
class WeightsFile:
    """A file of AlexNet's weights and its SHA-256 (64 hex digits)."""

    file: Path
    sha256: str


def find_weights(path: str | Path) -> WeightsFile:
    """The file, with its digest.

    Raises:
        TrainingError: it cannot be read.
    """
    return WeightsFile(Path(path), hashlib.sha256(_read(Path(path))).hexdigest())


def load_weights(alexnet: AlexNet, weights: WeightsFile) -> None:
    """Take the convolutions' weights from a file: safetensors, or a checkpoint of torch, read without unpickling code.

    Its keys are torchvision's, ``features.0.weight`` and so on. Those of a classifier may be there and are not used.

    Raises:
        TrainingError: the file changed since it was found, is no such file, or its weights do not fit.
    """
    content = _read(weights.file)
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise TrainingError(f"{weights.file} changed while folds were trained; run the same command again")
    try:
        # Safetensors has JSON behind the length of its header; torch's archives and pickles have no "{" there.
        if content[8:9] == b"{":
            found = safetensors.torch.load(content)
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise TrainingError(
            f"{weights.file}: not readable as weights ({str(error).splitlines()[0]}); expected safetensors, or what "
            "torch.save wrote of a state_dict"
        ) from error
    wanted = alexnet.features.state_dict()
    names = {name: f"features.{name}" for name in wanted}
    if not isinstance(found, dict) or (missing := [name for name in names.values() if name not in found]):
        what = f"without {missing[0]}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise TrainingError(f"{weights.file}: got {what}; expected torchvision's AlexNet, {', '.join(names.values())}")
    if extra := sorted(name for name in found if str(name).startswith("features.") and name not in names.values()):
        raise TrainingError(f"{weights.file}: {extra[0]} is none of AlexNet's; expected {', '.join(names.values())}")
    for name, value in wanted.items():
        given = found[names[name]]
        if not isinstance(given, Tensor) or given.shape != value.shape or not given.is_floating_point():
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise TrainingError(f"{weights.file}: {names[name]} is {got}; expected numbers {tuple(value.shape)}")
        if not bool(given.isfinite().all()):
            raise TrainingError(f"{weights.file}: {names[name]} holds NaN or infinity; the file may be damaged")
    alexnet.features.load_state_dict({name: found[full] for name, full in names.items()})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"alexnet_weights: {path} cannot be read ({error.strerror}); expected a file of AlexNet's weights, such as "
            "torchvision's alexnet-owt-7be5be79.pth"
        ) from error
