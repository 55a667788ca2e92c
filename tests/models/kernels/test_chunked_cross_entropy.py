"""The head's cross-entropy in parts equals the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clipcap.models.kernels.chunked_cross_entropy import POSITIONS, chunked_cross_entropy


class LargestResult(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is computed."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def problem(n, bias=True, dtype=torch.float64, vocabulary=37):
    torch.manual_seed(0)
    head = nn.Linear(6, vocabulary, bias=bias, dtype=dtype)
    hidden = torch.randn(n, 6, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(vocabulary, (n,))


def whole(hidden, head, labels):
    return F.cross_entropy(head(hidden), labels, reduction="sum")


@pytest.mark.parametrize("n", [1, POSITIONS, 2 * POSITIONS + 5])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_equal_those_of_all_logits(n, bias):
    hidden, head, labels = problem(n, bias)
    inputs = [hidden, *head.parameters()]
    losses = [compute(hidden, head, labels) for compute in (chunked_cross_entropy, whole)]
    ours, expected = (torch.autograd.grad(3 * loss, inputs) for loss in losses)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_frozen_head_gets_no_gradient():
    hidden, head, labels = problem(5)
    head.requires_grad_(False)
    chunked_cross_entropy(hidden, head, labels).backward()
    assert hidden.grad is not None and head.weight.grad is None and head.bias.grad is None


def test_no_position_is_a_loss_of_nothing():
    hidden, head, labels = problem(0)
    loss = chunked_cross_entropy(hidden, head, labels)
    loss.backward()
    assert loss == 0 and not head.weight.grad.any()


@pytest.mark.parametrize("graded", [True, False])
def test_logits_of_all_positions_never_exist(graded):
    hidden, head, labels = problem(4 * POSITIONS, vocabulary=999)
    with torch.set_grad_enabled(graded), LargestResult() as largest:
        loss = chunked_cross_entropy(hidden, head, labels)
        if graded:
            loss.backward()
    assert largest.elements == POSITIONS * 999
    with LargestResult() as largest:
        whole(hidden, head, labels)
    assert largest.elements == 4 * POSITIONS * 999


def test_mixed_precision_stays_near_and_sums_in_float32():
    hidden, head, labels = problem(300, dtype=torch.float32)
    exact = chunked_cross_entropy(hidden, head, labels)
    expected = torch.autograd.grad(exact, [hidden, head.weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, head, labels)
    assert loss.dtype == torch.float32 and loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)
    for ours, wanted in zip(torch.autograd.grad(loss, [hidden, head.weight]), expected):
        assert ours.dtype == torch.float32
        assert (ours - wanted).norm() < 0.02 * wanted.norm()
