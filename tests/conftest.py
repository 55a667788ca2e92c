"""What the tests share: no network, the reference fixtures where they are, small real models."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models here are tiny and tests run side by side: threads that wait for each other would cost ten times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the reference fixtures and real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("CLIPCAP_SHARED") or REPO.parent / "shared")
    if not (path / "fixtures" / "reference").is_dir():
        pytest.skip(f"no reference fixtures at {path} (set CLIPCAP_SHARED)")
    return path


@pytest.fixture
def messages(caplog) -> Callable[[], list[str]]:
    """Gives a function: the lines that the package has logged since the last call, as the command shows them."""
    caplog.set_level(logging.INFO, "clipcap")

    def take() -> list[str]:
        records = [record for record in caplog.records if record.name == "clipcap"]
        texts = ["warning: " * (r.levelno >= logging.WARNING) + r.getMessage() for r in records]
        caplog.clear()
        return [line for text in texts for line in text.splitlines()]

    return take


@pytest.fixture
def small_disk(tmp_path):
    """A drive of its own, with room for 64 kB; `support.disks.resize` gives it more or less."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small drive")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small drive cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


CAPTIONS = (
    "a red apple on a white plate",
    "two fried eggs beside a green napkin",
    "three cookies, a fork and a cup of tea",
    "slices of pizza on a wooden table",
    "Sushi rolls served on a black tray!",
    "a bowl of soup. with bread",
    "one donut with pink icing",
    "carrots and broccoli on a blue plate",
)


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory) -> Path:
    """A GPT-2 of width 64 with its own tokenizer."""
    from clipcap.demo.tiny import make_gpt2

    return make_gpt2(tmp_path_factory.mktemp("lm") / "gpt2", CAPTIONS, width=64)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> Path:
    """A ViT CLIP of width 64 in OpenAI's format."""
    from clipcap.demo.tiny import make_clip

    return make_clip(tmp_path_factory.mktemp("clip") / "clip.pt")


@pytest.fixture(scope="session")
def tokenizer(lm_folder):
    from clipcap.models.language_model import load_tokenizer

    return load_tokenizer(str(lm_folder))


@pytest.fixture(scope="session")
def make_model(lm_folder):
    """Builds a caption model over the small GPT-2, in evaluation mode."""
    import torch

    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.config import ModelConfig
    from clipcap.models.language_model import load_lm

    def build(seed: int = 0, **options) -> ClipCaptionModel:
        torch.manual_seed(seed)
        defaults = {"clip_dim": 32, "prefix_length": 4, "prefix_length_clip": 3, "num_layers": 2}
        config = ModelConfig(**{**defaults, "lm": str(lm_folder), "tune": "full", **options})
        model = ClipCaptionModel(config, load_lm(str(lm_folder))).eval()
        with torch.no_grad():  # spread the distributions: GPT-2's initial weights make them nearly uniform
            for parameter in model.lm.parameters():
                parameter.mul_(6 if parameter.dim() > 1 else 1)
        return model

    return build
