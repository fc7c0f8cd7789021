"""Does the encoder's branch of HCA train as Eq. 9 is written?

Encoder features with a planted class direction, spectrogram features that know nothing of the class: what is learnt is
learnt through Eqs. 9–10. Prints the training loss, its start being log 4 = 1.386, for Eq. 9 as written, with a factor
on its softmax, and without the softmax as released.

    python benchmarks/attention_scale.py --steps 40
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from mfhca_cache.models.mfhca import HCA, classifier
from mfhca_cache.models.settings import MFHCASettings

VARIANTS = {
    "softmax, as written": MFHCASettings(),
    "softmax × D": MFHCASettings(attention_scale=768.0),
    "no softmax (released)": MFHCASettings(attention_softmax=False),
}


class Branch(nn.Module):
    """HCA and the classifier."""

    def __init__(self, settings: MFHCASettings) -> None:
        super().__init__()
        self.hca = HCA(288, settings)
        self.classifier = classifier(self.hca.width, settings)

    def forward(self, f_spec: torch.Tensor, f_hubert: torch.Tensor) -> torch.Tensor:
        """(B, 288), (B, 149, 768) → (B, 4)."""
        return self.classifier(self.hca(f_spec, f_hubert))


def batches(steps: int, batch: int, strength: float) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Normal features whose mean over time leans to the class's direction by ``strength``."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 768, generator=generator)
    found = []
    for _ in range(steps):
        labels = torch.randint(0, 4, (batch,), generator=generator)
        f_hubert = torch.randn(batch, 149, 768, generator=generator) + strength * directions[labels][:, None]
        found.append((torch.randn(batch, 288, generator=generator).relu(), f_hubert, labels))
    return found


def losses(
    settings: MFHCASettings, data: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], lr: float
) -> list[float]:
    """Training loss of each step."""
    torch.manual_seed(0)
    model = Branch(settings).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    found = []
    for f_spec, f_hubert, labels in data:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(f_spec, f_hubert), labels)
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def main() -> None:
    """Run the variants on the same batches and print their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    data = batches(options.steps, options.batch, options.strength)
    print(f"{'Eq. 9':24} loss, mean of each quarter of {options.steps} steps, learning rate {options.lr:g}")
    for name, settings in VARIANTS.items():
        found = torch.tensor(losses(settings, data, options.lr))
        print(f"{name:24} " + "  ".join(f"{part.mean():.3f}" for part in found.chunk(4)), flush=True)


if __name__ == "__main__":
    main()
