"""An encoder's forward pass on a GPU as one captured CUDA graph: one launch a batch instead of some hundreds.

A graph holds for one shape, whose inputs it reads and whose results it writes in place. The largest batch seen is the
one that is captured; smaller ones, such as a shard's last one, run eagerly with the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mfhca_cache.extraction.batch_size import is_out_of_memory
from mfhca_cache.extraction.runtimes import TorchRuntime

#: Eager passes before a capture, as CUDA's libraries allocate and choose at their first calls.
_WARM_UP = 3


@dataclass(frozen=True)
class _Captured:
    graph: Any
    values: torch.Tensor
    hidden: torch.Tensor


class GraphRuntime:
    """Replays what `TorchRuntime` does; where that cannot be captured, does it eagerly and says why in ``note``."""

    name = "cuda-graph"

    def __init__(self, eager: TorchRuntime) -> None:
        self.note = ""
        self._eager = eager
        self._key: tuple[Any, ...] = ()
        # One alone: a graph holds a batch's activations on the GPU for good.
        self._captured: _Captured | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._eager.device

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """See `mfhca_cache.extraction.runtimes.Runtime.hidden`."""
        key = (tuple(values.shape), tuple(layers))
        largest = self._captured.values.numel() if self._captured else 0
        if key != self._key and not self.note and values.numel() >= largest:
            self.forget()
            self._captured = self._capture(values, layers)
            self._key = key if self._captured else ()
        if key != self._key or self._captured is None:
            return self._eager.hidden(values, layers)
        self._captured.values.copy_(values, non_blocking=True)
        self._captured.graph.replay()
        # The next replay writes over the graph's own result.
        return self._captured.hidden.clone()

    def forget(self) -> None:
        """See `mfhca_cache.extraction.runtimes.Runtime.forget`: the captured graph goes."""
        self._key, self._captured = (), None

    def _capture(self, values: torch.Tensor, layers: Sequence[int]) -> _Captured | None:
        """The forward pass of this shape; None, and a note, where it cannot be captured."""
        try:
            held = torch.empty(values.shape, dtype=torch.float32, device=self.device)
            held.copy_(values)
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._eager.hidden(held, layers)
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads decode and write meanwhile; what they ask of CUDA is no part of the capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                hidden = self._eager.hidden(held, layers)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            torch.cuda.synchronize(self.device)
            self.note = f"this encoder cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); run eagerly"
            return None
        return _Captured(graph, held, hidden)
