"""Where to compute."""

from __future__ import annotations

import torch

from mfhca_cache.errors import MfhcaError


def resolve_device(device: str) -> str:
    """``auto`` → cuda where there is one, else cpu; anything else is checked and returned.

    Raises:
        MfhcaError: an unknown device, or cuda where PyTorch finds none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise MfhcaError(f"device {device!r} is not known; expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MfhcaError("device cuda: PyTorch finds none here; use --device cpu, or install a CUDA build of torch")
    return device
