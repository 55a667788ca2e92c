"""Caption photos or precomputed features in batches; print, write or set beside the photos."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from clipcap.captioner import Captioner
from clipcap.config import PredictConfig
from clipcap.decoding import Caption
from clipcap.errors import ClipcapError
from clipcap.features import check_same_encoder, read_features
from clipcap.images import find_images

Emit = Callable[[str, Sequence[Caption]], None]


def load_captioner(config: PredictConfig) -> Captioner:
    """The captioner that the options name; what was read is said on stderr."""
    if config.load_pt is None:
        raise ClipcapError("--load_pt is missing: pass a folder that train.py made, or a .pt of the original ClipCap")
    captioner = Captioner.from_pretrained(
        config.load_pt,
        lm=config.lm,
        clip_model_type=config.clip_model_type,
        normalize_prefix=config.normalize_prefix,
        num_heads=config.num_heads,
        device=config.device,
    )
    print(captioner.summary, file=sys.stderr)
    return captioner


def predict(config: PredictConfig, img: Sequence[str]) -> int:
    """Caption everything asked for; images that cannot be read are named on stderr and left out.

    Returns:
        how many images could not be captioned.
    Raises:
        ClipcapError: nothing to caption, or no checkpoint.
    """
    if bool(img) == bool(config.features):
        raise ClipcapError("pass photos with --img, or a feature file with --features (one of the two)")
    paths = find_images(img) if img else []
    if config.sidecar and not config.overwrite:
        kept = [p for p in paths if p.with_suffix(".txt").exists()]
        paths = [p for p in paths if p not in set(kept)]
        if kept:
            print(f"{len(kept)} photos have a .txt already (--overwrite replaces them)", file=sys.stderr)
        if not paths:
            return 0
    captioner = load_captioner(config)
    source = _from_features(captioner, config) if config.features else _from_photos(captioner, paths, config)
    failed = 0
    with _output(config, many=bool(config.features) or len(paths) > 1) as emit:
        for first, names, embeddings, bad in source:
            for name, reason in bad:
                print(f"clipcap: skipped {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
            failed += len(bad)
            if names:
                found = captioner.caption_embeddings(embeddings, config, first_image=first)
                for name, captions in zip(names, found):
                    emit(name, captions)
    return failed


Source = Iterator[tuple[int, list[str], Tensor | None, list[tuple[str, str]]]]


def _from_photos(captioner: Captioner, paths: Sequence[Path], config: PredictConfig) -> Source:
    """Batches of (number of the first, names, embeddings [B, D], photos that could not be read with the reason)."""
    upright = config.recipe != "reference"
    starts = range(0, len(paths), config.batch_size)
    for start in tqdm(starts, unit="batch", disable=len(starts) < 2, desc="captioning"):
        names, images, bad = [], [], []
        for path in paths[start : start + config.batch_size]:
            try:
                images.append(captioner.open(path, upright))
                names.append(str(path))
            except ClipcapError as error:
                bad.append((str(path), str(error)))
        yield start, names, captioner.embed(images) if images else None, bad


def _from_features(captioner: Captioner, config: PredictConfig) -> Source:
    """Batches of a feature file, as `_from_photos` gives them."""
    features = read_features(config.features, encoder=config.clip_model_type)
    own = captioner.model.config
    check_same_encoder(
        features.meta, features.dim, own.encoder, own.encoder_weights_id, own.clip_dim, config.features,
        f"the checkpoint {config.load_pt}",
    )  # fmt: skip
    starts = range(0, features.num_images, config.batch_size)
    for start in tqdm(starts, unit="batch", disable=len(starts) < 2, desc="captioning"):
        rows = list(range(start, min(start + config.batch_size, features.num_images)))
        yield start, [str(features.image_paths[r] or features.image_ids[r]) for r in rows], features.rows(rows), []


@contextmanager
def _output(config: PredictConfig, many: bool) -> Iterator[Emit]:
    """Where captions go. Files are written line by line, so that an interrupted run keeps what it has."""
    if config.sidecar:
        yield _write_sidecar
        return
    if config.out is None:
        yield lambda name, captions: _print(name, captions, many)
        return
    path = Path(config.out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise ClipcapError(f"--out {path}: cannot be written: {error.strerror}") from error
    with file:
        if path.suffix == ".jsonl":
            yield lambda name, captions: _write_line(file, json.dumps(as_json(name, captions), ensure_ascii=False))
            return
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "logprob", "clip_score"])

        def write_row(name: str, captions: Sequence[Caption]) -> None:
            best = captions[0]
            writer.writerow(
                [name, best.text, f"{best.logprob:.4f}", "" if best.clip_score is None else best.clip_score]
            )
            file.flush()

        yield write_row


def as_json(name: str, captions: Sequence[Caption]) -> dict:
    """One image's line of a .jsonl file, best caption first."""
    rows = [{"caption": c.text, "logprob": c.logprob, "clip_score": c.clip_score} for c in captions]
    return {"image": name, "caption": captions[0].text, "captions": rows}


def _write_line(file, line: str) -> None:  # noqa: ANN001
    file.write(line + "\n")
    file.flush()


def _print(name: str, captions: Sequence[Caption], many: bool) -> None:
    for caption in captions:
        print(f"{name}\t{caption.text}" if many else caption.text, flush=True)


def _write_sidecar(name: str, captions: Sequence[Caption]) -> None:
    path = Path(name).with_suffix(".txt")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(captions[0].text + "\n", encoding="utf-8")
    temporary.replace(path)
