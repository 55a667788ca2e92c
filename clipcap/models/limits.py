"""Sizes in files that no real model has, refused before they fill the memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.models.mapper import make_mapper
from clipcap.models.without_memory import without_memory
from clipcap.runtime.heavy_imports import transformers_package
from clipcap.runtime.text import one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig

_SMALL = 1_000_000  # parameters that may be made anew beside the stored ones
_MOST_BESIDE = 2**29  # bytes of masks and tables that a network makes by itself


def check_sizes(config: ModelConfig, state: dict[str, Tensor], path: Path) -> None:
    """Refuse sizes that no stored tensor has, before a network of such sizes fills the memory.

    Args:
        config: as the file at `path` has it.
        state: the tensors that belong to it.
    Raises:
        ClipcapError: names the size.
    """
    used = [] if config.mapping_type == "project" else ["clip_dim"]
    if config.mapping_type == "transformer":
        used += ["prefix_length_clip", "num_layers"] if config.tokens is None else ["num_layers", "token_count"]
    if config.tokens is not None:
        used.append("token_width")
    largest = max([len(state), *(side for tensor in state.values() for side in tensor.shape)])
    for name in used:
        if getattr(config, name) > largest:
            raise ClipcapError(f"{path}: {name} is {getattr(config, name)}, but no tensor beside it is that large")

    if config.tune == "lora":
        ranks = {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name and tensor.dim()}
        if ranks != {config.lora_rank}:
            found = ", ".join(map(str, sorted(ranks)[:3])) or "none"
            raise ClipcapError(f"{path}: lora_rank is {config.lora_rank}, the adapter's tensors have {found}")


def check_mapper_sizes(
    config: ModelConfig, embed_dim: int, state: Mapping[str, Tensor], prefix: str, path: Path
) -> None:
    """Refuse a mapper whose tensors are not those of its configuration, before one of its size is allocated.

    Args:
        config: the sizes.
        embed_dim: E, of the language model.
        state: the tensors stored at `path`, those of the mapper among them.
        prefix: beginning of their names.
    Raises:
        ClipcapError: names the tensor, and both sizes.
    """
    try:
        with without_memory():
            wanted = make_mapper(config, embed_dim).state_dict()
    except RuntimeError as error:  # beyond what torch can count
        raise ClipcapError(f"{path}: its mapper is of a size that no model has ({one_line(error)[:100]})") from error
    for name, tensor in sorted(wanted.items()):
        found = state.get(f"{prefix}{name}")
        if found is None:
            raise ClipcapError(f"{path}: tensor {prefix}{name} is missing: the checkpoint is incomplete")
        if found.shape != tensor.shape:
            raise ClipcapError(
                f"{path}: {prefix}{name} is {list(found.shape)} there and {list(tensor.shape)} here: the language "
                f"model (--lm {config.lm}) or the mapper is of another size"
            )


def check_network_size(config: PretrainedConfig, stored: Iterable[Tensor], where: object) -> None:
    """Refuse a language model that is far larger than the tensors beside its configuration.

    The network is made without memory behind it, and its parameters are counted.

    Args:
        config: of the language model.
        stored: the tensors that it is to be filled with, and perhaps others.
        where: the file or folder, for the message.
    Raises:
        ClipcapError: says both numbers.
    """
    auto = transformers_package().AutoModelForCausalLM
    check_parameter_count(config, sum(tensor.numel() for tensor in stored), where, auto)


def check_parameter_count(config: PretrainedConfig, stored: int, where: object, auto: Any) -> None:
    """As `check_network_size`, by the number of stored parameters, of a class of transformers."""
    try:
        with without_memory():
            network = auto.from_config(config)
    except Exception as error:  # of nonsense transformers lets through almost anything
        raise ClipcapError(f"{where}: its configuration is damaged: {one_line(error)}") from error
    needed = sum(parameter.numel() for parameter in network.parameters())
    beside = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    if beside > _MOST_BESIDE:
        raise ClipcapError(f"{where}: its configuration asks for {beside:,} bytes of tables, which no model needs")
    if needed > 2 * stored + _SMALL:
        raise ClipcapError(
            f"{where}: its configuration is of a network of {needed:,} parameters, but {stored:,} are stored: "
            f"the files do not belong together, or are incomplete: fetch them again"
        )


def check_network_limits(config: PretrainedConfig, where: str) -> None:
    """Refuse sizes in a configuration of transformers that no network has: to make one of them takes for ever.

    Raises:
        ClipcapError: names the size and `where` it is written.
    """
    limits = {"num_hidden_layers": 1_000, "hidden_size": 100_000, "vocab_size": 10_000_000}
    limits |= {"num_attention_heads": 10_000, "max_position_embeddings": 10_000_000, "image_size": 20_000}
    for name, limit in limits.items():
        size = getattr(config, name, 1)
        if type(size) is int and not 0 < size <= limit:
            raise ClipcapError(f"{where}: its configuration has {name} {size:,}, which no network has")


def checked_lm_config(config: PretrainedConfig, where: str) -> PretrainedConfig:
    """The configuration, where its sizes are those of a language model; others fill the memory, or take for ever.

    Raises:
        ClipcapError: names the size and `where` it is written.
    """
    check_network_limits(config, where)
    usual = type(config)().to_dict()
    for name, value in config.to_dict().items():
        number, expected = type(value) in (int, float), type(usual.get(name))
        if name.endswith("_token_id") and isinstance(value, list) and all(type(token) is int for token in value):
            continue  # several tokens end a text, as in Llama 3
        wrong = type(value) is not bool if expected is bool else expected in (int, float) and not number
        if wrong and value is not None:
            raise ClipcapError(f"{where}: its configuration has {name} {value!r:.40}, expected {expected.__name__}")
    return config
