"""`--dtype int8` beside float32: seconds a caption at GPT-2 small's size, and how often both write the same caption.

The captions are those of the bundled captioner, on plates it has not seen.

python -m benchmarks.speed.decode.int8 [--images 240]
"""

from __future__ import annotations

import argparse
from itertools import islice
from statistics import median

import torch

from benchmarks.measure import Comparison, machine
from benchmarks.speed.decode.bench import CASES, Bench
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import captions, scenes
from clipcap.demo.run import VAL_SEED
from clipcap.evaluation.metrics.score import cider
from clipcap.models.kernels.int8 import quantised
from clipcap.runtime.bundled import DEMO


def speeds(turns: int = 3) -> None:
    """Seconds an image of both, in turn, and the ratio of their medians."""
    for name in ("sample-40", "beam-40", "sample-40-32"):
        exact, rounded = Bench(CASES[name]), Bench(CASES[name])
        rounded.model.lm = quantised(rounded.model.lm)
        result = Comparison(CASES[name].title, "")
        exact.ours(), rounded.ours()
        for _ in range(turns):
            result.turn(exact.ours, rounded.ours)
        one, other = median(result.plain), median(result.ours)
        print(f"{result.stage}: {one:.3f} s float32, {other:.3f} s int8, {one / other:.2f} ×", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=240)
    images = parser.parse_args().images
    print(machine())
    speeds()
    drawn = list(islice(scenes("val", VAL_SEED), images))
    exact, rounded = (Captioner.from_pretrained(DEMO, device="cpu", dtype=dtype) for dtype in ("float32", "int8"))
    embeddings = torch.cat([exact.embed([exact.encoder.preprocess(draw(scene))]) for scene in drawn])  # [N, D]
    references = [captions(scene) for scene in drawn]
    for name, config in {"beam 5": DecodeConfig(beam=True), "greedy": DecodeConfig(greedy=True)}.items():
        one, other = (captioner(list(embeddings), config) for captioner in (exact, rounded))
        alike = sum(a == b for a, b in zip(one, other, strict=True)) / images
        scores = [f"{cider(written, references):.3f}" for written in (one, other)]
        print(
            f"{name}: {alike:.1%} of {images} captions alike; CIDEr-D {scores[0]} float32, {scores[1]} int8",
            flush=True,
        )


if __name__ == "__main__":
    main()
