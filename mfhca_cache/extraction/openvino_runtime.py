"""OpenVINO on a CPU, from the optional extra ``[openvino]``: the whole network compiled, in float32 unless asked."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mfhca_cache.extraction.runtimes import UnsuitableError, is_installed
from mfhca_cache.spec import Precision

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVINORuntime:
    """A model of transformers, converted in memory and compiled when it is first told which layers are wanted."""

    name = "openvino"
    note = ""

    def __init__(self, model: Any, precision: Precision = "fp32", threads: int | None = None) -> None:
        if not is_installed("openvino"):
            raise UnsuitableError("openvino is not installed")
        if precision not in _HINTS:
            raise UnsuitableError(f"OpenVINO on a CPU has no {precision}")
        self._model, self._precision, self._threads = model, precision, threads
        self._fixed: tuple[int, ...] = ()
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """See `mfhca_cache.extraction.runtimes.Runtime.hidden`."""
        numbers, length = tuple(layers), tuple(values.shape[1:])
        # The first length seen is compiled in, which is faster; all others share one network that takes any.
        if not self._compiled:
            self._fixed = length
        key = (numbers, length if length == self._fixed else (-1,) * len(length))
        if key not in self._compiled:
            self._compiled[key] = self._compile(values, *key)
        # OpenVINO copies its results, so that the next call does not write over them.
        found = self._compiled[key](values.numpy())
        return torch.stack([torch.from_numpy(found[number]) for number in range(len(numbers))], dim=1)

    def forget(self) -> None:
        """See `mfhca_cache.extraction.runtimes.Runtime.forget`; no batch's size is in the networks."""

    def _compile(self, values: torch.Tensor, layers: tuple[int, ...], length: tuple[int, ...]) -> Any:
        openvino, core = _openvino()
        shape = [-1, *length]
        example = values[:1].repeat(2, *[1] * (values.ndim - 1)).clone()
        wanted = {"INFERENCE_PRECISION_HINT": _HINTS[self._precision], "PERFORMANCE_HINT": "LATENCY"}
        if self._threads:
            wanted["INFERENCE_NUM_THREADS"] = str(self._threads)
        try:
            with _quiet(), torch.inference_mode():
                converted = openvino.convert_model(
                    _Layers(self._model, layers), example_input=example, input=[openvino.PartialShape(shape)]
                )
                compiled = core.compile_model(converted, "CPU", wanted)
        except Exception as error:  # A model that cannot be traced or converted can raise anything.
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnsuitableError(f"OpenVINO cannot convert this encoder ({first})") from error
        # Without hardware for it, OpenVINO would take another precision and say nothing.
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != _HINTS[self._precision]:
            raise UnsuitableError(f"OpenVINO computes in {got} on this processor, not in {self._precision}")
        return compiled


@functools.cache
def _openvino() -> tuple[Any, Any]:
    """The library and its one core of this process.

    Each core gives the thread that makes it another stack for signals, and at its end the one before comes back,
    whether that is still there or not: with several of them the next signal could end the process.
    """
    openvino: Any = importlib.import_module("openvino")
    return openvino, openvino.Core()


class _Layers(nn.Module):
    """The chosen hidden layers as a tuple, which is what is traced."""

    def __init__(self, model: Any, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.layers, self.last = model, layers, int(model.config.num_hidden_layers)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs of the model → (B, frames, width) for each layer."""
        output = self.model(values, output_hidden_states=self.layers != (self.last,), return_dict=True)
        return tuple(output.last_hidden_state if n == self.last else output.hidden_states[n] for n in self.layers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's warnings off the terminal: whether the trace generalises is checked on real clips."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
