"""Training: captions a second, memory and share of the machine's limit, beside the plain baseline.

python -m benchmarks.train.bench [--case transformer-40 ...] [--turns 2] [--no_memory] [--cpu_time]
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import REPO, Clock, Comparison, machine, matmul_flops, peak_gib, table
from benchmarks.plain import PlainTraining
from benchmarks.train.arithmetic import step_flops
from clipcap.config import LoopOptions, ModelConfig
from clipcap.dataset import IGNORE, CaptionDataset, Parts
from clipcap.features import FeatureMeta, Features
from clipcap.lm import load_tokenizer
from clipcap.model import ClipCaptionModel
from clipcap.optimiser import make_optimizer, trained_parameters

SHARED = Path(os.environ.get("CLIPCAP_SHARED") or REPO.parent / "shared")
TRANSFORMER = {"mapping_type": "transformer", "prefix_length": 40, "prefix_length_clip": 40, "clip_dim": 640}
MLP = {"mapping_type": "mlp", "prefix_length": 10, "clip_dim": 512, "tune": "full"}
STEPS = 3  # of ours in a turn: short, middling and long captions


@dataclass(frozen=True)
class Case:
    """What is trained on what."""

    title: str
    target: str
    model: dict
    batch: int
    captions: str  # food or flickr8k
    characters: int = 10**6  # longer captions are left out


CASES = {
    "transformer-40": Case("transformer 40/40 × 8, frozen; food, batch 40", "≥ 3", TRANSFORMER, 40, "food", 240),
    "transformer-8": Case("the same; all food captions, batch 8", "≥ 4", TRANSFORMER, 8, "food"),
    "transformer-five": Case("the same; five captions per image, batch 40", "≥ 5", TRANSFORMER, 40, "flickr8k"),
    "mlp-8": Case("MLP prefix 10, GPT-2 tuned; all food captions, batch 8", "≥ 3.5", MLP, 8, "food"),
    "mlp-40": Case("the same; food, batch 40", "≥ 3.5", MLP, 40, "food", 240),
}


def captions_of(case: Case) -> list[tuple[str, ...]]:
    """The captions of each image; where the real ones are absent, drawn ones of like lengths."""
    folder = SHARED / "data" / case.captions
    if not folder.is_dir():
        return _drawn(case)
    if case.captions == "food":
        with (folder / "Captions.csv").open(encoding="utf-8", newline="") as file:
            texts = [row["Captions"] for row in csv.DictReader(file)]
        return [(text,) for text in texts if text.strip() and len(text) < case.characters]
    images: dict[str, list[str]] = {}
    for line in (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, text = line.split("\t")
        images.setdefault(name.split("#")[0], []).append(text)
    return [tuple(texts) for texts in images.values()]


def _drawn(case: Case) -> list[tuple[str, ...]]:
    from clipcap.demo.plates import captions, scenes

    texts = (captions(scene) for scene in islice(scenes(), 2000))
    if case.captions == "flickr8k":
        return [tuple(several[:5]) for several in texts]
    rng = random.Random(0)  # one to ten sentences, most often one
    joined = (" ".join(several * 2)[: max(40, int(rng.expovariate(1 / 100)))] for several in texts)
    return [(text,) for text in joined if len(text) < case.characters]


class Bench:
    """Ours and the plain baseline on the same captions, with the same initial weights."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        images = captions_of(case)
        captions = [text for texts in images for text in texts]
        rows = np.repeat(np.arange(len(images)), [len(texts) for texts in images])
        names = [str(number) for number in range(len(images))]
        embeddings = torch.randn(len(images), case.model["clip_dim"])
        features = Features(embeddings, captions, rows, names, names, FeatureMeta(), Path("benchmark"))
        gpt2 = SHARED / "fixtures" / "gpt2-tokenizer"
        tokenizer = load_tokenizer(str(gpt2) if gpt2.is_dir() else "demo")
        self.case, self.batch = case, case.batch
        lm = GPT2LMHeadModel(GPT2Config())
        self.model = ClipCaptionModel(ModelConfig(**case.model), deepcopy(lm)).train()
        self.data = CaptionDataset(features, tokenizer, 900, share_prefix=True)
        self.reference = CaptionDataset(features, tokenizer, 900, reference=True)
        self.optimizer = make_optimizer(trained_parameters(self.model), LoopOptions())
        self.baseline = PlainTraining(self.reference, self.model.mapper, lm, tuned=self.model.config.tune == "full")

    def check(self) -> None:
        """Both give the same loss on the same captions."""
        captions = np.arange(2)
        batch = self.reference.batch(captions)
        self.model.eval(), self.baseline.lm.eval()
        with torch.no_grad():
            ours = self.model(**batch.inputs(torch.device("cpu"))) / (batch.labels != IGNORE).sum()
            plain = self.baseline.loss(captions)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        self.model.train(), self.baseline.lm.train(self.model.config.tune == "full")

    def steps(self, count: int) -> list[np.ndarray]:
        """Steps of an epoch, spread evenly over the lengths of their rows."""
        steps = sorted(self.data.steps(self.batch, 0, 0), key=lambda step: self.data.batch(step).labels.shape[1])
        return [steps[int((i + 0.5) / count * len(steps))] for i in range(count)]

    def plain(self, captions: np.ndarray) -> int:
        """One step of the plain baseline; the number of captions."""
        self.baseline.step(captions)
        return len(captions)

    def ours(self, steps: Sequence[np.ndarray]) -> int:
        """Steps of ours, as the training loop does them; the number of captions."""
        for captions in steps:
            for batch in self.data.window(captions, Parts(0, 1, self.batch)):
                loss = self.model(**batch.inputs(torch.device("cpu")))
                (loss / (batch.labels != IGNORE).sum()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return sum(map(len, steps))

    def flops(self, captions: np.ndarray) -> float:
        """The arithmetic that a step of these captions must do."""
        batch = self.data.batch(captions)
        lengths = self.data.lengths[batch.captions]
        rows = [lengths[batch.row_of == row].tolist() for row in range(len(batch.clip_embedding))]
        return step_flops(self.model.config, self.model.lm.config, rows)


def compare(name: str, turns: int, memory: bool, clock: Clock = time.perf_counter) -> Comparison:
    """One case: a turn is a step of the plain baseline and `STEPS` of ours."""
    bench, case = Bench(CASES[name]), CASES[name]
    bench.check()
    result = Comparison(case.title, case.target)
    steps = bench.steps(turns * STEPS)
    bench.ours(steps[:1])
    shares = []
    for turn in range(turns):
        mine = steps[turn::turns]
        ceiling = matmul_flops(clock)
        result.turn(lambda mine=mine: bench.plain(mine[1]), lambda mine=mine: bench.ours(mine), clock)
        ceiling = (ceiling + matmul_flops(clock)) / 2
        needed = sum(map(bench.flops, mine)) / sum(map(len, mine))  # per caption
        shares.append(needed / result.ours[-1] / ceiling)
        print(f"{name}: plain {1 / result.plain[-1]:.3g}, ours {1 / result.ours[-1]:.3g} captions/s, ", end="")
        print(f"share {shares[-1]:.0%} of {ceiling / 1e9:.0f} GFLOP/s", flush=True)
    result.notes.append(f"{median(shares):.0%} of the matrix product's speed")
    if memory:
        plain, ours = (peak_gib("benchmarks.train.bench", "--one_step", side, "--case", name) for side in SIDES)
        result.notes.append(f"memory {plain:.1f} → {ours:.1f} GiB, {ours / plain:.2f} ×")
    return result


SIDES = ("plain", "ours")


def one_step(name: str, side: str) -> None:
    """The longest step of one side alone, for its peak memory."""
    bench = Bench(CASES[name])
    step = bench.steps(1000)[-1]
    if side == "plain":
        del bench.model, bench.optimizer
        bench.plain(step)
    else:
        del bench.baseline
        bench.ours([step])


def short() -> list[Comparison]:
    """One turn of two cases, for `python -m benchmarks`."""
    return [compare(name, turns=1, memory=False) for name in ("transformer-8", "mlp-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    parser.add_argument("--one_step", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_step:
        return one_step(args.case[0], args.one_step)
    print(machine(), flush=True)
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(table([compare(name, args.turns, not args.no_memory, clock) for name in args.case]))


if __name__ == "__main__":
    main()
