"""What the tests of parsing, prediction and the command line share: drawn photos, a small captioner, the command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipcap.cli.main import main
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.checkpoint import save_checkpoint
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.load import load_encoder
from clipcap.models.language_model import load_lm, load_tokenizer

REPO = Path(__file__).resolve().parents[2]
SHORT = ("--max_new_tokens", 8, "--device", "cpu")  # of a command that captions


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of coarse random colours, different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def draw_photos(folder: Path, count: int) -> list[Path]:
    """`photo0.png`, `photo1.png`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    return paths


def draw_set(folder: Path, images: int, captions: int = 5) -> Path:
    """Photos and a captions.csv that gives each of them several captions; returns the folder."""
    paths = draw_photos(folder, images)
    rows = [(path.name, f"picture {i} said in way {k}") for i, path in enumerate(paths) for k in range(captions)]
    write_captions(folder, rows)
    return folder


def write_captions(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """captions.csv in `folder`."""
    path = folder / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return path


def save_captioner(folder: Path, lm: Path, clip: Path | str, seed: int = 2, **options) -> Path:
    """A native checkpoint with random weights, whose captions differ from picture to picture."""
    torch.manual_seed(seed)
    encoder = load_encoder(str(clip), "cpu")
    config = ModelConfig(
        **{
            "clip_dim": encoder.dim,
            "prefix_length": 4,
            "lm": str(lm),
            "tune": "full",
            "encoder": str(clip),
            "encoder_weights_id": encoder.weights_id,
            **options,
        }
    )
    model = ClipCaptionModel(config, load_lm(str(lm))).eval()
    with torch.no_grad():  # spread the distributions: initial weights make them nearly uniform
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return save_checkpoint(model, load_tokenizer(str(lm)), folder)


def lines_of(path: Path) -> list[dict]:
    """What a file of JSON lines holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(capsys, *words: object) -> tuple[int, list[str], list[str]]:
    """(status, lines on stdout, lines on stderr) of the command, run in this process."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def start(*words: object, **environment: str) -> subprocess.Popen:
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "clipcap", *map(str, words)],
        cwd=REPO,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
