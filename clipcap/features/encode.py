"""Images → rows: decoded by worker processes, encoded batch by batch, with the same bytes however it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from clipcap.errors import ClipcapError
from clipcap.features.config import ParseConfig
from clipcap.features.unfinished import PartialRows
from clipcap.images.interrupts import raise_lost_interrupts
from clipcap.images.read import ImageError, MissingImageError
from clipcap.images.workers import decoders, report_lost_workers
from clipcap.models.encoders.base import Encoder, Preprocess
from clipcap.models.encoders.encode_given import Encode, encode_given
from clipcap.models.encoders.encode_images import read_pixels
from clipcap.models.encoders.token_spec import TokenSpec
from clipcap.models.given import Given
from clipcap.runtime.progress import PartBar
from clipcap.sources.record import Record

MISSING = "file not found"
NOT_FINITE = "the encoder gives no finite numbers for it (try --dtype float32)"
CHUNK = 4  # images that a CPU thread encodes at a time


@dataclass(frozen=True)
class Decoded:
    """One batch of the grid as a worker gives it: the images that could be read, and why the others could not."""

    batch: int
    pixels: Tensor | None  # [V, 3, R, R], the views of all images; None where no image could be read
    good: list[int]  # numbers of the records
    bad: list[tuple[int, str]]  # (number of the record, reason)
    remarks: list[tuple[int, str]] = field(default_factory=list)  # (number of the record, how it had to be shown)
    counts: list[int] = field(default_factory=list)  # views of each good image


class ImageBatches(Dataset):
    """Decodes the images of whole batches; runs in worker processes."""

    def __init__(
        self,
        records: Sequence[Record],
        batches: Sequence[int],
        preprocess: Preprocess,
        config: ParseConfig,
        tokens: TokenSpec | None,
    ):
        self.records, self.batches, self.preprocess, self.config = records, batches, preprocess, config
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Decoded:
        batch, size = self.batches[index], self.config.batch_size
        pixels, good, bad, remarks = [], [], [], []
        for number in range(batch * size, min((batch + 1) * size, len(self.records))):
            try:
                tensor, remark = self._read(self.records[number])
                pixels.append(tensor)
                good.append(number)
                remarks += [(number, remark)] * bool(remark)
            except MissingImageError:
                bad.append((number, MISSING))
            except ImageError as error:
                bad.append((number, error.reason))
        views = torch.cat(pixels) if pixels else None  # [V, 3, R, R]
        return Decoded(batch, views, good, bad, remarks, [len(own) for own in pixels])

    def _read(self, record: Record) -> tuple[Tensor, str | None]:
        upright = self.config.recipe != "reference"
        found = read_pixels(
            self.preprocess, record.image, upright=upright, frame=self.config.source.frame, tokens=self.tokens
        )
        return found.pixels, found.remark


def encode_missing(
    partial_rows: PartialRows,
    records: Sequence[Record],
    encoder: Encoder,
    config: ParseConfig,
    state: PartialState,
    tokens: TokenSpec | None = None,
) -> None:
    """Encode the batches that no earlier run has finished; this process every `num_processes`-th of them.

    With `tokens`, which `partial_rows` has room for, these are encoded in the same pass.

    Raises:
        ClipcapError: the disk is full, or a worker died; finished batches are kept.
    """
    size = config.batch_size
    done = partial_rows.done()
    state.wait_for_everyone()  # all count before anyone adds: they must share out the same batches
    todo = [b for b in range(-(-len(records) // size)) if b not in done]
    mine = todo[state.process_index :: state.num_processes]
    already = sum(min(size, len(records) - b * size) for b in done)
    # Only a terminal shows the bar: in a log it would be one endless line.
    bar = PartBar(part="encoding", total=len(records), initial=already, unit="img", hidden=not state.is_main_process)
    batches = ImageBatches(records, mine, encoder.preprocess, config, tokens)
    lost = report_lost_workers(", it continues where it stopped")
    with lost, bar, cpu_threads() as threads, raise_lost_interrupts() as check_interrupts:
        for decoded in decoders(batches, config.source.workers, encoder.device):
            good, given, bad = _encode(decoded, encoder, threads, partial_rows.dtype, tokens)
            check_interrupts()
            rows = (None, None) if given is None else (given.vectors, given.tokens)
            partial_rows.write(decoded.batch, good, rows[0], bad, decoded.remarks, rows[1])
            bar.update((len(decoded.good) + len(decoded.bad)) * state.num_processes)


def _encode(
    decoded: Decoded, encoder: Encoder, threads: Executor, dtype: torch.dtype, tokens: TokenSpec | None
) -> tuple[list[int], Given | None, list[tuple[int, str]]]:
    """(rows, what is given of them, vectors in `dtype`, bad rows with the reason) of a batch."""
    if decoded.pixels is None:
        return [], None, decoded.bad
    run = partial(_run_on, encoder.device, threads)
    found = encode_given(encoder, decoded.pixels, decoded.counts, tokens, run)
    given = Given(found.vectors.to(dtype), None if found.tokens is None else found.tokens.to(torch.float16))
    finite = given.isfinite()  # [B]
    if finite.all():
        return decoded.good, given, decoded.bad
    good = [row for row, usable in zip(decoded.good, finite.tolist()) if usable]
    broken = [(row, NOT_FINITE) for row, usable in zip(decoded.good, finite.tolist()) if not usable]
    return good, given[finite], [*decoded.bad, *broken]


@contextmanager
def cpu_threads() -> Iterator[Executor]:
    """As many threads as PyTorch would use, for whole images: each operation keeps to one thread meanwhile.

    PyTorch splits an operation's sums by the number of its threads, so that the last bits of a feature would depend
    on it, and torchrun gives each process one thread where a plain run has all cores. It is also faster, by a tenth.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(usual) as threads:
            yield threads
    finally:
        torch.set_num_threads(usual)


def encode_batch(encoder: Encoder, pixels: Tensor, threads: Executor) -> Tensor:
    """[B, 3, R, R] → float32 [B, D]; a GPU takes the batch at once, a CPU in fixed parts, one per thread."""
    [vectors] = _run_on(encoder.device, threads, lambda part: (encoder.encode_images(part),), pixels)
    return vectors


def _run_on(device: torch.device, threads: Executor, encode: Encode, pixels: Tensor) -> tuple[Tensor, ...]:
    """What a function of the encoder gives of many pixels, as `encode_batch` computes it."""
    if device.type != "cpu":
        return encode_halving(encode, pixels)
    return _joined(list(threads.map(encode, pixels.split(CHUNK))))


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def encode_halving(encode: Encode, pixels: Tensor) -> tuple[Tensor, ...]:
    """What a function gives of pixels [B, 3, R, R]; a batch the GPU's memory cannot hold is encoded in halves."""
    try:
        return tuple(found.cpu() for found in encode(pixels))
    except torch.cuda.OutOfMemoryError:
        if len(pixels) == 1:
            raise ClipcapError(
                "not even one image fits the GPU's memory: use --device cpu or a smaller encoder"
            ) from None
    # Outside of the handler: the exception holds the failed batch's memory.
    torch.cuda.empty_cache()
    return _joined([encode_halving(encode, half) for half in pixels.chunk(2)])
