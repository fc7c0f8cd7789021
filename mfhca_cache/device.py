"""Where to compute, and with how many cores."""

from __future__ import annotations

import os
from pathlib import Path

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


def allowed_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that this process may keep busy: those it may run on, or a container's share of them if that is less."""
    cores = allowed_cores()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores  # Not Linux, or no limit ("max").
