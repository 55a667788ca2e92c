"""The arithmetic and the reading of memory that decoding must do, whoever does it.

The rule of arithmetic: 2·m·n·k for each product of matrices, and nothing for all else. Counted: the mapper; the
prefix once per image through GPT-2, of its last block the end alone, and keys and values; each written token but the
last once per hypothesis; attention between a position and those it may see; the head once at the prefix's end and
once per later token of each hypothesis.

The rule of memory: every weight that takes part is read once per step of a batch (no cache of the processor holds
GPT-2), and keys and values of the positions that are looked at are read once per row; the prefix's once per image.
"""

from __future__ import annotations

from transformers import GPT2Config

from benchmarks.speed.train.arithmetic import lm_linear_flops, mapper_flops
from clipcap.models.config import ModelConfig


def decode_flops(config: ModelConfig, gpt2: GPT2Config, tokens: int, hypotheses: int) -> float:
    """Operations for the captions of one image."""
    width, prefix = gpt2.n_embd, config.prefix_length
    rows = hypotheses * (tokens - 1)  # tokens that are read again
    linear = lm_linear_flops(gpt2, prefix + rows, 1 + rows)
    of_captions = hypotheses * sum(prefix + t for t in range(1, tokens))
    pairs = (gpt2.n_layer - 1) * prefix * (prefix + 1) / 2 + prefix + gpt2.n_layer * of_captions
    head = 2 * width * gpt2.vocab_size * (1 + rows)
    return mapper_forward_flops(config, width) + linear + 2 * 2 * width * pairs + head


def mapper_forward_flops(config: ModelConfig, width: int) -> float:
    """Operations of the mapper for one image, without a backward pass."""
    prefix, dim = config.prefix_length, config.clip_dim
    if config.mapping_type == "mlp":
        hidden = width * prefix // 2
        return 2 * dim * hidden + 2 * hidden * width * prefix
    first = 2 * dim * width * config.prefix_length_clip
    return first + (mapper_flops(config, width) - 2 * first) / 3


def decode_bytes(config: ModelConfig, gpt2: GPT2Config, tokens: int, hypotheses: int, images: int) -> float:
    """Bytes read for a batch of images, float32."""
    width = gpt2.n_embd
    layers, head = 12 * width**2 * gpt2.n_layer, width * gpt2.vocab_size
    weights = tokens * (layers + head)
    seen = sum(config.prefix_length + hypotheses * t for t in range(1, tokens))
    return 4 * (weights + images * 2 * width * gpt2.n_layer * seen)
