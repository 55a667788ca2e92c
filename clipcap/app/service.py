"""The computations behind the page's tabs; their results are rows that JSON can hold."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption
from clipcap.captioning.line_file import csv_lines
from clipcap.errors import ClipcapError
from clipcap.images.read import ImageError, open_image
from clipcap.models.encoders.load import load_encoder
from clipcap.models.language_model import max_positions
from clipcap.retrieval.index import Index

Row = dict[str, Any]

TOGETHER = 8  # photos that are captioned before other requests get a turn
SMALL, LARGE = 96, 320  # pixels of a thumbnail's longer side
LARGEST_GIF = 3_000_000  # bytes of an animation that is shown unchanged
LONGEST_QUERY = 1000  # characters


class Photo(NamedTuple):
    """A photo, preprocessed for the encoder."""

    pixels: Tensor  # [3, R, R]
    thumbnail: str


class CaptionService:
    """A captioner that the page's users share in turns.

    Args:
        captioner: with its encoder loaded.
        max_pixels: largest photo that is decoded.
        turn: held while a model computes; shared by all that compute.
    """

    def __init__(self, captioner: Captioner, max_pixels: int, turn: Lock):
        self._captioner = captioner
        self._max_pixels = max_pixels
        self._turn = turn
        self.is_awaited: Callable[[], bool] = lambda: True  # whether somebody waits for the captions being written
        self.longest = max_positions(captioner.model.lm) - captioner.model.config.prefix_length

    def caption(self, photo: Path, config: DecodeConfig) -> list[Row]:
        """Captions of a photo, best first.

        Returns:
            rows of `caption`, `logprob` (mean per token) and `clip_score` (cosine of caption and photo).
        Raises:
            ClipcapError: the photo cannot be read.
        """
        [captions] = self._captions([self._open(photo).pixels], config)
        return [_row(caption) for caption in captions]

    def caption_many(
        self, photos: Sequence[Path], config: DecodeConfig, done: Callable[[int], object]
    ) -> tuple[list[Row], str]:
        """The best caption of each photo.

        Args:
            done: called with the number of finished photos.
        Returns:
            a row for each photo, with `image`, its name, and `thumbnail`, or, where it cannot be read, `error`; and a
            CSV of those that can.
        """
        rows: list[Row] = []
        table = ""
        for first in range(0, len(photos), TOGETHER):
            if not self.is_awaited():
                raise ClipcapError("the client no longer waits for these captions")
            chunk = photos[first : first + TOGETHER]
            read = [self._opened(photo) for photo in chunk]
            good = [photo for photo in read if isinstance(photo, Photo)]
            found = iter(self._captions([photo.pixels for photo in good], config) if good else [])
            for path, photo in zip(chunk, read):
                if isinstance(photo, str):
                    rows.append({"image": path.name, "error": photo})
                    continue
                captions = next(found)
                rows.append({"image": path.name, **_row(captions[0]), "thumbnail": photo.thumbnail})
                table += csv_lines(path.name, captions, first=not table)
            done(len(rows))
        return rows, table

    def explain(self, photo: Path, top: int) -> list[Row]:
        """The words nearest to a photo's prefix: rows of `position` and its `words`, each with its `cosine`."""
        pixels = self._open(photo).pixels
        with self._turn:
            positions = self._captioner.explain(self._captioner.embed([pixels])[0], top)
        return [
            {"position": number, "words": [{"word": word, "cosine": round(cosine, 4)} for word, cosine in words]}
            for number, words in enumerate(positions, 1)
        ]

    def _captions(self, pixels: Sequence[Tensor], config: DecodeConfig) -> list[list[Caption]]:
        with self._turn:
            embeddings = self._captioner.embed(pixels)  # B of [3, R, R] -> [B, D]
            found = self._captioner.caption_embeddings(embeddings, config)
            if config.rerank == "clip":  # already scored and sorted
                return found
            scored = [self._captioner.rerank(row, captions) for row, captions in zip(embeddings, found)]
        return [sorted(captions, key=lambda c: -c.score) for captions in scored]

    def _open(self, path: Path) -> Photo:
        photo = self._opened(path)
        if isinstance(photo, str):
            raise ClipcapError(f"{path.name}: {photo}")  # without its folder, which users must not see
        return photo

    def _opened(self, path: Path) -> Photo | str:
        """The photo, or the reason why it cannot be read."""
        try:
            image = open_image(path, max_pixels=self._max_pixels)
        except ImageError as error:
            return error.reason
        return Photo(self._captioner.encoder.preprocess(image), _thumbnail(image, SMALL))


class PictureSearch:
    """Search for pictures by words.

    Args:
        index: to search.
        encode: texts to embeddings [Q, D] in the space of the index.
        max_pixels: largest picture that is shown.
        turn: as of `CaptionService`.
    """

    def __init__(self, index: Index, encode: Callable[[Sequence[str]], Tensor], max_pixels: int, turn: Lock):
        self.index = index
        self._encode = encode
        self._max_pixels = max_pixels
        self._turn = turn

    def find(self, words: str, k: int) -> list[Row]:
        """The k pictures nearest to the words: rows of `rank`, `score`, `image_id`, `caption`, `thumbnail` (or None).

        Raises:
            ClipcapError: no words, or too many.
        """
        words = (words or "").strip()
        if not words:
            raise ClipcapError("write what to look for")
        if len(words) > LONGEST_QUERY:
            raise ClipcapError(f"the query has {len(words):,} characters; at most {LONGEST_QUERY:,} are allowed")
        with self._turn:
            [matches] = self.index.search(self._encode([words]).cpu(), k)
        return [
            {
                "rank": rank,
                "score": round(match.score, 4),
                "image_id": match.image_id,
                "caption": match.caption,
                "thumbnail": self._read_thumbnail(match.path),
            }
            for rank, match in enumerate(matches, 1)
        ]

    def _read_thumbnail(self, path: str | None) -> str | None:
        if path is None:
            return None
        if path.lower().endswith(".gif") and os.path.isfile(path) and os.path.getsize(path) <= LARGEST_GIF:
            with open(path, "rb") as file:  # unchanged, so that it plays
                return "data:image/gif;base64," + base64.b64encode(file.read()).decode("ascii")
        try:
            return _thumbnail(open_image(path, max_pixels=self._max_pixels), LARGE)
        except ImageError:
            return None


def text_search(
    index: Index, captioner: Captioner, max_pixels: int, turn: Lock, tokenizer: str | None = None
) -> PictureSearch:
    """Search by the text tower of the encoder that the index was made with.

    Raises:
        ClipcapError: the encoder does not exist, or its weights have changed.
    """
    encoder = captioner.encoder
    if index.meta.encoder not in (None, encoder.name):
        encoder = load_encoder(index.meta.encoder, str(captioner.device), tokenizer=tokenizer)
    index.check_encoder(encoder.name, encoder.weights_id, encoder.dim, "the search of the page")
    return PictureSearch(index, encoder.encode_texts, max_pixels, turn)


def _row(caption: Caption) -> Row:
    return {
        "caption": caption.text,
        "logprob": round(caption.logprob, 4),
        "clip_score": None if caption.clip_score is None else round(caption.clip_score, 4),
    }


def _thumbnail(image: Image.Image, size: int) -> str:
    """A picture as a `data:` address."""
    scale = min(1, size / max(image.size))
    small = image.resize([max(1, round(length * scale)) for length in image.size], reducing_gap=2)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
