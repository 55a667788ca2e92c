"""Train the bundled picture generator from nothing: a BigGAN-deep of 64 pixels that draws plates of one food.

python -m clipcap.demo.build_generator --work generator_build

A conditional decoder, and no adversarial game: the layout of a plate is a function of the noise (`latent_scene`), so
every noise vector has one right picture and the network learns it by regression. Batches share a truncation, as the
standing statistics do that are stored in the end. The weights with the highest class agreement are kept: a classifier
fitted to features of real plates looks at generated ones.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from clipcap.demo.drawing.draw import draw
from clipcap.demo.grammar import FOOD_NAMES, LOOSE_NAMES, captions
from clipcap.demo.latent_scene import CLASSES, NOISE, latent_scene
from clipcap.demo.plates import Split, scenes
from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.load import load_encoder
from clipcap.options import FlagParser
from clipcap.runtime.bundled import DEMO, FOLDER, GENERATOR, TEXT_MAPPING
from clipcap.runtime.progress import no_bar
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.text_to_image.config import TrainDrawConfig
from clipcap.text_to_image.generator import Generator, GeneratorConfig, StoredNorm
from clipcap.text_to_image.generator_files import save_generator
from clipcap.text_to_image.noise import to_pixels, truncated_noise
from clipcap.text_to_image.train import train_draw
from clipcap.text_to_image.words import WORDS_FILE

SIDE, SEED = 64, 7100
CONFIG = GeneratorConfig(
    output_dim=SIDE,
    z_dim=NOISE,
    class_embed_dim=NOISE,
    channel_width=16,
    num_classes=len(CLASSES),
    layers=((True, 16, 8), (True, 8, 4), (True, 4, 2), (True, 2, 1)),
    attention_layer_position=4,  # behind the last block, so that there is none
    eps=1e-4,
    n_stats=51,
)
STEPS, BATCH, RATE = 4000, 32, 4e-3
GROUPS, GROUP_SIZE = 40, 320  # pictures drawn beforehand, each group of one truncation
FOOD_WEIGHT = 4.0  # of a pixel on a piece of food, against 1 elsewhere
CHECK_EVERY, PROBE_PLATES = 500, 1500
CAPTIONED = 1500  # scenes whose captions train the text mapping


def build_generator(work: Path, out: Path = FOLDER / GENERATOR, steps: int = STEPS, groups: int = GROUPS) -> dict:
    """Train, keep the best weights by class agreement, write them with standing statistics.

    Args:
        work: folder for the log and the last state.
        out: folder of the generator.
        steps: of Adam; fewer for a trial.
        groups: groups of drawn pictures.
    Returns:
        the figures of the best weights.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    network = _trainable(Generator(CONFIG))
    average = copy.deepcopy(network)
    judge = Judge()
    pictures = _Pictures(groups)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(0.9, 0.99))
    best, log, start = -1.0, [], time.process_time()
    for step in tqdm(range(1, steps + 1), desc="generator", disable=no_bar()):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-5
        loss = _loss(network, *pictures.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _follow(average, network, min(0.995, 1 - 10 / (step + 10)))
        if step % CHECK_EVERY == 0 or step == steps:
            candidate = with_statistics(average, (0.4, 1.0))
            figures = {"step": step, "loss": round(loss.item(), 4), **judge.agreement(candidate, (0.4, 1.0))}
            figures["cpu_s"] = round(time.process_time() - start)
            log.append(figures)
            print(json.dumps(figures), flush=True)
            if figures["agreement"] > best:
                best = figures["agreement"]
                torch.save(average.state_dict(), work / "best.pt")
    average.load_state_dict(load_tensors(work / "best.pt"))
    return _write(average, out, judge, log)


def build_text_mapping(work: Path, out: Path = FOLDER / TEXT_MAPPING) -> Path:
    """Train the mapping from the demo language model's hidden states to the generator's class embeddings."""
    chosen = (scene for scene in scenes("train", SEED + 20) if len(scene.facts.foods) == 1)
    lines = [caption for scene in islice(chosen, CAPTIONED) for caption in captions(scene)]
    work.mkdir(parents=True, exist_ok=True)
    (work / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = TrainDrawConfig(generator=DEMO, text_model=DEMO, out_dir=str(out), max_tokens=24, rows="word")
    return train_draw(str(work / "captions.txt"), config)


def _write(average: Generator, out: Path, judge: Judge, log: Sequence[dict]) -> dict:
    """The folder of the generator: weights in float16, configuration, words of the classes, figures."""
    network = with_statistics(average, [max(row, 1) / (CONFIG.n_stats - 1) for row in range(CONFIG.n_stats)])
    out.mkdir(parents=True, exist_ok=True)
    save_generator(network, out, torch.float16)
    words = {food: sorted({word for names in forms for word in _last_words(names)}) for food, forms in _names()}
    content = {"classes": [{"name": food, "words": words[food]} for food in CLASSES]}
    (out / WORDS_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shares = judge.agreement(network, (0.2, 0.4, 0.6, 1.0), each=40)
    figures = {"classifier on real plates": judge.accuracy, **shares, "seed": SEED, "log": list(log)}
    (out / "manifest.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _names() -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    for food, names in FOOD_NAMES.items():
        yield food, (*names, tuple(loose for loose, kind in LOOSE_NAMES.items() if kind == food))


def _last_words(names: Sequence[str]) -> list[str]:
    """The word of a name that says the food: "slices of pizza" is pizza, "pizza slices" too."""
    kinds = {"slice", "slices", "piece", "pieces", "floret", "florets", "roll", "rolls", "of", "fried", "chip"}
    kinds |= {"chocolate", "sunny-side-up", "maki"}
    return [word for name in names for word in name.split() if word not in kinds]


class _Pictures:
    """Drawn plates with their noise and class, in groups of one truncation each."""

    def __init__(self, groups: int):
        self.truncations = [round(0.1 + 0.9 * (i + 0.5) / groups, 3) for i in range(groups)]
        self.noise, self.labels, self.pixels, self.food = [], [], [], []
        for i, truncation in enumerate(tqdm(self.truncations, desc="drawing", disable=no_bar())):
            noise = truncated_noise(GROUP_SIZE, NOISE, SEED + i, truncation)
            labels = torch.arange(GROUP_SIZE) % len(CLASSES)
            drawn = [latent_scene(CLASSES[k], z) for k, z in zip(labels.tolist(), noise.numpy(), strict=True)]
            self.pixels.append(torch.from_numpy(np.stack([np.asarray(draw(scene, SIDE)) for scene in drawn])))
            self.food.append(torch.from_numpy(np.stack([_food_map(scene) for scene in drawn])))
            self.noise.append(noise)
            self.labels.append(labels)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """(noise [B, Z], labels [B], pictures [B, 3, R, R], pixel weights [B, 1, R, R], truncation) of a step."""
        random = np.random.RandomState(step)
        group = random.randint(len(self.truncations))
        rows = torch.from_numpy(random.choice(GROUP_SIZE, BATCH, replace=False))
        pictures = self.pixels[group][rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        weights = 1 + (FOOD_WEIGHT - 1) * self.food[group][rows][:, None].float()
        return self.noise[group][rows], self.labels[group][rows], pictures, weights, self.truncations[group]


def _food_map(scene) -> np.ndarray:  # noqa: ANN001
    """Where a scene has food: bool [R, R]."""
    grid = (np.arange(SIDE) + 0.5) / SIDE
    near = [np.hypot(grid[None, :] - item.x, grid[:, None] - item.y) < item.radius for item in scene.items]
    return np.any(near, axis=0)


def _trainable(network: Generator) -> Generator:
    """The network with statistics of the batch in place of stored ones."""
    for norm in network.modules():
        if isinstance(norm, StoredNorm):
            norm.normalise = MethodType(_batch_normalised, norm)
    return network.to(memory_format=torch.channels_last)


def _batch_normalised(norm: StoredNorm, hidden: Tensor, truncation: float) -> Tensor:
    return F.batch_norm(hidden, None, None, training=True, eps=norm.eps)


def _loss(
    network: Generator, noise: Tensor, labels: Tensor, pictures: Tensor, weights: Tensor, truncation: float
) -> Tensor:
    """Weighted mean of absolute and squared differences."""
    with torch.autocast("cpu", torch.bfloat16):
        drawn = network(noise, network.class_embeddings[labels], truncation)
    error = drawn.float() - pictures  # [B, 3, R, R]
    return ((error.abs() + error.square()) * weights).mean()


@torch.no_grad()
def _follow(average: Generator, network: Generator, decay: float) -> None:
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


@torch.no_grad()
def with_statistics(network: Generator, truncations: Sequence[float]) -> Generator:
    """A copy for evaluation whose stored statistics are those of large batches, one for each truncation given."""
    result = Generator(network.config).eval()
    result.load_state_dict(network.state_dict())
    norms = [norm for norm in result.modules() if isinstance(norm, StoredNorm)]
    labels = torch.arange(16 * len(CLASSES)) % len(CLASSES)
    steps = network.config.n_stats - 1
    for truncation in truncations:
        row = round(truncation * steps)
        rows = [0, 1] if row == 1 else [row]
        for norm in norms:
            norm.normalise = MethodType(_recording(rows), norm)
        noise = truncated_noise(len(labels), NOISE, SEED - 1 - row, truncation)
        result(noise, result.class_embeddings[labels], truncation)
    for norm in norms:
        del norm.normalise
    return result


def _recording(rows: Sequence[int]):  # noqa: ANN202
    def normalise(norm: StoredNorm, hidden: Tensor, truncation: float) -> Tensor:
        norm.running_means[rows] = hidden.mean((0, 2, 3))
        norm.running_vars[rows] = hidden.var((0, 2, 3), unbiased=False)
        return F.batch_norm(hidden, None, None, training=True, eps=norm.eps)

    return normalise


class Judge:
    """A classifier of the food on a plate: multinomial regression on the demo encoder's features of real plates."""

    def __init__(self, plates: int = PROBE_PLATES):
        self.encoder: Encoder = load_encoder(DEMO, "cpu", "float32")
        train = self._real("train", plates)
        self.weight, self.mean, self.scale = _fit(*train)
        features, labels = self._real("val", plates // 3)
        self.accuracy = round((self.classify(features) == labels).float().mean().item(), 4)

    def _real(self, split: Split, count: int) -> tuple[Tensor, Tensor]:
        chosen = (scene for scene in scenes(split, SEED + 9) if len(scene.facts.foods) == 1)
        pairs = [(draw(scene, 96), CLASSES.index(scene.facts.foods[0][0])) for scene in islice(chosen, count)]
        return self.features([picture for picture, _ in pairs]), torch.tensor([label for _, label in pairs])

    def features(self, pictures: Sequence) -> Tensor:
        """Pictures → normalised embeddings [N, D]."""
        parts = []
        for first in range(0, len(pictures), 64):
            pixels = torch.stack([self.encoder.preprocess(picture) for picture in pictures[first : first + 64]])
            parts.append(self.encoder.encode_images(pixels))
        return F.normalize(torch.cat(parts), dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """[N, D] → classes [N]."""
        standard = (features - self.mean) / self.scale
        return (F.pad(standard, (0, 1), value=1.0) @ self.weight).argmax(1)

    def agreement(self, network: Generator, truncations: Sequence[float], each: int = 10) -> dict[str, float]:
        """The share of generated pictures in which the classifier finds the food that was asked for."""
        labels = torch.arange(each * len(CLASSES)) % len(CLASSES)
        shares = {}
        for truncation in truncations:
            noise = truncated_noise(len(labels), NOISE, SEED + 50_000, truncation)
            with torch.inference_mode():
                drawn = to_pixels(network(noise, network.class_embeddings[labels], truncation))
            found = self.classify(self.features(_images(drawn)))
            shares[f"at {truncation}"] = round((found == labels).float().mean().item(), 4)
        return {"agreement": round(sum(shares.values()) / len(shares), 4), **shares}


def _images(pixels: np.ndarray) -> list:
    from PIL import Image

    return [Image.fromarray(picture) for picture in pixels]


def _fit(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weights [D + 1, classes], mean [D], scale [D]) of a regression with a small penalty."""
    mean, scale = features.mean(0), features.std(0) + 1e-6
    inputs = F.pad((features - mean) / scale, (0, 1), value=1.0)
    weight = torch.zeros(inputs.shape[1], len(CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), mean, scale


def main(argv: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = FlagParser(prog="python -m clipcap.demo.build_generator", description="Make the generator again.")
    parser.add_argument("--work", type=Path, required=True, help="folder of logs and the best state")
    parser.add_argument("--out", type=Path, default=FOLDER / GENERATOR, help="folder of the generator")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of Adam (default: {STEPS})")
    parser.add_argument("--groups", type=int, default=GROUPS, help=f"groups of pictures (default: {GROUPS})")
    args = parser.parse_args(argv)
    try:
        figures = build_generator(args.work, args.out, args.steps, args.groups)
        if args.out == FOLDER / GENERATOR:
            build_text_mapping(args.work)
    except ClipcapError as error:
        sys.exit(str(error))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
