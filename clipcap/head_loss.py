"""Cross-entropy of the language model's head, without ever holding the logits of all positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

POSITIONS = 256  # at a time: enough rows for a large matrix product, 51 MB of logits for GPT-2


def head_loss(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """The cross-entropy of `head(hidden)`, summed over n positions.

    Logits and their gradient live for `POSITIONS` positions only; the backward pass computes nothing anew.

    Args:
        hidden: [n, H].
        head: H → V.
        labels: int64 [n].
    Returns:
        a scalar, in float32 or whatever is finer.
    """
    return _HeadLoss.apply(hidden, head.weight, head.bias, labels, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    """The gradients are known as soon as the loss is: computed beside it, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, with_gradients: bool
    ) -> Tensor:
        inputs = (hidden, weight, bias)
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        of_hidden, of_weight, of_bias = (torch.zeros_like(x) if w else None for x, w in zip(inputs, wanted))
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, len(hidden), POSITIONS):
            part = slice(start, start + POSITIONS)
            scores = F.linear(hidden[part], weight, bias)  # [c, H] -> [c, V], in autocast's type
            log_probabilities = scores.to(total.dtype).log_softmax(dim=1)
            of_labels = log_probabilities.gather(1, labels[part, None])  # [c, 1]
            total -= of_labels.sum()
            if not any(wanted):
                continue
            # The gradient of the logits, in their place: probabilities, less 1 at the label.
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, labels[part, None], torch.full_like(of_labels, -1))
            gradient = gradient.to(scores.dtype)  # [c, V]
            if of_hidden is not None:
                of_hidden[part] = gradient @ weight.to(gradient)  # [c, V] -> [c, H]
            if of_weight is not None:
                of_weight += gradient.T @ hidden[part].to(gradient)  # [V, H]
            if of_bias is not None:
                of_bias += gradient.sum(dim=0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * scale.to(g) for g in ctx.saved_tensors), None, None
