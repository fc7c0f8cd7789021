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
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise MfhcaError(f"device {device!r} is not known; expected auto, cpu or cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MfhcaError(
            f"device {device}: PyTorch finds no such device here; use --device cpu, or a CUDA build of torch"
        )
    return device
