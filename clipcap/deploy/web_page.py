"""`clipcap export --format web`: library, WebAssembly, graphs and page in one HTML file, which fetches nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import clipcap
from clipcap.captioning.tidy import ENGLISH, FOREIGN, WIDE
from clipcap.deploy.onnx_captioner import CONFIG, TOKENS
from clipcap.deploy.onnx_folder import PARTS
from clipcap.deploy.web_runtime import VERSION, WebRuntime
from clipcap.errors import ClipcapError

SOURCES = Path(__file__).parent / "web"
LARGEST = 500_000_000  # characters of one part, which browsers bound


def web_page(folder: Path, runtime: WebRuntime, model: str) -> str:
    """The page of an exported captioner.

    Args:
        folder: as `write_graphs` fills it.
        runtime: onnxruntime-web.
        model: a line about the captioner.
    Raises:
        ClipcapError: a part is larger than a browser takes.
    """
    parts = {"library": runtime.library, "wasm": runtime.wasm}
    parts |= {name: (folder / f"{name}.onnx").read_bytes() for name in PARTS}
    if (folder / "language_model.onnx.data").exists():
        raise ClipcapError("the language model is larger than a page can hold: use --dtype int8, or --format onnx")
    data = [_block(name, "application/gzip", _packed(name, content)) for name, content in parts.items()]
    data += [
        _block("facts", "application/json", _json(_facts(folder))),
        _block("worker", "text/plain", _source("worker.js")),
    ]
    script, style = _source("page.js"), _source("page.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' 'wasm-unsafe-eval' blob:; worker-src blob:; "
        f"style-src '{_hash(style)}'; img-src blob:; media-src blob:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy, "style": style, "script": script, "data": "\n".join(data), "model": html.escape(model),
        "version": clipcap.__version__, "runtime": VERSION,
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _source("page.html"))


def _facts(folder: Path) -> dict[str, Any]:
    """What the scripts need to know."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["tidy"] = {"english": sorted(ENGLISH), "foreign": sorted(FOREIGN), "wide": WIDE}
    tokens = json.loads((folder / TOKENS).read_text(encoding="utf-8"))
    return {"graphs": PARTS, "config": config, "tokens": tokens}


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script element which it lies in."""
    return json.dumps(value).replace("<", "\\u003c")


def _packed(name: str, content: bytes) -> str:
    packed = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")
    if len(packed) > LARGEST:
        raise ClipcapError(f"the {name} is larger than a page can hold: use --dtype int8, or --format onnx")
    return packed


def _block(name: str, kind: str, content: str) -> str:
    return f'<script type="{kind}" id="{name}">{content}</script>'


def _hash(text: str) -> str:
    """A source of the content security policy: this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
