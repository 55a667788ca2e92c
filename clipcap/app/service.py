"""The computations behind the page's tabs; their results are rows that JSON can hold."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image
from torch import Tensor

from clipcap.captioning.batches import CaptionedBatch, caption_batches
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption
from clipcap.captioning.line_file import csv_lines
from clipcap.errors import ClipcapError
from clipcap.images.read import ImageError, open_image
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.encode_images import EncodedImages, encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.models.given import Given
from clipcap.models.language_model import max_positions
from clipcap.prompts.datastore import Retrieved
from clipcap.retrieval.index import Index

Row = dict[str, Any]

TOGETHER = 8  # photos that are captioned before other requests get a turn
SMALL, LARGE = 96, 320  # pixels of a thumbnail's longer side
LARGEST_GIF = 3_000_000  # bytes of an animation that is shown unchanged
LONGEST_QUERY = 1000  # characters


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
        self.longest = max_positions(captioner.model.lm) - captioner.model.longest_prefix

    def caption(self, photo: Path | bytes, config: DecodeConfig) -> list[Row]:
        """Captions of a photo, a file or its bytes, best first.

        Returns:
            rows of `caption`, `logprob` (mean per token) and `clip_score` (cosine of caption and photo, None where
            the encoder has no text tower).
        Raises:
            ClipcapError: the photo cannot be read.
        """
        [(batch, found)] = self._captions([photo], config)
        _check_read(photo, batch)
        return [_row(caption) for caption in found[0]]

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
        for batch, found in self._captions(photos, config):
            captioned = dict(zip(batch.numbers, zip(found, batch.looks, strict=True), strict=True))
            for number in sorted([*captioned, *batch.bad]):
                name = photos[number].name
                if fault := batch.bad.get(number):
                    rows.append({"image": name, "error": fault.reason})
                    continue
                captions, thumbnail = captioned[number]
                rows.append({"image": name, **_row(captions[0]), "thumbnail": thumbnail})
                table += csv_lines(name, captions, first=not table)
            done(len(rows))
        return rows, table

    def explain(self, photo: Path, top: int) -> list[Row]:
        """The words nearest to a photo's prefix: rows of `position` and its `words`, each with its `cosine`."""
        [batch] = self._encoded([photo])
        given = _check_read(photo, batch)
        with self._turn:
            positions = self._captioner.explain(given, top)
        return [
            {"position": number, "words": [{"word": word, "cosine": round(cosine, 4)} for word, cosine in words]}
            for number, words in enumerate(positions, 1)
        ]

    def _captions(self, photos: Sequence[Path | bytes], config: DecodeConfig) -> Iterator[CaptionedBatch]:
        """The photos, a batch at a time, with their captions."""
        return caption_batches(
            lambda given, numbers: self._write(given, numbers, config, photos), self._while_awaited(photos)
        )

    def _write(
        self, given: Given, numbers: Sequence[int], config: DecodeConfig, photos: Sequence[Path | bytes]
    ) -> list[list[Caption]]:
        with self._turn:
            found = self._captioner.caption_embeddings(given, config, numbers, [photos[n] for n in numbers])
            if config.rerank == "clip" or not self._captioner.encoder.reads_texts:
                return found
            return [self._captioner.scored(row, captions) for row, captions in zip(given.vectors, found)]

    def _while_awaited(self, photos: Sequence[Path | bytes]) -> Iterator[EncodedImages]:
        """The encoded photos, as long as somebody waits for their captions."""
        encoded = self._encoded(photos)
        while self.is_awaited():  # before each batch is decoded
            batch = next(encoded, None)
            if batch is None:
                return
            yield batch
        raise ClipcapError("the client no longer waits for these captions")

    def _encoded(self, photos: Sequence[Path | bytes]) -> Iterator[EncodedImages]:
        return encode_images(
            self._captioner.encoder,
            photos,
            TOGETHER,
            max_pixels=self._max_pixels,
            look=partial(_thumbnail, size=SMALL),
            turn=self._turn,
            tokens=self._captioner.model.token_layout,
        )


def _check_read(photo: Path | bytes, batch: EncodedImages) -> Given:
    """What is given of the photo of a batch of one; an error where it cannot be read."""
    if batch.given is None:
        name = "image" if isinstance(photo, bytes) else photo.name  # without its folder, which users must not see
        raise ClipcapError(f"{name}: {batch.bad[0].reason}")
    return batch.given


class PictureSearch:
    """Search for pictures by words, and by a picture where there is an encoder.

    Args:
        index: to search.
        encode: texts to embeddings [Q, D] in the space of the index.
        max_pixels: largest picture that is shown or searched with.
        turn: as of `CaptionService`.
        encoder: of pictures, in the same space.
    """

    def __init__(
        self,
        index: Index,
        encode: Callable[[Sequence[str]], Tensor],
        max_pixels: int,
        turn: Lock,
        encoder: Encoder | None = None,
    ):
        self.index = index
        self.encoder = encoder
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
            query = self._encode([words]).cpu()  # [1, D]
        return self._nearest(query, k)

    def find_alike(self, photo: Path, k: int) -> list[Row]:
        """The k pictures nearest to a photo, as `find` returns them.

        Raises:
            ClipcapError: the photo cannot be read, or no encoder was given.
        """
        if self.encoder is None:
            raise ClipcapError("this search takes words alone")
        [batch] = encode_images(self.encoder, [photo], 1, max_pixels=self._max_pixels, turn=self._turn)
        return self._nearest(_check_read(photo, batch).vectors.cpu(), k)

    def _nearest(self, query: Tensor, k: int) -> list[Row]:
        with self._turn:
            [matches] = self.index.search(query, k)
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
    """Search by both towers of the encoder that the index was made with.

    Raises:
        ClipcapError: the encoder does not exist, or its weights have changed.
    """
    encoder = captioner.encoder
    if index.meta.encoder not in (None, encoder.name):
        encoder = load_encoder(index.meta.encoder, str(captioner.device), tokenizer=tokenizer)
    index.check_encoder(encoder.name, encoder.weights_id, encoder.dim, "the search of the page")
    return PictureSearch(index, encoder.encode_texts, max_pixels, turn, encoder)


def _row(caption: Caption) -> Row:
    row: Row = {
        "caption": caption.text,
        "logprob": round(caption.logprob, 4),
        "clip_score": None if caption.clip_score is None else round(caption.clip_score, 4),
    }
    if caption.retrieved:  # without paths, which users must not see
        row["retrieved"] = [
            {
                "caption": one.caption,
                "thumbnail": _picture_of(one),
                "cosine": round(one.score, 4),
                "word": one.is_word,
            }
            for one in caption.retrieved
        ]
    return row


def _picture_of(retrieved: Retrieved) -> str | None:
    """The picture that a retrieved caption is of, as a `data:` address; None where it is not at hand."""
    try:
        return _thumbnail(open_image(retrieved.path), SMALL) if retrieved.path else None
    except ImageError:
        return None


def _thumbnail(image: Image.Image, size: int) -> str:
    """A picture as a `data:` address."""
    scale = min(1, size / max(image.size))
    small = image.resize([max(1, round(length * scale)) for length in image.size], reducing_gap=2)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
