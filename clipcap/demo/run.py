"""`clipcap demo`: the main road from end to end on drawn pictures: parse, train, predict. No network, no GPU."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from clipcap.demo.plates import write_set
from clipcap.demo.tiny import make_clip, make_gpt2
from clipcap.errors import ClipcapError

TRAIN_PICTURES, VAL_PICTURES, EPOCHS, SHOWN = 1200, 60, 12, 6


def run_demo(out: Path, command: Callable[[Sequence[str]], int]) -> None:
    """Draw plates, make a small CLIP and GPT-2, then run the three commands a user runs.

    Args:
        out: folder for everything; an earlier demo there is replaced.
        command: runs a `clipcap` command of these words; 0 is success.
    Raises:
        ClipcapError: `out` holds something else than a demo.
    """
    began = time.monotonic()

    def run(*words: object) -> None:
        argv = [str(word) for word in words]
        print(f"\n$ clipcap {' '.join(argv)}", flush=True)
        if command(argv):
            raise ClipcapError(f"the demo's {words[0]} step failed")

    _clear(out)
    train_set = write_set(out / "plates_train", TRAIN_PICTURES, seed=0, split="train", workers=2)
    val_set = write_set(out / "plates_val", VAL_PICTURES, seed=1, split="val", workers=2)
    print(f"drew {TRAIN_PICTURES} plates to learn from and {VAL_PICTURES} of other combinations to be asked about")
    clip = make_clip(out / "clip.pt", embed_dim=512, resolution=64, width=128)
    lm = make_gpt2(out / "gpt2", _captions(train_set), width=128)
    for name, folder in (("train", train_set), ("val", val_set)):
        run("parse", "food", "--data_path", folder, "--clip_model_type", clip, "--out", out / f"plates_{name}.pkl")
    run(
        "train", "--data", out / "plates_train.pkl", "--lm", lm, "--out_dir", out / "checkpoints",
        "--epochs", EPOCHS, "--save_every", EPOCHS, "--bs", 64, "--lr", 4e-3, "--no_dropout",
    )  # fmt: skip
    run(
        "predict", "--beam", "--load_pt", out / "checkpoints", "--img", val_set / "dataset",
        "--out", out / "captions.jsonl",
    )  # fmt: skip
    _show(out / "captions.jsonl", val_set)
    print(
        f"done in {time.monotonic() - began:.0f} s: pictures and captions are in {out}; caption one more with\n"
        f"  clipcap predict --beam --load_pt {out / 'checkpoints'} --img {val_set / 'dataset' / '0.jpg'}\n"
        f"The CLIP made here has random weights: it sees colours and layout, but no food. For captions that fit,\n"
        f"parse and train on your own photos with a real one, as the README says"
    )


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / "plates_train").is_dir():
        raise ClipcapError(f"--out {out}: is not empty and holds no earlier demo; choose another folder")
    shutil.rmtree(out, ignore_errors=True)


def _captions(folder: Path) -> list[str]:
    return pd.read_csv(folder / "Captions.csv")["Captions"].tolist()


def _show(predictions: Path, folder: Path) -> None:
    human = pd.read_csv(folder / "Captions.csv").groupby("Index")["Captions"].first()
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    print(f"\n{len(lines)} held-out pictures captioned; the first:")
    for line in lines[:SHOWN]:
        number = int(Path(line["image"]).stem)
        print(f"  {Path(line['image']).name:8} {line['caption']}\n{'human:':>10} {human[number]}")
