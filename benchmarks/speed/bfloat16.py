"""bfloat16 beside float32 and the plain baseline on a CPU: CPU time of one thread, the sides in turn; and quality.

OMP_NUM_THREADS=1 python -m benchmarks.speed.bfloat16 [--stage encoder decode train quality]
    [--cases NAME ...] [--turns 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.measure import machine, matmul_flops
from benchmarks.speed.decode.bench import CASES as DECODE_CASES
from benchmarks.speed.decode.bench import Bench as DecodeBench
from benchmarks.speed.parse.bench import SIZES, random_weights
from benchmarks.speed.train.bench import CASES as TRAIN_CASES
from benchmarks.speed.train.bench import Bench as TrainBench
from benchmarks.speed.train.bench import How
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import captions, scenes
from clipcap.demo.run import VAL_SEED
from clipcap.evaluation.metrics.score import cider
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai_weights import load_openai_clip
from clipcap.runtime.bundled import DEMO

DTYPES = ("float32", "bfloat16")
Side = tuple[Callable[[], object], int]  # (work, how many items it does)


def compare(stage: str, plain: Side, sides: dict[str, Side], turns: int) -> str:
    """A line of the table: seconds an item, the least of all turns, and how many times faster than plain."""
    every = {"plain": plain, **sides}
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for work, _ in every.values():
        work()
    for _ in range(turns):
        for name, (work, items) in every.items():
            start = time.process_time()
            work()
            seconds[name].append((time.process_time() - start) / items)
    best = {name: min(times) for name, times in seconds.items()}
    ratios = [f"{best[name]:.3f} s, {best['plain'] / best[name]:.2f} ×" for name in DTYPES]
    return f"| {stage} | {best['plain']:.3f} s | {' | '.join(ratios)} |"


def encoder(turns: int, names: Sequence[str] = tuple(SIZES)) -> Iterator[str]:
    """The image towers, four images a call."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = str(random_weights(name, Path(folder)))
            network = load_openai_clip(path).eval()
            ours = {dtype: load_encoder(path, "cpu", dtype) for dtype in DTYPES}
        pixels = torch.randn(4, 3, SIZES[name][1], SIZES[name][1])
        plain = torch.inference_mode()(lambda network=network, pixels=pixels: network.encode_image(pixels))
        sides = {d: (lambda one=one, pixels=pixels: one.encode_images(pixels), 4) for d, one in ours.items()}
        yield compare(f"{name}, an image of four", (plain, 4), sides, turns)


DECODED = ("beam-40", "beam-40-32", "sample-40", "sample-40-32")
TRAINED = ("transformer-40", "mlp-40", "transformer-five", "smollm2-five")


def decode(turns: int, names: Sequence[str] = DECODED) -> Iterator[str]:
    """Beam search and sampling."""
    for name in names:
        case = DECODE_CASES[name]
        ours = {d: DecodeBench(case, getattr(torch, d)) for d in DTYPES}
        sides = {d: (bench.ours, case.images) for d, bench in ours.items()}
        yield compare(case.title, (ours["float32"].plain, 1), sides, turns)


def train(turns: int, names: Sequence[str] = TRAINED) -> Iterator[str]:
    """A step of middling length, per caption."""
    for name in names:
        case = TRAIN_CASES[name]
        ours = {d: TrainBench(case, How(dtype=d)) for d in DTYPES}
        step = ours["float32"].steps(3)[1]
        sides = {d: (lambda b=b, step=step: b.ours([step]), len(step)) for d, b in ours.items()}
        plain = (lambda bench=ours["float32"], step=step: bench.plain(step)), len(step)
        line = compare(case.title, plain, sides, turns)
        if needed := ours["bfloat16"].needed([step]):
            line += f" {needed.flops / 1e9:.0f} GFLOP a caption are needed |"
        yield line


def quality(images: int = 100) -> Iterator[str]:
    """The bundled captioner on plates it has not seen: cosines of the features, captions alike, CIDEr-D."""
    drawn = list(islice(scenes("val", VAL_SEED), images))
    references = [captions(scene) for scene in drawn]
    ours = [Captioner.from_pretrained(DEMO, device="cpu", dtype=dtype) for dtype in DTYPES]
    rows = [torch.cat([c.embed([c.encoder.preprocess(draw(scene))]) for scene in drawn]) for c in ours]  # 2 × [N, D]
    cosine = torch.cosine_similarity(*rows)
    yield f"features: cosine {cosine.mean():.5f} on average, {cosine.min():.5f} at least"
    for name, config in {"beam 5": DecodeConfig(beam=True), "greedy": DecodeConfig(greedy=True)}.items():
        one, other = (captioner(list(row), config) for captioner, row in zip(ours, rows, strict=True))
        alike = sum(a == b for a, b in zip(one, other, strict=True))
        scores = " and ".join(f"{cider(found, references):.3f}" for found in (one, other))
        yield f"{name}: {alike} of {images} captions alike; CIDEr-D in float32 and bfloat16 {scores}"


STAGES: dict[str, Callable[..., Iterator[str]]] = {"encoder": encoder, "decode": decode, "train": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=(*STAGES, "quality"), default=[*STAGES, "quality"])
    parser.add_argument("--cases", nargs="+", help="of one stage, by name (default: all)")
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    products = [matmul_flops(time.process_time, dtype=getattr(torch, dtype)) / 1e9 for dtype in DTYPES]
    print(machine(), "matrix product {:.0f} GFLOP/s in float32, {:.0f} in bfloat16".format(*products), sep="\n")
    print("| stage | plain | float32 | bfloat16 |", "| --- | --- | --- | --- |", sep="\n", flush=True)
    for name in args.stage:
        for line in (
            quality() if name == "quality" else STAGES[name](args.turns, *([args.cases] if args.cases else []))
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
