"""The parts of a captioner as ONNX graphs: image tower, mapper, and the language model with its cache.

The language model is one graph for prefix and tokens: it concatenates `prefix` [B, P, E] and the embeddings of
`input_ids` [B, T], where P or T may be 0, behind the cached keys and values. So its table is stored once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.language_model import token_embeddings
from clipcap.runtime.text import one_line

OPSET = 20
LARGEST = 1_900_000_000  # bytes of a graph in one file, which protobuf bounds
Graph = Any  # onnx.ModelProto: the package is an extra


@dataclass(frozen=True)
class CacheShape:
    """Keys and values of one token: layers, heads of each, width of a head."""

    layers: int
    heads: int
    width: int


class ImageTower(nn.Module):
    """The frozen encoder's image half."""

    def __init__(self, encoder: FrozenEncoder):
        super().__init__()
        self.networks, self._embed = encoder.image_modules, encoder.embed_pixels

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → clip_embedding [B, D]."""
        return self._embed(pixels).float()


class Mapper(nn.Module):
    """CLIP embedding → prefix, with the normalisation and the template's text where the checkpoint has them."""

    def __init__(self, model: ClipCaptionModel):
        super().__init__()
        self.model = model

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """[B, D] → prefix [B, P, E]."""
        return self.model.prefix(clip_embedding)


class CachedLM(nn.Module):
    """The language model after cached tokens."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.lm, self.table = lm, token_embeddings(lm)
        self._cache_name = "cache" if "cache" in signature(lm.forward).parameters else "past_key_values"

    def forward(self, prefix: Tensor, input_ids: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits of the next token, and keys and values of all.

        Args:
            prefix: [B, P, E], P from 0.
            input_ids: int64 [B, T], T from 0.
            past: keys and values of each layer, [B, heads, L, width], L from 0.
        Returns:
            logits [B, V], then keys and values [B, heads, L + P + T, width].
        """
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        inputs_embeds = torch.cat([prefix, self.table(input_ids)], dim=1)  # [B, P + T, E]
        out = self.lm(inputs_embeds=inputs_embeds, use_cache=True, logits_to_keep=1, **{self._cache_name: cache})
        layers = out[self._cache_name].layers
        return (out.logits[:, -1].float(), *(states for layer in layers for states in (layer.keys, layer.values)))


def export_tower(encoder: FrozenEncoder, pixels: Tensor) -> Graph:
    """The image tower as a graph; `pixels` [2, 3, R, R] are an example."""
    return _exported(ImageTower(encoder), (pixels,), {"pixels": {0: "batch"}}, {"clip_embedding": {0: "batch"}})


def export_mapper(model: ClipCaptionModel) -> Graph:
    """The mapper as a graph."""
    example = torch.randn(2, model.config.clip_dim, generator=torch.Generator().manual_seed(0))
    return _exported(Mapper(model), (example,), {"clip_embedding": {0: "batch"}}, {"prefix": {0: "batch"}})


def export_lm(lm: PreTrainedModel, shape: CacheShape) -> Graph:
    """The language model as a graph."""
    names = [f"{layer}.{kind}" for layer in range(shape.layers) for kind in ("key", "value")]
    prefix = torch.zeros(2, 4, token_embeddings(lm).embedding_dim)  # a size of 1 would be fixed in the graph
    past = [torch.zeros(2, shape.heads, 3, shape.width) for _ in names]
    inputs = {"prefix": {0: "batch", 1: "prefix"}, "input_ids": {0: "batch", 1: "tokens"}}
    inputs |= {f"past_key_values.{name}": {0: "batch", 2: "past"} for name in names}
    outputs = {"logits": {0: "batch"}} | {f"present.{name}": {0: "batch", 2: "total"} for name in names}
    arguments = (prefix, torch.zeros(2, 3, dtype=torch.long), past)
    return _exported(CachedLM(lm), arguments, inputs, outputs)


def cache_shape(lm: PreTrainedModel) -> CacheShape:
    """What the language model caches of a token.

    Raises:
        ClipcapError: something else than the keys and values of all tokens.
    """
    cached = CachedLM(lm)
    with torch.no_grad():
        out = lm(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    layers: Any = getattr(out[cached._cache_name], "layers", [])
    plain = [layer for layer in layers if type(layer) is DynamicLayer]
    keys: list[Any] = [layer.keys for layer in plain]
    shapes = {(states.shape[1], states.shape[3]) for states in keys}
    if len(shapes) != 1 or len(plain) < len(layers):
        raise ClipcapError(
            f"{lm.config.model_type} models cannot be exported: their cache is not keys and values of all tokens "
            f"in every layer"
        )
    [(heads, width)] = shapes
    return CacheShape(len(layers), heads, width)


def merge_adapter(lm: PreTrainedModel) -> None:
    """Add a LoRA adapter to the weights, in place, where there is one."""
    for module in lm.modules():
        if hasattr(module, "get_delta_weight"):
            layer: Any = module  # of peft
            layer.merge()


def _exported(
    module: nn.Module,
    arguments: tuple[Any, ...],
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Mapping[str, Mapping[int, str]],
) -> Graph:
    """A module as a graph whose inputs and outputs have these names, with these names of sizes that vary."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes: list[Any] = [dict.fromkeys(varying, dynamic) for varying in inputs.values()]
    shapes = [*sizes[: len(arguments) - 1], sizes[len(arguments) - 1 :]]
    shapes[-1] = shapes[-1] if isinstance(arguments[-1], list) else shapes[-1][0]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), arguments, dynamo=True, opset_version=OPSET, dynamic_shapes=tuple(shapes),
                input_names=list(inputs), output_names=list(outputs), external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # of operations that it does not know the exporter raises almost anything
        raise ClipcapError(f"this model cannot be written as ONNX: {one_line(error)[:300]}") from error
    assert program is not None
    graph = program.model_proto
    del graph.graph.value_info[:]  # they name sizes that are renamed here
    for values, named in ((graph.graph.input, inputs), (graph.graph.output, outputs)):
        for value in values:
            _name_sizes(value, named[value.name])
    return graph


def _name_sizes(value: Any, names: Mapping[int, str]) -> None:
    """Name the sizes of an input or output that vary.

    Raises:
        ClipcapError: one of them is fixed in the graph, as the exporter does silently.
    """
    for place, size in enumerate(value.type.tensor_type.shape.dim):
        if place in names:
            if size.HasField("dim_value"):
                raise ClipcapError(
                    f"this model cannot be written as ONNX: {names[place]} of {value.name} is fixed at "
                    f"{size.dim_value} in its graph"
                )
            size.dim_param = names[place]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what it leaves as it is."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
