"""oneDNN for an encoder's products: weights packed once, biases and exact GELUs fused.

PyTorch's own fp32 linear layers go to MKL, which copies the bias first and leaves the GELU to a second pass. The same
sums in another order: about 1e-6 from plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mfhca_cache.extraction.runtimes import TorchRuntime, UnsuitableError, torch_dtype, twin
from mfhca_cache.spec import Precision

#: Rows that a weight is packed for; oneDNN takes any number of them with it, but packs by it.
_PACKED_ROWS = 1192
#: Narrower layers do not repay another layout.
_NARROW = 64


class PackedLinear(nn.Linear):
    """A linear layer with its weight as oneDNN wants it, and perhaps the GELU that follows.

    ``weight`` and ``bias`` stay readable: some models take them from the layer and multiply themselves.
    """

    def __init__(self, of: nn.Linear, dtype: torch.dtype, gelu: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = of.in_features, of.out_features
        self.weight, self.bias = of.weight, of.bias
        self._dtype, self._post = dtype, "gelu" if gelu else "none"
        self._packed = torch.ops.mkldnn._reorder_linear_weight(of.weight.detach().to(dtype), _PACKED_ROWS)
        self._packed_bias = None if of.bias is None else of.bias.detach().to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        rows = input.to(self._dtype).reshape(-1, self.in_features)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self._packed_bias, self._post, [], "none" if self._post == "gelu" else ""
        )
        return found.view(*input.shape[:-1], self.out_features)


class PackedConv1d(nn.Conv1d):
    """A convolution over time whose weight oneDNN has packed, with channels last, and perhaps the GELU that follows.

    Grouped ones, such as the positional convolution, gain the most: MKL-sized tiles do not fit 48 channels.
    """

    def __init__(self, of: nn.Conv1d, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(of, name))
        self.weight, self.bias = of.weight, of.bias
        self._dtype = dtype
        self._edges = [[0, int(of.padding[0])], [1, int(of.stride[0])], [1, int(of.dilation[0])]]
        size = [4, of.in_channels, 1, 149]
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            of.weight.detach().unsqueeze(2).to(dtype), *self._edges, of.groups, size
        )
        self._packed_bias = None if of.bias is None else of.bias.detach().to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, in, T) → (B, out, T′)."""
        image = input.to(self._dtype).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        found: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            image, self._packed, self._packed_bias, *self._edges, self.groups, "none", [], ""
        )
        return found.squeeze(2)


class OneDNNRuntime(TorchRuntime):
    """The model with packed linear layers, and the positional convolution packed; the rest is PyTorch's."""

    name = "onednn"

    def __init__(self, model: Any, precision: Precision = "fp32") -> None:
        if not torch.backends.mkldnn.is_available():
            raise UnsuitableError("this build of torch has no oneDNN")
        super().__init__(model, precision)
        if precision == "fp32":
            self.model = twin(model)
        try:
            packed = _pack(self.model, torch_dtype(precision))
        # Private operators: another version of torch may have them otherwise.
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            raise UnsuitableError(f"oneDNN's operators are not as expected ({error})") from error
        if not packed:
            raise UnsuitableError("no layer of this encoder is one that oneDNN makes faster")

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """See `mfhca_cache.extraction.runtimes.Runtime.hidden`."""
        try:
            return super().hidden(values, layers)
        except NotImplementedError as error:
            raise UnsuitableError(f"oneDNN's operators are not as expected ({error})") from error


def _pack(model: nn.Module, dtype: torch.dtype) -> int:
    """Exchange what oneDNN computes faster, in place; how many layers that were."""
    packed = 0
    for module in list(model.modules()):
        fuses = _fuses_gelu(module)
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and min(child.in_features, child.out_features) >= _NARROW:
                gelu = fuses and name == "intermediate_dense"
                setattr(module, name, PackedLinear(child, dtype, gelu))
                packed += 1
                if gelu:
                    module.intermediate_act_fn = nn.Identity()
            elif type(child) is nn.Conv1d and child.groups > 1 and child.padding_mode == "zeros":
                setattr(module, name, PackedConv1d(child, dtype))
                packed += 1
    return packed


def _fuses_gelu(module: nn.Module) -> bool:
    """Whether a module is a feed-forward block whose first layer is followed by the exact GELU."""
    act = getattr(module, "intermediate_act_fn", None)
    if type(getattr(module, "intermediate_dense", None)) is not nn.Linear or not isinstance(act, nn.Module):
        return False
    # Of several spellings of GELU only the exact one is fused: ask it for values instead of for its name.
    x = torch.linspace(-4, 4, 33)
    return bool(torch.equal(act(x), F.gelu(x)))
