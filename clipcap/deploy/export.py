"""`clipcap export`: a checkpoint as a `.pt` of the original, a folder of ONNX graphs, or a page for any browser."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from clipcap.captioning.captioner import Captioner
from clipcap.deploy.config import ExportConfig
from clipcap.deploy.onnx_captioner import CONFIG
from clipcap.deploy.onnx_folder import RUNNER, check_packages, plain_captioner, write_graphs
from clipcap.deploy.web_page import web_page
from clipcap.deploy.web_runtime import load_runtime
from clipcap.errors import ClipcapError
from clipcap.models.export import export as export_pt
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.files import replaced_file, replaced_folder, writing
from clipcap.runtime.places import writes_to


@writes_to("config.out")
def export(checkpoint: str, config: ExportConfig) -> str:
    """Write a checkpoint in another format.

    Args:
        checkpoint: as `load_checkpoint` takes it.
        config: what to write, and where.
    Returns:
        lines for the user: what was written, and how it is used.
    Raises:
        ClipcapError: a package or file is missing, the model cannot be written so, or `config.out` is something else.
    """
    out = Path(config.out).expanduser()
    if config.format == "pt":
        return export_pt(checkpoint, out, config.lm, config.clip_model_type)
    check_packages(f"--format {config.format}")
    if config.format == "onnx":
        return _export_folder(checkpoint, out, config)
    return _export_page(checkpoint, out, config)


def _export_folder(checkpoint: str, out: Path, config: ExportConfig) -> str:
    if out.exists() and not (out / CONFIG).is_file() and (out.is_file() or any(out.iterdir())):
        raise ClipcapError(f"--out {out}: exists and is not an export, so it is not replaced: choose another name")
    captioner = plain_captioner(checkpoint, config.lm, config.clip_model_type)
    with writing(out), replaced_folder(out) as draft:
        write_graphs(captioner, draft, config.dtype)
    size = sum(path.stat().st_size for path in out.iterdir())
    return f"wrote {out} ({size / 1e6:.1f} MB)\ncaption with numpy, Pillow, onnxruntime: python {out / RUNNER} PHOTO"


def _export_page(checkpoint: str, out: Path, config: ExportConfig) -> str:
    if out.is_dir():
        raise ClipcapError(f"--out {out}: is a folder: name the .html file to write")
    runtime = load_runtime(config.runtime)
    captioner = plain_captioner(checkpoint, config.lm, config.clip_model_type)
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(captioner, Path(folder), config.dtype)
        page = web_page(Path(folder), runtime, _about(checkpoint, captioner))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(out) as draft:
            draft.write_text(page, encoding="utf-8")
    return f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser; it needs no network"


def _about(checkpoint: str, captioner: Captioner) -> str:
    """A line about the model that reveals no paths of this machine."""
    if checkpoint == DEMO:
        return "The bundled demo model, which knows only drawn plates of food"
    config = captioner.model.config
    names = [name for name in (config.encoder, config.lm) if name]
    return " + ".join(Path(name).name if os.path.isabs(name.rpartition(":")[2]) else name for name in names)
