"""A report as readers see it: screenshots at desktop and phone width, light and dark, and what it asks for.

python benchmarks/speed/page/report.py evaluation/report.html --out shots [--word egg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from drive import CHROMIUM, QUIET, SIZES
from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path("shots"))
    parser.add_argument("--word", default="egg", help="that the pictures are filtered by")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        for size, viewport in SIZES.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport=viewport, color_scheme=scheme)
                asked, said = [], []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.goto(args.report.resolve().as_uri())
                page.screenshot(path=args.out / f"report_{size}_{scheme}.png")
                for section in page.locator("main > section").all():
                    section.scroll_into_view_if_needed()
                    page.evaluate("(e) => window.scrollTo(0, e.offsetTop)", section.element_handle())
                    name = section.get_attribute("id")
                    page.screenshot(path=args.out / f"report_{size}_{scheme}_{name}.png")
                page.fill("#filter", args.word)
                page.screenshot(path=args.out / f"report_{size}_{scheme}_filtered.png")
                others = [url for url in asked[1:] if not url.startswith("data:")]
                bare = page.locator("img:not([alt]), img[alt='']").count()
                wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
                print(f"{size}, {scheme}: {page.inner_text('output')} with {args.word!r}, {bare} without a text")
                print(f"  scrolls sideways: {wide}; requests besides the file: {others}; messages: {said}")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
