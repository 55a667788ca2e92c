"""Linear layers whose weights lie in memory as the CPU's matrix product reads them.

A product with few rows spends much of its time on arranging the weights, anew at every call: a third of it at 5 rows,
a fifth at 200. oneDNN takes weights that were arranged once, and gives the same numbers up to their rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


class PackedLinear:
    """activation(x·Wᵀ + b) in float32 on a CPU, without gradients.

    Args:
        weight: W [out, in], copied.
        bias: b [out].
        activation: by oneDNN's name, applied to each result while it is in the cache: none, or swish (x·sigmoid(x)).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none"):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "")


def can_pack() -> bool:
    """Whether this torch and processor do it: tried, since the operations are those of torch's own compiler."""
    x, weight, bias = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5), torch.ones(5)
    try:
        packed = PackedLinear(weight, bias, "swish")(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(packed, F.silu(x + 1), atol=1e-5)


def pack_for_rows(module: nn.Module) -> None:
    """Let the linear layers of a network multiply by packed weights where they are given several rows; in place.

    One row alone is as fast without. Parameters and their names stay; the packed copies take as much memory again.

    Args:
        module: in float32, on a CPU, not to be trained any more.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.forward = _by_rows(layer.forward, PackedLinear(layer.weight, layer.bias))
        elif type(layer) is Conv1D:  # GPT-2's; stores [in, out]
            layer.forward = _by_rows(layer.forward, PackedLinear(layer.weight.T, layer.bias))


def _by_rows(one: Callable[[Tensor], Tensor], several: PackedLinear) -> Callable[[Tensor], Tensor]:
    return lambda x: one(x) if x.numel() == x.shape[-1] else several(x)
