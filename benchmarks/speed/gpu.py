"""Speed on a GPU, in one table and at most eight minutes: parse, training, decoding.

python -m benchmarks.speed.gpu [--device cuda] [--tiny] [--out FILE.md]

Everything is made here, with random weights of the real sizes; nothing is fetched. `--tiny --device cpu` shows that
the script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from clip.model import CLIP
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import clock_of, machine, matmul_flops
from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.sampling import sample
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import scenes
from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.encode_images import encode_images, read_pixels
from clipcap.models.encoders.load import load_encoder
from clipcap.models.kernels.compile import compile_loss
from clipcap.training.optimizer import make_optimizer, trained_parameters

MINUTES = 7.5  # after which the rest is left out, and named
TOKENS = 20  # of a caption
ENCODERS = {
    "ViT-B/32": (512, 224, 12, 768, 32),
    "ViT-L/14": (768, 224, 24, 1024, 14),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None),
}
TINY_ENCODERS = {"ViT, tiny": (64, 64, 2, 64, 16)}
MODELS = {
    "transformer 40/40 × 8, frozen": {"mapping_type": "transformer", "prefix_length": 40, "prefix_length_clip": 40},
    "MLP, GPT-2 tuned": {"mapping_type": "mlp", "tune": "full"},
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    encoders: dict[str, tuple]
    lm: GPT2Config
    batches: tuple[int, ...]  # captions of a training step, images of an encoder call
    images: tuple[int, ...]  # decoded together
    photos: int


FULL = Sizes(ENCODERS, GPT2Config(), (40, 160), (1, 32, 256), 256)
TINY = Sizes(TINY_ENCODERS, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=97), (2, 4), (1, 2), 4)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    stage: str
    speed: float  # a second
    unit: str
    gib: float  # peak memory of the GPU

    def __str__(self) -> str:
        return f"| {self.stage} | {self.speed:,.3g} {self.unit}/s | {self.gib:.2f} |"


class GpuBench:
    """The stages, one after the other."""

    def __init__(self, device: torch.device, sizes: Sizes):
        self.device, self.sizes, self.clock = device, sizes, clock_of(device)

    def stages(self) -> Iterator[Callable[[], list[Row]]]:
        """What gives the rows."""
        for name in self.sizes.encoders:
            yield lambda name=name: self.parse(name)
        for compiled in (False, True) if self.device.type == "cuda" else (False,):
            for title in MODELS:
                yield lambda title=title, compiled=compiled: self.train(title, compiled)
        for way in ("beam 5", "sampling"):
            yield lambda way=way: self.decode(way)

    def row(self, stage: str, items: int, unit: str, work: Callable[[], object], turns: int = 3) -> Row:
        """The best of some turns, after one that warms up."""
        work()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(turns):
            start = self.clock()
            work()
            seconds.append(self.clock() - start)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return Row(stage, items / min(seconds), unit, peak / 2**30)

    def parse(self, name: str) -> list[Row]:
        """JPEGs decoded alone, encoded alone, and both as `parse` does, in one process."""
        photos = [_jpeg(scene) for scene in islice(scenes(), self.sizes.photos)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.pt"
            width = self.sizes.encoders[name][0]
            torch.save(CLIP(*self.sizes.encoders[name], 77, 49408, width, max(1, width // 64), 1).state_dict(), path)
            encoder = load_encoder(str(path), str(self.device))
        pixels = [read_pixels(encoder.preprocess, photo).pixels[0] for photo in photos[:4]]  # each [3, R, R]
        rows = [
            self.row(
                f"{name}: JPEGs decoded and scaled, one thread", len(photos), "images",
                lambda: [read_pixels(encoder.preprocess, photo) for photo in photos], 1,
            )
        ]  # fmt: skip
        for batch in self.sizes.batches:
            together = torch.stack([pixels[i % 4] for i in range(batch)])
            rows.append(self.row(f"{name}: encoder alone, {batch} images", batch, "images",
                                 lambda x=together: encoder.encode_images(x)))  # fmt: skip
        whole = lambda: list(encode_images(encoder, photos, max(self.sizes.batches), threads=16))  # noqa: E731
        return [*rows, self.row(f"{name}: from JPEGs, 16 threads", len(photos), "images", whole, 1)]

    def model(self, title: str) -> ClipCaptionModel:
        """A captioner with random weights."""
        torch.manual_seed(0)
        return ClipCaptionModel(ModelConfig(**MODELS[title]), GPT2LMHeadModel(self.sizes.lm)).to(self.device)

    def train(self, title: str, compiled: bool) -> list[Row]:
        """Steps in mixed precision, captions of 15 tokens."""
        model, rows = self.model(title).train(), []
        optimizer = make_optimizer(trained_parameters(model, 2e-5), weight_decay=0.0)
        if compiled:
            compile_loss(model, self.device)
        for batch in self.sizes.batches:
            clip_embedding = torch.randn(batch, 512, device=self.device)
            tokens = torch.randint(self.sizes.lm.vocab_size, (batch, 15), device=self.device)

            def step(clip_embedding: torch.Tensor = clip_embedding, tokens: torch.Tensor = tokens) -> None:
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss = model(clip_embedding, tokens, labels=tokens)
                (loss / tokens.numel()).backward()
                optimizer.step()
                optimizer.zero_grad()

            how = ", compiled" if compiled else ""
            rows.append(self.row(f"training: {title}, batch {batch}{how}", batch, "captions", step))
        return rows

    def decode(self, way: str) -> list[Row]:
        """Captions of 20 tokens that nothing stops."""
        model = self.model(next(iter(MODELS))).eval()
        config = DecodeConfig.of(beam=way != "sampling", max_new_tokens=TOKENS, seed=0 if way == "sampling" else None)

        @torch.inference_mode()
        def write(embeddings: torch.Tensor) -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                decoder = CachedDecoder(model, model.prefix(embeddings))
                if way == "sampling":
                    sample(decoder, config.resolved(), [-1], [], range(len(embeddings)))
                else:
                    beam_search(decoder, config.resolved(), [-1], [])

        rows = []
        for count in self.sizes.images:
            embeddings = torch.randn(count, 512, device=self.device)
            rows.append(self.row(f"{way}, {count} images", count, "captions", lambda x=embeddings: write(x)))
        return rows


def _jpeg(scene: object) -> bytes:
    """A drawn plate of a COCO photo's size."""
    file = io.BytesIO()
    draw(scene, 640).crop((0, 80, 640, 560)).save(file, "JPEG", quality=90)
    return file.getvalue()


def table(device: torch.device, sizes: Sizes) -> str:
    """All rows as Markdown; what did not fit into the time, or failed, is named."""
    bench, start, lines = GpuBench(device, sizes), time.perf_counter(), []
    for number, stage in enumerate(bench.stages()):
        if time.perf_counter() - start > 60 * MINUTES:
            lines.append(f"| stage {number} and those behind it: left out, the time is over | | |")
            break
        try:
            found = [str(row) for row in stage()]
        except (ClipcapError, RuntimeError) as error:  # no compiler, or no memory: the other stages go on
            found = [f"| stage {number}: {' '.join(str(error).split())[:150]} | | |"]
        print(*found, sep="\n", flush=True)
        lines += found
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    product = matmul_flops(bench.clock, 8192 if device.type == "cuda" else 512, device=device, dtype=torch.bfloat16)
    head = f"{name}; {machine()}; bfloat16 matrix product {product / 1e12:.3g} TFLOP/s\n"
    return "\n".join([head, "| stage | speed | peak memory, GiB |", "| --- | --- | --- |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that the script works")
    parser.add_argument("--out", help="also write the table to this file")
    args = parser.parse_args()
    found = table(torch.device(args.device), TINY if args.tiny else FULL)
    print(found)
    if args.out:
        Path(args.out).write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
