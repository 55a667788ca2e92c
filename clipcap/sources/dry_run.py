"""What a set holds, for --dry_run: every image opened, nothing encoded."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from clipcap.images.read import ImageError, MissingImageError, check_image
from clipcap.runtime.progress import no_bar
from clipcap.runtime.text import counted, in_short, shown
from clipcap.sources.collector import Source
from clipcap.sources.record import Record

SAMPLES = 5
LISTED = 5  # images that are missing or unreadable, by name
Checked = tuple[ImageError | None, str | None]  # what is wrong with an image, how it is shown
Images = tuple[dict[str, ImageError], Counter[str]]
_CHUNK = 1024  # images handed to the threads at a time


def describe(source: Source, count_tokens: Callable[[str], int] | None, checked: Images | None = None) -> str:
    """The report on a set, several lines.

    Args:
        source: the set.
        count_tokens: without it the longest caption is given in words, and the report says so.
        checked: its images, where `check_images` has read them already.
    """
    errors, remarks = checked or check_images(source.records)
    lines = [
        f"{source.name}: {counted(len(source.records), 'image')} with {_captions_line(source.records)}",
        _images_line(source, errors),
        _longest_line(source.records, count_tokens),
        *_splits_line(source.records),
        *(f"note: {note}" for note in source.notes),
        *(f"note: {counted(count, 'image')} {remark}" for remark, count in remarks.items()),
        *_listed("missing", [e for e in errors.values() if isinstance(e, MissingImageError)]),
        *_listed("unreadable", [e for e in errors.values() if not isinstance(e, MissingImageError)]),
        "sample pairs:",
        *_samples([record for record in source.records if record.image_id not in errors] or source.records),
    ]
    return "\n".join(lines)


def check_images(records: list[Record]) -> Images:
    """Read every image to its last byte (`images.check_image`), in threads: a header alone would not tell a
    truncated photo.

    Returns:
        what is wrong with each image that cannot be used, by image id; how others are shown, counted.
    """
    errors, remarks = {}, Counter()
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
        for record, (error, remark) in tqdm(
            _checked(threads, records), total=len(records), desc="checking images", unit="image", disable=no_bar()
        ):
            if error:
                errors[record.image_id] = error
            if remark:
                remarks[remark] += 1
    return errors, remarks


def _checked(threads: ThreadPoolExecutor, records: list[Record]) -> Iterator[tuple[Record, Checked]]:
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        yield from zip(chunk, threads.map(_checked_image, chunk), strict=True)


def _checked_image(record: Record) -> Checked:
    try:
        return None, check_image(record.image)
    except ImageError as error:
        return error, None


def _captions_line(records: list[Record]) -> str:
    counts = [len(record.captions) for record in records]
    mean = sum(counts) / len(counts)
    each = f"per image: min {min(counts)}, mean {mean:.2f}, max {max(counts)}"
    return f"{counted(sum(counts), 'caption')} ({each})"


def _images_line(source: Source, errors: dict[str, ImageError]) -> str:
    missing = sum(isinstance(error, MissingImageError) for error in errors.values())
    found = f"{len(source.records) - missing:,} found, {missing:,} missing, {len(errors) - missing:,} unreadable"
    left_out = "".join(f", {count:,} {reason}" for reason, count in source.left_out.items())
    return f"images: {found}{left_out}"


def _longest_line(records: list[Record], count_tokens: Callable[[str], int] | None) -> str:
    length, unit = (count_tokens, "tokens") if count_tokens else (lambda text: len(text.split()), "words")
    record, caption = max(
        ((record, caption) for record in records for caption in record.captions), key=lambda pair: length(pair[1])
    )
    remark = "" if count_tokens else " (no tokenizer at hand: words, not tokens)"
    return f"longest caption: {length(caption)} {unit}{remark}, image {shown(record.image_id)}: {in_short(caption)}"


def _splits_line(records: list[Record]) -> list[str]:
    counts = Counter(record.split for record in records if record.split)
    return ["splits: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())] if counts else []


def _listed(what: str, errors: list[ImageError]) -> list[str]:
    lines = [f"{what}: {error}" for error in itertools.islice(errors, LISTED)]
    return lines + [f"{what}: ... and {len(errors) - LISTED:,} more"] * (len(errors) > LISTED)


def _samples(records: list[Record]) -> Iterator[str]:
    """Pairs spread evenly over the set."""
    step = max(1, len(records) // SAMPLES)
    for record in records[::step][:SAMPLES]:
        yield f"  {shown(record.image)}  {in_short(record.captions[0])}"
