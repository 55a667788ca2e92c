"""Bad input of every kind: one line that names what, where and how to mend it; nothing finished is lost."""

from __future__ import annotations

import pickle
import struct
import tarfile
import zlib

import pytest
import torch
from PIL import Image
from support.road import draw_photos, draw_set, picture, run, save_captioner, write_captions

from clipcap.demo.tiny import make_clip, make_gpt2
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.models.encoders import openai_weights
from clipcap.models.encoders.openai_weights import clip_package


def bomb(path):
    """A PNG of a few bytes whose header speaks of 30,000 × 30,000 pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 999))
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def truncated_jpeg(path):
    picture(0, (200, 160)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


def one_photo(folder, make):
    """A good photo and a bad one, both with captions."""
    draw_set(folder, 1)
    bad = make(folder / "bad.jpg")
    write_captions(folder, [("photo0.png", "a good one"), (bad.name, "a bad one")])
    return folder


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cut(path, source, share=0.5):
    path.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return path


def cut_tar(path, folder):
    photo = draw_photos(folder, 1)[0]
    with tarfile.open(path, "w") as tar:
        tar.add(text(folder / "1.txt", "a dog runs"), "0001.txt")
        tar.add(photo, "0001.png")
    return cut(path.with_name("cut.tar"), path, 0.1)


# name: (what makes it, given an empty folder; the source and flags; what the line must say besides the path)
PARSE = {
    "no such folder": (lambda t: t / "nowhere", "custom", ["no such file or folder"]),
    "no such table": (lambda t: t / "nope.csv", "custom", ["no such file or folder"]),
    "an empty folder": (lambda t: t, "custom", ["no photos, tables or tars"]),
    "an empty folder of a known set": (lambda t: t, "flickr8k", ["no caption file (captions.txt"]),
    "no caption file": (lambda t: t, "food", ["no Captions.csv here: give --captions FILE"]),
    "a column that is not there": (
        lambda t: text(t / "Captions.csv", "a,Index\n1,2\n"), "food", ["no column 'Captions'", "'a', 'Index'"]),
    "a column asked for that is not there": (
        lambda t: draw_set(t, 1), "custom --caption_column text",
        ["captions.csv: no column 'text'", "'image', 'caption'"]),
    "a CSV without header or captions": (
        lambda t: text(t / "captions.txt", "1.jpg\n2.jpg\n"), "flickr8k", ["no header line", "caption column"]),
    "a text that is not UTF-8": (
        lambda t: text(t / "captions.csv", b"image,caption\n1.jpg,caf\xe9\n"), "custom",
        ["line 2", "0xe9", "iconv -f WINDOWS-1252"]),
    "broken JSON": (lambda t: text(t / "captions.json", '[{"image": "1.jpg",'), "custom", ["not valid JSON"]),
    "captions that are all empty": (
        lambda t: text(t / "captions.csv", "image,caption\n1.jpg,\n2.jpg,  \n"), "custom",
        ["no image with a caption", "2 empty captions dropped"]),
    "captions above the token limit": (
        lambda t: draw_set(t, 2), "custom --token_limit 2 --lm {lm}",
        ["data: every caption is longer than --token_limit 2: raise"]),
    "a token limit without tokenizer": (
        lambda t: draw_set(t, 2), "custom --token_limit 2 --lm nobody/nothing", ["hf download nobody/nothing"]),
    "a truncated tar": (lambda t: cut_tar(t / "full.tar", t / "photos"), "custom", ["damaged tar"]),
    "a damaged Parquet file": (lambda t: text(t / "captions.parquet", "PAR1 no"), "custom", []),
    "an unknown CLIP name": (
        lambda t: draw_set(t, 1), "custom --clip_model_type RN51", ["RN51", "RN50, RN101", "ViT-L/14@336px"]),
    "a CLIP that needs a download": (
        lambda t: draw_set(t, 1), "custom --clip_model_type RN50", ["where there is a network and place it at"]),
    "a CLIP that is something else": (
        lambda t: draw_set(t, 1), "custom --clip_model_type {lm}/config.json", ["not a CLIP checkpoint"]),
    "a device that is not there": (lambda t: draw_set(t, 1), "custom --device cuda:99", ["--device cuda:99"]),
    "a share out of range": (lambda t: draw_set(t, 1), "custom --train_size 1.5", ["--train_size"]),
    "a split that leaves nothing": (lambda t: draw_set(t, 1), "custom --train_size 0.5", ["--train_size 0.5 of 1"]),
    "a place that is taken": (lambda t: draw_set(t, 1), "custom --out {lm}", ["is a folder of other files"]),
}  # fmt: skip


@pytest.mark.parametrize("case", PARSE)
def test_parse(case, tmp_path, clip_file, lm_folder, capsys, monkeypatch):
    monkeypatch.setitem(clip_package().clip._MODELS, "RN50", "http://127.0.0.1:9/abc/RN50.pt")  # nobody listens there
    monkeypatch.setattr(openai_weights, "CACHE", tmp_path / "cache")
    make, words, said = PARSE[case]
    (tmp_path / "data").mkdir()
    path, words = make(tmp_path / "data"), words.format(lm=lm_folder).split()
    defaults = ["--clip_model_type", clip_file, "--out", tmp_path / "f.pkl", "--device", "cpu", "--workers", 0]
    flags_of_case = [word for word in words[1:] if word.startswith("--")]
    pairs = [pair for pair in zip(defaults[::2], defaults[1::2]) if pair[0] not in flags_of_case]
    place = path.parent if words[0] in ("food", "flickr8k") and path.is_file() else path
    status, _, err = run(capsys, "parse", words[0], "--data_path", place, *sum(pairs, ()), *words[1:])
    assert status == 1
    (line,) = (line for line in err if line.startswith("clipcap: error: "))
    assert err[-1] == line
    assert len(line) < 700
    for part in said if flags_of_case else [path.name, *said]:
        assert part in line
    assert not (tmp_path / "f.pkl").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated_jpeg, "cannot be read"),
        (bomb, "decompression bomb"),
        (lambda path: text(path, "no picture"), "not an image"),
        (lambda path: text(path, b""), "empty"),
        (lambda path: path, "file not found"),
    ],
    ids=["truncated", "bomb", "text", "empty", "missing"],
)
def test_photos_that_cannot_be_parsed(make, reason, tmp_path, clip_file, capsys):
    folder, out = one_photo(tmp_path / "set", make), tmp_path / "f.pkl"
    words = ["--data_path", folder, "--clip_model_type", clip_file, "--out", out, "--device", "cpu", "--max_bad", 0]
    status, _, err = run(capsys, "parse", "custom", *words, "--workers", 0)
    assert status == 1
    (line,) = (line for line in err if line.startswith("clipcap: error: "))
    assert line.startswith("clipcap: error: 1 of 2 images skipped")
    assert str(tmp_path / "f_errors.csv") in line
    listed = (tmp_path / "f_errors.csv").read_text()
    assert str(folder / "bad.jpg") in listed
    assert reason in listed
    assert read_features(out).image_ids == ["photo0.png"]  # the finished row loads


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w')",)


def features(path, dim=64):
    write_features(path, embeddings=torch.randn(3, dim), image_ids=list("abc"), image_paths=list("abc"),
                   captions=[("x",)] * 3, meta=FeatureMeta())  # fmt: skip
    return path


FEATURES = {
    "missing": (lambda t: t / "f.pkl", "no such feature file"),
    "empty": (lambda t: text(t / "f.pkl", b""), "is empty"),
    "truncated": (lambda t: cut(t / "f.pkl", features(t / "whole.pkl")), "truncated"),
    "text": (lambda t: text(t / "f.pkl", "no pickle"), "not a ClipCap feature file"),
    "an array": (lambda t: text(t / "f.npy", b"\x93NUMPY"), "`clipcap features import` makes a feature file of it"),
    "hostile": (
        lambda t: text(t / "f.pkl", pickle.dumps({"clip_embedding": Hostile(t / "trace"), "captions": []})), "exec"),
    "of other content": (lambda t: text(t / "f.pkl", pickle.dumps({"a": 1})), "expected the keys clip_embedding"),
    "an empty folder": (lambda t: t, "no img_emb"),
    "of another width": (lambda t: features(t / "f.pkl", 32), "embeddings are 32 wide"),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("bad") / "captioner", lm_folder, clip_file)


@pytest.mark.parametrize("command", ["predict", "train"])
@pytest.mark.parametrize("case", FEATURES)
def test_feature_files(command, case, tmp_path, checkpoint, lm_folder, capsys):
    make, said = FEATURES[case]
    path = make(tmp_path)
    words = {
        "predict": ["--load_pt", checkpoint, "--features", path],
        "train": ["--data", path, "--weights_dir", checkpoint, "--lm", lm_folder, "--out_dir", tmp_path / "runs"],
    }
    status, _, err = run(capsys, command, *words[command])
    assert status == 1
    assert err[-1].startswith("clipcap: error: ")
    assert str(path) in err[-1]
    assert said in err[-1]
    assert not any("Traceback" in line or line.startswith("clipcap:") for line in err[:-1])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: t / "no.jpg", "no.jpg: no such file or folder"),
        (lambda t: t, "no images in this folder"),
        (lambda t: t / "*.jpg", "no image matches"),
        (lambda t: truncated_jpeg(t / "cut.jpg"), "cut.jpg: cannot be read"),
        (lambda t: bomb(t / "bomb.png"), "bomb.png: more than 178,956,970 pixels"),
        (lambda t: text(t / "text.jpg", "no picture"), "text.jpg: not an image"),
        (lambda t: text(t / "empty.jpg", b""), "empty.jpg: the file is empty"),
    ],
    ids=["missing", "empty folder", "glob", "truncated", "bomb", "text", "empty"],
)
def test_photos_that_cannot_be_captioned(make, said, tmp_path, checkpoint, capsys):
    path = make(tmp_path)
    status, out, err = run(capsys, "predict", "--load_pt", checkpoint, "--img", path, "--device", "cpu")
    assert (status, out) == (1, [])
    (line,) = (line for line in err if line.startswith(("clipcap: error: ", "warning: skipped ")))
    assert str(path) in line
    assert said in line


CHECKPOINTS = {
    "missing": (lambda t, c: t / "nowhere", "no such checkpoint"),
    "an empty folder": (lambda t, c: t, "neither a checkpoint"),
    "truncated weights": (lambda t, c: broken_copy(t / "c", c), "missing or damaged"),
    "a text": (lambda t, c: text(t / "c.pt", "no weights"), "c.pt"),
    "a CLIP": (lambda t, c: make_clip(t / "c.pt"), "c.pt"),
}


def broken_copy(folder, source):
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    cut(folder / "model.safetensors", source / "model.safetensors")
    return folder


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, tmp_path, checkpoint, lm_folder, capsys):
    (tmp_path / "made").mkdir()
    make, said = CHECKPOINTS[case]
    path = make(tmp_path / "made", checkpoint)
    photo = draw_photos(tmp_path, 1)[0]
    status, _, err = run(capsys, "predict", "--load_pt", path, "--lm", lm_folder, "--img", photo, "--device", "cpu")
    assert status == 1
    (line,) = err
    assert line.startswith("clipcap: error: ")
    assert str(path) in line
    assert said in line


def test_a_checkpoint_of_other_sizes_says_both(tmp_path, lm_folder, clip_file, capsys):
    frozen = save_captioner(tmp_path / "frozen", lm_folder, clip_file, tune="none")
    wide = make_gpt2(tmp_path / "wide", ["a red apple"], width=128)
    photo = draw_photos(tmp_path, 1)[0]
    status, _, err = run(capsys, "predict", "--load_pt", frozen, "--lm", wide, "--img", photo, "--device", "cpu")
    assert status == 1
    assert "128" in err[-1]
    assert "256" in err[-1]  # prefix 4 of 64
    assert str(frozen) in err[-1]


def test_an_encoder_of_another_width_says_both(tmp_path, checkpoint, capsys):
    narrow, photo = make_clip(tmp_path / "narrow.pt", embed_dim=32), draw_photos(tmp_path, 1)[0]
    words = ["--load_pt", checkpoint, "--img", photo, "--device", "cpu", "--clip_model_type", narrow]
    line = run(capsys, "predict", *words)[2][-1]
    assert f"{narrow} gives embeddings 32 wide, this checkpoint expects 64" in line


def test_pictures_that_must_simply_work(tmp_path, checkpoint, capsys):
    photo = picture(1)
    modes = {"palette.gif": "P", "grey.png": "L", "bits.png": "1", "alpha.png": "RGBA", "cmyk.jpg": "CMYK",
             "sixteen.png": "I;16", "float.tiff": "F"}  # fmt: skip
    for name, mode in modes.items():
        photo.convert(mode).save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 8
    photo.save(tmp_path / "turned.jpg", exif=exif)
    status, out, _ = run(capsys, "predict", "--load_pt", checkpoint, "--img", tmp_path, "--beam", "--device", "cpu")
    assert (status, len(out)) == (0, 8)
