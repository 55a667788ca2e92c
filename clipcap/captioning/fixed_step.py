"""A decoding step whose tensors never change shape or place, so that a GPU replays it as one graph.

A step of GPT-2 is some three hundred small operations. A GPU finishes each sooner than Python launches the next; a
CUDA graph launches all at once.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from clipcap.models.base import PrefixLM
from clipcap.models.kernels.shared_prefix import can_share_prefix, position_ids
from clipcap.models.kernels.switch import fast

MOST_BYTES = 2 << 30  # of keys and values: with more rows the work takes longer than its launches
WARM_UPS = 2  # before a graph is captured: libraries set up what they need at their first calls


class FixedLayer(DynamicLayer):
    """One layer's keys and values [R, heads, L, width] at their final length L; new ones go to a given place.

    Args:
        keys, values: memory of their own.
        place: int64 [1], where the next token goes; read at each update.
    """

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor):
        super().__init__()
        self.keys, self.values, self.place = keys, values, place
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        """Write the states [R, heads, 1, width] of a new token; returns those of all L places."""
        assert self.keys is not None and self.values is not None, "set when it is made"
        # Under autocast a prefix and a token may come in different numbers.
        self.keys.index_copy_(2, self.place, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.place, value_states.to(self.values.dtype))
        return self.keys, self.values


class FixedStep:
    """The language model's next step for R rows of which each has P places of prefix and room for more tokens.

    Args:
        lm: in evaluation mode; its weights may change between steps, in their place.
        cache_name: of the argument that takes the cache.
        prefix: keys and values of N prefixes; for their shapes alone.
        repeats: K, rows of each prefix: R = N·K.
        room: tokens that will follow.
        reorders: rows will continue other rows (beam search).
        dtype: of what the language model is given.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        cache_name: str,
        prefix: Cache,
        repeats: int,
        room: int,
        reorders: bool,
        dtype: torch.dtype,
    ):
        keys = _states(prefix)[0][0]
        images, heads, self.prefix, width = keys.shape
        rows, length, device = images * repeats, self.prefix + room, keys.device
        self.lm, self.cache_name, self.repeats = lm, cache_name, repeats
        # Masked places count nothing, but a NaN in unwritten memory would.
        self.states = keys.new_zeros(len(prefix.layers), 2, rows, heads, length, width)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, length, dtype=dtype, device=device)  # added to the scores
        self.rows = torch.arange(rows, device=device) if reorders else None
        self.logits = torch.empty(0, device=device)
        self.cache = DynamicCache()
        self.cache.layers[:] = [FixedLayer(keys, values, self.place) for keys, values in self.states.unbind(0)]
        self.graph: torch.cuda.CUDAGraph | None = None

    def capture(self) -> None:
        """Record a step as a CUDA graph; states, mask and places are not to be used before the next `start`."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # Weights that autocast has converted before are not those of a later replay.
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.place.fill_(self.prefix)
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self.place.fill_(self.prefix)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run()
        self.graph = graph

    def start(self, prefix: Cache, mask: Tensor | None) -> None:
        """Begin with the prefixes of N images.

        Args:
            prefix: their keys and values.
            mask: bool [N, P], False for padding; None where there is none.
        """
        for mine, states in zip(self.states.flatten(0, 1), (s for pair in _states(prefix) for s in pair)):
            mine[:, :, : self.prefix] = states.repeat_interleave(self.repeats, dim=0)
        self.states[..., self.prefix :, :] = 0
        seen = self.mask.new_ones(len(self.mask), self.prefix, dtype=torch.bool)
        if mask is not None:
            seen = mask.repeat_interleave(self.repeats, dim=0)  # [N, P] -> [R, P]
        hidden = ~F.pad(seen, (0, self.mask.shape[-1] - self.prefix))  # [R, L]
        self.mask.zero_().masked_fill_(hidden[:, None, None], torch.finfo(self.mask.dtype).min)
        self.position.copy_(position_ids(seen)[:, -1:] + 1)
        self.place.fill_(self.prefix)
        if self.rows is not None:
            torch.arange(len(self.rows), out=self.rows)

    def reorder(self, rows: Tensor) -> None:
        """Let each row continue another row [R] of its image, from the next step on."""
        assert self.rows is not None, "made for rows that keep their places"
        self.rows.copy_(rows)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[R] next tokens → logits [R, V], float32, which the next step overwrites."""
        self.tokens.copy_(token_ids[:, None])
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.logits

    def _run(self) -> None:
        if self.rows is not None:
            written = self.states[..., self.prefix :, :]
            written.copy_(written.index_select(2, self.rows))
        self.mask.index_fill_(3, self.place, 0)
        more: dict[str, Any] = {self.cache_name: self.cache, "attention_mask": self.mask}
        out = self.lm(input_ids=self.tokens, position_ids=self.position, use_cache=True, **more)
        self.logits = out.logits[:, -1].float()
        self.place += 1
        self.position += 1


def _states(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    layers = [cast(DynamicLayer, layer) for layer in cache.layers]
    pairs = [(layer.keys, layer.values) for layer in layers]
    return [(keys, values) for keys, values in pairs if keys is not None and values is not None]


class Decoder(Protocol):
    """Whose steps are fixed."""

    model: PrefixLM
    cache_name: str
    cache: Cache  # holds the prefixes of N images
    mask: Tensor | None  # bool [N, P], False for padding within them
    dtype: torch.dtype  # of what the language model is given


class FixedSteps:
    """The last step of each model, for its next batch of the same size: to capture one takes the time of several."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[PrefixLM, tuple[tuple, FixedStep, ref[Decoder]]] = WeakKeyDictionary()
        self._obeys: WeakKeyDictionary[PrefixLM, bool] = WeakKeyDictionary()
        self._lock = Lock()

    def suit(self, model: PrefixLM, prefix: Cache, repeats: int, room: int) -> bool:
        """Whether a model's steps can be fixed, and gain by it: layers all alike, masks obeyed, few rows."""
        if not fast() or torch.is_grad_enabled() or any(type(layer) is not DynamicLayer for layer in prefix.layers):
            return False  # such as sliding windows and recurrent states
        states = _states(prefix)
        shapes = {tensor.shape for pair in states for tensor in pair}
        if len(shapes) != 1:
            return False
        [(images, heads, length, width)] = shapes
        values = len(states) * 2 * images * repeats * heads * (length + room) * width
        if values * states[0][0].element_size() > MOST_BYTES:
            return False
        if model not in self._obeys:
            self._obeys[model] = can_share_prefix(model.lm)
        return self._obeys[model]

    def of(self, decoder: Decoder, repeats: int, room: int, reorders: bool) -> FixedStep:
        """A step for K rows of each of a decoder's images and so many tokens, the decoder's own while that lives."""
        model, keys = decoder.model, _states(decoder.cache)[0][0]
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        numbers = keys.dtype, decoder.dtype, autocast, torch.is_inference_mode_enabled()
        key = keys.shape, repeats, room, reorders, numbers, _weights(model)
        with self._lock:
            found, step, user = self._last.get(model, (None, None, None))
            if step is None or found != key or user is None or user() is not None:
                self._last.pop(model, None)  # its memory is free for the new one
                step = FixedStep(
                    model.lm, decoder.cache_name, decoder.cache, repeats, room, reorders, dtype=decoder.dtype
                )
                if keys.device.type == "cuda":
                    step.capture()
            self._last[model] = key, step, ref(decoder)
        step.start(decoder.cache, decoder.mask)
        return step


fixed_steps = FixedSteps()


def _weights(model: PrefixLM) -> int:
    """Changes where a graph would compute with other memory, or with copies of weights that are no more theirs."""
    places = ((p.data_ptr(), 0 if p.requires_grad or p.is_inference() else p._version) for p in model.lm.parameters())
    return hash(tuple(places))
