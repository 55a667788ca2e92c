"""Speed on a GPU, in one table and at most eight minutes: parse, training, decoding, beside the plain way.

python -m benchmarks.speed.gpu.table [--device cuda] [--tiny] [--out FILE.md] [--stages parse train decode commands]

Everything is made here, with random weights of the real sizes; nothing is fetched. `--tiny --device cpu` shows that
the script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from clip.model import CLIP, convert_weights
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import REPO, Clock, clock_of, machine, matmul_flops
from benchmarks.speed.decode.bench import CASES as DECODE_CASES
from benchmarks.speed.decode.bench import Bench as DecodeBench
from benchmarks.speed.train import lora
from benchmarks.speed.train.bench import CASES as TRAIN_CASES
from benchmarks.speed.train.bench import Bench as TrainBench
from benchmarks.speed.train.bench import Case, How
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import captions, scenes
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.models.encoders.encode_images import encode_images, read_pixels
from clipcap.models.encoders.load import load_encoder
from clipcap.models.language_model import load_tokenizer

MINUTES = 7.5  # after which the rest is left out, and named
ENCODERS = {
    "ViT-B/32": (512, 224, 12, 768, 32),
    "ViT-L/14": (768, 224, 24, 1024, 14),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None),
}
TINY_ENCODERS = {"ViT, tiny": (64, 64, 2, 64, 16)}
TINY_LM = GPT2Config(n_embd=64, n_layer=2, n_head=4)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    encoders: dict[str, tuple]
    batches: tuple[int, ...]  # images of an encoder call
    photos: int  # of the encoder's rows; eight times as many of the command's
    cases: tuple[tuple[str, int], ...]  # of training, and captions of a step
    images: tuple[int, ...]  # decoded together
    tokens: int  # image tokens before LoRA's captions
    steps: int  # of each command that trains
    captioned: int  # images whose features the commands read
    lm: GPT2Config | None  # a small one in place of the real


ALL = ("transformer-40", "transformer-8", "transformer-five", "mlp-8", "mlp-40", "smollm2-five")
FULL = Sizes(
    ENCODERS,
    (40, 160),
    256,
    (*((name, 0) for name in ALL), ("transformer-five", 160)),
    (1, 32, 256),
    196,
    60,
    400,
    None,
)
TINY = Sizes(TINY_ENCODERS, (2, 4), 4, (("transformer-8", 4), ("mlp-8", 4)), (1, 2), 4, 2, 30, TINY_LM)


@dataclass
class Row:
    """A line of the table."""

    stage: str
    speed: float  # a second
    unit: str
    plain: float | None = None  # of the plain way, a second
    gib: float | None = None  # peak memory of the GPU
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        plain, ratio = ("", "") if self.plain is None else (f"{self.plain:,.3g}", f"{self.speed / self.plain:.1f} ×")
        memory = "" if self.gib is None else f"{self.gib:.2f}"
        cells = [self.stage, plain, f"{self.speed:,.3g} {self.unit}/s", ratio, memory, "; ".join(self.notes)]
        return f"| {' | '.join(cells)} |"


class GpuBench:
    """The stages, one after the other."""

    def __init__(self, device: torch.device, sizes: Sizes, chosen: list[str]):
        self.device, self.sizes, self.clock, self.chosen = device, sizes, clock_of(device), chosen
        self.cuda = device.type == "cuda"
        self.ceiling = matmul_flops(self.clock, 8192 if self.cuda else 512, device=device, dtype=torch.bfloat16)

    def stages(self) -> Iterator[Callable[[], Iterator[Row]]]:
        """What gives the rows."""
        if "train" in self.chosen:
            for name, batch in self.sizes.cases:
                yield lambda name=name, batch=batch: self.train(name, batch)
            yield self.lora
        if "decode" in self.chosen:
            for way in ("beam-40", "sample-40"):
                yield lambda way=way: self.decode(way)
        if "parse" in self.chosen:
            for name in self.sizes.encoders:
                yield lambda name=name: self.parse(name)
        if "commands" in self.chosen:
            yield self.commands

    def seconds(self, work: Callable[[], object], turns: int = 3, warm: int = 1) -> float:
        """The best of some turns, after some that warm up."""
        for _ in range(warm):
            work()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        return min(timed(work, self.clock) for _ in range(turns))

    def peak(self) -> float | None:
        """GiB since the last measurement began."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else None

    def train(self, name: str, batch: int) -> Iterator[Row]:
        """A step of middling length in mixed precision; the plain baseline has the same captions."""
        case = self.case(name, batch)
        bench = TrainBench(case, How(self.device.type, "bfloat16"))
        step = bench.steps(3)[1]
        plain = len(step) / self.seconds(lambda: bench.plain(step), turns=2)
        notes = [] if self.peak() is None else [f"plain {self.peak():.2f} GiB, ours beside it"]
        needed = bench.needed([step])
        del bench.baseline
        ours = len(step) / self.seconds(lambda: bench.ours([step]), turns=5, warm=3)
        if needed:
            notes.append(f"{needed.flops * ours / self.ceiling:.0%} of the matrix product's speed")
        title = f"training, {case.title}" + (f", here {batch}" if batch else "")
        yield Row(title, ours, "captions", plain, self.peak(), notes)

    def case(self, name: str, batch: int = 0) -> Case:
        """Of training, in these sizes."""
        case = TRAIN_CASES[name]
        lm = self.sizes.lm
        return replace(case, batch=batch or case.batch, lm=(lambda: GPT2LMHeadModel(lm)) if lm else case.lm)

    def lora(self) -> Iterator[Row]:
        """LoRA behind image tokens, beside transformers' Trainer."""
        lm = self.sizes.lm
        make = (lambda: GPT2LMHeadModel(lm)) if lm else lora.smollm2
        found = lora.compare(self.sizes.tokens, 2, How(self.device.type, "bfloat16"), self.clock, make)
        plain, ours = (1 / min(times) for times in (found.plain, found.ours))
        yield Row(f"training, {found.stage}", ours, "captions", plain, None, found.notes)

    def decode(self, way: str) -> Iterator[Row]:
        """Captions of 20 tokens that nothing stops."""
        plain = None
        for images in self.sizes.images:
            for dtype in (torch.float32, torch.bfloat16) if self.cuda else (torch.float32,):
                case = replace(DECODE_CASES[way], images=images)
                bench = DecodeBench(case, dtype, self.device, self.sizes.lm or GPT2Config())
                if plain is None:
                    plain = 1 / self.seconds(bench.plain)
                ours = images / self.seconds(bench.ours, warm=2)
                name = str(dtype).removeprefix("torch.")
                yield Row(f"{case.way}, {images} images, {name}", ours, "captions", plain, self.peak())

    def parse(self, name: str) -> Iterator[Row]:
        """JPEGs decoded alone, encoded alone, both in one process, and by the command."""
        photos = [_jpeg(scene) for scene in islice(scenes(), self.sizes.photos)]
        with tempfile.TemporaryDirectory() as folder:
            path, width = Path(folder) / "clip.pt", self.sizes.encoders[name][0]
            with self.device:
                network = CLIP(*self.sizes.encoders[name], 77, 49408, width, max(1, width // 64), 1)
            convert_weights(network)  # to float16, as published
            torch.save({key: value.cpu() for key, value in network.state_dict().items()}, path)
            del network
            encoder = load_encoder(str(path), str(self.device))
            pixels = [read_pixels(encoder.preprocess, photo).pixels[0] for photo in photos[:4]]  # each [3, R, R]
            decoded = len(photos) / self.seconds(
                lambda: [read_pixels(encoder.preprocess, photo) for photo in photos], 1, 0
            )
            yield Row(f"{name}: JPEGs decoded and scaled by one core", decoded, "images")
            one = 1 / self.seconds(lambda: encoder.encode_images(pixels[0][None]))
            for batch in self.sizes.batches:
                together = torch.stack([pixels[i % 4] for i in range(batch)])
                speed = batch / self.seconds(lambda x=together: encoder.encode_images(x).cpu())
                yield Row(f"{name}: encoder, {batch} images", speed, "images", one, self.peak(), ["plain: one image"])
            threads = os.cpu_count() or 1
            whole = lambda: list(encode_images(encoder, photos, max(self.sizes.batches), threads=threads))  # noqa: E731
            yield Row(f"{name}: from JPEGs, {threads} threads", len(photos) / self.seconds(whole, 1, 0), "images")
            if name == next(iter(self.sizes.encoders)):
                yield self.parse_command(name, path, photos, Path(folder))

    def parse_command(self, name: str, encoder: Path, photos: list[bytes], folder: Path) -> Row:
        """`clipcap parse` from its start to its end, less what it takes for an eighth of the photos."""
        seconds, counts = [], (len(photos), 8 * len(photos))
        for count in counts:
            images = folder / f"images_{count}"
            images.mkdir()
            for number in range(count):
                (images / f"{number:06}.jpg").write_bytes(photos[number % len(photos)])
                (images / f"{number:06}.txt").write_text("a plate\n", encoding="utf-8")
            words: list[object] = ["parse", "custom", "--data_path", images, "--clip_model_type", encoder]
            words += ["--out", folder / f"f{count}"]
            seconds.append(timed(lambda words=words: self.clipcap(words), time.perf_counter))
        speed = (counts[1] - counts[0]) / max(seconds[1] - seconds[0], 1e-9)
        notes = [f"{seconds[1]:.0f} s in all"]
        return Row(f"{name}: `clipcap parse`, {counts[1]:,} photos", speed, "images", notes=notes)

    def clipcap(self, words: list[object]) -> str:
        """Run a command; what it prints."""
        device = [] if words[0] in ("train", "train-clip-gpt") else ["--device", str(self.device)]
        command = [sys.executable, "-W", "ignore", "-m", "clipcap", *map(str, words), *device]
        env = {**os.environ, "ACCELERATE_USE_CPU": str(not self.cuda).lower()}
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"clipcap {words[0]}: {done.stderr[-300:]}")
        return done.stdout + done.stderr

    def commands(self) -> Iterator[Row]:
        """Commands on features, each in a process of its own: cross-entropy, reward, CLIP-GPT, prediction."""
        with tempfile.TemporaryDirectory() as name:
            folder, lm = Path(name), self.sizes.lm or GPT2Config()
            with self.device:
                GPT2LMHeadModel(lm).save_pretrained(folder / "lm")
            load_tokenizer("demo").save_pretrained(folder / "lm")
            texts = [list(captions(scene))[:5] for scene in islice(scenes(), self.sizes.captioned)]
            write_features(
                folder / "f", embeddings=torch.randn(len(texts), 512).half().numpy(),
                image_ids=[str(i) for i in range(len(texts))], image_paths=[""] * len(texts), captions=texts,
                meta=FeatureMeta(encoder="import:random", source="drawn"),
            )  # fmt: skip
            base = ["--data", folder / "f", "--bs", 40, "--epochs", 99]
            reward = ["--objective", "reward", "--val", 0.1, "--val_captions", 20, "--weights_dir", folder / "run0"]
            runs = {
                "train, MLP mapper alone": ("train", ["--lm", folder / "lm", "--only_prefix"], 1),
                "train --objective reward": ("train", reward, 2),
                "train-clip-gpt": ("train-clip-gpt", ["--lm", folder / "lm"], 1),
            }
            for number, (title, (command, flags, less)) in enumerate(runs.items()):
                out = folder / f"run{number}"
                self.clipcap([command, *base, "--max_steps", self.sizes.steps // less, *flags, "--out_dir", out])
                yield Row(f"`clipcap {title}`", 40 * _last_speed(out), "captions")
            words = ["predict", "--load_pt", folder / "run0", "--features", folder / "f", "--out", folder / "c.jsonl"]
            seconds = timed(lambda: self.clipcap(words), time.perf_counter)
            title = f"`clipcap predict --features`, {len(texts)} images, its start included"
            yield Row(title, len(texts) / seconds, "captions")


def timed(work: Callable[[], object], clock: Clock) -> float:
    """Seconds that it takes once."""
    start = clock()
    work()
    return clock() - start


def _last_speed(run: Path) -> float:
    """Steps a second over the last third of a run."""
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [json.loads(line)["steps_per_s"] for line in lines]
    late = speeds[-max(1, len(speeds) // 3) :]
    return len(late) / sum(1 / speed for speed in late)


def _jpeg(scene: object) -> bytes:
    """A drawn plate of a COCO photo's size."""
    file = io.BytesIO()
    draw(scene, 640).crop((0, 80, 640, 560)).save(file, "JPEG", quality=90)
    return file.getvalue()


def table(device: torch.device, sizes: Sizes, chosen: list[str]) -> str:
    """All rows as Markdown; what did not fit into the time, or failed, is named."""
    start, lines = time.perf_counter(), []
    bench = GpuBench(device, sizes, chosen)
    for number, stage in enumerate(bench.stages()):
        if time.perf_counter() - start > 60 * MINUTES:
            lines.append(f"| stage {number} and those behind it: left out, the time is over | | | | | |")
            break
        try:
            for row in stage():
                lines.append(str(row))
                print(lines[-1], flush=True)
        except (ClipcapError, RuntimeError) as error:  # no compiler, or no memory: the other stages go on
            lines.append(f"| stage {number}: {' '.join(str(error).split())[:300]} | | | | | |")
            print(lines[-1], flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    head = f"{name}; {machine()}; bfloat16 matrix product {bench.ceiling / 1e12:.3g} TFLOP/s\n"
    titles = "| stage | plain, 1/s | ours | ratio | peak memory, GiB | notes |"
    seconds = f"\n{time.perf_counter() - start:.0f} s in all"
    return "\n".join([head, titles, "| --- " * 6 + "|", *lines, seconds])


STAGES = ("parse", "train", "decode", "commands")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that the script works")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", help="also write the table to this file")
    args = parser.parse_args()
    found = table(torch.device(args.device), TINY if args.tiny else FULL, args.stages)
    print(found)
    if args.out:
        Path(args.out).write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
