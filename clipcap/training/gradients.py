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
from clipcap.models.kernels.cuda_graph import free_bytes, record, watched
from clipcap.models.kernels.switch import fast
from clipcap.runtime.messages import logger
from clipcap.runtime.text import one_line
from clipcap.training.task import MicroBatch, RoundedBatch

MOST_GRAPHS = 32  # shapes; batches of others are computed without
# Times what a batch keeps for its backward pass: the graphs hold it for good, and other shapes need it too.
ROOM = 2.2


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
            return self._loss(batch.inputs(self.accelerator.device), factor)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget all gradients, after a step."""
        optimizer.zero_grad()

    def _loss(self, inputs: dict[str, Any], factor: float | Tensor, **how: bool) -> Tensor:
        loss = self.model(**inputs, **how)
        self.accelerator.backward(loss * factor)
        return loss.detach()


class GraphedGradients(Gradients):
    """The same by CUDA graphs, in a run of one process."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        super().__init__(model, accelerator)
        self.seen: Counter[tuple] = Counter()
        self.graphs: dict[tuple, _Graph] = {}
        self.works = True
        self.parameters: list[nn.Parameter] = []  # that have gradients
        self.stream: torch.cuda.Stream | None = None  # on which all are recorded

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
        if graph is not None:
            return graph(inputs, factor)
        device, waits = self.accelerator.device, False
        placed, scale = _on(inputs, device), torch.tensor(factor, device=device)
        if device.type == "cuda" and self.seen[shape] == 1:
            loss, waits = watched(lambda: self._everywhere(placed, scale))
        else:
            loss = self._everywhere(placed, scale)
        if waits:
            self._give_up("an operation of this model waits for the GPU")
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        return loss

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Where there are graphs, gradients are zeroed in their place: the graphs add to them there."""
        optimizer.zero_grad(set_to_none=not self.graphs)

    def _give_up(self, why: str) -> None:
        logger.info(f"steps are computed without CUDA graphs: {why}")
        self.works = False
        self.graphs.clear()

    def _everywhere(self, inputs: dict[str, Any], factor: Tensor) -> Tensor:
        return self._loss(inputs, factor, everywhere=True)

    def _capture(self, inputs: dict[str, Any], shape: tuple) -> _Graph | None:
        device, failed = self.accelerator.device, ""
        if device.type != "cuda":
            self._give_up("only a CUDA GPU has them")
            return None
        for parameter in self.parameters:  # a graph adds to what is there when it is recorded
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        try:
            kept = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
            if free_bytes(device) < ROOM * kept:
                self._give_up("the GPU has not enough memory for them beside the batches")
                return None
            self.stream = self.stream or torch.cuda.Stream(device)
            pool = next((graph.graph.pool() for graph in self.graphs.values()), None)
            self.graphs[shape] = _Graph(self._everywhere, _on(inputs, device), self.stream, pool)
        except RuntimeError as error:  # no memory, or an operation that cannot be recorded
            failed = one_line(error)[:200]
        if failed:  # outside of the handler: the exception holds the memory of the recording
            self._give_up(failed)
            torch.cuda.empty_cache()
        return self.graphs.get(shape)


class _Graph:
    """Loss and gradients of batches of one shape.

    Args:
        compute: (inputs, factor) → loss; adds to the gradients, which exist already.
        inputs: on the GPU; overwritten by those of each batch.
        stream: of all graphs.
        pool: memory that is shared with other graphs; None for the first.
    """

    def __init__(self, compute: Any, inputs: dict[str, Any], stream: torch.cuda.Stream, pool: Any):
        self.inputs = inputs
        device = next(_tensors(inputs))[1].device
        self.factor = torch.zeros((), device=device)
        self.loss = torch.empty(0)

        def work() -> None:
            self.loss = compute(inputs, self.factor)

        self.graph = record(work, device, stream, pool)

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
