"""Caption photos or precomputed features in batches; print, write or set beside the photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from clipcap.captioning.addresses import (
    STANDARD_INPUT,
    NamedPhoto,
    fetch_photo,
    is_address,
    read_standard_input,
)
from clipcap.captioning.batches import stored_embeddings
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import CaptionConfig, LoadConfig, LoadOptions, OutputConfig
from clipcap.captioning.decode import Caption
from clipcap.captioning.load_captioner import load_captioner
from clipcap.captioning.outputs import open_destination
from clipcap.captioning.prompting import check_datastore
from clipcap.captioning.text_files import TextFiles
from clipcap.captioning.tidy import collapsed
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder, for_model
from clipcap.features.feature_set import Features
from clipcap.images.read import ImageError, find_images
from clipcap.images.workers import at_once
from clipcap.models.encoders.encode_images import EncodedImages, encode_images
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import no_bar
from clipcap.runtime.run_file import write_run_file, write_run_file_beside
from clipcap.runtime.text import counted, printable

T = TypeVar("T")
Photo = Path | NamedPhoto
WATCHED = 1000  # images whose captions are compared, to see whether all are alike


@writes_to(lambda called: called["config"].output.out or called["config"].output.out_tree)
def predict(
    config: CaptionConfig,
    img: Sequence[str],
    load: Callable[[], Captioner] | None = None,
    command: str = "predict",
) -> int:
    """Caption everything asked for; images that cannot be read are named on stderr and left out.

    Args:
        config: what to caption, and where the captions go.
        img: photos, globs, folders.
        load: gives the captioner, once there is something to caption (default: the one that `config` names).
        command: whose run it is.
    Returns:
        how many images could not be captioned.
    Raises:
        ClipcapError: nothing to caption, or no checkpoint.
    """
    output, decoding = config.output, config.decode
    if bool(img) == bool(output.features):
        raise ClipcapError("pass photos with --img, or a feature file with --features (one of the two)")
    texts = TextFiles(output, img) if output.sidecar or output.out_tree else None
    paths, failed = _photos(img, texts, output.limit)
    if img and not paths:
        return failed
    captioner = load() if load else load_captioner(LoadConfig.of(**config.load.flat()), decode_only=True)
    if img:
        _ = captioner.encoder  # now, so that its errors are not blamed on the first photo
    _check_choosing(captioner, config)
    found = _Found(failed)
    with open_destination(config, texts, many=len(paths) != 1) as destination:
        if output.features:
            features = _checked_features(captioner, config.load, output.features)
            images = zip(features.image_paths, features.image_ids)
            names = [str(path or image) for path, image in images][: output.limit or None]
            pictures = [None if path is None else Path(path) for path in features.image_paths]
            missing = _missing(names, destination.done)
            batches = stored_embeddings(features, missing, output.batch_size, missing)
        else:
            names, pictures = [str(path) for path in paths], paths
            missing = _missing(names, destination.done)
            batches = _photo_batches(captioner, paths, missing, output.batch_size, decoding.recipe != "reference")
        batches = _progress(batches, len(missing), output.batch_size)
        for batch, captions in captioner.caption_batches(batches, decoding, pictures.__getitem__):
            for fault in batch.bad.values():
                logger.warning(f"skipped {printable(str(fault))}")
            found.count(batch)
            for number, image_captions in zip(batch.numbers, captions):
                destination.emit(names[number], [_framed(caption, output) for caption in image_captions])
            if batch.embeddings is not None:
                found.watch(batch.embeddings, [image_captions[0].text for image_captions in captions])
    _note_run(command, config, img)
    found.report(len(paths))
    _report_prompts(captioner)
    return found.failed


def _check_choosing(captioner: Captioner, config: CaptionConfig) -> None:
    """Refuse, before anything is captioned, to choose captions by what is not at hand.

    Raises:
        ClipcapError: names the flag.
    """
    own, decoding = captioner.model.config, config.decode
    check_datastore(decoding.rerank, getattr(config.load, "datastore", None), getattr(own, "prompts", "none"))
    if decoding.rerank == "clip":
        captioner.judge(decoding.score_with).encode_texts(["a photo"])  # refuses where it has no text tower
    if decoding.rerank == "consensus":
        from clipcap.captioning.consensus import consensus_of

        consensus_of(captioner.consensus)


def _report_prompts(captioner: Captioner) -> None:
    if captioner.prompter is not None:
        from clipcap.prompts.prompter import report_prompts

        report_prompts(captioner.prompter.counts)


def _note_run(command: str, config: CaptionConfig, img: Sequence[str]) -> None:
    """Write the run's options beside the file of --out, or into the folder of --out_tree."""
    output, options = config.output, {"img": list(img), **config.flat()}
    if output.out:
        write_run_file_beside(Path(output.out), command, options)
    elif output.out_tree:
        write_run_file(Path(output.out_tree), command, options)


@dataclass
class _Found:
    """What a run met with, for its report."""

    failed: int  # images left out
    captioned: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    watched: dict[bytes, str] = field(default_factory=dict)  # a caption per embedding: copies rightly share theirs

    def count(self, batch: EncodedImages) -> None:
        """Count the images of a batch."""
        self.failed += len(batch.bad)
        self.captioned += len(batch.numbers)
        self.remarks.update(batch.remarks)

    def watch(self, embeddings: Tensor, captions: list[str]) -> None:
        """Remember the captions of embeddings [B, D], to see whether all are alike."""
        if len(self.watched) < WATCHED:
            self.watched |= {row.tobytes(): text for row, text in zip(embeddings.cpu().numpy(), captions)}

    def report(self, photos: int) -> None:
        """State what was left out, of so many photos, and how some were shown."""
        for remark, count in self.remarks.items():
            logger.info(f"{counted(count, 'image')} {remark}")
        if self.failed and photos > 1:
            logger.info(
                f"{self.captioned:,} of {self.captioned + self.failed:,} images captioned, {self.failed:,} left out "
                f"for the reasons above"
            )
        _warn_if_collapsed(list(self.watched.values()))


def _framed(caption: Caption, output: OutputConfig) -> Caption:
    """A caption between the texts of --caption_prefix and --caption_suffix."""
    return replace(caption, text=f"{output.caption_prefix}{caption.text}{output.caption_suffix}")


def _photos(words: Sequence[str], texts: TextFiles | None, limit: int) -> tuple[list[Photo], int]:
    """The photos to caption, and how many are left out."""
    elsewhere = [word for word in words if word == STANDARD_INPUT or is_address(word)]
    files = find_images([word for word in words if word not in elsewhere])[: limit or None]
    if texts:
        if elsewhere:
            raise ClipcapError(f"{elsewhere[0]}: no text fits beside it: use --out, or save the photo first")
        chosen, failed = texts.choose(files)
        return [*chosen], failed
    photos: list[Photo] = [*files]
    failed = 0
    for word in dict.fromkeys(elsewhere):
        try:
            photos.append(read_standard_input() if word == STANDARD_INPUT else fetch_photo(word))
        except ImageError as error:
            logger.warning(f"skipped {printable(str(error))}")
            failed += 1
    return photos[: limit or None], failed


def _missing(names: Sequence[str], done: Callable[[str], bool]) -> list[int]:
    """The numbers of the images that an earlier run has not captioned."""
    missing = [number for number, name in enumerate(names) if not done(name)]
    if len(missing) < len(names):
        logger.info(
            f"continuing where an earlier run stopped: {len(names) - len(missing):,} of {len(names):,} are done"
        )
    return missing


def _warn_if_collapsed(captions: list[str]) -> None:
    """Say on stderr where different images were given the same captions."""
    if different := collapsed(captions):
        logger.warning(
            f"only {different} different caption{'s' * (different > 1)} for {len(captions)} different "
            f"images: the model hardly looks at them; it needs more training, or was trained with another "
            f"--clip_model_type or --normalize_prefix than it is used with"
        )


def _photo_batches(
    captioner: Captioner, paths: Sequence[Photo], wanted: Sequence[int], batch_size: int, upright: bool
) -> Iterator[EncodedImages]:
    """The photos of these numbers, encoded."""
    photos, threads = [paths[number] for number in wanted], at_once()
    for batch in encode_images(
        captioner.encoder, photos, batch_size, upright=upright, threads=threads, tokens=captioner.model.token_layout
    ):
        numbers = [wanted[place] for place in batch.numbers]
        yield replace(batch, numbers=numbers, bad={wanted[place]: fault for place, fault in batch.bad.items()})


def _checked_features(captioner: Captioner, load: LoadOptions, path: str) -> Features:
    """A feature file of the captioner's encoder."""
    from clipcap.features.files import read_features

    features = read_features(path, encoder=load.clip_model_type)
    if features.encoder_note:
        logger.info(printable(features.encoder_note))
    own = captioner.model.config
    check_same_encoder(
        features.meta, features.dim, own.encoder, own.encoder_weights_id, own.clip_dim, path,
        f"the checkpoint {load.load_pt}",
    )  # fmt: skip
    return for_model(features, captioner.model)


def _progress(batches: Iterable[T], images: int, batch_size: int) -> Iterator[T]:
    """The batches behind a progress bar of images, where there are several batches and a terminal to show it."""
    hidden = no_bar(images <= batch_size)
    with tqdm(total=images, unit="image", desc="captioning", disable=hidden) as bar:
        for number, batch in enumerate(batches):
            yield batch
            bar.update(min(batch_size, images - number * batch_size))
