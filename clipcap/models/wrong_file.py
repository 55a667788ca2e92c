"""Recognise files that are not captioners, and name the flag they belong to."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clipcap.models.weight_files import how_to_join
from clipcap.runtime.safe_load.torchscript import is_scripted
from clipcap.runtime.safe_load.weights import SUFFIXES

CLIP_GPT = "clip_gpt"  # key of the configuration of one
# Captioners and networks of other projects: a part of a tensor's name that only they have, what they are, and what
# writes captions with them, or makes something of them that does.
_OTHERS = (
    (r"(?:^|\.)lora_[AB]\.", "a LoRA adapter", "merge it into its model (peft: merge_and_unload) and save that"),
    (r"^(?:Qformer|qformer|query_tokens|t5_proj|opt_proj)", "a BLIP-2 or InstructBLIP", "caption with transformers"),
    (r"^(?:visual_encoder|text_decoder)\.", "a BLIP or CoCa captioner", "caption with transformers or open_clip"),
    (r"^git\.|^(?:textual|image_encoder)\.", "a GIT captioner", "caption with transformers"),
    (r"mm_projector|multi_modal_projector|vision_tower", "a LLaVA or its kin", "caption with transformers"),
    (r"^encoder\.embeddings\.cls_token|^encoder\.encoder\.layer", "a vision encoder-decoder captioner",
     "caption with transformers (VisionEncoderDecoderModel)"),
    (r"gated_cross_attn|^perceiver\.", "a Flamingo", "caption with open_flamingo"),
    (r"\.crossattention\.", "a captioner whose language model looks at the image itself (SmallCap and its kin)",
     "caption with the project that it comes from"),
    (r"^vision_model\.", "a CLIP of transformers", "pass its folder as --clip_model_type hf:FOLDER"),
    (r"(?:^|\.)(?:clip_project|prefix_project\w*|visual_mapping|mapping_network|project)\.(?:model|\d|weight|linear)",
     "a ClipCap whose language model is not a GPT-2 under the original's names", "train one here, with that as --lm"),
)  # fmt: skip
# Pairs of an image and a text tower in transformers, by `model_type`.
_PAIRS = (
    "align", "altclip", "chinese_clip", "clip", "clipseg", "flava", "groupvit", "metaclip_2", "siglip", "siglip2",
    "vision-text-dual-encoder",
)  # fmt: skip
_BEGINNING = 4096  # bytes of a file that tell what it is


def describe_wrong_file(path: Path) -> str | None:
    """What a file is, from its bytes: a feature pickle, or an archive of NumPy; None where they do not tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if beginning.startswith(b"PK") and path.suffix == ".npz":
        return "is an archive of NumPy: save its arrays as tensors by name: torch.save of a state dict"
    if path.name.endswith(SUFFIXES) and path.suffix != ".pt":
        return None
    return _features(path) if b"clip_embedding" in beginning else None


def describe_wrong_folder(path: Path) -> str | None:
    """What a folder without a checkpoint is; None where that is not known."""
    if (path / "adapter_config.json").is_file():
        return f"is a peft adapter of a language model, not a captioner: pass it as --lm {path}"
    if (path / "img_emb").is_dir():
        return _features(path)
    return how_to_join(path) if path.is_dir() else None


def describe_wrong_config(content: Mapping[str, Any], folder: Path) -> str | None:
    """Whose `config.json` it is, where it is not a captioner's: an encoder's or a language model's."""
    if CLIP_GPT in content:
        return f"is a CLIP-GPT, not a captioner: `clipcap caption-clip-gpt --load_pt {folder}` writes its captions"
    if "dual_encoder" in content:
        return _encoder(folder, "an encoder made by `clipcap contrastive`")
    kind = content.get("model_type")
    if not isinstance(kind, str):
        return None
    if kind in _PAIRS or kind.endswith("_vision_model") or {"image_size", "num_channels"} & content.keys():
        return _encoder(f"hf:{folder}", f"an encoder of transformers ({kind})")
    if "vision" in kind or "vision_config" in content:
        return f"is a model of transformers ({kind}) that describes images itself: caption with transformers"
    return f"is a language model of transformers ({kind}), not a captioner: pass it as --lm {folder}"


def describe_wrong_tensors(names: Collection[str], path: Path) -> str | None:
    """Whose tensors they are, by their names, where they are not a captioner's."""
    if any(name.startswith(("mapper.", "project_in.")) for name in names):
        return "is the weights of a clipcap checkpoint without its config.json: copy the whole folder"
    if "visual.conv1.weight" in names or "visual.proj" in names:
        return _encoder(path, "a CLIP in OpenAI's format")
    for pattern, what, way in _OTHERS:
        if any(re.search(pattern, name) for name in names):
            return f"is {what}, which cannot be loaded here: {way}"
    if any(name.endswith("wte.weight") and not name.startswith("gpt.") for name in names):
        return "is a GPT-2 alone, not a captioner: pass the folder it comes from as --lm"
    scripted = path.is_file() and is_scripted(path)
    return _encoder(path, "a TorchScript archive, as OpenAI publishes its CLIP") if scripted else None


def _encoder(name: object, what: str) -> str:
    return f"is {what}, not a captioner: pass it as --clip_model_type {name}"


def _features(path: Path) -> str:
    return f"is features of images, not a captioner: pass it as --features {path} (to train, as --data)"
