"""The bundled language model: a small GPT-2 with its own tokenizer, trained on the grammar's sentences."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.demo.kitchen import passages
from clipcap.demo.tiny import make_tokenizer

WIDTH, LAYERS, POSITIONS, VOCABULARY = 128, 4, 128, 1200
TOKENIZER_PASSAGES, HELD_OUT_PASSAGES = 20_000, 2_000
BATCH, PEAK_LR, WARMUP = 32, 3e-3, 100


def train_lm(folder: Path, steps: int, seed: int) -> float:
    """Train and store it in float16 as a transformers folder.

    Args:
        folder: where to.
        steps: optimiser steps of `BATCH` rows of `POSITIONS` tokens.
        seed: of weights and sentences.
    Returns:
        the cross-entropy per token on held-out passages, in nats.
    """
    texts = (text for texts in islice(passages(seed), TOKENIZER_PASSAGES) for text in texts)
    tokenizer = make_tokenizer(texts, VOCABULARY)
    end: Any = tokenizer.eos_token_id  # one number: one token, which a tokenizer's types leave open
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=WIDTH // 64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps, pct_start=min(0.3, WARMUP / steps))
    rows = _rows(tokenizer, seed)
    for _ in (bar := trange(steps, desc="language model", unit="step")):
        batch = torch.from_numpy(np.stack(list(islice(rows, BATCH))))  # [B, T]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return perplexity_loss(model.float().eval(), tokenizer, seed + 1)


def _rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[np.ndarray]:
    """Endless rows of `POSITIONS` tokens: sentences one after the other, each with its end-of-text."""
    stream = np.empty(0, dtype=np.int64)
    every = passages(seed)
    while True:
        texts = [f"{text}{tokenizer.eos_token}" for passage in islice(every, 500) for text in passage]
        pieces = tokenizer(texts)["input_ids"]
        stream = np.concatenate([stream, *map(np.array, pieces)])
        whole = len(stream) // POSITIONS
        yield from stream[: whole * POSITIONS].reshape(whole, POSITIONS)
        stream = stream[whole * POSITIONS :]


@torch.inference_mode()
def perplexity_loss(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Cross-entropy per token, in nats, on passages of a seed it was not trained on."""
    batches = [torch.from_numpy(np.stack(list(islice(_rows(tokenizer, seed), 64)))) for _ in range(4)]
    return sum(model(input_ids=batch, labels=batch).loss.item() for batch in batches) / len(batches)
