"""Encoders of open_clip."""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2 as transforms

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.models.encoders.layer_outputs import clip_layers, clip_map, trunk_map
from clipcap.models.encoders.openai_weights import within_reach
from clipcap.models.encoders.token_spec import ImageMap
from clipcap.runtime.safe_load.weights import read_weights_file
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line

_ANCHORS = ("visual.conv1.weight", "logit_scale")  # tensors by which a prefix before all names is found


class OpenClipEncoder(FrozenEncoder):
    """open_clip (`pip install 'clipcap-toolkit[open_clip]'`): `open_clip:NAME/PRETRAINED`.

    PRETRAINED is a tag of open_clip or a file; NAME may also be open_clip's own `hf-hub:USER/NAME` or
    `local-dir:FOLDER`, which bring their weights.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        try:
            import open_clip
        except ImportError as error:
            raise ClipcapError(
                f"{name} needs the open_clip package: pip install 'clipcap-toolkit[open_clip]'"
            ) from error
        architecture, pretrained, quick_gelu = _open_clip_parts(name)
        file = Path(pretrained or "").expanduser()
        if pretrained and (file.is_symlink() or file.exists()):
            check_weights_file(file)
        logging_level = logging.root.manager.disable
        logging.disable()  # open_clip logs what it then raises
        try:
            load = partial(
                open_clip.create_model_from_pretrained,
                architecture,
                precision="fp32",
                force_quick_gelu=quick_gelu,
            )
            try:
                loaded: Any = load(pretrained)
            except Exception as error:  # what stands around the weights may be in its way
                if not file.is_file() or not (isinstance(error, UnpicklingError) or "Missing key" in str(error)):
                    raise
                with _weights_alone(file) as alone:
                    loaded = load(alone)
            network, preprocess = loaded
            self._tokenize: Any = open_clip.get_tokenizer(architecture)
        except ClipcapError as error:
            raise ClipcapError(f"{name}: {error}") from error
        except Exception as error:  # hub, file and shape errors come as many types
            raise ClipcapError(f"{name}: cannot load the weights: {one_line(error)}") from error
        finally:
            logging.disable(logging_level)
        super().__init__(name, network, device, dtype)
        self.preprocess = transforms.Compose([crop_extreme_aspect, preprocess])
        self.dim = self._width()

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self.network.encode_image(pixels)

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        visual = self.network.visual
        if hasattr(visual, "trunk"):
            try:
                found = trunk_map(visual.trunk, pixels, layer)
            except IndexError as error:
                raise self._no_layer(layer, error.args[0]) from error
            return found._replace(vector=visual.head(found.vector))
        count = len(clip_layers(visual))
        if not -count <= layer < 0:
            raise self._no_layer(layer, count)
        return clip_map(visual, pixels, layer, getattr(getattr(visual, "transformer", None), "batch_first", True))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        tokens = self._tokenize([within_reach(text) for text in texts])  # [B, 77]
        return self._run(self.network.encode_text, tokens.to(self.device))


@contextmanager
def _weights_alone(path: Path) -> Iterator[str]:
    """Within, a file with the weights of another, without what a training script has put around them."""
    stored = read_weights_file(path, _ANCHORS, "checkpoint of open_clip")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in stored.tensors.items()}, file)
        yield str(file)


def _open_clip_parts(name: str) -> tuple[str, str | None, bool]:
    """(architecture, weights, whether they were trained with the quick GELU) of `open_clip:NAME/PRETRAINED`."""
    import open_clip

    whole = name.removeprefix("open_clip:")
    if whole.startswith(("hf-hub:", "local-dir:")):
        return whole, None, False
    architecture, _, pretrained = whole.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 8, 0.4) or known[:8]
        raise ClipcapError(f"{name}: open_clip has no model {architecture!r}; the nearest are {', '.join(near)}")
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:8]) or "none, pass a file"
        raise ClipcapError(f"{name}: which weights? open_clip:{architecture}/PRETRAINED, one of: {tags}")
    # open_clip only warns where the architecture's GELU is not the one the weights were trained with.
    quick_gelu = (open_clip.get_pretrained_cfg(architecture, pretrained) or {}).get("quick_gelu", False)
    return architecture, pretrained, quick_gelu
