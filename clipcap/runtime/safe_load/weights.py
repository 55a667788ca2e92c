"""The weights of a network in whatever a training script has saved: found in their wrappers, under their prefixes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.runtime.safe_load.torch_file import is_finite, load_tensors, named_tensors
from clipcap.runtime.safe_load.torchscript import is_scripted, scripted_state
from clipcap.runtime.safe_load.unpickle import Named, PickledObject
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line, shown

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pt.tar", ".pth.tar", ".ckpt.tar")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
INDEX = ".index.json"  # of weights in several files, as transformers writes them
# Where training scripts and frameworks (Lightning, DeepSpeed, open_clip, timm, fairseq) put weights, the best first.
_WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "model_ema", "state_dict_ema", "ema",
)  # fmt: skip
# Parts of a name that torch.compile, FSDP and activation checkpointing set between others.
_BETWEEN = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_SHARD = re.compile(r"(.+)-(\d{3,6})-of-(\d{3,6})(\.\w+)")
_MOST_SHARDS = 10_000
# Forms of tensors that are described in a file and not read: sparse, quantised, without numbers.
_UNREAD = re.compile(r"torch\._utils\._rebuild_(\w+)")
_DEEPEST = 4  # wrappers within wrappers


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a file by name, and what else was in it."""

    tensors: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)  # by name, with its class
    prefix: str = ""  # that was taken off the names

    @property
    def note(self) -> str:
        """What to say about that; empty where there is nothing to say."""
        parts = [f"prefix {self.prefix!r} taken off"] * bool(self.prefix)
        if self.left_out:
            more = f" and {len(self.left_out) - 6} more" if len(self.left_out) > 6 else ""
            parts.append(f"left out {', '.join(self.left_out[:6])}{more}")
        return "; ".join(parts)


def read_weights_file(path: Path, anchors: Sequence[str], what: str = "checkpoint") -> StoredWeights:
    """The weights in a file of torch, of safetensors, or in the files that an index names; never runs their code.

    Args:
        path: the file.
        anchors: names of tensors that the network has (`visual.conv1.weight`): what the file sets before them is a
            prefix, and tensors without it belong to something else.
        what: it ought to be, for messages.
    Raises:
        ClipcapError: missing, damaged, hostile, without weights, or with numbers that are NaN or infinite.
    """
    try:
        content = _read(path)
    except ClipcapError:
        raise
    except OSError as error:
        raise ClipcapError(f"{path}: cannot be read ({error.strerror or one_line(error)}): check the file") from error
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise ClipcapError(
            f"{path}: not a {what} that can be loaded safely: truncated, another kind of file, or not of tensors "
            f"({one_line(error)[:120]})"
        ) from error
    tensors, left_out = _unwrapped(content, path)
    if not tensors:
        raise ClipcapError(f"{path}: holds no tensors by name, but {_content(content)}")
    found = _without_prefix(tensors, left_out, anchors)
    if all(tensor.numel() == 0 for tensor in found.tensors.values()):
        raise ClipcapError(
            f"{path}: its tensors are empty, as DeepSpeed's ZeRO leaves them: make one file of its parts: "
            f"python zero_to_fp32.py . weights.pt"
        )
    check_finite(found.tensors, path)
    return found


def check_floating(tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Refuse whole numbers in place of weights: those of a quantised network, whose scales lie elsewhere.

    Raises:
        ClipcapError: names the first tensor.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            raise ClipcapError(
                f"{path}: {shown(name[:100])} is stored as {str(tensor.dtype).removeprefix('torch.')}, as of a "
                f"quantised network: save its weights in floating-point numbers (dequantize)"
            )


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse weights that no training wants.

    Raises:
        ClipcapError: names the first tensor with NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ClipcapError(
                f"{path}: {shown(name[:100])} holds NaN or infinity: the training that wrote it had diverged; use an "
                f"earlier checkpoint"
            )


def _read(path: Path) -> Any:
    if path.name.endswith(INDEX):
        return _read_shards(path, _named_by(path))
    if parts := shard_of(path.name):
        return _read_shards(path, parts)
    return _read_one(path)


def shard_of(name: str) -> list[str] | None:
    """The names of all parts of the weights that a file is one part of; None where it is all of them."""
    match = _SHARD.fullmatch(name)
    if not match or not 1 <= int(match[3]) <= _MOST_SHARDS:
        return None
    stem, width, end = match[1], len(match[2]), match[4]
    return [f"{stem}-{number:0{width}d}-of-{match[3]}{end}" for number in range(1, int(match[3]) + 1)]


def _read_one(path: Path) -> Any:
    check_weights_file(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    return scripted_state(path) if is_scripted(path) else load_tensors(path)


def _named_by(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClipcapError(f"{index}: is not an index of weights: copy it again") from error


def _read_shards(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The tensors of the named files, which lie beside a path."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIXES):
            raise ClipcapError(f"{path}: names a file that does not lie beside it: copy it again")
        file = path.with_name(name)
        if not file.is_file():
            raise ClipcapError(f"{path}: {shown(name)} is not beside it: copy all files of the weights")
        try:
            part = _read_one(file)
        except SafetensorError as error:
            raise ClipcapError(f"{file}: damaged ({one_line(error)}): copy it again") from error
        tensors |= part if isinstance(part, dict) else {}
    return tensors


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, what else there is) in what was saved at `path`."""
    left_out: list[str] = []
    for _ in range(_DEEPEST):
        if isinstance(content, PickledObject):
            return named_tensors(content) or {}, left_out
        if isinstance(content, (list, tuple)):
            content = {str(number): part for number, part in enumerate(content)}
        if not isinstance(content, dict):
            return {}, left_out
        tensors = {
            name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        inner = _inner(content)
        if inner is None or len(tensors) > len(content) / 2:
            rest = [name for name in content if name not in tensors]
            _check_forms({name: content[name] for name in rest}, path)
            return tensors, [*left_out, *(_described(name, content[name]) for name in rest)]
        left_out += [_described(name, value) for name, value in content.items() if name != inner]
        content = content[inner]
    return {}, left_out


def _check_forms(beside: Mapping[Any, Any], path: Path) -> None:
    """Refuse weights of which some are in a form that is not read: without them the others are of no use.

    Raises:
        ClipcapError: names the first.
    """
    for name, value in beside.items():
        form = _UNREAD.fullmatch(value.name) if isinstance(value, PickledObject) else None
        if form is not None:
            raise ClipcapError(
                f"{path}: {shown(name)[:60]} is stored in a form of its own ({form[1][:40]}), not as plain numbers: "
                f"save it dense, dequantised and on a device"
            )


def _inner(content: dict) -> str | None:
    """The key under which the weights lie."""
    holding = [name for name, value in content.items() if isinstance(name, str) and _holds_weights(value)]
    known = [name for name in _WRAPPERS if name in holding]
    return known[0] if known else holding[0] if len(holding) == 1 else None


def _holds_weights(value: Any) -> bool:
    if isinstance(value, PickledObject):
        return named_tensors(value) is not None
    if not isinstance(value, dict):
        return False
    tensors = any(isinstance(part, Tensor) for part in value.values())
    return tensors or any(name in value and isinstance(value[name], (dict, PickledObject)) for name in _WRAPPERS)


def _described(name: Any, value: Any) -> str:
    """A key of a file, with the class of its value, unless that is a plain Python one."""
    text = shown(name)[:60] if isinstance(name, (str, int)) else "a key that is not text"
    known = isinstance(value, (PickledObject, Named))
    return f"{text} ({shown(value.name)[:60]})" if known else text


def _without_prefix(tensors: dict[str, Tensor], left_out: list[str], anchors: Sequence[str]) -> StoredWeights:
    plain = {_BETWEEN.sub("", name): tensor for name, tensor in tensors.items()}
    for name in plain:
        for anchor in anchors:
            prefix = name.removesuffix(anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                own = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
                rest = [shown(key)[:60] for key in plain if not key.startswith(prefix)]
                return StoredWeights(own, left_out + rest, prefix)
    return StoredWeights({name.removeprefix("module."): value for name, value in plain.items()}, left_out)


def _content(found: object) -> str:
    if isinstance(found, PickledObject):
        return f"an object of {shown(found.name)[:60]}"
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    networks = [shown(name)[:40] for name, value in found.items() if isinstance(name, str) and _holds_weights(value)]
    if len(networks) > 1:
        return f"several networks ({', '.join(networks[:5])}): save one of them alone"
    return f"a dictionary with the keys {', '.join(shown(key)[:40] for key in list(found)[:5]) or '(none)'}"
