"""Networks of transformers, held against their files: it fills what is missing with random numbers, and says nothing.

Sizes are compared before memory is taken for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from clipcap.errors import ClipcapError
from clipcap.models.limits import check_parameter_count
from clipcap.runtime.hub import cached_folder, load_pretrained
from clipcap.runtime.safe_load.torch_file import is_finite

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig, PreTrainedModel

_LAYER = re.compile(r"\.\d+\.")  # the number of a layer in the name of a tensor


def load_network(
    auto: Any, place: str, what: str, flag: str, config: PretrainedConfig, optional: Collection[str] = ()
) -> tuple[PreTrainedModel, list[str]]:
    """A network with the weights of a folder or hub name, in float32.

    Args:
        auto: class of transformers that loads it.
        place: hub name or local folder.
        what: it is, for messages.
        flag: that names it.
        config: of the network.
        optional: names that end so may be missing.
    Returns:
        the network, and the names of the optional tensors that its files lack.
    Raises:
        ClipcapError: it cannot be had, is far larger than its files, or does not fit to them.
    """
    where = f"{flag} {place}"
    quantised = getattr(config, "quantization_config", None) is not None
    if (stored := _stored_parameters(place, where, quantised)) is not None:
        check_parameter_count(config, stored, where, auto)
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    network, info = load_pretrained(auto, place, what, flag, **options)
    return network, check_loaded(network, info, where, optional)


def check_loaded(
    network: PreTrainedModel, info: Mapping[str, Any], where: str, optional: Collection[str] = ()
) -> list[str]:
    """Refuse weights that lack a tensor, have one of another size or more layers, or hold NaN or infinity.

    Args:
        info: what transformers says of the loading.
        where: flag and name, for the message.
        optional: names that end so may be missing.
    Returns:
        the names of the optional tensors that are missing.
    """
    for part, *shapes in sorted(info["mismatched_keys"]):
        found, wanted = (list(shape) for shape in shapes)
        raise ClipcapError(
            f"{where}: {part} is {found} in its weights and {wanted} by its config.json: the files do not belong "
            f"together, fetch them again"
        )
    missing = sorted(info["missing_keys"])
    if lacking := [part for part in missing if not part.endswith(tuple(optional))]:
        raise ClipcapError(f"{where}: its weights lack {lacking[0]}: the files are incomplete, fetch them again")
    own = {_LAYER.sub(".N.", part) for part, _ in network.named_parameters()}
    for part in sorted(info["unexpected_keys"]):
        if _LAYER.search(part) and any(known.endswith(_LAYER.sub(".N.", part)) for known in own):
            raise ClipcapError(
                f"{where}: its weights have {part}, and its config.json has fewer layers: the files do not belong "
                f"together, fetch them again"
            )
    for part, parameter in network.named_parameters():
        if part not in missing and not is_finite(parameter):
            raise ClipcapError(f"{where}: {part} holds NaN or infinity: the weights are damaged, fetch them again")
    return missing


def _stored_parameters(name: str, where: str, quantised: bool) -> int | None:
    """How many numbers the weights of a network hold, at most; None where they are not on this machine.

    Raises:
        ClipcapError: they are whole numbers, and no configuration says of which quantisation.
    """
    folder = cached_folder(name)
    if folder is None:
        return None
    count, files = 0, sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            count += _count(file, where, quantised)
        except (OSError, SafetensorError):  # loading it will say what is wrong
            return None
    if not files:
        count = sum(file.stat().st_size for file in folder.glob("*.bin"))
    return count or None


def _count(file: Path, where: str, quantised: bool) -> int:
    with safe_open(file, "pt") as tensors:
        parts = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
        for key, part in parts.items():
            kind = part.get_dtype()
            if not quantised and key.endswith(".weight") and kind.startswith(("I", "U")):
                raise ClipcapError(
                    f"{where}: {key} is stored as {kind}, as of a quantised network, and its config.json says "
                    f"nothing of that: fetch the weights in floating-point numbers"
                )
        return sum(math.prod(part.get_shape()) for part in parts.values())
