"""Reads captions by image from COCO results and annotations, tables, and feature files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.runtime.text import from_cell, in_short
from clipcap.sources.cells import captions_in, image_in
from clipcap.sources.columns import choose_columns
from clipcap.sources.faults import Faults, RowError
from clipcap.sources.names import plain
from clipcap.sources.tables import read_table

_IMAGE_KEYS = ("image_id", "image", "id")
# Columns of predictions, as they are compared, which come before those of captions.
_PREDICTIONS = (
    "prediction", "predictions", "predicted", "predict", "predictedcaption", "generatedcaption", "generatedtext",
    "hypothesis", "candidate",
)  # fmt: skip


def read_predictions(path: str | Path) -> dict[str, str]:
    """The caption of each image.

    Args:
        path: COCO results (a JSON list of `image_id` and `caption`), `{image: caption}`, or `.jsonl` or `.csv` of
            `clipcap predict`, or any other table of image and caption.
    Raises:
        ClipcapError: no such file, not of these kinds, or an image twice.
    """
    path = Path(path).expanduser()
    captions: dict[str, str] = {}
    for number, row in enumerate(_rows(path, predictions=True)):
        image, caption = _pair(row, path, number)
        if image in captions:
            raise ClipcapError(f"{path}: image {image} has two captions: leave one per image")
        captions[image] = caption
    if not captions:
        raise ClipcapError(f"{path}: holds no captions")
    return captions


def read_references(path: str | Path) -> dict[str, list[str]]:
    """The human captions of each image.

    Args:
        path: COCO annotations, a JSON list of `image_id` and `caption`, `{image: [captions]}`, `.jsonl` or `.csv` of
            image and caption, or a feature file.
    Raises:
        ClipcapError: no such file, or not of these kinds.
    """
    path = Path(path).expanduser()
    if path.is_dir() or path.suffix == ".pkl":
        return captions_by_image(read_features(str(path)))
    content = None
    if path.suffix.lower() == ".json":
        with suppress(ClipcapError):  # `_rows` says why, if it is of no other kind either
            content = _json(path)
    by_other_key = None
    if isinstance(content, dict) and "annotations" not in content:
        by_image = {str(image): [texts] if isinstance(texts, str) else texts for image, texts in content.items()}
        if all(isinstance(texts, list) and all(isinstance(t, str) for t in texts) for texts in by_image.values()):
            return {image: list(texts) for image, texts in by_image.items() if texts}
        wanted = f"{path}: expected {{image: [captions]}}, or COCO annotations with a list `annotations`"
        by_other_key = _or_table(path, ClipcapError(wanted), predictions=False)
    references: dict[str, list[str]] = {}
    for number, row in enumerate(_rows(path, predictions=False) if by_other_key is None else by_other_key):
        image, caption = _pair(row, path, number)
        references.setdefault(image, []).append(caption)
    if not references:
        raise ClipcapError(f"{path}: holds no captions")
    return references


def captions_by_image(features: Features) -> dict[str, list[str]]:
    """The captions of each image of a feature file, in file order; rows of the same image are merged."""
    references: dict[str, list[str]] = {str(image): [] for image in features.image_ids}
    for caption, row in zip(features.captions, features.caption_rows):
        if caption.strip():
            references[str(features.image_ids[int(row)])].append(caption)
    return {image: texts for image, texts in references.items() if texts}


def match_images(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], where: str
) -> dict[str, str]:
    """The predictions, with their images renamed as in the references.

    The two may name an image by its path, its file name or its number: `dataset/12.jpg` is also `12.jpg` and
    `12`, `COCO_val2014_000000000042.jpg` is also `42`.

    Raises:
        ClipcapError: an image has no reference.
    """
    found = ((image, next((name for name in _names(image) if name in references), None)) for image in predictions)
    names = {image: name for image, name in found if name is not None}
    missing = [image for image in predictions if image not in names]
    if missing:
        raise ClipcapError(
            f"{where}: {len(missing)} of {len(predictions)} images have no reference, the first is {missing[0]}; "
            f"references use names such as {next(iter(references), 'none')}"
        )
    if len(set(names.values())) < len(names):
        raise ClipcapError(f"{where}: several of its images match the same name in the references")
    return {names[image]: caption for image, caption in predictions.items()}


def _names(image: str) -> Iterator[str]:
    path = PurePath(image.removesuffix(".0") if re.fullmatch(r"\d+\.0", image) else image)
    yield from (image, path.name, path.stem)
    if number := re.search(r"_0*(\d+)$", path.stem):
        yield number[1]


def results(captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Captions in the COCO results format: numbers stay numbers."""
    return [{"image_id": _number(image), "caption": caption} for image, caption in captions.items()]


def _number(image: str) -> int | str:
    return int(image) if image.isascii() and image.isdigit() and str(int(image)) == image else image


def _rows(path: Path, predictions: bool) -> Iterable[Any]:
    """The rows of a file; `predictions` says which of several columns with captions is meant."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab", ".psv", ".txt", ".parquet"):
        return _table_rows(path, predictions)
    try:
        rows = _lines(path) if suffix in (".jsonl", ".ndjson") else _entries(path)
        for number, row in enumerate(rows):
            _pair(row, path, number)
    except ClipcapError as error:
        return _or_table(path, error, predictions)
    return rows


def _lines(path: Path) -> list[Any]:
    with _opened(path) as file:
        return [_loads(line, path) for line in file if line.strip()]


def _entries(path: Path) -> list[Any]:
    content = _json(path)
    if isinstance(content, dict) and "annotations" not in content:
        return list(_by_image(content, path))
    content = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise ClipcapError(f"{path}: expected a list of objects with image_id and caption (COCO results)")
    return content


def _or_table(path: Path, error: ClipcapError, predictions: bool) -> list[dict[str, str]]:
    """The rows of a file in any other shape that `clipcap parse custom` reads; where it is of none, the error."""
    try:
        return _table_rows(path, predictions)
    except ClipcapError:
        raise error from None


def _by_image(content: dict, path: Path) -> Iterator[dict[str, str]]:
    """Rows of {image: caption}, or {image: [caption]} with one each, as CLIPScore's and pycocoevalcap's."""
    for image, caption in content.items():
        if isinstance(caption, list) and len(caption) == 1:
            caption = (
                caption[0]["caption"] if isinstance(caption[0], dict) and "caption" in caption[0] else caption[0]
            )
        if not isinstance(caption, str):
            raise ClipcapError(f"{path}: expected {{image: caption}}, one caption for '{in_short(str(image), 60)}'")
        yield {"image": image, "caption": caption}


def _table_rows(path: Path, predictions: bool) -> list[dict[str, str]]:
    """The rows of a table in any dialect; a broken row is an error, because scores need all images."""
    faults = Faults()
    table = read_table(path, faults)
    predicted = next((name for name in table.columns if plain(name) in _PREDICTIONS), None) if predictions else None
    columns = choose_columns(table, None, predicted)
    if columns.image is None:
        raise ClipcapError(f"{path}: no column names the images: add a column image")
    rows = []
    for where, cells in table.rows(columns.image, *columns.captions, faults=faults):
        try:
            image = image_in(cells[0])
            captions = [text for cell in cells[1:] for text in _captions(cell)]
        except RowError as error:
            faults.add(where, error)
            continue
        rows += [{"image": from_cell(str(image or "")), "caption": from_cell(text)} for text in captions]
    if len(faults):
        raise ClipcapError("; ".join(faults.notes()))
    return rows


def _captions(cell: Any) -> list[str]:
    """A caption as it is written, however odd; those in a list."""
    if isinstance(cell, str):
        return [cell]
    found = captions_in(cell)
    if not all(map(str.strip, found)):
        raise RowError("no caption")
    return found


def _pair(row: Any, path: Path, number: int) -> tuple[str, str]:
    name = next((key for key in _IMAGE_KEYS if isinstance(row, dict) and key in row), None)
    if name is None or not isinstance(row.get("caption"), str):
        raise ClipcapError(f"{path}: entry {number} has no image_id (or image) and caption")
    return str(row[name]), row["caption"]


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ClipcapError(f"{path}: is not UTF-8 ({error.reason}): convert it (iconv -t UTF-8)") from error
    except OSError as error:
        raise ClipcapError(f"{path}: cannot be read: {error.strerror}") from error


def _json(path: Path) -> Any:
    with _opened(path) as file:
        return _loads(file.read(), path)


def _loads(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClipcapError(f"{path}: is not JSON: {str(error)[:120]}") from error
