"""The exported demo captioner, which the tests of graphs and page share."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from clipcap.demo.plates import draw, scenes
from clipcap.deploy.config import ExportConfig
from clipcap.deploy.export import export
from clipcap.runtime.bundled import DEMO

SIZES = ((384, 384), (301, 200), (90, 640), (64, 64), (500, 333), (333, 501))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The folder of the demo captioner's graphs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"no {package}: pip install 'clipcap-toolkit[onnx]'")
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(DEMO, ExportConfig(out=str(folder), format="onnx"))
    return folder


@pytest.fixture(scope="session")
def plates(tmp_path_factory) -> list[Path]:
    """Drawn plates of several shapes, as JPEG and PNG."""
    folder = tmp_path_factory.mktemp("plates")
    paths = []
    for number, (scene, size) in enumerate(zip(islice(scenes("val"), len(SIZES)), SIZES, strict=True)):
        paths.append(folder / f"plate{number}.{'png' if number % 3 == 2 else 'jpg'}")
        draw(scene, 384).resize(size).save(paths[-1], quality=90)
    return paths
