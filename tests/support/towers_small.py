"""Small image and text towers of transformers with random weights, each in its own folder, as users have them."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import CAPTIONS
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from clipcap.demo.tiny import make_tokenizer

SIDE = 64


def small_tokenizer():
    """A tokenizer that puts start and end around a text, as those of encoders do."""
    tokenizer = make_tokenizer(CAPTIONS, 400)
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def vision_tower(folder: Path, kind: str) -> str:
    """resnet (with a processor of its own mean and size), or vit (bare weights)."""
    torch.manual_seed(1)
    if kind == "vit":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=16)).save_pretrained(folder)
        return str(folder)
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
    ResNetModel(ResNetConfig(**sizes, layer_type="bottleneck")).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": SIDE}, image_mean=[0.5] * 3).save_pretrained(folder)
    return str(folder)


def text_tower(folder: Path, kind: str) -> str:
    """distilbert (no pooler), bert (one), roberta (positions from 2 on), gpt2 (no padding token)."""
    torch.manual_seed(2)
    tokenizer = small_tokenizer()
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        model = DistilBertModel(DistilBertConfig(**vocabulary, **sizes, max_position_embeddings=32))
    elif kind == "bert":
        model = BertModel(BertConfig(**vocabulary, **width, max_position_embeddings=32))
    elif kind == "roberta":
        positions = tokenizer.pad_token_id + 1 + 32
        model = RobertaModel(RobertaConfig(**vocabulary, **width, max_position_embeddings=positions))
    else:
        tokenizer = make_tokenizer(CAPTIONS, 400)
        model = GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def clip_of_transformers(folder: Path) -> str:
    """A CLIP in transformers' own format."""
    torch.manual_seed(3)
    tokenizer = small_tokenizer()
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        **width,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**width, "image_size": SIDE, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
