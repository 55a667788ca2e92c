"""`clipcap draw`: a text → one picture a word (or token, or sentence) → GIF, grid, folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import pick_device
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.text_to_image.author_config import read_author_config
from clipcap.text_to_image.config import DrawConfig
from clipcap.text_to_image.frames import Frame, check_out, frame_titles, write_frames
from clipcap.text_to_image.generator import Generator
from clipcap.text_to_image.generator_files import generator_folder, load_generator
from clipcap.text_to_image.mapping import TextMapping, load_mapping
from clipcap.text_to_image.noise import to_pixels, truncated_noise
from clipcap.text_to_image.text_model import TextModel, Tokens
from clipcap.text_to_image.words import WordTable, load_words, words_of_generator

LONGEST_TEXT = 10_000  # characters
BATCH = 16  # pictures drawn at once
PROMPT = "Insert text: "


@dataclass(frozen=True)
class _Row:
    """One picture to draw: its class embedding [Z], and the word it shows (-1: the sentence)."""

    embedding: Tensor
    word: int


class Drawer:
    """Text model, mapping and generator, loaded once."""

    def __init__(self, config: DrawConfig):
        config = config.resolved({})
        self.config, self.device = config, pick_device(config.device or "auto")
        self.mapping: TextMapping = load_mapping(config.load_pt or DEMO)
        facts = self.mapping.facts
        generator, text_model = config.generator or facts.generator, config.text_model or facts.text_model
        if generator is None or text_model is None:
            flag = "--generator" if generator is None else "--text_model"
            raise ClipcapError(f"{flag} is missing: {self.mapping.name} does not say which one it was trained with")
        self.reference = config.recipe == "reference"
        self.per = config.per or ("token" if self.reference else "word")
        self.mask = not self.reference and facts.mask if config.mask is None else config.mask
        self.same_noise = not self.reference if config.same_noise is None else config.same_noise
        self.generator: Generator = load_generator(generator, self.device)
        self.text_model = TextModel(text_model, config.max_tokens or facts.max_tokens, self.device)
        self._check(generator, text_model)
        self.table = self._table(generator) if config.exact else None

    def _check(self, generator: str, text_model: str) -> None:
        width, hidden = self.mapping.weight.shape
        if hidden != self.text_model.width or width != self.generator.config.z_dim:
            raise ClipcapError(
                f"the mapping {self.mapping.name} goes from {hidden} to {width}, the text model {text_model} is "
                f"{self.text_model.width} wide and the generator {generator} takes {self.generator.config.z_dim}"
            )

    def _table(self, generator: str) -> WordTable:
        classes = len(self.generator.class_embeddings)
        if self.config.words:
            return load_words(Path(self.config.words), classes)
        return words_of_generator(generator_folder(generator), classes)

    def frames(self, text: str) -> list[Frame]:
        """Draw a text.

        Args:
            text: blank-separated words.
        Raises:
            ClipcapError: the text is empty, or far too long.
        """
        words = text.split()
        if not words:
            raise ClipcapError("the text is empty: write at least one word")
        if len(text) > LONGEST_TEXT:
            raise ClipcapError(f"the text has {len(text):,} characters; at most {LONGEST_TEXT:,} are allowed")
        sentence = " ".join(words)
        tokens = self.text_model.tokenize([sentence])
        rows = self.mapping(self.text_model.hidden_states(tokens, self.mask)[0])  # [T, Z]
        chosen = self._rows(rows, tokens, words)
        drawn = {row.word for row in chosen}
        if self.per == "word" and len(drawn) < len(words):
            logger.info(
                f"note: {len(drawn)} of {len(words)} words are drawn: the text model reads {len(rows)} tokens"
            )
        if not chosen:
            raise ClipcapError(f"the text model finds no words in {sentence[:40]!r}")
        titles = frame_titles(words)
        pictures = self._draw(chosen, len(rows))
        return [
            Frame(
                picture,
                sentence if row.word < 0 else titles[row.word],
                "sentence" if row.word < 0 else words[row.word],
            )
            for picture, row in zip(pictures, chosen, strict=True)
        ]

    def _rows(self, rows: Tensor, tokens: Tokens, words: Sequence[str]) -> list[_Row]:
        """What is drawn of the mapped rows [T, Z]."""
        owner = tokens.words[0]
        if self.reference:  # pictures 1 … number of words, whatever tokens these are: row 0 is [CLS]
            return [_Row(rows[i + 1], i) for i in range(min(len(words), len(rows) - 1))]
        if self.per == "sentence":
            real = torch.tensor([number >= 0 for number in owner])
            return [_Row(rows[real].mean(0), -1)] if real.any() else []
        if self.per == "token":
            return [_Row(self._exactly(row, words[n]), n) for row, n in zip(rows, owner, strict=True) if n >= 0]
        found = [torch.tensor([number == word for number in owner]) for word in range(len(words))]
        return [_Row(self._exactly(rows[at].mean(0), words[n]), n) for n, at in enumerate(found) if at.any()]

    def _exactly(self, row: Tensor, word: str) -> Tensor:
        """The class's own embedding where --exact asks for it and the word stands for one."""
        known = self.table.words_in(word) if self.table else []
        if self.table is None or not known:
            return row
        return self.generator.class_embeddings[self.table.words[known[0]].given].cpu()

    def _draw(self, rows: Sequence[_Row], tokens: int) -> list[Image.Image]:
        """Pictures of rows; the noise of row i does not depend on how many are drawn at once."""
        config, width = self.config, self.generator.config.z_dim
        noise = truncated_noise(
            1 if self.same_noise else max(tokens, len(rows)), width, cast(int, config.seed), config.truncation
        )
        first = 1 if self.reference else 0  # of a batch of all tokens, [CLS] among them
        places = [0 if self.same_noise else first + number for number in range(len(rows))]
        embeddings = torch.stack([row.embedding for row in rows])  # [B, Z]
        pictures: list[Image.Image] = []
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                z = noise[places[part]].to(self.device)  # [B, Z]
                drawn = self.generator(z, embeddings[part].to(self.device), config.truncation)  # [B, 3, R, R]
                pictures += [Image.fromarray(pixels) for pixels in to_pixels(drawn)]
        return pictures


@writes_to("config.out")
def draw(texts: Sequence[str], config: DrawConfig) -> list[Path]:
    """Draw texts and write them; without texts, ask for them.

    Args:
        texts: one file (or folder) each; none: those of the `config.yml`, else lines of the input, until it ends.
        config: options.
    Raises:
        ClipcapError: nothing to draw with, or a text or file that cannot be.
    """
    path = check_out(config.out)
    options, own_texts, sizes = read_author_config(config.config) if config.config else ({}, [], {})
    config = config.resolved(options)
    texts = texts or ([] if config.interactive else own_texts)
    if not texts and not config.interactive and not sys.stdin.isatty():
        raise ClipcapError(
            'there is nothing to draw: pass texts, as clipcap draw "a dog" --out dog.gif, or --interactive'
        )
    drawer = Drawer(config)
    _check_sizes(drawer, sizes, config)
    several = len(texts) > 1 or not texts or config.interactive
    written: list[Path] = []
    pause, width = cast(float, config.pause), cast(int, config.width)  # set by `resolved`
    for number, text in enumerate(_texts(texts, config)):
        place = _numbered(path, number + 1) if several else path
        try:
            frames = drawer.frames(text)
        except ClipcapError as error:
            if len(texts) == 1 and not config.interactive:
                raise
            print(f"clipcap: {error}", file=sys.stderr)
            continue
        written.append(write_frames(frames, check_out(str(place)), pause, width))
        print(f"{written[-1]}: {len(frames)} picture{'s' * (len(frames) > 1)}")
    if not written:
        raise ClipcapError("nothing was drawn")
    return written


def _check_sizes(drawer: Drawer, sizes: Mapping[str, int], config: DrawConfig) -> None:
    there = {
        "bert_hidden_size": drawer.text_model.width,
        "biggan_emb_size": drawer.generator.config.z_dim,
        "num_imagenet_classes": drawer.generator.config.num_classes,
    }
    for key, value in sizes.items():
        if value != there[key]:
            raise ClipcapError(
                f"--config {config.config}: {key} is {value}, the model that was loaded has {there[key]}"
            )


def _texts(texts: Sequence[str], config: DrawConfig) -> Iterator[str]:
    yield from texts
    while config.interactive or not texts:
        try:
            line = input(PROMPT)
        except EOFError:
            print()
            return
        if line.strip():
            yield line


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}_{number}{path.suffix}") if path.suffix else path / str(number)
