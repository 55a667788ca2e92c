"""The frozen SigLIP tower inside a folder of distilvit2, whose last hidden states its captioner reads as tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2 as transforms

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Preprocess
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.models.encoders.distilvit2_folder import CONFIG, read_distilvit2
from clipcap.models.encoders.image_only import HFImageEncoder
from clipcap.models.limits import checked_lm_config
from clipcap.runtime.text import one_line


def network_of(config: dict[str, Any], auto: Any, where: str) -> Any:
    """A network with random weights, of a nested configuration.

    Raises:
        ClipcapError: transformers cannot make one of it.
    """
    from transformers import AutoConfig

    try:
        return auto.from_config(checked_lm_config(AutoConfig.for_model(**config), where))
    except ClipcapError:
        raise
    except Exception as error:  # of nonsense transformers lets through almost anything
        raise ClipcapError(f"{where}: its configuration is damaged: {one_line(error)}") from error


class DistilVit2Tower(HFImageEncoder):
    """The tower of `hf:FOLDER`, a folder of distilvit2; images are brought to its size without cropping."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        from transformers import AutoModel

        folder = Path(name.removeprefix("hf:")).expanduser()
        content, state = read_distilvit2(folder)
        network = network_of(content["vision_config"], AutoModel, str(folder / CONFIG))
        # transformers 5 has no level `vision_model` in it, 4 has one; with neither spelling would a tensor go amiss.
        level = re.compile(r"^vision_model\.")
        stored = {
            level.sub("", key.removeprefix("vision_encoder.")): tensor
            for key, tensor in state.items()
            if key.startswith("vision_encoder.")
        }
        own = network.state_dict()
        for key, tensor in own.items():
            found = stored.get(level.sub("", key))
            if found is None or found.shape != tensor.shape:
                raise ClipcapError(f"{folder}: the tensor {key} of its vision tower is missing or of another size")
        network.load_state_dict({key: stored[level.sub("", key)] for key in own})
        self._hold(name, network, device, dtype, distilvit2_preprocess(network.config.image_size))


def distilvit2_preprocess(size: int) -> Preprocess:
    """RGB to `size` × `size` without cropping (bicubic), scaled to −1 … 1."""
    return transforms.Compose(
        [
            crop_extreme_aspect,
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
