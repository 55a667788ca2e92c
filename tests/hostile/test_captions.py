"""Captions and file names that mean harm, down the whole road: every command, every file it writes, the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import string
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
from PIL import Image
from support.browser import chromium
from support.road import lines_of, picture, save_captioner

from clipcap.cli.main import main
from clipcap.evaluation.caption_files import read_predictions
from clipcap.features.files import read_features
from clipcap.runtime.text import from_cell

LONG = 100_000  # characters
TITLE = "\x1b]0;owned\x07"  # would rename the terminal's window
IMG = "<img src=http://127.0.0.1:9/x onerror=alert(1)>"
PROMPT = f"={TITLE}{IMG}"
CAPTIONS = {
    "empty": "",
    "blank": " \t\u2003\n",
    "long": "a plate of rice " * (LONG // 16),
    "one long word": "".join(Random(0).choices(string.ascii_lowercase, k=LONG)),
    "escape sequences": f"a {TITLE}\x1b[31mred\x1b[2J apple\x9b5m",
    "bells and backspaces": "two eggs\x07\x08\x08\x7f\x01",
    "line breaks": "a bowl\r\nclipcap: error: forged\u2028forged\x0bforged\x85forged",
    "right to left": "صحن من الأرز مع צלחת של אורז",
    "bidi overrides": "\u202egpj.exe\u202d \u2066inside\u2069 \u200fa plate",
    "emoji": "🍕👩\u200d🍳🇮🇹 \U0001f468\u200d\U0001f469\u200d\U0001f467 pizza",
    "accents without end": "Z" + "\u0335\u0321\u0347" * 50 + " plate",
    "script": "</script><script>alert(1)</script>",
    "event handler": f'{IMG}" onload="alert(1)" x=\'',
    "end of everything": "</title></style></textarea>--><iframe src=javascript:alert(1)><svg/onload=alert(1)>",
    "entities": "&lt;b&gt; &amp;quot; &#60;script&#62; ${7*7} {{7*7}} %s {0}",
    "=": '=HYPERLINK("http://127.0.0.1:9","plate")',
    "+": "+1+cmd|' /C calc'!A0",
    "-": "-2+3",
    "@": "@SUM(1+1)",
    "tab": "\t=1+1",
    "carriage return": "\r=1+1",
    "wide =": "＝1+1",
    "quoted": "'=1+1",
    "JSON": '{"caption": null, "image": ["\\u0000"]}, NaN',
    "CSV": 'a "plate", of; rice\' |\\',
    "climbing": "../../../../etc/passwd",
    "no character": "a \ufffe\uffff\ufdd0 plate",
}
JSON_ONLY = {"NUL": "a \0 plate", "half a surrogate": "a \ud800 plate \udfff", "both halves": "\udc00\ud800 plate"}
NAMES = (
    "line\nbreak.png", "tab\tand\rreturn.png", f"{TITLE}.png", "<img src=x onerror=alert(1)>.png", "=1+1.png",
    "-rf.png", "+1.png", "@x.png", "üñí😀.png", "\u202egnp.exe.png", "quote\"'.png", "a,b;c.png", "$(touch x).png",
    "%2e%2e%2f.png", "' onload='alert(1).png",
)  # fmt: skip
BAD = (f"bad\n{TITLE}.png", "=bad.png", '<svg onload="alert(1)">.png', "bad\u202egnp.png", "-bad.png")
# What a terminal obeys, or what turns the rest of a line round; a tab and a line feed are the commands' own.
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = re.compile(r"[\s\0]*[=+\-@＝＋－＠]|[\t\r\n\0]")
WIDEST = 2000  # characters that a line of the terminal may well have


class Road:
    """A folder of photos with captions, and what every command said and wrote."""

    def __init__(self, folder: Path, lm: Path, clip: Path):
        self.folder, self.said = folder, {}
        texts = {**CAPTIONS, **JSON_ONLY}
        names = [f"{number}.png" for number in range(len(texts) - len(NAMES))] + list(NAMES)
        self.of = dict(zip(names, texts.values(), strict=True))  # name of a photo → its caption
        (folder / "set").mkdir()
        for number, name in enumerate(names):
            picture(number).save(folder / "set" / name, "PNG")
        for name in BAD:
            (folder / "set" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        self._write_captions()
        save_captioner(folder / "captioner", lm, clip)
        self._parse(clip)
        self._train_and_predict(lm)
        self._evaluate_and_search()

    def _write_captions(self) -> None:
        """The same as CSV, which cannot hold all of them, as JSON, and as somebody's predictions."""
        rows = [*self.of.items(), *((name, "a plate") for name in BAD)]
        rows += [(name, "a dish") for name, text in self.of.items() if not text.strip()]
        with open("captions.csv", "w", newline="", encoding="utf-8") as file:
            sayable = [row for row in rows if row[1] not in JSON_ONLY.values()]
            csv.writer(file).writerows([("image", "caption"), *sayable])
        objects = [json.dumps({"image": name, "caption": text}) for name, text in rows]
        Path("captions.json").write_text(f"[{','.join(objects)}]")
        Path("said.jsonl").write_text("\n".join(objects[: len(self.of)]))

    def _parse(self, clip: Path) -> None:
        parse = ("--images", "set", "--clip_model_type", clip, "--device", "cpu", "--workers", 0, "--max_bad", 1)
        self.run("parse csv", "parse", "custom", "--data_path", "captions.csv", "--out", "csv.pkl", *parse)
        self.run("parse json", "parse", "custom", "--data_path", "captions.json", "--out", "features", *parse)
        self.run("dry run", "parse", "custom", "--data_path", "captions.json", "--dry_run", *parse)
        self.run("info", "features", "info", "features")
        self.run("verify", "features", "verify", "features")
        self.run("contrastive", "contrastive", "custom", "--data_path", "captions.json", "--images", "set",
                 "--out_dir", "clip", "--epochs", 1, "--bs", 16, "--embed_dim", 64, "--resolution", 32,
                 "--vision_width", 64, "--vision_layers", 1, "--text_width", 64, "--text_layers", 1,
                 "--max_bad", 1)  # fmt: skip

    def _train_and_predict(self, lm: Path) -> None:
        self.run("train", "train", "--data", "features", "--lm", lm, "--out_dir", "run", "--epochs", 1, "--bs", 8,
                 "--prefix_length", 2, "--val", 0.5, "--val_captions", 8)  # fmt: skip
        os.chdir("set")  # so that names begin as they are meant to
        words = ("--img", ".", "--load_pt", "../captioner", "--device", "cpu", "--max_new_tokens", 2, "--beam",
                 "--recipe", "reference", "--prompt", PROMPT)  # fmt: skip
        self.run("predict", "predict", *words, status=1)
        for kind in ("csv", "jsonl"):
            self.run(f"predict {kind}", "predict", *words, "--out", f"../p.{kind}", status=1)
        os.chdir("..")

    def _evaluate_and_search(self) -> None:
        score = ("--references", "features", "--no_java")
        self.run("evaluate", "evaluate", "--data", "features", "--load_pt", "run", "--out", "model", "--no_java",
                 "--device", "cpu", "--max_new_tokens", 4)  # fmt: skip
        self.run("evaluate csv", "evaluate", "--predictions", "p.csv", "--out", "ours", *score)
        self.run("evaluate jsonl", "evaluate", "--predictions", "said.jsonl", "--out", "theirs", *score)
        self.run("compare", "compare", "theirs", "ours", "--no_java", "--out", "both.html")
        self.run("index", "index", "features", "--out", "index")
        search = ("search", "--index", "index", "--caption_id", 1, "--k", 40)
        for kind in ("jsonl", "png"):
            self.run(f"search {kind}", *search, "--out", f"s.{kind}")

    def run(self, name: str, *words: object, status: int = 0) -> None:
        """Run a command and keep what a terminal would have been sent."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err):
            found = main([str(word) for word in words])
        for stream in (out, err):
            stream.flush()
        said = "".join(stream.buffer.getvalue().decode() for stream in (out, err))
        assert found == status, said
        self.said[name] = said.replace("\r", "\n")  # of progress bars; of a caption it would begin a line of its own


@pytest.fixture(scope="module")
def road(tmp_path_factory, lm_folder, clip_file):
    folder, before = tmp_path_factory.mktemp("hostile"), Path.cwd()
    os.chdir(folder)
    try:
        return Road(folder, lm_folder, clip_file)
    finally:
        os.chdir(before)


def clean(text: str) -> str:
    """What a caption is to become: one line, without half surrogates and NUL."""
    return " ".join(text.replace("\0", " ").encode("utf-8", "ignore").decode().split())


def test_captions_reach_the_features_whole_and_in_one_line(road):
    for name, texts in (("csv.pkl", CAPTIONS), ("features", {**CAPTIONS, **JSON_ONLY})):
        features = read_features(road.folder / name)
        expected = [clean(text) for text in texts.values() if clean(text)]
        assert sorted(features.captions) == sorted([*expected, "a dish", "a dish"])
        assert set(features.image_ids) <= set(road.of)


def test_a_terminal_is_sent_nothing_that_it_would_obey(road):
    assert [(name, RAW.findall(said)) for name, said in road.said.items() if RAW.search(said)] == []
    for name, said in road.said.items():
        lines = said.split("\n")
        assert max(map(len, lines)) < WIDEST, name  # a caption of 100,000 characters does not flood it
        assert not [line for line in lines if line.startswith(("clipcap: error", "forged")) or "Traceback" in line]


def test_no_csv_holds_a_formula_and_each_reads_back_as_meant(road):
    places = {"csv_errors.csv": "path", "features_errors.csv": "path", "clip/errors.csv": "path", "p.csv": "image"}
    assert {str(path.relative_to(road.folder)) for path in road.folder.rglob("*.csv")} == {*places, "captions.csv"}
    for place, column in places.items():
        with (road.folder / place).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        cells = [cell for row in rows for name, cell in row.items() if name != "logprob"]
        assert [cell for cell in cells if FORMULA.match(cell)] == []
        names = {Path(from_cell(row[column])).name for row in rows}
        assert names == (set(road.of) if column == "image" else set(BAD))
    exact = lines_of(road.folder / "p.jsonl")
    assert read_predictions(road.folder / "p.csv") == {one["image"]: one["caption"] for one in exact}
    assert all(one["caption"].startswith(PROMPT) for one in exact)


def test_json_is_json_and_holds_what_was_said(road):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    found = [path for path in road.folder.rglob("*.json*") if path.parent.name in ("model", "ours", "theirs", "")]
    found += [road.folder / name for name in ("p.jsonl", "s.jsonl", "run/metrics.jsonl")]
    assert len(found) == 12
    for path in found:
        text = path.read_text(encoding="utf-8")
        for part in text.split("\n") if path.suffix == ".jsonl" else [text]:
            json.loads(part or "0", parse_constant=refuse)
    assert read_predictions(road.folder / "theirs" / "predictions.json") == road.of


class Reader(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


REPORTS = ("model/report.html", "ours/report.html", "theirs/report.html", "both.html")


@pytest.mark.parametrize("place", REPORTS)
def test_a_report_has_no_element_of_theirs(place, road):
    elements = Reader((road.folder / place).read_text(encoding="utf-8")).elements
    tags = [tag for tag, _ in elements]
    assert tags.count("script") == tags.count("link") == 1
    assert not {"iframe", "object", "embed", "base", "textarea"} & set(tags)
    assert tags.count("article") == len(road.of)
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "action", "srcdoc")]
        links = [attributes.get(name) or "#" for name in ("src", "href")]
        assert all(link.startswith(("#", "data:")) for link in links)
    shown = [attributes for tag, attributes in elements if tag == "img"]
    assert len(shown) == (len(road.of) if place == "model/report.html" else 0)


def test_a_browser_runs_says_and_asks_nothing(road):
    heard: list[str] = []
    with chromium() as browser:
        for place in REPORTS:
            page = browser.new_page()
            for event in ("console", "pageerror", "dialog", "popup", "download"):
                page.on(event, lambda found, event=event: heard.append(f"{event}: {found}"))
            page.on("request", lambda request: heard.append(request.url))
            page.goto((road.folder / place).as_uri())
            page.check("input[value=all]", force=True)
            page.fill("#filter", "alert")
            assert page.locator("mark").first.inner_text() == "alert"
            assert [url for url in heard if not url.startswith("data:")] == [(road.folder / place).as_uri()]
            heard.clear()
            page.close()


def test_a_grid_of_found_pictures_stays_small(road):
    with Image.open(road.folder / "s.png") as sheet:
        assert max(sheet.size) < 10_000
