"""A BigGAN-deep of a few kilobytes with random weights, as the published files are laid out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from clipcap.text_to_image.generator import Generator, GeneratorConfig
from clipcap.text_to_image.generator_files import save_generator

FOODS = ("apple", "banana", "cherry", "donut")


def small_config(classes: int = len(FOODS)) -> GeneratorConfig:
    """16 pixels, noise of 4, four classes, attention before the third block, five stored truncations."""
    layers = ((True, 16, 8), (False, 8, 4), (True, 4, 2), (False, 2, 1))
    return GeneratorConfig(16, 4, 4, 8, classes, layers, 2, 1e-4, 5)


def small_generator(classes: int = len(FOODS)) -> Generator:
    """With statistics that differ from truncation to truncation."""
    torch.manual_seed(0)
    network = Generator(small_config(classes))
    for name, value in network.state_dict().items():
        if name.endswith("running_means"):
            value.normal_(0, 0.3)
        elif name.endswith("running_vars"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("gamma"):
            value.fill_(0.7)
    return network.eval().requires_grad_(False)


def write_small_generator(folder: Path, words: bool = True) -> Path:
    """Write it with the words of its classes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(small_generator(), folder)
    if words:
        classes = [{"name": food, "words": [food, f"{food}s"]} for food in FOODS]
        (folder / "words.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    return folder


def noise(rows: int = 2, seed: int = 1) -> Tensor:
    """Standard normal [rows, 4]."""
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
