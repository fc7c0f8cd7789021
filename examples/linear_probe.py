"""SUPERB's linear probe: learned weights over an encoder's layers, a mean over time, one linear layer a step.

python examples/linear_probe.py CACHE [FEATURE]    # a feature of several layers (L, frames, width), or of one
"""

import sys

import torch
from torch import Tensor, nn

import mfhca_cache


class LinearProbe(nn.Module):
    def __init__(self, shapes: dict[str, tuple[int, ...]], n_classes: int) -> None:
        super().__init__()
        ((self.name, shape),) = shapes.items()  # one feature: (L, frames, width), or (frames, width)
        self.layer_weights = nn.Parameter(torch.zeros(shape[0] if len(shape) == 3 else 1))
        self.projection = nn.Linear(shape[-1], 256)
        self.out = nn.Linear(256, n_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        layers = features[self.name]
        layers = layers if layers.ndim == 4 else layers.unsqueeze(1)  # (B, L, frames, width)
        mixed = torch.einsum("l,blfw->bfw", self.layer_weights.softmax(0), layers)
        mask = masks[self.name].unsqueeze(-1)
        return self.out((self.projection(mixed) * mask).sum(1) / mask.sum(1))


if __name__ == "__main__":
    cache = mfhca_cache.open_cache(sys.argv[1])
    feature = sys.argv[2] if len(sys.argv) > 2 else "encoder"
    options = mfhca_cache.TrainOptions("linear_probe:LinearProbe", feature, protocol="session", epochs=10)
    for result in mfhca_cache.cross_validate(cache, options):
        weights = result.model(LinearProbe).layer_weights.softmax(0).tolist()
        print(f"{result.record['name']}: UA {result.ua:.3f}, layers {[round(weight, 3) for weight in weights]}")
