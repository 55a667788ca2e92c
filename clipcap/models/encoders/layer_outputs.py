"""The outputs of parts of a network, taken while it computes its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from clipcap.models.encoders.token_spec import ImageMap, image_map


def with_output_of(part: nn.Module, function: Callable[[], Tensor]) -> tuple[Tensor, Any]:
    """(what `function` gives, what `part` gave meanwhile, in this thread: others may compute with it too)."""
    found: list[Any] = []
    own = threading.get_ident()

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == own:
            found.append(output)

    hook = part.register_forward_hook(keep)
    try:
        result = function()
    finally:
        hook.remove()
    return result, found[-1]


def clip_layers(visual: Any) -> list[nn.Module]:
    """The layers of a tower of OpenAI's make, whose outputs are images' tokens: blocks, or the stages of a ResNet."""
    if hasattr(visual, "layer1"):
        return [getattr(visual, f"layer{number}") for number in range(1, 5)]
    return list(visual.transformer.resblocks)


def clip_map(visual: Any, pixels: Tensor, layer: int, batch_first: bool) -> ImageMap:
    """The vectors of a tower of OpenAI's make with the outputs of one of its layers, those of the last block normed.

    Args:
        visual: a vision transformer or a ResNet.
        pixels: [B, 3, R, R].
        layer: counted from the end.
        batch_first: whether its blocks compute on [B, N, W], not on [N, B, W].
    """
    vector, output = with_output_of(clip_layers(visual)[layer], lambda: visual(pixels))
    if hasattr(visual, "layer1"):
        return ImageMap(vector, None, output)
    sequence = output if batch_first else output.transpose(0, 1)  # [B, 1 + N, W]
    return image_map(vector, visual.ln_post(sequence) if layer == -1 else sequence)


def trunk_map(trunk: Any, pixels: Tensor, layer: int) -> ImageMap:
    """The vectors of a network of timm, as its classifier reads them, with the outputs of one of its layers.

    Of the last one they are behind its last norm, class and register tokens among them; those of others have none.

    Raises:
        IndexError: no such layer.
    """
    if layer == -1:
        features = trunk.forward_features(pixels)
        vector = trunk.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            by_rows = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
            return ImageMap(vector, None, features.permute(0, 3, 1, 2) if by_rows else features)
        grid = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
        return image_map(vector, features, grid)
    count = len(trunk.feature_info)
    if not -count <= layer < 0:
        raise IndexError(count)
    features, places = trunk.forward_intermediates(pixels, indices=[count + layer])
    return ImageMap(trunk.forward_head(features, pre_logits=True), None, places[0])
