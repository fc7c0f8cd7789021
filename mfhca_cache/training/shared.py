"""Tensors in memory that several processes of one machine see: written once by one of them, mapped by the others.

A cache's clips are checked while they are copied here, once, and what was checked is what every fold trains on: pages
of a mapped shard may be dropped and read from the disk again, unchecked, and each process would check for itself. On
Linux it is an anonymous file in memory, which /dev/shm's size (64 MB in many containers) does not limit, and which is
gone with its process, however that ends; elsewhere it is a file in the folder for temporary files.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedTensor:
    """Where a tensor lies: file, shape, dtype. What goes to another process in its place."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def map(self) -> Tensor:
        """The tensor, without a copy. What is written to it stays in this process."""
        handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            pages = mmap.mmap(handle, self.bytes, access=mmap.ACCESS_COPY)
        finally:
            os.close(handle)
        return self.over(pages)

    def over(self, pages: mmap.mmap) -> Tensor:
        """The tensor whose memory is a mapping of this file."""
        return torch.frombuffer(pages, dtype=self.dtype)[: torch.Size(self.shape).numel()].view(self.shape)

    @property
    def bytes(self) -> int:
        """Of the mapping; of one number at least, because nothing cannot be mapped."""
        return max(1, torch.Size(self.shape).numel()) * self.dtype.itemsize


class SharedMemory:
    """Allocates tensors that other processes can map while this is open; a context manager.

    Called like ``torch.empty``. `where` says where a tensor lies that it made.
    """

    def __init__(self) -> None:
        self._files: list[tuple[int, str]] = []
        self._places: dict[int, SharedTensor] = {}

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(self, *_: object) -> None:
        for handle, name in self._files:
            os.close(handle)
            if name:
                with contextlib.suppress(OSError):  # Windows keeps what is mapped.
                    Path(name).unlink()
        self._files.clear()

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros.

        Raises:
            OSError: no memory, or no room for temporary files.
        """
        handle, path = self._new_file()
        place = SharedTensor(path, tuple(shape), dtype)
        os.ftruncate(handle, place.bytes)
        tensor = place.over(mmap.mmap(handle, place.bytes))
        self._places[tensor.data_ptr()] = place
        return tensor

    def where(self, tensor: Tensor) -> SharedTensor:
        """Where a tensor lies that was made here."""
        return self._places[tensor.data_ptr()]

    def _new_file(self) -> tuple[int, str]:
        """A handle, and the name by which other processes open it."""
        if sys.platform == "linux":
            handle = os.memfd_create("mfhca-cache")
            self._files.append((handle, ""))
            return handle, f"/proc/{os.getpid()}/fd/{handle}"
        handle, name = tempfile.mkstemp(prefix="mfhca-cache-")
        self._files.append((handle, name))
        return handle, name
