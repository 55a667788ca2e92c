"""What was passed as a captioner and is none: what it is instead, and the flag it belongs to."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

CLIP_GPT = "clip_gpt"  # key of the configuration of one
_BEGINNING = 4096  # bytes of a file that tell what it is


def describe_wrong_file(path: Path) -> str | None:
    """What a file is, from its bytes: a feature pickle, or an archive of OpenAI's CLIP; None where they do not tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # TorchScript has constants, which torch.save does not write
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        return _encoder(path, "a TorchScript archive, as OpenAI publishes its CLIP") if scripted else None
    return _features(path) if b"clip_embedding" in beginning else None


def describe_wrong_folder(path: Path) -> str | None:
    """What a folder without a checkpoint is; None where that is not known."""
    return _features(path) if (path / "img_emb").is_dir() else None


def describe_wrong_config(content: Mapping[str, Any], folder: Path) -> str | None:
    """Whose `config.json` it is, where it is not a captioner's: an encoder's or a language model's."""
    if CLIP_GPT in content:
        return f"is a CLIP-GPT, not a captioner: `clipcap caption-clip-gpt --load_pt {folder}` writes its captions"
    if "dual_encoder" in content:
        return _encoder(folder, "an encoder made by `clipcap contrastive`")
    kind = content.get("model_type")
    if not isinstance(kind, str):
        return None
    if "vision" in kind or "vision_config" in content:
        return _encoder(f"hf:{folder}", f"an encoder of transformers ({kind})")
    return f"is a language model of transformers ({kind}), not a captioner: pass it as --lm {folder}"


def describe_wrong_tensors(names: Collection[str], path: Path) -> str | None:
    """Whose tensors they are, by their names, where they are not a captioner's."""
    if "visual.conv1.weight" in names or "visual.proj" in names:
        return _encoder(path, "a CLIP in OpenAI's format")
    if any(name.endswith("wte.weight") and not name.startswith("gpt.") for name in names):
        return "is a GPT-2 alone, not a captioner: pass the folder it comes from as --lm"
    return None


def _encoder(name: object, what: str) -> str:
    return f"is {what}, not a captioner: pass it as --clip_model_type {name}"


def _features(path: Path) -> str:
    return f"is features of images, not a captioner: pass it as --features {path} (to train, as --data)"
