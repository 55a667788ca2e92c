"""The `config.yml` of the original text-to-image project, read unchanged, as options of `clipcap draw`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError

# Their names → ours. Those with None describe the models and are compared with what was loaded.
_OPTIONS: dict[str, str | None] = {
    "transformer_pretrained_model_name": "text_model",
    "bert_hidden_size": None,
    "biggan_pretrained_model_name": "generator",
    "biggan_emb_size": None,
    "num_imagenet_classes": None,
    "path_to_mapping_model_ckpt": "load_pt",
    "max_seq_length": "max_tokens",
    "display_pause_time": "pause",
    "image_width": "width",
    "torch_device": "device",
    "seed": "seed",
    "interactive": "interactive",
    "texts": None,
}
_NUMBERS = {"max_seq_length", "image_width", "seed", "bert_hidden_size", "biggan_emb_size", "num_imagenet_classes"}
_LARGEST = 1 << 20  # bytes


def read_author_config(name: str) -> tuple[dict[str, Any], list[str], dict[str, int]]:
    """Read a `config.yml`.

    Returns:
        options of `DrawConfig`, the texts, and the sizes that it states (see `draw`).
    Raises:
        ClipcapError: it is missing or no YAML, has unknown keys, or a value of another kind.
    """
    import yaml

    path = Path(name).expanduser()
    try:
        if path.stat().st_size > _LARGEST:
            raise ClipcapError(f"--config {name}: is larger than {_LARGEST:,} bytes: no config.yml")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClipcapError(f"--config {name}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ClipcapError(f"--config {name}: is not YAML ({reason})") from error
    if not isinstance(content, dict):
        raise ClipcapError(f"--config {name}: holds no options")
    unknown = [str(key) for key in content if key not in _OPTIONS]
    if unknown:
        raise ClipcapError(f"--config {name}: unknown keys: {', '.join(unknown[:5])}; known: {', '.join(_OPTIONS)}")
    content = {key: _checked(key, value, name) for key, value in content.items() if value is not None}
    options = {ours: content[key] for key, ours in _OPTIONS.items() if ours and key in content}
    mapping = options.get("load_pt")
    if mapping and not Path(mapping).expanduser().exists() and (path.parent / mapping).exists():
        options["load_pt"] = str(path.parent / mapping)
    sizes = {
        key: content[key] for key in ("bert_hidden_size", "biggan_emb_size", "num_imagenet_classes") if key in content
    }
    return options, content.get("texts", []), sizes


def _checked(key: str, value: Any, name: str) -> Any:
    if key == "texts":
        right = isinstance(value, list) and all(isinstance(text, str) for text in value)
    elif key == "interactive":
        right = isinstance(value, bool)
    elif key in _NUMBERS:
        right = isinstance(value, int) and not isinstance(value, bool)
    elif key == "display_pause_time":
        right = isinstance(value, int | float) and not isinstance(value, bool)
        value = max(float(value), 0.02) if right else value
    else:
        right = isinstance(value, str)
    if not right:
        raise ClipcapError(f"--config {name}: {key} cannot be {str(value)[:40]!r}")
    return value
