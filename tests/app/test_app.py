"""The web page: in a real browser, over its API, and against those who mean it harm. One server serves all tests."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from urllib.parse import quote, unquote

import pytest
import torch
from PIL import Image
from support.browser import ONE_CLICK_MS, PATIENCE_MS, browser_error, chromium
from support.road import REPO, draw_photos, run, save_captioner, start
from support.towers_small import vision_tower

from clipcap.app import markup, server
from clipcap.app.checkpoints import Checkpoints, further_checkpoints
from clipcap.app.guard import Guard
from clipcap.app.service import CaptionService
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.prompting import open_consensus
from clipcap.clip_gpt.checkpoint import save_clip_gpt
from clipcap.clip_gpt.config import ClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import Layout
from clipcap.demo.plates import write_set
from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.features.config import ParseConfig
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.features.parse import parse
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.runtime.bundled import DEMO

MAX_MB, PLATES = 1, 6
THREE = DecodeConfig(beam=True, num_captions=3)
BLOCKS = dict(
    re.findall(r"^```(sh|py)\n(.*?)^```$", (REPO / "docs" / "guide" / "app.md").read_text(), re.DOTALL | re.MULTILINE)
)


class Page:
    """A running server."""

    def __init__(self, address, photos):
        self.address, self.photos = address, photos
        self.port = int(address.rpartition(":")[2])

    def ask(self, method, path, body=None, **headers):
        """(status, body) of a request, whose path is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def upload(self, name, content):
        """(status, answer) of a file's upload."""
        sign = uuid.uuid4().hex
        head = f'--{sign}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{sign}--\r\n".encode()
        status, answer = self.ask(
            "POST", "/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={sign}"
        )
        return status, json.loads(answer) if status == 200 else answer

    def call(self, api, **values):
        """(event, data) that an end point of the API answers with."""
        status, answer = self.ask(
            "POST", f"/gradio_api/call/v2/{api}", json.dumps(values), Content_Type="application/json"
        )
        assert status == 200, answer
        _, stream = self.ask("GET", f"/gradio_api/call/{api}/{json.loads(answer)['event_id']}")
        event, data = re.findall(r"event: (\w+)\ndata: (.*)", stream)[-1]
        return event, json.loads(data)

    def caption(self, content, name="photo.jpg", **settings):
        """(event, data) of a photo's captions."""
        status, answer = self.upload(name, content)
        assert status == 200, answer
        return self.call("caption", photo=uploaded(answer[0]), **settings)


def uploaded(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained(DEMO, device="cpu")


@pytest.fixture(scope="module")
def page(tmp_path_factory, captioner):
    """The page with the bundled model, an index of six plates, and a CLIP-GPT that has learnt nothing yet."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'clipcap-toolkit[app]'")
    folder = tmp_path_factory.mktemp("page")
    photos = sorted((write_set(folder / "plates", PLATES, seed=1) / "dataset").iterdir())
    parse("food", ParseConfig.of(data_path=str(folder / "plates"), out=str(folder / "index"), clip_model_type=DEMO))
    encoder, lm = captioner.encoder, load_lm(DEMO)
    config = ClipGptConfig(clip_dim=encoder.dim, lm=DEMO, encoder=DEMO, encoder_weights_id=encoder.weights_id)
    save_clip_gpt(ClipGPT(config, lm, Layout(load_tokenizer(DEMO))), load_tokenizer(DEMO), folder / "clip_gpt")
    process = start(
        "app", "--index", folder / "index", "--clip_gpt", folder / "clip_gpt", "--port", 0,
        "--max_mb", MAX_MB, "--max_megapixels", 1, "--max_photos", 6, TMPDIR=str(folder),
    )  # fmt: skip
    yield Page(process.stdout.readline().strip(), photos)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=90)
    assert process.returncode == 0 and "stopped" in messages.splitlines()
    wrong = re.findall(r"^[\w.]*(?:Error|Exception): .*", messages, re.MULTILINE)
    assert set(wrong) <= {"gradio.exceptions.Error: 'Value 1000 is greater than maximum value 10.'"}, messages
    assert not list(folder.glob("clipcap-app-*")), "uploads are left behind"


def test_a_browser_uploads_captions_and_samples_and_asks_nobody_else(page, captioner):
    asked, problems = [], []
    with chromium() as browser:
        view = browser.new_page()
        view.on("request", lambda request: asked.append(request))
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(page.address, wait_until="networkidle")  # its parts are loaded one by one
        view.locator("#caption_photo input[type=file]").set_input_files(page.photos[0])
        captions = view.locator(".captions li p")
        captions.first.wait_for()
        by_beam = captions.all_inner_texts()
        assert by_beam == [c.text for c in captioner.caption([page.photos[0]], THREE)[0]]
        assert "CLIP score" in view.locator(".captions li").first.inner_text()

        view.get_by_role("button", name="Settings").first.click()
        view.get_by_label("sampling").first.check()
        view.get_by_label("number input for Temperature").first.fill("2")
        view.get_by_role("button", name="Write captions").click()
        view.wait_for_function("old => document.querySelector('.captions p')?.innerText !== old", arg=by_beam[0])
        joined = [request.post_data_json for request in asked if request.url.endswith("queue/join?")]
        assert joined[-1]["data"][1:4] == ["sampling", 5, 2] and joined[0]["data"][1] == "beam search"

        view.get_by_role("tab", name="Prefix").click()
        view.locator("#explain_photo input[type=file]").set_input_files(page.photos[0])
        view.locator(".words li").nth(captioner.model.config.prefix_length - 1).wait_for()
        view.get_by_role("tab", name="Search").click()
        view.locator("#search_words").get_by_role("textbox").fill("a plate of pizza")
        view.keyboard.press("Enter")
        view.locator(".pictures li").nth(5).wait_for()
        assert view.locator(".pictures img").count() == PLATES
        view.get_by_role("button", name="Or search by a picture").click()
        view.locator("#search_photo input[type=file]").set_input_files(page.photos[1])
        view.wait_for_function("() => document.querySelector('.pictures li')?.innerText.includes('1.00')")
        view.get_by_role("tab", name="Imagine").click()
        view.locator("#imagine_words").get_by_role("textbox").fill("two eggs")
        view.get_by_role("tabpanel").get_by_role("button", name="Search").last.click()
        view.wait_for_function("() => document.querySelectorAll('.pictures img').length === 12")
    assert problems == []
    assert {request.url for request in asked if not request.url.startswith((page.address, "data:", "blob:"))} == set()


def open_tab(view, name, inside):
    """Choose a tab until what is inside of it shows.

    While the page is drawn and measured, a tab comes, and goes behind the button of further tabs where it is narrow.
    """
    tab, further = view.get_by_role("tab", name=name), view.locator(".overflow-menu button").first
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not view.locator(inside).is_visible():
        assert time.monotonic() < deadline, f"the tab {name} does not open"
        with suppress(browser_error()):  # it has just gone to the other place
            if tab.is_visible():
                tab.click(timeout=ONE_CLICK_MS)
            elif further.is_visible():
                further.click(timeout=ONE_CLICK_MS)
                view.locator(".overflow-dropdown button", has_text=name).click(timeout=ONE_CLICK_MS)
        view.wait_for_timeout(100)


@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_classifies_a_photo_and_draws_a_sentence(page, width):
    problems = []
    with chromium() as browser:
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(page.address, wait_until="networkidle")  # its parts are loaded one by one
        for name in ("Classify", "Draw"):
            open_tab(view, name, f"#{name.lower()}_{'photo' if name == 'Classify' else 'text'}")
            if name == "Classify":
                view.locator("#classify_photo input[type=file]").set_input_files(page.photos[0])
                view.locator(".labels li").nth(6).wait_for()
                shares = [float(text.removesuffix(" %")) for text in view.locator(".labels small").all_inner_texts()]
                assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=1)
            else:
                view.locator("#draw_text textarea").fill("nothing of this\ntwo eggs on a plate")
                view.get_by_role("button", name="Draw", exact=True).click()
                view.locator(".drawn img").wait_for()
                assert view.locator(".drawn figcaption").inner_text() == "two eggs on a plate"
                assert view.locator(".drawn img").get_attribute("src").startswith("data:image/gif;base64,")
            if folder := os.environ.get("CLIPCAP_SCREENSHOTS"):
                view.screenshot(path=f"{folder}/{name.lower()}_{width}.png")
            assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert problems == []


def test_a_browser_captions_a_batch_and_says_what_is_wrong_with_a_file(page, tmp_path):
    broken, formula = tmp_path / "letter.jpg", tmp_path / "-1+1.jpg"
    broken.write_text("Dear Sir or Madam")
    formula.write_bytes(page.photos[3].read_bytes())
    with chromium() as browser:
        view = browser.new_page()
        view.goto(page.address, wait_until="networkidle")  # its parts are loaded one by one
        view.locator("#caption_photo input[type=file]").set_input_files(broken)
        view.get_by_text("letter.jpg: not an image").first.wait_for()
        torn = view.locator("#caption_photo img")
        assert "cannot be shown" in torn.evaluate("image => getComputedStyle(image, '::before').content")

        view.get_by_role("tab", name="Batch").click()
        view.locator("#many_photos input[type=file]").set_input_files([*page.photos[:3], broken, formula])
        view.locator("#many_photos a").first.wait_for()  # uploaded
        view.get_by_role("button", name="Caption all").click()
        view.locator(".photos li").nth(4).wait_for()
        assert "not an image" in view.locator(".photos li.bad").inner_text()
        with view.expect_download() as download:
            view.locator("#many_csv a").first.click()
        rows = list(csv.DictReader(download.value.path().read_text(encoding="utf-8").splitlines()))
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "'-1+1.jpg"]
    assert all(row["caption"] and float(row["logprob"]) < 0 and row["clip_score"] for row in rows)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_edits_captions_and_saves_a_training_set_that_parse_reads(page, captioner, width, tmp_path):
    problems = []
    [plain] = captioner([page.photos[2]])
    mine = ["two “big” <figs>", "a plate’s worth"]
    again = tmp_path / "elsewhere" / page.photos[2].name  # another photo of the same name
    again.parent.mkdir()
    again.write_bytes(page.photos[4].read_bytes())
    with chromium() as browser:
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(page.address, wait_until="networkidle")  # its parts are loaded one by one
        view.get_by_role("tab", name="Batch").click()
        view.locator("#many_photos input[type=file]").set_input_files([*page.photos[:3], again])
        view.locator("#many_photos a").nth(3).wait_for()  # uploaded
        view.get_by_role("button", name="Caption all").click()
        view.locator(".editable li").nth(3).wait_for()
        view.get_by_label(f"Caption of {page.photos[0].name}").fill("\n\n".join(mine))
        view.get_by_label("Keep").nth(1).focus()
        view.keyboard.press("Space")
        view.get_by_role("button", name="Save the edited captions").press("Enter")
        view.locator("#many_set a").first.wait_for()
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if folder := os.environ.get("CLIPCAP_SCREENSHOTS"):
            view.screenshot(path=f"{folder}/edit_{width}.png", full_page=True)
        with view.expect_download() as download:
            view.locator("#many_set a").first.click()
        with zipfile.ZipFile(download.value.path()) as file:
            file.extractall(tmp_path / "mine")
        view.get_by_label("Keep").nth(0).uncheck()
        view.get_by_label("Keep").nth(2).uncheck()
        view.get_by_label("Keep").nth(3).uncheck()
        view.get_by_role("button", name="Save the edited captions").click()
        view.get_by_text("no caption to save").first.wait_for()
    assert problems == []
    photos = {path.name: path.read_bytes() for path in (tmp_path / "mine").glob("*.jpg")}
    assert photos == {
        "0.jpg": page.photos[0].read_bytes(), "2.jpg": page.photos[2].read_bytes(),
        "2-2.jpg": page.photos[4].read_bytes(),
    }  # fmt: skip
    parse("custom", ParseConfig.of(data_path=str(tmp_path / "mine"), out=str(tmp_path / "set"), clip_model_type=DEMO))
    captions = captions_by_image(read_features(str(tmp_path / "set")))
    assert captions["0.jpg"] == mine and captions["2.jpg"] == [plain]


def test_captions_of_no_photo_are_not_saved(page):
    _, [path] = page.upload("photo.jpg", page.photos[0].read_bytes())
    photos = [uploaded(path)]
    for captions, reason in (
        ([{"image": "other.jpg", "caption": "two figs"}], "other.jpg is not among the photos"),
        ([{"image": "photo.jpg", "caption": "a"}, {"image": "photo.jpg", "caption": "b"}], "not among the photos"),
        ([{"image": "photo.jpg", "caption": " \n "}], "no caption to save"),
        ([{"image": "photo.jpg"}], "each row is"),
        (["photo.jpg"], "each row is"),
        ([], "no caption to save"),
    ):
        event, error = page.call("training_set", photos=photos, captions=captions)
        assert event == "error" and reason in error["error"], captions


@pytest.mark.parametrize("language", ["sh", "py"])
def test_the_examples_of_the_readme_call_the_api(page, captioner, language, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(page.photos[0].read_bytes())
    code = BLOCKS[language].replace("http://127.0.0.1:7860", page.address)
    assert page.address in code
    program = ["bash", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [expected, *_] = captioner([tmp_path / "photo.jpg"])
    assert expected in (
        json.loads(done.stdout.rpartition("data: ")[2])[0][0]["caption"] if language == "sh" else done.stdout
    )


def test_a_call_of_an_older_client_lacks_later_settings(page):
    photo = page.photos[0].read_bytes()
    _, [path] = page.upload("photo.jpg", photo)
    body = json.dumps({"data": [uploaded(path), "beam search", 5, 1, 0.8, 2, 60, "log-probability"]})
    status, answer = page.ask("POST", "/gradio_api/call/caption", body, Content_Type="application/json")
    assert status == 200, answer
    _, stream = page.ask("GET", f"/gradio_api/call/caption/{json.loads(answer)['event_id']}")
    [rows] = json.loads(re.findall(r"event: complete\ndata: (.*)", stream)[-1])
    _, [expected] = page.caption(photo, num_captions=2, max_tokens=60)
    assert [row["caption"] for row in rows] == [row["caption"] for row in expected]
    status, answer = page.ask("POST", "/gradio_api/call/caption", '{"data": []}', Content_Type="application/json")
    assert status == 422 and "0 values, expected 10" in answer


def test_four_users_at_once_get_their_own_captions(page):
    photos = [path.read_bytes() for path in page.photos[:4]]
    alone = [page.caption(photo) for photo in photos]
    with ThreadPoolExecutor(4) as users:
        together = list(users.map(page.caption, photos))
    assert together == alone and len({str(answer) for answer in alone}) == 4
    assert {event for event, _ in alone} == {"complete"}


def test_at_temperature_nought_there_is_one_caption_and_wild_ones_differ_every_time(page, captioner):
    photo = page.photos[0].read_bytes()
    greedy, wild = ({"decoding": "sampling", "temperature": t, "num_captions": 10} for t in (0, 2))
    for best_by in ("log-probability", "CLIP score"):
        event, [[row]] = page.caption(photo, best_by=best_by, **greedy)
        assert event == "complete" and row["caption"] == captioner.caption([photo], DecodeConfig(temp=0))[0][0].text
    (event, [one]), (_, [other]) = page.caption(photo, **wild), page.caption(photo, **wild)
    assert event == "complete" and len(one) == len(other) == 10 and one != other


def png_header(width, height):
    """A PNG that says its size, and holds no pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "not an image"),
        (b"", "0 bytes"),
        (png_header(20_000, 20_000), "pixels"),  # more than Pillow itself takes
        (png_header(1_100, 1_000), "more than 1,000,000 pixels"),
    ],
    ids=["text", "empty", "bomb", "large"],
)
def test_a_photo_that_cannot_be_read_gets_one_line_without_folders(page, content, reason):
    event, error = page.caption(content, "<b>holiday.png")
    assert event == "error"
    assert reason in error["error"] and "\n" not in error["error"]
    assert "/tmp" not in error["error"] and "<b>" not in error["error"]


def test_what_is_too_much_is_refused(page):
    assert page.upload("large.png", bytes(MAX_MB * 1_100_000))[0] == 413
    assert page.ask("POST", "/gradio_api/queue/join", "[" + "1," * 600_000 + "1]")[0] == 413
    status, [path] = page.upload("photo.jpg", page.photos[0].read_bytes())
    event, error = page.call("caption_many", photos=[uploaded(path)] * 7)
    assert (status, event) == (200, "error") and "at most 6" in error["error"]
    event, error = page.call("search_by_picture", photo=uploaded(page.upload("text.jpg", b"no picture")[1][0]))
    assert event == "error" and "text.jpg" in error["error"] and "/tmp" not in error["error"]
    event, error = page.call("search", words="x" * 2000)
    assert event == "error" and "at most 1,000" in error["error"]
    assert page.caption(page.photos[0].read_bytes(), num_captions=1000)[0] == "error"


@pytest.mark.parametrize("climb", ["", "/..", "/../../../../../..", "/x/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e"])
def test_files_outside_of_the_page_are_out_of_reach(page, climb, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(page.photos[0].read_bytes())
    _, [mine] = page.upload("photo.jpg", page.photos[0].read_bytes())
    folder = str(Path(mine).parent)
    assert page.ask("GET", "/gradio_api/file=" + quote(mine))[0] == 200
    for path in (f"{folder if climb else ''}{climb}{secret}", f"{folder if climb else ''}{climb}/etc/passwd"):
        assert page.ask("GET", "/gradio_api/file=" + path)[0] in (403, 404)
        assert page.ask("GET", "/" + path.lstrip("/"))[0] == 404
        asked = json.dumps({"photo": uploaded(unquote(path))})
        assert page.ask("POST", "/gradio_api/call/v2/caption", asked, Content_Type="application/json")[0] in (
            403,
            404,
        )
    assert page.ask("GET", f"/static/{climb}/etc/passwd")[0] in (403, 404)
    assert page.ask("GET", f"/assets/{climb}/etc/passwd")[0] in (403, 404)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}/", "https://example.com/a.png", "file:///etc/passwd", "//host/a"]
)
def test_nothing_is_fetched_for_anybody(page, address):
    address = address.format(port=page.port)
    assert page.ask("GET", "/gradio_api/file=" + address)[0] == 403
    assert page.ask("GET", "/gradio_api/proxy=" + address)[0] == 404
    asked = json.dumps({"photo": {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}})
    status, answer = page.ask("POST", "/gradio_api/call/v2/caption", asked, Content_Type="application/json")
    assert status == 403 and "uploaded" in answer


def test_pages_elsewhere_can_neither_read_nor_write(page):
    assert page.ask("GET", "/")[0] == 200
    assert page.ask("GET", "/", Host=f"localhost:{page.port}")[0] == 200
    assert page.ask("GET", "/", Host=f"evil.example:{page.port}")[0] == 403  # a name that was bent to 127.0.0.1
    assert page.ask("POST", "/gradio_api/upload", b"", Sec_Fetch_Site="cross-site")[0] == 403


@pytest.mark.parametrize(
    "path", ["/monitoring", "/gradio_api/runs", "/gradio_api/vibe-code", "/gradio_api/deep_link", "/docs"]
)
def test_what_the_page_does_not_need_is_not_there(page, path):
    assert page.ask("GET", path)[0] == 404


def test_the_page_names_no_place_elsewhere_to_load_from(page):
    _, body = page.ask("GET", "/")
    loaded = re.findall(r"<(?:script|link|iframe|img)\b[^>]*?(?:src|href)=\"([^\"]+)", body)
    assert loaded and not [place for place in loaded if "//" in place]
    _, style = page.ask("GET", "/theme.css")
    assert "//" not in style.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nobody fetches


def test_captions_names_and_words_are_text_not_html():
    evil = "<script>alert(1)</script>${alert(2)}{{evil}}"
    scores = {"caption": evil, "logprob": -1.0, "clip_score": 0.2}
    shown = [
        markup.captions([scores]),
        markup.photos([{"image": evil, "thumbnail": "data:,", **scores}, {"image": evil, "error": evil}]),
        markup.words([{"position": 1, "words": [{"word": evil, "cosine": 0.5}]}]),
        markup.pictures([{"rank": 1, "score": 0.5, "image_id": evil, "caption": evil, "thumbnail": None}]),
    ]
    assert all("&lt;script&gt;" in text and "<script" not in text for text in shown)


def test_the_best_caption_is_that_of_the_chosen_score(captioner, tmp_path):
    service = CaptionService(captioner, 10**6, Lock())
    [photo] = draw_photos(tmp_path, 1)
    config = DecodeConfig(beam=True, beam_size=5, num_captions=5)
    likely, fitting = service.caption(photo, config), service.caption(photo, replace(config, rerank="clip"))
    assert [row["caption"] for row in likely] == [c.text for c in captioner.caption([photo], config)[0]]
    assert [row["clip_score"] for row in fitting] == sorted((row["clip_score"] for row in likely), reverse=True)


def test_captions_chosen_by_those_of_similar_photos_stay_in_that_order(captioner, tmp_path):
    [photo] = draw_photos(tmp_path, 1)
    said = Captioner(captioner.model, captioner.tokenizer, captioner.encoder, "cpu")
    seen = captioner.encoder.encode_images(captioner.open(photo)[None])  # [1, D]
    noise = 0.3 * seen.std() * torch.randn(20, captioner.encoder.dim)  # else they would be the photo itself
    vectors = torch.cat([seen + noise, noise - seen])  # of like photos, and of photos of other things
    beams = said.caption([photo], DecodeConfig(beam=True, num_captions=5))[0]
    texts = [f"{text} {number}" for text in (beams[-1].text, "two dogs run over grass") for number in range(20)]
    write_features(
        tmp_path / "said.pkl", embeddings=vectors, image_ids=texts, image_paths=[None] * 40,
        captions=[(text,) for text in texts], meta=FeatureMeta(encoder=captioner.model.config.encoder),
    )  # fmt: skip
    said.consensus = open_consensus(captioner.model.config, tmp_path / "said.pkl")
    how = DecodeConfig(beam=True, beam_size=5, num_captions=5, rerank="consensus")
    rows = CaptionService(said, 10**6, Lock()).caption(photo, how)
    assert [row["caption"] for row in rows] == [c.text for c in said.caption([photo], how)[0]]
    assert rows[0]["caption"] == beams[-1].text  # the least likely, which others have said
    assert all(row["clip_score"] is not None for row in rows)


def test_an_encoder_without_a_text_tower_captions_without_its_scores(lm_folder, tmp_path):
    network = f"hf:{vision_tower(tmp_path / 'tower', 'resnet')}"
    captioner = Captioner.from_pretrained(save_captioner(tmp_path / "c", lm_folder, network), device="cpu")
    [photo] = draw_photos(tmp_path, 1)
    service = CaptionService(captioner, 10**6, Lock())
    rows = service.caption(photo, DecodeConfig(beam=True, num_captions=2))
    [direct] = captioner.caption([photo], num_captions=2, beam=True)
    assert [row["caption"] for row in rows] == [caption.text for caption in direct]
    assert [row["clip_score"] for row in rows] == [None, None] and "CLIP score" not in markup.captions(rows)
    assert service.caption_many([photo], DecodeConfig(), lambda count: None)[0][0]["clip_score"] is None
    with pytest.raises(ClipcapError, match="has no text tower"):
        service.caption(photo, DecodeConfig(beam=True, rerank="clip"))


def test_a_photo_is_turned_upright_once(captioner, tmp_path):
    [upright] = draw_photos(tmp_path, 1)
    lying = tmp_path / "lying.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    Image.open(upright).transpose(Image.Transpose.ROTATE_90).save(lying, exif=exif)
    service = CaptionService(captioner, 10**6, Lock())
    assert service.explain(lying, 3) == service.explain(upright, 3)


def test_old_files_go_and_examples_and_new_files_stay(tmp_path):
    now = time.time()
    for name in ("examples/plate.jpg", "old/upload.png", "mixed/old.png", "mixed/new.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        if "new" not in name:
            os.utime(path, (now - 100, now - 100))
    for folder in ("examples", "old", "mixed"):
        os.utime(tmp_path / folder, (now - 100, now - 100))
    for _ in range(2):  # a folder counts as new when something in it was just removed
        server.tidy(tmp_path, now - 50)
        os.utime(tmp_path / "old", (now - 100, now - 100)) if (tmp_path / "old").exists() else None
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert kept == {"examples", "examples/plate.jpg", "mixed", "mixed/new.png"}


def test_an_upload_that_never_ends_is_broken_off():
    chunks = [{"type": "http.request", "body": bytes(400), "more_body": True}] * 5
    read, sent = [], []

    async def receive():
        read.append(400)
        return chunks.pop()

    async def application(scope, receive, send):
        while True:
            await receive()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}
    guard = Guard(application, Path("/"), "0.0.0.0", max_upload=1000)
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 413 and sum(read) == 1200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", 70000), "--port must lie between 0 and 65535"),
        (("--max_mb", 0), "--max_mb must be at least 1"),
        (("--load_pt", "nowhere"), "nowhere"),
        (("--host", "256.0.0.1"), "--host 256.0.0.1"),
        (("--clip_gpt", "somewhere"), "--clip_gpt needs --index"),
    ],
)
def test_mistakes_are_said_in_one_line(capsys, flags, message):
    status, out, err = run(capsys, "app", "--port", 0, *flags)
    assert (status, out, len(err)) == (1, [], 1) and message in err[0]


def test_a_port_that_is_taken_is_said_in_one_line(capsys, page):
    status, _, [line] = run(capsys, "app", "--port", page.port)
    assert status == 1 and f"--port {page.port}: cannot listen" in line


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(capsys, "app", "--port", 0)[2] == [
        "clipcap: error: the web page needs the gradio package: pip install 'clipcap-toolkit[app]'"
    ]


def test_the_tabs_and_examples_of_the_page_are_reached_by_keyboard_alone(page):
    chosen = "document.activeElement.getAttribute('aria-selected') === 'true' && document.activeElement.innerText"
    with chromium() as browser:
        view = browser.new_page(viewport={"width": 1280, "height": 900})
        view.goto(page.address, wait_until="networkidle")
        view.get_by_role("button", name="Example 1").first.wait_for()
        view.keyboard.press("Tab")
        first = view.evaluate("document.activeElement.innerText")
        walked = []
        while not walked or walked[-1] != first:
            view.keyboard.press("ArrowRight")
            walked.append(view.evaluate(chosen))
        assert walked == [*view.get_by_role("tab").all_inner_texts()[1:], first]
        view.keyboard.press("End")
        assert view.evaluate(chosen) == walked[-2]
        view.keyboard.press("Home")
        assert view.evaluate(chosen) == first
        for _ in range(40):
            view.keyboard.press("Tab")
            if view.evaluate("document.activeElement.getAttribute('aria-label')") == "Example 1":
                break
        view.keyboard.press("Enter")
        view.locator(".captions li").first.wait_for()


def test_a_browser_is_told_what_to_choose_and_copies_counts_and_begins_captions(page, captioner):
    with chromium() as browser:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        view = context.new_page()
        view.set_default_timeout(90_000)
        view.goto(page.address, wait_until="networkidle")
        view.get_by_role("button", name="Write captions").click()
        view.get_by_text("Choose a photo: its captions appear here.").wait_for()
        view.locator("#caption_photo input[type=file]").set_input_files(page.photos[0])
        first = view.locator(".captions li").first
        first.wait_for()
        assert re.search(r"certainty \d+ % · CLIP score", " · ".join(first.locator("small span").all_inner_texts()))
        first.get_by_role("button", name="Copy").focus()
        view.keyboard.press("Enter")  # by keyboard alone
        first.get_by_text("Copied").wait_for()
        assert view.evaluate("navigator.clipboard.readText()") == first.locator("p").inner_text()

        view.get_by_role("button", name="Settings").first.click()
        view.locator(".begins textarea, .begins input").first.fill("two eggs")
        view.get_by_role("button", name="Write captions").click()
        view.wait_for_function("() => document.querySelector('.captions p')?.innerText.startsWith('two eggs')")
        assert not view.get_by_label("Checkpoint").first.is_visible()  # there is one alone

        view.get_by_role("tab", name="Batch").click()
        view.locator("#many_photos input[type=file]").set_input_files(page.photos[:3])
        view.get_by_text("3 photos chosen").wait_for()
        view.get_by_role("button", name="Caption all").click()
        view.get_by_text("3 photos captioned").wait_for()
        with view.expect_download() as download:
            view.locator("#many_texts a").first.click()
        with zipfile.ZipFile(download.value.path()) as texts:
            written = {name: texts.read(name).decode() for name in texts.namelist()}
    assert written == {f"{p.stem}.txt": captioner([p])[0] + "\n" for p in page.photos[:3]}


def test_captions_begin_with_given_words_over_the_api(page):
    photo = page.photos[0].read_bytes()
    event, [rows] = page.caption(photo, begins_with="two eggs")
    assert event == "complete" and all(row["caption"].startswith("two eggs") for row in rows)
    assert page.caption(photo, begins_with="x" * 300)[0] == "error"


def test_the_checkpoints_of_a_run_folder_are_loaded_when_chosen(captioner, tmp_path):
    for name in ("clipcap-best", "clipcap-000"):
        captioner.save_pretrained(tmp_path / name)
    name, others = further_checkpoints(str(tmp_path))
    assert name == "clipcap-best" and list(others) == ["clipcap-000"]
    assert further_checkpoints(None) == ("", {}) and further_checkpoints(str(tmp_path / "clipcap-000")) == ("", {})
    loaded = []

    def load(folder):
        loaded.append(folder.name)
        return CaptionService(Captioner.from_pretrained(folder, device="cpu"), 1_000_000, Lock())

    first = CaptionService(captioner, 1_000_000, Lock())
    checkpoints = Checkpoints(first, others, load, name)
    assert checkpoints.service(None) is checkpoints.service("clipcap-best") is first and loaded == []
    other = checkpoints.service("clipcap-000")
    assert other is checkpoints.service("clipcap-000") and loaded == ["clipcap-000"]
    with pytest.raises(ClipcapError, match="no checkpoint 'elsewhere': choose one of clipcap-best, clipcap-000"):
        checkpoints.service("elsewhere")
