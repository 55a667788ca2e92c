"""Caption photos or precomputed features in batches; print, write or set beside the photos."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.features.files import Features, check_same_encoder, read_features
from clipcap.images.read import find_images
from clipcap.options import CaptionConfig, CaptionerOptions
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.hub import one_line
from clipcap.runtime.text import as_cell, collapsed, printable

Emit = Callable[[str, Sequence[Caption]], None]

WATCHED = 1000  # images whose captions are compared, to see whether all are alike


@dataclass(frozen=True)
class Batch:
    """Images to caption together."""

    numbers: list[int]  # of the images in the run
    names: list[str]
    embeddings: Tensor | None  # [len(names), D]; None where there are none
    bad: list[str]  # why others cannot be captioned


def load_captioner(config: CaptionerOptions) -> Captioner:
    """The captioner that the options name; what was read is said on stderr."""
    if config.load_pt is None:
        print(
            "no --load_pt: the bundled demo model knows drawn plates of food alone; for real photos pass --load_pt "
            "with a folder that train.py made, or a .pt of the original ClipCap",
            file=sys.stderr,
        )
    captioner = Captioner.from_pretrained(
        config.load_pt or DEMO,
        lm=config.lm,
        clip_model_type=config.clip_model_type,
        normalize_prefix=config.normalize_prefix,
        num_heads=config.num_heads,
        device=config.device,
        dtype=config.dtype,
    )
    if config.load_pt is not None:
        print(printable(captioner.summary), file=sys.stderr)
    return captioner


def predict(config: CaptionConfig, img: Sequence[str], load: Callable[[], Captioner]) -> int:
    """Caption everything asked for; images that cannot be read are named on stderr and left out.

    Args:
        config: what to caption, and where the captions go.
        img: photos, globs, folders.
        load: gives the captioner, once there is something to caption.
    Returns:
        how many images could not be captioned.
    Raises:
        ClipcapError: nothing to caption, or no checkpoint.
    """
    if bool(img) == bool(config.features):
        raise ClipcapError("pass photos with --img, or a feature file with --features (one of the two)")
    if config.sidecar and config.out:
        raise ClipcapError("--sidecar and --out are two places for the captions: choose one")
    paths = _without_sidecar(find_images(img), config) if img else []
    if img and not paths:
        return 0
    captioner = load()
    if img or config.rerank == "clip":
        _ = captioner.encoder  # what hinders it is no fault of the first photo
    batches = _of_features(captioner, config) if config.features else _of_photos(captioner, paths, config)
    failed = 0
    watched: dict[bytes, str] = {}  # a caption per embedding: copies of a photo rightly share theirs
    with _output(config, many=len(paths) != 1) as emit:
        for batch in batches:
            for reason in batch.bad:
                print(f"clipcap: skipped {printable(reason)}", file=sys.stderr)
            failed += len(batch.bad)
            if batch.names:
                captions = captioner.caption_embeddings(batch.embeddings, config, batch.numbers)
                for name, of_image in zip(batch.names, captions):
                    emit(name, of_image)
                if len(watched) < WATCHED:
                    rows = batch.embeddings.cpu().numpy()
                    watched |= {row.tobytes(): of_image[0].text for row, of_image in zip(rows, captions)}
    _warn_if_collapsed(list(watched.values()))
    return failed


def _warn_if_collapsed(captions: list[str]) -> None:
    """Say on stderr where different images were given the same captions."""
    if different := collapsed(captions):
        print(
            f"warning: only {different} different caption{'s' * (different > 1)} for {len(captions)} different "
            f"images: the model hardly looks at them; it needs more training, or was trained with another "
            f"--clip_model_type or --normalize_prefix than it is used with",
            file=sys.stderr,
        )


def _without_sidecar(paths: list[Path], config: CaptionConfig) -> list[Path]:
    """The photos to caption; with --sidecar those that have their .txt already are left out."""
    if not config.sidecar:
        return paths
    photos = defaultdict(list)
    for path in paths:
        photos[path.with_suffix(".txt")].append(path)
    for sidecar, of_one in photos.items():
        if len(of_one) > 1:
            raise ClipcapError(f"{sidecar} would be of {of_one[0]} and of {of_one[1]}: rename one, or use --out")
    wanted = [path for path in paths if config.overwrite or not path.with_suffix(".txt").exists()]
    if len(wanted) < len(paths):
        kept = len(paths) - len(wanted)
        print(f"{kept:,} of {len(paths):,} photos have a .txt already (--overwrite replaces them)", file=sys.stderr)
    return wanted


def _of_photos(captioner: Captioner, paths: Sequence[Path], config: CaptionConfig) -> Iterator[Batch]:
    upright = config.recipe != "reference"

    def read(path: Path) -> Tensor | str:
        try:
            return captioner.open(path, upright)
        except ClipcapError as error:
            return str(error)
        except Exception as error:  # one odd image must not end the run
            return f"{path}: cannot be preprocessed ({one_line(error)})"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for first in _starts(len(paths), config):
            names = [str(path) for path in paths[first : first + config.batch_size]]
            found = list(threads.map(read, paths[first : first + config.batch_size]))
            good = [i for i, image in enumerate(found) if not isinstance(image, str)]
            yield Batch(
                [first + i for i in good],
                [names[i] for i in good],
                captioner.embed([found[i] for i in good]) if good else None,
                [reason for reason in found if isinstance(reason, str)],
            )


def _of_features(captioner: Captioner, config: CaptionConfig) -> Iterator[Batch]:
    """The batches of a feature file; it is opened and checked before the first one is asked for."""
    features = read_features(config.features, encoder=config.clip_model_type)
    if features.encoder_note:
        print(printable(features.encoder_note), file=sys.stderr)
    own = captioner.model.config
    check_same_encoder(
        features.meta, features.dim, own.encoder, own.encoder_weights_id, own.clip_dim, config.features,
        f"the checkpoint {config.load_pt}",
    )  # fmt: skip
    return _feature_batches(features, config)


def _feature_batches(features: Features, config: CaptionConfig) -> Iterator[Batch]:
    for first in _starts(features.num_images, config):
        rows = range(first, min(first + config.batch_size, features.num_images))
        names = {row: str(features.image_paths[row] or features.image_ids[row]) for row in rows}
        embeddings = features.rows(rows)  # [B, D]
        finite = embeddings.isfinite().all(dim=1)  # [B]
        good = [row for row, usable in zip(rows, finite.tolist()) if usable]
        bad = [f"{names[row]}: its features are not finite" for row in rows if row not in good]
        yield Batch(good, [names[row] for row in good], embeddings[finite], bad)


def _starts(images: int, config: CaptionConfig) -> tqdm:
    """Where each batch starts, with a progress bar where there are several and a terminal to show it."""
    starts = range(0, images, config.batch_size)
    return tqdm(starts, unit="batch", desc="captioning", disable=None if len(starts) > 1 else True)


@contextmanager
def _output(config: CaptionConfig, many: bool) -> Iterator[Emit]:
    """Where captions go. Files are written line by line, so that an interrupted run keeps what it has."""
    if config.sidecar:
        yield _write_sidecar
    elif config.out is None:
        yield lambda name, captions: _print(name, captions, many)
    else:
        lines = csv_lines if config.out.endswith(".csv") else _json_lines
        with LineFile(Path(config.out)) as file:
            yield lambda name, captions: file.write(lines(name, captions, first=file.empty))


class LineFile:
    """A file written line by line; what it held before is kept until there is a first line."""

    def __init__(self, path: Path):
        self.path, self.empty = path, True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ClipcapError(f"--out {path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, text: str) -> None:
        """Add whole lines, or nothing.

        Raises:
            ClipcapError: the disk is full.
        """
        data = text.encode("utf-8", "backslashreplace")  # file names may be no UTF-8
        try:
            if self.empty:
                self._file.truncate(0)
            start, self.empty = self._file.seek(0, os.SEEK_END), False
            if self._file.write(data) < len(data):  # as much as there was room for
                self._file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ClipcapError(
                f"--out {self.path}: cannot be written: {error.strerror}; the lines before are kept"
            ) from error


def _json_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    return json.dumps(as_json(name, captions), ensure_ascii=False) + "\n"


def as_json(name: str, captions: Sequence[Caption]) -> dict:
    """One image's line of a .jsonl file, best caption first."""
    rows = [{"caption": c.text, "logprob": c.logprob, "clip_score": c.clip_score} for c in captions]
    return {"image": name, "caption": captions[0].text, "captions": rows}


def csv_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    """One image's line of a .csv file, after its head where it is the first."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    if first:
        writer.writerow(["image", "caption", "logprob", "clip_score"])
    best = captions[0]
    score = "" if best.clip_score is None else f"{best.clip_score:.4f}"
    writer.writerow([as_cell(name), as_cell(best.text), f"{best.logprob:.4f}", score])
    return lines.getvalue()


def _print(name: str, captions: Sequence[Caption], many: bool) -> None:
    for caption in captions:
        text = printable(caption.text)
        print(f"{printable(name)}\t{text}" if many else text, flush=True)


def _write_sidecar(name: str, captions: Sequence[Caption]) -> None:
    path = Path(name).with_suffix(".txt")
    with writing(path), replaced_file(path) as draft:
        draft.write_text(captions[0].text + "\n", encoding="utf-8")
