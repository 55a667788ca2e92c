"""Evaluation from features to report: what of its time is scoring.

python -m benchmarks.speed.evaluate.bench [--images 1000] [--java] [--cpu_time]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from benchmarks.measure import Clock, Comparison, machine, table
from benchmarks.speed.decode.bench import CASES, Bench
from clipcap.captioning.captioner import Captioner
from clipcap.demo.plates import captions, scenes
from clipcap.evaluation.config import EvaluateConfig
from clipcap.evaluation.evaluate import PREDICTIONS, REFERENCES, evaluate
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.runtime.bundled import DEMO


def write(path: Path, images: int) -> None:
    """Features of as many images: random ones, with the captions of drawn plates."""
    own = Captioner.from_pretrained(DEMO, device="cpu").model.config
    texts = [tuple(captions(scene))[:5] for scene in islice(scenes(), images)]
    write_features(
        path,
        embeddings=torch.randn(images, own.clip_dim, generator=torch.Generator().manual_seed(0)).numpy(),
        image_ids=[str(number) for number in range(images)],
        image_paths=[None] * images,
        captions=texts,
        meta=FeatureMeta(encoder=own.encoder, encoder_weights_id=own.encoder_weights_id),
    )


def compare(images: int, java: bool, clock: Clock = time.perf_counter) -> Comparison:
    """Seconds an image of captioning by a model of GPT-2 small's size (32 measured), and of scoring and report."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "f.pkl", Path(folder) / "evaluation"
        write(data, images)
        options = {"java": java, "clip_score": False, "device": "cpu"}
        whole = EvaluateConfig.of(data=str(data), out=str(out), **options)
        files = {"predictions": str(out / PREDICTIONS), "references": str(out / REFERENCES)}
        scoring = EvaluateConfig.of(**files, out=str(Path(folder) / "scored"), **options)
        seconds = []
        for config in (whole, scoring):  # with the bundled model, and of the captions that it wrote
            start = clock()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                evaluate(config)
            seconds.append(clock() - start)
    captioning = timed(Bench(CASES["beam-40-32"]), clock)
    scored = seconds[1] / images
    return Comparison(
        f"evaluation, {images:,} images, beam 5: captioning (GPT-2 small) beside scoring and report",
        "scoring ≤ 5 % (ratio ≥ 19)",
        [captioning],
        [scored],
        [
            f"scoring {scored / (captioning + scored):.1%}; with the bundled model {seconds[0]:.1f} s in all, "
            f"of which scoring {seconds[1]:.1f} s, {seconds[1] / seconds[0]:.1%}"
        ],
    )


def timed(bench: Bench, clock: Clock) -> float:
    """Seconds an image."""
    start = clock()
    images = bench.ours()
    return (clock() - start) / images


def short() -> list[Comparison]:
    """Fewer images, for `python -m benchmarks`."""
    return [compare(100, java=False)]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--java", action="store_true", help="score with Java too, where it is found")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    args = parser.parse_args()
    print(machine(), flush=True)
    print(table([compare(args.images, args.java, cpu_seconds if args.cpu_time else time.perf_counter)]))


if __name__ == "__main__":
    main()
