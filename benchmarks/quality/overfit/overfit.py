"""Learn 16 real photos by heart with each mapper, then ask for their captions as a user would: parse, train, predict.

python -m benchmarks.quality.overfit.overfit [--out FOLDER] [--part tuned frozen loss]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from PIL import Image
from transformers import GPT2LMHeadModel

from benchmarks.measure import machine
from benchmarks.speed.train.bench import SHARED
from clipcap.captioning.tidy import tidy
from clipcap.cli.main import main as main_of_clipcap
from clipcap.demo.tiny import make_gpt2
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS
from clipcap.sources.record import Record

PHOTOS = 16
ENCODER = SHARED / "fixtures" / "openai-clip" / "tiny_vit_state_dict.pt"
FLICKR8K = SHARED / "data" / "flickr8k"
TUNED = ["--lr", "1e-3", "--epochs", "250", "--bs", "16", "--save_every", "250", "--no_dropout"]
FROZEN = [*TUNED, "--only_prefix", "--lr", "3e-3", "--epochs", "400", "--save_every", "400"]


@dataclass(frozen=True)
class Photos:
    """The photos that are learnt, one caption each."""

    folder: Path
    features: Path
    captions: dict[str, str]  # by file name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keep the files here (default: a folder that is deleted)")
    parser.add_argument("--part", nargs="+", default=["tuned", "frozen", "loss"], choices=("tuned", "frozen", "loss"))
    parser.add_argument("--photos", type=int, default=6000, help="of Flickr8k, to train on in the part `loss`")
    parser.add_argument("--text_steps", type=int, default=900, help="of the GPT-2 that learns captions as text")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        photos = choose_photos(out)
        if "tuned" in options.part:
            lm = new_gpt2(out / "gpt2")
            for mapper in ("mlp", "transformer"):
                found = learn(photos, out, lm, [*TUNED, "--mapping_type", mapper])
                print(row(f"{mapper}, GPT-2 tuned", found), flush=True)
        if {"frozen", "loss"} & set(options.part):
            speaker, alone = tuned_gpt2(out / "speaker", options.text_steps)
        if "frozen" in options.part:
            for mapper in ("mlp", "transformer"):
                found = learn(photos, out, speaker, [*FROZEN, "--mapping_type", mapper])
                print(row(f"{mapper}, --only_prefix", found), flush=True)
        if "loss" in options.part:
            print(f"loss per token on the captions of the held-out photos, without an image: {alone:.3f}", flush=True)
            features = parse_flickr8k(out, options.photos)
            for mapper in ("mlp", "transformer"):
                loss = held_out_loss(features, out / f"run_{mapper}", speaker, mapper)
                print(f"with the image ({mapper}, --only_prefix): {loss:.3f}", flush=True)


def row(name: str, found: dict[str, object]) -> str:
    """A line of the table."""
    return f"| {name} | {' | '.join(str(value) for value in found.values())} |"


def command(*words: object) -> None:
    """A command of clipcap, without what it prints unless it fails."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        status = main_of_clipcap([str(word) for word in words])
    if status:
        raise SystemExit(f"clipcap {' '.join(map(str, words))}\n{out.getvalue()}")


def choose_photos(out: Path) -> Photos:
    """The first training photos whose first caption has five words or more, no two the same; parsed."""
    folder, captions = out / "photos", {}
    folder.mkdir(parents=True)
    for record in flickr8k("train"):
        caption = record.captions[0]
        if len(captions) < PHOTOS and len(caption.split()) >= 5 and caption not in captions.values():
            captions[record.image_id] = caption
            shutil.copy(record.image.path, folder / record.image_id)
    table, features = out / "captions.jsonl", out / "photos.pkl"
    table.write_text("".join(json.dumps({"image": k, "caption": v}) + "\n" for k, v in captions.items()))
    words = ["--data_path", table, "--images", folder, "--clip_model_type", ENCODER, "--out", features]
    command("parse", "custom", *words)
    return Photos(folder, features, captions)


def flickr8k(split: str) -> list[Record]:
    """Its records whose photo is there."""
    records = READERS["flickr8k"](SourceConfig(data_path=str(FLICKR8K))).records
    return [record for record in records if record.split == split and record.image.path.is_file()]


def new_gpt2(folder: Path) -> Path:
    """A small GPT-2 with random weights, and a tokenizer learnt from the training captions."""
    return make_gpt2(folder, [caption for record in flickr8k("train") for caption in record.captions])


def learn(photos: Photos, out: Path, lm: Path, flags: Sequence[str]) -> dict[str, object]:
    """Train, and predict in three ways.

    Returns:
        captions word for word one by one, in another order and as a folder; seconds of the training; mean
        log-probabilities of the photos' captions and of a grey image's, and whether its caption is one of theirs.
    """
    run, start = out / "run", time.perf_counter()
    shutil.rmtree(run, ignore_errors=True)
    command("train", "--data", photos.features, "--lm", lm, "--out_dir", run, "--val_captions", 0, *flags)
    seconds = time.perf_counter() - start
    names = list(photos.captions)
    orders = {"listed": names, "reversed": names[::-1], "as a folder": None}
    exact, scores = {}, []
    for order, listed in orders.items():
        images = [photos.folder] if listed is None else [photos.folder / name for name in listed]
        lines = predict(run, out, images)
        found = [tidy(photos.captions[Path(line["image"]).name]) == line["caption"] for line in lines]
        exact[order] = f"{sum(found)}/{len(lines)}"
        scores += [line["captions"][0]["logprob"] for line in lines]
    Image.new("RGB", (224, 224), (128, 128, 128)).save(out / "grey.png")
    [grey] = predict(run, out, [out / "grey.png"])
    logprob = grey["captions"][0]["logprob"]
    span = f"{min(scores):.3f} … {max(scores):.3f}"
    known = grey["caption"] in {tidy(caption) for caption in photos.captions.values()}
    return {**exact, "photos": span, "grey": f"{logprob:.3f}{' (a learnt caption)' * known}", "s": f"{seconds:.0f}"}


def predict(run: Path, out: Path, images: Sequence[Path]) -> list[dict]:
    """`predict.py --beam` on photos: its lines."""
    file = out / "captions.out.jsonl"
    command("predict", "--beam", "--load_pt", run, "--out", file, "--img", *images)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tuned_gpt2(folder: Path, steps: int, batch: int = 32, rate: float = 2e-3) -> tuple[Path, float]:
    """A small GPT-2 that has learnt Flickr8k's training captions, without images.

    Returns:
        its folder, and its loss per token (end-of-text included) on the captions of the held-out photos.
    """
    lm = load_lm(str(new_gpt2(folder)))
    tokenizer = load_tokenizer(str(folder))
    learnt, held_out = (token_rows(flickr8k(split), tokenizer) for split in ("train", "val"))
    optimizer = torch.optim.AdamW(lm.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    order = torch.randperm(len(learnt), generator=torch.Generator().manual_seed(0))
    lm.train()
    for step in range(steps):
        chosen = order.roll(-step * batch)[:batch].tolist()
        loss_sum, tokens = text_loss(lm, [learnt[i] for i in chosen])
        (loss_sum / tokens).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    lm.save_pretrained(folder)
    lm.eval()
    with torch.no_grad():
        parts = [text_loss(lm, held_out[i : i + batch]) for i in range(0, len(held_out), batch)]
    return folder, sum(float(loss) for loss, _ in parts) / sum(tokens for _, tokens in parts)


def token_rows(records: list[Record], tokenizer: Callable) -> list[list[int]]:
    """Token ids of every caption, as training makes them, the end-of-text before and after."""
    end = [tokenizer.eos_token_id]
    return [end + tokenizer(caption)["input_ids"] + end for record in records for caption in record.captions]


def text_loss(lm: GPT2LMHeadModel, rows: list[list[int]]) -> tuple[torch.Tensor, int]:
    """Cross entropy summed over the tokens after the first of each row, and their number."""
    longest = max(map(len, rows))
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])  # [B, T]
    logits = lm(input_ids=labels.clamp(min=0)[:, :-1]).logits  # [B, T - 1, V]
    wanted = labels[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=-100
    ), int((wanted != -100).sum())


def parse_flickr8k(out: Path, photos: int) -> Path:
    """Features of so many training photos, and beside them those of the held-out ones."""
    records = [*flickr8k("train")[:photos], *flickr8k("val")]
    lines = [{"image": r.image_id, "caption": c, "split": r.split} for r in records for c in r.captions]
    table = out / "flickr8k.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ["--data_path", table, "--images", FLICKR8K / "Images", "--clip_model_type", ENCODER]
    command("parse", "custom", *words, "--out", out / "flickr8k.pkl")
    return out / "flickr8k_train.pkl"


def held_out_loss(features: Path, run: Path, lm: Path, mapper: str) -> float:
    """Best validation loss of a mapper trained before the frozen language model."""
    words = ["--data", features, "--lm", lm, "--out_dir", run, "--only_prefix", "--mapping_type", mapper]
    command("train", *words, "--epochs", 2, "--lr", 1e-3, "--val_captions", 0)
    log = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return min(json.loads(line)["val_loss"] for line in log)


if __name__ == "__main__":
    main()
