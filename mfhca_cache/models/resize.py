"""Averaging and interpolation of maps as products with small matrices: the same on every device, and repeatable."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Resize = Literal["average", "bilinear", "nearest"]


def adaptive_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) → (…, h, w): the numbers of ``F.adaptive_avg_pool2d``, as products with two averaging matrices.

    Its backward pass is deterministic on CUDA, where torch's is not, and on a CPU it is faster in channels-last.
    """
    return resize(x, size, "average")


def upsample(x: Tensor, size: tuple[int, int], mode: Literal["bilinear", "nearest"]) -> Tensor:
    """``F.interpolate`` (``align_corners=False``), deterministic on CUDA too: (B, C, h, w) → (B, C, H, W)."""
    return resize(x, size, mode) if x.is_cuda else F.interpolate(x, size=size, mode=mode)


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if the map is stored so and not otherwise contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def resize(x: Tensor, size: tuple[int, int], kind: Resize) -> Tensor:
    """R x Cᵀ for each map of x, with R (h, H) and C (w, W) the matrices of `_matrix`: (…, H, W) → (…, h, w)."""
    H, W = x.shape[-2:]
    if x.ndim == 4 and memory_format(x) == torch.channels_last:
        # Channels lie innermost: products along H, then W, of the map as it lies, so that nothing is copied.
        y = x.permute(0, 2, 3, 1)
        if size[0] != H:
            y = torch.matmul(_matrix(H, size[0], kind, x.dtype, x.device), y.flatten(2)).unflatten(2, (W, -1))
        if size[1] != W:
            y = torch.matmul(_matrix(W, size[1], kind, x.dtype, x.device), y)
        return y.permute(0, 3, 1, 2)
    if size[0] != H:
        x = torch.matmul(_matrix(H, size[0], kind, x.dtype, x.device), x)
    if size[1] != W:
        x = torch.matmul(x, _matrix(W, size[1], kind, x.dtype, x.device).T)
    return x


@lru_cache(maxsize=64)
def _matrix(n_in: int, n_out: int, kind: Resize, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n_out, n_in): what torch's own one-dimensional resize makes of each unit vector."""
    # Outside of inference mode: a tensor made in it could not be used for training later, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        units = torch.eye(n_in, dtype=torch.float64, device="cpu").unsqueeze(0)
        if kind == "average":
            resized = F.adaptive_avg_pool1d(units, n_out)
        else:
            resized = F.interpolate(units, size=n_out, mode="linear" if kind == "bilinear" else "nearest")
        return resized[0].T.contiguous().to(device, dtype)
