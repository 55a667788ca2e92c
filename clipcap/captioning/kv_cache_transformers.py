"""Preallocated keys and values in the cache of a language model of transformers."""

from __future__ import annotations

from transformers.cache_utils import Cache, DynamicLayer

from clipcap.captioning.preallocated_layer import PreallocatedLayer


class PreallocatedDynamicLayer(PreallocatedLayer, DynamicLayer):
    """A preallocated layer that transformers knows as one of its own."""


def preallocated(cache: Cache, repeats: int, room: int) -> list[PreallocatedDynamicLayer] | None:
    """K rows for each row of a cache, with room for so many tokens; None where a layer is of a special kind."""
    plain = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    if len(plain) < len(cache.layers):
        return None
    return [PreallocatedDynamicLayer(layer, repeats, room) for layer in plain]
