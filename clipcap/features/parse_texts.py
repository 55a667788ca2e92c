"""Texts → frozen text tower → a folder of their embeddings, to train a captioner on without photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from clipcap.errors import ClipcapError
from clipcap.features.config import ParseTextsConfig
from clipcap.features.feature_set import Content, FeatureMeta
from clipcap.features.files import check_place, find_features, read_features, write_parts
from clipcap.features.split import split_path
from clipcap.models.encoders.load import load_encoder
from clipcap.options import given
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.run_file import write_run_file
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS
from clipcap.sources.texts import Groups, read_texts


@writes_to(lambda called: Path(given(ParseTextsConfig, called["config"], called["options"]).out))
def parse_texts(config: ParseTextsConfig | None = None, **options: Any) -> list[Path]:
    """Encode texts with an encoder's text tower and write their folders, one per split.

    >>> parse_texts(data_path="lines.txt", clip_model_type="ViT-B/32", out="data/texts")

    Args:
        config: of the parsing (default: the defaults of `clipcap parse texts`).
        options: in place of those of `config`, by the names of their flags.
    Returns:
        the folders written: `text_emb` in the layout of clip-retrieval, a row per text; the texts of one image have
        its id.
    Raises:
        ClipcapError: nothing to read, or the encoder or the place of the output is unusable.
    """
    config = given(ParseTextsConfig, config, options)
    out = Path(config.out)
    if out.suffix == ".pkl":
        raise ClipcapError(f"--out {out}: texts go to a folder: leave out .pkl")
    splits = _read(config)
    places = _places(out, splits)
    encoder = load_encoder(config.clip_model_type, config.device, config.dtype)
    logger.info(f"encoder {encoder.name} on {encoder.device}, {encoder.dim} wide")
    meta = FeatureMeta(
        encoder=encoder.name, encoder_weights_id=encoder.weights_id, source=f"texts {config.data_path}"
    )
    for split, groups in splits.items():
        ids = [name for name, texts in groups.items() for _ in texts]
        texts = [text for of_one in groups.values() for text in of_one]
        starts = range(0, len(texts), config.batch_size)
        bar = tqdm(starts, desc="encoding", unit="batch", disable=None if len(starts) > 1 else True)
        rows = torch.cat(
            [encoder.encode_texts(texts[i : i + config.batch_size]).cpu() for i in bar]
        ).numpy()  # [M, D]
        content = Content(rows, ids, [None] * len(ids), [(text,) for text in texts])
        write_parts(places[split], [content], meta, tower="text")
        write_run_file(places[split], "parse texts", config.flat())
        logger.info(f"wrote {places[split]}: {len(texts):,} texts of {len(groups):,} images or lines")
    return list(places.values())


def _places(out: Path, splits: dict[str | None, Groups]) -> dict[str | None, Path]:
    """The folder of each split: `out` where there is one, else NAME_train, NAME_val, …"""
    places = {split: split_path(out, split or "rest") if len(splits) > 1 else out for split in splits}
    for place in places.values():
        check_place(place)
    return places


def _read(config: ParseTextsConfig) -> dict[str | None, Groups]:
    """The texts, by split."""
    if not config.data_path:
        raise ClipcapError("--data_path is missing: a file of texts, a feature file, or with --source a set")
    path = Path(config.data_path)
    if config.source:
        source = SourceConfig.of(
            data_path=config.data_path, caption_column=config.caption_column, image_column=config.image_column
        )
        splits: dict[str | None, Groups] = {}
        for record in READERS[config.source](source).records:
            splits.setdefault(record.split, {})[record.image_id] = list(record.captions)
        return splits
    if path.suffix == ".pkl" or (path / "img_emb").is_dir() or not path.exists():
        return {None: _of_features(path)}
    if path.is_dir():
        raise ClipcapError(f"{path}: is a folder: name a file of texts, or say which set it is with --source")
    return {None: read_texts(path, config.caption_column, config.image_column)}


def _of_features(path: Path) -> Groups:
    """The captions of a feature file, by image."""
    if not path.exists() and path.suffix not in (".pkl", ""):
        raise ClipcapError(f"{path}: no such file: give a file of texts, a feature file, or a set with --source")
    features = read_features(find_features(path))
    groups: Groups = {}
    for row, captions in enumerate(features.captions_by_row()):
        groups.setdefault(features.image_ids[row], []).extend(captions)
    groups = {name: list(dict.fromkeys(texts)) for name, texts in groups.items() if texts}
    if not groups:
        raise ClipcapError(f"{path}: holds no captions: parse the images with theirs")
    return groups
