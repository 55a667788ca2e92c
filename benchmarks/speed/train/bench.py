"""Training: captions a second, memory and share of the machine's limit, beside the plain baseline.

python -m benchmarks.speed.train.bench [--case transformer-40 ...] [--turns 2] [--no_memory] [--cpu_time]
    [--device cuda] [--dtype bfloat16] [--compile] [--gradient_checkpointing]
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.measure import (
    REPO,
    SIDES,
    Comparison,
    ceilings,
    clock_of,
    flags_of,
    forget_peak,
    machine,
    matmul_flops,
    peak_gib,
    table,
)
from benchmarks.plain import PlainTraining
from benchmarks.speed.train.arithmetic import plain_flops, step_bytes, step_flops
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.models.base import IGNORE
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.kernels.attention import write_out_attention
from clipcap.models.kernels.compile import compile_loss
from clipcap.models.kernels.frozen_bfloat16 import hold_frozen_in_bfloat16
from clipcap.models.language_model import checkpoint_layers, load_tokenizer
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.gradients import make_gradients
from clipcap.training.optimizer import make_optimizer, trained_parameters

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
    original: float | None = None  # captions a second of the published code, once measured on two AVX2 cores
    lm: Callable[[], PreTrainedModel] = lambda: GPT2LMHeadModel(GPT2Config())


def smollm2() -> LlamaForCausalLM:
    """Of the sizes of SmolLM2-135M, with random weights and GPT-2's vocabulary."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 50257}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, max_position_embeddings=2048))


CASES = {
    "transformer-40": Case("transformer, frozen: food, batch 40", "≥ 3", TRANSFORMER, 40, "food", 240, 0.77),
    "transformer-8": Case("transformer, frozen: all food, batch 8", "≥ 4", TRANSFORMER, 8, "food", original=0.53),
    "transformer-five": Case("transformer, frozen: five per image, batch 40", "≥ 5", TRANSFORMER, 40, "flickr8k"),
    "mlp-8": Case("MLP, GPT-2 tuned: all food, batch 8", "≥ 3.5", MLP, 8, "food", original=0.60),
    "mlp-40": Case("MLP, GPT-2 tuned: food, batch 40", "≥ 3.5", MLP, 40, "food", 240, 1.16),
    "smollm2-five": Case(
        "SmolLM2-135M frozen, MLP, prefix 10: five per image, batch 40",
        "≥ 6",
        {**MLP, "tune": "none"},
        40,
        "flickr8k",
        lm=smollm2,
    ),
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


@dataclass(frozen=True)
class Needed:
    """Per caption: operations and bytes that must be, and operations of the plain baseline."""

    flops: float
    traffic: float
    plain_flops: float

    def __str__(self) -> str:
        return (
            f"per caption {self.flops / 1e9:.0f} GFLOP and {self.traffic / 1e6:.0f} MB are needed, plain computes "
            f"{self.plain_flops / self.flops:.2f} × as much"
        )


@dataclass(frozen=True)
class How:
    """What both sides are computed on and in, and what ours does besides."""

    device: str = "cpu"
    dtype: str = "float32"  # bfloat16: by autocast, the weights stay float32
    compile: bool = False
    gradient_checkpointing: bool = False


class Bench:
    """Ours and the plain baseline on the same captions, with the same initial weights."""

    def __init__(self, case: Case, how: How = How()):
        torch.manual_seed(0)
        images = captions_of(case)
        captions = [text for texts in images for text in texts]
        rows = np.repeat(np.arange(len(images)), [len(texts) for texts in images])
        names = [str(number) for number in range(len(images))]
        embeddings = torch.randn(len(images), case.model["clip_dim"])
        features = Features(embeddings, captions, rows, names, names, FeatureMeta(), Path("benchmark"))
        gpt2 = SHARED / "fixtures" / "gpt2-tokenizer"
        tokenizer = load_tokenizer(str(gpt2) if gpt2.is_dir() else "demo")
        self.case, self.batch, self.device = case, case.batch, torch.device(how.device)
        self.dtype = getattr(torch, how.dtype)
        with self.device:
            lm = case.lm()
        self.model = ClipCaptionModel(ModelConfig(**case.model), deepcopy(lm)).to(self.device).train()
        self.data = CaptionDataset(features, tokenizer, 900, share_prefix=True)
        self.reference = CaptionDataset(features, tokenizer, 900, reference=True)
        self.optimizer = make_optimizer(trained_parameters(self.model, 2e-5), weight_decay=0.0)
        self.baseline = PlainTraining(self.reference, self.model.mapper, lm, tuned=self.model.config.tune == "full")
        if self.dtype == torch.bfloat16 and self.device.type == "cpu":  # as the task of a run does
            hold_frozen_in_bfloat16(self.model)
            write_out_attention(self.model.lm)
        if how.gradient_checkpointing:
            checkpoint_layers(self.model.lm)
        if how.compile:
            compile_loss(self.model, self.device)
        AcceleratorState._reset_state()  # of another bench in this process
        precision = "bf16" if self.dtype == torch.bfloat16 else "no"
        accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision=precision)
        self.gradients = make_gradients(accelerator.prepare_model(self.model), accelerator)

    def autocast(self) -> torch.autocast:
        """Mixed precision as accelerate gives it, for both sides."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def check(self) -> None:
        """Both give the same loss on the same captions."""
        captions = np.arange(2)
        batch = self.reference.batch(captions)
        self.model.eval(), self.baseline.lm.eval()
        with torch.no_grad(), self.autocast():
            ours = self.model(**batch.inputs(self.device)) / (batch.labels != IGNORE).sum()
            plain = self.baseline.loss(captions)
        tolerance = 1e-4 if self.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
        self.model.train(), self.baseline.lm.train(self.model.config.tune == "full")

    def steps(self, count: int) -> list[np.ndarray]:
        """Steps of an epoch, spread evenly over the lengths of their rows."""
        steps = sorted(self.data.steps(self.batch, 0, 0), key=lambda step: self.data.batch(step).labels.shape[1])
        return [steps[int((i + 0.5) / count * len(steps))] for i in range(count)]

    def plain(self, captions: np.ndarray) -> int:
        """One step of the plain baseline; the number of captions."""
        with self.autocast():
            self.baseline.step(captions)
        return len(captions)

    def ours(self, steps: Sequence[np.ndarray]) -> int:
        """Steps of ours, as the training loop does them; the number of captions."""
        for captions in steps:
            for batch in self.data.window(captions, BatchShare(0, 1, self.batch)):
                self.gradients.add(batch, 1 / int((batch.labels != IGNORE).sum()), last=True)
            self.optimizer.step()
            self.gradients.clear(self.optimizer)
        return sum(map(len, steps))

    def needed(self, steps: Sequence[np.ndarray]) -> Needed | None:
        """Arithmetic and traffic per caption of these steps; None for language models that the rule is not for."""
        config, gpt2 = self.model.config, self.model.lm.config
        if not isinstance(gpt2, GPT2Config):
            return None
        flops = traffic = 0.0
        for captions in steps:
            batch = self.data.batch(captions)
            lengths = self.data.lengths[batch.captions]
            rows = [lengths[batch.row_of == row].tolist() for row in range(len(batch.given.vectors))]
            flops += step_flops(config, gpt2, rows)
            traffic += step_bytes(config, gpt2, rows)
        count = sum(map(len, steps))
        return Needed(flops / count, traffic / count, plain_flops(config, gpt2, 1, self.baseline.longest))


def compare(name: str, turns: int, memory: bool, how: How = How(), cpu_time: bool = False) -> Comparison:
    """One case: a turn is a step of the plain baseline and `STEPS` of ours."""
    bench, case = Bench(CASES[name], how), CASES[name]
    bench.check()
    clock = clock_of(bench.device, cpu_time)
    result = Comparison(case.title, case.target)
    steps = bench.steps(turns * STEPS)
    start = clock()
    bench.ours(steps[:1])
    first = clock() - start
    shares, of_plain = [], []
    for turn in range(turns):
        mine = steps[turn::turns]
        ceiling = matmul_flops(clock, device=bench.device, dtype=bench.dtype)
        result.turn(lambda mine=mine: bench.plain(mine[1]), lambda mine=mine: bench.ours(mine), clock)
        ceiling = (ceiling + matmul_flops(clock, device=bench.device, dtype=bench.dtype)) / 2
        print(f"{name}: plain {1 / result.plain[-1]:.3g}, ours {1 / result.ours[-1]:.3g} captions/s", flush=True)
        if needed := bench.needed(mine):
            shares.append(needed.flops / result.ours[-1] / ceiling)
            of_plain.append(needed.plain_flops / result.plain[-1] / ceiling)
            print(f"share {shares[-1]:.0%} (plain {of_plain[-1]:.0%}) of {ceiling / 1e9:.0f} GFLOP/s", flush=True)
    if needed := bench.needed(steps):
        result.notes.append(f"{median(shares):.0%} of the matrix product's speed (plain {median(of_plain):.0%})")
        result.notes.append(str(needed))
    if case.original:
        result.notes.append(f"plain is {1 / median(result.plain) / case.original:.2f} × the original's measure")
    if how.compile:
        result.notes.append(f"compiled; the first step took {first:.0f} s")
    if memory:
        words = ("--case", name, *flags(how))
        plain, ours = (peak_gib("benchmarks.speed.train.bench", "--memory_of", side, *words) for side in SIDES)
        result.notes.append(f"memory {plain:.1f} → {ours:.1f} GiB, {ours / plain:.2f} ×")
    return result


def flags(how: How) -> list[str]:
    """The command line of these choices."""
    switches = [f"--{name}" for name in ("compile", "gradient_checkpointing") if getattr(how, name)]
    return ["--device", how.device, "--dtype", how.dtype, *switches]


def two_steps(case: Case, side: str, how: How) -> None:
    """The largest step of one side alone, twice, for its peak memory: from the second on AdamW has its moments."""
    bench = Bench(case, how)
    step = max(bench.steps(1000), key=lambda step: bench.data.batch(step).labels.numel())
    if side == "plain":
        del bench.model, bench.optimizer
        forget_peak(bench.device)
        bench.plain(step), bench.plain(step)
    else:
        del bench.baseline
        forget_peak(bench.device)
        bench.ours([step, step])


def short() -> list[Comparison]:
    """One turn of two cases, for `python -m benchmarks`."""
    return [compare(name, turns=1, memory=False) for name in ("transformer-8", "mlp-8")]


def main() -> None:
    parser = flags_of(__doc__, turns=2)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="ours")
    args = parser.parse_args()
    how = How(args.device, args.dtype, args.compile, args.gradient_checkpointing)
    if args.memory_of:
        return two_steps(CASES[args.case[0]], args.memory_of, how)
    print(
        machine(), ceilings(clock_of(torch.device("cpu"), args.cpu_time)), " ".join(flags(how)), sep="\n", flush=True
    )
    found = [compare(name, args.turns, not args.no_memory, how, args.cpu_time) for name in args.case]
    print(table(found), machine(), sep="\n")


if __name__ == "__main__":
    main()
