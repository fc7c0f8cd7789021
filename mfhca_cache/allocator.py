"""The C library's allocator, for processes that are ours alone: the command, and the processes it starts."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: giving them back after every operation doubles the time of a step.

    A library must not change its host's allocator, so nothing calls this on import.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold, limit, never = -1, -3, 2**31 - 1, -1
        libc.mallopt(m_mmap_threshold, limit)
        libc.mallopt(m_trim_threshold, never)  # Any limit would be 2 GB at most, and a step frees more.
    except (OSError, AttributeError):
        return  # Another C library: nothing to set.
