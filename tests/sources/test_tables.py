"""Tables as spreadsheets, pandas, Kaggle, the hub, R and shells write them: every row comes back or is counted."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.photos import ONE_EACH, TEXTS, album, base64_of, captions, encoded, put, read

from clipcap.errors import ClipcapError

PAIRS = [(f"{i}.jpg", text) for i, text in enumerate(TEXTS, 1)]


@pytest.fixture
def photos(tmp_path):
    album(tmp_path / "images")
    return tmp_path


def rows(delimiter: str = ",", head: str = "image{}caption\n", end: str = "\n") -> str:
    return (head.format(delimiter) + "".join(f"{name}{delimiter}{text}\n" for name, text in PAIRS)).replace("\n", end)


WRITINGS = {
    "commas": rows(),
    "semicolons": rows(";"),
    "tabs in .csv": rows("\t"),
    "pipes": rows("|"),
    "pipes with blanks": "image_name| comment_number| comment\n"
    + "".join(f"{name}| 0| {text}\n" for name, text in PAIRS),
    "Windows line ends": rows(end="\r\n"),
    "old Mac line ends": rows(end="\r"),
    "byte-order mark": "\ufeff" + rows(),
    "UTF-16 with a mark": ("\ufeff" + rows("\t")).encode("utf-16-le"),
    "UTF-16, the other order": ("\ufeff" + rows("\t")).encode("utf-16-be"),
    "UTF-16 without a mark": rows("\t").encode("utf-16-le"),
    "sep= line of Excel": "\ufeffsep=;\r\n" + rows(";", end="\r\n"),
    "sep= line, quoted": '"sep=|"\n' + rows("|"),
    "sep= line with a tab": "sep=\t\n" + rows("\t"),
    "blank lines on top": "\n\n" + rows(),
    "a remark on top": "# made on Monday\n" + rows(),
    "a header behind #": "#" + rows(),
    "no header": rows(head=""),
    "no header, tabs": rows("\t", head=""),
    "no header, numbered captions": "".join(f"{name}#0\t{text}\n" for name, text in PAIRS),
    "no header, blanks": "".join(f"{name} {text}\n" for name, text in PAIRS),
    "a header twice": rows() + "image,caption\n",
    "everything in quotes": "".join(f'"{a}","{b}"\n' for a, b in [("image", "caption"), *PAIRS]),
    "single quotes": "image,caption\n" + "".join(f"{a},'{b}'\n" for a, b in PAIRS),
    "a blank before the quote": "image, caption\n" + "".join(f'{a}, "{b}"\n' for a, b in PAIRS),
    "whole lines in quotes": "".join(f'"{line}"\n' for line in rows().splitlines()),
    "pandas' index": ",image,caption\n" + "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(PAIRS)),
    "R's row names": '"image" "caption"\n'.replace(" ", ",")
    + "".join(f'"{i}","{a}","{b}"\n' for i, (a, b) in enumerate(PAIRS, 1)),
    "empty cells at the end": "image,caption,note\n" + "".join(f"{a},{b}\n" for a, b in PAIRS),
    "delimiters at the end": "image,caption\n" + "".join(f"{a},{b},,\n" for a, b in PAIRS),
    "a title above": "Our trip\n\n" + rows(),
    "titles above, of a spreadsheet": "Our trip;;\n;;\nimage;caption;note\n"
    + "".join(f"{a};{b};\n" for a, b in PAIRS),
    "a header in another language": "Datei;Beschreibung;Punkte\n" + "".join(f"{a};{b};0,5\n" for a, b in PAIRS),
    "no header, links": "".join(f"{b}\thttp://example.org/a/{a}?w=3\n" for a, b in PAIRS),
    "no header, stems": "".join(f"{a[:-4]}\t{b}\n" for a, b in PAIRS),
    "a print of a dict": str(dict(PAIRS)),
    "lines of JSON": "\n".join(json.dumps({"image": a, "caption": b}) for a, b in PAIRS),
    "R's write.table": '"image" "caption"\n' + "".join(f'"{i}" "{a}" "{b}"\n' for i, (a, b) in enumerate(PAIRS, 1)),
    "R's row names that are images": '"caption"\n' + "".join(f'"{a}","{b}"\n' for a, b in PAIRS),
    "an index of images": ",caption\n" + "".join(f"{a},{b}\n" for a, b in PAIRS),
    "an index and no header": "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(PAIRS)),
    "an index and columns with numbers": ",0,1\n" + "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(PAIRS)),
    "formulas that hold text": "image,caption\n" + "".join(f'"=""{a}""","=""{b}"""\n' for a, b in PAIRS),
    "a blank on both sides of the comma": '"image" , "caption"\n' + "".join(f'"{a}" , "{b}"\n' for a, b in PAIRS),
    "line feeds before carriage returns": rows(end="\n\r"),
    "links of a spreadsheet": "image;caption\n" + "".join(f'"=HYPERLINK(""images/{a}"")";{b}\n' for a, b in PAIRS),
    "a date in front that is a number of a photo": "Timestamp,Which photo?,Tell us what is to be seen\n"
    + "".join(f"2024/01/01,{a},{b}\n" for a, b in PAIRS),
    "a table in Markdown": "| image | caption |\n| --- | --- |\n" + "".join(f"| {a} | {b} |\n" for a, b in PAIRS),
}


SIGNS = ["^", "~", "||", "::", " ||| ", " => ", "->", "\t\t", "\x01", ":", ": ", " - ", " \u2014 "]


@pytest.mark.parametrize("sign", SIGNS)
def test_a_table_is_read_whatever_sign_is_between_its_columns(photos, sign):
    assert captions(read(put(photos / "caps.csv", rows(sign)))) == ONE_EACH
    assert captions(read(put(photos / "caps.txt", rows(sign, head="")))) == ONE_EACH


@pytest.mark.parametrize("writing", WRITINGS)
def test_a_table_is_read_however_it_is_written(photos, writing):
    assert captions(read(put(photos / "caps.csv", WRITINGS[writing]))) == ONE_EACH


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sep": "\t"},
        {"sep": ";", "quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
        {"doublequote": False, "escapechar": "\\"},
        {"encoding": "utf-8-sig", "lineterminator": "\r\n"},
    ],
    ids=str,
)
def test_quotes_delimiters_and_line_ends_in_captions_survive_pandas(photos, options):
    texts = ['a "big" dog, wet; very|so', "it is\tlate", "two, three", 'ends with 32"']
    if options.get("quoting") != csv.QUOTE_NONE:
        texts[2] = "a line\nand another, so"
    frame = pd.DataFrame({"image": [name for name, _ in PAIRS], "caption": texts})
    frame.to_csv(photos / "caps.csv", index=False, **options)
    source = read(photos / "caps.csv")
    assert captions(source) == [(" ".join(text.split()),) for text in texts]


def test_quotes_that_close_nothing_lose_no_row_of_a_tsv(photos):
    texts = ['"No entry, says a sign', "plain", 'a screen of 32"', 'a "quoted" word']
    put(photos / "caps.tsv", "image\tcaption\n" + "".join(f"{i}.jpg\t{t}\n" for i, t in enumerate(texts, 1)))
    source = read(photos / "caps.tsv")
    assert captions(source) == [(text,) for text in texts]
    assert "captions with a quote that closes nothing, read as it is: 1" in source.notes


def test_a_caption_over_two_lines_is_one_caption_though_its_second_line_has_a_comma(photos):
    put(photos / "caps.csv", 'image,caption\n1.jpg,"first\nsecond, third"\n2.jpg,plain words\n')
    assert captions(read(photos / "caps.csv")) == [("first second, third",), ("plain words",)]


def test_a_caption_with_bare_commas_is_read_to_its_end_where_only_a_name_stands_before_it(photos):
    source = read(put(photos / "caps.csv", "image,caption\n1.jpg,a dog, wet, runs\n2.jpg,plain words\n"))
    assert captions(source) == [("a dog, wet, runs",), ("plain words",)]
    assert "captions with an unquoted ',', read to the end of the line: 1" in source.notes


def test_broken_rows_are_counted_by_kind_and_the_others_used(photos):
    text = "image,number,comment\n1.jpg,0,one dog\n2.jpg 0 no comma\n3.jpg,0,a,b\n4.jpg,0,two dogs\n2.jpg,0\n"
    source = read(put(photos / "caps.csv", text))
    assert captions(source) == [("one dog",), ("two dogs",)]
    [note] = [note for note in source.notes if "left out" in note and "row" in note and "fields" in note]
    assert note.startswith(f"3 rows left out: {photos}/caps.csv: line 3: 1 fields where the header has 3")
    assert note.endswith("(and 2 more like it)")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (json.dumps(["one dog", "two dogs"]), ("one dog", "two dogs")),
        (repr(["one dog's", "two dogs"]), ("one dog's", "two dogs")),
        (str(np.array(["one dog", "two dogs"])), ("one dog", "two dogs")),
        (str(np.array(["one dog's", "two dogs"], dtype=object)), ("one dog's", "two dogs")),
        ("('one dog', 'two dogs')", ("one dog", "two dogs")),
        ('{"one dog","two dogs"}', ("one dog", "two dogs")),
        (json.dumps({"raw": "one dog", "tokens": ["one", "dog"]}), ("one dog",)),
        (json.dumps([{"raw": "one dog"}, {"raw": "two dogs"}]), ("one dog", "two dogs")),
        (json.dumps({"0": "one dog", "1": "two dogs"}), ("one dog", "two dogs")),
        (json.dumps({"caption_1": "one dog", "caption_2": "two dogs"}), ("one dog", "two dogs")),
        ("[unclear] a dog", ("[unclear] a dog",)),
        ("(a dog)", ("(a dog)",)),
        ("[a dog]", ("[a dog]",)),
        ("[1, 2]", ("[1, 2]",)),
        ("[/EN#3/people A man] on [/EN#4/vehicles a red bike] .", ("A man on a red bike .",)),
    ],
)
def test_a_list_or_object_in_a_cell_is_read_in_any_notation(photos, cell, expected):
    with (photos / "caps.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "raw"], ["1.jpg", cell], ["2.jpg", "plain words"]])
    assert captions(read(photos / "caps.csv")) == [expected, ("plain words",)]


def test_lists_of_words_become_captions_and_that_is_noted(photos):
    rows = [{"image": name, "tokens": text.split(), "caption": text.split()} for name, text in PAIRS]
    source = read(put(photos / "caps.json", rows))
    assert captions(source) == ONE_EACH
    assert "captions that are lists of single words, joined: 4" in source.notes
    chinese = [
        {"image": "1.jpg", "caption": list("一只狗在桌子上")},
        {"image": "2.jpg", "caption": ["红色的车在水上", "一只狗"]},
    ]
    assert captions(read(put(photos / "caps.json", chinese))) == [("一只狗在桌子上",), ("红色的车在水上", "一只狗")]


@pytest.mark.parametrize(
    "names", ["caption_0 caption_1", "caption caption.1", "comment1 comment2", "Sentence-1 Sentence-2", "raw_a raw_b"]
)
def test_several_caption_columns_are_captions_of_one_image(photos, names):
    one, two = names.split()
    text = f"file_name,{one},{two},width\n" + "".join(f"{a},{b},{b} again,40\n" for a, b in PAIRS)
    assert captions(read(put(photos / "caps.csv", text))) == [(b, f"{b} again") for _, b in PAIRS]
    given = read(photos / "caps.csv", caption_column=f"{one},{two}", image_column="file_name")
    assert captions(given) == [(b, f"{b} again") for _, b in PAIRS]


def zipped(*contents: bytes) -> bytes:
    """An archive as macOS makes it: files, and what it keeps beside them."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number, content in enumerate(contents):
            file.writestr(f"captions{number}", content)
        file.writestr("__MACOSX/._captions0", b"\0")
    return archive.getvalue()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}


@pytest.mark.parametrize("suffix", PACK)
def test_packed_tables_are_read(photos, suffix):
    lines = "\n".join(json.dumps({"image": a, "caption": b}) for a, b in PAIRS)
    for name, text in (
        ("captions.csv", rows()),
        ("captions.jsonl", lines),
        ("captions.json", json.dumps(dict(PAIRS))),
    ):
        path = put(photos / f"{name}.{suffix}", PACK[suffix](text.encode()))
        assert captions(read(path)) == ONE_EACH and captions(read(photos)) == ONE_EACH
        path.unlink()


SHAPES = {
    "by image": dict(PAIRS),
    "by image, lists": {a: [b] for a, b in PAIRS},
    "kohya's metadata": {f"/content/train/{a[:-4]}": {"caption": b, "tags": "day"} for a, b in PAIRS},
    "columns": {"image": [a for a, _ in PAIRS], "caption": [b for _, b in PAIRS]},
    "pandas, by column": {
        "image": {str(i): a for i, (a, _) in enumerate(PAIRS)},
        "caption": {str(i): b for i, (_, b) in enumerate(PAIRS)},
    },
    "pandas, by row": {str(i): {"image": a, "caption": b} for i, (a, b) in enumerate(PAIRS)},
    "pandas, split": {"columns": ["image", "caption"], "index": [0, 1, 2, 3], "data": [list(pair) for pair in PAIRS]},
    "pandas, values": [list(pair) for pair in PAIRS],
    "arrays with a header": [["image", "caption"], *map(list, PAIRS)],
    "pandas, by image": {"columns": ["caption"], "index": [a for a, _ in PAIRS], "data": [[b] for _, b in PAIRS]},
    "an object for each image": [{a: b} for a, b in PAIRS],
    "columns of unknown names": {"files": [a for a, _ in PAIRS], "what it shows": [b for _, b in PAIRS]},
    "captions by language": [{"image": a, "captions": {"en": [b]}} for a, b in PAIRS],
    "Crossmodal-3600": [{"image/key": a[:-4], "en": {"caption": [b], "caption/tokenized": ["x"]}} for a, b in PAIRS],
    "COCO without names of files": {
        "images": [{"id": i} for i in range(1, 5)],
        "annotations": [{"id": i, "image_id": f"{i}", "caption": b} for i, (_, b) in enumerate(PAIRS, 1)],
    },
    "uploads of Label Studio": [{"image": f"/data/upload/1/1a2b3c4d-{a}", "caption": b} for a, b in PAIRS],
    "the hub's rows": {"rows": [{"row_idx": i, "row": {"image": a, "text": b}} for i, (a, b) in enumerate(PAIRS)]},
    "TextCaps": {
        "dataset_type": "train",
        "data": [
            {"image_id": a[:-4], "image_path": f"train/{a}", "caption_str": b, "reference_strs": [b, "other"]}
            for a, b in PAIRS
        ],
    },
    "BLIP": [{"image": f"images/{a}", "caption": b, "image_id": f"coco_{i}"} for i, (a, b) in enumerate(PAIRS)],
    "LLaVA": [
        {
            "id": a,
            "image": f"coco/images/{a}",
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": b}],
        }
        for a, b in PAIRS
    ],
    "LLaMA-Factory": [
        {
            "images": [f"images/{a}"],
            "messages": [{"role": "user", "content": "<image>Tell."}, {"role": "assistant", "content": b}],
        }
        for a, b in PAIRS
    ],
    "ms-swift": [{"query": "<image>Tell.", "response": b, "images": [f"images/{a}"]} for a, b in PAIRS],
    "TRL, images in messages": [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": f"file:///x/images/{a}"}, {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": b}]},
            ]
        }
        for a, b in PAIRS
    ],
    "Qwen": [
        {
            "id": a,
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>images/{a}</img>\nTell."},
                {"from": "assistant", "value": b},
            ],
        }
        for a, b in PAIRS
    ],
}  # fmt: skip


EXPORTS = {
    "Label Studio": [
        {
            "id": i,
            "annotations": [
                {"result": [{"type": "textarea", "value": {"text": ["no"]}}], "was_cancelled": True},
                {"result": [{"type": "textarea", "value": {"text": [b]}}, {"type": "choices", "value": {}}]},
            ],
            "data": {"image": f"/data/upload/1/{a}", "caption": "of a machine"},
        }
        for i, (a, b) in enumerate(PAIRS)
    ],
    "the VGG Image Annotator": {
        "_via_settings": {"core": {}},
        "_via_img_metadata": {
            f"{a}99": {"filename": a, "size": 99, "regions": [], "file_attributes": {"caption": b}} for a, b in PAIRS
        },
        "_via_attributes": {"file": {"caption": {"type": "text"}}},
    },
    "Labelbox": [
        {
            "data_row": {"id": "x", "external_id": a, "row_data": f"https://example.org/{a}"},
            "projects": {"p": {"labels": [{"annotations": {"classifications": [{"text_answer": {"content": b}}]}}]}},
        }
        for a, b in PAIRS
    ],
    "Datumaro": {
        "categories": {},
        "items": [
            {"id": a[:-4], "annotations": [{"type": "caption", "caption": b}], "image": {"path": a}} for a, b in PAIRS
        ],
    },
    "Gemini": [
        {
            "contents": [
                {"role": "user", "parts": [{"fileData": {"fileUri": f"gs://bucket/{a}"}}, {"text": "Tell."}]},
                {"role": "model", "parts": [{"text": b}]},
            ]
        }
        for a, b in PAIRS
    ],
    "MiniCPM": [
        {
            "id": str(i),
            "image": {"<image_00>": f"images/{a}"},
            "conversations": [{"role": "user", "content": "<image_00>"}, {"role": "assistant", "content": b}],
        }
        for i, (a, b) in enumerate(PAIRS)
    ],
    "PaliGemma": [{"image": a, "prefix": "caption en", "suffix": b} for a, b in PAIRS],
    "regions of Visual Genome": [
        {"id": i, "regions": [{"image_id": i, "phrase": b}]} for i, (_, b) in enumerate(PAIRS, 1)
    ],
    "paragraphs": [{"url": f"https://example.org/VG_100K/{a}", "image_id": a[:-4], "paragraph": b} for a, b in PAIRS],
    "columns called images and captions": {"images": [a for a, _ in PAIRS], "captions": [b for _, b in PAIRS]},
    "a table somewhere inside": {"version": 1, "result": {"mine": [{"image": a, "caption": b} for a, b in PAIRS]}},
    "by another key": {str(i): [{"caption": b, "image": a}] for i, (a, b) in enumerate(PAIRS)},
    "captions of several lengths": {a: {"captions": {"short": b, "tags": "day"}} for a, b in PAIRS},
    "a link beside the file's name": [
        {"url": f"https://example.org/{i}?id=3", "caption": b, "local_path": a} for i, (a, b) in enumerate(PAIRS)
    ],
}  # fmt: skip


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_of_annotation_and_training_tools_are_read(photos, tool):
    assert captions(read(put(photos / "caps.json", EXPORTS[tool]))) == ONE_EACH


@pytest.mark.parametrize(
    ("header", "sign"),
    [("caption", ";"), ("caption", "|"), ("captions", " ||| "), ("captions", "\n"), ("text", "<sep>")],
)
def test_several_captions_in_a_cell_are_split_where_nearly_every_cell_has_the_sign(photos, header, sign):
    two = [f'{a},"{b}{sign}{b} again"\n' for a, b in PAIRS[:-1]]
    source = read(put(photos / "caps.csv", f"image,{header}\n" + "".join([*two, ",".join(PAIRS[-1])])))
    assert captions(source) == [*((b, f"{b} again") for b in TEXTS[:-1]), (TEXTS[-1],)]
    assert any(
        note.startswith("cells with several captions, split at ") and note.endswith(": 3") for note in source.notes
    )


def test_signs_within_captions_split_none(photos):
    texts = ["a red kite; it flies", "two cups", "snow on a bench; a tree", "a tram | late"]
    table = "image,caption\n" + "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(texts, 1))
    assert captions(read(put(photos / "caps.csv", table))) == [(text,) for text in texts]


@pytest.mark.parametrize(
    "written", [repr, bytes.hex, lambda data: f"\\x{data.hex()}", lambda data: str({"bytes": data})]
)
def test_pictures_as_python_and_databases_print_their_bytes_are_read(tmp_path, written):
    frame = pd.DataFrame({"image": [written(encoded(i)) for i in range(4)], "caption": TEXTS})
    frame.to_csv(tmp_path / "caps.csv", index=False)
    assert sorted(captions(read(tmp_path / "caps.csv"))) == sorted(ONE_EACH)


def test_words_for_nothing_and_names_of_objects_are_no_captions_and_no_photos(photos):
    cells = ["nan", "NULL", "None", "a tram at a stop"]
    source = read(
        put(photos / "caps.csv", "image,caption\n" + "".join(f"{i}.jpg,{c}\n" for i, c in enumerate(cells, 1)))
    )
    assert captions(source) == [("a tram at a stop",)] and source.left_out == {"without a caption": 3}
    lost = "<PIL.JpegImagePlugin.JpegImageFile image mode=RGB size=40x30 at 0x7F>"
    source = read(put(photos / "caps.csv", f"image,caption\n{lost},a kite\n1.jpg,two cups\nb'cut,snow on it\n"))
    assert captions(source) == [("two cups",)] and source.rows_left_out == 2


@pytest.mark.parametrize("text", ["[{},\n{},\n]", "[{}, {}, ]"], ids=["a line each", "one line"])
def test_a_comma_too_many_and_single_quotes_are_read(photos, text):
    rows = [{"image": a, "caption": b} for a, b in PAIRS[:2]]
    for write in (json.dumps, str):
        assert captions(read(put(photos / "caps.json", text.format(*map(write, rows))))) == ONE_EACH[:2]


def test_json_that_is_too_deep_for_a_table_is_one_line(tmp_path):
    for key in ("a", "train"):
        with pytest.raises(ClipcapError, match=r"nested too deeply|expected a list of objects"):
            read(put(tmp_path / "caps.json", f'{{"{key}":' * 700 + "[]" + "}" * 700))


@pytest.mark.parametrize("shape", SHAPES)
def test_json_of_other_programs_is_read_in_its_shape(photos, shape):
    assert captions(read(put(photos / "caps.json", SHAPES[shape]))) == ONE_EACH


def test_splits_as_keys_are_splits(photos):
    entries = [{"image": a, "caption": b} for a, b in PAIRS]
    source = read(put(photos / "caps.json", {"train": entries[:3], "validation": entries[3:]}))
    assert [record.split for record in source.records] == ["train", "train", "train", "val"]


LINES = [json.dumps({"file_name": a, "text": b}) for a, b in PAIRS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("caps.jsonl", "\n".join(LINES)),
        ("caps.json", "\n".join(LINES)),
        ("caps.jsonl", f"[{','.join(LINES)}]"),
        ("caps.json", "\n".join(json.dumps(json.loads(line), indent=2) for line in LINES)),
        ("caps.jsonl", "\n".join(str(json.loads(line)) for line in LINES)),
        ("caps.ndjson", "\ufeff" + ",\n".join(LINES)),
    ],
    ids=["lines", "lines as .json", "a list as .jsonl", "objects one after another", "Python's print", "commas"],
)
def test_json_lines_are_read_whatever_the_file_is_called(photos, name, text):
    assert captions(read(put(photos / name, text))) == ONE_EACH


def test_a_broken_line_of_json_is_counted_and_the_others_used(photos):
    source = read(put(photos / "caps.jsonl", "\n".join([LINES[0], '{"file_name": "2.jpg", "te', *LINES[2:]])))
    assert captions(source) == [ONE_EACH[0], *ONE_EACH[2:]]
    assert any(note.startswith("1 row left out: ") and "line 2: not valid JSON" in note for note in source.notes)


def test_captions_marked_as_unusable_are_left_out_and_counted(photos):
    images = [{"id": i, "file_name": name} for i, (name, _) in enumerate(PAIRS)]
    marks = ({}, {"is_rejected": True}, {"is_precanned": True}, {"is_rejected": False, "is_precanned": False})
    notes = [{"image_id": i, "id": i, "caption": text, **marks[i]} for i, (_, text) in enumerate(PAIRS)]
    path = put(photos / "train.json", {"images": images, "annotations": notes})
    for source in (read(path), read(path, "coco", images=photos / "images")):
        assert captions(source) == [ONE_EACH[0], ONE_EACH[3]]
        assert "2 captions left out: marked as unusable (is_rejected 1, is_precanned 1)" in source.notes
        assert source.left_out == {"without a caption": 2}
    table = "image,caption,is_rejected\n1.jpg,one dog,False\n2.jpg,two dogs,True\n"
    assert captions(read(put(photos / "t.csv", table))) == [("one dog",)]


def test_pictures_in_a_parquet_table_are_read_from_it(tmp_path):
    pictures = [{"bytes": encoded(i), "path": "image.jpg"} for i in range(4)]
    for name, column in (("struct", pictures), ("bytes", [p["bytes"] for p in pictures])):
        path = tmp_path / f"{name}.parquet"
        table = pa.table({"image" if name == "struct" else "jpg": column, "text": TEXTS})
        pq.write_table(table, path, row_group_size=3)
        source = read(path)
        assert captions(source) == ONE_EACH
        with source.records[2].image.open() as stream:
            assert stream.read() == encoded(2)


def test_pictures_as_base64_are_read(tmp_path):
    rows = [
        {"image": base64_of(i) if i % 2 else f"data:image/jpeg;base64,{base64_of(i)}", "text": t}
        for i, t in enumerate(TEXTS)
    ]
    assert captions(read(put(tmp_path / "caps.jsonl", "\n".join(map(json.dumps, rows))))) == ONE_EACH
    text = "".join(f"{i}\t{t}\t{base64_of(i)}\n" for i, t in enumerate(TEXTS))
    assert captions(read(put(tmp_path / "caps.tsv", "uniq_id\tcaption\timage\n" + text))) == ONE_EACH


def test_rows_of_img2dataset_whose_download_failed_are_counted(tmp_path):
    table = {
        "key": ["0", "1", "2"],
        "status": ["success", "failed_to_download", "success"],
        "caption": ["one dog", "two dogs", "three dogs"],
        "jpg": [encoded(0), None, encoded(2)],
    }
    for shard in ("00000", "00001"):
        pq.write_table(pa.table(table), tmp_path / f"{shard}.parquet")
        put(tmp_path / f"{shard}_stats.json", {"count": 3})
    source = read(tmp_path)
    assert captions(source) == [("one dog",), ("three dogs",)] * 2
    assert source.left_out == {"not downloaded": 2}


def test_links_are_named_as_links_with_what_fetches_them(tmp_path):
    path = put(tmp_path / "caps.csv", "caption,url\n" + "".join(f"{b},https://example.org/p/{a}\n" for a, b in PAIRS))
    with pytest.raises(
        ClipcapError, match=r"4 links in column 'url': img2dataset fetches.*is a link, not a file name"
    ):
        read(path)
    album(tmp_path / "images")
    source = read(path)
    assert captions(source) == ONE_EACH
    assert "4 names matched by the end of their path" in source.notes
    assert any(note.startswith("4 links in column 'url'") for note in source.notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"PK\x03\x04", "a spreadsheet: save it as CSV in UTF-8"),
        ("t.csv.zst", b"\x28\xb5\x2f\xfd", "packed: unpack it first"),
        (
            "t.csv.gz",
            gzip.compress(b"image,caption\n1.jpg,a red kite\n", mtime=0)[:-9],
            r"t\.csv\.gz: cannot be read",
        ),
        ("t.csv.gz", gzip.compress(bytes(2**22), mtime=0), "unpacks to more than 64 times its size"),
        ("t.csv.zip", zipped(bytes(2**22)), "unpacks to more than 64 times its size"),
        ("t.csv.zip", zipped(b"image,caption\n", b"image,caption\n"), "holds 2 files: unpack it first"),
        ("t.csv.zip", b"PK", r"t\.csv\.zip: cannot be read"),
        ("t.csv.xz", lzma.compress(b"image,caption\n1.jpg,a red kite\n")[:-9], r"t\.csv\.xz: cannot be read"),
        ("t.arrow", b"ARROW1", "write it as Parquet"),
        ("t.yaml", "1.jpg: a red kite\n", "write them as JSON"),
        ("t.html", "<table></table>", "write the captions in it as CSV or JSON"),
        ("t.csv", "näme,caption\n1.jpg,crêpe\n".encode("cp1252"), "not UTF-8; convert it: iconv -f WINDOWS-1252"),
        ("t.json", {"title": "t", "licenses": [{"name": "CC0"}]}, "expected a list of objects, or captions by image"),
        ("t.json", [{"image": ["1.jpg", "2.jpg"], "caption": "x"}], "2 images in one row"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path, name, content, message):
    with pytest.raises(ClipcapError, match=message):
        read(put(tmp_path / name, content))


def test_a_conversation_of_several_turns_gives_its_first_answer(photos):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "one dog"}] * 2
    source = read(put(photos / "t.json", [{"image": "1.jpg", "conversations": turns}]))
    assert captions(source) == [("one dog",)]
    assert any(note.startswith("further answers of conversations, left out") for note in source.notes)


def test_numbers_that_pandas_made_floats_of_find_their_photos(photos):
    frame = pd.DataFrame({"image_id": [1.0, 2.0, None], "caption": ["one dog", "two dogs", "none"]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    source = read(put(photos / "t.parquet", buffer.getvalue()))
    assert captions(source) == [("one dog",), ("two dogs",)]
    assert "1 row left out: nothing in column 'image_id'" in source.notes


@pytest.mark.parametrize(
    "written",
    [
        "".join(f"{a}#{i}\t{b} {i}\n" for a, b in PAIRS for i in range(2)),
        "".join(f"{a}\t{b} 0\t{b} 1\n" for a, b in PAIRS),
        "image\t0\t1\n" + "".join(f"{a}\t{b} 0\t{b} 1\n" for a, b in PAIRS),
    ],
    ids=["numbered names", "columns without a header", "columns with numbers"],
)
def test_several_captions_of_one_image_are_captions_of_one_record(photos, written):
    assert captions(read(put(photos / "caps.tsv", written))) == [(f"{b} 0", f"{b} 1") for _, b in PAIRS]


def test_images_with_fewer_captions_than_others_lack_none(photos):
    text = "".join(f"{a}\t{b}" + f"\t{b} again" * (i % 2) + "\n" for i, (a, b) in enumerate(PAIRS))
    expected = [(b, f"{b} again") if i % 2 else (b,) for i, (_, b) in enumerate(PAIRS)]
    assert captions(read(put(photos / "caps.tsv", text))) == expected


@pytest.mark.parametrize("nothing", ["NA", "#N/A", "nil", "...", "-", " . "])
def test_what_says_nothing_is_no_caption(photos, nothing):
    source = read(put(photos / "caps.csv", f"image,caption\n1.jpg,a red kite\n2.jpg,{nothing}\n"))
    assert captions(source) == [("a red kite",)] and source.left_out == {"without a caption": 1}


def test_numbers_of_boxes_are_no_captions(photos):
    text = "".join(f"{a} 10,20,30,40,0\n" for a, _ in PAIRS)
    with pytest.raises(
        ClipcapError, match=r"4 rows left out: .*its caption is of numbers, as detectors are trained on"
    ):
        read(put(photos / "annotations.txt", text))


def test_an_image_that_has_two_captions_under_one_key_is_not_read_by_halves(photos):
    text = '{"1.jpg": "a red kite", "2.jpg": "two cups", "1.jpg": "a kite over a field"}'
    with pytest.raises(ClipcapError, match=r"key '1\.jpg' is given twice"):
        read(put(photos / "caps.json", text))


def test_columns_of_different_lengths_lose_no_row(photos):
    source = read(
        put(photos / "caps.json", {"image": ["1.jpg", "2.jpg"], "caption": ["a red kite", "two cups", "snow"]})
    )
    assert captions(source) == [("a red kite",), ("two cups",)] and source.rows_left_out == 1


@pytest.mark.parametrize("folder", ["cats", "./cats", "C:\\set\\cats"])
def test_a_column_of_folders_tells_photos_of_one_name_apart(tmp_path, folder):
    album(tmp_path / "cats", count=2)
    album(tmp_path / "dogs", count=2)
    other = folder.replace("cats", "dogs")
    rows = [
        (folder, "1.jpg", "a cat"),
        (other, "1.jpg", "a dog"),
        (folder, "2.jpg", "cats"),
        (other, "2.jpg", "dogs"),
    ]
    pd.DataFrame(rows, columns=["Directory", "FileName", "Description"]).to_csv(tmp_path / "caps.csv", index=False)
    source = read(tmp_path / "caps.csv")
    assert sorted(captions(source)) == [("a cat",), ("a dog",), ("cats",), ("dogs",)]
    assert {record.captions[0][-3:]: record.image.path.parent.name for record in source.records} == {
        "cat": "cats", "dog": "dogs", "ats": "cats", "ogs": "dogs",
    }  # fmt: skip


def test_a_photo_of_a_row_that_is_left_out_counts_as_unused(photos):
    text = "image,caption,split\n1.jpg,a red kite,train\n2.jpg,two cups,train\n3.jpg,snow,somewhere\n"
    source = read(put(photos / "caps.csv", text))
    assert len(source.records) == 2 and source.rows_left_out == 1 and source.unnamed == 2


def test_captions_of_one_word_are_remarked_on_but_not_where_a_script_has_no_blanks(photos):
    for word, remarked in (("dog", True), ("一只狗在草地上", False)):
        lines = "".join(f"{name},{word}\n" for name, _ in PAIRS) + f"1.jpg,{word}\n2.jpg,{word}\n3.jpg,{word}\n"
        source = read(put(photos / "caps.csv", "image,caption\n" + lines))
        assert any("captions are single words" in note for note in source.notes) == remarked
