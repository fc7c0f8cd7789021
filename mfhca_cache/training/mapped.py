"""Features larger than memory: read from the cache a batch at a time, in place of a tensor that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mfhca_cache.storage.cache import Cache

#: Of the memory that is free when a run begins, features may fill so much.
_SHARE = 0.6


class MappedFeature:
    """Stands for a tensor (N, …): indexed by rows, int64 (B,), it gives (B, …) of the stored type on the device.

    Raises:
        CacheError: when indexed, damaged bytes.
    """

    def __init__(self, parts: Sequence[tuple[Cache, np.ndarray]], feature: str, device: str) -> None:
        """Clips of caches by their rows of the plan (`Cache.clip_table`), one part behind the other."""
        info = parts[0][0].feature(feature)
        self._stops = np.cumsum([len(rows) for _, rows in parts])
        self.shape = (int(self._stops[-1]), *info.shape)
        self.dtype: torch.dtype = getattr(torch, info.dtype)
        self._parts, self._feature, self._device = tuple(parts), feature, device

    def __getitem__(self, clips: Tensor) -> Tensor:
        wanted = clips.cpu().numpy()
        values = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        part_of = np.searchsorted(self._stops, wanted, side="right")
        for number, (cache, plan_rows) in enumerate(self._parts):
            places = np.flatnonzero(part_of == number)
            rows = plan_rows[wanted[places] - (self._stops[number] - len(plan_rows))]
            if len(places) == len(wanted):
                cache.copy_clips(self._feature, rows, values.numpy())
            elif len(places):
                found = torch.empty((len(places), *self.shape[1:]), dtype=self.dtype)
                cache.copy_clips(self._feature, rows, found.numpy())
                values[torch.from_numpy(places)] = found
        return values.to(self._device)


def that_fit(sizes: dict[str, int], device: str) -> set[str]:
    """Of features with their sizes in bytes, those that fit in memory together, the small ones first."""
    left, chosen = _SHARE * free_memory(device), set()
    for name in sorted(sizes, key=lambda name: sizes[name]):
        left -= sizes[name]
        if left >= 0:
            chosen.add(name)
    return chosen


def data_bytes(size: int, free: int) -> int:
    """Of features of a size, what `that_fit` lets into memory at most, where so much is free."""
    return min(size, int(_SHARE * free))


def free_memory(device: str) -> int:
    """Bytes that can be filled before something is swapped out or killed: the host's, and the GPU's if it has fewer.

    Where the system does not say, as many as there are addresses.
    """
    free = [2**62]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
        # A container's limit is not in meminfo.
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free.append(int((group / "memory.max").read_text()) - used + int(cached))
    except (OSError, KeyError, ValueError):
        pass  # Not Linux, or no limit ("max").
    if device.startswith("cuda"):
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free)
