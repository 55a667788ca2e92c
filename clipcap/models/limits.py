"""Sizes in files that no real model has, refused before they fill the memory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig

from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig


def check_sizes(config: ModelConfig, state: dict[str, Tensor], path: Path) -> None:
    """Refuse sizes that no stored tensor has, before a network of such sizes fills the memory.

    Args:
        config: as the file at `path` has it.
        state: the tensors that belong to it.
    Raises:
        ClipcapError: names the size.
    """
    used = ["clip_dim", *["prefix_length_clip", "num_layers"] * (config.mapping_type == "transformer")]
    largest = max([len(state), *(side for tensor in state.values() for side in tensor.shape)])
    for name in [*used, *["lora_rank"] * (config.tune == "lora")]:
        if getattr(config, name) > largest:
            raise ClipcapError(f"{path}: {name} is {getattr(config, name)}, but no tensor beside it is that large")


def checked_lm_config(config: PretrainedConfig, where: str) -> PretrainedConfig:
    """The configuration, where its sizes are those of a language model; others fill the memory, or take for ever.

    Raises:
        ClipcapError: names the size; `where` is where it stands.
    """
    limits = {"num_hidden_layers": 1_000, "hidden_size": 100_000, "vocab_size": 10_000_000}
    limits |= {"num_attention_heads": 10_000, "max_position_embeddings": 10_000_000}
    for name, limit in limits.items():
        size = getattr(config, name, 1)
        if type(size) is int and not 0 < size <= limit:
            raise ClipcapError(f"{where}: its configuration has {name} {size}, which no language model has")
    usual = type(config)().to_dict()
    for name, value in config.to_dict().items():
        number, expected = type(value) in (int, float), type(usual.get(name))
        wrong = type(value) is not bool if expected is bool else expected in (int, float) and not number
        if wrong and value is not None:
            raise ClipcapError(f"{where}: its configuration has {name} {value!r:.40}, expected {expected.__name__}")
    return config
