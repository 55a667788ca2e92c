"""The demo set: drawn plates of food with captions, written in the layout of the Kaggle food set.

python -m clipcap.demo.plates --out data/plates --count 1000 --split train
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import count as count_from
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from clipcap.demo.drawing.draw import draw
from clipcap.demo.grammar import captions
from clipcap.demo.scene import Scene, make_scene, split_of
from clipcap.errors import ClipcapError
from clipcap.images.write import write_picture
from clipcap.options import FlagParser
from clipcap.runtime.progress import no_bar

__all__ = ["Scene", "captions", "draw", "make_scene", "scenes", "split_of", "write_set"]

Split = Literal["train", "val", "all"]
SMALLEST_SIZE = 32  # pixels; below, four pieces of food look alike
PhotoJob = tuple[Scene, int, Path]


def scenes(split: Split = "all", seed: int = 0) -> Iterator[Scene]:
    """The endless row of scenes of a split; rows of different seeds share none."""
    for number in count_from(seed << 32):
        scene = make_scene(number)
        if split in ("all", split_of(scene)):
            yield scene


def write_set(
    folder: Path, count: int, seed: int = 0, size: int = 128, split: Split = "all", workers: int = 1
) -> Path:
    """Write `count` pictures of a split: `Captions.csv` and `dataset/<Index>.jpg`.

    The files are the same on every run and for any number of worker processes. `Captions.csv` is written last, so
    that a folder that has one is complete.

    Args:
        folder: made if it is not there; must not hold a set already.
        size: width and height of the pictures in pixels.
    Returns:
        The folder.
    Raises:
        ClipcapError: an argument is out of range, the folder holds a set or cannot be written to.
    """
    folder = Path(folder)
    _check(folder, count, seed, size, split, workers)
    chosen = list(islice(scenes(split, seed), count))
    jobs = [(scene, size, folder / "dataset" / f"{index}.jpg") for index, scene in enumerate(chosen)]
    try:
        (folder / "dataset").mkdir(parents=True, exist_ok=True)
        _write_photos(jobs, workers)
        _write_captions(chosen, folder / "Captions.csv")
    except OSError as error:
        raise ClipcapError(
            f"{folder}: the demo set cannot be written here ({error.strerror}); choose another --out"
        ) from error
    return folder


def _check(folder: Path, count: int, seed: int, size: int, split: str, workers: int) -> None:
    least = {"--count": (count, 1), "--seed": (seed, 0), "--size": (size, SMALLEST_SIZE), "--workers": (workers, 1)}
    for flag, (value, bound) in least.items():
        if value < bound:
            raise ClipcapError(f"{flag} must be at least {bound}, got {value}")
    if split not in get_args(Split):
        raise ClipcapError(f"--split must be one of {', '.join(get_args(Split))}, got {split!r}")
    if (folder / "Captions.csv").exists():
        raise ClipcapError(f"{folder} already holds a set (Captions.csv); delete it or choose another --out")


def _write_photos(jobs: Sequence[PhotoJob], workers: int) -> None:
    bar = tqdm(total=len(jobs), desc="drawing", unit="picture", disable=no_bar())
    with bar:
        if workers == 1:
            for job in jobs:
                _write_photo(job)
                bar.update()
            return
        # Fresh processes: a fork of one that runs torch's threads may hang.
        with get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for _ in pool.imap(_write_photo, jobs, chunksize=16):
                bar.update()


def _write_photo(job: PhotoJob) -> None:
    scene, size, path = job
    write_picture(draw(scene, size), path, "JPEG", quality=90, subsampling=0)  # coloured edges stay sharp


def _write_captions(chosen: Sequence[Scene], path: Path) -> None:
    """One caption per record; records of one picture share their Index."""
    records = [(index, caption) for index, scene in enumerate(chosen) for caption in captions(scene)]
    draft = path.with_suffix(".partial")
    with open(draft, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", "Index", "Captions"])
        writer.writerows((number, *record) for number, record in enumerate(records))
    os.replace(draft, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a set from the command line."""
    parser = FlagParser(prog="python -m clipcap.demo.plates", description="Draw plates of food with captions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=1000, help="pictures (default: 1000)")
    parser.add_argument("--split", choices=get_args(Split), default="all", help="combinations to take (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which pictures (default: 0)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (default: 128)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: the cores)")
    args = parser.parse_args(argv)
    try:
        folder = write_set(args.out, args.count, args.seed, args.size, args.split, args.workers)
    except ClipcapError as error:
        sys.exit(str(error))
    print(f"{args.count} pictures and their captions are in {folder}")


if __name__ == "__main__":
    main()
