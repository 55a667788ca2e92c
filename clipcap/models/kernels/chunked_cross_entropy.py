"""Cross-entropy of the language model's head, without ever holding the logits of all positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clipcap.models.kernels.switch import fast

# torch 2.14's `linear_cross_entropy` with its chunked path holds less memory, but takes 1.9 to 2.6 times as long on
# one CPU thread (768 → 50257, float32, gradient of the hidden states: 3.8 s against 2.1 s for 800 positions, 3.3 s
# against 1.3 s for 500; peaks of 8 MB and 58 MB above the inputs at 800), and would need torch 2.13.
POSITIONS = 320  # at a time: enough for a large matrix product, 64 MB of logits for GPT-2


def chunked_cross_entropy(hidden: Tensor, head: nn.Linear, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The cross-entropy of `head(hidden)`, summed over n positions.

    Logits and their gradient live for `POSITIONS` positions only; the backward pass computes nothing anew.

    Args:
        hidden: [n, H].
        head: H → V.
        labels: int64 [n].
        weights: float32 [n], what each position's cross-entropy is multiplied by (default: 1).
    Returns:
        a scalar, in float32 or whatever is finer.
    """
    if not fast():
        return weighted_cross_entropy(head(hidden), labels, weights)
    return _HeadLoss.apply(hidden, head.weight, head.bias, labels, weights, torch.is_grad_enabled())


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The cross-entropy of logits [n, V], summed; `labels` and `weights` as for `chunked_cross_entropy`."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    return (weights * F.cross_entropy(logits.float(), labels, reduction="none")).sum()


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The head's matrix [V, H] in `dtype`; with fewer digits than float32, less the mean of its rows.

    Loss and gradients are the same for both, since the mean adds the same to all logits of a position. But GPT-2's
    lie around -100, where numbers of eight bits are half a unit apart; without the mean they lie around 0.
    """
    if dtype.itemsize >= torch.float32.itemsize:
        return weight.to(dtype)
    return (weight - weight.mean(dim=0)).to(dtype)


class _HeadLoss(torch.autograd.Function):
    """The gradients are known as soon as the loss is: computed beside it, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        with_gradients: bool,
    ) -> Tensor:
        inputs = (hidden, weight, bias)
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(x) if w and x is not None else None for x, w in zip(inputs, wanted)
        )
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        if not len(hidden):
            return total
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        states, matrix = hidden.to(dtype), _matrix(weight, dtype)
        count = -(-len(hidden) // POSITIONS)
        room = states.new_empty(len(matrix) * -(-len(hidden) // count))  # new memory costs as much as the softmax
        for part in torch.arange(len(hidden), device=hidden.device).chunk(count):
            # A position is a column: product and softmax are faster on a CPU than with positions as rows.
            scores = torch.mm(matrix, states[part].T, out=room[: len(matrix) * len(part)].view(len(matrix), -1))
            if bias is not None:
                scores += bias[:, None]
            scores = scores.to(total.dtype)  # [V, c]
            scores -= scores.amax(dim=0)
            label = labels[None, part]
            of_label = scores.gather(0, label)  # [1, c]
            probabilities = scores.exp_()
            normaliser = probabilities.sum(dim=0)  # [c]
            if weights is None:
                total += normaliser.log().sum() - of_label.sum()
            else:
                total += (weights[part] * (normaliser.log() - of_label[0])).sum()
            if not any(wanted):
                continue
            # The gradient of the logits, in their place: probabilities, less 1 at the label.
            gradient = probabilities.div_(normaliser).scatter_add_(0, label, torch.full_like(of_label, -1))
            if weights is not None:
                gradient *= weights[part]
            gradient = gradient.to(dtype)  # [V, c]
            if of_hidden is not None:
                of_hidden[part] = (gradient.T @ matrix).to(of_hidden)  # [c, V] · [V, H]
            if of_weight is not None:
                if of_weight.dtype == dtype:  # at once: a sum of its own is of the size of the matrix
                    of_weight.addmm_(gradient, states[part])  # [V, c] · [c, H]
                else:
                    of_weight += gradient @ states[part]
            if of_bias is not None:
                of_bias += gradient.sum(dim=1)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        [scale] = grad_outputs
        return *(None if g is None else g * scale.to(g) for g in ctx.saved_tensors), None, None, None
