"""A training step as one CUDA graph: gather, scaling, forward, backward and optimiser, launched at once.

The step's hundreds of kernels, 298 of the LSTM's among them, are each shorter than their launch takes. A graph holds
them with the addresses that they read and write, so that a step is a copy of the batch's rows and one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfhca_cache.training.step import Step

_WARM_UP = 3


def capture_step(plain: Step, model: nn.Module, optimiser: torch.optim.Optimizer, clips: Tensor) -> Step:
    """A step that does what ``plain`` does; batches of another size than ``clips`` go through ``plain`` itself.

    Noise is drawn as ``plain`` draws it: each launch hands the state of torch's CUDA generator to the graph.

    Args:
        plain: trains model and optimiser on rows of clips; nothing in it may wait for the device.
        model, optimiser: on the GPU, the optimiser fresh and capturable. Both are left as they were.
        clips: rows of a batch, int64 (B,).

    Raises:
        RuntimeError: CUDA cannot capture this step; model and optimiser are as they were.
    """
    rows = clips.clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    noise = torch.cuda.get_rng_state(clips.device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(clips.device)
    stream.wait_stream(torch.cuda.current_stream(clips.device))
    try:
        # Workspaces, the optimiser's state and what is made once must be there before: a graph cannot wait for them.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                plain(rows)
        torch.cuda.current_stream(clips.device).wait_stream(stream)
        _restore(model, optimiser, state)
        torch.cuda.set_rng_state(noise, clips.device)
        with torch.cuda.graph(graph, stream=stream):
            loss = plain(rows)
    except RuntimeError:
        torch.cuda.synchronize(clips.device)
        _restore(model, optimiser, state)
        torch.cuda.set_rng_state(noise, clips.device)
        raise

    def step(batch: Tensor) -> Tensor:
        if len(batch) != len(rows):
            return plain(batch)
        rows.copy_(batch)
        graph.replay()
        return loss.clone()

    return step


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Weights as they were, the optimiser's moments and counts back to 0, in the memory where they lie."""
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(state[name])
        for values in optimiser.state.values():
            for value in values.values():
                value.zero_()
