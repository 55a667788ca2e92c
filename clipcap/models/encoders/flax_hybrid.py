"""Hybrid CLIPs that flax stored (`config.json` and `flax_model.msgpack`) as dual encoders of transformers.

The layout is that of transformers' research example hybrid_clip: two towers under projections without bias. It hands
the text tower the positions 0 … T − 1, also where the tower's kind counts from behind padding (RoBERTa): zero rows
before the table of positions give the same here, whatever code reads the converted weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from clipcap.errors import ClipcapError
from clipcap.models.encoders.clip_preprocess import CLIP_MEAN, CLIP_STD
from clipcap.models.encoders.pooling import OFFSET_POSITIONS, PAIR
from clipcap.models.without_memory import without_memory
from clipcap.runtime.files import replaced_folder, writing
from clipcap.runtime.hub import is_local, load_pretrained, require_hub
from clipcap.runtime.places import writes_to
from clipcap.runtime.safe_load.flax_msgpack import MsgpackError, read_parameters
from clipcap.runtime.text import one_line

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, VisionTextDualEncoderConfig, VisionTextDualEncoderModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
WEIGHTS, CONFIG, HYBRID = "flax_model.msgpack", "config.json", "hybrid-clip"
MOST_LAYERS = 512  # of a tower
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_OF_CLIP = ("clip_vision_model", "clip")


def hybrid_folder(name: str) -> Path | None:
    """The folder of a hybrid CLIP of flax, by a local path or a hub name; None where `name` is something else.

    Of a repository on the hub the configuration and the weights alone are downloaded.
    """
    if is_local(name):
        folder = Path(name).expanduser()
        return folder if (folder / WEIGHTS).is_file() and _model_type(folder / CONFIG) == HYBRID else None
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    config = _hub_file(name, CONFIG)
    if config is None or _model_type(config) != HYBRID:
        return None
    weights = _hub_file(name, WEIGHTS)
    if weights is None:
        require_hub(name, "encoder", "--clip_model_type hf:")
        raise ClipcapError(f"--clip_model_type hf:{name}: the hub has no {WEIGHTS} of it")
    return weights.parent


def _hub_file(name: str, file: str) -> Path | None:
    """A file of the hub, or of the cache; None if neither has it."""
    for local in (True, constants.HF_HUB_OFFLINE):
        try:
            return Path(hf_hub_download(name, file, local_files_only=local))
        except Exception:  # the hub client's exception types differ between its releases
            continue
    return None


def _model_type(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def load_hybrid(folder: Path) -> VisionTextDualEncoderModel:
    """Load a hybrid CLIP in float32, in evaluation mode.

    Raises:
        ClipcapError: a damaged or hostile file, an unusable configuration, tensors missing or unknown.
    """
    from transformers import VisionTextDualEncoderModel

    config = _config(folder)
    state = _shifted(_state(folder), config)
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with without_memory():  # shapes alone: a configuration cannot take more memory than the file has numbers
            wanted = sum(parameter.numel() for parameter in VisionTextDualEncoderModel(config).parameters())
        there = sum(tensor.numel() for tensor in state.values())
        if wanted > 1.1 * there + 1e6:
            raise ClipcapError(f"{folder}: {CONFIG} asks for {wanted:,} numbers, {WEIGHTS} holds {there:,}")
        load: Any = VisionTextDualEncoderModel.from_pretrained  # its types leave out the loading info
        model, info = load(None, config=config, state_dict=state, **options)
    except ClipcapError:
        raise
    except Exception as error:  # of damaged configurations transformers lets through almost anything
        raise ClipcapError(f"{folder}: its weights and {CONFIG} do not fit: {one_line(error)}") from error
    _check(info, folder)
    return model.eval()


def _check(info: dict[str, Any], folder: Path) -> None:
    """Refuse weights other than exactly those of the network."""
    for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds the unknown"), ("mismatched_keys", "")):
        names = [str(name[0] if isinstance(name, tuple) else name) for name in info.get(kind) or ()]
        names = [name for name in names if not name.endswith("position_ids")]
        if names:
            text = f"{what} {', '.join(sorted(names)[:3])}" if what else f"has another shape of {sorted(names)[0]}"
            raise ClipcapError(f"{folder / WEIGHTS}: {text}: not the weights of its {CONFIG}")


def _config(folder: Path) -> VisionTextDualEncoderConfig:
    from transformers import VisionTextDualEncoderConfig

    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = dict(content.get("text_config") or content["text_config_dict"])
        vision = dict(content.get("vision_config") or content["vision_config_dict"])
        if vision.get("model_type") == "clip":
            vision = dict(vision.get("vision_config") or vision["vision_config_dict"])
        if vision.get("model_type") in (*_OF_CLIP, None):
            vision["model_type"] = "clip_vision_model"
        if text["model_type"] in OFFSET_POSITIONS:
            text["max_position_embeddings"] += text["pad_token_id"] + 1
        for part in (text, vision):
            if not 1 <= int(part.get("num_hidden_layers", 12)) <= MOST_LAYERS:
                raise ValueError(f"num_hidden_layers must lie between 1 and {MOST_LAYERS}")
        width = content["projection_dim"]
        if not isinstance(width, int) or not 1 <= width <= 65_536:
            raise ValueError(f"projection_dim is {str(width)[:20]}")
        config = VisionTextDualEncoderConfig(text_config=text, vision_config=vision, projection_dim=width)
    except KeyError as error:
        raise ClipcapError(f"{path}: lacks {error}: not the configuration of a hybrid CLIP") from error
    except Exception as error:  # transformers checks configurations in many ways
        raise ClipcapError(f"{path}: cannot be read ({one_line(error)})") from error
    config.architectures = ["VisionTextDualEncoderModel"]
    return config


def _state(folder: Path) -> dict[str, Tensor]:
    """The parameters under the classic names of torch."""
    path = folder / WEIGHTS
    try:
        return dict(_renamed(name, array.tensor()) for name, array in read_parameters(path).items())
    except MsgpackError as error:
        raise ClipcapError(f"{path}: {error}: download or copy it again") from error


def _renamed(path: str, tensor: Tensor) -> tuple[str, Tensor]:
    """`a/b/kernel` [in, out] → `a.b.weight` [out, in]; of a convolution [h, w, in, out] → [out, in, h, w]."""
    *parts, leaf = path.split("/")
    if leaf == "kernel" and tensor.dim() in (2, 4):
        tensor = tensor.T if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1)
    return ".".join([*parts, _LEAVES.get(leaf, leaf)]), tensor.float().contiguous()


def _shifted(state: dict[str, Tensor], config: VisionTextDualEncoderConfig) -> dict[str, Tensor]:
    """Rows of zeros before the text tower's positions, where its kind counts from behind padding."""
    name = "text_model.embeddings.position_embeddings.weight"
    text: Any = config.text_config  # a configuration, which transformers types as a dictionary or None too
    if text.model_type not in OFFSET_POSITIONS or name not in state:
        return state
    table = state[name]  # [positions, H]
    return state | {name: torch.cat([table.new_zeros(text.pad_token_id + 1, table.shape[1]), table])}


def hybrid_processor(config: VisionTextDualEncoderConfig) -> CLIPImageProcessor:
    """CLIP's own preprocessing at the image tower's size: a hybrid CLIP's folder holds none."""
    from transformers import CLIPImageProcessor

    vision: Any = config.vision_config  # a configuration, which transformers types as a dictionary or None too
    side = vision.image_size
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )


def hybrid_tokenizer(folder: Path, tokenizer: str | None) -> Tokenizer | None:
    """The tokenizer by name, or the folder's own; None where it has none.

    Raises:
        ClipcapError: the one that was named cannot be had.
    """
    from transformers import AutoTokenizer

    if tokenizer:
        return load_pretrained(AutoTokenizer, tokenizer, "tokenizer", "--tokenizer")
    own = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")
    if any((folder / name).is_file() for name in own):
        return load_pretrained(AutoTokenizer, str(folder), "tokenizer", "--clip_model_type hf:")
    return None


@writes_to("out")
def convert(folder: str, out: str, tokenizer: str | None = None) -> Path:
    """Write a hybrid CLIP of flax as a folder that `AutoModel` of transformers reads: `clipcap convert`.

    Args:
        folder: of `config.json` and `flax_model.msgpack`, or a hub name.
        out: folder to write.
        tokenizer: name or folder of the tokenizer to store with it, where the folder has none.
    Raises:
        ClipcapError: no such folder, a damaged file, or `out` exists.
    """
    source, place = hybrid_folder(folder.removeprefix("hf:")), Path(out).expanduser()
    if source is None:
        raise ClipcapError(f"{folder}: holds no hybrid CLIP of flax ({CONFIG} of type {HYBRID} and {WEIGHTS})")
    if place.exists() and (place.is_file() or any(place.iterdir())):
        raise ClipcapError(f"--out {out}: exists: choose a new name")
    network = load_hybrid(source)  # checks that everything fits
    config, words = network.config, hybrid_tokenizer(source, tokenizer)
    state = _shifted(_state(source), config)
    with writing(place), replaced_folder(place) as draft:
        save_file(state, draft / "model.safetensors", {"format": "pt"})
        (draft / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read it
        content = config.to_dict() | {"model_type": PAIR}
        (draft / CONFIG).write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        hybrid_processor(config).save_pretrained(draft)
        if words is not None:
            words.save_pretrained(draft)
    return place
