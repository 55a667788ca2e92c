"""Embeddings of transformers' dual encoders, the same in training and in use.

`VisionTextDualEncoderModel` itself takes every tower's pooled output. A ResNet's is [B, C, 1, 1], which its own
projection refuses; DistilBERT has none; and that of BERT's kin is a layer which most checkpoints do not hold, so that
it is drawn anew. Pairs made here therefore say `text_pooling: mean` in their configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

PAIR = "vision-text-dual-encoder"
# Learnt positions of RoBERTa's kin start behind the one of padding.
OFFSET_POSITIONS = ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")


def image_features(network: Any, pixel_values: Tensor) -> Tensor:
    """[B, 3, R, R] → clip_embedding [B, D]."""
    if network.config.model_type != PAIR:
        return _projected(network.get_image_features(pixel_values=pixel_values))
    output = network.vision_model(pixel_values=pixel_values)
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return network.visual_projection(pooled.flatten(1))  # [B, C] or [B, C, 1, 1]
    hidden = output.last_hidden_state  # [B, T, C], or a map [B, C, H, W]
    return network.visual_projection(hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3)))


def text_features(network: Any, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, T] → clip_embedding [B, D]; without a mask every token counts.

    The mean of the tokens' last hidden states where the configuration says so, else the pooled output, or the first
    token's hidden state of a tower that pools nothing.
    """
    if network.config.model_type != PAIR:
        return _projected(network.get_text_features(input_ids=input_ids, attention_mask=attention_mask))
    output = network.text_model(input_ids=input_ids, attention_mask=attention_mask)
    if getattr(network.config, "text_pooling", None) == "mean":
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        there = mask[..., None].to(output.last_hidden_state.dtype)  # [B, T, 1]
        pooled = (output.last_hidden_state * there).sum(1) / there.sum(1)
    elif getattr(output, "pooler_output", None) is not None:
        pooled = output.pooler_output
    else:
        pooled = output.last_hidden_state[:, 0]
    return network.text_projection(pooled)


def _projected(output: Any) -> Tensor:
    """What `get_*_features` gives: a tensor before transformers 5, an output with the tensor in it since."""
    return getattr(output, "pooler_output", output)


def max_text_tokens(config: PretrainedConfig, tokenizer: Tokenizer) -> int:
    """Tokens that the text tower takes, the special ones included."""
    text = getattr(config, "text_config", config)
    positions = getattr(text, "max_position_embeddings", 77)
    if text.model_type in OFFSET_POSITIONS:
        positions -= text.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)
