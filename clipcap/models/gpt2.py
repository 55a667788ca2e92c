"""GPT-2 to decode with, without transformers, whose import takes longer than captioning a photo.

Operations and names of parameters are those of transformers' `GPT2LMHeadModel`: so are the logits, to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.models.kernels.gpt2_layers import Conv1D, FeedForward
from clipcap.models.kernels.switch import fast
from clipcap.models.without_memory import without_memory
from clipcap.runtime.safe_load.torch_file import is_finite

CONFIG, WEIGHTS, ADAPTER = "config.json", "model.safetensors", "adapter_config.json"
TRUNK, HEAD = "transformer.", "lm_head.weight"  # before the names of all but the head; `gpt2` on the hub lacks it
# What a configuration may not have otherwise: other values change the computation.
FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "quantization_config": None,
    "attn_implementation": None,
    "_attn_implementation": None,
}
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}  # transformers' own
# Further names that transformers takes the sizes by, and a nested configuration: left to it.
OTHER_NAMES = {"hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "text_config"}
MOST = 10_000_000  # of any size


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2, by the names that `config.json` has for them."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    layer_norm_epsilon: float
    model_type: str = "gpt2"


@dataclass
class GPT2Output:
    """What a step gives: logits [B, T or fewer, V], and the cache with the step's tokens."""

    logits: Tensor
    cache: GPT2Cache | None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass
class TrunkOutput:
    """Hidden states behind the last norm, [B, T, E]."""

    last_hidden_state: Tensor


class GPT2Layer:
    """Keys and values of one layer, [B, heads, L, width] each; both None before the first tokens."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens; returns those of all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices], self.values[indices]


class GPT2Cache:
    """Keys and values of all layers; `layers` may be replaced by others that do the same."""

    def __init__(self, layers: int):
        self.layers: list[Any] = [GPT2Layer() for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens in it."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        for layer in self.layers:
            layer.batch_select_indices(indices)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.width, self.heads = config.n_embd, config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: GPT2Layer | None) -> Tensor:
        """[B, T, E] → [B, T, E]."""
        split = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).split(self.width, 2))
        queries, keys, values = split  # [B, heads, T, width] each
        if layer is not None:
            keys, values = layer.update(keys, values)  # [B, heads, L, width] each
        attended = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=x.shape[1] > 1, scale=(self.width // self.heads) ** -0.5
        )
        return self.c_proj(attended.transpose(1, 2).flatten(2))  # [B, T, heads, width] -> [B, T, E]


class Block(nn.Module):
    """Attention, then a feed-forward net, each behind a norm and beside a residual."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config.n_embd, config.n_inner)

    def forward(self, x: Tensor, layer: GPT2Layer | None) -> Tensor:
        """[B, T, E] → [B, T, E]."""
        x = self.attn(self.ln_1(x), layer) + x
        return x + self.mlp(self.ln_2(x))


class Trunk(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, inputs_embeds: Tensor, cache: GPT2Cache | None = None, use_cache: bool = False) -> TrunkOutput:
        """[B, T, E], behind the tokens in the cache → hidden states [B, T, E]."""
        before = 0 if cache is None else cache.length
        places = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + before  # [T]
        x = inputs_embeds + self.wpe(places)
        for number, block in enumerate(self.h):
            x = block(x, None if cache is None else cache.layers[number])
        return TrunkOutput(self.ln_f(x))


class GPT2(nn.Module):
    """GPT-2 in evaluation mode, of which `forward` is what decoding asks of transformers' class.

    Args:
        config: the sizes.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.transformer = Trunk(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    @property
    def base_model(self) -> Trunk:
        """All but the head."""
        return self.transformer

    def get_input_embeddings(self) -> nn.Embedding:
        """Token ids → inputs."""
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        """Hidden states → logits."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: GPT2Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> GPT2Output:
        """Token ids [B, T] or inputs [B, T, E], behind the tokens in the cache → logits.

        Args:
            use_cache: begin a cache where none is given.
            logits_to_keep: of the last so many positions alone; 0 for all.
        """
        if inputs_embeds is None:
            assert input_ids is not None, "one of the two is given"
            inputs_embeds = self.transformer.wte(input_ids)
        if use_cache and cache is None:
            cache = GPT2Cache(self.config.n_layer)
        hidden = self.transformer(inputs_embeds, cache).last_hidden_state
        return GPT2Output(self.lm_head(hidden[:, -logits_to_keep:]), cache)


def gpt2_config(content: Any) -> GPT2Config | None:
    """The sizes in a `config.json`; None where it is not of a GPT-2 of the usual kind, or damaged."""
    if not isinstance(content, Mapping) or "model_type" not in content or not fast():
        return None
    if any(content.get(name, value) != value for name, value in FIXED.items()) or OTHER_NAMES & content.keys():
        return None
    sizes = {name: content.get(name, size) for name, size in SIZES.items()}
    inner, width = content.get("n_inner"), sizes["n_embd"]
    sizes["n_inner"] = 4 * width if inner is None and type(width) is int else inner
    epsilon = content.get("layer_norm_epsilon", 1e-5)
    if any(type(size) is not int or not 0 < size <= MOST for size in sizes.values()) or type(epsilon) is not float:
        return None
    if sizes["n_embd"] % sizes["n_head"] or sizes["n_layer"] > 1000:
        return None
    return GPT2Config(**sizes, layer_norm_epsilon=epsilon)


def gpt2_of(content: Any, stored: Mapping[str, Tensor], prefix: str = "") -> GPT2 | None:
    """The GPT-2 of a configuration and of stored tensors, in float32.

    Args:
        content: of `config.json`.
        stored: tensors, finite, the language model's and perhaps others.
        prefix: before the names of the language model's.
    Returns:
        None where it has to be left to transformers: of another kind, or of other layers, or a tensor is missing or
        of another size.
    """
    config = gpt2_config(content)
    layers = [] if config is None else [f"{prefix}{TRUNK}h.{config.n_layer - back}.ln_1.weight" for back in (1, 0)]
    if config is None or [name in stored for name in layers] != [True, False]:
        return None
    with without_memory():
        model = GPT2(config)
    state = {name: stored.get(prefix + name) for name, _ in model.named_parameters()}  # of tied ones the first
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found = {name: t.float() for name, t in state.items() if t is not None and t.is_floating_point()}
    if {name: tensor.shape for name, tensor in found.items()} != sizes:
        return None
    head = stored.get(prefix + HEAD)
    if head is not None and not torch.equal(head.float(), found[f"{TRUNK}wte.weight"]):
        return None  # the configuration ties them, and the weights do not
    model.load_state_dict(found, strict=False, assign=True)
    model.lm_head.weight = model.transformer.wte.weight
    return model.eval()


def load_gpt2(folder: Path) -> GPT2 | None:
    """The GPT-2 of a folder in float32; None where it has to be left to transformers, which says what is wrong."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():  # may be pipes, which are waited for
        return None
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if gpt2_config(content) is None or (folder / ADAPTER).exists():
            return None
        stored = load_file(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None
    named = {name if name.startswith((TRUNK, HEAD)) else TRUNK + name: tensor for name, tensor in stored.items()}
    return gpt2_of(content, named) if len(named) == len(stored) and all(map(is_finite, named.values())) else None
