"""What neighbours and prompts cost, in seconds of CPU time: wall time says little on a machine that others use.

python -m benchmarks.quality.prompts.cost
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.given import Given
from clipcap.retrieval.exact import Vectors, nearest, unit

WIDTH, QUERIES, LISTED = 512, 1024, 24
ROWS, TOKENS, PROMPT, STEPS = 40, 14, 90, 5


def neighbours(images: int) -> None:
    """Exact neighbours of a share of so many images among all of them, scaled to all."""
    torch.manual_seed(0)
    rows = torch.randn(images, WIDTH, dtype=torch.float16) if images <= 100_000 else _many(images)
    parts = [Vectors(rows, np.arange(images))]
    asked = min(QUERIES, images)
    queries = unit(rows[torch.arange(asked)], WIDTH, "cost")
    start = time.process_time()
    nearest(parts, queries, LISTED)
    spent = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {images:,} | {asked:,} | {spent:.1f} s | {spent * images / asked:,.0f} s | {peak:.1f} GB |", flush=True)


def _many(images: int) -> torch.Tensor:
    """Random rows, made a part at a time."""
    rows = torch.empty(images, WIDTH, dtype=torch.float16)
    for part in rows.split(100_000):
        part.copy_(torch.randn(part.shape))
    return rows


def steps() -> None:
    """A training step of GPT-2 small's width with and without prompts."""
    lm = GPT2LMHeadModel(GPT2Config(n_layer=4, vocab_size=5000))
    model = ClipCaptionModel(ModelConfig(clip_dim=WIDTH, prefix_length=10, tune="full", prompt_tokens=PROMPT), lm)
    ids = torch.randint(5000, (ROWS, TOKENS))
    plain = Given(torch.randn(ROWS, WIDTH))
    ones = torch.ones(ROWS, PROMPT, dtype=torch.bool)
    prompted = Given(plain.vectors, prompt_ids=torch.randint(5000, (ROWS, PROMPT)), prompt_mask=ones)
    for name, given in (("without", plain), ("with a prompt of 90 tokens", prompted)):
        for number in range(STEPS + 1):
            if number == 1:
                start = time.process_time()
            model(given, ids, ids).backward()
        print(f"| {name} | {(time.process_time() - start) / STEPS:.2f} s |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[6000, 1_000_000], help="sizes of the datastore")
    args = parser.parse_args()
    print("| images | searched for | CPU time | for all | memory |\n| --- | --- | --- | --- | --- |")
    for images in args.images:
        neighbours(images)
    print("| step of 40 rows | CPU time |\n| --- | --- |")
    steps()


if __name__ == "__main__":
    main()
