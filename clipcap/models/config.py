"""What a checkpoint stores besides weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, Recipe, at_least, option

Tune = Literal["none", "lora", "full"]
Template = Literal["none", "chat"]
Prompts = Literal["none", "captions", "entities"]


@dataclass(frozen=True)
class PrefixConfig(Options, group="model"):
    """What the checkpoint of any model with a prefix stores besides weights."""

    clip_dim: int = option(512, "width of the CLIP embedding")
    prefix_length: int = option(10, "language-model positions given to the image (paper, section 3.1: k)")
    normalize_prefix: bool = option(False, "L2-normalise the CLIP embedding before the mapper")
    encoder: str | None = option(None, "encoder of the features it was trained on")
    encoder_weights_id: str | None = option(None, "fingerprint of that encoder's weights")
    lm: str = option("gpt2", "causal language model: hub name, local folder, or FILE.gguf")
    tune: Tune = option("none", "what was trained of the language model")
    lora_rank: int = option(8, "rank of the LoRA adapter of --tune lora")
    lm_stored: bool = option(False, "the checkpoint holds the language model's weights itself")
    stop_token: str | None = option(None, "text token that ends a caption, besides end-of-text")

    @property
    def stores_lm(self) -> bool:
        """Whether the checkpoint holds the whole language model."""
        return self.lm_stored or self.tune == "full"

    def __post_init__(self) -> None:
        for name in ("clip_dim", "prefix_length", "lora_rank"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class ModelConfig(PrefixConfig):
    """What a captioner's checkpoint stores: the mapping network (ClipCap, section 3.3) and how it was trained.

    `recipe` is provenance: it records how the weights were made, and nothing acts on it.
    """

    mapping_type: Literal["mlp", "transformer", "project"] = option(
        "mlp",
        "network from CLIP embedding to prefix; transformer also reads tokens of features that have any, project "
        "makes a position of each token",
    )
    prefix_length_clip: int = option(10, "positions the transformer mapper splits the CLIP embedding into")
    num_layers: int = option(8, "layers of the transformer mapper")
    num_heads: int = option(8, "attention heads of the transformer mapper (8 in the original)")
    projection: Literal["linear", "mlp"] = option("linear", "what the mapper project does to each position's tokens")
    projection_hidden: int = option(2048, "hidden width of --projection mlp")
    space_to_depth: int = option(1, "mapper project: squares of this side of the tokens' grid become one position")
    tokens: str | None = option(None, "tokens that the mapper reads: grid, crops:N, frames:N, import")
    token_layer: int = option(-1, "layer of the encoder that they are of, counted from the end")
    token_pool: int = option(0, "side that their grid is averaged to (0: as it is)")
    token_count: int = option(0, "tokens of an image")
    token_width: int = option(0, "their width")
    token_extra: int = option(0, "how many of them are class and register tokens, before those of the grid")
    template: Template = option(
        "none", "text around the image's positions: chat is the language model's own template"
    )
    before: tuple[int, ...] = option((), "token ids before the image's positions")
    after: tuple[int, ...] = option((), "token ids between them and the caption")
    ends: tuple[int, ...] = option((), "token ids that end a caption, besides the tokenizer's end-of-text")
    prompts: Prompts = option("none", "what is put as text between the image's positions and the caption")
    prompt_captions: int = option(4, "retrieved captions of a prompt")
    prompt_tokens: int = option(0, "tokens of the longest prompt")
    prompt_gate: float | None = option(None, "cosine of an image's nearest below which it has no prompt")
    datastore: str | None = option(None, "where the captions of prompts were retrieved from in training")
    datastore_id: str | None = option(None, "fingerprint of that datastore")
    retrieve_with: str | None = option(None, "encoder that retrieves, where it is not the one that is read")
    texts_moved: bool = option(False, "its texts were moved to the mean of photos (--objective text --photos)")
    recipe: Recipe = option("default", "recipe it was trained with (provenance: nothing reads it)")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("prefix_length_clip", "num_layers", "num_heads", "projection_hidden", "space_to_depth")
        for name in (*sizes, "prompt_captions"):
            at_least(name, getattr(self, name), 1)
        for name in ("token_pool", "token_count", "token_width", "token_extra", "prompt_tokens"):
            at_least(name, getattr(self, name), 0)
        if self.mapping_type == "project" and self.tokens is None:
            raise ClipcapError(
                "--mapping_type project makes positions of tokens, and the features hold none: parse the images with "
                "--tokens grid, or choose --mapping_type transformer"
            )
        if self.tokens is not None and not (self.token_count and self.token_width):
            raise ClipcapError(f"tokens {self.tokens!r} need a token_count and a token_width")
