"""COCO captions in three formats: the official one, Karpathy's, and the original ClipCap's list."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.folders import photo_folders, require_folder
from clipcap.images.photos import PhotoNameError, Photos
from clipcap.runtime.text import shown
from clipcap.sources.cells import captions_in
from clipcap.sources.collector import Collector, Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.faults import RowError
from clipcap.sources.marks import is_unusable
from clipcap.sources.names import IMAGE_NAMES, UNUSABLE_FLAGS, plain, split_in, split_name, split_word
from clipcap.sources.rows import Part, add_row, add_table
from clipcap.sources.split_lists import use_lists_beside
from clipcap.sources.tables import read_table
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
    ("coco_karpathy_train.json", "coco_karpathy_val.json", "coco_karpathy_test.json"),
    ("nocaps_val_4500_captions.json",),
)
_FILE_NAMES = ("image", "filename", "imagepath", "filepath", "path", "imagefile", "img")


def read(config: SourceConfig) -> Source:
    """Read COCO captions: --data_path is the folder (annotations/ within is looked into) or the JSON file."""
    root, files = _locate(config)
    photos = Photos(photo_folders(root, PHOTO_FOLDERS, config.images))
    collector = Collector("coco")
    for file in files:
        split = None if len(files) == 1 else split_in(file.name) or "train"
        _add_captions(collector, file, photos, split)
    collector.note_photos(photos)
    use_lists_beside(collector, [root], files)
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
    if isinstance(data, list) and data and _names_files(data[0]):
        add_table(collector, read_table(path, collector.faults), photos, part=Part(split=split))
    elif isinstance(data, list):
        _add_list(collector, path, data, photos)
    elif is_coco(data):
        add_document(collector, path, data, photos, Part(split=split))
    else:
        raise ClipcapError(
            f"{shown(path)}: not COCO captions: expected a list of {{image_id, caption}}, or an object with "
            "'images' and 'annotations', or with 'images' and 'sentences' within"
        )


def _names_files(entry: Any) -> bool:
    """Whether an entry names its image's file, as BLIP's lists do, where the original's have a number alone."""
    return isinstance(entry, dict) and any(plain(str(key)) in _FILE_NAMES for key in entry)


def is_coco(document: Any) -> bool:
    """Whether a JSON document is of COCO's official format or of Karpathy's."""
    images = document.get("images") if isinstance(document, dict) else None
    return images is not None and not (isinstance(images, list) and images and isinstance(images[0], str))


def holds_captions(document: Any) -> bool:
    """Whether a JSON document is of COCO's format and of captions, where others are of boxes."""
    if not is_coco(document) or "annotations" not in document:
        return is_coco(document)
    notes = document["annotations"]
    return isinstance(notes, list) and any(isinstance(note, dict) and "caption" in note for note in notes[:20])


def add_document(collector: Collector, path: Path, data: dict, photos: Photos, part: Part) -> None:
    """Add the captions of a document in COCO's official format or Karpathy's.

    Raises:
        ClipcapError: its parts are not lists.
    """
    if "annotations" in data:
        _add_official(collector, path, data, photos, part)
    else:
        _add_karpathy(collector, path, data, photos, part)


def _add_list(collector: Collector, path: Path, data: list, photos: Photos) -> None:
    """The original's train_caption.json: photos of train2014 and val2014, found by their number."""

    def add(entry: _Entry) -> None:
        try:
            number = int(entry.get("image_id", str, int))
        except ValueError as error:
            raise RowError("'image_id' is not a number") from error
        caption = entry.get("caption", str, list)
        names = {part: f"COCO_{part}_{number:012d}.jpg" for part in ("train2014", "val2014")}
        places = (*(f"{part}/{name}" for part, name in names.items()), *names.values(), f"{number:012d}.jpg")
        add_row(collector, entry.where, photos, places, str(number), captions_in(caption, collector.remarks))

    _each(collector, path, "entry", data, add)


def _add_official(collector: Collector, path: Path, data: dict, photos: Photos, part: Part) -> None:
    """captions_train2017.json and its like: file names under `images`, captions under `annotations`.

    Captions that VizWiz marks as rejected, or as a phrase for pictures that show nothing, are left out.
    """
    folder = path.stem.removeprefix("captions_")
    names: dict[str, tuple[str, str, str | None]] = {}
    unlisted = 0

    def list_image(entry: _Entry) -> None:
        image_id = entry.get_id("id")
        found = next((key for key in entry.value if plain(str(key)) in IMAGE_NAMES), None)
        split = split_word(str(entry.value.get("split", ""))) or part.split
        names[image_id] = (entry.where, entry.get(found, str) if found else image_id, split)

    def add(entry: _Entry) -> None:
        nonlocal unlisted
        image_id = entry.get_id("image_id")
        if image_id not in names:
            unlisted += 1
            return
        captions = captions_in(entry.get("caption", str, list), collector.remarks)
        mark = next(
            (key for key, value in entry.value.items() if plain(key) in UNUSABLE_FLAGS and is_unusable(value)), None
        )
        if mark:
            collector.unusable[mark] += len(captions)
            captions = []
        where, name, split = names[image_id]
        below = posixpath.join(folder, name) if photos.stays_inside(name) else name
        captioned.add(image_id)
        add_row(
            collector,
            where,
            photos,
            (below, name),
            f"{part.prefix}{image_id}",
            captions,
            split,
        )

    captioned: set[str] = set()
    _each(collector, path, "images entry", data["images"], list_image)
    _each(collector, path, "annotations entry", data["annotations"], add)
    collector.note_count(unlisted, "caption", f"left out: the image is not listed in {shown(path.name)}")
    for image_id, (_, name, _) in names.items():
        if image_id not in captioned:
            with suppress(PhotoNameError):
                photos.find(name)  # not to be counted as a photo that nothing names
    collector.leave_out(len(names) - len(captioned), "image", f"listed in {shown(path.name)} without a caption")


def _add_karpathy(collector: Collector, path: Path, data: dict, photos: Photos, part: Part) -> None:
    """dataset_coco.json, dataset_flickr8k.json: a split per image, `restval` belongs to train."""

    def add(entry: _Entry) -> None:
        name = entry.get("filename", str)
        below = "filepath" in entry.value and photos.stays_inside(name)
        photo = posixpath.join(entry.get("filepath", str), name) if below else name
        image_id = str(entry.get("cocoid", str, int)) if "cocoid" in entry.value else name
        captions = captions_in(entry.get("sentences", list), collector.remarks)
        split = split_name(entry.get("split", str)) if "split" in entry.value else part.split
        add_row(collector, entry.where, photos, (photo, name), part.prefix + image_id, captions, split)

    _each(collector, path, "images entry", data["images"], add)


def _each(collector: Collector, path: Path, unit: str, values: Any, add: Callable[[_Entry], None]) -> None:
    """Call `add` with every entry of a list; one that it refuses is a fault of that entry alone."""
    if not isinstance(values, list):
        raise ClipcapError(f"{shown(path)}: expected a list of {unit.split()[0]}, got {type(values).__name__}")
    for number, value in enumerate(values, 1):
        where = f"{shown(path)}: {unit} {number}"
        try:
            add(_Entry(where, value))
        except RowError as error:
            collector.faults.add(where, error)


class _Entry:
    """One object of a JSON list, with errors that name its place."""

    def __init__(self, where: str, value: Any):
        if not isinstance(value, dict):
            raise RowError(f"expected an object, got {type(value).__name__}")
        self.where = where
        self.value = value

    def get(self, key: str, *kinds: type) -> Any:
        """The value of a required key, of one of these types.

        Raises:
            RowError: it is not.
        """
        if key not in self.value:
            keys = ", ".join(f"'{shown(name)}'" for name in self.value)
            raise RowError(f"no '{key}'; its keys are {keys}", f"no '{key}'")
        value = self.value[key]
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise RowError(f"'{key}' is {type(value).__name__}, expected {expected}")
        return value

    def get_id(self, key: str) -> str:
        """An id as text, the same for `1`, `1.0` and `"1"`; raises what `get` does."""
        value = self.get(key, str, int, float)
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
