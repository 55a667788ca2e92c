"""The cost of a set of images and captions, from what is measured here and from assumptions about GPUs.

python -m benchmarks.speed.scale.cost

Prints what it has measured on this machine, what it assumes, and a table of hours, disk and memory.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config

from benchmarks.measure import machine
from benchmarks.speed.train.arithmetic import step_flops
from benchmarks.speed.train.bench import MLP, SHARED, TRANSFORMER
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import scenes
from clipcap.images.read import open_image
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.clip_preprocess import ClipPreprocess

SETS = {"CC3M": 3.3e6, "CC12M": 12.4e6, "LAION-400M": 413e6}  # one caption an image
WORLDS = {"1 GPU": 1, "8 × 8 GPUs": 64}
TOKENS = 13  # of a caption, its end included: the mean of Flickr8k's
PHOTOS = 64


@dataclass(frozen=True)
class Assumed:
    """What cannot be measured without the hardware."""

    peak: float = 312e12  # operations a second in bfloat16, dense: an A100's data sheet
    encoding_share: float = 0.3  # of it, reached in encoding images
    training_share: float = 0.25  # of it, reached in training
    cores: int = 12  # a GPU
    several: float = 0.9  # what is left of a GPU's speed when 64 work together
    disk: float = 1e9  # bytes a second that a node reads from the shared file system
    per_node: int = 8


@dataclass(frozen=True)
class Measured:
    """Of one core of this machine, and of its files."""

    decode_s: float  # an image of 256 pixels: JPEG → CLIP's input
    jpeg_bytes: float
    encode_s: float  # an image through ViT-B/32 in float32
    encode_flops: float
    train_flops: dict[str, float]  # a caption, by what is trained


def cpu_seconds(run: Callable[[], object], count: int) -> float:
    """Of the processor, an item."""
    run()
    start = time.process_time()
    run()
    return (time.process_time() - start) / count


def photos() -> list[bytes]:
    """JPEG files of 256 pixels on the shorter side; drawn ones where the real ones are absent."""
    paths = sorted((SHARED / "data" / "flickr8k").rglob("*.jpg"))[:PHOTOS]
    images = [Image.open(path).convert("RGB") for path in paths] or [
        draw(scene) for scene in islice(scenes(), PHOTOS)
    ]
    files = []
    for image in images:
        scale = 256 / min(image.size)
        file = io.BytesIO()
        image.resize([round(side * scale) for side in image.size]).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return files


def measure() -> Measured:
    """On one thread."""
    torch.set_num_threads(1)
    files = photos()
    preprocess = ClipPreprocess(224)
    pixels = torch.randn(8, 3, 224, 224)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32)).eval()
    with torch.no_grad():
        encode_s = cpu_seconds(lambda: model(pixel_values=pixels), len(pixels))
    rows = [[TOKENS]] * 40
    flops = {
        name: step_flops(ModelConfig(**{**options, "clip_dim": 512}), GPT2Config(), rows) / len(rows)
        for name, options in {"transformer mapper": TRANSFORMER, "MLP mapper and GPT-2": MLP}.items()
    }
    return Measured(
        cpu_seconds(lambda: [preprocess(open_image(file)) for file in files], len(files)),
        sum(map(len, files)) / len(files),
        encode_s,
        encoder_flops(model.config),
        flops,
    )


def encoder_flops(config: CLIPVisionConfig) -> float:
    """Of an image: products of matrices only, 2·m·n·k each."""
    positions, width = (config.image_size // config.patch_size) ** 2 + 1, config.hidden_size
    products = 4 * width * width + 2 * width * config.intermediate_size
    layer = 2 * positions * products + 4 * positions * positions * width
    return config.num_hidden_layers * layer + 2 * positions * 3 * config.patch_size**2 * width


def hours(images: float, gpus: int, m: Measured, a: Assumed) -> dict[str, float]:
    """Hours by stage, if nothing else held it up."""
    speed = gpus * (a.several if gpus > 1 else 1.0)
    nodes = -(-gpus // a.per_node)
    stages = {
        "decode": images * m.decode_s / (gpus * a.cores),
        "read": images * m.jpeg_bytes / (nodes * a.disk),
        "encode": images * m.encode_flops / (speed * a.peak * a.encoding_share),
    }
    for name, flops in m.train_flops.items():
        stages[f"train, {name}"] = images * flops / (speed * a.peak * a.training_share)
    return {name: seconds / 3600 for name, seconds in stages.items()}


def main() -> None:
    m, a = measure(), Assumed()
    print(machine())
    print(m)
    print(a)
    print("| set | on | decode | read | encode | epoch: " + " | epoch: ".join(m.train_flops) + " |")
    print("| --- " * (5 + len(m.train_flops)) + "|")
    for name, images in SETS.items():
        for world, gpus in WORLDS.items():
            cells = [f"{h:.2g} h" for h in hours(images, gpus, m, a).values()]
            print(f"| {' | '.join([name, world, *cells])} |")


if __name__ == "__main__":
    main()
