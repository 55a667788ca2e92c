"""Adapters of peft: what they adapt, and the language model with their changes in its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from clipcap.errors import ClipcapError
from clipcap.runtime.safe_load.torch_file import is_finite
from clipcap.runtime.safe_load.weights import read_weights_file
from clipcap.runtime.safe_load.wrong_bytes import check_folder
from clipcap.runtime.text import one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

ADAPTER, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


def adapted_model(name: str) -> str | None:
    """The language model that a folder of peft adapts; None for any other folder.

    Raises:
        ClipcapError: its configuration is damaged, or names none.
    """
    path = Path(name).expanduser() / ADAPTER
    if not path.is_file() or path.with_name("config.json").is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClipcapError(f"{path}: is not the configuration of a peft adapter: save the adapter again") from error
    if not isinstance(base, str) or Path(base).expanduser().resolve() == path.parent.resolve():
        raise ClipcapError(f"{path}: does not say which language model it adapts (base_model_name_or_path)")
    if adapted_model(base):
        raise ClipcapError(f"{path}: adapts {base}, an adapter itself: merge that one into its model first")
    return base


def with_adapter(lm: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The language model with the adapter's changes added to its weights.

    Raises:
        ClipcapError: the adapter is of another kind or model, incomplete, or damaged.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ClipcapError(f"--lm {folder}: is a peft adapter: pip install 'clipcap-toolkit[lora]'") from error
    check_folder(folder, f"--lm {folder}")
    stored = _stored(folder)
    _check_ranks(folder, stored)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # embeddings that were trained apart are no longer tied, as they should
            warnings.filterwarnings("error", ".*missing adapter keys")  # which peft fills with random numbers
            adapted = PeftModel.from_pretrained(lm, str(folder), is_trainable=False)
            if not hasattr(adapted.base_model, "merge_and_unload"):
                kind = str(adapted.peft_config["default"].peft_type).rpartition(".")[2]
                raise ClipcapError(
                    f"--lm {folder}: is an adapter of the kind {kind}, which adds inputs and changes no weights: "
                    f"train one that can be merged, such as LoRA"
                )
            own = get_peft_model_state_dict(adapted)
            if others := sorted(name for name in stored if "lora_" in name and name not in own):
                raise ValueError(f"it has no {others[0]}")
            merged = adapted.merge_and_unload()
    except ClipcapError:
        raise
    except UnpicklingError as error:  # torch's own message says how to run the code nevertheless
        raise ClipcapError(f"--lm {folder}: its adapter is a damaged pickle, or one with code") from error
    except Exception as error:  # of damaged and foreign adapters peft lets through almost anything
        raise ClipcapError(
            f"--lm {folder}: its adapter does not fit the language model: {one_line(error)}"
        ) from error
    for part, parameter in merged.named_parameters():
        if not is_finite(parameter):
            raise ClipcapError(f"--lm {folder}: with its adapter {part} holds NaN or infinity: use an earlier one")
    return merged


def _stored(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors by name.

    Raises:
        ClipcapError: they are missing, damaged, or with code.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ClipcapError(f"--lm {folder}: has no {WEIGHTS[0]}: save the adapter again, or fetch it")
    if found.suffix == ".bin":
        return {name: tuple(tensor.shape) for name, tensor in read_weights_file(found, (), "adapter").tensors.items()}
    try:
        with safe_open(found, "pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ClipcapError(f"{found}: damaged ({one_line(error)}): fetch it again") from error


def _check_ranks(folder: Path, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse ranks that no stored tensor has: peft makes tensors of them before it compares.

    Raises:
        ClipcapError: names the rank.
    """
    content = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    pattern = content.get("rank_pattern")
    ranks = [content.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    largest = max((side for shape in stored.values() for side in shape), default=0)
    for rank in ranks:
        if rank is not None and (type(rank) is not int or rank > largest):
            raise ClipcapError(
                f"{folder / ADAPTER}: has the rank {rank!r:.40}, and no stored tensor is that large: fetch both "
                f"files again"
            )
