"""Folders of distilvit2 (SigLIP's tokens → linear layer or MLP → causal language model with LoRA) as captioners."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.distilvit2_folder import CONFIG, read_distilvit2
from clipcap.models.encoders.distilvit2_tower import network_of
from clipcap.models.limits import check_network_size
from clipcap.runtime.heavy_imports import transformers_package
from clipcap.runtime.hub import absolute

LM, PROJECTION = "language_model.", "projection.projection."
ADAPTED = ".base_layer.weight"  # end of the name of a matrix that LoRA adapts


def load_distilvit2(folder: Path) -> tuple[ClipCaptionModel, str]:
    """The captioner of a folder, LoRA merged into its language model, and a line that says what was read.

    Raises:
        ClipcapError: a part is missing, damaged, or of another size than its configuration says.
    """
    content, state = read_distilvit2(folder)
    vision, kind = content["vision_config"], content.get("projection_type", "linear")
    try:
        config = ModelConfig(
            clip_dim=vision["hidden_size"],
            mapping_type="project",
            projection=kind,
            projection_hidden=content.get("mlp_hidden_dim", 2048),
            tokens="grid",
            token_count=(vision["image_size"] // vision["patch_size"]) ** 2,
            token_width=vision["hidden_size"],
            prefix_length=(vision["image_size"] // vision["patch_size"]) ** 2,
            encoder=f"hf:{absolute(str(folder))}",
            lm=str(content["text_config"].get("_name_or_path") or folder),
            lm_stored=True,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ClipcapError(f"{folder / CONFIG}: its vision_config is damaged: copy the folder again") from error
    lm = network_of(content["text_config"], transformers_package().AutoModelForCausalLM, str(folder / CONFIG))
    check_network_size(lm.config, state.values(), folder / CONFIG)
    merged = merged_weights(
        {name.removeprefix(LM): tensor for name, tensor in state.items() if name.startswith(LM)},
        content.get("lora_alpha", 16) / content.get("lora_r", 16),
        transposed=lm.config.model_type == "gpt2",
    )
    _fill(lm, merged, folder, tied=lm.get_output_embeddings().weight is lm.get_input_embeddings().weight)
    model = ClipCaptionModel(config, lm.float())
    projection = {"projection." + k.removeprefix(PROJECTION): v for k, v in state.items() if PROJECTION in k}
    _fill(model.mapper, projection, folder)
    rank = content.get("lora_r")
    read = f"{kind} projection of {config.token_count} tokens, LoRA of rank {rank} merged"
    return model.eval(), f"{folder}: of distilvit2, {read}"


def merged_weights(state: dict[str, Tensor], scale: float, transposed: bool) -> dict[str, Tensor]:
    """A language model's tensors under its own names, W + (alpha / r)·B·A where they are adapted.

    Args:
        state: as peft stores them, adapted or merged before.
        scale: alpha / r.
        transposed: whether its matrices are [in, out], as GPT-2's.
    """
    found = {}
    for name, tensor in state.items():
        plain = name.removeprefix("base_model.model.")
        if ".lora_" in name:
            continue
        if name.endswith(ADAPTED):
            layer = name.removesuffix(ADAPTED)
            pair = [state.get(f"{layer}.lora_{side}.default.weight") for side in "BA"]
            if pair[0] is not None and pair[1] is not None:
                change = scale * (pair[0] @ pair[1])
                tensor = tensor + (change.T if transposed else change)
        found[plain.replace(".base_layer.", ".")] = tensor
    return found


def _fill(module: torch.nn.Module, state: dict[str, Tensor], folder: Path, tied: bool = False) -> None:
    """Load all tensors of a part, of whose head tied weights may be absent."""
    own = module.state_dict()
    for name, tensor in own.items():
        if tied and name == "lm_head.weight":
            continue
        if name not in state or state[name].shape != tensor.shape:
            found = list(state[name].shape) if name in state else "missing"
            raise ClipcapError(f"{folder}: {name} is {found}, its configuration needs {list(tensor.shape)}")
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
