"""Linear layers whose weights lie in memory as the CPU's matrix product reads them.

A product with few rows spends much of its time on arranging the weights, anew at every call: a third of it at 5 rows,
a fifth at 200. oneDNN takes weights that were arranged once, and gives the same numbers up to their rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from clipcap.models.kernels.switch import fast

MOST_BYTES = 1 << 30  # the copies of a larger network would take more than they are worth


class PackedLinear:
    """activation(x·Wᵀ + b) in float32 on a CPU, without gradients.

    Args:
        weight: W [out, in], copied.
        bias: b [out].
        activation: by oneDNN's name, applied to each result while it is in the cache: none, swish (x·sigmoid(x)), or
            gelu, as tanh gives it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none"):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        kind = "tanh" if self.activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], kind)


def can_pack() -> bool:
    """Whether this torch and processor do it: tried, since the operations are those of torch's own compiler."""
    if not fast():
        return False
    x, weight, bias = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5), torch.ones(5)
    try:
        swish, gelu = (PackedLinear(weight, bias, activation)(x) for activation in ("swish", "gelu"))
    except (AttributeError, RuntimeError):
        return False
    expected = F.silu(x + 1), F.gelu(x + 1, approximate="tanh")
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip((swish, gelu), expected))


def packable(module: nn.Module) -> bool:
    """Whether a network is small enough to be held twice, and its weights of a kind to be packed."""
    weights = list(module.parameters())
    small = sum(4 * w.numel() for w in weights) <= MOST_BYTES
    return small and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights) and can_pack()


def pack_for_rows(module: nn.Module) -> None:
    """Let the linear layers of a network multiply by packed weights in inference mode, where they are given several
    rows; in place. One row alone is as fast without.

    Parameters and their names stay, so that it can be stored and trained; the copies take as much memory again.

    Args:
        module: in float32, on a CPU.
    """
    for layer in module.modules():
        if isinstance(layer.forward, _ByRows | _FeedForward):
            continue
        if type(layer) is nn.Linear or type(layer) is Conv1D:
            setattr(layer, "forward", _ByRows(layer))  # noqa: B010 - as below
        elif type(layer) is GPT2MLP and type(layer.act) is nn.GELU and layer.act.approximate == "tanh":
            setattr(layer, "forward", _FeedForward(layer))  # noqa: B010 - declared as a method, not as an attribute


class _ByRows:
    """The forward of a linear layer, which packs its weights at their first use, and when they have changed."""

    def __init__(self, layer: nn.Linear | Conv1D, activation: str = "none"):
        self.plain, self.weight, self.bias = layer.forward, layer.weight, layer.bias
        self.transposed = type(layer) is Conv1D  # GPT-2's; stores [in, out]
        self.activation = activation
        self.packed: PackedLinear | None = None
        self.version = -1

    def __call__(self, x: Tensor) -> Tensor:
        if not _pays(x):
            return self.plain(x)
        version = 0 if self.weight.is_inference() else self.weight._version  # torch counts what is written into it
        if self.packed is None or self.version != version:
            weight = self.weight.T if self.transposed else self.weight
            self.packed = PackedLinear(weight, self.bias, self.activation)
            self.version = version
        return self.packed(x)


class _FeedForward:
    """The forward of GPT-2's feed-forward net, whose activation is part of the packed product before it."""

    def __init__(self, net: GPT2MLP):
        self.net = net
        self.plain: Any = net.forward  # annotated as of a tuple, by mistake
        self.widen = _ByRows(net.c_fc, "gelu")

    def __call__(self, x: Tensor) -> Tensor:
        if not _pays(x):
            return self.plain(x)
        return self.net.dropout(self.net.c_proj(self.widen(x)))


def _pays(x: Tensor) -> bool:
    """Whether a product of these rows [..., in] is one with packed weights."""
    several = x.numel() > x.shape[-1] and torch.is_inference_mode_enabled()
    return several and x.dtype == torch.float32 and x.device.type == "cpu" and fast()
