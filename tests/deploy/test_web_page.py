"""The page of one file: opened from the disk in a real browser without a network, it writes Python's captions."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from support.browser import chromium
from support.road import run

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.tidy import tidy
from clipcap.deploy import web_runtime
from clipcap.deploy.onnx_captioner import OnnxCaptioner, open_photo, preprocess
from clipcap.deploy.web_page import web_page
from clipcap.deploy.web_runtime import LIBRARY, VERSION, WASM, load_runtime
from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import DEMO

TEXTS = (
    "a dog , which ca n't swim ( yet ) !",
    "l'été ; « bonjour » !",
    "een hond 's avonds",
    "一 只 狗 , 两 只 猫",
    "犬 は\u3000走る",
    "naïve \u200d 👩\u200d🍳  \t cooks\x07\ufffd it 's 5 % , really",
    "  Ein Hund ist auf dem Tisch . ",
    "собака , которая бежит !",
    "a\u00a0b \u2028 c",
    "",
)


@pytest.fixture(scope="module")
def runtime():
    """onnxruntime-web; tests download nothing."""
    try:
        return load_runtime()
    except ClipcapError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page(exported, runtime, tmp_path_factory):
    """The page, open; and the addresses that it has asked for."""
    path = tmp_path_factory.mktemp("page") / "captioner.html"
    path.write_text(web_page(exported, runtime, "a model <b>"), encoding="utf-8")
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True)
        tab = context.new_page()
        tab.set_default_timeout(90_000)
        asked, faults = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(path.as_uri())
        tab.evaluate("captioner.ready")
        yield tab, asked, faults


def test_the_page_writes_pythons_captions_and_fetches_nothing(page, plates):
    tab, asked, faults = page
    tab.set_input_files("#files", [str(path) for path in plates])
    tab.locator("#photos li").nth(len(plates) - 1).wait_for()
    tab.locator("#copy:not([hidden])").wait_for()
    captions = tab.locator("#photos .caption").all_inner_texts()
    assert captions == Captioner.from_pretrained(DEMO, device="cpu")(plates)
    assert {address.partition(":")[0] for address in asked} <= {"file", "blob"}
    assert faults == []
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert "a model <b>" in tab.inner_text("header")


def test_the_table_to_save_has_a_line_a_caption(page, plates):
    tab, _, _ = page
    tab.click("#clear")
    tab.select_option("#several", "3")
    tab.set_input_files("#files", [str(plates[0])])
    tab.locator("#photos .caption").nth(2).wait_for()
    with tab.expect_download() as download:
        tab.click("#save")
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "image,rank,caption,score" and len(lines) == 4
    best = Captioner.from_pretrained(DEMO, device="cpu").caption([plates[0]], num_captions=3)[0]
    assert lines[1].startswith(f"{plates[0].name},1,") and best[0].text in lines[1].replace('""', '"')


def test_a_file_that_is_no_picture_gets_a_line(page, tmp_path):
    tab, _, faults = page
    tab.click("#clear")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    tab.set_input_files("#files", [str(tmp_path / "broken.jpg")])
    tab.locator("#photos .bad").wait_for()
    assert tab.inner_text("#photos .bad") == "This browser cannot read the file as a picture."
    assert faults == []


def test_pixels_are_pillows_to_the_bit(page, plates, exported):
    tab, _, _ = page
    how = OnnxCaptioner(exported, threads=1).config["preprocess"]
    for path in plates:
        tab.set_input_files("#snap", [])
        handle = tab.evaluate_handle(
            "(bytes) => new File([Uint8Array.from(bytes)], 'photo')", list(path.read_bytes())
        )
        pixels = tab.evaluate("async (file) => Array.from(await captioner.ask('pixels', { file }))", handle)
        expected = preprocess(open_photo(path), how)
        assert np.abs(np.array(pixels).reshape(expected.shape) - expected).max() < 1e-5


def test_texts_are_tidied_as_in_python(page):
    tab, _, _ = page
    found = [tab.evaluate("(text) => captioner.ask('tidy', text)", text) for text in TEXTS]
    assert found == [tidy(text) for text in TEXTS]


def archive(**files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_the_runtime_is_read_from_a_folder_or_an_archive(tmp_path):
    files = {LIBRARY: b"library", WASM: b"wasm"}
    (tmp_path / "package.tgz").write_bytes(archive(**files))
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "package" / "dist" / name).write_bytes(content)
    for place in (tmp_path / "package.tgz", tmp_path, tmp_path / "package", tmp_path / "package" / "dist"):
        found = load_runtime(str(place))
        assert (found.library, found.wasm) == (b"library", b"wasm")


@pytest.mark.parametrize("content", [b"", b"no archive", archive(other=b"x")])
def test_a_damaged_runtime_is_one_line(content, tmp_path):
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(ClipcapError, match=r"is not the \.tgz of npm's onnxruntime-web"):
        load_runtime(str(tmp_path / "x.tgz"))
    with pytest.raises(ClipcapError, match=r"no ort\.wasm"):
        load_runtime(str(tmp_path))


def test_offline_the_way_to_bring_the_runtime_is_named(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install 'clipcap-toolkit[onnx]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "clipcap").mkdir(parents=True)
    (tmp_path / "cache" / "clipcap" / f"onnxruntime-web-{VERSION}.tgz").write_bytes(b"cut off")  # not what it must be
    status, _, err = run(capsys, "export", DEMO, "--out", tmp_path / "x.html")
    assert status == 1 and len(err) == 1 and f"npm pack onnxruntime-web@{VERSION}" in err[0]
    assert web_runtime.cache_folder() == tmp_path / "cache" / "clipcap"
    assert not (tmp_path / "x.html").exists()
