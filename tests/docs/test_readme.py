"""The README as a reader takes it: every command and every Python block is run, top to bottom, on a small set.

Small models stand in for the published ones through documented flags (`--clip_model_type`, `--lm`, `--epochs 1`).
Commands in ```bash blocks run; those in ```console blocks need a network, a GPU or an environment of their own: they
are listed in `NOT_RUN` with the reason, and what can be checked of them without running is checked.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from clipcap.cli.main import build_parser, main
from clipcap.demo.drawing.draw import draw
from clipcap.demo.grammar import captions
from clipcap.demo.plates import write_set
from clipcap.demo.scene import make_scene

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PLATE_SCENE = 106  # of docs/plate.jpg

NOT_RUN = {
    "make": "sets up an environment of its own",
    "pip": "needs the package index",
    "sed": "edits a file of a large download",
    "img2dataset": "downloads images, and is no dependency",
    "accelerate": "starts a process per GPU",
    "clipcap": "fetches images from the network, or serves a page until it is stopped",
}
ORIGINAL_TRAIN_FLAGS = """
--data --out_dir --prefix --epochs --save_every --prefix_length --prefix_length_clip --bs --only_prefix --mapping_type
--num_layers --is_rn --normalize_prefix
"""
# Of accelerate and of the original, named in the text.
FOREIGN_FLAGS = {"--num_processes", "--data_root", "--num_threads"}


def commands(block: str) -> list[str]:
    """The commands of a block, continuation lines joined, the prompt of ```console blocks taken off."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.strip()]


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    section = README.split(f"\n## {heading}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


MIGRATION = [re.findall(r"`([^`]+)`", cells[1])[0] for cells in rows_after("Coming from the original")]


@pytest.fixture
def folder(tmp_path, clip_file, lm_folder, make_model, monkeypatch) -> Path:
    """A reader's folder: the clone's scripts, photos, small sets in every layout, a `.pt` of the original."""
    from clipcap.models.original import export_reference

    monkeypatch.chdir(tmp_path)
    for script in ("train.py", "predict.py"):
        shutil.copy(REPO / script, tmp_path)
    shutil.copytree(REPO / "parse", tmp_path / "parse")
    photos = write_set(tmp_path / "food", 12, size=32) / "dataset"
    shutil.copy(photos / "0.jpg", tmp_path / "photo.jpg")
    shutil.copytree(photos, tmp_path / "photos")
    _coco(tmp_path / "coco", photos)
    _flickr8k(tmp_path / "flickr8k", photos)
    _conceptual(tmp_path / "conceptual", photos)
    _custom(tmp_path, photos)
    _tars(tmp_path / "shards", ["00000.tar", "00001.tar"], photos)
    _tars(tmp_path / "cc3m", ["00000.tar"], photos)
    _original_pickle(tmp_path / "data" / "coco" / "oscar_split_ViT-B_32_train.pkl")
    export_reference(make_model(clip_dim=64), tmp_path / "coco_weights.pt")
    return tmp_path


def _text(number: int) -> str:
    return f"a plate of food, number {number}."


def _coco(folder, photos):
    for part, numbers in (("train2014", range(8)), ("val2014", range(8, 12))):
        (folder / part).mkdir(parents=True)
        for number in numbers:
            shutil.copy(photos / f"{number}.jpg", folder / part / f"COCO_{part}_{number:012d}.jpg")
        content = {
            "images": [{"id": n, "file_name": f"COCO_{part}_{n:012d}.jpg"} for n in numbers],
            "annotations": [{"id": n, "image_id": n, "caption": _text(n)} for n in numbers],
        }
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))


def _flickr8k(folder, photos):
    shutil.copytree(photos, folder / "Images")
    lines = [f'{n}.jpg,"{_text(n)}"' for n in range(12)]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *lines]) + "\n")
    for kind, numbers in (("train", range(6)), ("dev", range(6, 9)), ("test", range(9, 12))):  # the official lists
        (folder / f"Flickr_8k.{kind}Images.txt").write_text("".join(f"{n}.jpg\n" for n in numbers))


def _conceptual(folder, photos):
    (folder / "train").mkdir(parents=True)
    for number in range(12):
        shutil.copy(photos / f"{number}.jpg", folder / "train" / f"{number:08d}.jpg")
    lines = [f"{_text(n)}\thttp://localhost/{n}.jpg" for n in range(12)]
    (folder / "Train_GCC-training.tsv").write_text("\n".join(lines) + "\n")


def _custom(folder, photos):
    shutil.copytree(photos, folder / "mine" / "images")
    lines = [f'{n}.jpg,"{_text(n)}",yes' for n in range(12)]
    (folder / "mine" / "captions.csv").write_text("\n".join(["photo,text,checked", *lines]) + "\n")
    shutil.copytree(photos, folder / "photos_with_texts")
    for number in range(12):
        (folder / "photos_with_texts" / f"{number}.txt").write_text(_text(number))


def _tars(folder, names, photos):
    folder.mkdir()
    for name in names:
        with tarfile.open(folder / name, "w") as tar:
            for number in range(4):
                tar.add(photos / f"{number}.jpg", f"{number:09d}.jpg")
                text = _text(number).encode()
                member = tarfile.TarInfo(f"{number:09d}.txt")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))


def _original_pickle(path):
    path.parent.mkdir(parents=True)
    entries = [{"image_id": n, "id": n, "caption": _text(n), "clip_embedding": n} for n in range(12)]
    path.write_bytes(pickle.dumps({"clip_embedding": torch.rand(12, 64), "captions": entries}))


class Reader:
    """Types the README's commands, with the small models in place of the published ones."""

    def __init__(self, clip, lm):
        self.clip, self.lm = str(clip), str(lm)

    def stand_ins(self, words):
        """Flags that a command gets: the encoder and the language model, where it would load the published ones."""
        if "parse" in words or words[0].startswith("parse/"):
            return {"--clip_model_type": self.clip, "--lm": self.lm}
        if {"train", "train-clip-gpt"} & set(words) or words[0] == "train.py":
            return {"--lm": self.lm, "--epochs": "1"}
        if any(word.endswith(".pt") and words[i - 1] == "--load_pt" for i, word in enumerate(words)):
            return {"--clip_model_type": self.clip, "--lm": self.lm}
        return {}

    def words(self, command):
        """(environment, words) of a command, stand-ins included."""
        words = shlex.split(command, comments=True)
        assert not {"|", ">", "&&"} & set(words), f"a shell's own signs are not run here: {command}"
        environment = {}
        while "=" in words[0]:
            name, _, environment[name] = words.pop(0).partition("=")
        for flag, value in self.stand_ins(words[1:]).items():
            if flag in words:
                words[words.index(flag) + 1] = value
            else:
                words += [flag, value]
        return environment, words

    def type(self, command):
        """Run a command, in this process where it is one of clipcap's; its exit status."""
        environment, (program, *words) = self.words(command)
        if program == "clipcap":
            return main(words)
        if program == "python" and words[0] != "-m":
            return self._script(words)
        launcher = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        environment = {**os.environ, **environment}
        return subprocess.run([sys.executable, *launcher, *words], env=environment).returncode

    def _script(self, words):
        before, sys.argv = sys.argv, words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            return end.code
        finally:
            sys.argv = before
        raise AssertionError(f"{words[0]} ended without a status")


def test_the_readme_runs_from_top_to_bottom(folder, clip_file, lm_folder, capfd):
    reader, names = Reader(clip_file, lm_folder), {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block.replace("ViT-B/32", str(clip_file)), "README.md", "exec"), names)
        for command in commands(block) if kind == "bash" else ():
            run(reader, command, capfd)
    for command in MIGRATION:
        run(reader, command, capfd)
    assert len((folder / "captions.jsonl").read_text().splitlines()) == 12
    assert {path.suffix for path in (folder / "photos").iterdir()} == {".jpg", ".txt"}
    assert (folder / "data" / "cc3m" / "img_emb").is_dir()


def run(reader, command, capfd):
    capfd.readouterr()
    status = reader.type(command)
    shown = capfd.readouterr()
    assert status == 0, f"{command}\nends with {status}:\n{shown.out}\n{shown.err}"
    if "--img photo.jpg" in command and "predict" in command:
        assert len(shown.out.splitlines()) == 1, f"{command}\nprints more than the caption:\n{shown.out}"


@pytest.mark.parametrize("command", list(chain(*(commands(b) for kind, b in BLOCKS if kind == "console"))))
def test_commands_that_are_not_run_are_spelt_right(command):
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)
    assert words[0] in NOT_RUN, f"no reason is given why {words[0]} is not run: put it into a ```bash block"
    if "clipcap" in words:
        build_parser().parse_args(words[words.index("clipcap") + 1 :])
    if words[0] == "accelerate":
        launch_command_parser().parse_args(words[2:])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "pip":
        assert set(re.findall(r"\w+", words[2])) <= extras()


def extras() -> set[str]:
    text = (REPO / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", text, re.MULTILINE))


def test_the_extras_are_those_of_the_package():
    assert {cells[0].strip("`") for cells in rows_after("Install")} == extras()


def test_option_tables_and_file_map_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert all(f"<!-- made: {name} -->" in README for name in generate.MAKERS)
    assert generate.renewed(README) == README, "the README is behind the code: run python docs/generate.py"


def parsers(parser=None):
    """A parser and those of its subcommands."""
    parser = parser or build_parser()
    yield parser
    for action in parser._actions:
        for below in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from parsers(below)


def test_every_flag_that_the_text_names_exists():
    known = set(chain(*(parser._option_string_actions for parser in parsers()))) | {"--only-prefix"}
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--\w[\w-]*", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert named <= known | FOREIGN_FLAGS


def test_every_flag_of_the_original_trainer_is_taken():
    train = next(parser for parser in parsers() if parser.prog == "clipcap train")
    assert set(ORIGINAL_TRAIN_FLAGS.split()) <= set(train._option_string_actions)


def test_files_that_the_readme_links_to_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    local = [target for target in chain(*targets) if target and "://" not in target]
    assert local and all((REPO / target).exists() for target in local)


def test_the_picture_is_drawn_by_the_package_and_its_caption_is_its_own():
    scene = make_scene(PLATE_SCENE)
    shown = np.asarray(Image.open(REPO / "docs" / "plate.jpg").convert("RGB"), dtype=float)
    assert np.abs(shown - np.asarray(draw(scene, len(shown)), dtype=float)).mean() < 3  # JPEG's own loss
    assert re.search(r"^> (.+)$", README, re.MULTILINE)[1] in captions(scene)
