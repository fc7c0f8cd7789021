"""A model of one's own, on any cached features (frames, width). In the folder above this one:

mfhca train --model examples.own_model:MeanPool --features hubert-base-ls960
"""

import torch
from torch import Tensor, nn


class MeanPool(nn.Module):
    """The mean over the frames of each feature, then two layers."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], n_classes: int) -> None:
        super().__init__()
        width = sum(shape[-1] for shape in shapes.values())
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU())
        self.out = nn.Linear(128, n_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        means = []
        for name, values in features.items():  # float32 (B, frames, width)
            mask = masks[name].unsqueeze(-1)  # True where a frame is signal and not padding
            means.append((values * mask).sum(1) / mask.sum(1))
        return self.out(self.hidden(torch.cat(means, 1)))  # logits (B, n_classes)
