"""`clipcap demo`: the demo run, whose steps are commands."""

from __future__ import annotations

from pathlib import Path

from clipcap.cli.main import run
from clipcap.demo.run import run_demo


def demo(out: str) -> None:
    """Run the demo into a folder."""
    run_demo(Path(out), run)
