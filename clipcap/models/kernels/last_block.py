"""The last block of GPT-2, computed only at the positions read: no later layer mixes positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.models.kernels.gpt2_layers import is_feed_forward
from clipcap.models.kernels.switch import fast

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


@contextmanager
def read_from(lm: PreTrainedModel, first: int) -> Iterator[None]:
    """Within, outputs of a language model are right from position `first` on, and not to be used before.

    The last block's feed-forward net, two thirds of its arithmetic, leaves those positions out. A model stays as it
    is where it is not a GPT-2, is being compiled, recomputes its layers in the backward pass, or is in training mode
    (its dropout would draw other numbers).

    Args:
        lm: called within on sequences longer than `first`.
        first: of the positions read.
    """
    layers = getattr(lm.base_model, "h", None)
    block: Any = layers[-1] if isinstance(layers, nn.ModuleList) else None
    if block is None or not is_feed_forward(getattr(block, "mlp", None)) or "forward" in vars(block):
        yield
        return
    if not fast() or not first or lm.training or torch.compiler.is_compiling():
        yield
        return
    thread = get_ident()  # others may be calling the same model

    def leave_out(net: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return (inputs[0][:, first:].contiguous(),) if get_ident() == thread else None

    def put_back(net: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        """[B, L - first, E] → [B, L, E], zero before `first`."""
        return F.pad(output, (0, 0, first, 0)) if get_ident() == thread else None

    hooks = [block.mlp.register_forward_pre_hook(leave_out), block.mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
