"""The web page used by hand, by a program: a real Chromium, four users at once, files that are none, 200 requests.

python benchmarks/speed/page/drive.py --photos PHOTOS --out page [--load_pt CHECKPOINT] [--index FEATURES] [--strace]

PHOTOS is a folder of at least 20. Screenshots go to --out; what was asked of other machines, and the memory of the
server, is printed. --strace lists every connection that the server opens.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
REQUESTS, BATCH, USERS = 200, 20, 4
PATIENCE_MS = 180_000
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 375, "height": 812}}


@contextmanager
def served(options: list[str], trace: Path | None) -> Iterator[tuple[str, int]]:
    """(address, process id) of a page that runs."""
    command = [sys.executable, "-m", "clipcap", "app", "--port", "0", *options]
    if trace:
        command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect", "-o", str(trace), *command]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        if not address.startswith("http"):
            raise SystemExit(f"the page did not start: {address or 'see above'}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        server = int(children[0]) if trace else process.pid
        print(f"the page answers after {time.perf_counter() - start:.1f} s at {address}", flush=True)
        try:
            yield address, server
        finally:
            os.kill(server, signal.SIGINT)
            process.wait(60)


def memory_mib(process: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def wide_png(path: Path, side: int = 20_000) -> Path:
    """A white square as a whole, valid PNG; 1.2 GB when it is decoded."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (3 * side)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big")
              for c in (header, b"IDAT" + body, b"IEND")]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


class Hand:
    """A browser that notes what it asks for, and from whom."""

    def __init__(self, browser: object, address: str, out: Path):
        self.browser, self.address, self.out = browser, address, out
        self.asked: list[str] = []
        self.errors: list[str] = []

    @contextmanager
    def page(self, size: str, scheme: str) -> Iterator[Page]:
        context = self.browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.address, wait_until="networkidle")
        yield page
        context.close()

    def shoot(self, page: Page, name: str, whole: bool = True) -> None:
        page.wait_for_timeout(600)
        page.screenshot(path=self.out / f"{name}.png", full_page=whole)

    def elsewhere(self) -> list[str]:
        """Addresses that were asked for, and are not the page's."""
        return sorted({url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))})


def caption(page: Page, photo: Path) -> list[str]:
    """Upload a photo in the first tab; its captions."""
    page.locator("#caption_photo input[type=file]").first.set_input_files(photo)
    page.locator(".captions li").first.wait_for()
    return page.locator(".captions li p").all_inner_texts()


def one_photo(hand: Hand, photo: Path, size: str, scheme: str) -> None:
    with hand.page(size, scheme) as page:
        hand.shoot(page, f"start_{size}_{scheme}")
        start = time.perf_counter()
        by_beam = caption(page, photo)
        print(f"{size}, {scheme}: a photo is captioned {time.perf_counter() - start:.1f} s after it was chosen")
        hand.shoot(page, f"caption_{size}_{scheme}")
        page.get_by_role("button", name="Settings").first.click()
        page.get_by_label("sampling").first.check()
        for temperature in ("0", "2"):
            page.get_by_label("number input for Temperature").first.fill(temperature)
            before = page.locator(".captions li p").all_inner_texts()
            page.get_by_role("button", name="Write captions").click()
            page.wait_for_function("old => JSON.stringify([...document.querySelectorAll('.captions li p')]"
                                   ".map((e) => e.innerText)) !== JSON.stringify(old)", arg=before)  # fmt: skip
            print(f"  temperature {temperature}: {page.locator('.captions li p').first.inner_text()!r}")
        print(f"  beam search:   {by_beam[0]!r}")
        hand.shoot(page, f"sampling_{size}_{scheme}")


def other_tabs(hand: Hand, photo: Path, size: str, scheme: str, searches: bool) -> None:
    with hand.page(size, scheme) as page:
        page.get_by_role("tab", name="Prefix").click()
        page.locator("#explain_photo input[type=file]").first.set_input_files(photo)
        page.locator(".words li").first.wait_for()
        hand.shoot(page, f"prefix_{size}_{scheme}")
        if searches:
            page.get_by_role("tab", name="Search").click()
            page.locator("#search_words").get_by_role("textbox").fill("a dog on a plate")
            page.keyboard.press("Enter")
            page.locator(".pictures li").first.wait_for()
            hand.shoot(page, f"search_{size}_{scheme}")


def batch(hand: Hand, photos: list[Path], broken: Path, size: str, scheme: str) -> None:
    with hand.page(size, scheme) as page:
        page.get_by_role("tab", name="Batch").click()
        page.locator("#many_photos input[type=file]").first.set_input_files([*photos[: BATCH - 1], broken])
        page.locator("#many_photos a").nth(BATCH - 1).wait_for()
        start = time.perf_counter()
        page.get_by_role("button", name="Caption all").click()
        page.locator(".photos li").nth(BATCH - 1).wait_for()
        print(f"batch of {BATCH}: {time.perf_counter() - start:.1f} s, one of them no image: "
              f"{page.locator('.photos li.bad').inner_text()!r}")  # fmt: skip
        hand.shoot(page, f"batch_{size}_{scheme}")
        with page.expect_download() as download:
            page.locator("#many_csv a").first.click()
        lines = download.value.path().read_text(encoding="utf-8").splitlines()
        print(f"  its CSV has {len(lines)} lines: {lines[0]!r}, {lines[1]!r}, …")


def refused(hand: Hand, files: list[Path], server: int) -> None:
    for file in files:
        with hand.page("desktop", "light") as page:
            before = memory_mib(server)
            page.locator("#caption_photo input[type=file]").first.set_input_files(file)
            said = page.locator(".toast-body").first
            said.wait_for()
            print(f"{file.name} ({file.stat().st_size:,} bytes): {' '.join(said.inner_text().split())!r}, "
                  f"memory {before:.0f} → {memory_mib(server):.0f} MiB")  # fmt: skip
            hand.shoot(page, f"refused_{file.stem}", whole=False)  # a message stays at the top of the window


def together(hand: Hand, photos: list[Path]) -> None:
    """Users who send a photo each at the same moment, each in a browser of their own."""
    with hand.page("desktop", "light") as page:
        alone = []
        for photo in photos:
            alone.append(caption(page, photo))
            page.get_by_role("button", name="Remove").or_(page.get_by_label("Clear")).first.click()
            page.locator(".captions li").first.wait_for(state="detached")
    contexts = [hand.browser.new_context(viewport=SIZES["desktop"]) for _ in photos]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.on("request", lambda request: hand.asked.append(request.url))
        page.goto(hand.address, wait_until="networkidle")
    start = time.perf_counter()
    for page, photo in zip(pages, photos):
        page.locator("#caption_photo input[type=file]").first.set_input_files(photo)
    found = []
    for page in pages:
        page.locator(".captions li").first.wait_for(timeout=PATIENCE_MS)
        found.append(page.locator(".captions li p").all_inner_texts())
    print(f"{len(photos)} users at once: all have captions after {time.perf_counter() - start:.1f} s, "
          f"{'each their own, as when alone' if found == alone else f'NOT as when alone: {found}'}")  # fmt: skip
    for context in contexts:
        context.close()


def many_requests(address: str, server: int, photos: list[Path]) -> None:
    """Captions over the API, by USERS at once, and the server's memory in between."""
    for photo in photos[:USERS]:
        over_api(address, photo)
    print(f"memory before {REQUESTS} requests: {memory_mib(server):.0f} MiB")
    start = time.perf_counter()
    for first in range(0, REQUESTS, 50):
        with ThreadPoolExecutor(USERS) as users:
            wanted = [photos[i % len(photos)] for i in range(first, first + 50)]
            answers = list(users.map(lambda photo: over_api(address, photo), wanted))
        assert all(answers), "a request got no caption"
        print(f"  after {first + 50}: {memory_mib(server):.0f} MiB", flush=True)
    print(f"  {REQUESTS} requests by {USERS} users in {time.perf_counter() - start:.0f} s")


def over_api(address: str, photo: Path) -> list[dict]:
    """Upload and caption a photo."""
    sign = uuid.uuid4().hex
    head = f'--{sign}\r\nContent-Disposition: form-data; name="files"; filename="{photo.name}"\r\n\r\n'
    body = head.encode() + photo.read_bytes() + f"\r\n--{sign}--\r\n".encode()
    [path] = json.loads(ask(address, "POST", "/gradio_api/upload", body, f"multipart/form-data; boundary={sign}"))
    values = json.dumps({"photo": {"path": path, "meta": {"_type": "gradio.FileData"}}}).encode()
    event = json.loads(ask(address, "POST", "/gradio_api/call/v2/caption", values, "application/json"))["event_id"]
    stream = ask(address, "GET", f"/gradio_api/call/caption/{event}")
    return json.loads(re.findall(r"event: complete\ndata: (.*)", stream)[-1])[0]


def ask(address: str, method: str, path: str, body: bytes | None = None, kind: str = "text/plain") -> str:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE_MS / 1000)
    connection.request(method, path, body, {"Content-Type": kind})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 200, f"{method} {path}: {response.status} {text}"
    return text


def connections(trace: Path) -> None:
    """Where the server connected to, by kind of address."""
    lines = [line for line in trace.read_text().splitlines() if "connect(" in line]
    families = sorted({re.search(r"sa_family=(\w+)", line)[1] for line in lines if "sa_family" in line})
    outside = [line for line in lines if "AF_INET" in line and "127.0.0.1" not in line and '"::1"' not in line]
    print(f"connections of the server: {len(lines)} ({', '.join(families) or 'none'}); to other machines: "
          f"{len(outside)}")  # fmt: skip
    for line in lines[:10]:
        print(f"  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("page"))
    parser.add_argument("--load_pt")
    parser.add_argument("--index")
    parser.add_argument("--strace", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    photos = sorted(path for path in args.photos.iterdir() if path.suffix in (".jpg", ".png"))
    text = args.out / "letter.jpg"
    text.write_text("Dear Sir or Madam,\n")
    options = [
        word for name in ("load_pt", "index") if (value := getattr(args, name)) for word in (f"--{name}", value)
    ]
    trace = args.out / "strace.txt" if args.strace else None
    with served(options, trace) as (address, server), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        hand = Hand(browser, address, args.out)
        print(f"memory at the start: {memory_mib(server):.0f} MiB")
        for size, scheme in (("desktop", "light"), ("phone", "dark")):
            one_photo(hand, photos[0], size, scheme)
            other_tabs(hand, photos[1], size, scheme, bool(args.index))
            batch(hand, photos, text, size, scheme)
        refused(hand, [text, wide_png(args.out / "wide.png")], server)
        together(hand, photos[:USERS])
        many_requests(address, server, photos)
        print(f"requests of the browser: {len(hand.asked)}, to others than the page: {hand.elsewhere()}, "
              f"errors in the page: {hand.errors}")  # fmt: skip
        browser.close()
    if trace:
        connections(trace)


if __name__ == "__main__":
    main()
