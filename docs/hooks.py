"""Hooks of the site's build: links out of docs/, and flags that do not break at the end of a line.

On GitHub a link to a file outside of docs/ opens the file. The site does not hold these files, so it shows their
path, or links to the repository where mkdocs.yml names its `repo_url`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
_INLINE_CODE = re.compile(r"<code>[^<\n]*</code>")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page with its links out of docs/ replaced.

    Raises:
        FileNotFoundError: a link leads to a file that the repository does not have.
    """
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replaced(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target.startswith("docs/"):
            return link[0]
        if not (REPO / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: the link to {link[2]} leads nowhere")
        if url := config.get("repo_url"):
            return f"[{link[1]}]({url.rstrip('/')}/blob/main/{target})"
        return f"`{target}`" if target.startswith(link[1]) else f"{link[1]} (`{target}`)"

    return _LINK.sub(replaced, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """The page with each flag in inline code as one unbreakable word: a browser would break `--data` after `--`."""
    unbroken = r'<span class="flag">\1</span>'
    return _INLINE_CODE.sub(lambda code: re.sub(r"(?<![\w-])(--?\w[\w-]*)", unbroken, code[0]), html)
