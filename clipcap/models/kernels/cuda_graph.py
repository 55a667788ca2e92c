"""Work that a GPU does again and again, recorded as a CUDA graph: one launch in place of hundreds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_WAITS = "called a synchronizing CUDA operation"  # torch's warning


def record(
    work: Callable[[], object], device: torch.device, stream: torch.cuda.Stream, pool: Any = None
) -> torch.cuda.CUDAGraph:
    """What `work` launches on a GPU, which is not done meanwhile.

    Args:
        work: done before, so that libraries have set up what they need; its tensors stay in their places.
        device: of all its tensors.
        stream: on that device.
        pool: memory shared with other graphs of the same stream, none of which is replayed meanwhile.
    Raises:
        RuntimeError: an operation cannot be recorded, or memory is short.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            torch.cuda.set_stream(current)  # which a recording that fails at its end leaves on its own
            raise
    return graph


def watched(work: Callable[[], T]) -> tuple[T, bool]:
    """Do it; and whether the CPU had to wait for the GPU meanwhile, which no graph can hold.

    Such a recording fails, and leaves torch's generators unusable in some versions: better not begun.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = work()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return result, any(_WAITS in str(warning.message) for warning in found)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that new tensors can have."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
