"""What runs a frozen encoder's network: plain PyTorch, the reference, or something faster that agrees with it.

A runtime is a name, the version of its library, and `Runtime.hidden`. Whichever is taken for a feature, it is compared
with plain PyTorch in float32 on the first clips, and kept until the feature is whole: see
`mfhca_cache.extraction.engine`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from mfhca_cache.errors import EncoderError
from mfhca_cache.spec import PRECISIONS, Precision

#: By device, in the order in which they are preferred where they are equally fast.
RUNTIMES = {"cpu": ("openvino", "onednn", "torch"), "cuda": ("cuda-graph", "torch")}
#: A network with fewer parameters is done before a choice would pay.
SMALL_PARAMETERS = 4_000_000


class UnsuitableError(Exception):
    """This runtime cannot compute this encoder here; the message says why."""


class Runtime(Protocol):
    """Computes hidden layers.

    Attributes:
        name: as ``--runtime`` and a feature's engine have it.
        note: why it does something else than its name says, or nothing.
    """

    name: str
    note: str

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Hidden layers of a batch of the model's own inputs.

        Args:
            values: float32 (B, samples), or (B, bands, frames) for Whisper, on the CPU.
            layers: their numbers, 0 being the first block's input.

        Returns:
            (B, layers, frames, width) on the runtime's device.

        Raises:
            UnsuitableError: it cannot be done.
        """
        ...

    def forget(self) -> None:
        """Give up memory that is held for batches of the sizes seen so far."""
        ...


class TorchRuntime:
    """A model of transformers as it is: in float32, or in a lower precision where that was asked for by name."""

    name = "torch"
    note = ""

    def __init__(self, model: Any, precision: Precision = "fp32") -> None:
        self.model = model if precision == "fp32" else lowered(model, precision)
        self.precision = precision
        self._blocks = int(model.config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """See `Runtime.hidden`."""
        last = self._blocks
        with self._autocast():
            output = self.model(
                values.to(self.device, torch.float32, non_blocking=True),
                output_hidden_states=tuple(layers) != (last,),
                return_dict=True,
            )
        # Where a final layer norm follows the last block, hidden_states may end before it.
        chosen = [output.last_hidden_state if n == last else output.hidden_states[n] for n in layers]
        return torch.stack(chosen, dim=1)

    def forget(self) -> None:
        """See `Runtime.forget`; nothing is held."""

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # The weights are lowered already; a cache of them would also outlive a captured graph.
        return torch.autocast(self.device.type, torch_dtype(self.precision), cache_enabled=False)


def make_runtime(name: str, model: Any, precision: Precision = "fp32", threads: int | None = None) -> Runtime:
    """A runtime by name for a model of transformers, which stays as it is.

    Args:
        name: ``torch``, ``onednn``, ``openvino`` or ``cuda-graph``.
        model: in float32, on the device where it is to run.
        precision: of the products.
        threads: that it may use; None for what its library takes.

    Raises:
        UnsuitableError: not for this model, precision or device, or not installed.
    """
    device = next(model.parameters()).device.type
    if name not in RUNTIMES[device]:
        raise UnsuitableError(f"{name} does not run on {device}")
    if precision == "fp16" and device == "cpu":
        raise UnsuitableError("fp16 needs a GPU")
    if name == "openvino":
        from mfhca_cache.extraction.openvino_runtime import OpenVINORuntime

        return OpenVINORuntime(model, precision, threads)
    if name == "onednn":
        from mfhca_cache.extraction.onednn import OneDNNRuntime

        return OneDNNRuntime(model, precision)
    if name == "cuda-graph":
        from mfhca_cache.extraction.cuda_graph import GraphRuntime

        return GraphRuntime(TorchRuntime(model, precision))
    return TorchRuntime(model, precision)


def available(device: str) -> tuple[str, ...]:
    """Runtimes of a device whose libraries are here, in order of preference."""
    return tuple(name for name in RUNTIMES[device] if is_installed(name))


def is_installed(name: str) -> bool:
    """Whether a runtime's library is here; it is not imported for that."""
    if name == "openvino":
        return util.find_spec("openvino") is not None
    return name != "onednn" or torch.backends.mkldnn.is_available()


def version(name: str) -> str:
    """Of the library behind a runtime."""
    return metadata.version("openvino") if name == "openvino" else str(torch.__version__)


def torch_dtype(precision: Precision) -> torch.dtype:
    """``bf16`` → torch.bfloat16."""
    found: torch.dtype = getattr(torch, PRECISIONS[precision])
    return found


def is_small(model: nn.Module) -> bool:
    """Whether a network is too small for a choice of runtime or batch to pay."""
    return sum(value.numel() for value in model.parameters()) < SMALL_PARAMETERS


def twin(model: Any) -> Any:
    """A model of the same weights in the same memory, whose modules can be exchanged without touching the first."""
    shared = {id(value): value for value in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, shared)
    for module in list(made.modules()):
        # A weight that is the product of a norm and a direction is computed anew in each forward pass.
        if parametrize.is_parametrized(module):
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                _set_plain(module, name, getattr(module, name).detach())
    return made


def _set_plain(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    """Put a computed weight where a parametrisation was; the other model's parts of it are not changed."""
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    del parametrizations[name]
    if not len(parametrizations):
        # The class that parametrize made for this one module has the weight as a property.
        module.__class__ = module.__class__.__bases__[0]
        del module.parametrizations
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def lowered(model: Any, precision: Precision) -> Any:
    """A twin whose products have weights of a lower precision; norms keep theirs."""
    made, dtype = twin(model), torch_dtype(precision)
    for module in made.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(value.to(dtype), requires_grad=False))
    return made


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ over everything, in float64 on the CPU."""
    wanted = expected.detach().double().cpu()
    error = (found.detach().double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-30)
    return float(error)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads of PyTorch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_runtime(name: str, device: str) -> None:
    """Check that a runtime named by a person or a feature.json can run here.

    Raises:
        EncoderError: unknown, for another device, or its library is missing; the message says what to do.
    """
    if name not in {*RUNTIMES["cpu"], *RUNTIMES["cuda"]}:
        raise EncoderError(f"runtime {name!r} is not known; expected one of auto, {', '.join(_names())}")
    if name not in RUNTIMES[device]:
        other = "cpu" if device == "cuda" else "cuda"
        raise EncoderError(f"runtime {name} runs on {other} alone; use --device {other}")
    if not is_installed(name):
        how = "pip install 'mfhca-cache[openvino]'" if name == "openvino" else "a build of torch with oneDNN"
        raise EncoderError(f"runtime {name} is not installed; it comes with {how}")


def _names() -> list[str]:
    return sorted({*RUNTIMES["cpu"], *RUNTIMES["cuda"]})
