"""The arithmetic and the traffic with memory that a training step must do, whoever does it.

The rule of arithmetic: 2·m·n·k for each product of matrices, and nothing for all else. Counted are real tokens only,
the last of a caption not among the inputs; attention between a position and those it may see; a prefix once for the
captions that share it; of GPT-2's last block the positions that predict, and keys and values of all; the head at
label tokens. A backward pass costs one product for the gradient of the inputs and one for that of the weights, where
they are trained. What an implementation computes twice counts once.

The rule of traffic, in float32: a weight is read in each pass; where it is trained, its gradient is written, and
AdamW reads weight, gradient and two moments and writes all but the gradient. The result of each product of a layer is
written and read in the forward pass, read in the backward pass, and so is its gradient, written and read. Logits stay
in the processor's cache: they are needed for a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GPT2Config

from clipcap.models.config import ModelConfig


def step_flops(config: ModelConfig, gpt2: GPT2Config, rows: Sequence[Sequence[int]]) -> float:
    """Operations of one step: `rows` has for each prefix the lengths of the captions behind it, in tokens."""
    width, prefix = gpt2.n_embd, config.prefix_length
    passes = 3 if config.tune == "full" else 2
    total = len(rows) * mapper_flops(config, width)
    for lengths in rows:
        read = 1 + sum(n - 1 for n in lengths)  # the prefix's end, and all of a caption but its last token
        of_captions = sum((n - 1) * prefix + n * (n - 1) / 2 for n in lengths)
        total += passes * lm_linear_flops(gpt2, prefix - 1 + read, read)
        pairs = (gpt2.n_layer - 1) * prefix * (prefix + 1) / 2 + prefix + gpt2.n_layer * of_captions
        total += 3 * 2 * 2 * width * pairs
        total += passes * 2 * width * gpt2.vocab_size * sum(lengths)
    return total


def lm_linear_flops(gpt2: GPT2Config, positions: int, read: int) -> float:
    """Operations of the linear layers of GPT-2's blocks in one pass, where so many positions of the last are read."""
    width = gpt2.n_embd
    others = (gpt2.n_layer - 1) * 12 * positions  # queries, keys, values 3; projection 1; feed-forward 8
    return 2 * width**2 * (others + 2 * positions + 10 * read)


def plain_flops(config: ModelConfig, gpt2: GPT2Config, captions: int, longest: int) -> float:
    """What the plain baseline computes for so many captions: all padded, all logits, weight gradients everywhere."""
    width, positions = gpt2.n_embd, config.prefix_length + longest
    layer = 2 * 12 * width**2 * positions + 2 * 2 * width * positions**2
    head = 2 * width * gpt2.vocab_size * positions
    return captions * (3 * (gpt2.n_layer * layer + head) + mapper_flops(config, width, needed_only=False))


def step_bytes(config: ModelConfig, gpt2: GPT2Config, rows: Sequence[Sequence[int]]) -> float:
    """Bytes between memory and processor of one step: `rows` as in `step_flops`."""
    width, prefix = gpt2.n_embd, config.prefix_length
    of_lm = gpt2.n_layer * 12 * width**2 + width * gpt2.vocab_size
    positions = sum(prefix + sum(n - 1 for n in lengths) for lengths in rows)
    results = gpt2.n_layer * 10 * width * positions  # queries, keys, values 3; attention 1; its projection 1; 4 + 1
    if config.mapping_type == "mlp":
        hidden = width * prefix // 2
        of_mapper = hidden * (config.clip_dim + width * prefix)
        results += len(rows) * (hidden + width * prefix)
    else:
        of_mapper = config.num_layers * 8 * width**2 + config.clip_dim * width * config.prefix_length_clip
        results += config.num_layers * 8 * width * len(rows) * (config.prefix_length_clip + prefix)
    trained = of_mapper + (of_lm if config.tune == "full" else 0)
    return 4 * (2 * (of_lm + of_mapper) + (1 + 7) * trained + 5 * results)


def mapper_flops(config: ModelConfig, width: int, needed_only: bool = True) -> float:
    """Operations of the mapper for one image; its input needs no gradient.

    Args:
        config: its sizes.
        width: of the language model.
        needed_only: not the last block's outputs that nobody uses.
    """
    prefix, dim = config.prefix_length, config.clip_dim
    if config.mapping_type == "mlp":
        hidden = width * prefix // 2
        return 2 * 2 * dim * hidden + 3 * 2 * hidden * width * prefix
    positions = config.prefix_length_clip + prefix
    last = prefix if needed_only else positions
    blocks = [positions] * (config.num_layers - 1) + [last]  # whose outputs are needed of each
    linear = sum(2 * width**2 * (2 * positions + 6 * needed) for needed in blocks)  # keys and values 2; all else 6
    attention = sum(2 * 2 * width * positions * needed for needed in blocks)
    return 2 * 2 * dim * width * config.prefix_length_clip + 3 * (linear + attention)
