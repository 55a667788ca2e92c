"""No count hides a loss: whatever is wrong with a set, used + left out by reason = seen, in every source.

`CLIPCAP_EXAMPLES=2000` asks for a long run.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.photos import encoded, put, read, tar_of

from clipcap.errors import ClipcapError
from clipcap.images.read import ImageError, MissingImageError, check_image
from clipcap.sources.dry_run import describe

LONG = settings(
    max_examples=int(os.environ.get("CLIPCAP_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
PHOTOS = ("there", "there", "there", "missing", "broken", "capital suffix", "other suffix")
ROWS = ("sound", "sound", "sound", "blank", "broken", "outside")
WORDS = st.text(st.sampled_from("abc é'狗,;|\"\\[]{}#%"), min_size=1, max_size=12)


@dataclass
class Expected:
    """What must become of a set: counted while it is written."""

    images: Counter = field(default_factory=Counter)  # captions of each image
    broken: int = 0  # rows left out
    photos: int = 0  # files on disk that are called like images


@st.composite
def sets(draw):
    """(state of each photo, [(number of a photo, state of the row, caption)])."""
    photos = draw(st.lists(st.sampled_from(PHOTOS), min_size=1, max_size=5))
    row = st.tuples(st.integers(0, len(photos) - 1), st.sampled_from(ROWS), WORDS)
    return photos, draw(st.lists(row, min_size=1, max_size=9))


def write_photos(folder: Path, states: list[str], expected: Expected) -> None:
    for number, state in enumerate(states):
        suffix = {"capital suffix": ".JPG", "other suffix": ".png"}.get(state, ".jpg")
        if state != "missing":
            put(folder / f"p{number}{suffix}", b"no picture" if state == "broken" else encoded(number))
            expected.photos += 1


def plain(text: str, *signs: str) -> str:
    """A caption without signs that the source cannot hold unquoted, and with a letter."""
    for sign in signs:
        text = text.replace(sign, "")
    return f"{text.strip()} x"


def count(expected: Expected, number: int, state: str) -> None:
    if state in ("broken", "outside"):
        expected.broken += 1
    else:
        expected.images[number] += state == "sound"


def delimited(path: Path, header: str, row: str, broken: str, rows: list, expected: Expected, outside: bool) -> None:
    """A table; `row` and `broken` are formats of name and caption."""
    lines = [header]
    for number, state, text in rows:
        state = "sound" if state == "outside" and not outside else state
        caption = '"' + plain(text).replace('"', '""') + '"' if state != "blank" else "  "
        name = "../../etc/p" if state == "outside" else f"p{number}"
        lines.append((broken if state == "broken" else row).format(name=name, caption=caption))
        count(expected, number, state)
    put(path, "".join(lines))


def food(folder: Path, rows: list, expected: Expected) -> Path:
    delimited(
        folder / "Captions.csv", ",Index,Captions\n", "0,{name},{caption}\n", "0,{name}\n", rows, expected, True
    )
    return folder


def flickr8k(folder: Path, rows: list, expected: Expected) -> Path:
    lines = []
    for number, state, text in rows:
        name = "../../etc/p.jpg" if state == "outside" else f"p{number}.jpg"
        caption = "  " if state == "blank" else plain(text, "#")
        lines.append(f"{name}#0 {caption}\n" if state == "broken" and lines else f"{name}#0\t{caption}\n")
        count(expected, number, "sound" if state == "broken" and len(lines) == 1 else state)
    put(folder / "Flickr8k.token.txt", "".join(lines))
    return folder


def official(folder: Path, rows: list, expected: Expected) -> Path:
    notes = []
    names = {number: f"p{number}.jpg" for number, _, _ in rows} | {99: "../../etc/p.jpg"}
    for number, state, text in rows:
        entry = {
            "image_id": 99 if state == "outside" else number,
            "caption": " " if state == "blank" else plain(text),
        }
        notes.append("broken" if state == "broken" else entry)
        count(expected, number, state)
    for number in {number for number, _, _ in rows}:
        expected.images[number] += 0  # listed, captioned or not
    if 99 not in [entry["image_id"] for entry in notes if entry != "broken"]:
        del names[99]
    images = [{"id": number, "file_name": name} for number, name in names.items()]
    put(folder / "captions_train2017.json", {"images": images, "annotations": notes})
    return folder


def karpathy(folder: Path, rows: list, expected: Expected) -> Path:
    images = []
    for number, state, text in rows:
        name = "../../etc/p.jpg" if state == "outside" else f"p{number}.jpg"
        raw = " " if state == "blank" else plain(text)
        entry = {"filename": name, "split": "train", "sentences": [{"raw": raw}]}
        images.append({"filename": name} if state == "broken" else entry)
        count(expected, number, state)
    put(folder / "dataset_coco.json", {"images": images})
    return folder


def table(suffix: str, delimiter: str = ","):
    def write(folder: Path, rows: list, expected: Expected) -> Path:
        row = "{name}.jpg" + delimiter + "{caption}" + delimiter + "0\n"
        header = row.format(name="image", caption="caption").replace(".jpg", "").replace("0", "n")
        delimited(folder / f"t{suffix}", header, row, "{name}.jpg\n", rows, expected, False)
        return folder / f"t{suffix}"

    return write


def json_lines(folder: Path, rows: list, expected: Expected) -> Path:
    lines = []
    for number, state, text in rows:
        if state == "outside":  # no name
            lines.append(json.dumps({"image": None, "caption": text}))
        elif state == "broken":
            lines.append('{"image": "p0.jpg", "cap')
        else:
            lines.append(json.dumps({"image": f"p{number}.jpg", "caption": " " if state == "blank" else plain(text)}))
        count(expected, number, state)
    lines.append(json.dumps({"image": None, "caption": "of no image"}))
    expected.broken += 1
    put(folder / "t.jsonl", "\n".join(lines))
    return folder / "t.jsonl"


TABLES = {
    "food": ("food", food),
    "flickr8k": ("flickr8k", flickr8k),
    "coco, official": ("coco", official),
    "coco, Karpathy's": ("coco", karpathy),
    "custom CSV": ("custom", table(".csv")),
    "custom TSV": ("custom", table(".tsv", "\t")),
    "custom, semicolons": ("custom", table(".csv", ";")),
    "custom JSON Lines": ("custom", json_lines),
}


def check_report(source) -> None:
    """The report's numbers add up, and agree with what can be opened."""
    states = Counter()
    for record in source.records:
        try:
            check_image(record.image)
            states["used"] += 1
        except MissingImageError:
            states["missing"] += 1
        except ImageError:
            states["unreadable"] += 1
    [line] = [line for line in describe(source, None).splitlines() if line.startswith("images: ")]
    numbers = {reason: int(number) for number, reason in re.findall(r"([0-9]+) ([^,]+)", line)}
    assert numbers.pop("found") == states["used"] + states["unreadable"]
    assert numbers.pop("missing") == states["missing"] and numbers.pop("unreadable") == states["unreadable"]
    assert numbers == source.left_out
    assert states.total() + sum(source.left_out.values()) == source.seen


@pytest.mark.parametrize("kind", TABLES)
@LONG
@given(content=sets())
def test_rows_and_images_of_tables_add_up(kind, content):
    states, rows = content
    source_name, write = TABLES[kind]
    with tempfile.TemporaryDirectory() as place:
        folder, expected = Path(place), Expected()
        write_photos(folder / "images", states, expected)
        path = write(folder, rows, expected)
        with_caption = {number for number, captions in expected.images.items() if captions}
        try:
            source = read(path, source_name)
        except ClipcapError as error:
            assert not with_caption or (source_name == "custom" and "column" in str(error))
            return
        assert source.seen == len(expected.images) and len(source.records) == len(with_caption)
        assert source.rows_left_out == expected.broken
        told, written = sum(len(record.captions) for record in source.records), sum(expected.images.values())
        split = any(note.startswith("cells with several captions") for note in source.notes)  # where all have a sign
        assert told >= written if split else told == written
        found = {record.image.path for record in source.records if record.image.path.exists()}
        lost = sum(states[n] != "missing" for n in expected.images if n not in with_caption)
        assert not found or len(found) + lost + source.unnamed == expected.photos
        check_report(source)


@LONG
@given(content=sets())
def test_rows_of_conceptual_captions_add_up(content):
    states, rows = content
    with tempfile.TemporaryDirectory() as place:
        folder, used, broken = Path(place), 0, 0
        lines = []
        for number, (photo, state, text) in enumerate(rows):
            if states[photo] not in ("missing",):
                put(folder / "t" / f"{number:08d}.jpg", b"no" if states[photo] == "broken" else encoded(number))
            lines.append("only one field\n" if state == "broken" else f"{plain(text)}\thttp://x/{number}\n")
            broken += state == "broken"
            used += state != "broken"
        (folder / "t").mkdir(exist_ok=True)
        path = put(folder / "t.tsv", "".join(lines))
        if not used:
            with pytest.raises(ClipcapError, match="no image with a caption"):
                read(path, "conceptual")
            return
        source = read(path, "conceptual")
        assert (source.seen, source.rows_left_out) == (used, broken)
        check_report(source)


FILES = (
    "photo and text",
    "photo",
    "text",
    "empty text",
    "broken text",
    "broken photo",
    "film",
    "photo and JSON",
    "photo and film",
)


def alone_in_folders(kinds: list[str], sub: list[str]) -> int:
    """How many photos have the only text of their folder as their caption: in two folders or more."""
    in_folder = [[kind for kind, place in zip(kinds, sub) if place == folder] for folder in {*sub}]
    alone = [
        several
        for several in in_folder
        if several.count("text") == 1
        and [kind for kind in several if kind not in ("text", "film")] in (["photo"], ["photo and film"])
    ]
    return len(alone) if len(alone) > 1 else 0


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@LONG
@given(
    kinds=st.lists(st.sampled_from(FILES), min_size=1, max_size=8),
    sub=st.lists(st.sampled_from(["", "a/", "b/c/"]), min_size=8, max_size=8),
)
def test_files_of_folders_and_tars_add_up(packed, kinds, sub):
    files: dict[str, bytes | str] = {}
    photos = captioned = 0
    for i, kind in enumerate(kinds):
        name = f"{sub[i]}f{i}"
        if kind not in ("text", "film"):
            files[f"{name}.jpg"] = b"no picture" if kind == "broken photo" else encoded(i)
            photos += 1
        if kind in ("photo and text", "text", "broken photo"):
            files[f"{name}.TXT" if i % 2 else f"{name}.txt"] = f"text number {i}"
        files |= {"empty text": {f"{name}.caption": " \n"}, "broken text": {f"{name}.txt": b"\xea\xff"},
                  "film": {f"{name}.mp4": b"x"}, "photo and film": {f"{name}.mp4": b"x"},
                  "photo and JSON": {f"{name}.json": '{"caption": "a text in it"}'}}.get(kind, {})  # fmt: skip
        captioned += kind in ("photo and text", "broken photo", "photo and JSON")
    captioned += alone_in_folders(kinds, sub)
    with tempfile.TemporaryDirectory() as place:
        path = tar_of(Path(place) / "a.tar", files) if packed else Path(place)
        for name, content in files.items():
            if not packed:
                put(path / name, content)
        if not captioned:
            with pytest.raises(ClipcapError):
                read(path)
            return
        source = read(path)
        assert len(source.records) == captioned and source.seen == photos
        check_report(source)
