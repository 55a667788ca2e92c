"""The feature pickle of the original ClipCap: `{"clip_embedding": [N, D], "captions": [{..., row}, ...]}`.

Written so that the original trainer loads it (Python 3.7, torch 1.6, no numpy inside) and that the same content
gives the same bytes; read without running anything in it.
"""

from __future__ import annotations

import mmap
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor, _utils

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Content, FeatureMeta, Features, looks_normalized
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.safe_load.objects import CALLS, INERT, array_values, row_fields
from clipcap.runtime.safe_load.tensors import storage_bytes
from clipcap.runtime.safe_load.unpickle import PickledObject, UnreadablePickle, plain_data

AGAIN = "parse the images again"
ARRAYS = (".npy", ".npz", ".safetensors")  # of embeddings that another program made
_FIRST_BYTES = b"\x80}(c"  # of a pickled dictionary: protocol 2 and above, 1, 0


def read_pickle(path: Path) -> Features:
    """Read a feature pickle: ours, the original's or the food fork's."""
    content = read_content(path)
    embeddings = embeddings_of(content, path)
    captions, caption_rows, ids = _captions(content["captions"], len(embeddings), path)
    if "meta" in content:
        meta = FeatureMeta.from_file(content["meta"], path)
    else:
        meta = FeatureMeta(normalized=looks_normalized(embeddings), dtype=_name(embeddings.dtype))
    image_ids = row_ids(content, ids, len(embeddings), path)
    image_paths = _per_row(content, "image_paths", len(embeddings), path) or [None] * len(embeddings)
    return Features(embeddings, captions, caption_rows, image_ids, image_paths, meta, path)


def read_content(path: Path) -> dict[str, Any]:
    """What the pickle holds, as plain data: a dictionary with `clip_embedding` and `captions` at least."""
    size = path.stat().st_size
    if not size:
        raise ClipcapError(f"{path}: is empty: {AGAIN}")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if stream[0] not in _FIRST_BYTES:
            what = "a torch.save archive" if stream[:2] == b"PK" else "no pickle"
            if path.suffix in ARRAYS:
                raise ClipcapError(f"{path}: is an array: `clipcap features import` makes a feature file of it")
            raise ClipcapError(f"{path}: is {what}, not a ClipCap feature file: {AGAIN}")
        try:
            content = plain_data(cast(BinaryIO, stream), CALLS, INERT)  # a map reads as a file does
        except UnreadablePickle as error:
            raise ClipcapError(f"{path}: {error}: copy the file again or {AGAIN}") from error
    if not isinstance(content, dict) or not {"clip_embedding", "captions"} <= content.keys():
        keys = [f"{key!r:.40}" for key in content][:10] if isinstance(content, dict) else [type(content).__name__]
        raise ClipcapError(
            f"{path}: is not a ClipCap feature file: expected the keys clip_embedding and captions, "
            f"found {', '.join(keys) or 'none'}: {AGAIN}"
        )
    if not isinstance(content["captions"], list):
        raise ClipcapError(f"{path}: its captions are not a list: {AGAIN}")
    return content


def embeddings_of(content: dict[str, Any], path: Path) -> Tensor:
    """[N, D], in the floating-point type that is stored."""
    value = content["clip_embedding"]
    if isinstance(value, PickledObject):
        value = _array(value, path)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ClipcapError(f"{path}: its clip_embedding is not an array of floating-point numbers: {AGAIN}")
    if value.ndim != 2 or not value.numel():
        raise ClipcapError(
            f"{path}: its clip_embedding has shape {list(value.shape)}, expected [images, width]: {AGAIN}"
        )
    return value


def _array(record: PickledObject, path: Path) -> Tensor | None:
    try:
        values = np.asarray(array_values(record))
    except Exception as error:  # a damaged or hostile record fails in many ways
        raise ClipcapError(f"{path}: its clip_embedding is damaged: {AGAIN}") from error
    native = values.dtype.newbyteorder("=")
    return torch.from_numpy(values.astype(native)) if values.dtype.kind == "f" else None


def _captions(items: list, num_rows: int, path: Path) -> tuple[list[str], np.ndarray, dict[int, str]]:
    """The captions with text, the row of each, and the image id of each row that has one."""
    captions, rows, ids = [], [], {}
    for number in range(len(items)):
        caption, row, image_id = read_caption(items, number, num_rows, path)
        if image_id is not None:
            ids.setdefault(row, image_id)
        if caption:
            captions.append(caption)
            rows.append(row)
    return captions, np.array(rows, dtype=np.int64), ids


def read_caption(items: list, number: int, num_rows: int, path: Path) -> tuple[str, int, str | None]:
    """(caption, its row, image id) of an entry of the captions."""
    where = f"{path}: captions[{number}]"
    fields = _fields(items[number], where)
    caption, row, image_id = (fields.get(name) for name in ("caption", "clip_embedding", "image_id"))
    if type(row) is not int or not 0 <= row < num_rows:
        shown = row if type(row) in (int, float, str) else type(row)
        raise ClipcapError(f"{where} points at row {shown!r:.40}, the rows are 0 to {num_rows - 1}: {AGAIN}")
    if caption is not None and type(caption) is not str:
        raise ClipcapError(f"{where} is not a text but {type(caption).__name__}: {AGAIN}")
    return caption or "", row, str(image_id) if type(image_id) in (str, int) else None


def _fields(item: Any, where: str) -> dict:
    if isinstance(item, dict):
        return item
    try:
        return row_fields(item)
    except Exception as error:  # a damaged or hostile record fails in many ways
        raise ClipcapError(f"{where} is neither a dictionary nor a row of pandas: {AGAIN}") from error


def row_ids(content: dict[str, Any], ids: dict[int, str], num_rows: int, path: Path) -> list[str]:
    """What names the image of each row: its own list of them, else the captions (`ids`), else the row's number."""
    return _per_row(content, "image_ids", num_rows, path) or [ids.get(r, f"row {r}") for r in range(num_rows)]


def _per_row(content: dict[str, Any], key: str, num_rows: int, path: Path) -> list | None:
    values = content.get(key)
    if values is None:
        return None
    may_be_none = (str, type(None)) if key == "image_paths" else (str,)
    if not isinstance(values, list) or len(values) != num_rows or {*map(type, values)} - {*may_be_none}:
        raise ClipcapError(f"{path}: its {key} are not one text for each of {num_rows} rows: {AGAIN}")
    return values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_pickle(path: Path, rows: Content, meta: FeatureMeta) -> None:
    """Write a feature pickle: each image one row, its captions pointing at it."""
    same = _Shared()
    ids = [same(image_id) for image_id in rows.image_ids[:]]
    items = []
    for row, texts in enumerate(rows.captions[:]):
        for text in texts:
            values = (ids[row], len(items), same(text), row)
            items.append(dict(zip(("image_id", "id", "caption", "clip_embedding"), values, strict=True)))
    content = {
        "clip_embedding": rows.embeddings,
        "captions": items,
        "meta": {same(name): same(value) for name, value in meta.stored().items()},
        "image_ids": ids,
        "image_paths": [same(image_path) for image_path in rows.image_paths[:]],
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as draft, open(draft, "wb") as file:
            _FeaturePickler(file, protocol=4).dump({same(key): value for key, value in content.items()})


class _Shared:
    """Gives equal texts as one object: a pickle spells an object out once, so identity shows in its bytes."""

    def __init__(self) -> None:
        names = ("clip_embedding", "captions", "image_id", "id", "caption")
        self.texts: dict[str, str] = {name: name for name in names}

    def __call__(self, value: Any) -> Any:
        return self.texts.setdefault(str(value), str(value)) if isinstance(value, str) else value


class _FeaturePickler(pickle.Pickler):
    """Writes a numpy array as a torch tensor, in the words of torch 1.6."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        size, stride = value.shape, (value.shape[1], 1)
        return _utils._rebuild_tensor_v2, (_Storage(value), 0, size, stride, False, OrderedDict())


class _Storage:
    """Pickles as the bytes of a torch storage."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __reduce__(self) -> tuple:
        return torch.storage._load_from_bytes, (storage_bytes(self.values),)
