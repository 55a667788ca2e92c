"""Checkpoints of the original ClipCap and its food fork: bare `.pt` state dicts, in and out.

The architecture is read off the tensor names and shapes; nothing has to be retyped.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.names import guess_encoder
from clipcap.models.language_model import load_lm, load_lm_config, token_embeddings
from clipcap.models.limits import check_mapper_sizes, check_network_size
from clipcap.models.wrong_file import describe_wrong_file, describe_wrong_tensors
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.heavy_imports import transformers_package
from clipcap.runtime.safe_load.weights import StoredWeights, check_floating, read_weights_file
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import shown

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import GPT2Config, PreTrainedModel

StateDict = dict[str, Tensor]

LM, MAPPER = "gpt.", "clip_project."
# Tensors of a captioner by which a prefix before all names is found.
ANCHORS = tuple(f"{MAPPER}{name}" for name in ("model.0.weight", "linear.weight", "prefix_const"))
WORDS, POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"  # GPT-2's embeddings, after `gpt.`
# Causal masks that old releases of transformers stored; `attn.c_attn.bias` is a real parameter.
LEGACY_BUFFER = re.compile(r"\.attn\.(masked_)?bias$")
ADAPTED = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save)\.")  # names that peft gives in a network
GPT2_HEAD_WIDTH = 64  # every GPT-2 of OpenAI has width / 64 heads
HEADS = 8  # of the original's transformer mapper
STOP_TOKEN = "."  # the only end of a caption that the original knows


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a file of weights, by the names that the original gives them; runs no code from it.

    Raises:
        ClipcapError: the file is missing, damaged, of another kind, or without tensors.
    """
    return read_stored(path).tensors


def read_stored(path: Path) -> StoredWeights:
    """As `read_state_dict`, with what else was in the file.

    Raises:
        ClipcapError: the file is missing, damaged, of another kind, or without tensors.
    """
    check_weights_file(path)
    if other := describe_wrong_file(path):
        raise ClipcapError(f"{path}: {other}")
    return read_weights_file(path, ANCHORS)


def load_reference(
    path: Path,
    lm: str = "gpt2",
    num_heads: int = HEADS,
    normalize_prefix: bool = False,
    encoder: str | None = None,
) -> tuple[ClipCaptionModel, str]:
    """Build the model of a reference checkpoint.

    Args:
        path: the `.pt` file.
        lm: language model whose tokenizer and head count belong to it; where its configuration is not at hand,
            or it is not a GPT-2 of this width, GPT-2's rule (width / 64 heads) holds.
        num_heads: attention heads of a transformer mapper, which the file does not tell.
        normalize_prefix: whether it was trained on normalised embeddings, which the file does not tell.
        encoder: encoder of its features (default: guessed from the width).
    Returns:
        the model in evaluation mode, and a line that says what was read.
    Raises:
        ClipcapError: the file is not such a checkpoint, or its tensors do not fit.
    """
    stored = read_stored(path)
    state = stored.tensors
    legacy = [name for name in state if LEGACY_BUFFER.search(name)]
    own = [(k, v) for k, v in state.items() if k.startswith((LM, MAPPER)) and k not in legacy]
    if adapter := next((k for k, _ in own if ADAPTED.search(k)), None):
        raise ClipcapError(
            f"{path}: {shown(adapter)[:80]} is of an adapter: merge it (peft: merge_and_unload), then save"
        )
    check_floating(own, path)
    mapper = {k.removeprefix(MAPPER): v.float() for k, v in state.items() if k.startswith(MAPPER)}
    gpt = {k.removeprefix(LM): v.float() for k, v in state.items() if k.startswith(LM) and k not in legacy}
    unknown = [k for k in state if not k.startswith((LM, MAPPER))]
    whole = all(_is_matrix(gpt.get(name)) for name in (WORDS, POSITIONS))
    if mapper and not gpt and not unknown:
        return _mapper_before(mapper, path, lm, num_heads, normalize_prefix, encoder)
    if not mapper or not whole:
        strange = f"it has {unknown[0]!r}" if unknown else "it lacks gpt.* or clip_project.* tensors"
        other = describe_wrong_tensors(state, path) or f"not a checkpoint of the original ClipCap: {strange}"
        raise ClipcapError(f"{path}: {other}")

    lm_config = infer_gpt2(gpt, lm, path)
    check_network_size(lm_config, gpt.values(), path)
    config = _config(mapper, lm_config.n_embd, path, lm, num_heads, normalize_prefix, encoder, lm_stored=True)
    lm_class = transformers_package().AutoModelForCausalLM
    model = ClipCaptionModel(config, lm_class.from_config(lm_config, dtype=torch.float32))
    gpt.setdefault("lm_head.weight", gpt[WORDS])  # tied: some files hold it once
    _load_strictly(model.mapper, mapper, path, MAPPER)
    _load_strictly(model.lm, gpt, path, LM)
    shape = f"{config.mapping_type} mapper, prefix {config.prefix_length}, CLIP width {config.clip_dim}"
    dropped = f"; {len(legacy)} legacy attention buffers dropped" if legacy else ""
    stored = replace(stored, left_out=[*stored.left_out, *(shown(name)[:60] for name in unknown)])
    note = f"; {stored.note}" if stored.note else ""
    return model.eval(), f"{path}: {shape}, GPT-2 of width {lm_config.n_embd}{dropped}{note}"


def _config(
    mapper: StateDict,
    embed_dim: int,
    path: Path,
    lm: str,
    num_heads: int,
    normalize_prefix: bool,
    encoder: str | None,
    lm_stored: bool,
) -> ModelConfig:
    """The configuration of a mapper's tensors; sizes that they do not have are refused."""
    sizes = infer_mapper(mapper, embed_dim, path)
    if min(sizes.get(name, 1) for name in ("prefix_length", "prefix_length_clip")) < 1:
        raise ClipcapError(
            f"{path}: its mapper does not fit --lm {lm}, which is {embed_dim} wide: name the one it had"
        )
    config = ModelConfig(
        **sizes,
        num_heads=num_heads,
        normalize_prefix=normalize_prefix,
        encoder=encoder or guess_encoder(sizes["clip_dim"]),
        lm=lm,
        lm_stored=lm_stored,
        stop_token=STOP_TOKEN,
        recipe="reference",
    )
    check_mapper_sizes(config, embed_dim, {MAPPER + k: v for k, v in mapper.items()}, MAPPER, path)
    return config


def _mapper_before(
    mapper: StateDict, path: Path, lm: str, num_heads: int, normalize_prefix: bool, encoder: str | None
) -> tuple[ClipCaptionModel, str]:
    """The model of a file that holds the mapper alone, before the language model called `lm`."""
    base = load_lm(lm)
    embed_dim = token_embeddings(base).weight.shape[1]
    config = _config(mapper, embed_dim, path, lm, num_heads, normalize_prefix, encoder, lm_stored=False)
    model = ClipCaptionModel(config, base)
    _load_strictly(model.mapper, mapper, path, MAPPER)
    return model.eval(), f"{path}: {config.mapping_type} mapper alone, prefix {config.prefix_length}, before {lm}"


def _is_matrix(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dim() == 2 and tensor.numel() > 0


def infer_gpt2(gpt: StateDict, lm: str, path: Path) -> GPT2Config:
    """GPT-2's configuration: sizes from its tensors, the rest from `lm` where that is a GPT-2 of the same width."""
    vocab_size, width = gpt[WORDS].shape
    layers = {name.split(".")[2] for name in gpt if name.startswith("transformer.h.")}
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": len(layers),
        "n_positions": gpt[POSITIONS].shape[0],
    }
    try:
        named = load_lm_config(lm)
    except ClipcapError:
        named = None
    if named is not None and named.model_type == "gpt2" and named.n_embd == width:
        gpt2 = cast("GPT2Config", named)
        gpt2.update(sizes)
        return gpt2
    if width % GPT2_HEAD_WIDTH:
        raise ClipcapError(
            f"{path}: its GPT-2 is {width} wide, not of OpenAI's family, and --lm {lm} is not of that width: "
            f"pass --lm FOLDER of the GPT-2 it was trained from (for its head count and tokenizer)"
        )
    return transformers_package().GPT2Config(**sizes, n_head=width // GPT2_HEAD_WIDTH)


def infer_mapper(mapper: StateDict, embed_dim: int, path: Path) -> dict:
    """Mapping type and sizes from the mapper's tensors."""
    if _is_matrix(mapper.get("model.0.weight")) and _is_matrix(mapper.get("model.2.weight")):
        prefix_length = mapper["model.2.weight"].shape[0] // embed_dim
        return {
            "mapping_type": "mlp",
            "clip_dim": mapper["model.0.weight"].shape[1],
            "prefix_length": prefix_length,
        }
    if _is_matrix(mapper.get("prefix_const")) and _is_matrix(mapper.get("linear.weight")):
        layers = {name.split(".")[2] for name in mapper if name.startswith("transformer.layers.")}
        clip_tokens, clip_dim = mapper["linear.weight"].shape
        return {
            "mapping_type": "transformer",
            "clip_dim": clip_dim,
            "prefix_length": mapper["prefix_const"].shape[0],
            "prefix_length_clip": clip_tokens // embed_dim,
            "num_layers": len(layers),
        }
    raise ClipcapError(f"{path}: its mapper ({', '.join(list(mapper)[:3])} …) is neither the MLP nor the transformer")


def _load_strictly(module: torch.nn.Module, state: StateDict, path: Path, prefix: str) -> None:
    own = module.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise ClipcapError(f"{path}: tensor {prefix}{missing[0]} is missing: the checkpoint is incomplete")
    if unknown := sorted(state.keys() - own.keys()):
        raise ClipcapError(
            f"{path}: {shown(prefix + unknown[0])[:100]} is a tensor that this model does not have: the checkpoint "
            f"is of another model, or of another release of transformers"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise ClipcapError(
                f"{path}: {prefix}{name} is {list(state[name].shape)} there and {list(tensor.shape)} here: the file "
                f"is damaged, or of another model"
            )
    module.load_state_dict(state)


def export_reference(model: ClipCaptionModel, path: Path) -> None:
    """Write a model as a state dict that the original ClipCap loads; a LoRA adapter is merged first.

    Raises:
        ClipcapError: the language model is not a GPT-2, which is all the original knows; or it cannot be written.
    """
    if model.lm.config.model_type != "gpt2":
        raise ClipcapError(
            f"the original ClipCap knows GPT-2 only, this checkpoint's language model is {model.lm.config.model_type}"
        )
    state = {MAPPER + name: tensor for name, tensor in model.mapper.state_dict().items()}
    state |= {LM + name: tensor for name, tensor in merged_lm_state(model.lm).items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as draft, open(draft, "wb") as file:  # torch writes the name of a file into it
            torch.save(state, file)


def merged_lm_state(lm: PreTrainedModel) -> StateDict:
    """The language model's state dict under its plain names, LoRA deltas added to the weights they adapt."""
    state = {name: tensor for name, tensor in lm.state_dict().items() if "lora_" not in name}
    for name, module in lm.named_modules():
        if hasattr(module, "get_delta_weight"):
            adapted: Any = module  # a layer of peft, which is imported where there is an adapter alone
            state[f"{name}.base_layer.weight"] = adapted.base_layer.weight + adapted.get_delta_weight("default")
    return {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in state.items()}
