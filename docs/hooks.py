"""Hook of the site's build: links from a page to files of the repository outside of docs/.

On GitHub such a link opens the file. The site does not hold these files, so it shows their path, or links to the
repository where mkdocs.yml names its `repo_url`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
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
