"""What a checkpoint stores besides weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    mapping_type: Literal["mlp", "transformer"] = option("mlp", "network from CLIP embedding to prefix")
    prefix_length_clip: int = option(10, "positions the transformer mapper splits the CLIP embedding into")
    num_layers: int = option(8, "layers of the transformer mapper")
    num_heads: int = option(8, "attention heads of the transformer mapper (8 in the original)")
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
    recipe: Recipe = option("default", "recipe it was trained with (provenance: nothing reads it)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prefix_length_clip", "num_layers", "num_heads", "prompt_captions"):
            at_least(name, getattr(self, name), 1)
        at_least("prompt_tokens", self.prompt_tokens, 0)
