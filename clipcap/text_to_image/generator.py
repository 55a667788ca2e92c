"""BigGAN-deep as a network: noise and a class embedding in, a picture out (arXiv 1809.11096, appendix B).

Modules carry the names of the published PyTorch weights. Spectral norms are folded into the weights when they are
read, so that a call divides by nothing; batch statistics are the stored ones of the truncation that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.errors import ClipcapError

Statistics = tuple[Tensor, Tensor]  # mean [C], variance [C]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a BigGAN-deep, under the names of its `config.json`."""

    output_dim: int
    z_dim: int
    class_embed_dim: int
    channel_width: int
    num_classes: int
    layers: tuple[tuple[bool, int, int], ...]  # (upsample, in, out), widths in multiples of channel_width
    attention_layer_position: int
    eps: float
    n_stats: int


class StoredNorm(nn.Module):
    """What both norms share: one row of statistics for each stored truncation."""

    running_means: Tensor  # [n_stats, C]
    running_vars: Tensor  # [n_stats, C]

    def __init__(self, channels: int, config: GeneratorConfig):
        super().__init__()
        self.eps = config.eps
        self.register_buffer("running_means", torch.zeros(config.n_stats, channels))
        self.register_buffer("running_vars", torch.ones(config.n_stats, channels))

    def statistics(self, hidden: Tensor, truncation: float) -> Statistics:
        """Mean and variance that belong to a truncation; between two stored ones, both rows count.

        The weights of the two rows are exchanged against linear interpolation: the published weights are known by
        pictures that were made this way. `truncation / step` is a float, so that 0.58 falls just below row 29.
        """
        position = truncation / (1 / (len(self.running_means) - 1))
        row = int(position)
        share = position - row
        if share == 0:
            return self.running_means[row], self.running_vars[row]
        below, above = slice(row, row + 1), slice(row + 1, row + 2)
        mean = share * self.running_means[below] + (1 - share) * self.running_means[above]
        variance = share * self.running_vars[below] + (1 - share) * self.running_vars[above]
        return mean[0], variance[0]

    def normalise(self, hidden: Tensor, truncation: float) -> Tensor:
        """[B, C, H, W] → [B, C, H, W] with the mean and variance of the truncation taken out."""
        mean, variance = self.statistics(hidden, truncation)
        return (hidden - mean[:, None, None]) * (variance + self.eps).rsqrt()[:, None, None]


class ConditionalNorm(StoredNorm):
    """A norm whose scale and offset are linear in the condition."""

    def __init__(self, channels: int, config: GeneratorConfig):
        super().__init__(channels, config)
        condition = 2 * config.z_dim
        self.scale = nn.Linear(condition, channels, bias=False)
        self.offset = nn.Linear(condition, channels, bias=False)

    def forward(self, hidden: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """[B, C, H, W], [B, 2·Z] → [B, C, H, W]."""
        scale, offset = self.scale(condition), self.offset(condition)  # [B, C] each
        return self.normalise(hidden, truncation) * (1 + scale[:, :, None, None]) + offset[:, :, None, None]


class AffineNorm(StoredNorm):
    """A norm with its own weight and bias, before the last convolution."""

    def __init__(self, channels: int, config: GeneratorConfig):
        super().__init__(channels, config)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor, truncation: float) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        return self.normalise(hidden, truncation) * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    """Four convolutions with a bottleneck; the way around them drops channels and doubles pixels."""

    def __init__(self, upsample: bool, channels_in: int, channels_out: int, config: GeneratorConfig):
        super().__init__()
        middle = channels_in // 4
        self.upsample, self.channels_in, self.channels_out = upsample, channels_in, channels_out
        self.bn_0 = ConditionalNorm(channels_in, config)
        self.conv_0 = nn.Conv2d(channels_in, middle, 1)
        self.bn_1 = ConditionalNorm(middle, config)
        self.conv_1 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_2 = ConditionalNorm(middle, config)
        self.conv_2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_3 = ConditionalNorm(middle, config)
        self.conv_3 = nn.Conv2d(middle, channels_out, 1)

    def forward(self, hidden: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H, W], or twice as wide and high."""
        x = self.conv_0(F.relu(self.bn_0(hidden, condition, truncation)))
        x = F.relu(self.bn_1(x, condition, truncation))
        x = self.conv_1(_doubled(x) if self.upsample else x)
        x = self.conv_2(F.relu(self.bn_2(x, condition, truncation)))
        x = self.conv_3(F.relu(self.bn_3(x, condition, truncation)))
        if self.channels_in != self.channels_out:
            hidden = hidden[:, : self.channels_in // 2]  # [B, C_in / 2, H, W]
        return x + (_doubled(hidden) if self.upsample else hidden)


def _doubled(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, C, 2·H, 2·W], each pixel four times."""
    return F.interpolate(x, scale_factor=2.0)


class SelfAttention(nn.Module):
    """Every place looks at a quarter of the places, through a gate that training opens."""

    def __init__(self, channels: int):
        super().__init__()
        self.snconv1x1_theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.snconv1x1_o_conv = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        _, _, height, width = hidden.shape
        theta = self.snconv1x1_theta(hidden).flatten(2)  # [B, C/8, H·W]
        phi = F.max_pool2d(self.snconv1x1_phi(hidden), 2).flatten(2)  # [B, C/8, H·W/4]
        g = F.max_pool2d(self.snconv1x1_g(hidden), 2).flatten(2)  # [B, C/2, H·W/4]
        attention = (theta.transpose(1, 2) @ phi).softmax(-1)  # [B, H·W, H·W/4]
        read = (g @ attention.transpose(1, 2)).unflatten(2, (height, width))  # [B, C/2, H, W]
        return hidden + self.gamma * self.snconv1x1_o_conv(read)


class Layers(nn.Module):
    """The network from condition to picture; the part that the published weights call `generator`."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        width = config.channel_width
        self.first_channels = 16 * width
        self.gen_z = nn.Linear(2 * config.z_dim, 4 * 4 * self.first_channels)
        layers: list[nn.Module] = []
        for number, (upsample, channels_in, channels_out) in enumerate(config.layers):
            if number == config.attention_layer_position:
                layers.append(SelfAttention(channels_in * width))
            layers.append(Block(upsample, channels_in * width, channels_out * width, config))
        self.layers = nn.ModuleList(layers)
        self.bn = AffineNorm(width, config)
        self.conv_to_rgb = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, condition: Tensor, truncation: float) -> Tensor:
        """[B, 2·Z] → [B, 3, R, R]."""
        x = self.gen_z(condition)  # [B, 16·C]: C = 16 · width
        x = x.view(-1, 4, 4, self.first_channels).permute(0, 3, 1, 2).contiguous()  # [B, C, 4, 4]
        for layer in self.layers:
            x = layer(x, condition, truncation) if isinstance(layer, Block) else layer(x)
        x = self.conv_to_rgb(F.relu(self.bn(x, truncation)))  # [B, width, R, R]
        return x[:, :3].tanh()


class Generator(nn.Module):
    """A BigGAN-deep: a class and a noise vector → a picture."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Linear(config.num_classes, config.z_dim, bias=False)
        self.generator = Layers(config)

    @property
    def class_embeddings(self) -> Tensor:
        """[classes, Z], one row a class."""
        return self.embeddings.weight.T

    def forward(self, noise: Tensor, class_embedding: Tensor, truncation: float = 0.4) -> Tensor:
        """Draw one picture a row.

        Args:
            noise: [B, Z], already multiplied by the truncation.
            class_embedding: [B, Z], rows of `class_embeddings` or any other points of their space.
            truncation: whose batch statistics count, in (0, 1].
        Returns:
            pictures [B, 3, R, R] in [-1, 1].
        Raises:
            ClipcapError: the truncation is out of range, or the rows have other shapes.
        """
        if not 0 < truncation <= 1:
            raise ClipcapError(f"--truncation must lie above 0 and at most at 1, got {truncation}")
        width = self.config.z_dim
        if noise.shape != class_embedding.shape or noise.dim() != 2 or noise.shape[1] != width:
            raise ClipcapError(
                f"the generator takes noise and class embeddings of shape [B, {width}], "
                f"got {list(noise.shape)} and {list(class_embedding.shape)}"
            )
        return self.generator(torch.cat([noise, class_embedding], 1), truncation)
