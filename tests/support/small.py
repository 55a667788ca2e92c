"""A small feature file and short training runs on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from conftest import CAPTIONS
from safetensors.torch import load_file

from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.training.config import TrainConfig
from clipcap.training.loop import Loop

DIM = 32
META = FeatureMeta(encoder="tiny-clip", encoder_weights_id="0011223344556677")


def feature_file(path: Path, captions=CAPTIONS, *, meta=META, dim=DIM, seed=0, nan_rows=()) -> Path:
    """A random vector per image; `captions` has a text, or a tuple of texts, for each image."""
    embeddings = np.random.default_rng(seed).standard_normal((len(captions), dim)).astype(np.float32)
    embeddings[list(nan_rows)] = np.nan
    content = {
        "image_ids": [f"photo{i}" for i in range(len(captions))],
        "image_paths": [f"photo{i}.jpg" for i in range(len(captions))],
        "captions": [(c,) if isinstance(c, str) else c for c in captions],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_features(path, embeddings=embeddings, meta=meta, **content)
    return path


def options(data: Path, lm: Path, out_dir: Path, **changes) -> dict:
    """Flags of a run of a few steps."""
    defaults = {
        "save_every": 1,
        "epochs": 2,
        "bs": 3,
        "lr": 1e-3,
        "prefix_length": 4,
        "warmup_steps": 0,
        "val_captions": 4,
    }
    return {"data": str(data), "lm": str(lm), "out_dir": str(out_dir), **defaults, **changes}


def run(data: Path, lm: Path, out_dir: Path, **changes) -> Path:
    """A short run in this process; returns its output folder."""
    from clipcap.training.train import train

    train(TrainConfig.of(**options(data, lm, out_dir, **changes)))
    return Path(out_dir)


def flags(chosen: dict) -> list[str]:
    """The options as words of a command line."""
    words = []
    for name, value in chosen.items():
        words += [f"--{'' if value else 'no_'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return words


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds."""
    return load_file(checkpoint / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics(out_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def interrupt_after(monkeypatch, steps: int) -> None:
    """A Ctrl-C before the optimiser step that follows so many."""
    step, taken = Loop._step, []

    def stopping(self, window):
        taken.append(1)
        if len(taken) > steps:
            raise KeyboardInterrupt
        return step(self, window)

    monkeypatch.setattr(Loop, "_step", stopping)
