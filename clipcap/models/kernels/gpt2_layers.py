"""The layers of GPT-2, as our own classes and as those of transformers, which this module does not import."""

from __future__ import annotations

import sys
from typing import TypeGuard

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """x·W + b, as transformers' class of this name.

    Args:
        nf, nx: width out and in.
    """

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        product = torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight)
        return product.view(*x.shape[:-1], self.nf)


class FeedForward(nn.Module):
    """GPT-2's feed-forward net, without dropout.

    Args:
        width: E.
        inner: between its two layers.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(inner, width), Conv1D(width, inner)
        self.act = nn.GELU(approximate="tanh")
        self.dropout = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[…, E] → […, E]."""
        return self.c_proj(self.act(self.c_fc(x)))


def is_conv1d(layer: nn.Module) -> TypeGuard[Conv1D]:
    """Whether a layer is a linear one that stores its matrix as [in, out]."""
    return type(layer) is Conv1D or type(layer) is _of_transformers("pytorch_utils", "Conv1D")


def is_feed_forward(net: nn.Module | None) -> TypeGuard[FeedForward]:
    """Whether a network is the feed-forward net of a GPT-2."""
    return type(net) is FeedForward or type(net) is _of_transformers("models.gpt2.modeling_gpt2", "GPT2MLP")


def is_new_gelu(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's activation as transformers writes it."""
    return type(layer) is _of_transformers("activations", "NewGELUActivation")


def _of_transformers(module: str, name: str) -> type | None:
    """A class of transformers; None where its module is not imported, and so nothing can be of that class."""
    return getattr(sys.modules.get(f"transformers.{module}"), name, None)
