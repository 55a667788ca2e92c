"""The native checkpoint: a folder with `config.json`, `model.safetensors`, where needed a tokenizer, and a card.

Only what was trained is stored: the mapper alone when the language model was frozen, its LoRA adapter or all of
its weights where it was tuned. Writing is atomic: a reader finds the old checkpoint or the new one, never half.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import clipcap
from clipcap.errors import ClipcapError
from clipcap.models.adapters import ADAPTER
from clipcap.models.base import PrefixLM
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.distilvit2_folder import is_distilvit2
from clipcap.models.gpt2 import GPT2, gpt2_of, load_gpt2
from clipcap.models.gpt2_tokenizer import load_gpt2_tokenizer
from clipcap.models.language_model import (
    check_vocabulary,
    is_gguf,
    lm_of,
    load_lm,
    load_tokenizer,
    token_embeddings,
)
from clipcap.models.limits import check_mapper_sizes, check_sizes, checked_lm_config
from clipcap.models.original import HEADS, load_reference
from clipcap.models.weight_files import is_part_of_matrices, weights_in
from clipcap.models.wrong_file import describe_wrong_config, describe_wrong_folder
from clipcap.runtime.bundled import CAPTIONER, LM, bundled
from clipcap.runtime.files import best_checkpoint_in, current_path, folders_in, replaced_folder, writing
from clipcap.runtime.heavy_imports import transformers_package
from clipcap.runtime.hub import absolute, cached_folder, fetch_repository, is_local
from clipcap.runtime.json_text import to_json
from clipcap.runtime.safe_load.weights import SUFFIXES, check_finite, check_floating
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import in_short, one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS, CARD, TOKENIZER = "config.json", "model.safetensors", "README.md", "tokenizer"
HERE = "."  # what the card's snippet loads: the folder that it lies in
MAPPER = "mapper."  # beginning of the names of its tensors
Config = TypeVar("Config")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, in evaluation mode, with a line that says what was read."""

    model: ClipCaptionModel
    tokenizer_name: str  # hub name or folder
    path: Path
    summary: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the language model; loaded when it is first asked for, since an export can do without.

        Raises:
            ClipcapError: it is damaged, or not that of the language model.
        """
        folder = cached_folder(bundled(self.tokenizer_name, LM)) if isinstance(self.model.lm, GPT2) else None
        own = None if folder is None else load_gpt2_tokenizer(folder)
        found = load_tokenizer(self.tokenizer_name) if own is None else cast("Tokenizer", own)
        check_vocabulary(self.model.lm, found, self.tokenizer_name)
        return found


def save_checkpoint(model: ClipCaptionModel, tokenizer: Tokenizer, folder: Path, note: str = "") -> Path:
    """Write a native checkpoint, replacing an older one at once.

    Args:
        model: as trained; what it stores follows `model.config`.
        tokenizer: stored where the language model is not a hub name.
        folder: where to.
        note: lines for the model card (data, scores).
    Raises:
        ClipcapError: `folder` holds something else, or cannot be written; what was there is untouched.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder / CONFIG).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ClipcapError(f"{folder}: exists and is not a checkpoint, so it is not replaced: choose another name")
    with writing(folder), replaced_folder(folder) as draft:
        write_checkpoint(model, tokenizer, draft, note)
    return folder


def write_checkpoint(model: ClipCaptionModel, tokenizer: Tokenizer, folder: Path, note: str = "") -> None:
    """Write the files of a native checkpoint into an existing folder."""
    config = model.config
    write_files(folder, model, "model", stored_state(model), model_card(model, note))
    if config.stores_lm or is_local(config.lm) or is_gguf(config.lm):
        tokenizer.save_pretrained(folder / TOKENIZER)


def write_files(folder: Path, model: PrefixLM, key: str, state: Mapping[str, torch.Tensor], card: str) -> None:
    """Write what the checkpoints of all models with a prefix have alike: weights, `config.json` and the card.

    Args:
        folder: exists.
        model: of which `config.json` describes the sizes, and the language model where it is stored.
        key: of the model's configuration in `config.json`.
        state: the tensors to store.
        card: text of the model card.
    """
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read it
    content = {"format_version": FORMAT_VERSION, "clipcap_version": clipcap.__version__}
    content |= {"torch_version": torch.__version__, "transformers_version": transformers_package().__version__}
    content |= {key: asdict(model.config)}
    if model.config.stores_lm:
        content["lm_config"] = model.lm.config.to_dict()
    (folder / CONFIG).write_text(to_json(content, indent=2, default=str) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def stored_state(model: ClipCaptionModel) -> dict[str, torch.Tensor]:
    """The tensors a checkpoint holds; tied ones once (GPT-2's head is its token embedding)."""
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        of_adapter = model.config.tune == "lora" and "lora_" in name
        if name.startswith("mapper.") or model.config.stores_lm or of_adapter:
            if tensor.data_ptr() not in seen:
                state[name] = tensor
            seen.add(tensor.data_ptr())
    return state


def find_checkpoint(path: str | Path, wanted: str = "a folder that `clipcap train` wrote, or a .pt file") -> Path:
    """Resolve what `--load_pt` and `--weights_dir` take: a native folder, a `.pt`, or a folder holding one.

    Args:
        path: of one, or of a folder with several (see `first_of`).
        wanted: what it ought to be, for the error.
    Raises:
        ClipcapError: no such checkpoint.
    """
    path = current_path(Path(path).expanduser())
    if path.is_file() and path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        return path.parent
    if path.is_file() or (path / CONFIG).is_file():
        return path
    if (path / ADAPTER).is_file():
        raise ClipcapError(f"{path}: {describe_wrong_folder(path)}")
    if weights := weights_in(path):  # of the original, or of another project, in a container of a framework
        return weights
    if not path.is_dir():
        if path.is_symlink() or path.exists():
            check_weights_file(path)
        raise ClipcapError(f"{path}: no such checkpoint ({wanted}){_beside(path)}")
    found = best_checkpoint_in(path, _is_checkpoint)
    if found is None:
        nothing = f"neither a checkpoint ({CONFIG}, {WEIGHTS}) nor a folder holding one or a .pt"
        raise ClipcapError(f"{path}: {describe_wrong_folder(path) or nothing}")
    return found if found.is_file() or (found / CONFIG).is_file() else weights_in(found) or found


def _is_checkpoint(path: Path) -> bool:
    if is_part_of_matrices(path):
        return False
    return (
        path.name.endswith(SUFFIXES) or (path / CONFIG).is_file() or (path.is_dir() and weights_in(path) is not None)
    )


def _beside(path: Path) -> str:
    """Which checkpoints lie where one was looked for, for the error; empty where there are none."""
    try:
        names = [found.name for found in folders_in(path.parent, _is_checkpoint)]
    except OSError:
        return ""
    if path.stem in names:  # `x.pt`, as the original calls it, of the folder `x`
        return f"; did you mean {path.with_suffix('')}?"
    return f"; {path.parent} has {in_short(', '.join(names))}" if names else ""


def load_checkpoint(
    path: str | Path,
    lm: str | None = None,
    num_heads: int | None = None,
    normalize_prefix: bool | None = None,
    encoder: str | None = None,
    decode_only: bool = False,
) -> Loaded:
    """Load a native or a reference checkpoint, whichever `path` is.

    Args:
        path: as `find_checkpoint` takes it, or a hub name, or `demo`, the bundled one.
        lm: of a `.pt` (default: gpt2), or where a checkpoint without language model finds its own now.
        num_heads: of a `.pt`'s transformer mapper (default: 8).
        normalize_prefix: whether a `.pt` was trained on normalised embeddings.
        encoder: encoder of its features (default: as stored, or guessed from the width).
        decode_only: load what only decodes on a CPU: a GPT-2 without transformers, which starts sooner.

    Raises:
        ClipcapError: it is not there, damaged, or does not fit, or an argument contradicts what it stores; the
            message says what was expected and found.
    """
    path = find_checkpoint(fetch_repository(bundled(str(path), CAPTIONER), "checkpoint", "--load_pt"))
    if is_distilvit2(path):
        if given := [name for name, value in (("lm", lm), ("num_heads", num_heads)) if value is not None]:
            raise ClipcapError(f"{path}: is a folder of distilvit2, which says it all: leave out --{given[0]}")
        from clipcap.models.distilvit2 import load_distilvit2

        model, summary = load_distilvit2(path)
        return Loaded(model, str(path), path, summary)
    if path.is_dir():
        return _load_native(path, lm, num_heads, normalize_prefix, encoder, decode_only)
    lm = absolute(lm or "gpt2")
    model, summary = load_reference(path, lm, num_heads or HEADS, bool(normalize_prefix), encoder)
    return Loaded(model, lm, path, summary)


def read_config(folder: Path) -> tuple[ModelConfig, PretrainedConfig | None]:
    """`config.json` of a native checkpoint: the model's configuration and, where stored, the language model's.

    Raises:
        ClipcapError: it is damaged, edited, or of a newer clipcap.
    """
    path = folder / CONFIG
    with _reading(path):
        options, lm_config = _read_options(folder)
        if lm_config is not None:
            lm_config = checked_lm_config(transformers_package().AutoConfig.for_model(**lm_config), str(path))
    return options, lm_config


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipcapError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClipcapError(f"{path}: not the configuration of a clipcap checkpoint: {one_line(error)}") from error


def _read_options(folder: Path) -> tuple[ModelConfig, Any]:
    """The model's configuration and, where stored, that of its language model as it is in the file."""
    path = folder / CONFIG
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if other := describe_wrong_config(content, folder):
            raise ClipcapError(f"{folder}: {other}")
        version, options = content["format_version"], dict(content["model"])
        if version > FORMAT_VERSION:
            raise ClipcapError(
                f"{path}: written in format {version} by a newer clipcap; this one reads {FORMAT_VERSION}"
            )
    return checked_options(ModelConfig, options, path), content.get("lm_config")


def checked_options(config_class: type[Config], options: dict[str, Any], path: Path) -> Config:
    """The options that the file at `path` stores, as the config they are of.

    Raises:
        ClipcapError: it has no such option, or not with this value.
    """
    if not isinstance(options, dict):
        raise ClipcapError(f"{path}: its options are not an object: the file was edited, or is damaged")
    hints = get_type_hints(config_class)
    for name, value in options.items():
        if name not in hints:
            raise ClipcapError(f"{path}: unknown option {name!r}: the file was edited, or made by a newer clipcap")
        if not _fits(value, hints[name]):
            raise ClipcapError(f"{path}: option {name} cannot be {value!r}: the file was edited, or is damaged")
    try:
        return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
    except ClipcapError as error:
        raise ClipcapError(f"{path}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is of an option's type; a tuple is a list there."""
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(type(part) is get_args(hint)[0] for part in value)
    return value in get_args(hint) if get_origin(hint) is Literal else type(value) in (get_args(hint) or (hint,))


def _load_native(
    path: Path,
    lm: str | None,
    num_heads: int | None,
    normalize_prefix: bool | None,
    encoder: str | None,
    decode_only: bool,
) -> Loaded:
    config, lm_config = _read_options(path) if decode_only else read_config(path)
    asked: dict[str, bool | int | None] = {"normalize_prefix": normalize_prefix}
    if config.mapping_type == "transformer":
        asked["num_heads"] = num_heads
    for name, value in asked.items():
        if value not in (None, getattr(config, name)):
            raise ClipcapError(
                f"{path}: was trained with {name} {getattr(config, name)}, not {value}, and says so itself: "
                f"leave out --{name}, which is for a .pt of the original"
            )
    if lm is not None and lm_config is not None and absolute(lm) != absolute(config.lm):
        raise ClipcapError(
            f"{path}: holds its own language model (from {config.lm}) and its tokenizer, so that --lm {lm} would "
            f"change nothing: leave it out"
        )
    config = replace(config, lm=absolute(lm) if lm else config.lm, encoder=encoder or config.encoder)
    state = read_weights(path)
    check_sizes(config, state, path / CONFIG)
    base = _decoding_lm(config, lm_config, state) if decode_only else None
    if base is None:
        lm_config = read_config(path)[1]
        base = load_lm(config.lm) if lm_config is None else lm_of(lm_config, path / CONFIG, state.values())
    check_mapper_sizes(config, token_embeddings(base).weight.shape[1], state, MAPPER, path)
    model = ClipCaptionModel(config, base.float())
    load_state(model, state, path)
    tokenizer = str(path / TOKENIZER) if (path / TOKENIZER).is_dir() else config.lm
    summary = f"{path}: {config.mapping_type} mapper, prefix {config.prefix_length}, language model {config.lm}"
    return Loaded(model.eval(), tokenizer, path, summary)


def _decoding_lm(config: ModelConfig, lm_config: Any, state: dict[str, torch.Tensor]) -> PreTrainedModel | None:
    """A GPT-2 without transformers, where the checkpoint's is one that reads no prompts and has no adapter."""
    if config.tune == "lora" or config.prompts != "none":
        return None
    if lm_config is not None:
        found = gpt2_of(lm_config, state, "lm.")
    else:
        folder = cached_folder(bundled(config.lm, LM))
        found = None if folder is None else load_gpt2(folder)
    return cast("PreTrainedModel | None", found)  # of which it does what decoding asks for


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a native checkpoint.

    Raises:
        ClipcapError: they are missing, damaged, or not finite.
    """
    path = folder / WEIGHTS
    if path.exists():
        check_weights_file(path)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ClipcapError(f"{path}: missing or damaged ({one_line(error)}): train or copy it again") from error
    check_finite(state, path)
    return state


def load_state(model: ClipCaptionModel, state: dict[str, torch.Tensor], path: Path) -> None:
    """Fill in a checkpoint's tensors; all of what it stores, nothing else.

    Raises:
        ClipcapError: a tensor is missing, unknown or of another size (the message names both sizes).
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise ClipcapError(f"{path}: unknown tensor {name}: the checkpoint is of another model")
        if own[name].shape != tensor.shape:
            raise ClipcapError(
                f"{path}: {name} is {list(tensor.shape)} there and {list(own[name].shape)} here: "
                f"the language model (--lm {model.config.lm}) or the mapper is of another size"
            )
    check_floating(((name, state[name]) for name in state if own[name].is_floating_point()), path)
    missing = sorted(set(stored_state(model)) - set(state))
    if missing:
        raise ClipcapError(f"{path}: tensor {missing[0]} is missing: the checkpoint is incomplete")
    model.load_state_dict(state, strict=False)


def read_card(path: Path) -> str:
    """The model card of a checkpoint's folder; empty where there is none."""
    card = path / CARD
    try:
        return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    except OSError:
        return ""


def name_in_card(folder: Path, name: str, card: str = "") -> None:
    """Let the snippet in the card of a folder load it from the hub.

    Args:
        name: of the repository.
        card: in place of the folder's own.
    """
    text = card or read_card(folder)
    for place in (HERE, "this folder"):  # in cards of older checkpoints
        text = text.replace(f'from_pretrained("{place}")', f'from_pretrained("{name}")')
    (folder / CARD).write_text(text, encoding="utf-8")


def model_card(model: ClipCaptionModel, note: str = "") -> str:
    """A README for people who find the checkpoint, with the metadata the hub shows."""
    c = model.config
    tuned = {"none": "frozen", "lora": f"tuned with LoRA of rank {c.lora_rank}", "full": "tuned"}[c.tune]
    sizes = f"{c.prefix_length} positions"
    if c.mapping_type == "transformer":
        sizes += f", {c.prefix_length_clip} CLIP tokens, {c.num_layers} layers, {c.num_heads} heads"
    return f"""---
library_name: clipcap
pipeline_tag: image-to-text
tags: [clipcap, image-captioning]
---
# Image captioner

Made with clipcap {clipcap.__version__} (ClipCap, arXiv 2111.09734).

- encoder: {c.encoder or "not known"} ({c.clip_dim} wide{", normalised" if c.normalize_prefix else ""}), frozen
- mapper: {c.mapping_type}, {sizes}
- language model: {c.lm}, {tuned}
{note}
```python
from clipcap import Captioner

print(Captioner.from_pretrained("{HERE}")("photo.jpg"))
```
"""
