"""OpenAI's CLIP networks, from their names or from checkpoint files, with their weights as they are.

`clip.load` sends weights through float16, which rounds a float32 fine-tune without a word (7e-4 on the embeddings
of a small ViT); here the network is built by the same package, then given the file's own numbers.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipcap.errors import ClipcapError
from clipcap.models.without_memory import without_memory
from clipcap.runtime.bundled import CLIP, bundled
from clipcap.runtime.files import best_checkpoint_in
from clipcap.runtime.heavy_imports import heavy_imports
from clipcap.runtime.messages import logger
from clipcap.runtime.safe_load.torchscript import is_scripted, scripted_state
from clipcap.runtime.safe_load.unpickle import UnreadablePickle
from clipcap.runtime.safe_load.weights import StoredWeights, check_finite, check_floating, read_weights_file
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line, shown

# expanduser of os, since that of pathlib raises where there is no home
CACHE = Path(os.path.expanduser(os.environ.get("CLIP_CACHE", "~/.cache/clip")))
WIDTHS = {  # of the published CLIPs of OpenAI
    "RN50": 1024,
    "RN101": 512,
    "RN50x4": 640,
    "RN50x16": 768,
    "RN50x64": 1024,
    "ViT-B/32": 512,
    "ViT-B/16": 512,
    "ViT-L/14": 768,
    "ViT-L/14@336px": 768,
}
WEIGHTS = "clip.pt"  # in a checkpoint folder of `clipcap contrastive`
LONGEST_TEXT = 5000  # characters; 77 tokens are a few hundred
DOWNLOAD_TIMEOUT_S = 30.0  # without a byte
ANCHORS = ("visual.conv1.weight",)  # a tensor by which a prefix before all names is found
LONGEST_CONTEXT = 4096  # positions; OpenAI's have 77
_PARTS = (
    "visual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection",
    "logit_scale", *("input_resolution", "context_length", "vocab_size"),
)  # fmt: skip
_OF_OPEN_CLIP = ("logit_bias", "visual.trunk.", "text.")  # of its networks alone
INFORMATION = ("input_resolution", "context_length", "vocab_size")  # scalars beside the weights


@cache
def clip_package() -> Any:
    """OpenAI's `clip`, imported at its first use: torchvision comes with it, and takes as long as torch.

    Raises:
        ClipcapError: it cannot be imported.
    """
    try:
        with warnings.catch_warnings(), heavy_imports():
            warnings.simplefilter("ignore")  # clip-anytorch imports pkg_resources, which announces its own end
            import clip
            import clip.model
    except ImportError as error:
        raise ClipcapError(
            f"OpenAI's clip package cannot be imported ({one_line(error)}): "
            f"pip install clip-anytorch 'setuptools>=77.0.3,<82'"
        ) from error
    return clip


@cache
def clip_networks() -> Any:
    """The module of `clip` that holds its networks, without the package around it, which brings torchvision.

    Raises:
        ClipcapError: there is no such package.
    """
    package = None if "clip" in sys.modules else find_spec("clip")
    file = None if package is None or package.origin is None else Path(package.origin).with_name("model.py")
    spec = spec_from_file_location("clip_networks", file) if file is not None and file.is_file() else None
    if spec is None or spec.loader is None:
        return clip_package().model
    networks = module_from_spec(spec)
    spec.loader.exec_module(networks)
    return networks


def load_openai_clip(name: str) -> nn.Module:
    """Build a CLIP of OpenAI in float32 on the CPU.

    Args:
        name: one of `WIDTHS`, or the path of a checkpoint in OpenAI's format (a state dict or a
            TorchScript archive), or of a folder that holds it as `clip.pt`, or of the folder of a run of `clipcap
            contrastive`, whose `best` is taken; `demo` is the bundled one.

    Raises:
        ClipcapError: unknown name, weights missing and no network, a damaged or foreign file.
    """
    path = Path(bundled(name, CLIP)).expanduser()
    if name in WIDTHS:
        path = _named_weights(name)
    elif path.is_dir() and (folder := _weights_folder(path)):
        path = folder / WEIGHTS
    elif path.is_dir():
        raise ClipcapError(
            f"--clip_model_type {name}: is a folder without {WEIGHTS}: an encoder of transformers is named hf:{name}"
        )
    elif not path.is_file():
        raise ClipcapError(
            f"--clip_model_type {name}: neither a file nor a name of OpenAI's CLIP "
            f"({', '.join(WIDTHS)}); other encoders: open_clip:NAME/PRETRAINED, hf:NAME_OR_PATH, "
            f"timm:NAME"
        )
    return build(read_openai_weights(path), path)


def _weights_folder(path: Path) -> Path | None:
    """`path`, or the best checkpoint of the run whose folder it is."""
    return path if (path / WEIGHTS).is_file() else best_checkpoint_in(path, lambda p: (p / WEIGHTS).is_file())


def _named_weights(name: str) -> Path:
    """The downloaded file of an OpenAI name; fetched where it is missing."""
    url = clip_package().clip._MODELS[name]
    path = CACHE / Path(url).name
    if path.is_file():
        return path
    usual_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub sets none
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=url.split("/")[-2])  # whole and checked, or none
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise ClipcapError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({one_line(error)}): "
            f"fetch {url} where there is a network and place it at {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return path


def read_openai_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint in OpenAI's format; runs no code from the file.

    Raises:
        ClipcapError: damaged, or not such a checkpoint.
    """
    check_weights_file(path)
    try:
        scripted = is_scripted(path)
        state = scripted_state(path) if scripted else None
    except (OSError, UnreadablePickle) as error:
        raise ClipcapError(
            f"{path}: not a CLIP checkpoint that can be loaded safely: truncated, or another kind of file "
            f"({one_line(error)[:120]}); download or copy it again"
        ) from error
    if state is not None:
        check_finite(state, path)
    else:
        stored = read_weights_file(path, ANCHORS, "CLIP checkpoint")
        if INFORMATION[0] not in stored.tensors and _from_open_clip(stored, path):
            raise ClipcapError(f"{path}: {_open_clip_hint(path)}")
        stored = _without_others(stored, path)
        if stored.note:
            logger.info(f"{path}: {stored.note}")
        state = stored.tensors
    state = {name: tensor for name, tensor in state.items() if name not in INFORMATION}
    check_floating(((name, t) for name, t in state.items() if not name.endswith("num_batches_tracked")), path)
    return state


def _from_open_clip(stored: StoredWeights, path: Path) -> bool:
    """Whether open_clip wrote a file: its training (epoch, name, state_dict), or as it publishes weights.

    Its names and shapes are OpenAI's, but nearly all of its networks have another activation.
    """
    around = {name.partition(" ")[0] for name in stored.left_out}
    own = any(name.startswith(_OF_OPEN_CLIP) for name in stored.tensors)
    return own or {"epoch", "name"} <= around or path.name.startswith("open_clip")


def _without_others(stored: StoredWeights, path: Path) -> StoredWeights:
    """The tensors of a CLIP, without those of a classifier or the like that a script has trained on it.

    Raises:
        ClipcapError: they are those of a captioner, or of one tower alone.
    """
    names = stored.tensors.keys()
    if any(name.startswith("clip_project.") for name in names):
        raise ClipcapError(f"{path}: is a captioner, not an encoder: pass it as --load_pt {path}")
    own = {name: tensor for name, tensor in stored.tensors.items() if name.startswith(_PARTS)}
    if own and not any(name.startswith("visual.") for name in own):
        raise ClipcapError(f"{path}: has no image tower (visual.*): pass the whole CLIP")
    if "visual.proj" in names and "text_projection" not in names:
        raise ClipcapError(f"{path}: has no text tower (text_projection): pass the whole CLIP")
    others = [shown(name)[:60] for name in names if name not in own]
    return replace(stored, tensors=own or stored.tensors, left_out=[*stored.left_out, *(others if own else ())])


def _open_clip_hint(path: Path) -> str:
    return (
        "is a checkpoint of open_clip, whose networks have another activation than OpenAI's: pass it as "
        f"--clip_model_type open_clip:NAME/{path} with NAME the --model it was trained as"
    )


def _content(found: dict[str, Tensor]) -> str:
    return f"a dictionary with the keys {', '.join(list(found)[:5]) or '(none)'}"


def build(state: dict[str, Tensor], path: Path) -> nn.Module:
    """The network of a state dict, sizes read off its tensors, float32, the numbers unrounded."""
    try:
        with warnings.catch_warnings(), without_memory():  # compares all sizes before anything is allocated
            warnings.simplefilter("ignore")
            network = clip_networks().build_model(dict(state))
        if network.context_length > LONGEST_CONTEXT:
            raise ValueError(f"a text tower of {network.context_length:,} positions")
        network.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        mask = network.build_attention_mask()  # [77, 77], no part of the state
        for block in network.transformer.resblocks:
            block.attn_mask = mask
    except Exception as error:  # build_model checks nothing
        reason = f"{error} is missing" if isinstance(error, KeyError) else _first_misfit(error)
        raise ClipcapError(
            f"{path}: its tensors are not those of OpenAI's CLIP ({reason}); it holds {_content(state)}"
        ) from error
    return network


def _first_misfit(error: Exception) -> str:
    """What torch says of tensors that do not fit, without the rest of them."""
    text = one_line(error).removeprefix("Error(s) in loading state_dict for CLIP: ")
    return text.split(", ")[0][:160] if text.startswith(("Missing", "Unexpected")) else text[:160]


def clip_tokens(texts: Sequence[str], length: int) -> Tensor:
    """CLIP's tokens of B texts, cut where they are too long, [B, length]."""
    return clip_package().tokenize([within_reach(text) for text in texts], context_length=length, truncate=True)


def clip_token_lists(texts: Sequence[str], length: int) -> list[list[int]]:
    """CLIP's tokens of each text, from its start to its end token, both kept where a text is cut to `length`."""
    rows = clip_tokens(texts, length)  # [B, length]; the end token is the largest
    return [row[: end + 1].tolist() for row, end in zip(rows, rows.argmax(dim=1))]


def within_reach(text: str) -> str:
    """A text without what lies far behind its last token: a word of 100,000 letters takes the tokenizer minutes."""
    return text if len(text) <= LONGEST_TEXT else " ".join(text.split())[:LONGEST_TEXT]
