"""COCO captions in three formats: the official one, Karpathy's, and the original ClipCap's list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.folders import Photos, inside, photo_folders, require_folder
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.collector import Collector, Source, split_name
from clipcap.sources.config import SourceConfig
from clipcap.sources.textfiles import read_json

PHOTO_FOLDERS = ("train2014", "val2014", "train2017", "val2017", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")
# Caption files looked for; the first line found is used, and a pair of files is one set with its own split.
CAPTION_FILES = (
    ("dataset_coco.json",),
    ("dataset_flickr8k.json",),
    ("dataset_flickr30k.json",),
    ("train_caption.json",),
    ("captions_train2014.json", "captions_val2014.json"),
    ("captions_train2017.json", "captions_val2017.json"),
)


def read(config: SourceConfig) -> Source:
    """Read COCO captions: --data_path is the folder (annotations/ within is looked into) or the JSON file."""
    root, files = _locate(config)
    photos = Photos(photo_folders(root, PHOTO_FOLDERS, config.images))
    collector = Collector("coco")
    for file in files:
        split = None if len(files) == 1 else "val" if "_val" in file.name else "train"
        _add_captions(collector, file, photos, split)
    return collector.finish(config)


def _locate(config: SourceConfig) -> tuple[Path, list[Path]]:
    """(folder of the set, its caption files)."""
    path = Path(config.data_path)
    if path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return root, [Path(config.captions or path)]
    root = require_folder(config.data_path, "--data_path")
    if config.captions:
        return root, [Path(config.captions)]
    for names in CAPTION_FILES:
        paths = [folder / name for name in names for folder in (root, root / "annotations")]
        found = [path for path in paths if path.is_file()]
        if found:
            return root, found
    known = ", ".join(name for names in CAPTION_FILES for name in names)
    raise ClipcapError(f"{shown(root)}: no caption file here or in annotations/ ({known}): give --captions FILE")


def _add_captions(collector: Collector, path: Path, photos: Photos, split: str | None) -> None:
    """Recognise the format of a caption file and add what it holds."""
    data = read_json(path)
    if isinstance(data, list):
        _add_list(collector, _entries(path, "entry", data), photos)
    elif isinstance(data, dict) and "images" in data and "annotations" in data:
        _add_official(collector, path, data, photos, split)
    elif isinstance(data, dict) and "images" in data:
        _add_karpathy(collector, path, data, photos)
    else:
        raise ClipcapError(
            f"{shown(path)}: not COCO captions: expected a list of {{image_id, caption}}, or an object with "
            "'images' and 'annotations', or with 'images' and 'sentences' within"
        )


def _add_list(collector: Collector, entries: Iterator[_Entry], photos: Photos) -> None:
    """The original's train_caption.json: photos of train2014 and val2014, found by their number."""
    for entry in entries:
        try:
            number = int(entry.get("image_id", str, int))
        except ValueError as error:
            raise ClipcapError(f"{entry.where}: 'image_id' is not a number") from error
        names = {part: f"COCO_{part}_{number:012d}.jpg" for part in ("train2014", "val2014")}
        photo = photos.find(*(f"{part}/{name}" for part, name in names.items()), *names.values())
        collector.add(str(number), ImageRef(photo), [entry.get("caption", str)])


def _add_official(collector: Collector, path: Path, data: dict, photos: Photos, split: str | None) -> None:
    """captions_train2017.json and its like: file names under `images`, captions under `annotations`."""
    folder = path.stem.removeprefix("captions_")
    images = {}
    for entry in _entries(path, "images entry", data["images"]):
        name = inside(entry.get("file_name", str), path)
        images[entry.get("id", str, int)] = photos.find(f"{folder}/{name}", name)
    unlisted = 0
    for entry in _entries(path, "annotations entry", data["annotations"]):
        image_id = entry.get("image_id", str, int)
        if image_id in images:
            collector.add(str(image_id), ImageRef(images[image_id]), [entry.get("caption", str)], split)
        unlisted += image_id not in images
    collector.note_count(unlisted, "caption", f"left out: the image is not listed in {shown(path.name)}")


def _add_karpathy(collector: Collector, path: Path, data: dict, photos: Photos) -> None:
    """dataset_coco.json, dataset_flickr8k.json: a split per image, `restval` belongs to train."""
    for entry in _entries(path, "images entry", data["images"]):
        name = entry.get("filename", str)
        photo = inside(f"{entry.get('filepath', str)}/{name}" if "filepath" in entry.value else name, path)
        image_id = str(entry.get("cocoid", str, int)) if "cocoid" in entry.value else name
        sentences = [_Entry(entry.where, sentence) for sentence in entry.get("sentences", list)]
        captions = [sentence.get("raw", str) for sentence in sentences]
        split = split_name(entry.get("split", str), entry.where)
        collector.add(image_id, ImageRef(photos.find(photo, name)), captions, split)


class _Entry:
    """One object of a JSON list, with errors that say where it stands."""

    def __init__(self, where: str, value: Any):
        if not isinstance(value, dict):
            raise ClipcapError(f"{where}: expected an object, got {type(value).__name__}")
        self.where = where
        self.value = value

    def get(self, key: str, *kinds: type) -> Any:
        """The value of a key, which must be there and of one of these types."""
        if key not in self.value:
            keys = ", ".join(f"'{shown(name)}'" for name in self.value)
            raise ClipcapError(f"{self.where}: no '{key}'; its keys are {keys}")
        value = self.value[key]
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ClipcapError(f"{self.where}: '{key}' is {type(value).__name__}, expected {expected}")
        return value


def _entries(path: Path, unit: str, values: Any) -> Iterator[_Entry]:
    if not isinstance(values, list):
        raise ClipcapError(f"{shown(path)}: expected a list of {unit.split()[0]}, got {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield _Entry(f"{shown(path)}: {unit} {number}", value)
