"""The keys and values of a decoding run: preallocated where all of the cache's layers are of the plain kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor

from clipcap.captioning.preallocated_layer import PreallocatedLayer
from clipcap.models.gpt2 import GPT2Cache
from clipcap.models.kernels.switch import fast

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers.cache_utils import Cache, DynamicLayer


def expand(cache: GPT2Cache | Cache, repeats: int, room: int) -> None:
    """K rows for each row of a cache that holds the prefix, in place, with room for so many tokens."""
    if isinstance(cache, GPT2Cache):
        cache.layers[:] = [PreallocatedLayer(layer, repeats, room) for layer in cache.layers]
        return
    from clipcap.captioning.kv_cache_transformers import preallocated

    layers = preallocated(cache, repeats, room) if fast() else None
    if layers is not None:
        cache.layers[:] = layers
    else:  # sliding windows, recurrent states, or faster paths are off
        cache.batch_repeat_interleave(repeats)


def reorder(cache: GPT2Cache | Cache, rows: Tensor) -> None:
    """Each row continues another row of its image."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.reorder(rows)
        else:
            cast("DynamicLayer", layer).batch_select_indices(rows)  # so all do that a language model decodes with
