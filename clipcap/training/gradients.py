"""The loss of a micro-batch and its gradients; on a GPU by one CUDA graph for each shape of batches.

Forward and backward pass of GPT-2 are two thousand small operations. For the usual batches a GPU finishes each sooner
than Python launches the next; a graph launches all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipcap.models.given import Given
from clipcap.models.kernels.switch import fast
from clipcap.runtime.messages import logger
from clipcap.runtime.text import one_line
from clipcap.training.task import MicroBatch, RoundedBatch

MOST_GRAPHS = 32  # shapes; batches of others are computed without


class Gradients:
    """Adds the gradients of micro-batches to those of the parameters.

    Args:
        model: as accelerate has prepared it; its forward gives a summed loss.
        accelerator: of the run.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.model, self.accelerator = model, accelerator

    def add(self, batch: MicroBatch, factor: float, last: bool) -> Tensor:
        """Add those of one batch.

        Args:
            factor: what its loss is multiplied by.
            last: of the step; processes exchange their gradients then.
        Returns:
            the loss, without the factor.
        """
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            loss = self.model(**batch.inputs(self.accelerator.device))
            self.accelerator.backward(loss * factor)
        return loss.detach()

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget all gradients, after a step."""
        optimizer.zero_grad()


class GraphedGradients(Gradients):
    """The same by CUDA graphs, in a run of one process."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        super().__init__(model, accelerator)
        self.seen: Counter[tuple] = Counter()
        self.graphs: dict[tuple, _Graph] = {}
        self.works = True

    def add(self, batch: MicroBatch, factor: float, last: bool) -> Tensor:
        """As above. The first batch of a shape is computed without a graph, the second one captures it."""
        if not self.works or not isinstance(batch, RoundedBatch):
            return super().add(batch, factor, last)
        inputs = batch.rounded().inputs(torch.device("cpu"))
        shape = tuple((name, t.shape, t.dtype) for name, t in _tensors(inputs))
        self.seen[shape] += 1
        graph = self.graphs.get(shape)
        if graph is None and self.seen[shape] > 1 and len(self.graphs) < MOST_GRAPHS:
            graph = self._capture(inputs, shape)
        if graph is None:
            loss = self._loss(_on(inputs, self.accelerator.device), torch.tensor(factor))
            return loss.detach()
        return graph(inputs, factor)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are zeroed in their place, where the graphs add to them."""
        optimizer.zero_grad(set_to_none=False)

    def _loss(self, inputs: dict[str, Any], factor: Tensor) -> Tensor:
        loss = self.model(**inputs, everywhere=True)
        self.accelerator.backward(loss * factor)
        return loss.detach()

    def _capture(self, inputs: dict[str, Any], shape: tuple) -> _Graph | None:
        pool = next((graph.graph.pool() for graph in self.graphs.values()), None)
        try:
            graph = _Graph(self._loss, _on(inputs, self.accelerator.device), pool)
        except RuntimeError as error:  # no memory, or an operation that cannot be captured
            self.works = False
            logger.info(f"steps are computed without CUDA graphs: {one_line(error)[:200]}")
            self.graphs.clear()
            torch.cuda.empty_cache()
            return None
        self.graphs[shape] = graph
        return graph


class _Graph:
    """Loss and gradients of batches of one shape.

    Args:
        compute: (inputs, factor) → loss; adds to the gradients, which exist already.
        inputs: on the GPU; overwritten by those of each batch.
        pool: memory that is shared with other graphs; None for the first.
    """

    def __init__(self, compute: Any, inputs: dict[str, Any], pool: Any):
        self.inputs = inputs
        self.factor = torch.zeros((), device=next(_tensors(inputs))[1].device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.loss = compute(inputs, self.factor)

    def __call__(self, inputs: dict[str, Any], factor: float) -> Tensor:
        """The loss of these inputs, which are on the CPU."""
        for (_, mine), (_, given) in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            mine.copy_(given, non_blocking=True)
        self.factor.fill_(factor)
        self.graph.replay()
        return self.loss.clone()


def make_gradients(model: nn.Module, accelerator: Accelerator) -> Gradients:
    """How a run computes gradients: on a GPU of its own by graphs."""
    alone = accelerator.num_processes == 1 and accelerator.scaler is None
    if alone and accelerator.device.type == "cuda" and fast():
        return GraphedGradients(model, accelerator)
    return Gradients(model, accelerator)


def _tensors(inputs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a forward's inputs, by name."""
    for name, value in inputs.items():
        if isinstance(value, Given):
            yield from ((f"{name}.{part}", tensor) for part, tensor in value.tensors())
        else:
            yield name, value


def _on(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) for name, value in inputs.items()}
