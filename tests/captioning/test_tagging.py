"""Captions as those who train image generators need them: texts around them, files beside photos, metadata."""

from __future__ import annotations

import re
import shutil

import pytest
from support.road import lines_of

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.text_files import TextFiles


@pytest.fixture(scope="module")
def expected(checkpoint):
    captioner = Captioner.from_pretrained(checkpoint, device="cpu")
    return lambda paths, **options: [
        [c.text for c in found] for found in captioner.caption(paths, max_new_tokens=8, **options)
    ]


def test_prefix_and_suffix_are_set_around_captions_and_do_not_change_them(caption, photos, expected, tmp_path):
    words = ("--img", *photos, "--caption_prefix", "ohwx plate, ", "--caption_suffix", ", photo")
    framed = [f"ohwx plate, {text}, photo" for [text] in expected(photos)]
    assert [line.split("\t")[1] for line in caption(*words)[1]] == framed
    caption(*words, "--sidecar")
    assert [photo.with_suffix(".txt").read_text(encoding="utf-8") for photo in photos] == [t + "\n" for t in framed]
    caption(*words, "--out", tmp_path / "c.jsonl")
    assert [line["caption"] for line in lines_of(tmp_path / "c.jsonl")] == framed


def test_a_text_file_has_a_line_for_each_caption_under_the_suffix_asked_for(caption, photos, expected):
    words = ("--img", *photos, "--sidecar", "--num_captions", 3)
    assert caption(*words, "--caption_extension", "caption")[0] == 0
    for photo, captions in zip(photos, expected(photos, num_captions=3), strict=True):
        assert photo.with_suffix(".caption").read_text(encoding="utf-8").splitlines() == captions
    assert not list(photos[0].parent.glob("*.txt"))


@pytest.mark.parametrize("form", ["folder", "glob", "files"])
def test_out_tree_mirrors_the_folders_of_the_photos(caption, photos, expected, tmp_path, form):
    deep = photos[0].parent / "a" / "b"
    deep.mkdir(parents=True)
    shutil.move(photos[4], deep / "x.png")
    words = {
        "folder": [photos[0].parent],
        "glob": [f"{photos[0].parent}/**/*.png"],
        "files": [*photos[:4], deep / "x.png"],
    }
    before = sorted(photos[0].parent.rglob("*"))
    assert caption("--img", *words[form], "--out_tree", tmp_path / "texts")[0] == 0
    place = "a/b/x.txt"
    there = {path.relative_to(tmp_path / "texts").as_posix() for path in (tmp_path / "texts").rglob("*.txt")}
    assert there == {"photo0.txt", "photo1.txt", "photo2.txt", "photo3.txt", place}
    assert sorted(photos[0].parent.rglob("*")) == before
    [[text]] = expected([deep / "x.png"])
    assert (tmp_path / "texts" / place).read_text(encoding="utf-8") == text + "\n"
    assert "5 of 5 photos have a .txt already" in " ".join(
        caption("--img", *words[form], "--out_tree", tmp_path / "texts")[2]
    )


@pytest.mark.parametrize(("how", "joined"), [("append", "mine, {}\n"), ("prepend", "{}, mine\n")])
def test_captions_join_the_texts_that_are_there_once(caption, photos, expected, how, joined):
    photos[1].with_suffix(".txt").write_text("mine\n")
    [[first], [second]] = expected(photos[:2])
    for _ in range(2):  # as after an interrupted run
        assert caption("--img", *photos[:2], "--sidecar", "--existing", how)[0] == 0
        assert photos[0].with_suffix(".txt").read_text(encoding="utf-8") == first + "\n"
        assert photos[1].with_suffix(".txt").read_text(encoding="utf-8") == joined.format(second)


def test_a_text_that_is_no_utf8_is_not_touched(caption, photos):
    photos[0].with_suffix(".txt").write_bytes(b"caf\xe9\n")
    status, _, err = caption("--img", photos[0], "--sidecar", "--existing", "append")
    assert (status, photos[0].with_suffix(".txt").read_bytes()) == (1, b"caf\xe9\n")
    assert err[-1].endswith("photo0.txt: not UTF-8, so nothing is added: convert it first")


def test_metadata_of_imagefolder_names_photos_below_its_folder(caption, photos, expected):
    out = photos[0].parent / "metadata.jsonl"
    assert caption("--img", photos[0].parent, "--out", out, "--out_format", "imagefolder")[0] == 0
    assert lines_of(out) == [{"file_name": p.name, "text": text} for p, [text] in zip(photos, expected(photos))]
    status, _, err = caption(
        "--img", *photos, "--out", photos[0].parent / "below" / "metadata.jsonl", "--out_format", "imagefolder"
    )
    assert status == 1 and "is not below" in err[-1]


def test_the_datasets_library_reads_the_metadata(caption, photos, expected):
    datasets = pytest.importorskip("datasets")
    caption("--img", photos[0].parent, "--out", photos[0].parent / "metadata.jsonl", "--out_format", "imagefolder")
    rows = datasets.load_dataset("imagefolder", data_dir=str(photos[0].parent), split="train")
    assert sorted(rows["text"]) == sorted(text for [text] in expected(photos))


def test_metadata_of_kohya_has_a_line_for_each_caption(caption, photos, expected, tmp_path):
    out = tmp_path / "metadata.jsonl"
    assert caption("--img", *photos, "--num_captions", 2, "--out", out, "--out_format", "kohya")[0] == 0
    captions = expected(photos, num_captions=2)
    assert lines_of(out) == [{"image_path": str(p), "caption": c} for p, two in zip(photos, captions) for c in two]


def rounded(text):
    """The text with three decimals: weights are packed from the second image of a run on, which moves the sixth."""
    return re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3f}", text)


# --- interrupted and continued --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [("c.jsonl", ()), ("c.csv", ()), ("photos/m.jsonl", ("--out_format", "imagefolder")),
     ("m.jsonl", ("--out_format", "kohya", "--num_captions", 2)), ("s.jsonl", ("--seed", 3))],
)  # fmt: skip
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_file_is_continued_to_the_same_lines(caption, photos, tmp_path, monkeypatch, name, more, stop):
    out, words = tmp_path / name, ("--img", *photos, "--batch_size", 1, *more)
    caption(*words, "--out", out)
    whole = out.read_bytes()
    write = Captioner.caption_embeddings

    def interrupted(self, embeddings, config, numbers=None, pictures=None):
        if numbers == [stop]:
            raise KeyboardInterrupt
        return write(self, embeddings, config, numbers, pictures)

    with monkeypatch.context() as patched:
        patched.setattr(Captioner, "caption_embeddings", interrupted)
        status, _, err = caption(*words, "--out", out)
    assert (status, err[-1]) == (
        130, f"clipcap: interrupted; {out} has {stop} lines: the same command continues with the other images",
    )  # fmt: skip
    assert whole.startswith(out.read_bytes()) and out.read_bytes() != whole
    out.write_bytes(out.read_bytes() + whole.splitlines(keepends=True)[-1][:9])  # as a kill in the middle of a line
    status, _, err = caption(*words, "--out", out)
    assert (status, rounded(out.read_bytes().decode())) == (0, rounded(whole.decode()))
    assert f"continuing where an earlier run stopped: {stop} of 5 are done" in err
    assert sorted(p.name for p in out.parent.iterdir() if "unfinished" in p.name) == []


def test_nothing_of_a_run_killed_while_it_wrote_is_left_by_the_next(caption, photos, tmp_path):
    """A kill leaves a draft beside each file that it hits: the text of a photo, the marker of an unfinished file."""
    out, draft = tmp_path / "c.jsonl", f"{0:016x}.draft"
    for left in (photos[0].with_name(f".photo0.txt.{draft}"), tmp_path / f".c.jsonl.unfinished.{draft}"):
        left.write_text("half a capt")
    other = photos[0].with_name(f".another.txt.{draft}")
    other.write_text("of another command, which may be running")
    assert caption("--img", *photos, "--sidecar")[0] == caption("--img", *photos, "--out", out)[0] == 0
    assert list(tmp_path.rglob(".*")) == [other]


def test_a_finished_file_or_one_of_another_command_is_replaced_and_named(caption, photos, tmp_path, monkeypatch):
    out = tmp_path / "c.jsonl"
    caption("--img", *photos, "--out", out)
    first = out.read_bytes()
    assert (
        f"{out}: replaces the file that was there ({len(first):,} bytes)"
        in caption("--img", *photos, "--out", out)[2]
    )
    (tmp_path / "c.jsonl.unfinished").write_text("of another command")
    assert caption("--img", *photos, "--caption_prefix", "x ", "--out", out)[0] == 0
    assert [line["caption"][:2] for line in lines_of(out)] == ["x "] * 5


def test_interrupted_texts_state_how_to_go_on(caption, photos, monkeypatch):
    def interrupted(self, photo, captions):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextFiles, "write", interrupted)
    status, _, err = caption("--img", *photos, "--sidecar")
    assert status == 130 and err[-1].startswith("clipcap: interrupted; the texts written are kept: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sidecar", "--out_tree", "x"), "--sidecar and --out_tree are two places"),
        (("--sidecar", "--caption_extension", "a/b"), "--caption_extension 'a/b': must be a suffix"),
        (("--sidecar", "--overwrite", "--existing", "append"), "--overwrite means --existing replace"),
        (("--out_format", "kohya"), "--out_format kohya is of a file: add --out metadata.jsonl"),
        (("--out", "c.csv", "--out_format", "kohya"), "--out_format kohya is of a file"),
    ],
)
def test_options_at_odds_are_one_line(caption, photos, words, said):
    status, _, err = caption("--img", photos[0], *words)
    assert (status, len(err)) == (1, 1) and said in err[0]
