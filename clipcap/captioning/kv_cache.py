"""The keys and values of a decoding run: preallocated where all of the cache's layers are of the plain kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipcap.captioning.preallocated_layer import PreallocatedLayer
from clipcap.models.gpt2 import GPT2Cache, GPT2Layer
from clipcap.models.kernels.switch import fast

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers.cache_utils import Cache


def expand(cache: GPT2Cache | Cache, images: int, repeats: int, room: int) -> None:
    """K rows for each of the rows of a cache that holds the prefixes of images, in place, with room for tokens."""
    if isinstance(cache, GPT2Cache):
        cache.layers[:] = [PreallocatedLayer(layer, repeats, room) for layer in cache.layers]
        return
    from clipcap.captioning.kv_cache_transformers import preallocated

    layers = preallocated(cache, repeats, room) if fast() else None
    if layers is not None:
        cache.layers[:] = layers
    else:  # sliding windows, recurrent states, or faster paths are off
        select(cache, torch.arange(images).repeat_interleave(repeats))


def reorder(cache: GPT2Cache | Cache, rows: Tensor) -> None:
    """Each row continues another row of its image."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.reorder(rows)
        else:
            _select(layer, rows)


def select(cache: GPT2Cache | Cache, rows: Tensor) -> None:
    """Keep these rows alone, each as often as it is named."""
    for layer in cache.layers:
        _select(layer, rows)


def _select(layer: Any, rows: Tensor) -> None:
    # Of transformers' layers all know `reorder_cache`; recurrent states have nothing else, and what hybrid layers
    # inherit from plain ones leaves theirs out.
    known = isinstance(layer, (PreallocatedLayer, GPT2Layer))
    (layer.batch_select_indices if known else layer.reorder_cache)(rows)
