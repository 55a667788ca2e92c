"""The fallback downloader against a real server that also fails, lies, dawdles and moves things."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from clipcap.errors import ClipcapError
from clipcap.images.read import open_image
from clipcap.sources import http_client
from clipcap.sources.conceptual import FAILURES_FILE, FailureLog, known_failures
from clipcap.sources.config import SourceConfig
from clipcap.sources.download import Summary, fetch_missing
from clipcap.sources.readers import READERS


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "JPEG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path, and keeps count of who asked for what."""

    def do_GET(self):
        site = self.server
        with site.lock:
            site.asked[self.path] += 1
            site.agents.add(self.headers["User-Agent"])
            self.counted = 1
            site.open_now += 1
            site.most_open = max(site.most_open, site.open_now)
        try:
            getattr(self, self.path.split("/")[1])()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client hung up, as it should on some of these
        finally:
            self.leave()

    def leave(self):
        """Stop counting this connection: before the last byte goes out, since the client may be faster than we."""
        with self.server.lock:
            self.server.open_now -= self.counted
            self.counted = 0

    def log_message(self, *arguments):
        pass

    def answer(self, code=200, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.leave()
        self.end_headers()
        self.wfile.write(body)

    def good(self):
        time.sleep(0.02)
        self.answer(body=jpeg())

    def missing(self):
        self.answer(404)

    def page(self):
        self.answer(body=b"<html>gone, but we say 200</html>", Content_Type="text/html")

    def second_try(self):
        first = self.server.asked[self.path] == 1
        self.answer(503, Retry_After="0") if first else self.answer(body=jpeg())

    def down(self):
        self.answer(503)

    def silent(self):
        time.sleep(1.5)

    def dripping(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"\xff")
            time.sleep(0.1)

    def cut(self):
        self.answer(body=jpeg()[:100], Content_Length="5000")

    def huge(self):
        self.answer(Content_Length=str(http_client.MAX_BYTES + 1))

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(2**16))

    def moved(self):
        self.answer(302, Location="/good/after-a-move.jpg")

    def to_file(self):
        self.answer(302, Location="file:///etc/passwd")

    def to_ftp(self):
        self.answer(302, Location="ftp://127.0.0.1/x.jpg")

    def private(self):
        self.answer(body=jpeg(), X_Robots_Tag="noai, noimageai")


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.agents, server.lock = Counter(), set(), threading.Lock()
    server.open_now = server.most_open = 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def download(site, tmp_path):
    """Writes a TSV of the URLs and downloads it with short pauses; returns the summary."""
    folder = tmp_path / "images"

    def run(*urls: str, **options) -> Summary:
        lines = [f"caption {i}\t{url if ':' in url else site.url + url}\n" for i, url in enumerate(urls)]
        (tmp_path / "images.tsv").write_text("".join(lines))
        settings = {"threads": 8, "timeout_s": 0.4, "retries": 1, "backoff_s": 0.01, **options}
        return fetch_missing(tmp_path / "images.tsv", folder, **settings)

    run.folder = folder
    return run


def test_images_arrive_under_their_row_number_and_say_who_asks(site, download):
    assert download(*(f"/good/{i}.jpg" for i in range(12))) == Summary(12, 0, 0, 0, 0)
    assert sorted(path.name for path in download.folder.glob("*.jpg*")) == [f"{i:08d}.jpg" for i in range(12)]
    assert open_image(download.folder / "00000011.jpg").size == (32, 32)
    assert site.agents == {http_client.USER_AGENT}


def test_a_second_run_asks_for_nothing_it_has_or_knows_to_be_gone(site, download):
    urls = ["/good/a.jpg", "/missing/b.jpg", "/page/c.jpg", "/good/a.jpg"]
    assert download(*urls) == Summary(fetched=2, present=0, gone=2, known_gone=0, failed=0)
    assert site.asked == {"/good/a.jpg": 1, "/missing/b.jpg": 1, "/page/c.jpg": 1}
    assert download(*urls) == Summary(fetched=0, present=2, gone=0, known_gone=2, failed=0)
    assert sum(site.asked.values()) == 3
    assert set(known_failures(download.folder)) == {1, 2}


def test_what_was_there_before_is_copied_to_a_new_row_of_the_same_url(site, download):
    download("/good/a.jpg")
    assert download("/good/a.jpg", "/good/a.jpg") == Summary(1, 1, 0, 0, 0)
    assert site.asked == {"/good/a.jpg": 1}


def test_failures_that_may_pass_are_retried_now_and_in_the_next_run(site, download):
    assert download("/second_try/a.jpg", "/down/b.jpg", retries=2) == Summary(1, 0, 0, 0, 1)
    assert site.asked == {"/second_try/a.jpg": 2, "/down/b.jpg": 3}
    assert download("/second_try/a.jpg", "/down/b.jpg", retries=0) == Summary(0, 1, 0, 0, 1)
    assert site.asked["/down/b.jpg"] == 4


def test_silent_dripping_and_cut_off_servers_cost_a_bounded_time_and_leave_no_file(site, download):
    start = time.monotonic()
    assert download("/silent/a", "/dripping/b", "/cut/c", retries=0).failed == 3
    assert time.monotonic() - start < 4
    assert not list(download.folder.glob("*.jpg*"))


def test_too_much_is_refused_before_or_while_it_comes(site, download, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_BYTES", 2**20)
    assert download("/huge/a", "/endless/b").gone == 2
    assert "larger than" in (download.folder / FAILURES_FILE).read_text()


def test_redirects_are_followed_but_only_to_the_web(site, download):
    assert download("/moved/a", "/to_file/b", "/to_ftp/c") == Summary(1, 0, 2, 0, 0)
    assert site.asked["/good/after-a-move.jpg"] == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:image/gif;base64,R0lG", "http:///a", "http://[bad/a"]
)
def test_urls_that_are_not_of_the_web_are_never_opened(download, url):
    assert download(url) == Summary(0, 0, 1, 0, 0)


def test_a_path_outside_ascii_is_escaped(site, download):
    assert download("/good/crème brûlée.jpg?q=ü").fetched == 1
    assert list(site.asked) == ["/good/cr%C3%A8me%20br%C3%BBl%C3%A9e.jpg?q=%C3%BC"]


def test_a_site_that_asks_not_to_be_used_for_ai_is_left_alone(download):
    assert download("/private/a").gone == 1


def test_an_unreachable_host_is_tried_again_by_the_next_run(download):
    assert download("http://127.0.0.1:9/a.jpg").failed == 1
    assert known_failures(download.folder) == {}


def test_one_host_never_gets_more_than_a_few_connections(site, download):
    download(*(f"/good/{i}.jpg" for i in range(40)), threads=16)
    assert 1 < site.most_open <= http_client.CONNECTIONS_PER_HOST


def test_a_list_of_failures_torn_by_a_kill_costs_one_more_try_at_most(site, download):
    download.folder.mkdir()
    (download.folder / FAILURES_FILE).write_text(f'0,{site.url}/missing/a,HTTP 404\n1,"{site.url}/miss')
    urls = ["/missing/a", "/missing/b", "/missing/c"]
    assert download(*urls) == Summary(0, 0, gone=2, known_gone=1, failed=0)
    assert set(known_failures(download.folder)) == {0, 1, 2}


def test_a_list_of_failures_holds_no_formula_and_is_read_as_it_was_meant(download):
    urls = ["=HYPERLINK(1)", "+1", "'=1", "@x"]
    download.folder.mkdir()
    with FailureLog(download.folder) as log:
        for number, url in enumerate(urls):
            log.add(number, url, f"={url}\n")
    with (download.folder / FAILURES_FILE).open(newline="") as file:
        assert all(cell.startswith("'") for row in csv.reader(file) for cell in row[1:])
    assert known_failures(download.folder) == dict(enumerate(urls))


def test_a_failure_is_forgotten_when_its_row_gets_another_url(download):
    download("/missing/a")
    assert download("/good/a").fetched == 1


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path, download):
    download.folder.write_text("a file in the way")
    with pytest.raises(ClipcapError, match=f"{download.folder}: cannot be written to"):
        download("/good/a")


def test_the_reader_leaves_out_what_is_gone_for_good(tmp_path, download):
    download("/good/a", "/missing/b", "/good/c")
    source = READERS["conceptual"](SourceConfig(data_path=str(tmp_path / "images.tsv")))
    assert [record.image_id for record in source.records] == ["00000000", "00000002"]
    assert "1 image left out: gone for good" in source.notes[0]
