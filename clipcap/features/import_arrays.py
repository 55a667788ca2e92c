"""`clipcap features import`: embeddings that another program made, of whatever medium, as a feature file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Content, FeatureMeta, LazyColumn, looks_normalized
from clipcap.features.files import check_place, write_parts
from clipcap.models.encoders.names import IMPORTED, is_loadable
from clipcap.models.encoders.token_spec import TokenLayout, TokenSpec
from clipcap.runtime.disk_arrays import blocks
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.runtime.text import counted, one_line, shown
from clipcap.sources.cells import captions_in
from clipcap.sources.collector import clean_caption
from clipcap.sources.columns import choose_columns
from clipcap.sources.faults import Faults
from clipcap.sources.names import ID_NAMES, plain
from clipcap.sources.tables import read_table
from clipcap.sources.textfiles import read_lines

BLOCK = 8192  # rows that are checked and converted at a time
_ARRAYS = ("embeddings", "features", "vectors", "tokens", "x", "arr_0")  # what a file calls its array, the best first
_IDS = ("ids", "image_ids", "names", "keys")  # and the ids of its rows
_ID_COLUMNS = (*ID_NAMES, "item", "audio", "clip", "video", "sound", "fileid")


@dataclass(frozen=True)
class _Arrays:
    """The numbers of N items, [N, D] or [N, T, W], and their ids where the file has them."""

    values: np.ndarray
    ids: list[str] | None


@writes_to("out")
def import_arrays(
    path: str | Path,
    out: str | Path,
    encoder: str,
    captions: str | Path | None = None,
    ids: str | Path | None = None,
    key: str | None = None,
) -> None:
    """Write a feature file of an array; no picture is needed anywhere.

    Args:
        path: `.npy`, `.npz`, `.safetensors` or `.pt` with [N, D], or [N, T, W], of which the mean over T is the
            embedding, and a folder also holds the T vectors as tokens.
        out: NAME.pkl, or a folder.
        encoder: what made the numbers.
        captions: a table with an id and a caption in each line; several lines may be of one item.
        ids: a text with the id of each row in a line (default: the file's own array `ids`; else the order in which
            the ids first stand in `captions`; without captions the row's number).
        key: which array of a file with several.
    Raises:
        ClipcapError: no array of finite numbers, or ids and rows that do not fit each other; nothing is written.
    """
    check_place(Path(out))
    found = _read(Path(path).expanduser(), key)
    texts = _read_captions(Path(captions).expanduser()) if captions else None
    names = _row_ids(found, texts, Path(ids).expanduser() if ids else None, path)
    _check_numbers(found.values, names, path)
    rows = len(names)
    single = found.values.ndim == 2
    dtype = np.float16 if found.values.dtype == np.float16 else np.float32
    numbers = LazyColumn(rows, partial(_vectors, found.values, dtype))
    of_row = [(texts or {}).get(name, []) for name in names]
    nowhere: Sequence[str | None] = [None] * rows
    id_column, path_column, caption_column = (
        LazyColumn(rows, partial(_between, column)) for column in (names, nowhere, of_row)
    )
    meta = FeatureMeta(
        encoder=encoder if is_loadable(encoder) else IMPORTED + encoder,
        normalized=looks_normalized(torch.from_numpy(_vectors(found.values, dtype, 0, 100))),
        source=f"import {path}",
        dtype=np.dtype(dtype).name,
    )
    tokens = None
    if not single:
        stored = Path(out).suffix != ".pkl"
        kept = (
            "kept as its tokens, their mean is its embedding" if stored else "averaged into one (a folder keeps all)"
        )
        logger.info(f"{path}: the {found.values.shape[1]} vectors of an item are {kept}")
        if stored:
            tokens = LazyColumn(rows, partial(_tokens, found.values))
            meta = replace(meta, tokens=TokenLayout.of(TokenSpec("import"), *found.values.shape[1:]))
    write_parts(out, [Content(numbers, id_column, path_column, caption_column, tokens)], meta)
    if texts is not None and (silent := of_row.count([])):
        logger.info(f"{path}: {silent:,} of {rows:,} rows have no caption: they can be captioned, not learnt")
    logger.info(f"wrote {out}: {counted(rows, 'item')}, {counted(sum(map(len, of_row)), 'caption')}")


def _vectors(values: np.ndarray, dtype: Any, start: int, stop: int) -> np.ndarray:
    """[N, D], or the mean over T of [N, T, W], as [stop − start, D]."""
    part = values[start:stop]
    return (part if part.ndim == 2 else part.astype(np.float32).mean(axis=1)).astype(dtype)


def _tokens(values: np.ndarray, start: int, stop: int) -> np.ndarray:
    """[N, T, W] as float16 [stop − start, T, W].

    Raises:
        ClipcapError: a number is too large for it.
    """
    with np.errstate(over="ignore"):
        found = values[start:stop].astype(np.float16)
    if np.isinf(found).any():
        raise ClipcapError("--tokens of items are stored as float16, and some numbers are too large: scale them down")
    return found


def _between(column: Sequence, start: int, stop: int) -> Sequence:
    return column[start:stop]


def _read(path: Path, key: str | None) -> _Arrays:
    """The array of a file; runs no code from it."""
    if not path.is_file():
        raise ClipcapError(f"{path}: there is no such file: pass an array as .npy, .npz, .safetensors or .pt")
    try:
        arrays = _open(path)
    except (OSError, ValueError, EOFError, SyntaxError, SafetensorError, KeyError) as error:
        reason = one_line(error)
        if "bject array" in reason or "Python objects" in reason:
            raise ClipcapError(
                f"{path}: holds Python objects, not numbers (rows of different lengths?): save one array of "
                f"numbers, np.save(name, np.stack(rows))"
            ) from error
        raise ClipcapError(f"{path}: truncated, or no array that can be read safely ({reason[:160]})") from error
    names = next((arrays[name] for name in _IDS if name in arrays), None)
    values = {name: array for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim in (2, 3)}
    chosen = key or next((name for name in _ARRAYS if name in values), None) or next(iter(values), None)
    if chosen not in values:
        there = ", ".join(f"{shown(name)[:40]} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
        raise ClipcapError(f"{path}: no array of floating-point [N, D] or [N, T, W]; it holds {there or 'nothing'}")
    if key is None and len(values) > 1 and chosen not in _ARRAYS:
        raise ClipcapError(f"{path}: holds several arrays ({', '.join(values)}): name one by --key")
    if not values[chosen].size:
        raise ClipcapError(f"{path}: its array is empty, {list(values[chosen].shape)}: save it again")
    return _Arrays(values[chosen], None if names is None else [str(name) for name in names.tolist()])


def _open(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; that of a `.npy` is memory-mapped."""
    if path.suffix == ".npy":
        return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".safetensors":
        content: Any = load_file(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        content = load_tensors(path)
    else:
        raise ClipcapError(f"{path}: pass an array as .npy, .npz, .safetensors or .pt")
    tensors = content if isinstance(content, dict) else {"x": content}
    return {
        str(name): (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


def _read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each id, in the order in which the ids first come; rows that cannot be read are refused."""
    faults = Faults()
    table = read_table(path, faults)
    own = next((column for column in table.columns if plain(column) in _ID_COLUMNS), None)
    columns = choose_columns(table, own, None)
    if columns.image is None:
        raise ClipcapError(f"{path}: no column of ids{table.columns_hint()}")
    if columns.note:
        logger.info(columns.note)
    found: dict[str, list[str]] = {}
    for where, (name, *cells) in table.rows(columns.image, *columns.captions, faults=faults):
        if name is None or not str(name).strip():
            raise ClipcapError(f"{where}: nothing in column '{shown(columns.image)}': give each caption its id")
        texts = [clean_caption(text) for cell in cells for text in captions_in(cell)]
        found.setdefault(str(name).strip(), []).extend(filter(None, texts))
    if len(faults):
        raise ClipcapError("; ".join(faults.notes()))
    if not found:
        raise ClipcapError(f"{path}: holds no captions")
    return found


def _row_ids(
    found: _Arrays, texts: dict[str, list[str]] | None, listed: Path | None, path: str | Path
) -> Sequence[str]:
    """The id of each row; ids and rows that do not fit each other are refused."""
    rows = len(found.values)
    if listed is not None:
        names: list[str] = [line.strip() for line in read_lines(listed)]
        names = names[:-1] if names and not names[-1] else names
    elif found.ids is not None:
        names = found.ids
    elif texts is not None:
        names = list(texts)
    else:
        return [str(row) for row in range(rows)]
    where = f"{listed}: " if listed else "its array of ids: " if found.ids is not None else "the captions: "
    if len(names) != rows:
        raise ClipcapError(
            f"{path}: has {rows:,} rows, and {where}{len(names):,} ids: there must be one for each row, in their "
            f"order (--ids FILE names them, a line each)"
        )
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ClipcapError(f"{path}: two rows have the id {shown(twice)}: ids must differ")
    there = set(names)
    missing = [name for name in texts or {} if name not in there]
    if missing:
        raise ClipcapError(
            f"{path}: {len(missing):,} ids of the captions have no row, the first is {shown(missing[0])}; rows have "
            f"ids such as {shown(names[0])}"
        )
    return names


def _check_numbers(values: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Refuse NaN and infinity; reads everything, a part at a time."""
    for rows in blocks(len(values), BLOCK):
        finite = np.isfinite(values[rows]).reshape(rows.stop - rows.start, -1).all(axis=1)
        if not finite.all():
            first = rows.start + int(np.argmin(finite))
            raise ClipcapError(
                f"{path}: row {first} (id {shown(names[first])}) holds NaN or infinity: encode it again, or leave "
                f"its row out"
            )
