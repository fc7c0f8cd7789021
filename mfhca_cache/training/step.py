"""One step of training, and predictions: what happens to a batch, whichever loop it is part of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.models import AttentivePooling, LinearProbe, StatisticsModel
from mfhca_cache.models.own import OwnModel, told_of
from mfhca_cache.training.data import CorpusData, Scaling, gather, masks
from mfhca_cache.training.options import Recipe

#: A step: rows of a batch of clips, int64 (B,) on the device → its loss, a scalar that stays on the device.
Step = Callable[[Tensor], Tensor]
#: A step was launched, and others may launch theirs; or there was nothing to launch, because the device is at work.
LAUNCHED, WAITING = True, False

#: Clips of a batch without gradients. A GPU would wait for the launches of smaller ones; a CPU gains nothing by more.
_EVALUATION_CLIPS = {"cpu": 64, "cuda": 256}


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; on a GPU as one kernel for all weights, which a CUDA graph can hold."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
    # Where the one kernel takes them: real numbers, as all of ours are.
    on_gpu = all(parameter.is_cuda and parameter.is_floating_point() for parameter in model.parameters())
    more: dict[str, Any] = {"fused": True, "capturable": True} if on_gpu else {}
    return kind(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **more)


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    data: CorpusData,
    clips: Tensor,
    scaling: Scaling | None,
    precision: str = "fp32",
) -> Tensor:
    """One step of cross entropy on a batch of clips; its loss, a scalar on the device."""
    optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(logits(model, data, clips, scaling, precision), data.labels[clips])
    with told_of(model, "in the backward pass"):
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return loss.detach()


def logits(
    model: nn.Module, data: CorpusData, clips: Tensor, scaling: Scaling | None, precision: str = "fp32"
) -> Tensor:
    """The model's logits of a batch of clips, float32 (B, classes).

    Args:
        precision: fp32, or bf16 for convolutions and products in bfloat16 (torch's autocast).
    """
    batch = gather(data, clips, scaling)
    with torch.autocast(data.labels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        result: Tensor
        if isinstance(model, OwnModel | StatisticsModel):
            result = model(batch, masks(data, clips))
        elif isinstance(model, LinearProbe | AttentivePooling):
            result = model(batch["encoder"], masks(data, clips).get("encoder"))
        else:
            result = model(**batch)
    return result.float()


def predict(
    model: nn.Module, data: CorpusData, clips: Tensor, scaling: Scaling | None, precision: str = "fp32"
) -> Generator[bool, None, np.ndarray]:
    """Log-probabilities of clips, float32 (clips, classes), without dropout; yields behind each batch."""
    model.eval()
    parts = []
    for part in clips.split(_EVALUATION_CLIPS.get(clips.device.type, 64)):
        # Not inference mode: what a reader's model keeps from here could not be used in training. And not beyond the
        # yield: it holds for all that this thread does.
        with torch.no_grad():
            parts.append(logits(model, data, part, scaling, precision).log_softmax(1))
        yield LAUNCHED
    found = torch.cat(parts)
    yield from device_done(found)
    return found.cpu().numpy()


def evaluate(
    model: nn.Module, data: CorpusData, clips: Tensor, scaling: Scaling | None, precision: str = "fp32"
) -> np.ndarray:
    """Log-probabilities of clips, float32 (clips, classes), without dropout."""
    steps = predict(model, data, clips, scaling, precision)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return np.asarray(end.value)


def device_done(last: Tensor) -> Generator[bool, None, None]:
    """Wait for what was launched on the present stream, without blocking: others may launch meanwhile."""
    if last.is_cuda:
        event = torch.cuda.current_stream(last.device).record_event()
        while not event.query():
            yield WAITING
