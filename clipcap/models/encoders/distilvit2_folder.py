"""The folder of a captioner of distilvit2: its configuration and its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.runtime.safe_load.weights import check_finite
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line

MODEL_TYPE = "prefix_conditioning_vlm"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_distilvit2(folder: Path) -> bool:
    """Whether a folder is a checkpoint of distilvit2."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def read_distilvit2(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its configuration and its tensors, without the prefix that training on several GPUs leaves.

    Raises:
        ClipcapError: they are missing, damaged, or not finite.
    """
    path = folder / WEIGHTS
    check_weights_file(path)
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = {name.removeprefix("module."): tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise ClipcapError(f"{path}: missing or damaged ({one_line(error)}): copy the folder again") from error
    if not all(isinstance(content.get(f"{part}_config"), dict) for part in ("vision", "text")):
        raise ClipcapError(f"{folder / CONFIG}: lacks its vision_config or text_config: copy the folder again")
    check_finite(state, path)
    return content, state
