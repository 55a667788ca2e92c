"""The frozen matrices of a network in bfloat16, for mixed precision: autocast converts them anew at each use."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from clipcap.models.kernels.switch import fast


def hold_frozen_in_bfloat16(network: nn.Module) -> None:
    """Let linear layers that are not trained use a copy in bfloat16 wherever autocast would make one; in place.

    Parameters and their names stay in float32, so that a checkpoint holds what it held.
    """
    for layer in network.modules():
        if type(layer) is nn.Linear or type(layer) is Conv1D:
            if layer.weight.requires_grad or not isinstance(layer.forward, MethodType):
                continue  # trained, or faster in another way
            setattr(layer, "forward", _Frozen(layer))  # noqa: B010 - declared as a method, not as an attribute


class _Frozen:
    """The forward of a linear layer whose weights do not change, but when a checkpoint is read into them."""

    def __init__(self, layer: nn.Linear | Conv1D):
        self.plain, self.weight, self.bias = layer.forward, layer.weight, layer.bias
        self.transposed = type(layer) is Conv1D  # GPT-2's; stores [in, out]
        self._copy: tuple[Tensor, Tensor | None] | None = None
        self._version = -1

    def __call__(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not (torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16 and fast()):
            return self.plain(x)
        if self._copy is None or self._version != self.weight._version:
            weight = self.weight.detach().to(torch.bfloat16)
            bias = None if self.bias is None else self.bias.detach().to(torch.bfloat16)
            self._copy = (weight.T.contiguous() if self.transposed else weight), bias
            self._version = self.weight._version
        return F.linear(x.to(torch.bfloat16), *self._copy)
