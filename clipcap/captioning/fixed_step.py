"""A decoding step whose tensors never change shape or place, so that a GPU replays it as one graph.

A step of GPT-2 is some three hundred small operations. A GPU finishes each sooner than Python launches the next; a
CUDA graph launches all at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from clipcap.models.base import PrefixLM
from clipcap.models.kernels.cuda_graph import free_bytes, record, watched
from clipcap.models.kernels.shared_prefix import can_share_prefix, position_ids
from clipcap.models.kernels.switch import fast
from clipcap.runtime.messages import logger
from clipcap.runtime.text import one_line

MOST_BYTES = 2 << 30  # of keys and values: with more rows the work takes longer than its launches
KEPT = 3  # steps of a model, for batches of several sizes
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
        """Record a step as a CUDA graph; states, mask and places are not to be used before the next `start`.

        Raises:
            RuntimeError: an operation cannot be recorded, or memory is short.
        """
        device, waits = self.states.device, False
        # Weights that autocast has converted before are not those of a later replay.
        autocast = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False)
        with torch.cuda.device(device), autocast:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.place.fill_(self.prefix)
                    _, waits = watched(self._run)
            torch.cuda.current_stream().wait_stream(stream)
            if waits:
                raise RuntimeError("an operation of this language model waits for the GPU")
            self.place.fill_(self.prefix)
            self.graph = record(self._run, device, stream)

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


@dataclass
class Kept:
    """A step that may serve another batch."""

    key: tuple
    step: FixedStep
    user: ref[Decoder]  # whose step it is while that lives


class FixedSteps:
    """The last steps of each model, for its next batches of the same size.

    To record one takes the time of several, so that on a GPU a size is recorded when it comes again.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[PrefixLM, list[Kept]] = WeakKeyDictionary()
        self._asked: WeakKeyDictionary[PrefixLM, deque[tuple]] = WeakKeyDictionary()
        self._obeys: WeakKeyDictionary[PrefixLM, bool] = WeakKeyDictionary()
        self._lock = Lock()

    def of(self, decoder: Decoder, repeats: int, room: int, reorders: bool, at_once: bool) -> FixedStep | None:
        """A step for K rows of each of a decoder's images and so many tokens, the decoder's own while that lives.

        Args:
            decoder: holds the prefixes.
            repeats: K.
            room: tokens that follow at most.
            reorders: rows will continue other rows.
            at_once: even for a size that comes for the first time.
        Returns:
            None where the model's steps cannot be fixed, or nothing is gained.
        """
        if not self._suit(decoder, repeats, room):
            return None
        model, keys = decoder.model, _states(decoder.cache)[0][0]
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        numbers = keys.dtype, decoder.dtype, autocast, torch.is_inference_mode_enabled()
        key = keys.shape, keys.device, repeats, room, reorders, numbers, _state(model)
        with self._lock:
            kept = self._kept.setdefault(model, [])
            found = next((one for one in kept if one.key == key and one.user() is None), None)
            if found is None:
                asked = self._asked.setdefault(model, deque(maxlen=KEPT * 2))
                if not at_once and key not in asked:
                    asked.append(key)
                    return None
                kept[:] = [one for one in kept if one.key[-1] == key[-1]][1 - KEPT :]  # their memory is free now
                if (step := self._made(decoder, repeats, room, reorders)) is None:
                    return None
                found = Kept(key, step, ref(decoder))
                kept.append(found)
            found.user = ref(decoder)
        found.step.start(decoder.cache, decoder.mask)
        return found.step

    def forget(self, model: PrefixLM) -> None:
        """Free what the steps of a model take of the GPU's memory."""
        with self._lock:
            self._kept.pop(model, None)

    def _suit(self, decoder: Decoder, repeats: int, room: int) -> bool:
        """Whether a model's steps can be fixed, and gain by it: layers all alike, masks obeyed, few rows."""
        layers, model = decoder.cache.layers, decoder.model
        if not fast() or torch.is_grad_enabled() or any(type(layer) is not DynamicLayer for layer in layers):
            return False  # such as sliding windows and recurrent states
        states = _states(decoder.cache)
        shapes = {tensor.shape for pair in states for tensor in pair}
        if len(shapes) != 1:
            return False
        [(images, heads, length, width)], keys = shapes, states[0][0]
        taken = len(states) * 2 * images * repeats * heads * (length + room) * width * keys.element_size()
        if taken > MOST_BYTES or (keys.device.type == "cuda" and 3 * taken > free_bytes(keys.device)):
            return False
        if model not in self._obeys:
            with torch.autocast(keys.device.type, enabled=False):
                self._obeys[model] = can_share_prefix(model.lm)
        return self._obeys[model]

    def _made(self, decoder: Decoder, repeats: int, room: int, reorders: bool) -> FixedStep | None:
        """A new step; None where it cannot be recorded, which is not tried again."""
        failed = ""
        try:
            step = FixedStep(
                decoder.model.lm, decoder.cache_name, decoder.cache, repeats, room, reorders, dtype=decoder.dtype
            )
            if step.states.device.type == "cuda":
                step.capture()
            return step
        except RuntimeError as error:
            failed = one_line(error)[:200]
        self._obeys[decoder.model] = False  # outside of the handler: the exception holds the step's memory
        logger.info(f"decoding goes on without CUDA graphs: {failed}")
        return None


fixed_steps = FixedSteps()


def _state(model: PrefixLM) -> int:
    """Changes where a recorded step would compute something else, or with memory that is no more the model's."""
    modules = list(model.lm.modules())
    patched = [forward for module in modules if (forward := vars(module).get("forward")) is not None]
    adapters = [
        (str(getattr(module, "merged_adapters", "")), getattr(module, "disable_adapters", False))
        for module in modules
        if hasattr(module, "lora_A")
    ]
    weights = [
        # Copies are made anew where weights change; weights themselves may change in their place.
        (p.data_ptr(), 0 if p.is_inference() or (p.requires_grad and not patched) else p._version)
        for p in model.lm.parameters()
    ]
    buffers = [buffer.data_ptr() for buffer in model.lm.buffers()]
    return hash(str((model.lm.training, list(map(id, patched)), adapters, weights, buffers)))
