"""The arithmetic that a training step must do, whoever does it.

The rule: 2·m·n·k for each product of matrices, and nothing for all else. Counted are real tokens only, the last of a
caption not among the inputs; attention between a position and those it may see; a prefix once for the captions that
share it; the head at label tokens. A backward pass costs one product for the gradient of the inputs and one for that
of the weights, where they are trained. What an implementation computes twice counts once.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GPT2Config

from clipcap.config import ModelConfig


def step_flops(config: ModelConfig, gpt2: GPT2Config, rows: Sequence[Sequence[int]]) -> float:
    """Operations of one step: `rows` has for each prefix the lengths of the captions behind it, in tokens."""
    width, prefix = gpt2.n_embd, config.prefix_length
    passes = 3 if config.tune == "full" else 2
    total = len(rows) * mapper_flops(config, width)
    for lengths in rows:
        positions = prefix + sum(n - 1 for n in lengths)
        pairs = prefix * (prefix + 1) / 2 + sum((n - 1) * prefix + n * (n - 1) / 2 for n in lengths)
        linear = 2 * 12 * width**2 * positions  # queries, keys, values 3; projection 1; feed-forward 8
        attention = 2 * 2 * width * pairs
        total += gpt2.n_layer * (passes * linear + 3 * attention)
        total += passes * 2 * width * gpt2.vocab_size * sum(lengths)
    return total


def mapper_flops(config: ModelConfig, width: int) -> float:
    """Operations of the mapper for one image; its input needs no gradient."""
    prefix, dim = config.prefix_length, config.clip_dim
    if config.mapping_type == "mlp":
        hidden = width * prefix // 2
        return 2 * 2 * dim * hidden + 3 * 2 * hidden * width * prefix
    positions = config.prefix_length_clip + prefix
    blocks = [positions] * (config.num_layers - 1) + [prefix]  # whose outputs are needed of each
    linear = sum(2 * width**2 * (2 * positions + 6 * needed) for needed in blocks)  # keys and values 2; all else 6
    attention = sum(2 * 2 * width * positions * needed for needed in blocks)
    return 2 * 2 * dim * width * config.prefix_length_clip + 3 * (linear + attention)
