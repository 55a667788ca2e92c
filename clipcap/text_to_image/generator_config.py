"""The sizes of a BigGAN-deep: read from `config.json`, checked, and those of the three published generators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.text_to_image.generator import GeneratorConfig

# Upper bounds of each size; a configuration beyond is damaged or hostile.
_LIMITS = {
    "output_dim": 4096,
    "z_dim": 4096,
    "class_embed_dim": 4096,
    "channel_width": 1024,
    "num_classes": 1_000_000,
    "n_stats": 10_001,
}
_MOST_LAYERS = 64


def _deep(resolution: int, widths: str) -> GeneratorConfig:
    """A published generator: pairs of blocks of which the second doubles the pixels; `widths` are the multiples."""
    steps = [int(width) for width in widths.split()]
    layers = tuple((bool(i % 2), steps[i], steps[i + 1]) for i in range(len(steps) - 1))
    return GeneratorConfig(resolution, 128, 128, 128, 1000, layers, 8, 1e-4, 51)


PUBLISHED = {
    "biggan-deep-128": _deep(128, "16 16 16 16 8 8 4 4 2 2 1"),
    "biggan-deep-256": _deep(256, "16 16 16 16 8 8 8 8 4 4 2 2 1"),
    "biggan-deep-512": _deep(512, "16 16 16 16 8 8 8 8 4 4 2 2 1 1 1"),
}


def parse_config(path: Path) -> GeneratorConfig:
    """Read a `config.json`.

    Raises:
        ClipcapError: it is missing, is not JSON, or holds names or sizes that no BigGAN-deep has.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClipcapError(f"{path}: no such file: it belongs beside the weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ClipcapError(f"{path}: is not JSON: fetch it again") from error
    if not isinstance(content, dict):
        raise ClipcapError(f"{path}: is not the configuration of a generator")
    known = set(GeneratorConfig.__dataclass_fields__)
    for names, what in ((known - content.keys(), "lacks"), (content.keys() - known, "holds the unknown")):
        if names:
            raise ClipcapError(f"{path}: {what} {', '.join(sorted(map(str, names))[:5])}")
    for name, most in _LIMITS.items():
        _whole_number(content[name], 2 if name == "n_stats" else 1, most, f"{path}: {name}")
    position, eps = content["attention_layer_position"], content["eps"]
    _whole_number(position, 0, _MOST_LAYERS, f"{path}: attention_layer_position")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ClipcapError(f"{path}: eps must lie between 0 and 1, got {str(eps)[:40]}")
    layers = _layers(content["layers"], content, path)
    return GeneratorConfig(**(content | {"layers": layers, "eps": float(eps)}))


def _layers(layers: Any, content: dict[str, Any], path: Path) -> tuple[tuple[bool, int, int], ...]:
    """The blocks, each of which must continue the one before."""
    if not isinstance(layers, list) or not 1 <= len(layers) <= _MOST_LAYERS:
        raise ClipcapError(f"{path}: layers must be a list of 1 to {_MOST_LAYERS} blocks [upsample, in, out]")
    width, side = 16, 4
    for number, layer in enumerate(layers):
        if not isinstance(layer, list) or len(layer) != 3 or not isinstance(layer[0], bool):
            raise ClipcapError(f"{path}: layers[{number}] is not [upsample, in, out]")
        for value in layer[1:]:
            _whole_number(value, 1, 64, f"{path}: layers[{number}]")
        if layer[1] != width or (layer[2] not in (width, width // 2)):
            raise ClipcapError(
                f"{path}: layers[{number}] goes from {layer[1]} to {layer[2]} after a width of {width}"
            )
        width, side = layer[2], side * (2 if layer[0] else 1)
    if width != 1 or side != content["output_dim"]:
        raise ClipcapError(
            f"{path}: its layers end at width {width} and {side} pixels, not at 1 and {content['output_dim']}"
        )
    return tuple((upsample, channels_in, channels_out) for upsample, channels_in, channels_out in layers)


def _whole_number(value: Any, least: int, most: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ClipcapError(f"{what} must be a whole number from {least} to {most}, got {str(value)[:40]}")
