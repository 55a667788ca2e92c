"""`clipcap train-draw`: captions with one class word → hidden states, once → the mapping to class embeddings."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import pick_device, weights_id
from clipcap.runtime.disk_arrays import cached_arrays, write_arrays
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import no_bar
from clipcap.runtime.run_file import write_run_file
from clipcap.text_to_image.captions import read_captions
from clipcap.text_to_image.config import TrainDrawConfig
from clipcap.text_to_image.generator_files import generator_folder, load_generator
from clipcap.text_to_image.mapping import MappingFacts, TextMapping, save_mapping
from clipcap.text_to_image.solve import Rows, adam, least_squares, mean_square
from clipcap.text_to_image.text_model import TextModel
from clipcap.text_to_image.words import WordTable, load_words, words_of_generator

BLOCK = 512  # captions read from disk at once


@writes_to("config.out_dir")
def train_draw(captions: str, config: TrainDrawConfig) -> Path:
    """Train the mapping and write it.

    Args:
        captions: see `read_captions`.
        config: options.
    Returns:
        the folder of the mapping.
    Raises:
        ClipcapError: no generator, text model or captions, or no caption with exactly one of the words.
    """
    generator = load_generator(config.generator)
    folder = generator_folder(config.generator)
    table = load_words(Path(config.words), len(generator.class_embeddings)) if config.words else None
    table = table or words_of_generator(folder, len(generator.class_embeddings))
    found = read_captions(captions, config.source, config.val_share, config.seed)
    strip = config.recipe == "default"
    pairs = {name: table.one_word_captions(getattr(found, name), strip) for name in ("train", "val")}
    if not pairs["train"]:
        raise ClipcapError(
            f"{captions}: none of its {len(found.train):,} captions holds exactly one of the generator's "
            f"{len(table.words)} words, such as {', '.join(list(table.words)[:5])}"
        )
    for name, chosen in pairs.items():
        count = len(getattr(found, name))
        logger.info(
            f"{name}: {len(chosen):,} of {count:,} captions hold one word, {len({w for _, w in chosen})} words"
        )
    model = TextModel(config.text_model, config.max_tokens, pick_device(config.device))
    out = Path(config.out_dir).expanduser()
    cache = out.with_name(out.name + ".hidden")
    sets = {
        name: _states(model, chosen, config, cache / f"{name}.arrays", generator.class_embeddings, table)
        for name, chosen in pairs.items()
        if chosen
    }
    mapping = _fit(sets, config)
    figures = {"captions": len(pairs["train"]), "words": len({word for _, word in pairs["train"]})}
    figures |= _scores(mapping, sets, generator.class_embeddings, table)
    facts = MappingFacts(
        config.text_model, config.generator, config.max_tokens, config.masked, config.solver, config.word_target,
        config.rows, figures,
    )  # fmt: skip
    for name, value in figures.items():
        logger.info(f"{name}: {value}")
    folder = save_mapping(TextMapping(mapping.weight, mapping.bias, facts), out)
    write_run_file(folder, "train-draw", {"captions": captions, **config.flat()})
    if not config.keep_hidden:
        shutil.rmtree(cache, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class States:
    """Hidden states of N captions on disk, with the rows that count and each caption's target.

    Attributes:
        hidden: float32 [N, T, H], mapped.
        rows: bool [N, T].
        targets: [N, Z].
        words: N.
    """

    hidden: np.ndarray
    rows: np.ndarray
    targets: Tensor
    words: Sequence[str]

    def of(self, captions: np.ndarray) -> Rows:
        """(hidden states [R, H], targets [R, Z]) of the rows of some captions."""
        chosen = torch.from_numpy(np.ascontiguousarray(self.rows[captions]))  # [n, T]
        hidden = torch.from_numpy(np.array(self.hidden[captions]))  # [n, T, H]
        targets = self.targets[torch.from_numpy(captions)][:, None].expand(-1, hidden.shape[1], -1)  # [n, T, Z]
        return hidden[chosen], targets[chosen]

    def blocks(self, size: int = BLOCK, order: np.ndarray | None = None) -> Iterator[Rows]:
        """All rows, `size` captions at a time."""
        order = np.arange(len(self.words)) if order is None else order
        return (self.of(order[first : first + size]) for first in range(0, len(order), size))


def _states(
    model: TextModel,
    pairs: Sequence[tuple[str, str]],
    config: TrainDrawConfig,
    path: Path,
    embeddings: Tensor,
    table: WordTable,
) -> States:
    """Hidden states of captions, computed where they are not on disk already."""
    settings = f"{model.name} {weights_id(model.network)} {config.max_tokens} {config.masked}"
    fingerprint = hashlib.sha256("\n".join([settings, *(caption for caption, _ in pairs)]).encode()).hexdigest()

    def write(file: BinaryIO, fingerprint: str) -> None:
        real, numbers = [], []

        def blocks() -> Iterator[np.ndarray]:
            texts = [caption for caption, _ in pairs]
            bar = tqdm(total=len(texts), desc="hidden states", unit="caption", disable=no_bar())
            with bar:
                for tokens, hidden in model.batches(texts, config.bs, config.masked):
                    real.append(tokens.attention_mask.to(torch.uint8).numpy().ravel())
                    numbers.append(np.array(tokens.words, np.int32).ravel())
                    bar.update(len(hidden))
                    yield hidden.numpy().ravel()

        arrays = [("hidden", np.float32, blocks()), ("real", np.uint8, real), ("numbers", np.int32, numbers)]
        write_arrays(file, arrays, {"fingerprint": fingerprint})

    path.parent.parent.mkdir(parents=True, exist_ok=True)
    stored = cached_arrays(path, fingerprint, write).arrays
    count = len(pairs)
    hidden = stored["hidden"].reshape(count, config.max_tokens, -1)
    real = stored["real"].reshape(count, -1).astype(bool)
    rows = real if config.masked else np.ones_like(real)
    if config.rows == "word":
        numbers = stored["numbers"].reshape(count, -1)
        wanted = [_places(caption, word) for caption, word in pairs]
        rows = np.stack([np.isin(numbers[i], places) for i, places in enumerate(wanted)])
    words = [word for _, word in pairs]
    return States(hidden, rows, _targets(words, embeddings, table, config), words)


def _places(caption: str, word: str) -> list[int]:
    """The numbers of the blank-separated words that are the word, punctuation aside."""
    table = WordTable({word: None}, ())  # type: ignore[dict-item]
    return [number for number, part in enumerate(caption.split()) if table.words_in(part)]


def _targets(words: Sequence[str], embeddings: Tensor, table: WordTable, config: TrainDrawConfig) -> Tensor:
    """[N, Z]: the mean embedding of each word's classes; zeros where it has none, as in the original."""
    chosen = {word: table.words[word].rows(config.word_target) for word in set(words)}
    zero = torch.zeros(embeddings.shape[1])
    of_word = {word: embeddings[list(rows)].mean(0) if rows else zero for word, rows in chosen.items()}
    return torch.stack([of_word[word] for word in words])


def _fit(sets: dict[str, States], config: TrainDrawConfig) -> TextMapping:
    train = sets["train"]
    if config.solver == "lstsq":
        return TextMapping(*least_squares(train.blocks()), MappingFacts())
    torch.manual_seed(config.seed)
    layer = nn.Linear(train.hidden.shape[2], train.targets.shape[1])
    random = np.random.RandomState(config.seed)

    def epoch() -> Iterator[Rows]:
        return train.blocks(config.adam_bs, random.permutation(len(train.words)))

    start = layer.weight.detach(), layer.bias.detach()
    weight, bias, _ = adam(start, epoch, config.epochs, config.lr)
    return TextMapping(weight, bias, MappingFacts())


def _scores(mapping: TextMapping, sets: dict[str, States], embeddings: Tensor, table: WordTable) -> dict[str, float]:
    """Mean squares beside those of the mean target, and how often the nearest class is the word's."""
    train = sets["train"]
    sums = [target.double().sum(0) for _, target in train.blocks()]
    mean = torch.stack(sums).sum(0) / int(train.rows.sum())
    constant = torch.zeros_like(mapping.weight), mean.float()
    figures = {}
    for name, states in sets.items():
        figures[f"{name} mean square"] = round(mean_square(mapping.weight, mapping.bias, states.blocks()), 6)
        figures[f"{name} mean square of the mean target"] = round(mean_square(*constant, states.blocks()), 6)
        figures[f"{name} retrieval@1"] = round(_retrieval(mapping, states, embeddings, table), 4)
    return figures


def _retrieval(mapping: TextMapping, states: States, embeddings: Tensor, table: WordTable) -> float:
    """Share of the captions whose mean row is nearest to a class of their word."""
    right = 0
    for number, word in enumerate(states.words):
        hidden, _ = states.of(np.array([number]))
        if len(hidden):
            nearest = torch.cdist(mapping(hidden).mean(0)[None], embeddings).argmin().item()
            right += nearest in (table.words[word].given, table.words[word].sense)
    return right / len(states.words)
