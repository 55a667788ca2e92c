"""`clipcap synthesise`: captions → mapping → generator → pairs that match by construction, as a set for `custom`.

The generator controls one fact, the class: whatever else a caption says is wrong in the picture, so captions are cut
to the class word unless they are asked for in full.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from clipcap.errors import ClipcapError
from clipcap.images.write import write_picture
from clipcap.models.encoders.load import load_encoder
from clipcap.runtime.files import replaced_folder, writing
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import no_bar
from clipcap.text_to_image.captions import read_captions
from clipcap.text_to_image.config import SynthesiseConfig
from clipcap.text_to_image.draw import Drawer
from clipcap.text_to_image.noise import to_pixels, truncated_noise
from clipcap.text_to_image.words import WordTable

BATCH = 16  # pictures drawn at once, whoever draws them: the same batches give the same bytes
TABLE = "captions.csv"
COLUMNS = ("image", "caption", "source_caption", "class", "seed", "clip_score", "generated")


@dataclass(frozen=True)
class Pair:
    """A picture to draw: the caption it is drawn from and its class word, what is written of it, its noise."""

    number: int
    source: str
    word: str
    caption: str
    seed: int


@writes_to("config.out")
def synthesise(captions: str, config: SynthesiseConfig) -> Path:
    """Write a set of generated pairs, whole or not at all; the same options give the same bytes.

    Args:
        captions: see `read_captions`; those with exactly one class word are used, again and again.
        config: options.
    Returns:
        the folder.
    Raises:
        ClipcapError: no captions with a class word, no models, or the folder is in use.
    """
    out = Path(config.out).expanduser()
    if out.exists() and (out.is_file() or any(out.iterdir())) and not (out / TABLE).is_file():
        raise ClipcapError(f"--out {out}: exists and holds no generated set: choose a new name")
    drawer = Drawer(config.drawing())
    pairs = choose_pairs(captions, drawer, config)
    batches = [pairs[first : first + BATCH] for first in range(0, len(pairs), BATCH)]
    with writing(out), replaced_folder(out) as draft:
        (draft / "images").mkdir()
        _draw_all(batches, drawer, config, draft)
        scores = _scores(pairs, draft, config)
        kept = _best(scores, config.keep)
        for pair in pairs:
            if pair.number not in kept:
                _picture(draft, pair).unlink()
        _write_table([pair for pair in pairs if pair.number in kept], scores, drawer, draft)
    count = len(pairs) if isinstance(kept, range) else len(kept)
    logger.info(f"{count:,} of {len(pairs):,} pairs, {len({pair.word for pair in pairs})} words: {out}")
    return out


def _table(drawer: Drawer) -> WordTable:
    """The words of a drawer's generator, which `SynthesiseConfig.drawing` has it load."""
    assert drawer.table is not None
    return drawer.table


def choose_pairs(captions: str, drawer: Drawer, config: SynthesiseConfig) -> list[Pair]:
    """`config.count` captions with one class word, in an order of the seed."""
    found = read_captions(captions, config.source, 0.1, config.seed)
    usable = _table(drawer).one_word_captions([*found.train, *found.val])
    if not usable:
        words = ", ".join(list(_table(drawer).words)[:5])
        raise ClipcapError(f"{captions}: no caption holds exactly one of the generator's words, such as {words}")
    random = Random(config.seed)
    chosen: list[tuple[str, str]] = []
    while len(chosen) < config.count:
        random.shuffle(usable)
        chosen += usable
    cut = config.captions == "class"
    return [
        Pair(
            i,
            caption,
            word,
            config.template.replace("{}", word) if cut else caption,
            (config.seed * 1_000_003 + i) % 2**32,
        )
        for i, (caption, word) in enumerate(chosen[: config.count])
    ]


def _draw_all(batches: Sequence[Sequence[Pair]], drawer: Drawer, config: SynthesiseConfig, folder: Path) -> None:
    with tqdm(total=sum(map(len, batches)), desc="drawing", unit="picture", disable=no_bar()) as bar:
        if config.workers == 1:
            for batch in batches:
                _draw_batch(batch, drawer, config, folder)
                bar.update(len(batch))
            return
        jobs = [(batch, config, folder) for batch in batches]
        with get_context("spawn").Pool(min(config.workers, len(jobs))) as pool:
            for count in pool.imap(_draw_job, jobs):
                bar.update(count)


@cache
def _load_drawer(config: SynthesiseConfig) -> Drawer:
    """Of a worker process, loaded once."""
    torch.set_num_threads(1)
    return Drawer(config.drawing())


def _draw_job(job: tuple[Sequence[Pair], SynthesiseConfig, Path]) -> int:
    batch, config, folder = job
    _draw_batch(batch, _load_drawer(config), config, folder)
    return len(batch)


def _draw_batch(batch: Sequence[Pair], drawer: Drawer, config: SynthesiseConfig, folder: Path) -> None:
    """Draw and write the pictures of a batch."""
    width = drawer.generator.config.z_dim
    noise = torch.cat([truncated_noise(1, width, pair.seed, config.truncation) for pair in batch])  # [B, Z]
    rows = _embeddings(batch, drawer, config)
    with torch.inference_mode():
        drawn = drawer.generator(noise.to(drawer.device), rows.to(drawer.device), config.truncation)
    for pair, pixels in zip(batch, to_pixels(drawn), strict=True):
        write_picture(Image.fromarray(pixels), _picture(folder, pair), "PNG")


def _embeddings(batch: Sequence[Pair], drawer: Drawer, config: SynthesiseConfig) -> Tensor:
    """What the mapping makes of each caption's class word, [B, Z]; of the sentence where the word was cut off."""
    if config.exact:
        given = [_table(drawer).words[pair.word].given for pair in batch]
        return drawer.generator.class_embeddings[given].cpu()
    tokens = drawer.text_model.tokenize([pair.source for pair in batch])
    mapped = drawer.mapping(drawer.text_model.hidden_states(tokens, drawer.mask))  # [B, T, Z]
    found = []
    for pair, rows, owners in zip(batch, mapped, tokens.words, strict=True):
        places = [n for n, part in enumerate(pair.source.split()) if pair.word in _table(drawer).words_in(part)]
        at = torch.tensor([owner in places for owner in owners])
        at = at if at.any() else torch.tensor([owner >= 0 for owner in owners])
        found.append(rows[at].mean(0))
    return torch.stack(found)


def _picture(folder: Path, pair: Pair) -> Path:
    return folder / "images" / f"{pair.number:06d}.png"


def _scores(pairs: Sequence[Pair], folder: Path, config: SynthesiseConfig) -> dict[int, float]:
    """The cosine of each picture with its caption, by --filter_encoder; nothing without it."""
    if not config.filter_encoder:
        return {}
    encoder = load_encoder(config.filter_encoder, config.device)
    scores: dict[int, float] = {}
    for first in range(0, len(pairs), BATCH):
        batch = pairs[first : first + BATCH]
        pixels = torch.stack([encoder.preprocess(Image.open(_picture(folder, pair))) for pair in batch])
        images = normalize(encoder.encode_images(pixels), dim=1)
        texts = normalize(encoder.encode_texts([pair.caption for pair in batch]), dim=1)
        scores |= dict(zip((pair.number for pair in batch), (images * texts).sum(1).tolist(), strict=True))
    return scores


def _best(scores: dict[int, float], keep: float) -> set[int] | range:
    """The numbers of the pairs to keep."""
    if not scores:
        return range(1 << 62)
    ranked = sorted(scores, key=lambda number: (-scores[number], number))
    return set(ranked[: max(1, round(keep * len(ranked)))])


def _write_table(pairs: Sequence[Pair], scores: dict[int, float], drawer: Drawer, folder: Path) -> None:
    def rows() -> Iterator[tuple]:
        for pair in pairs:
            score = f"{scores[pair.number]:.6f}" if pair.number in scores else ""
            picture = _picture(folder, pair).name
            yield picture, pair.caption, pair.source, _table(drawer).name(pair.word), pair.seed, score, 1

    with open(folder / TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows())
