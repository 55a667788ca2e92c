"""The mapping from hidden states of a text model to class embeddings: one linear layer, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import clipcap
from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import DEMO, TEXT_MAPPING, bundled
from clipcap.runtime.files import current_path, replaced_folder, writing
from clipcap.runtime.hub import absolute
from clipcap.runtime.safe_load.torch_file import load_tensors

CONFIG, WEIGHTS, CARD, FORMAT = "config.json", "model.safetensors", "README.md", "text-to-image mapping"
_WEIGHT, _BIAS = "0.weight", "0.bias"  # as the original's training wrote them


@dataclass(frozen=True)
class MappingFacts:
    """What belongs to a mapping: the models around it and how it was trained; None where a file does not say."""

    text_model: str | None = None
    generator: str | None = None
    max_tokens: int = 15
    mask: bool = False
    solver: str | None = None
    target: str | None = None
    rows: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextMapping:
    """A mapping in memory.

    Attributes:
        weight: [Z, H].
        bias: [Z].
        facts: of its training.
        name: where it was read.
    """

    weight: Tensor
    bias: Tensor
    facts: MappingFacts
    name: str = ""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] → rows of class embeddings [..., Z]."""
        return nn.functional.linear(hidden, self.weight, self.bias)


def load_mapping(name: str) -> TextMapping:
    """Read a mapping: a folder of `train-draw`, or a `.pth` of the original's training; `demo` is the bundled one.

    Raises:
        ClipcapError: the file is missing, or is not such a mapping.
    """
    path = current_path(Path(bundled(name, TEXT_MAPPING)).expanduser())
    if path.is_file():
        return _from_state(_catalyst(path), MappingFacts(), str(path))
    if not (path / CONFIG).is_file():
        what = "the folder holds no mapping" if path.is_dir() else "no such file or folder"
        raise ClipcapError(f"--load_pt {name}: {what}: pass a folder made by `clipcap train-draw`, or a .pth")
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ClipcapError(f"--load_pt {name}: not a mapping of text to pictures: pass one made by train-draw")
        facts = MappingFacts(**content["mapping"])
        if not isinstance(facts.max_tokens, int) or not 3 <= facts.max_tokens <= 512:
            raise ValueError("max_tokens out of range")
        state = load_file(path / WEIGHTS)
    except ClipcapError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ClipcapError(f"--load_pt {name}: is damaged ({reason}): train it again") from error
    return _from_state(state, facts, name)


def _catalyst(path: Path) -> Mapping[str, Tensor]:
    try:
        content = load_tensors(path)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and more
        raise ClipcapError(
            f"--load_pt {path}: cannot be loaded safely: a damaged file, or one with code in it, which is not run"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ClipcapError(f"--load_pt {path}: holds no mapping: its model_state_dict is missing")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _from_state(state: Mapping[str, Any], facts: MappingFacts, name: str) -> TextMapping:
    weight, bias = state.get(_WEIGHT), state.get(_BIAS)
    if set(state) != {_WEIGHT, _BIAS} or not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise ClipcapError(
            f"--load_pt {name}: holds {', '.join(map(str, list(state)[:5]))}, not {_WEIGHT} and {_BIAS}"
        )
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise ClipcapError(
            f"--load_pt {name}: {_WEIGHT} {list(weight.shape)} and {_BIAS} {list(bias.shape)} do not fit"
        )
    return TextMapping(weight.float(), bias.float(), facts, name)


def save_mapping(mapping: TextMapping, folder: Path) -> Path:
    """Write a mapping as a folder: config.json, model.safetensors, and a card.

    Raises:
        ClipcapError: the place is taken by something else, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder / CONFIG).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ClipcapError(
            f"--out_dir {folder}: exists and is not a mapping, so it is not replaced: choose another name"
        )
    facts = asdict(mapping.facts)
    for part in ("text_model", "generator"):
        facts[part] = absolute(facts[part]) if facts[part] not in (None, DEMO) else facts[part]
    content = {"format": FORMAT, "format_version": 1, "clipcap_version": clipcap.__version__, "mapping": facts}
    with writing(folder), replaced_folder(folder) as draft:
        save_file({_WEIGHT: mapping.weight.contiguous(), _BIAS: mapping.bias.contiguous()}, draft / WEIGHTS)
        (draft / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read it
        (draft / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (draft / CARD).write_text(_card(mapping), encoding="utf-8")
    return folder


def _card(mapping: TextMapping) -> str:
    facts = mapping.facts
    figures = "\n".join(f"- {name}: {value}" for name, value in facts.figures.items())
    return f"""---
library_name: clipcap
pipeline_tag: text-to-image
tags: [clipcap, biggan]
---
# Mapping from text to class embeddings

Made with clipcap {clipcap.__version__}: one linear layer from the last hidden states of a text model
({mapping.weight.shape[1]} wide) to the class embeddings of a BigGAN-deep ({mapping.weight.shape[0]} wide).

- text model: {facts.text_model or "not known"}
- tokens: {facts.max_tokens}, padding {"hidden" if facts.mask else "read"}
- generator: {facts.generator or "not known"}
- solver: {facts.solver or "not known"}, target: {facts.target or "not known"}, rows: {facts.rows or "not known"}

{figures}

```bash
clipcap draw "a sentence" --load_pt THIS_FOLDER --out sentence.gif
```
"""
