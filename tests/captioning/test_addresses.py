"""Photos by http address and from the standard input: in Python and on the command line."""

from __future__ import annotations

import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from support.road import draw_photos, run, save_captioner

from clipcap.captioning.captioner import Captioner
from clipcap.images.read import ImageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("checkpoint") / "run", lm_folder, clip_file)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photos"), 1)[0]


@pytest.fixture
def site(photo, monkeypatch):
    """The address of a site with the photo at /photo.png."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            content = photo.read_bytes()
            self.send_response(200 if self.path == "/photo.png" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def standard_input(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_an_address_is_captioned_as_the_file_is(site, photo, checkpoint, capsys):
    captioner = Captioner.from_pretrained(checkpoint, device="cpu")
    expected = captioner(photo)
    assert captioner(f"{site}/photo.png") == expected
    assert captioner([photo, f"{site}/photo.png"]) == [expected] * 2
    status, out, _ = run(capsys, "predict", "--load_pt", checkpoint, "--img", photo, f"{site}/photo.png")
    assert status == 0 and out == [f"{photo}\t{expected}", f"{site}/photo.png\t{expected}"]


def test_what_is_not_there_is_skipped_by_its_address(site, photo, checkpoint, capsys):
    with pytest.raises(ImageError, match=r"/gone\.png: cannot be downloaded \(HTTP 404\)"):
        Captioner.from_pretrained(checkpoint, device="cpu")(f"{site}/gone.png")
    status, out, err = run(capsys, "predict", "--load_pt", checkpoint, "--img", f"{site}/gone.png", photo)
    assert status == 1 and len(out) == 1
    assert f"warning: skipped {site}/gone.png: cannot be downloaded (HTTP 404)" in err


def test_offline_nothing_is_asked_for(checkpoint, capsys):
    status, out, err = run(capsys, "predict", "--load_pt", checkpoint, "--img", "https://photos.example/a.jpg")
    assert (status, out) == (1, []) and "HF_HUB_OFFLINE is set" in err[-1]


def test_the_standard_input_is_a_photo(photo, checkpoint, capsys, monkeypatch):
    standard_input(monkeypatch, photo.read_bytes())
    status, out, _ = run(capsys, "predict", "--load_pt", checkpoint, "--img", "-")
    assert status == 0 and out == [Captioner.from_pretrained(checkpoint, device="cpu")(photo)]


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"no photo", "-: not an image")])
def test_a_standard_input_without_a_photo_is_one_line(content, said, checkpoint, capsys, monkeypatch):
    standard_input(monkeypatch, content)
    status, out, err = run(capsys, "predict", "--load_pt", checkpoint, "--img", "-")
    assert (status, out) == (1, []) and said in err[-1]


def test_text_files_beside_an_address_are_refused(checkpoint, capsys):
    words = ("--img", "http://photos.example/a.jpg", "--sidecar")
    status, _, err = run(capsys, "predict", "--load_pt", checkpoint, *words)
    assert status == 1 and "no text fits beside it" in err[-1]
