"""Source → frozen encoder → feature file: each image once, in batches, resumable, over any number of processes.

Batches are a fixed grid over the sorted image list, whatever the interruptions and the number of processes, so
that every run of a command gives the same file. Finished batches lie in `OUT.partial/` until the end.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clipcap.config import ParseConfig
from clipcap.encoders import Encoder, Preprocess, load_encoder
from clipcap.errors import ClipcapError
from clipcap.features import FeatureMeta, write_features
from clipcap.images import ImageError, MissingImageError, open_image
from clipcap.partial import PartialRows
from clipcap.sources import READERS, Record, Source
from clipcap.sources.report import describe

MISSING = "file not found"


@dataclass(frozen=True)
class Decoded:
    """One batch of the grid as a worker gives it: the images that could be read, and why the others could not."""

    batch: int
    pixels: Tensor | None  # [B, 3, R, R], None where no image could be read
    good: list[int]  # numbers of the records
    bad: list[tuple[int, str]]  # (number of the record, reason)


class ImageBatches(Dataset):
    """Decodes the images of whole batches; runs in worker processes."""

    def __init__(
        self, records: Sequence[Record], batches: Sequence[int], preprocess: Preprocess, config: ParseConfig
    ):
        self.records, self.batches, self.preprocess, self.config = records, batches, preprocess, config

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Decoded:
        batch, size = self.batches[index], self.config.batch_size
        pixels, good, bad = [], [], []
        for number in range(batch * size, min((batch + 1) * size, len(self.records))):
            try:
                pixels.append(self._read(self.records[number]))
                good.append(number)
            except MissingImageError:
                bad.append((number, MISSING))
            except ImageError as error:
                bad.append((number, error.reason))
        return Decoded(batch, torch.stack(pixels) if pixels else None, good, bad)

    def _read(self, record: Record) -> Tensor:
        upright = self.config.recipe != "reference"
        return self.preprocess(open_image(record.image, upright=upright, frame=self.config.frame))


def parse(source_name: str, config: ParseConfig, say: Callable[[str], None] = print) -> list[Path]:
    """Encode a source's images and write its feature files, one per split.

    Returns:
        the files written (none with `dry_run`).
    Raises:
        ClipcapError: bad input, another command's unfinished work under the same name, or more than `max_bad` of
            the images missing or unreadable (after the good ones are saved).
    """
    state = PartialState(cpu=config.device == "cpu")
    tell = say if state.is_main_process else (lambda line: None)
    source = READERS[source_name](config)
    count_tokens = None if config.token_limit is None and not config.dry_run else _token_counter(config)
    source = limit_tokens(source, config.token_limit, count_tokens)
    if config.dry_run:
        tell(describe(source, count_tokens))
        return []
    for note in source.notes:
        tell(note)
    if not source.records:
        raise ClipcapError(f"{config.data_path}: no image with a caption")

    encoder = load_encoder(config.clip_model_type, str(state.device) if config.device == "auto" else config.device,
                           config.dtype)  # fmt: skip
    out = Path(config.out or f"data/{source_name}_train.pkl")
    tell(
        f"{state.num_processes} process(es), {encoder.name} ({encoder.dim} wide, {encoder.dtype}) on {encoder.device}"
    )
    print_id = fingerprint(source.records, encoder, config)
    partial = PartialRows(
        out, print_id, len(source.records), encoder.dim, _stored(encoder.dtype), state.process_index
    )
    if state.is_main_process:
        partial.create()
    state.wait_for_everyone()
    encode_missing(partial, source.records, encoder, config, state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    return _finish(partial, source, encoder, config, out, tell)


def _stored(dtype: torch.dtype) -> torch.dtype:
    """NumPy has no bfloat16: such features are stored as float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _token_counter(config: ParseConfig) -> Callable[[str], int] | None:
    """Counts tokens of --lm; None in a dry run where its tokenizer is not at hand (words are counted then)."""
    from clipcap.lm import load_tokenizer

    try:
        tokenizer = load_tokenizer(config.lm)
    except ClipcapError as error:
        if config.token_limit is None:
            return None
        raise ClipcapError(f"--token_limit counts tokens, but {error}") from error
    return lambda caption: len(tokenizer(caption, add_special_tokens=False)["input_ids"])


def limit_tokens(source: Source, limit: int | None, count_tokens: Callable[[str], int] | None) -> Source:
    """Drop captions longer than `limit` tokens, and images left without one."""
    if limit is None:
        return source
    short = [
        replace(record, captions=tuple(c for c in record.captions if count_tokens(c) <= limit))
        for record in source.records
    ]
    dropped = sum(len(r.captions) for r in source.records) - sum(len(r.captions) for r in short)
    kept = [record for record in short if record.captions]
    note = (
        f"--token_limit {limit}: {dropped} longer captions dropped, {len(short) - len(kept)} images left without one"
    )
    return replace(source, records=kept, notes=[*source.notes, note])


def fingerprint(records: Sequence[Record], encoder: Encoder, config: ParseConfig) -> str:
    """Identifies a command's work: encoder, captions, images and every flag that changes the file."""
    digest = hashlib.sha256()
    flags = (encoder.name, encoder.weights_id, str(encoder.dtype), config.batch_size, config.frame, config.recipe)
    digest.update(repr(flags).encode())
    for r in records:
        digest.update(repr((r.image_id, str(r.image), r.captions, r.split)).encode())
    return digest.hexdigest()[:32]


def encode_missing(
    partial: PartialRows, records: Sequence[Record], encoder: Encoder, config: ParseConfig, state: PartialState
) -> None:
    """Encode the batches that no earlier run has finished; this process every `num_processes`-th of them."""
    size = config.batch_size
    done = partial.done()
    todo = [b for b in range(-(-len(records) // size)) if b not in done]
    already = min(len(done) * size, len(records))
    bar = tqdm(total=len(records), initial=already, unit="img", desc="encoding", disable=not state.is_main_process)
    mine = todo[state.process_index :: state.num_processes]
    for decoded in _loader(ImageBatches(records, mine, encoder.preprocess, config), config, encoder):
        embeddings = None if decoded.pixels is None else encode_halving(encoder, decoded.pixels)
        partial.write(decoded.batch, decoded.good, embeddings, decoded.bad)
        bar.update((len(decoded.good) + len(decoded.bad)) * state.num_processes)
    bar.close()


def _loader(batches: ImageBatches, config: ParseConfig, encoder: Encoder) -> Iterator[Decoded]:
    workers = config.workers if config.workers is not None else _default_workers(encoder)
    workers = min(workers, len(batches))
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=encoder.device.type == "cuda",
        )
    )


def _default_workers(encoder: Encoder) -> int:
    """As many decoders as cores, at most 8; one where the encoder itself needs the cores."""
    return min(8, os.cpu_count() or 1) if encoder.device.type != "cpu" else 1


def encode_halving(encoder: Encoder, pixels: Tensor) -> Tensor:
    """[B, 3, R, R] → float32 [B, D]; a batch the GPU's memory cannot hold is encoded in halves."""
    try:
        return encoder.encode_images(pixels).cpu()
    except torch.cuda.OutOfMemoryError:
        if len(pixels) == 1:
            raise ClipcapError(
                "not even one image fits the GPU's memory: use --device cpu or a smaller encoder"
            ) from None
        torch.cuda.empty_cache()
        return torch.cat([encode_halving(encoder, half) for half in pixels.chunk(2)])


def _finish(
    partial: PartialRows,
    source: Source,
    encoder: Encoder,
    config: ParseConfig,
    out: Path,
    tell: Callable[[str], None],
) -> list[Path]:
    """Write the splits' files and the list of bad images, say what was done, remove the partial work."""
    bad = partial.bad()
    records = source.records
    splits = Counter(r.split for r in records)
    written = []
    for split in sorted(splits, key=str):
        rows = [i for i, r in enumerate(records) if r.split == split and i not in bad]
        if not rows:
            continue
        path = split_path(out, split, len(splits))
        meta = FeatureMeta(
            encoder=encoder.name, encoder_weights_id=encoder.weights_id, source=f"{source.name} {config.data_path}"
        )
        write_features(
            path,
            embeddings=partial.rows(rows),
            image_ids=[records[i].image_id for i in rows],
            image_paths=[str(records[i].image) for i in rows],
            captions=[records[i].captions for i in rows],
            meta=meta,
        )
        written.append(path)
        tell(f"wrote {path}: {len(rows)} images, {sum(len(records[i].captions) for i in rows)} captions")
    if not bad:
        tell("no image was missing or unreadable")
        partial.remove()
        return written
    errors = out.parent / "errors.csv"
    write_errors(errors, [(str(records[i].image), reason) for i, reason in sorted(bad.items())])
    missing = sum(reason == MISSING for reason in bad.values())
    line = (
        f"{len(bad)} of {len(records)} images skipped: {missing} missing, {len(bad) - missing} unreadable ({errors})"
    )
    partial.remove()
    if len(bad) > max(1, config.max_bad * len(records)):
        raise ClipcapError(
            f"{line}; that is more than --max_bad {config.max_bad}: mend them, or allow more; the good ones are saved"
        )
    tell(line)
    return written


def split_path(out: Path, split: str | None, splits: int) -> Path:
    """`out` itself where there is one split, else `out` with the split at the end of its name."""
    if splits == 1:
        return out
    return out.with_name(f"{out.stem.removesuffix('_train')}_{split or 'rest'}{out.suffix}")


def write_errors(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """The list of bad images: path, reason."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(rows)
    temporary.replace(path)
