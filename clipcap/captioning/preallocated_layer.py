"""One layer's keys and values in memory of their final size: a step writes the new token's and moves few.

transformers' own layers grow by concatenation and are reordered whole: with 32 images of 5 beams a third of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from clipcap.models.gpt2 import GPT2Layer

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers.cache_utils import DynamicLayer


class PreallocatedLayer:
    """One layer's keys and values [R, heads, L, width], R rows of hypotheses, as views of tensors with more room.

    Args:
        layer: filled with the prefix, a row per image.
        repeats: K, rows that each image becomes.
        room: tokens that will follow.
    """

    def __init__(self, layer: GPT2Layer | DynamicLayer, repeats: int, room: int):
        super().__init__()
        assert layer.keys is not None and layer.values is not None, "the prefix fills every layer"
        self.device, self.dtype, self.is_initialized = layer.keys.device, layer.keys.dtype, True
        self.prefix = self.length = layer.keys.shape[2]  # tokens of the prefix, and of all so far
        self._buffers = [_with_room(tensor, repeats, room) for tensor in (layer.keys, layer.values)]
        self._show(self.prefix)

    def _show(self, length: int) -> None:
        self.length = length
        self.keys, self.values = self._written(0)

    def _written(self, start: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values from token `start` on."""
        keys, values = (buffer[:, :, start : self.length] for buffer in self._buffers)
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        """Add the states [R, heads, new, width] of new tokens; returns those of all."""
        start = self.length
        self._show(start + key_states.shape[2])
        for written, states in zip(self._written(start), (key_states, value_states)):
            written.copy_(states)
        return self.keys, self.values

    def reorder(self, rows: Tensor) -> None:
        """Give each row the tokens of another row of its image; the prefix, the same in both, stays."""
        for written in self._written(self.prefix):
            written.copy_(written.index_select(0, rows))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(self.length)


def _with_room(states: Tensor, repeats: int, room: int) -> Tensor:
    """[N, heads, P, width] → [N·K, heads, P + room, width]."""
    images, heads, length, width = states.shape
    buffer = states.new_empty(images, repeats, heads, length + room, width)
    buffer[:, :, :, :length] = states[:, None]
    return buffer.flatten(0, 1)
