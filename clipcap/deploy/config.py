"""Options of `clipcap export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, option

Format = Literal["pt", "onnx", "web"]
ENDINGS = {".pt": "pt", ".html": "web"}
FILES = (*ENDINGS, ".onnx", ".pth", ".bin", ".safetensors", ".htm", ".zip")  # no names of folders
NAMES = {"pt": "NAME.pt", "web": "NAME.html", "onnx": "a folder, of several graphs"}


@dataclass(frozen=True)
class ExportConfig(Options, group="output"):
    """What to write of a checkpoint, and where."""

    out: str = option("", "NAME.pt, NAME.html, or with --format onnx a folder")
    format: Format | None = option(
        None,
        "pt: weights for the original ClipCap; onnx: a folder of graphs with a runner; web: one HTML file that "
        "captions photos in any browser (default: by the name of --out)",
    )
    dtype: Literal["float32", "int8"] = option(
        "float32", "numbers of the matrices of onnx and web: int8 is a quarter of the size, and some captions differ"
    )
    lm: str | None = option(None, "language model, if the checkpoint's own has moved", group="model")
    clip_model_type: str | None = option(
        None, "encoder, where the checkpoint's has moved or is not known", group="model"
    )
    runtime: str | None = option(
        None,
        "web: folder or .tgz of the npm package onnxruntime-web (default: downloaded once from registry.npmjs.org)",
        group="machine",
    )

    def __post_init__(self) -> None:
        if not self.out:
            raise ClipcapError("--out is missing: NAME.pt, NAME.html, or a folder with --format onnx")
        suffix = Path(self.out).suffix.lower()
        if self.format is None:
            object.__setattr__(self, "format", self._format_of(suffix))
        format = str(self.format)
        fits = ENDINGS.get(suffix) == format if format != "onnx" else suffix not in FILES
        if not fits:
            raise ClipcapError(f"--out {self.out}: --format {format} writes {NAMES[format]}")
        if self.format == "pt" and self.dtype != "float32":
            raise ClipcapError(f"--dtype {self.dtype} is of --format onnx and web: a .pt holds float32")
        if self.runtime and self.format != "web":
            raise ClipcapError(f"--runtime is of --format web: --format {self.format} needs none")

    def _format_of(self, suffix: str) -> str:
        if suffix not in ENDINGS:
            raise ClipcapError(
                f"--out {self.out}: export writes NAME.pt (weights for the original), NAME.html (a page that "
                f"captions), or with --format onnx a folder of graphs"
            )
        return ENDINGS[suffix]
