"""Source → frozen encoder → feature file: each image once, in batches, resumable, over any number of processes.

Batches are a fixed grid over the sorted image list, whatever the interruptions and the number of processes, so
that every run of a command gives the same file. Finished batches lie in `OUT.partial/` until the end.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import clipcap
from clipcap.errors import ClipcapError
from clipcap.features.config import ParseConfig
from clipcap.features.encode import MISSING, encode_missing
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import check_place, refuse_tokens, write_features
from clipcap.features.split import split_path
from clipcap.features.unfinished import PartialRows
from clipcap.images.kinds import CONVERT
from clipcap.images.skipped import too_many, write_errors
from clipcap.models.encoders.base import Encoder, pick_device
from clipcap.models.encoders.encode_given import layout_of
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.token_spec import TokenLayout, TokenSpec
from clipcap.models.kernels.bfloat16 import why
from clipcap.options import given
from clipcap.runtime.interruption import states_what_is_left
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.processes import alone
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import counted, shown
from clipcap.sources.collector import NO_CAPTION, Source
from clipcap.sources.dry_run import check_images, describe
from clipcap.sources.readers import read_source
from clipcap.sources.record import Record

CountTokens = Callable[[str], int]


def _output(source_name: str, config: ParseConfig) -> Path | None:
    """Where a parse writes; nowhere in a dry run."""
    usual = f"data/{source_name}_train" + ".pkl" * (config.tokens is None)
    return None if config.dry_run else Path(config.out or usual)


@writes_to(lambda called: _output(called["source_name"], given(ParseConfig, called["config"], called["options"])))
def parse(source_name: str, config: ParseConfig | None = None, **options: Any) -> list[Path]:
    """Encode a source's images and write its feature files, one per split.

    >>> parse("food", data_path="food", clip_model_type="ViT-B/32", out="food_train.pkl")

    Args:
        source_name: food, coco, flickr8k, conceptual or custom.
        config: of the parsing (default: the defaults of `clipcap parse`).
        options: in place of those of `config`, by the names of their flags.
    Returns:
        the files written (none with `dry_run`).
    Raises:
        ClipcapError: bad input, another command's unfinished work under the same name, or more than `max_bad` of
            the images missing or unreadable (after the good ones are saved); in a dry run, all of them.
    """
    config = given(ParseConfig, config, options)
    out = _output(source_name, config)
    state = PartialState(cpu=pick_device(config.device).type == "cpu")
    source, count_tokens = _read(source_name, config)
    if out is None:
        if state.is_main_process:
            checked = check_images(source.records)
            print(describe(source, count_tokens, checked))
            if len(checked[0]) == len(source.records):
                raise ClipcapError("none of these images can be read: correct --data_path or --images")
        return []
    outputs = output_paths(out, source.records)
    spec = None if config.tokens is None else TokenSpec.parse(config.tokens, config.layer, config.pool)
    if spec and out.suffix == ".pkl":
        refuse_tokens(out)
    for note in source.notes:
        logger.info(note)
    encoder = _load_encoder(config, state)
    layout = layout_of(encoder, spec) if spec else None
    partial = PartialRows(
        out,
        fingerprint(source.records, encoder, config),
        len(source.records),
        encoder.dim,
        stored_dtype(encoder.dtype),
        state.process_index,
        (layout.count, layout.width) if layout else None,
    )
    if state.is_main_process:
        partial.create()
    state.wait_for_everyone()
    if done := partial.done():
        logger.info(f"continuing where an earlier run stopped: {len(done):,} batches of {config.batch_size} are done")
    with states_what_is_left(
        lambda: f"{len(partial.done()):,} batches of {config.batch_size} images are kept: the same command continues"
    ):
        encode_missing(partial, source.records, encoder, config, state, spec)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    written = _write(partial, source, outputs, encoder, config, layout)
    for folder in filter(Path.is_dir, written):
        write_run_file(folder, f"parse {source_name}", config.flat())
    _report_bad(partial, source, errors_path(out, outputs), config)
    return written


def _read(source_name: str, config: ParseConfig) -> tuple[Source, CountTokens | None]:
    """The source, its captions within --token_limit, and what counts tokens where that is to be had."""
    source = read_source(source_name, config.source)
    count_tokens = None if config.token_limit is None and not config.dry_run else _token_counter(config)
    short = limit_tokens(source, config.token_limit, count_tokens)
    if not short.records:
        where = config.source.captions or config.source.data_path
        raise ClipcapError(
            f"{where}: every caption is longer than --token_limit {config.token_limit}: raise the limit"
        )
    return short, count_tokens


def _token_counter(config: ParseConfig) -> CountTokens | None:
    """Counts tokens of --lm; None in a dry run where its tokenizer is not at hand (words are counted then)."""
    from clipcap.models.language_model import load_tokenizer

    try:
        tokenizer = load_tokenizer(config.lm)
    except ClipcapError as error:
        if config.token_limit is None:
            return None
        raise ClipcapError(f"--token_limit counts tokens, but {error}") from error
    return lambda caption: len(tokenizer(caption, add_special_tokens=False)["input_ids"])


def limit_tokens(source: Source, limit: int | None, count_tokens: CountTokens | None) -> Source:
    """Drop captions longer than `limit` tokens, and images left without one."""
    if limit is None or count_tokens is None:
        return source
    short = [
        replace(record, captions=tuple(c for c in record.captions if count_tokens(c) <= limit))
        for record in source.records
    ]
    dropped = sum(len(r.captions) for r in source.records) - sum(len(r.captions) for r in short)
    kept = [record for record in short if record.captions]
    without = len(short) - len(kept)
    note = f"--token_limit {limit}: {dropped:,} longer captions dropped, {without:,} images left without one"
    left_out = dict(source.left_out)
    if without:
        left_out[NO_CAPTION] = left_out.get(NO_CAPTION, 0) + without
    return replace(source, records=kept, notes=[*source.notes, note], left_out=left_out)


def output_paths(out: Path, records: Sequence[Record]) -> dict[str | None, Path]:
    """The feature file of each split: `out` where there is one; else NAME_train, NAME_val, … for `out` NAME.

    Raises:
        ClipcapError: something else lies there; raised before hours of work, not after.
    """
    splits = sorted({record.split for record in records}, key=str)
    paths = {split: split_path(out, split or "rest") if len(splits) > 1 else out for split in splits}
    for place in paths.values():
        check_place(place)
    return paths


def errors_path(out: Path, outputs: Collection) -> Path:
    """The list of images that were left out: NAME_errors.csv beside NAME.pkl, or beside all splits of NAME."""
    name = out.name.removesuffix(".pkl")
    return out.with_name(f"{name.removesuffix('_train') if len(outputs) > 1 else name}_errors.csv")


def _load_encoder(config: ParseConfig, state: PartialState) -> Encoder:
    with state.local_main_process_first():  # where weights are to be downloaded, one process does
        encoder = load_encoder(
            config.clip_model_type, str(state.device) if config.device == "auto" else config.device, config.dtype
        )
    processes = state.num_processes
    dtype = why((config.dtype or "") if encoder.device.type == "cpu" else "", encoder.dtype)
    logger.info(
        f"{processes} process{'es' * (processes > 1)} on {encoder.device}, encoder {encoder.name}, "
        f"{encoder.dim} wide, {dtype}"
    )
    if warning := alone(processes):
        logger.warning(warning)
    return encoder


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """NumPy has no bfloat16: such features are stored as float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def fingerprint(records: Sequence[Record], encoder: Encoder, config: ParseConfig) -> str:
    """Identifies a command's work: encoder, captions, images and every flag that changes the file."""
    digest = hashlib.sha256()
    flags = (config.batch_size, config.source.frame, config.recipe, clipcap.__version__)
    if config.tokens:
        digest.update(repr((config.tokens, config.layer, config.pool)).encode())
    digest.update(repr((encoder.name, encoder.weights_id, str(encoder.dtype), *flags)).encode())
    for r in records:
        digest.update(repr((r.image_id, str(r.image), r.captions, r.split)).encode())
    return digest.hexdigest()[:32]


def _write(
    partial: PartialRows,
    source: Source,
    outputs: Mapping[str | None, Path],
    encoder: Encoder,
    config: ParseConfig,
    layout: TokenLayout | None,
) -> list[Path]:
    """Write the feature file of each split; a split without a readable image gets none."""
    lacking = -(-len(source.records) // config.batch_size) - len(partial.done())
    if lacking:
        raise ClipcapError(
            f"{partial.folder}: {lacking:,} batches of other processes are not there: all machines of a run must "
            f"write to the same drive; run the same command again, it continues where it stopped"
        )
    bad = partial.bad()
    meta = FeatureMeta(
        encoder=encoder.name,
        encoder_weights_id=encoder.weights_id,
        source=f"{source.name} {config.source.data_path}",
        tokens=layout,
    )
    written = []
    for split, path in outputs.items():
        rows = [i for i, r in enumerate(source.records) if r.split == split and i not in bad]
        if not rows:
            continue
        chosen = [source.records[i] for i in rows]
        write_features(
            path,
            embeddings=partial.rows(rows),
            image_ids=[r.image_id for r in chosen],
            image_paths=[_image_path(r) for r in chosen],
            captions=[r.captions for r in chosen],
            meta=meta,
            tokens=partial.tokens(rows),
        )
        written.append(path)
        logger.info(
            f"wrote {path}: {counted(len(rows), 'image')}, {counted(sum(len(r.captions) for r in chosen), 'caption')}"
        )
    return written


def _image_path(record: Record) -> str:
    """Where an image lies, as an absolute path: files are read from other working directories than this one."""
    return os.path.join(os.getcwd(), str(record.image))


def _remarked(remarks: Iterable[str]) -> list[str]:
    """What was done to show images whose numbers were no 8-bit colours, a line each."""
    return [f"{counted(count, 'image')} {remark}" for remark, count in Counter(remarks).items()]


def _to_convert(bad: Mapping[int, str], source: Source) -> list[str]:
    """The first of the images whose kind is not read, with the way to convert it."""
    rows = sorted(row for row, reason in bad.items() if CONVERT in reason)
    more = f" (and {len(rows) - 1:,} more like it)" if len(rows) > 1 else ""
    return [f"{shown(source.records[row].image)}: {bad[row]}{more}" for row in rows[:1]]


def _report_bad(partial: PartialRows, source: Source, errors: Path, config: ParseConfig) -> None:
    """List the images that were left out, end the partial work, and say whether there were too many."""
    bad, remarks, images = partial.bad(), partial.remarks().values(), len(source.records)
    if bad:
        write_errors(errors, [(_image_path(source.records[i]), reason) for i, reason in sorted(bad.items())])
    else:
        errors.unlink(missing_ok=True)  # of an earlier run
    partial.remove()
    for line in (*_remarked(remarks), *_to_convert(bad, source)):
        logger.info(line)
    skipped = len(bad) + sum(source.left_out.values())
    if not skipped:
        logger.info("no image was missing or unreadable")
        return
    missing = sum(reason == MISSING for reason in bad.values())
    kinds = [f"{missing:,} missing", f"{len(bad) - missing:,} unreadable" + f" (listed in {errors})" * bool(bad)]
    kinds += [f"{count:,} {reason}" for reason, count in source.left_out.items()]
    line = f"{skipped:,} of {source.seen:,} images skipped: {', '.join(kinds)}"
    if len(bad) == images:
        raise ClipcapError(f"{line}; none is left, nothing is written: correct --data_path or --images")
    if too_many(len(bad), images, config.source.max_bad):
        raise ClipcapError(
            f"{line}; more than --max_bad {config.source.max_bad} cannot be used: fix them, or allow more; "
            f"{images - len(bad):,} good ones are saved"
        )
    logger.info(line)
