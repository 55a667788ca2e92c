"""Embeddings to captions in batches: the one way of photos, feature files, held-out images and the web page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from clipcap.captioning.decode import Caption
from clipcap.features.feature_set import Features
from clipcap.images.read import ImageError
from clipcap.models.encoders.encode_images import EncodedImages
from clipcap.models.given import Given

CaptionedBatch = tuple[EncodedImages, list[list[Caption]]]  # the captions of each encoded image, best first


def caption_batches(
    write: Callable[[Given, Sequence[int]], list[list[Caption]]], batches: Iterable[EncodedImages]
) -> Iterator[CaptionedBatch]:
    """Caption batches as they come.

    Args:
        write: what is given of B images and their numbers in the run → the captions of each, best first.
        batches: of photos (`encode_images`) or of a feature file (`stored_embeddings`).
    Returns:
        each batch with its captions, in order.
    """
    for batch in batches:
        yield batch, [] if batch.given is None else write(batch.given, batch.numbers)


def stored_embeddings(
    features: Features, rows: Sequence[int], batch_size: int, numbers: Sequence[int] | None = None
) -> Iterator[EncodedImages]:
    """Rows of a feature file, as if their images were encoded now; those that are not finite are bad.

    Args:
        rows: R of the file.
        batch_size: rows read together.
        numbers: R, of the images in the run (default: 0, 1, …).
    """
    numbers = range(len(rows)) if numbers is None else numbers
    for start in range(0, len(rows), batch_size):
        of_rows = dict(zip(numbers[start : start + batch_size], rows[start : start + batch_size]))
        given = features.given(list(of_rows.values()))
        finite = given.isfinite()  # [B]
        good = [number for number, usable in zip(of_rows, finite.tolist()) if usable]
        bad = {
            number: ImageError(row_name(features, row), "its features are not finite")
            for number, row in of_rows.items()
            if number not in good
        }
        yield EncodedImages(good, given[finite] if good else None, bad)


def row_name(features: Features, row: int) -> str:
    """What a row's image is called: its path, or else its id."""
    return str(features.image_paths[row] or features.image_ids[row])
