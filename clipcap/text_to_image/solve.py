"""Linear regression of class embeddings on hidden states: exactly, from the normal equations, or by Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from clipcap.errors import ClipcapError
from clipcap.runtime.messages import logger

Rows = tuple[Tensor, Tensor]  # hidden states [N, H], targets [N, Z]


def least_squares(blocks: Iterable[Rows]) -> tuple[Tensor, Tensor]:
    """The weight [Z, H] and bias [Z] of least mean square, from one pass in float64.

    Raises:
        ClipcapError: there are no rows.
    """
    gram = moments = None
    count = 0
    for hidden, target in blocks:
        inputs = nn.functional.pad(hidden.double(), (0, 1), value=1.0)  # [N, H + 1]
        square, product = inputs.T @ inputs, inputs.T @ target.double()
        gram = square if gram is None else gram + square
        moments = product if moments is None else moments + product
        count += len(hidden)
    if gram is None or not count:
        raise ClipcapError("there are no rows to fit")
    # rcond: hidden states of few captions do not span their space
    solution = torch.linalg.lstsq(gram, moments, rcond=1e-12, driver="gelsd").solution  # [H + 1, Z]
    return solution[:-1].T.float().contiguous(), solution[-1].float().contiguous()


def adam(
    start: Rows, epochs: Callable[[], Iterator[Rows]], passes: int, rate: float
) -> tuple[Tensor, Tensor, list[float]]:
    """Steps of Adam on the mean of squares, as the original trains.

    Args:
        start: weight [Z, H] and bias [Z] to begin with.
        epochs: yields the batches of one pass.
        passes: over the data.
        rate: of Adam.
    Returns:
        weight, bias, and the loss before each step.
    """
    weight, bias = (nn.Parameter(tensor.clone()) for tensor in start)
    optimizer = torch.optim.Adam([weight, bias], lr=rate)
    losses: list[float] = []
    for number in range(passes):
        first = len(losses)
        for hidden, target in epochs():
            loss = (nn.functional.linear(hidden, weight, bias) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        logger.info(f"epoch {number + 1}: loss {sum(losses[first:]) / max(1, len(losses) - first):.4f}")
    return weight.detach(), bias.detach(), losses


def mean_square(weight: Tensor, bias: Tensor, blocks: Iterable[Rows]) -> float:
    """The mean of squares over all rows and columns."""
    total, count = 0.0, 0
    for hidden, target in blocks:
        total += (nn.functional.linear(hidden, weight, bias) - target).double().square().sum().item()
        count += target.numel()
    return total / max(1, count)
