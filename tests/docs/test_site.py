"""The documentation site: it builds without a warning, and its pages ask for nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import clipcap

pytest.importorskip("mkdocs", reason="no mkdocs: pip install 'clipcap-toolkit[dev]'")
pytest.importorskip("mkdocstrings", reason="no mkdocstrings: pip install 'clipcap-toolkit[dev]'")

REPO = Path(__file__).resolve().parents[2]
# What a browser fetches by itself: scripts, styles, pictures, fonts; not the links that a reader may follow.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=["']?(https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon|dns-prefetch)[^>]*\bhref=["']?(https?:)?//"""
    r"""|url\(["']?(https?:)?//|@import"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built(site):
    pages = [path.relative_to(REPO / "docs").with_suffix("") for path in (REPO / "docs").rglob("*.md")]
    homes = [site / page.parent if page.name == "index" else site / page for page in pages]
    assert [home for home in homes if not (home / "index.html").is_file()] == []


def test_pages_and_styles_fetch_nothing_from_elsewhere(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    fetched = {path.name: FETCHED.findall(path.read_text(encoding="utf-8")) for path in files}
    assert len(files) > 20 and {name for name, found in fetched.items() if found} == set()


def test_the_public_names_are_in_the_python_reference(site):
    page = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    public = set(clipcap.__all__) - {"__version__"}
    assert {name for name in public if f'id="clipcap.{name}"' not in page} == set()


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", REPO / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_flag_in_the_text_is_one_word_and_code_blocks_stay_as_they_are(hooks):
    flag = '<code><span class="flag">--data</span> x</code>'
    assert hooks.on_page_content("<p><code>--data x</code></p>") == f"<p>{flag}</p>"
    block = "<pre><code>clipcap train --data x\n</code></pre>"
    assert hooks.on_page_content(block) == block


def test_a_link_out_of_the_site_must_lead_to_a_file_of_the_repository(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guide/safety.md"))
    rewrite = hooks.on_page_markdown
    assert rewrite("see [fuzz/README.md](../../fuzz/README.md)", page, {}) == "see `fuzz/README.md`"
    url = {"repo_url": "https://example.org/clipcap"}
    assert (
        rewrite("[licence](../../LICENSE)", page, url) == "[licence](https://example.org/clipcap/blob/main/LICENSE)"
    )
    assert rewrite("[train](../guide/train.md)", page, {}) == "[train](../guide/train.md)"
    with pytest.raises(FileNotFoundError, match=r"guide/safety.md: the link to \.\./\.\./nowhere.md leads nowhere"):
        rewrite("[x](../../nowhere.md)", page, {})
