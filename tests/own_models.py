"""Models of a reader's own, good and bad, for test_own_model.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


class Flat(nn.Module):
    """Features of any shape: means over all but the last axis, batch norm, one layer."""

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.shapes, self.n_classes = shapes, n_classes
        width = sum(shape[-1] for shape in shapes.values())
        self.norm = nn.BatchNorm1d(width)
        self.scaling = nn.Linear(width, n_classes)  # a name close to ours

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        assert list(features) == list(self.shapes)
        for name, values in features.items():
            assert values.dtype == torch.float32 and values.shape[1:] == self.shapes[name]
            assert name not in masks or masks[name].shape == (len(values), values.shape[-2])
        means = [values.flatten(1, -2).mean(1) if values.ndim > 2 else values for values in features.values()]
        return self.scaling(self.norm(torch.cat(means, 1)))


class Base(nn.Module):
    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.out = nn.Linear(next(iter(shapes.values()))[-1], n_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> object:
        return self.finish(self.out(next(iter(features.values())).mean(1)))

    def finish(self, logits: Tensor) -> object:
        raise NotImplementedError


class Raises(Base):
    def finish(self, logits: Tensor) -> object:
        return logits @ torch.zeros(99, 2)


class PerFrame(Base):
    def finish(self, logits: Tensor) -> object:
        return logits.unsqueeze(1).expand(-1, 149, -1)


class Tuple(Base):
    def finish(self, logits: Tensor) -> object:
        return logits, None


class NotANumber(Base):
    def finish(self, logits: Tensor) -> object:
        return logits / 0.0 * 0.0


class OnlyInEvaluation(Base):
    def finish(self, logits: Tensor) -> object:
        return logits if self.training else logits * float("inf") * 0.0


class Detached(Base):
    def finish(self, logits: Tensor) -> object:
        return logits.detach()


class Exits(Base):
    def finish(self, logits: Tensor) -> object:
        raise SystemExit(3)


class Uninitialised(Base):
    """Reads memory that nobody wrote."""

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__(shapes, n_classes)
        self.bias = nn.Parameter(torch.empty(n_classes))

    def finish(self, logits: Tensor) -> object:
        return logits + self.bias


class NoShapes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


class NoForward(nn.Module):
    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(2, n_classes)


class OneArgument(NoForward):
    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return next(iter(features.values()))


class Untrainable(nn.Module):
    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()


class Lazy(nn.Module):
    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.out = nn.LazyLinear(n_classes)


class TakenName(NoForward):
    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__(shapes, n_classes)
        self.scaling = nn.Module()
        self.scaling.register_buffer("mean", torch.zeros(2))


class ExtraState(NoForward):
    def get_extra_state(self) -> object:
        return {"steps": 3}


def a_function(shapes: Shapes, n_classes: int) -> nn.Module:
    return Flat(shapes, n_classes)
