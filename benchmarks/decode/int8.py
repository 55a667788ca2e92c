"""How often `--dtype int8` writes the caption that float32 writes: the bundled captioner, on plates it has not seen.

python -m benchmarks.decode.int8 [--images 240]
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch

from benchmarks.measure import machine
from clipcap.bundled import DEMO
from clipcap.captioner import Captioner
from clipcap.config import DecodeConfig
from clipcap.demo.drawing import draw
from clipcap.demo.plates import captions, scenes
from clipcap.demo.run import VAL_SEED
from clipcap.metrics import cider


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=240)
    images = parser.parse_args().images
    print(machine())
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
