"""The main road at the sizes of the published models, with random weights: time and peak memory of every command.

python -m benchmarks.speed.full_size.full_size [--encoder ViT-B/32 RN50x4] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import REPO, machine
from benchmarks.speed.train.bench import SHARED
from clipcap.models.language_model import load_tokenizer

TEXT = {"context_length": 77, "vocab_size": 49408, "transformer_layers": 12}
CLIPS = {
    "ViT-B/32": {"embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
                 "vision_patch_size": 32, "transformer_width": 512, "transformer_heads": 8},
    "RN50x4": {"embed_dim": 640, "image_resolution": 288, "vision_layers": (4, 6, 10, 6), "vision_width": 80,
               "vision_patch_size": None, "transformer_width": 640, "transformer_heads": 10},
}  # fmt: skip
MAPPER = ["--mapping_type", "transformer", "--num_layers", 8, "--prefix_length", 40, "--prefix_length_clip", 40]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", nargs="+", default=list(CLIPS), choices=CLIPS)
    parser.add_argument("--out", type=Path, help="keep the files here (default: a folder that is deleted)")
    options = parser.parse_args()
    print(f"{machine()}\n\n| encoder | command | s | peak GB | |\n| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        lm = gpt2_small(out / "gpt2")
        for name in options.encoder:
            for cells in road(name, out, lm):
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


def road(name: str, out: Path, lm: Path) -> Iterator[tuple[str, ...]]:
    """Parse, train and predict with one encoder: name, seconds, GB and a remark of each command."""
    place = out / name.replace("/", "-")
    clip, features, run = make_clip(name, place / "clip.pt"), place / "coco.pkl", place / "run"
    coco = SHARED / "data" / "coco_mini"
    parsed = timed("parse/coco.py", "--data_path", coco, "--clip_model_type", clip, "--out", features)
    yield "parse, 80 photos", *parsed, ""
    few = place / "few.pkl"
    command("-m", "clipcap", "features", "split", features, "--train_size", 0.25, "--out", few)
    words = ["--data", place / "few_train.pkl", "--val", 0.2, "--lm", lm, "--out_dir", run, *MAPPER]
    cells = timed("train.py", *words, "--only_prefix", "--epochs", 1, "--bs", 40)
    size = (run / "clipcap-best" / "model.safetensors").stat().st_size
    yield "train, 2 steps of 40 captions, validation", *cells, f"checkpoint {size / 1e6:.0f} MB"
    photos = ["--img", SHARED / "data" / "food" / "Images", "--max_new_tokens", 20]
    yield "predict --beam, 6 photos, 20 tokens", *timed("predict.py", "--beam", "--load_pt", run, *photos), ""


def make_clip(name: str, path: Path) -> Path:
    """A CLIP of OpenAI's architecture with random weights in float16, as OpenAI's are, saved as a state dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP, convert_weights
    torch.manual_seed(0)
    network = CLIP(**CLIPS[name], **TEXT)
    convert_weights(network)
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return path


def gpt2_small(folder: Path) -> Path:
    """GPT-2 small, 124 M parameters, with random weights and its real tokenizer."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    load_tokenizer(str(SHARED / "fixtures" / "gpt2-tokenizer")).save_pretrained(folder)
    return folder


def timed(*words: object) -> tuple[str, str]:
    """Seconds and peak resident GB of a command in a process of its own."""
    start = time.perf_counter()
    peak = command(*words)
    return f"{time.perf_counter() - start:.0f}", f"{peak:.1f}"


def command(*words: object) -> float:
    """Run a Python command of the repository; its peak resident memory in GB."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([sys.executable, *map(str, words)], cwd=REPO, stdout=printed, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            raise SystemExit(printed.read().decode())
    return usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
