"""The arithmetic that encoding an image must do: 2·m·n·k for each product of matrices, and nothing for all else.

A convolution is the product of its patches and its weights. Of a ResNet's pooling attention the one query counts, and
of a transformer's last block what its class token needs.
"""

from __future__ import annotations

from clip.model import ModifiedResNet, VisionTransformer
from torch import nn


def encoder_flops(tower: nn.Module, needed_only: bool = True) -> float:
    """Operations of a vision tower of OpenAI's CLIP for one image.

    Args:
        tower: as the clip package builds it.
        needed_only: not the last block's outputs that nobody reads.
    """
    return _resnet(tower) if isinstance(tower, ModifiedResNet) else _vit(tower, needed_only)


def _vit(tower: VisionTransformer, needed_only: bool) -> float:
    width, _, patch, _ = tower.conv1.weight.shape
    positions = len(tower.positional_embedding)  # patches, and the class
    read = [positions] * (len(tower.transformer.resblocks) - 1) + [1 if needed_only else positions]
    linear = sum(2 * width**2 * (2 * positions + 10 * needed) for needed in read)  # keys and values 2; all else 10
    attention = sum(2 * 2 * width * positions * needed for needed in read)
    return 2 * 3 * patch**2 * width * (positions - 1) + linear + attention + 2 * tower.proj.numel()


def _resnet(tower: ModifiedResNet) -> float:
    side = tower.input_resolution // 2  # after the first convolution's stride
    total = 2 * side**2 * sum(conv.weight.numel() for conv in (tower.conv1, tower.conv2, tower.conv3))
    side //= 2
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        for block in layer:
            before, side = side, side // block.stride
            total += 2 * before**2 * (block.conv1.weight.numel() + block.conv2.weight.numel())
            total += 2 * side**2 * block.conv3.weight.numel()
            if block.downsample is not None:
                total += 2 * side**2 * next(m for m in block.downsample if isinstance(m, nn.Conv2d)).weight.numel()
    positions, width = len(tower.attnpool.positional_embedding), tower.attnpool.q_proj.in_features
    keys_values = 2 * 2 * width**2 * positions
    return total + keys_values + 2 * width**2 + 2 * 2 * width * positions + 2 * tower.attnpool.c_proj.weight.numel()
