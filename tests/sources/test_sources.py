"""Every reader gives the same records, and bad input one clear line."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from clipcap.errors import ClipcapError
from clipcap.images.folders import natural_key
from clipcap.images.read import open_image
from clipcap.sources.collector import Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.dry_run import describe
from clipcap.sources.readers import READERS
from clipcap.sources.tars import expand_braces


def read(name: str, path: Path | str, **options) -> Source:
    return READERS[name](SourceConfig(data_path=str(path), **{key: _plain(value) for key, value in options.items()}))


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def captions(source: Source) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in source.records}


def splits(source: Source) -> dict[str, str | None]:
    return {record.image_id: record.split for record in source.records}


def paths(source: Source, root: Path) -> list[str]:
    return [str(record.image).removeprefix(f"{root}/") for record in source.records]


def draw(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(path)
    return path


def write(path: Path, content: str | bytes | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def refuses(match: str, name: str, path: Path | str, **options) -> None:
    """The reader raises one line that names the path and matches."""
    with pytest.raises(ClipcapError, match=match) as caught:
        read(name, path, **options)
    assert str(caught.value).isprintable(), str(caught.value)


# ---- food


@pytest.fixture
def food(tmp_path) -> Path:
    write(
        tmp_path / "Captions.csv",
        ',Index,Captions\n0,10,"Soup,\r\nhot\u2028and\x0b red"\n1,2,Pie\n'
        '2,3,   \n3,1,"A ""fine"" crêpe"\n4,2,Apple pie\n',
    )
    for name in ("1.jpg", "2.PNG", "10.jpeg"):
        draw(tmp_path / "dataset" / name)
    return tmp_path


def test_food_gives_clean_captions_sorted_by_image(food):
    source = read("food", food)
    assert list(captions(source).items()) == [
        ("1", ('A "fine" crêpe',)),
        ("2", ("Pie", "Apple pie")),
        ("10", ("Soup, hot and red",)),
    ]
    assert paths(source, food) == ["dataset/1.jpg", "dataset/2.PNG", "dataset/10.jpeg"]
    assert source.notes == ["1 empty caption dropped", "1 image left out: no caption"]


def test_food_photos_are_found_where_they_are_and_missing_ones_expected_beside_them(food, tmp_path_factory):
    (food / "dataset").rename(food / "Images")
    (food / "Images" / "1.jpg").unlink()
    assert paths(read("food", food), food)[:2] == ["Images/1.jpg", "Images/2.PNG"]
    elsewhere = tmp_path_factory.mktemp("photos")
    draw(elsewhere / "10.png")
    assert paths(read("food", food, images=elsewhere), elsewhere) == ["1.jpg", "2.jpg", "10.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,Soup\n1,Pie\n", "no column 'Index'; its columns are '0', 'Soup'"),
        ("", "empty"),
        (",Index,Captions\n0,77,a,b\n", "1 row left out: .*line 2: 4 fields where the header has 3"),
        (b",Index,Captions\n0,1,ok\n1,2,cr\xeape\n", r"line 3, byte 7 \(0xea\) is not UTF-8.*iconv -f WINDOWS-1252"),
        (",Index,Captions\n0,1,a\n".encode("utf-16")[:-1], "looks like UTF-16, but is not"),
        (b",Index,Captions\n0,1,a\0b\n", "line 2 holds a NUL"),
        (",Index,Captions\n0,../../etc/77,x\n", "not a file name inside"),
        (',Index,Captions\n0,"a\n/../../b",x\n', "not a file name inside"),
        (",Index,Captions\n0,/etc/77,x\n", "not a file name inside"),
        (",Index,Captions\n0,1,  \n", "no image with a caption; .*1 empty caption dropped"),
        (",Index,Captions\n0,1," + "x" * 200_000 + "\n", "line 2: a field larger"),
    ],
)
def test_a_bad_food_table_is_refused(food, content, message):
    write(food / "Captions.csv", content)
    refuses(message, "food", food)


def test_a_missing_folder_or_caption_file_is_named(food):
    refuses("nowhere: no such file or folder", "food", food / "nowhere")
    refuses("nowhere: no such folder", "food", food, images=food / "nowhere")
    refuses("none.csv: no such file", "food", food, captions=food / "none.csv")
    refuses("--data_path is missing", "food", "")


def test_captions_of_a_hundred_kilobytes_and_a_byte_order_mark_are_read(food):
    write(food / "Captions.csv", "\ufeffIndex,Captions\n7," + "word " * 20_000 + "\n")
    assert len(captions(read("food", food))["7"][0]) == 99_999


# ---- splits


def test_the_split_is_by_image_and_repeats_with_the_seed(tmp_path):
    rows = "".join(f"{i},{i % 50}.jpg,caption {i}\n" for i in range(200))
    table = write(tmp_path / "t.csv", "id,image,caption\n" + rows)
    source = read("custom", table, train_size=0.8)
    assert Counter(splits(source).values()) == {"train": 40, "val": 10}
    assert list(splits(source)) == sorted(splits(source), key=natural_key)
    assert splits(source) == splits(read("custom", table, train_size=0.8))
    assert splits(source) != splits(read("custom", table, train_size=0.8, seed=1))


def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path):
    table = write(tmp_path / "t.csv", "image,caption\na.jpg,x\n")
    refuses("--train_size 0.5 of 1 images leaves train or val empty", "custom", table, train_size=0.5)


# ---- COCO


def karpathy(name: str, split: str, **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": f"{name} one"}, {"raw": "two"}], **more}


def test_the_list_of_the_original_finds_photos_of_both_years_folders(tmp_path):
    draw(tmp_path / "val2014" / "COCO_val2014_000000000009.jpg")
    entries = [{"image_id": "30", "id": 1, "caption": "c"}, {"image_id": 9, "id": 0, "caption": "a"}]
    write(tmp_path / "annotations" / "train_caption.json", [*entries, {"image_id": "9", "id": 2, "caption": "b"}])
    source = read("coco", tmp_path)
    assert captions(source) == {"9": ("a", "b"), "30": ("c",)}
    assert paths(source, tmp_path) == [
        "val2014/COCO_val2014_000000000009.jpg",
        "train2014/COCO_train2014_000000000030.jpg",
    ]


def official(*ids: int) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "id": 10 * i, "caption": f"caption {i}"} for i in (*ids, 999)],
    }


def test_one_official_file_has_no_split_and_a_pair_has(tmp_path):
    train = write(tmp_path / "annotations" / "captions_train2017.json", official(2, 1))
    source = read("coco", train, train_size=0.5)
    assert Counter(splits(source).values()) == {"train": 1, "val": 1}
    assert paths(source, tmp_path)[0] == "train2017/000000000001.jpg"
    assert source.notes == ["1 caption left out: the image is not listed in captions_train2017.json"]
    write(tmp_path / "annotations" / "captions_val2017.json", official(3))
    assert splits(read("coco", tmp_path)) == {"1": "train", "2": "train", "3": "val"}
    refuses(r"leave it out: this set has its own splits \(train 2, val 1 images\)", "coco", tmp_path, train_size=0.5)


def test_karpathys_splits_are_honoured_and_restval_is_train(tmp_path):
    images = [
        karpathy("COCO_val2014_1.jpg", "restval", filepath="val2014", cocoid=1),
        karpathy("COCO_val2014_2.jpg", "val", filepath="val2014", cocoid=2),
        karpathy("COCO_train2014_3.jpg", "test", filepath="train2014", cocoid=3),
    ]
    write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    source = read("coco", tmp_path)
    assert splits(source) == {"1": "train", "2": "val", "3": "test"}
    assert paths(source, tmp_path)[0] == "val2014/COCO_val2014_1.jpg"
    assert captions(source)["3"] == ("COCO_train2014_3.jpg one", "two")


def test_karpathys_flickr8k_needs_no_folder_per_image(tmp_path):
    draw(tmp_path / "Flicker8k_Dataset" / "b.jpg")
    write(tmp_path / "dataset_flickr8k.json", {"images": [karpathy("b.jpg", "train"), karpathy("a.jpg", "val")]})
    source = read("coco", tmp_path)
    assert paths(source, tmp_path) == ["Flicker8k_Dataset/a.jpg", "Flicker8k_Dataset/b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('[{"image_id": 1, "image_id": 2, "caption": "x"}]', "key 'image_id' is given twice"),
        ('[{"image_id": 1, "caption": NaN}]', "entry 1: 'caption' is NoneType, expected str"),
        ('[{"image_id": 1}]', "entry 1: no 'caption'; its keys are 'image_id'"),
        ('[{"image_id": "x", "caption": "y"}]', "entry 1: 'image_id' is not a number"),
        ("[1, 2]", "entry 1: expected an object, got int"),
        ("7", "not COCO captions"),
        ('{"images": 3}', "expected a list of images, got int"),
        ({"images": [karpathy("a.jpg", "trian")]}, "unknown split 'trian'"),
        ({"images": [karpathy("../a.jpg", "train")]}, "not a file name inside"),
        (
            {
                "images": [{"id": 1, "file_name": "/etc/passwd"}],
                "annotations": [{"image_id": 1, "caption": "x"}],
            },
            "not a file name inside",
        ),
        ("[]", "no image with a caption"),
        ("[" + "1" * 5000 + "]", "not valid JSON"),
    ],
)
def test_bad_coco_files_are_refused(tmp_path, content, message):
    refuses(message, "coco", write(tmp_path / "annotations" / "train_caption.json", content))
    refuses(message, "coco", tmp_path)


def test_a_folder_without_coco_files_says_which_it_looked_for(tmp_path):
    refuses("no caption file here or in annotations/ .*train_caption.json", "coco", tmp_path)


# ---- Flickr8k


@pytest.fixture
def flickr(tmp_path) -> Path:
    write(tmp_path / "captions.txt", 'image,caption\nb.jpg,"A dog , runs ."\na.jpg,A cat .\na.jpg,Cat\nc.jpg,Bird\n')
    draw(tmp_path / "Images" / "a.jpg")
    return tmp_path


def test_both_caption_files_of_flickr8k_give_the_same(flickr):
    write(flickr / "Flickr8k.token.txt", "b.jpg#0\tA dog , runs .\na.jpg#0\tA cat .\na.jpg#1\tCat\nc.jpg#0\tBird\n")
    from_csv = read("flickr8k", flickr, train_size=0.5)
    from_token = read("flickr8k", flickr, captions=flickr / "Flickr8k.token.txt", train_size=0.5)
    assert from_csv.records == from_token.records
    assert captions(from_csv)["a.jpg"] == ("A cat .", "Cat")
    assert paths(from_csv, flickr)[:2] == ["Images/a.jpg", "Images/b.jpg"]


def test_flickr8k_lists_decide_the_split_and_what_is_in_none_is_left_out(flickr):
    write(flickr / "Flickr_8k.trainImages.txt", "a.jpg\nz.jpg\n")
    write(flickr / "Flickr_8k.devImages.txt", "b.jpg\r\n")
    source = read("flickr8k", flickr)
    assert splits(source) == {"a.jpg": "train", "b.jpg": "val"}
    assert source.notes == [
        "1 image left out: in none of the split lists",
        "1 image left out: in a split list, but not captioned",
    ]
    refuses("--train_size: leave it out: this set has its own splits", "flickr8k", flickr, train_size=0.5)


def test_bad_flickr8k_files_are_refused(flickr):
    write(flickr / "Flickr_8k.trainImages.txt", "a.jpg\n")
    write(flickr / "Flickr_8k.testImages.txt", "a.jpg\n")
    refuses("a.jpg is in the list of split train too", "flickr8k", flickr)
    (flickr / "Flickr_8k.testImages.txt").unlink()
    write(flickr / "captions.txt", "a.jpg#0\tA cat .\nno tab here\n")
    notes = read("flickr8k", flickr).notes
    assert notes == [f"1 row left out: {flickr}/captions.txt: line 2: is not of the form name.jpg#0<TAB>caption"]
    (flickr / "captions.txt").unlink()
    refuses(r"no caption file \(captions.txt, ", "flickr8k", flickr)


# ---- Conceptual Captions


def test_conceptual_images_are_numbered_by_row(tmp_path):
    write(tmp_path / "my.tsv", 'a "quoted cat\thttp://x/1\nhttps://x/2\ta dog\n\nbird\thttp://x/3\n')
    refuses("my: no such folder", "conceptual", tmp_path / "my.tsv")
    (tmp_path / "my").mkdir()
    source = read("conceptual", tmp_path / "my.tsv")
    assert captions(source) == {"00000000": ('a "quoted cat',), "00000001": ("a dog",), "00000002": ("bird",)}
    assert paths(source, tmp_path)[0] == "my/00000000.jpg"


def test_conceptual_train_and_val_are_its_own_split(tmp_path):
    for split, name in (("train", "Train_GCC-training.tsv"), ("val", "Validation_GCC-1.1.0-Validation.tsv")):
        write(tmp_path / name, f"caption\turl\n{split} caption\thttp://x/{split}\n")
        (tmp_path / split).mkdir()
    source = read("conceptual", tmp_path)
    assert splits(source) == {"train/00000000": "train", "val/00000000": "val"}
    assert paths(source, tmp_path) == ["train/00000000.jpg", "val/00000000.jpg"]


def test_a_malformed_conceptual_line_is_named(tmp_path):
    (tmp_path / "my").mkdir()
    refuses("line 1: 1 fields, expected caption<TAB>url", "conceptual", write(tmp_path / "my.tsv", "no tab\n"))


# ---- anybody's data


ROWS = [{"photo": "a.jpg", "words": "a cat"}, {"photo": "b.jpg", "words": "a dog"}]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_table_of_any_make_gives_the_same_with_columns_given_or_guessed(tmp_path, suffix):
    frame, path = pd.DataFrame(ROWS), tmp_path / f"table.{suffix}"
    save = {
        "csv": lambda: frame.to_csv(path, index=False, sep=";"),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "json": lambda: frame.to_json(path, orient="records"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }
    save[suffix]()
    given = read("custom", path, image_column="photo", caption_column="words")
    guessed = read("custom", path)
    assert captions(given) == {"a.jpg": ("a cat",), "b.jpg": ("a dog",)}
    assert given.records == guessed.records and not given.notes
    assert guessed.notes == [
        "columns: images from 'photo', captions from 'words' (guessed; --image_column --caption_column to change)"
    ]
    refuses("no column 'nope'; its columns are 'photo', 'words'", "custom", path, caption_column="nope")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_caption_column_may_hold_lists_and_nothing(tmp_path, suffix):
    rows = [{"image": "a.jpg", "captions": ["one", "two"]}, {"image": "b.jpg", "captions": None}]
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        write(path, rows if suffix == "json" else "\n\n".join(json.dumps(row) for row in rows))
    assert captions(read("custom", path)) == {"a.jpg": ("one", "two")}


def test_a_json_object_of_image_and_caption_is_a_table_too(tmp_path):
    path = write(tmp_path / "t.json", {"b.jpg": "one", "a.jpg": ["two", "three"]})
    assert captions(read("custom", path)) == {"a.jpg": ("two", "three"), "b.jpg": ("one",)}


def test_a_split_column_is_the_sets_own_split(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption,split\na.jpg,x,train\nb.jpg,y,dev\n")
    assert splits(read("custom", path)) == {"a.jpg": "train", "b.jpg": "val"}
    write(path, "image,caption,split\na.jpg,x,train\na.jpg,y,val\n")
    refuses("image a.jpg is in two splits", "custom", path)


def test_image_names_may_lack_their_suffix_or_be_full_paths(tmp_path):
    photo = draw(tmp_path / "elsewhere" / "c.png")
    draw(tmp_path / "photos" / "7.webp")
    draw(tmp_path / "photos" / "sub" / "8.jpg")
    path = write(tmp_path / "t.csv", f"image,caption\n{photo},x\n7,y\nsub/8.jpg,z\n9.jpg,missing\n")
    found = {record.image_id: record.image.path for record in read("custom", path).records}
    assert found["7"] == tmp_path / "photos" / "7.webp"
    assert found["sub/8.jpg"] == tmp_path / "photos" / "sub" / "8.jpg"
    assert found[str(photo)] == photo
    assert found["9.jpg"] == tmp_path / "photos" / "9.jpg"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "x,y,z\n1,2,3\n",
            "cannot tell the image column, give --image_column; its columns are 'x', 'y'",
        ),
        ("t.csv", "image,y,z\n1,2,3\n", "cannot tell the caption column"),
        ("t.csv", "image,image,caption\n", "two columns are called 'image'"),
        ("t.json", [], "empty"),
        ("t.json", "3", "expected a list of objects"),
        ("t.json", {"images": [], "annotations": []}, "no image with a caption"),
        ("t.json", {"title": "t", "licenses": [{"name": "CC0"}]}, "its keys are 'title', 'licenses'"),
        (
            "t.json",
            [{"image": "a.jpg", "caption": {"en": "x", "de": "y"}}],
            "entry 1: a caption is a text .* here it is a dict",
        ),
        ("t.json", [{"image": {"bytes": "x"}, "caption": "x"}], "entry 1: the image column holds a dict"),
        ("t.jsonl", '{"image": "a"}\n{oops\n', "line 2: not valid JSON"),
        ("t.jsonl", '{"image": "a", "caption": ""}\n[1]\n', "line 2: is a list"),
        ("t.parquet", "no parquet", "not a Parquet file"),
        ("t.xlsx", "x", r"not a table that can be read \(.csv, .tsv"),
    ],
)
def test_bad_tables_are_refused(tmp_path, name, content, message):
    refuses(message, "custom", write(tmp_path / name, content))


def test_names_and_captions_that_break_lines_or_encodings_come_out_clean(tmp_path):
    text = '[{"image": "a\\nb\\ud800.jpg", "caption": "one\\r\\ntwo\\u0000\\ud800three\\u2028\\u0085 four"}]'
    record = read("custom", write(tmp_path / "t.json", text)).records[0]
    assert record.captions == ("one two three four",)
    assert record.image_id.encode("utf-8")


def test_a_folder_with_one_table_needs_no_more_than_its_name(tmp_path):
    write(tmp_path / "captions.csv", "image,caption\na.jpg,x\n")
    write(tmp_path / "scores.csv", "a,b\n1,2\n")
    assert list(captions(read("custom", tmp_path))) == ["a.jpg"]
    (tmp_path / "captions.csv").rename(tmp_path / "texts.csv")
    assert list(captions(read("custom", tmp_path))) == ["a.jpg"]
    write(tmp_path / "scores.csv", "image,caption\na.jpg,y\n")
    refuses(r"several tables \(scores.csv, texts.csv\): choose one with --captions", "custom", tmp_path)


def test_photos_with_a_text_beside_each(tmp_path):
    for name in ("b/2.jpg", "b/10.png", "a.jpg", "alone.jpg", "b/._2.jpg"):
        if not name.endswith("._2.jpg"):
            draw(tmp_path / name)
    write(tmp_path / "b" / "2.txt", "first caption \r\n\nsecond\u2028caption\n")
    write(tmp_path / "b" / "10.txt", "ten")
    write(tmp_path / "a.txt", "\n")
    source = read("custom", tmp_path)
    assert captions(source) == {"b/2.jpg": ("first caption", "second caption"), "b/10.png": ("ten",)}
    assert source.notes == [
        "1 photo left out: no caption file of the same name (.caption, .captions, .cap, .txt, .text, ...)",
        "1 empty caption dropped",
        "1 image left out: no caption",
    ]


def test_an_empty_folder_is_refused(tmp_path):
    refuses(f"{tmp_path}: no photos, tables or tars here", "custom", tmp_path)


# ---- tars


def tar(path: Path, members: dict[str, str | bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def red(tmp_path) -> bytes:
    return draw(tmp_path / "red.png").read_bytes()


def test_shards_are_read_in_place_with_txt_or_json_captions(tmp_path, red):
    folder = tmp_path / "shards"
    folder.mkdir()
    tar(folder / "00000.tar", {"b.png": red, "b.txt": "one\ntwo\n", "a.PNG": red, "a.json": '{"caption": ["three"]}'})
    tar(folder / "00001.tar", {"../../b.png": red, "../../b.txt": "four", "c.jpg": red, "c.json": '{"url": 1}'})
    for pattern in (folder / "{00000..00001}.tar", folder / "*.tar", folder):
        source = read("custom", pattern)
        assert captions(source) == {
            "00000/a": ("three",),
            "00000/b": ("one", "two"),
            "00001/../../b": ("four",),
        }
        assert source.notes == [
            "1 photo left out: no caption file of the same name (.caption, .captions, .cap, .txt, .text, ...)"
        ]
    assert open_image(source.records[0].image).size == (32, 24)
    assert not (tmp_path / "b.png").exists()


def test_brace_patterns_expand_like_a_shells():
    assert expand_braces("s/{08..11}.tar") == ["s/08.tar", "s/09.tar", "s/10.tar", "s/11.tar"]
    assert expand_braces("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    for bad in ("{0..999999999}.tar", "{5..4}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(ClipcapError, match=r"range|more than"):
            expand_braces(bad)


def test_bad_tars_are_refused(tmp_path, red):
    whole = tar(tmp_path / "a.tar", {f"{i}.png": red for i in range(20)} | {"0.txt": "x"})
    data = whole.read_bytes()
    refuses("7.tar: no such tar", "custom", tmp_path / "{7..8}.tar")
    refuses("no such tar", "custom", tmp_path / "*.none.tar")
    refuses("damaged tar", "custom", write(tmp_path / "cut.tar", data[:3000]))
    refuses("bad header", "custom", write(tmp_path / "bad.tar", data[:2048] + b"\xff" * 512 + data[2560:]))
    refuses("damaged tar", "custom", write(tmp_path / "text.tar", "not a tar at all\n" * 99))
    packed = tar(tmp_path / "packed.tar", {"a.png": red}, "w:gz")
    refuses(r"compressed tars cannot be read in place: .*gunzip", "custom", packed)
    refuses("gunzip", "custom", packed.rename(tmp_path / "packed.tar.gz"))
    deep = tar(tmp_path / "deep.tar", {"a.png": red, "a.json": "[" * 100_000})
    refuses("deep.tar/a.json: nested too deeply", "custom", deep)
    refuses("a.txt: line 1, byte 1", "custom", tar(tmp_path / "latin.tar", {"a.png": red, "a.txt": b"\xea"}))


# ---- the report of --dry_run


def test_the_report_counts_what_is_there_and_shows_pairs(food):
    (food / "dataset" / "1.jpg").unlink()
    write(food / "dataset" / "2.PNG", "not a picture")
    source = read("food", food)
    report = describe(source, count_tokens=len)
    assert "food: 3 images with 4 captions (per image: min 1, mean 1.33, max 2)" in report
    assert "images: 2 found, 1 missing, 1 unreadable" in report
    assert "longest caption: 17 tokens, image 10: Soup, hot and red" in report
    assert f"missing: {food}/dataset/1.jpg: no such file" in report
    assert f"unreadable: {food}/dataset/2.PNG: not an image" in report
    assert report.endswith(f"sample pairs:\n  {food}/dataset/10.jpeg  Soup, hot and red")
    assert "4 words (no tokenizer at hand: words, not tokens)" in describe(source, None)


def test_the_report_sees_a_truncated_photo(tmp_path):
    photo = tmp_path / "a.jpg"
    Image.effect_noise((640, 480), 90).convert("RGB").save(photo)
    photo.write_bytes(photo.read_bytes()[:-500])
    write(tmp_path / "a.txt", "noise")
    assert "1 unreadable" in describe(read("custom", tmp_path), None)


# ---- real data


def test_the_real_food_captions_are_read(shared):
    source = read("food", shared / "data" / "food", train_size=0.7)
    assert Counter(splits(source).values()) == {"train": 1397, "val": 599}
    assert source.notes == ["4 empty captions dropped", "4 images left out: no caption"]
    assert all(caption == " ".join(caption.split()) for record in source.records for caption in record.captions)


def test_real_flickr8k_and_coco_are_read(shared):
    flickr = read("flickr8k", shared / "data" / "flickr8k")
    assert Counter(splits(flickr).values()) == {"train": 6000, "val": 500}
    assert sum(map(len, captions(flickr).values())) == 32_500
    coco = read("coco", shared / "data" / "coco_mini")
    assert len(coco.records) == 80 and sum(map(len, captions(coco).values())) == 400
    assert "80 found, 0 missing, 0 unreadable" in describe(coco, None)


def test_a_real_set_of_gifs_is_read(shared):
    source = read("custom", shared / "data" / "gifs")
    assert len(source.records) == 16
    assert "16 found, 0 missing, 0 unreadable" in describe(source, None)
