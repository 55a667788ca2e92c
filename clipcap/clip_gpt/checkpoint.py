"""CLIP-GPT's checkpoint: a folder with `config.json`, `model.safetensors`, the tokenizer with its marks, and a card.

Stored is what was trained: the whole language model, or its LoRA adapter and the marks' token embeddings, and the
projections where there are any. Folders in the layout of LAION's General-GPT are read too: a GPT-2 of transformers
whose tokenizer has the four marks, and nothing besides.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

import clipcap
from clipcap.clip_gpt.config import ClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import MARKS, STOPPED, Layout
from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import (
    CONFIG,
    FORMAT_VERSION,
    TOKENIZER,
    checked_options,
    find_checkpoint,
    read_weights,
    write_files,
)
from clipcap.models.language_model import lm_of, load_lm, load_tokenizer, token_embeddings
from clipcap.models.limits import checked_lm_config
from clipcap.models.wrong_file import CLIP_GPT
from clipcap.runtime.files import replaced_folder, writing
from clipcap.runtime.hub import absolute, fetch_repository
from clipcap.runtime.text import one_line

MADE_BY = "a folder made by `clipcap train-clip-gpt`"
TOKENS = "token_embeddings"  # of the marks, where the language model's are not stored


class LoadedClipGPT(NamedTuple):
    """A checkpoint in memory, in evaluation mode, with a line that says what was read."""

    model: ClipGPT
    tokenizer: Tokenizer
    path: Path
    summary: str


def write_clip_gpt(model: ClipGPT, tokenizer: Tokenizer, folder: Path, note: str = "") -> None:
    """Write the files of a checkpoint into an existing folder; `note` goes into its card."""
    write_files(folder, model, CLIP_GPT, stored_state(model), _card(model.config, note))
    tokenizer.save_pretrained(folder / TOKENIZER)


def save_clip_gpt(model: ClipGPT, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write a checkpoint, replacing an older one at once.

    Raises:
        ClipcapError: `folder` holds something else, or cannot be written; what was there is untouched.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder / CONFIG).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ClipcapError(f"{folder}: exists and is not a checkpoint, so it is not replaced: choose another name")
    with writing(folder), replaced_folder(folder) as draft:
        write_clip_gpt(model, tokenizer, draft)
    return folder


def stored_state(model: ClipGPT) -> dict[str, Tensor]:
    """The tensors a checkpoint holds; tied ones once."""
    own = model.state_dict()
    if model.config.stores_lm:
        first = {tensor.data_ptr(): name for name, tensor in reversed(own.items())}
        return {name: tensor for name, tensor in own.items() if first[tensor.data_ptr()] == name}
    state = {k: v for k, v in own.items() if k.startswith("project_") or "lora_" in k}
    marks = [weight[model.layout.marks] for weight in model.token_weights()]  # [4, E], [4, H]
    return state | {f"{TOKENS}.{number}": rows for number, rows in enumerate(marks)}


def restore_clip_gpt(model: ClipGPT, folder: Path) -> None:
    """Fill in a checkpoint's tensors; all of what it stores, nothing else.

    Raises:
        ClipcapError: they are damaged, or one is missing, unknown or of another size (the message names both sizes).
    """
    state, wanted = read_weights(folder), stored_state(model)
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            raise ClipcapError(f"{folder}: tensor {name} is missing: the checkpoint is incomplete")
        if name not in wanted:
            raise ClipcapError(f"{folder}: unknown tensor {name}: the checkpoint is of another model")
        if state[name].shape != wanted[name].shape:
            raise ClipcapError(
                f"{folder}: {name} is {list(state[name].shape)} there and {list(wanted[name].shape)} here: the "
                f"language model (--lm {model.config.lm}) is of another size"
            )
    with torch.no_grad():
        for number, weight in enumerate(model.token_weights()):
            if (rows := state.pop(f"{TOKENS}.{number}", None)) is not None:
                weight[model.layout.marks] = rows.to(weight)
    model.load_state_dict(state, strict=False)


def load_clip_gpt(
    path: str | Path, lm: str | None = None, encoder: str | None = None, normalize_prefix: bool | None = None
) -> LoadedClipGPT:
    """Load a CLIP-GPT.

    Args:
        path: a checkpoint folder, a folder holding one, a hub name, or a folder in General-GPT's layout.
        lm: where a checkpoint without language model finds its own now.
        encoder: of its features, where it lies elsewhere, or the file does not name it, as in General-GPT's layout.
        normalize_prefix: whether a folder in General-GPT's layout was trained on normalised embeddings.
    Raises:
        ClipcapError: it is not there, damaged, something else, or an argument contradicts what it stores.
    """
    path = find_checkpoint(fetch_repository(str(path), "checkpoint", "--load_pt"), MADE_BY)
    content = _read_config(path)
    if CLIP_GPT in content:
        return _load_native(path, content, lm, encoder, normalize_prefix)
    return _load_plain(path, lm, encoder, normalize_prefix)


def _read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a CLIP-GPT, or of a language model."""
    if path.is_file():
        raise ClipcapError(f"{path}: is a file, and a CLIP-GPT is a folder: a .pt is for `clipcap predict --load_pt`")
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        captioner, known = "model" in content, CLIP_GPT in content or "model_type" in content
        newer = CLIP_GPT in content and content["format_version"] > FORMAT_VERSION
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClipcapError(f"{path / CONFIG}: not the configuration of a CLIP-GPT: {one_line(error)}") from error
    if newer:
        raise ClipcapError(f"{path / CONFIG}: of a newer clipcap; this one reads format {FORMAT_VERSION}")
    if not known:
        what = "a captioner, not a CLIP-GPT: `clipcap predict` uses it" if captioner else "no CLIP-GPT"
        raise ClipcapError(f"{path}: is {what}; CLIP-GPT is made by `clipcap train-clip-gpt`")
    return content


def _load_native(
    path: Path, content: dict[str, Any], lm: str | None, encoder: str | None, normalize_prefix: bool | None
) -> LoadedClipGPT:
    stored = content[CLIP_GPT]
    if isinstance(stored, dict):
        stored.pop("recipe", None)  # of the first checkpoints; it never had a meaning
    config = checked_options(ClipGptConfig, stored, path / CONFIG)
    if normalize_prefix not in (None, config.normalize_prefix):
        raise ClipcapError(
            f"{path}: was trained with normalize_prefix {config.normalize_prefix} and says so itself: leave out "
            f"--normalize_prefix"
        )
    if lm is not None and config.stores_lm:
        raise ClipcapError(f"{path}: holds its own language model (from {config.lm}): leave out --lm {lm}")
    config = replace(config, lm=absolute(lm) if lm else config.lm, encoder=encoder or config.encoder)
    tokenizer = load_tokenizer(str(path / TOKENIZER))
    if config.stores_lm:
        try:
            lm_config = checked_lm_config(AutoConfig.for_model(**content["lm_config"]), str(path))
        except Exception as error:  # of nonsense transformers lets through almost anything
            raise ClipcapError(f"{path / CONFIG}: its lm_config is damaged: {one_line(error)}") from error
        base = lm_of(lm_config, path / CONFIG, read_weights(path).values()).float()
    else:
        base = load_lm(config.lm)
    model = ClipGPT(config, base, Layout(tokenizer))
    restore_clip_gpt(model, path)
    return LoadedClipGPT(model.eval(), tokenizer, path, f"{path}: CLIP-GPT, language model {config.lm}")


def _load_plain(path: Path, lm: str | None, encoder: str | None, normalize_prefix: bool | None) -> LoadedClipGPT:
    """A language model that has the marks, as General-GPT saves it: no projections, no word of its encoder."""
    name = str(path)
    if lm is not None:
        raise ClipcapError(f"{path}: is a language model itself: leave out --lm {lm}")
    tokenizer = load_tokenizer(name)
    lacking = [mark for mark in MARKS if mark not in tokenizer.get_vocab()]
    if lacking:
        raise ClipcapError(
            f"{path}: is a language model whose tokenizer lacks {lacking[0]}, no CLIP-GPT: make one of it by "
            f"`clipcap train-clip-gpt --lm {path}`"
        )
    base = load_lm(name)
    rows, width = token_embeddings(base).weight.shape
    if rows < len(tokenizer):
        raise ClipcapError(
            f"{path}: has {rows} token embeddings for {len(tokenizer)} tokens: they were not resized when the marks "
            f"were added"
        )
    stop = STOPPED if len(tokenizer(STOPPED, add_special_tokens=False)["input_ids"]) == 1 else None
    config = ClipGptConfig(
        clip_dim=width,
        normalize_prefix=normalize_prefix is not False,
        encoder=encoder,
        lm=absolute(name),
        stop_token=stop,
        lm_stored=True,
    )
    model = ClipGPT(config, base, Layout(tokenizer))
    named = f"encoder {encoder}" if encoder else "encoder unknown (name it with --clip_model_type)"
    return LoadedClipGPT(model.eval(), tokenizer, path, f"{path}: CLIP-GPT in the original's layout, {named}")


def _card(config: ClipGptConfig, note: str) -> str:
    """A README for people who find the checkpoint."""
    tuned = {"none": "frozen", "lora": f"tuned with LoRA of rank {config.lora_rank}", "full": "tuned"}[config.tune]
    return f"""---
library_name: clipcap
pipeline_tag: image-to-text
tags: [clipcap, clip-gpt, image-captioning, image-retrieval]
---
# CLIP-GPT

Made with clipcap {clipcap.__version__}: a language model that reads and writes CLIP embeddings inside text.

- encoder: {config.encoder or "not known"} ({config.clip_dim} wide{", normalised" * config.normalize_prefix}), frozen
- language model: {config.lm}, {tuned}
{note}
```bash
clipcap caption-clip-gpt --img photo.jpg --load_pt FOLDER
clipcap imagine "A children's birthday party." --load_pt FOLDER --index FEATURES
```
"""
