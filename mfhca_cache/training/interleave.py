"""Folds side by side in one process: each launches a step in turn, on its own stream and from its own random state.

A fold leaves most of a big GPU idle: its LSTM is 149 steps, one after the other. Several folds share the data and the
device; what one computes depends on no other.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import torch

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold

Result = TypeVar("Result")
#: Yields `LAUNCHED` or `WAITING` (`mfhca_cache.training.step`) and returns a fold's result.
Steps = Generator[bool, None, Result]

#: Of the GPU memory that is free beside the first fold, more folds may fill so much.
_SHARE = 0.8
#: A fold takes more than its first step did: the last, short batch and evaluation come beside the captured step.
_GROWTH = 3.5
_IDLE_SECONDS = 5e-5


class RandomState:
    """The state of torch's generators that one fold draws from, put in place while it has its turn.

    On a GPU it is a state of its own, which a CUDA graph captured in such a turn goes on to draw from.
    """

    def __init__(self, seed: int, device: str) -> None:
        self._device = device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._cpu = torch.get_rng_state()
        self._cuda: torch.Generator | None = None
        if device.startswith("cuda"):
            self._cuda = _cuda_generator().clone_state()
            self._cuda.manual_seed(seed)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Draw from this state; whatever was in place before comes back."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._cpu)
        before_cuda = None
        if self._cuda is not None:
            before_cuda = _cuda_generator().graphsafe_get_state()
            _cuda_generator().graphsafe_set_state(self._cuda)
        try:
            yield
        finally:
            if before_cuda is not None:
                _cuda_generator().graphsafe_set_state(before_cuda)
            self._cpu = torch.get_rng_state()
            torch.set_rng_state(before)


class _Turn:
    """A fold under way."""

    def __init__(self, fold: Fold, steps: Steps[Result], seed: int, device: str) -> None:
        self.fold, self.steps, self.random = fold, steps, RandomState(seed, device)
        self.stream: torch.cuda.Stream | None = None
        if device.startswith("cuda"):
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))  # The data was put there on this one.

    def advance(self) -> bool:
        """Up to the fold's next yield, and what that gave; StopIteration carries the result."""
        with self.random.in_use(), contextlib.ExitStack() as stack:
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            return next(self.steps)


def side_by_side(
    folds: Sequence[Fold],
    begin: Callable[[Fold], Steps[Result]],
    done: Callable[[Result], None],
    *,
    seed: Callable[[Fold], int],
    device: str,
    at_once: int | None = 1,
) -> None:
    """Train folds a step at a time in turn, some at once.

    Args:
        begin: a fold → its steps.
        done: called with each result, as folds end.
        seed: of a fold's random state.
        device: cpu or cuda.
        at_once: how many; None for as many as fit in the GPU's memory, of which the first fold is the measure.

    Raises:
        TrainingError: the GPU's memory does not hold a single fold.
    """
    waiting, running = deque(folds), list[_Turn]()
    most = at_once or 1
    before = _reserved(device)
    measured = at_once is not None
    while waiting or running:
        while waiting and len(running) < most:
            fold = waiting.popleft()
            running.append(_Turn(fold, begin(fold), seed(fold), device))
        launched = False
        for turn in list(running):
            try:
                launched |= turn.advance()
            except StopIteration as end:
                running.remove(turn)
                launched = True
                done(end.value)
            except torch.OutOfMemoryError as error:
                running.remove(turn)
                turn.steps.close()
                if not running:
                    raise TrainingError(
                        f"fold {turn.fold.number} ({turn.fold.name}): the GPU's memory does not hold its training "
                        f"({str(error).splitlines()[0]}); end what else runs on this GPU, or use --device cpu"
                    ) from error
                # It begins anew, with the same numbers, when another is done.
                waiting.appendleft(turn.fold)
                most = len(running)
                torch.cuda.empty_cache()
        if not measured:
            most, measured = _that_fit(_reserved(device) - before, device), True
        if not launched:
            time.sleep(_IDLE_SECONDS)


def _that_fit(taken: int, device: str) -> int:
    """How many folds at once the GPU holds, one of which has taken so many bytes; 1 on a CPU."""
    if not device.startswith("cuda"):
        return 1
    return 1 + int(_SHARE * torch.cuda.mem_get_info(device)[0] / max(1, _GROWTH * taken))


def _reserved(device: str) -> int:
    return torch.cuda.memory_reserved(device) if device.startswith("cuda") else 0


def _cuda_generator() -> torch.Generator:
    device = torch.cuda.current_device()  # Starts CUDA, and only then are there generators.
    return torch.cuda.default_generators[device]
