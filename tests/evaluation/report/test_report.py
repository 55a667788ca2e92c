"""The report: one file that shows everything, loads nothing, and runs nobody's words."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import io
import math
import re
import socket
import string
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.browser import chromium

from clipcap.errors import ClipcapError
from clipcap.evaluation.report.charts import bin_edges, round_steps, shares
from clipcap.evaluation.report.content import Interval, Pictured, Run
from clipcap.evaluation.report.gallery import ALL, SHOWN, SIDE, SMALL, choose_views, score_named
from clipcap.evaluation.report.page import _page, write_report
from clipcap.prompts.datastore import Retrieved

REPO = Path(__file__).resolve().parents[3]
EPOCHS = [
    {"epoch": e, "step": e, "train_loss": 3 / (e + 1), "val_loss": 3.2 / (e + 1), "cider": e / 3} for e in range(4)
]
HOSTILE = (
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    '" onload="window.ran = 1" x="',
    "'><svg/onload=window.ran=1>",
    "</title></style></textarea><!-- <iframe src=http://127.0.0.1:9/>",
    "{{7*7}} ${window.ran = 1} $style &lt;b&gt; &amp;quot; ]]>",
    "javascript:window.ran=1",
    "\x00\x07\x1b[31m\x7f\x85\ud800 \u2028\ufeff\ufffe",
    "\u202eevil\u202d \u2067צלחת \u0640 عربي",
    "👩‍🍳 çà 𝕬 Z̷̡͇a̵l̴g̶o̸ " + "w" * 400,
)


class Reader(HTMLParser):
    """What an HTML parser finds: elements with their attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """The elements with the names of their attributes."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.linear_gradient("L").resize((640, 400)).convert("RGB").save(path)
    return path


def run(name="mine", **changes) -> Run:
    scores = {"BLEU-4": Interval(0.31, 0.28, 0.34), "CIDEr-D": Interval(1.02, 0.9, 1.1), "length": Interval(9.25)}
    facts = {"checkpoint": "runs/best", "decoding": "beam search, 5 beams"}
    return replace(Run(name, scores, facts, ["METEOR skipped: no java on PATH"], EPOCHS), **changes)


def pictures(count, image=None, names=("mine",)) -> list[Pictured]:
    return [
        Pictured(
            f"{i}.jpg", image, [f"a dish number{i}", "food on a plate"], {n: f"plate {i} of {n}" for n in names},
            {"CIDEr-D": i / 10, "BLEU-4": 0.5},
        )
        for i in range(count)
    ]  # fmt: skip


def page_of(runs, shown, title="Captions evaluated", by="CIDEr-D") -> str:
    return _page(title, runs, shown, by)


def test_the_file_names_no_address_outside_itself(tmp_path, photo):
    path = write_report(tmp_path / "new" / "report.html", "Captions", [run()], pictures(4, photo))
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    links = [
        (name, value) for _, found in reader.elements for name, value in found.items() if name in ("src", "href")
    ]
    assert len(links) > 8
    assert all(value.startswith(("#", "data:")) for _, value in links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", page))


def test_the_policy_knows_just_the_style_and_script_of_the_page(photo):
    page = page_of([run()], pictures(2, photo))
    reader = Reader(page)
    [policy] = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv")]
    for kind in ("style", "script"):
        [code] = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src" not in policy
    inline = [name for _, found in reader.elements for name in found if name.startswith("on") or name == "style"]
    assert inline == []


def test_the_same_evaluation_gives_the_same_file(tmp_path, photo):
    one, other = (write_report(tmp_path / name, "Captions", [run()], pictures(30, photo)) for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_a_report_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "kept").touch()
    with pytest.raises(ClipcapError, match=r"report\.html: cannot be written") as error:
        write_report(tmp_path / "report.html", "Captions", [run()], pictures(1))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["report.html", "kept"]


def test_style_script_and_template_ship_with_the_package():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["clipcap.evaluation.report"]
    files = [
        path.name
        for path in (REPO / "clipcap" / "evaluation" / "report").iterdir()
        if path.is_file() and path.suffix != ".py"
    ]
    assert len(files) >= 3
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


# Words of strangers

words = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1), st.text(string.punctuation, min_size=1))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words, min_size=9, max_size=9))
def test_no_words_change_the_elements_of_the_page(found):
    def page(title, name, score, fact, told, note, caption, reference, image_id):
        one = Run(name, {score: Interval(1, 0, 2)}, {fact: told}, [note], [{"epoch": 1, "a": 2.0, "b_loss": 1.0}])
        two = replace(one, name=f"{name} two", notes=())
        shown = Pictured(image_id, None, [reference], {name: caption, two.name: caption}, {score: 1.0, "other": 0.0})
        return Reader(page_of([one, two], [shown], title, score))

    said = [word if word.strip() else "x" for word in found]
    harmless = [" ".join("x" * len(word.split())) for word in said]  # as many words: charts count them
    (shape, clouds), (expected, _) = split_clouds(page(*said)), split_clouds(page(*harmless))
    assert shape == expected
    assert clouds <= CLOUDS


# A word cloud has an element for each word: its elements are of these kinds, whatever the words.
CLOUDS = {
    ("section", ("id", "aria-label")), ("h2", ()), ("div", ("class",)), ("figure", ()), ("h3", ("dir",)),
    ("svg", ("viewbox", "role", "aria-label", "class")), ("title", ()), ("figcaption", ("dir",)),
    ("text", ("text-anchor", "dominant-baseline", "x", "y", "font-size", "class")),
}  # fmt: skip


def split_clouds(page):
    """(the elements outside of the section of word clouds and its link, the kinds of those inside)."""
    outside, inside, within = [], set(), False
    for (tag, attributes), (_, names) in zip(page.elements, page.shape, strict=True):
        within = attributes.get("id") == "words" if tag == "section" else within
        if attributes.get("href") == "#words":
            outside.pop()  # the item that holds the link
        elif within:
            inside.add((tag, names))
        else:
            outside.append((tag, names))
    return outside, inside


def test_words_are_shown_as_they_are_and_what_cannot_be_seen_by_a_sign():
    one = Pictured("1", None, ["a & b < c", "bell\x07, \ud800 and\nline"], {"mine": "</script><b>5 > 4</b>"}, {})
    text = "\n".join(Reader(page_of([run()], [one])).texts)
    assert "a & b < c" in text and "</script><b>5 > 4</b>" in text
    assert "bell␇, \ufffd and\nline" in text


def test_every_text_of_strangers_has_the_direction_of_its_own_script():
    one = Pictured("1", None, ["צלחת"], {"mine": "عربي"}, {})
    found = Reader(page_of([run()], [one])).elements
    assert [
        tag for tag, attributes in found if attributes.get("class") == "words" and attributes["dir"] == "auto"
    ] == [
        "h3",
        "p",
        "li",
    ]


# Which pictures


@pytest.mark.parametrize("count", [1, 2, 7, 150, 240, 300])
def test_up_to_three_hundred_pictures_are_all_there_best_first(count):
    views = choose_views(pictures(count), "CIDEr-D")
    assert views[ALL] == list(reversed(range(count)))
    assert views["best"] == views[ALL][: min(SHOWN, (count + 1) // 2)]
    assert views.get("worst", []) == list(range(min(SHOWN, count // 2)))
    assert len(views["random"]) == len(set(views["random"])) == min(SHOWN, count)


def test_of_more_pictures_best_worst_and_random_ones_are_there_each_once():
    views = choose_views(pictures(2000), "CIDEr-D")
    assert views["best"] == list(range(1999, 1899, -1)) and views["worst"] == list(range(100))
    assert len(views["random"]) == SHOWN and views["random"] != sorted(views["random"])
    assert sorted(views[ALL]) == sorted({*views["best"], *views["worst"], *views["random"]})
    assert sum(900 <= i < 1100 for i in views["random"]) < 30  # drawn from all, not from the middle
    assert choose_views(pictures(2000), "CIDEr-D") == views


def test_the_page_says_how_many_of_how_many_pictures_it_shows():
    shown = len(choose_views(pictures(700), "CIDEr-D")[ALL])
    text = "".join(Reader(page_of([run()], pictures(700))).texts)
    assert f"{shown} of 700 pictures: the 100 best and worst by CIDEr-D, and 100 drawn at random from all." in text
    assert "20 pictures, sorted by CIDEr-D." in "".join(Reader(page_of([run()], pictures(20))).texts)


def test_pictures_without_a_score_come_last_and_are_neither_best_nor_worst():
    shown = pictures(3)
    shown[0] = replace(shown[0], scores={})
    shown[2] = replace(shown[2], scores={"CIDEr-D": math.nan})
    assert choose_views(shown, "CIDEr-D") == {
        "best": [1],
        "random": choose_views(shown, None)["random"],
        ALL: [1, 0, 2],
    }
    assert set(choose_views(shown, None)) == {"random", ALL}


def test_cider_finds_cider_d_and_an_unknown_score_nothing():
    assert score_named(pictures(2), "CIDEr") == "CIDEr-D"
    assert score_named(pictures(2), "BLEU-4") == "BLEU-4"
    assert score_named(pictures(2), "SPICE") is None
    assert score_named([], "CIDEr") is None


# Pictures in the file


def embedded(page: str) -> list[Image.Image]:
    found = [image["src"] for image in Reader(page).all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in found]


def test_thumbnails_are_small_upright_jpegs_with_the_caption_as_their_text(tmp_path):
    path = tmp_path / "turned.jpg"
    picture = Image.new("RGB", (900, 600), "blue")
    picture.paste("red", (0, 0, 450, 600))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left half comes to the top
    picture.save(path, exif=exif)
    page = page_of([run()], pictures(1, path))
    [shown] = embedded(page)
    assert shown.format == "JPEG" and shown.size == (round(SIDE * 2 / 3), SIDE)
    assert shown.getpixel((100, 20))[0] > 200 and shown.getpixel((100, 300))[2] > 200
    [image] = Reader(page).all("img")
    assert image["alt"] == "plate 0 of mine" and (image["width"], image["height"]) == ("213", "320")


def test_what_was_read_before_is_beside_its_picture_where_that_is_at_hand(tmp_path):
    Image.new("RGB", (600, 400), "red").save(tmp_path / "near.png")
    read = (
        Retrieved("a <red> plate", "0", str(tmp_path / "near.png"), 0.9),
        Retrieved("a lost one", "1", str(tmp_path / "gone.png"), 0.8),
        Retrieved("apple", "", None, 0.7),
    )
    page = page_of([run()], [replace(pictures(1)[0], retrieved=read)])
    [shown] = embedded(page)
    assert shown.size == (SMALL, SMALL * 2 // 3)
    assert all(words in page for words in ("read before", "a &lt;red&gt; plate", "a lost one", "apple"))
    assert "read before" not in page_of([run()], pictures(1))


def test_small_pictures_are_not_blown_up(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    assert embedded(page_of([run()], pictures(1, tmp_path / "small.png")))[0].size == (40, 30)


def test_pictures_that_are_missing_or_damaged_leave_a_placeholder_with_the_reason(tmp_path, photo):
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "empty.jpg").touch()
    places = [None, tmp_path / "gone.jpg", tmp_path, *sorted(tmp_path.glob("*.jpg")), photo]
    shown = [replace(one, image=place) for one, place in zip(pictures(7), places, strict=True)]
    page = page_of([run()], shown)
    reader = Reader(page)
    assert len(reader.all("img")) == 1 and len(reader.all("article")) == 7
    text = "\n".join(reader.texts)
    for reason in ("picture not at hand", "no such file", "is a folder", "not an image", "the file is empty"):
        assert reason in text


# Numbers and charts


def test_scores_stand_with_their_intervals_and_notes_once():
    text = "|".join(Reader(page_of([run("a"), run("b", scores={"BLEU-4": Interval(0.2, 0.1, 0.25)})], [])).texts)
    assert "0.310|0.280 – 0.340" in text and "0.200|0.100 – 0.250" in text
    assert "9.250" in text
    assert text.count("METEOR skipped: no java on PATH") == 1
    assert "|–|" in text.partition("CIDEr-D|")[2].partition("length|")[0]  # the run without that score


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 40), st.booleans())
def test_axes_enclose_their_values_in_few_rising_steps(low, span, most, whole):
    steps = round_steps(low, low + span, most, whole)
    assert steps == sorted(set(steps)) and 2 <= len(steps) <= most + 3
    slack = (steps[1] - steps[0]) * 1e-6
    assert steps[0] <= low + slack and low + span <= steps[-1] + slack
    assert not whole or all(step == round(step) for step in steps)


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=60))
def test_every_length_is_counted_in_the_bin_of_its_own_number(lengths):
    edges = bin_edges(lengths, whole=True)
    found = shares(lengths, edges)
    assert len(found) <= 40 and math.isclose(sum(found), 1)
    for left, right, share in zip(edges, edges[1:], found):
        assert math.isclose(share * len(lengths), sum(left < length < right for length in lengths), abs_tol=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_every_score_is_counted_once(scores):
    assert math.isclose(sum(shares(scores, bin_edges(scores))), 1)


def test_curves_show_each_number_of_each_epoch_and_leave_out_what_is_none():
    epochs = [*EPOCHS, {"epoch": 4, "train_loss": math.nan, "val_loss": math.inf, "cider": None}]
    reader = Reader(page_of([run(epochs=epochs)], []))
    assert len(reader.all("circle")) == 3 * len(EPOCHS)
    labels = [svg["aria-label"] for svg in reader.all("svg") if svg.get("role") == "img"]
    assert "Loss by epoch: validation loss lowest 0.8 at epoch 3" in labels
    assert "CIDEr-D by epoch: highest 1 at epoch 3" in labels
    assert "nan" not in "".join(reader.texts) and "inf" not in "".join(path["d"] for path in reader.all("path"))


def test_bins_say_their_bounds_and_shares_when_pointed_at():
    shown = [
        Pictured(str(i), None, ["one two"], {"references": "a b c"}, {"CIDEr-D": 0.5 + i / 10}) for i in range(10)
    ]
    texts = Reader(page_of([run("references")], shown)).texts  # a run may bear any name
    assert "2: references: 100.0%; references: 0.0%" in texts
    assert "3: references: 0.0%; references: 100.0%" in texts
    assert "0.5 to 0.55: references: 10.0%" in texts


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        ([], []),
        ([run(epochs=(), scores={}, facts={}, notes=())], []),
        ([run(epochs=EPOCHS[:1])], pictures(1)),
        ([run(str(i)) for i in range(8)], pictures(3, names=[str(i) for i in range(8)])),
        ([run()], [Pictured("1", None, [], {"mine": ""}, {})]),
        ([run()], [Pictured("1", None, ["a"], {}, {"CIDEr-D": 0.0})]),
    ],
    ids=["nothing", "no numbers", "one of each", "eight runs", "empty caption", "no caption"],
)
def test_there_is_a_report_of_little_and_of_much(runs, shown):
    reader = Reader(page_of(runs, shown))
    assert len(reader.all("article")) == len(shown)
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


# In a real browser

CUT_OFF = """[...document.querySelectorAll("body *:not(.unseen, .skip)")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""
CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [0, 0, 0];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.getClientRects().length || e.closest("script, title")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(e.closest("svg") ? style.fill : style.color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + " " + walker.currentNode.data]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser):
    """Opens a report; afterwards nothing may have been requested but the file, nor an error said."""
    said, asked, pages = [], [], []

    def opened(path: Path, width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append((page, path.as_uri()))
        return page

    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [uri for _, uri in pages]
    for page, _ in pages:
        page.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, photo) -> Path:
    """A report of two runs in which everybody's words are hostile."""
    names = ("<script>window.ran = 1</script>", "second" * 30)
    shown = [
        Pictured(
            f"{text} {i}",
            photo if i % 2 else None,
            [text, HOSTILE[i - 1]],
            dict.fromkeys(names, text),
            {"CIDEr-D": i, text: 1.5},
        )
        for i, text in enumerate(HOSTILE)
    ]
    runs = [run(name, facts=dict(zip(HOSTILE, reversed(HOSTILE))), notes=HOSTILE) for name in names]
    return write_report(tmp_path_factory.mktemp("hostile") / "report.html", HOSTILE[0], runs, shown)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, photo) -> Path:
    shown = pictures(240, names=("mine", "theirs"))
    shown[0] = replace(
        shown[0], captions={"mine": "Two EGGS, and eggplant", "theirs": "a veggie burger"}, image=photo
    )
    shown[150] = replace(shown[150], references=["一碗米飯和雞蛋", "egg"])
    folder = tmp_path_factory.mktemp("plain")
    return write_report(folder / "report.html", "Captions", [run(), run("theirs")], shown)


def filtered(page, text: str) -> str:
    page.fill("#filter", text)
    return page.inner_text("output")


def test_hostile_words_run_nothing_and_are_all_shown(open_page, hostile):
    page = open_page(hostile)
    page.check("input[value=all]", force=True)
    for word in (*HOSTILE, "script", "<img", '"', "\\", "(", "[", "👩‍🍳"):
        filtered(page, word)
        assert page.locator("mark *").count() == 0
    assert filtered(page, HOSTILE[3]) == f"2 of {len(HOSTILE)} pictures"
    assert set(page.locator("mark").all_inner_texts()) == {HOSTILE[3]}
    filtered(page, "")
    assert page.evaluate("window.ran") is None
    assert page.locator("article").count() == len(HOSTILE)
    assert page.locator("script, iframe").count() == 1
    assert HOSTILE[0] in page.locator("article .caption").all_inner_texts()[-1]


def test_even_smuggled_markup_runs_and_loads_nothing(browser, plain):
    page = browser.new_page()
    page.goto(plain.as_uri())
    listening = socket.create_server(("127.0.0.1", 0))
    page.evaluate("""(port) => {
      window.refused = [];
      addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.ran = 1";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend",
        `<img src="x" onerror="window.ran = 1"><img src="http://127.0.0.1:${port}/x">
        <iframe src="http://127.0.0.1:9/y"></iframe>`);
    }""", listening.getsockname()[1])  # fmt: skip
    page.wait_for_function("refused.length >= 4")
    assert page.evaluate("window.ran") is None
    assert {"script-src-elem", "img-src", "frame-src"} <= set(page.evaluate("refused"))
    listening.settimeout(0.2)
    with pytest.raises(TimeoutError), listening:
        listening.accept()
    page.close()


def test_the_filter_finds_words_in_captions_and_references_and_marks_them(open_page, plain):
    page = open_page(plain)
    assert page.inner_text("output") == "100 of 100 pictures"
    page.check("input[value=all]", force=True)
    assert filtered(page, "  egg ") == "2 of 240 pictures"
    assert page.locator("mark").all_inner_texts() == ["egg", "EGG", "egg"]  # best first; not in veggie
    assert page.locator("fieldset small").all_inner_texts() == [
        "1",
        "1",
        page.inner_text("label:nth-of-type(3) small"),
        "2",
    ]
    assert filtered(page, "theirs 17") == "11 of 240 pictures"  # 17, and 170 to 179
    assert filtered(page, "米飯") == "1 of 240 pictures"
    assert page.locator("mark").all_inner_texts() == ["米飯"]
    assert filtered(page, "two burger") == "1 of 240 pictures"
    assert filtered(page, "nowhere") == "0 of 240 pictures"
    assert page.locator("article").count() == 0
    assert filtered(page, "") == "240 of 240 pictures"
    assert page.locator("mark").count() == 0


def test_views_order_the_pictures(open_page, plain):
    page = open_page(plain)
    names = page.locator("article h3")
    assert names.all_inner_texts() == [f"{i}.jpg" for i in range(239, 139, -1)]
    page.check("input[value=worst]", force=True)
    assert names.all_inner_texts() == [f"{i}.jpg" for i in range(100)]
    page.check("input[value=random]", force=True)
    assert page.inner_text("output") == "100 of 100 pictures"
    page.check("input[value=all]", force=True)
    assert names.count() == 240


def test_everything_is_reached_by_keyboard_with_a_visible_focus(open_page, plain):
    page = open_page(plain)
    outline = "getComputedStyle(document.activeElement.matches('[type=radio]') ? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"  # noqa: E501
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.textContent || document.activeElement.id || document.activeElement.value"
            )
        )
        assert page.evaluate(outline) == "solid", reached
    assert reached[:6] == ["Skip to the pictures", "Scores", "Training", "Distributions", "Words", "Pictures"]
    assert reached[6:8] == ["best", "filter"]
    assert "CIDEr-D" in reached[8]
    page.keyboard.press("Enter")  # unfolds the other scores of the first picture
    assert page.locator("article >> nth=0").locator("dl").is_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("eggs")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "worst"
    assert page.inner_text("output") == "1 of 100 pictures"
    page = open_page(plain)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("scrollY") > 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_width_scrolls_sideways_and_all_text_has_contrast(open_page, hostile, width, scheme):
    page = open_page(hostile, width, 700, scheme)
    page.locator("details").first.evaluate_all("all => all.forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_OFF) == []
    filtered(page, "script")  # marks too
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [pair for pair in found if pair[0] < 4.5] == []


@pytest.mark.parametrize("names", [("mine",), ("mine", "theirs" * 9)])
def test_no_number_of_the_table_is_broken_on_a_phone(open_page, tmp_path, names):
    scores = {name: Interval(0.31, 0.28, 0.34) for name in ("BLEU-4", "RefCLIPScore", "CIDEr-D")}
    scores |= {"copied": Interval(0.04), "vocabulary": Interval(12345)}
    runs = [run(name, scores=scores) for name in names]
    page = open_page(write_report(tmp_path / "report.html", "Captions", runs, pictures(1)), 375, 700)
    heights = page.locator(".scores td :is(b, .quiet), .scores td.quiet").evaluate_all(
        "all => all.filter((one) => one.textContent).map((one) => {"
        " const range = document.createRange(); range.selectNodeContents(one);"
        " return new Set([...range.getClientRects()].map((box) => box.top)).size; })"
    )
    assert heights == [1] * 8 * len(names)
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_pictures_have_texts_and_the_page_a_language(open_page, hostile):
    page = open_page(hostile)
    page.check("input[value=all]", force=True)
    assert page.get_attribute("html", "lang") == "en"
    texts = page.locator("article > img").evaluate_all("all => all.map((one) => one.alt)")
    assert len(texts) == 5 and all(texts)
    assert page.locator("article > img").evaluate_all(
        "all => all.every((one) => one.complete && one.naturalWidth === 320)"
    )


def test_without_script_all_pictures_are_there(browser, plain):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(plain.as_uri())
    assert page.locator("article").count() == 240
    assert not page.locator("#toolbar").is_visible()
    context.close()
