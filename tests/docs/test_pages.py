"""README and site as a reader takes them: every command and every Python block runs on small data, top to bottom.

The README runs first, once. Each page of docs/ then runs in a copy of the folder that the README leaves: a page may
use what the README makes (`data/food_train.pkl`, `checkpoints/food`) and what it makes itself, and no more. A command
that the README has already run is not run again. Small models stand in for the published ones through documented
flags (`--clip_model_type`, `--lm`, `--epochs 1`).

Commands in ```bash blocks run. Those in ```console blocks need a network, a GPU, or an environment of their own: they
are listed in `NOT_RUN` with the reason, and what can be checked of them without running is checked.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from support.reader import Reader, inside, make_folder

from clipcap.captioning.captioner import Captioner
from clipcap.cli.main import build_parser
from clipcap.demo.plates import write_set
from clipcap.demo.run import VAL_SEED
from clipcap.images.grid import picture_grid
from clipcap.runtime.bundled import DEMO

REPO = Path(__file__).resolve().parents[2]

NOT_RUN = {
    "make": "sets up an environment of its own",
    "pip": "needs the package index",
    "git": "needs the network",
    "unzip": "unpacks what a page gave",
    "pre-commit": "needs the network",
    "docker": "needs Docker and the network",
    "jupyter": "serves until it is stopped",
    "sed": "edits a file of a large download",
    "img2dataset": "downloads images, and is no dependency",
    "accelerate": "starts a process per GPU",
    "torchrun": "starts processes on several machines",
    "clipcap": "needs the network or more data, or serves a page until it is stopped",
    "python": "measures or trains for minutes",
    "bash": "needs a GPU",
}
ORIGINAL_TRAIN_FLAGS = """
--data --out_dir --prefix --epochs --save_every --prefix_length --prefix_length_clip --bs --only_prefix --mapping_type
--num_layers --is_rn --normalize_prefix
"""
# Of accelerate, torchrun, the original and unshare, named in the text.
FOREIGN_FLAGS = {
    "--num_processes",
    "--nproc_per_node",
    "--machine_rank",
    "--data_root",
    "--num_threads",
    "--net",
    "--mixed_precision",
}


@dataclass(frozen=True)
class Document:
    """README.md or a page of docs/."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(REPO).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def blocks(self) -> list[tuple[str, str]]:
        return re.findall(r"^```(\w+)\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)

    @property
    def steps(self) -> list[tuple[str, str]]:
        """What a reader runs, in order: ("bash", command) and ("python", block)."""
        steps = []
        for kind, block in self.blocks:
            if kind == "bash":
                steps += [(kind, command) for command in commands(block)]
            elif kind == "python":
                steps.append((kind, block))
        if self.path.name == "migrating.md":  # its table translates commands of the original
            steps += [("bash", re.findall(r"`([^`]+)`", cells[1])[0]) for cells in rows_after(self.text, "Commands")]
        return steps


def commands(block: str) -> list[str]:
    """The commands of a block, continuation lines joined, the prompt of ```console blocks taken off."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.strip()]


def rows_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    section = text.split(f"\n## {heading}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


README = Document(REPO / "README.md")
PAGES = [Document(path) for path in sorted((REPO / "docs").rglob("*.md"))]
DOCUMENTS = [README, *PAGES, Document(REPO / "CONTRIBUTING.md")]
NOTES = [Document(REPO / "CHANGELOG.md")]
NOTES += [Document(path) for folder in ("benchmarks", "fuzz") for path in sorted((REPO / folder).rglob("README.md"))]


def run_steps(document: Document, reader: Reader, done: set[tuple[str, str]]) -> None:
    names = {}
    for kind, step in document.steps:
        if kind == "python":
            reader.execute(step, names, document.name)
        elif (kind, step) not in done:
            reader.run(step)


@pytest.fixture(scope="session")
def reader(clip_file, lm_folder) -> Reader:
    return Reader(clip_file, lm_folder)


@pytest.fixture(scope="session")
def after_readme(tmp_path_factory, reader, make_model) -> Path:
    """The folder of a reader who has run the README from top to bottom."""
    folder = tmp_path_factory.mktemp("reader")
    make_folder(folder, make_model(clip_dim=64))
    with inside(folder):
        run_steps(README, reader, set())
    return folder


def test_the_readme_runs_from_top_to_bottom(after_readme):
    assert len((after_readme / "captions.jsonl").read_text().splitlines()) == 12
    assert {path.suffix for path in (after_readme / "photos").iterdir()} == {".jpg", ".txt"}
    assert (after_readme / "checkpoints" / "food" / "clipcap-best").is_dir()


@pytest.mark.parametrize("page", [page for page in PAGES if page.steps], ids=lambda page: page.name)
def test_a_page_runs_after_the_readme(page, after_readme, reader, tmp_path):
    folder = shutil.copytree(after_readme, tmp_path / "reader")
    with inside(folder):
        run_steps(page, reader, set(README.steps))


NAMED = [
    pytest.param(command, id=f"{document.name}: {command}")
    for document in DOCUMENTS
    for kind, block in document.blocks
    if kind == "console"
    for command in commands(block)
]


@pytest.mark.parametrize("command", NAMED)
def test_commands_that_are_not_run_are_spelt_right(command):
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)
    assert words[0] in NOT_RUN, f"no reason is given why {words[0]} is not run: put it into a ```bash block"
    if "clipcap" in words:
        typed = words[words.index("clipcap") + 1 :]
        build_parser(named=typed).parse_args(typed)
    if words[0] == "accelerate":
        launch_command_parser().parse_args(words[2:])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "pip":
        named = re.findall(r"\[([\w,]+)\]", words[-1])
        assert set(",".join(named).split(",")) - {""} <= extras()
    if words[0] == "python" and words[1] == "-m":
        module = REPO.joinpath(*words[2].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    elif words[0] in ("python", "bash"):
        assert (REPO / words[1]).is_file()


def extras() -> set[str]:
    text = (REPO / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", text, re.MULTILINE))


def test_the_extras_are_those_of_the_package():
    assert {cells[0].strip("`") for cells in rows_after(README.text, "Install")} == extras()


def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 250


def test_generated_parts_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert all(any(f"<!-- made: {name} -->" in page.text for page in DOCUMENTS) for name in generate.MAKERS)
    behind = [page.name for page in DOCUMENTS if generate.renewed(page.text) != page.text]
    assert behind == [], "behind the code: run `python docs/generate.py`"


def parsers(parser=None):
    """A parser and those of its subcommands."""
    parser = parser or build_parser()
    yield parser
    for action in parser._actions:
        for below in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from parsers(below)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_flag_that_the_text_names_exists(document):
    known = set(chain(*(parser._option_string_actions for parser in parsers()))) | {"--only-prefix"}
    prose = re.sub(r"^```.*?^```$|<!-- made.*?<!-- end -->", "", document.text, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--\w[\w-]*", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert named <= known | FOREIGN_FLAGS


def test_every_flag_of_the_original_trainer_is_taken():
    train = next(parser for parser in parsers() if parser.prog == "clipcap train")
    assert set(ORIGINAL_TRAIN_FLAGS.split()) <= set(train._option_string_actions)


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTES], ids=lambda document: document.name)
def test_files_that_a_document_names_are_there(document):
    linked = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", document.text)
    linked = [target for target in chain(*linked) if target and "://" not in target]
    named = re.findall(r"`((?:clipcap|tests|benchmarks|docs|fuzz|notebooks)/[\w./-]+)`", document.text)
    missing = [target for target in linked if not (document.path.parent / target).exists()]
    assert missing + [target for target in named if not (REPO / target).exists()] == []


def test_the_picture_shows_what_the_bundled_model_writes(tmp_path):
    folder = write_set(tmp_path / "plates", 8, VAL_SEED, split="val") / "dataset"
    plates = [folder / f"{number}.jpg" for number in range(8)]
    expected = picture_grid(plates, Captioner.from_pretrained(DEMO)(plates), columns=4)
    shown = Image.open(REPO / "docs" / "captions.jpg").convert("RGB")
    assert shown.size == expected.size
    assert np.abs(np.asarray(shown, dtype=float) - np.asarray(expected, dtype=float)).mean() < 3  # JPEG's own loss
