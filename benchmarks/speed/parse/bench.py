"""Parsing: images a second, breakdown, memory and share of the machine's limit, beside the plain baseline.

python -m benchmarks.speed.parse.bench [--encoder ViT-B/32 RN50x4] [--turns 3] [--no_memory] [--cpu_time]
    [--dtype bfloat16]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import PartialState
from clip.model import CLIP
from torch import nn

from benchmarks.measure import REPO, SIDES, Clock, Comparison, flags_of, machine, matmul_flops, peak_gib, table
from benchmarks.speed.parse import plain
from benchmarks.speed.parse.arithmetic import encoder_flops
from clipcap.features.config import ParseConfig
from clipcap.features.encode import cpu_threads, encode_batch, encode_missing
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.features.unfinished import PartialRows
from clipcap.images.read import open_image
from clipcap.images.ref import ImageRef
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai_weights import load_openai_clip
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS
from clipcap.sources.record import Record

SHARED = Path(os.environ.get("CLIPCAP_SHARED") or REPO.parent / "shared")
# Sizes of the published encoders; of their text towers, which parsing does not use, one layer.
SIZES = {"ViT-B/32": (512, 224, 12, 768, 32), "RN50x4": (640, 288, (4, 6, 10, 6), 80, None)}
TARGETS = {"ViT-B/32": ("≥ 8", "≥ 1.6"), "RN50x4": ("≥ 5", "≥ 0.95")}
CAPTIONS, PLAIN_IMAGES, IMAGES = 5, 2, 80


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def random_weights(name: str, folder: Path) -> Path:
    """A checkpoint in OpenAI's format, of the real size."""
    torch.manual_seed(0)
    width = SIZES[name][0]
    network = CLIP(*SIZES[name], 77, 49408, width, width // 64, 1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # CLIP starts blocks at nought
                module.weight.fill_(1.0)
    path = folder / f"{name.replace('/', '-')}.pt"
    torch.save(network.state_dict(), path)
    return path


def photos(folder: Path) -> list[Record]:
    """80 COCO photos of five captions each; where they are absent, drawn plates of a COCO photo's size."""
    found = SHARED / "data" / "coco_mini"
    if found.is_dir():
        records = READERS["coco"](SourceConfig(data_path=str(found))).records
    else:
        from clipcap.demo.drawing.draw import draw
        from clipcap.demo.plates import captions, scenes

        records = []
        for number, scene in enumerate(islice(scenes(), 80)):
            path = folder / f"{number}.jpg"
            draw(scene, 640).crop((0, 80, 640, 560)).save(path, quality=90)
            records.append(Record(str(number), ImageRef(path), tuple(captions(scene))))
    return [Record(r.image_id, r.image, (r.captions * CAPTIONS)[:CAPTIONS], r.split) for r in records]


class Bench:
    """Ours and the plain baseline with the same weights, on the same photos."""

    def __init__(self, name: str, folder: Path, dtype: str = "float32"):
        self.folder, self.dtype, self.config = folder, dtype, ParseConfig.of(max_bad=0.0)
        self.weights = str(random_weights(name, folder))
        self.records = photos(folder)
        self.state = PartialState(cpu=True)
        self.runs = 0

    @cached_property
    def encoder(self) -> Encoder:
        """Ours."""
        return load_encoder(self.weights, "cpu", self.dtype)

    @cached_property
    def network(self) -> nn.Module:
        """Of the plain baseline: as OpenAI's package builds it."""
        return load_openai_clip(self.weights).eval()

    def plain(self, images: int = PLAIN_IMAGES) -> int:
        """Of the first images; the number of captions."""
        self.plain_rows = plain.parse(self.network, self.records[:images], self.folder / "plain.pkl")
        return len(self.plain_rows)

    def ours(self, images: int = IMAGES) -> int:
        """From images to a feature file; the number of captions."""
        self.runs += 1
        records, out = self.records[:images], self.folder / f"ours{self.runs}.pkl"
        partial = PartialRows(out, "benchmark", len(records), self.encoder.dim, torch.float32, 0)
        partial.create()
        encode_missing(partial, records, self.encoder, self.config, self.state)
        self.rows = np.array(partial.rows(range(len(records))))  # [N, D]
        write(out, self.rows, records)
        partial.remove()
        return len(records) * CAPTIONS

    def check(self) -> None:
        """Both give the same features, in bfloat16 nearly; it also warms up."""
        self.plain(1), self.ours(4)
        ours, theirs = torch.from_numpy(self.rows[:1]).expand(CAPTIONS, -1), self.plain_rows
        if self.dtype == "float32":
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().mean()))
        else:
            assert torch.cosine_similarity(ours.double(), theirs.double()).min() > 0.999

    def breakdown(self, clock: Clock) -> dict[str, float]:
        """Milliseconds an image of each stage alone."""
        found: dict[str, float] = {}
        records = self.records[:16]

        def timed(stage: str, run: Callable):  # noqa: ANN202
            start = clock()
            result = run()
            found[stage] = (clock() - start) / len(records) * 1e3
            return result

        images = timed("decode", lambda: [open_image(r.image) for r in records])
        pixels = timed("preprocess", lambda: torch.stack([self.encoder.preprocess(image) for image in images]))
        with cpu_threads() as threads:
            rows = timed("encode", lambda: encode_batch(self.encoder, pixels, threads))
        timed("write", lambda: write(self.folder / "breakdown.pkl", rows.numpy(), records))
        return found


def write(path: Path, rows: np.ndarray, records: list[Record]) -> None:
    write_features(
        path,
        embeddings=rows,
        image_ids=[r.image_id for r in records],
        image_paths=[str(r.image) for r in records],
        captions=[r.captions for r in records],
        meta=FeatureMeta(encoder="benchmark"),
    )


def compare(
    name: str, turns: int, memory: bool, clock: Clock = time.perf_counter, dtype: str = "float32"
) -> list[Comparison]:
    """One encoder, per caption and per image: a turn is two photos of the plain baseline and 80 of ours."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, Path(folder), dtype)
        bench.check()
        stages = bench.breakdown(clock)
        print(f"{name}: " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items()) + " ms an image")
        captions, images = (
            Comparison(f"parse, {name}, five captions an image: {what}", target)
            for what, target in zip(("captions", "images"), TARGETS[name], strict=True)
        )
        flops, shares = encoder_flops(bench.network.visual), []
        for _ in range(turns):
            ceiling = matmul_flops(clock, dtype=getattr(torch, dtype))
            captions.turn(bench.plain, bench.ours, clock)
            images.plain.append(captions.plain[-1])  # one encoding each
            images.ours.append(captions.ours[-1] * CAPTIONS)
            shares.append(flops / images.ours[-1] / ceiling)
            print(f"{name}: plain {images.plain[-1]:.3f}, ours {images.ours[-1]:.3f} s an encoding, "
                  f"share {shares[-1]:.0%} of {ceiling / 1e9:.0f} GFLOP/s", flush=True)  # fmt: skip
    images.notes.append(f"{median(shares):.0%} of the matrix product's speed")
    captions.notes.append("same features" if dtype == "float32" else "features of a cosine above 0.999")
    if memory:
        before, after = (
            peak_gib("benchmarks.speed.parse.bench", "--memory_of", side, "--encoder", name) for side in SIDES
        )
        captions.notes.append(f"memory {before:.2f} → {after:.2f} GiB")
    return [captions, images]


def short() -> list[Comparison]:
    """One turn of the smaller encoder, for `python -m benchmarks`."""
    return compare("ViT-B/32", turns=1, memory=False)


def main() -> None:
    parser = flags_of(__doc__, turns=3)
    parser.add_argument("--encoder", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours")
    args = parser.parse_args()
    if args.memory_of:
        with tempfile.TemporaryDirectory() as folder:
            getattr(Bench(args.encoder[0], Path(folder)), args.memory_of)()
        return
    print(machine(), flush=True)
    clock = cpu_seconds if args.cpu_time else time.perf_counter
    print(
        table([c for name in args.encoder for c in compare(name, args.turns, not args.no_memory, clock, args.dtype)])
    )


if __name__ == "__main__":
    main()
