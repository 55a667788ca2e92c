"""Small models of the real kinds, made on the spot: a CLIP in OpenAI's format, a GPT-2 with its own tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def make_clip(path: Path, embed_dim: int = 64, resolution: int = 64, width: int = 64, seed: int = 0) -> Path:
    """A ViT CLIP with random weights, saved as a state dict in OpenAI's format.

    Random features are enough to tell pictures apart: patches are projected, mixed and pooled.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP

    torch.manual_seed(seed)
    network = CLIP(
        embed_dim=embed_dim,
        image_resolution=resolution,
        vision_layers=2,
        vision_width=width,
        vision_patch_size=resolution // 8,
        context_length=77,
        vocab_size=49408,  # of CLIP's own tokenizer
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def make_tokenizer(texts: Iterable[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, learnt from texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def make_gpt2(
    folder: Path, texts: Iterable[str], width: int = 128, layers: int = 2, positions: int = 128, seed: int = 0
) -> Path:
    """A GPT-2 with random weights and a tokenizer learnt from `texts`, saved as a transformers folder."""
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(seed)
    end: Any = tokenizer.eos_token_id  # one number: one token, which a tokenizer's types leave open
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 64),
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
