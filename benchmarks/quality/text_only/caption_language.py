"""A small GPT-2 that has read captions and seen no photo: what benchmarks of photos take as `--lm FOLDER`.

python -m benchmarks.quality.text_only.caption_language FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.speed.train.bench import SHARED
from clipcap.demo.tiny import make_tokenizer
from clipcap.features.files import read_features

EPOCHS = 4  # over the captions alone
VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 4000, 192, 4, 3, 64
BATCH, PEAK_LR, DROPOUT = 32, 2e-3, 0.1


def train_language_model(folder: Path, captions: Sequence[str], epochs: int = EPOCHS, seed: int = 0) -> None:
    """Train and store it, with a tokenizer of its own, as a transformers folder.

    Args:
        folder: where to.
        captions: what it reads, in another random order each time, as rows of `POSITIONS` tokens.
        epochs: how often.
        seed: of weights and order.
    """
    tokenizer = make_tokenizer(captions, VOCABULARY)
    end: Any = tokenizer.eos_token_id  # one number: one token
    torch.manual_seed(seed)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=DROPOUT, embd_pdrop=DROPOUT, attn_pdrop=DROPOUT, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape).train()
    pieces = [np.array([*ids, end]) for ids in tokenizer(list(captions))["input_ids"]]
    random = np.random.default_rng(seed)
    rows = np.concatenate([_rows(pieces, random) for _ in range(epochs)])  # [R, T]
    steps = len(rows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps, pct_start=0.1)
    for batch in (bar := tqdm(np.split(rows[: steps * BATCH], steps), desc="language model", unit="step")):
        ids = torch.from_numpy(batch)  # [B, T]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(pieces: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """All captions in a random order, each with its end-of-text, as rows of tokens [R, T]."""
    stream = np.concatenate([pieces[number] for number in random.permutation(len(pieces))])
    whole = len(stream) // POSITIONS
    return stream[: whole * POSITIONS].reshape(whole, POSITIONS)


def main() -> None:
    """Train it on the captions of Flickr8k's 5,999 training photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        parser.exit(1, f"{folder} exists already\n")
    stored = read_features(str(SHARED / "features" / "flickr8k_train_efficientnet_lite0.pkl"))
    train_language_model(folder, stored.captions)


if __name__ == "__main__":
    main()
