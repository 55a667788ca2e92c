"""A reader of the documents: a folder with small sets in every layout, and somebody who types the commands."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from clipcap.cli.main import main
from clipcap.demo.plates import write_set

REPO = Path(__file__).resolve().parents[2]


def make_folder(folder: Path, model: torch.nn.Module) -> None:
    """What a reader has: the clone's scripts, photos, a set in every layout, `model` as a `.pt` of the original."""
    from clipcap.models.original import export_reference

    for script in ("train.py", "predict.py"):
        shutil.copy(REPO / script, folder)
    shutil.copytree(REPO / "parse", folder / "parse", ignore=shutil.ignore_patterns("__pycache__"))
    photos = write_set(folder / "food", 12, size=32) / "dataset"
    shutil.copy(photos / "0.jpg", folder / "photo.jpg")
    shutil.copytree(photos, folder / "photos")
    _coco(folder / "coco", photos)
    _flickr8k(folder / "flickr8k", photos)
    _conceptual(folder / "conceptual", photos)
    _custom(folder, photos)
    _tars(folder / "shards", ["00000.tar", "00001.tar"], photos)
    _tars(folder / "cc3m", ["00000.tar"], photos)
    _original_pickle(folder / "data" / "coco" / "oscar_split_ViT-B_32_train.pkl")
    export_reference(model, folder / "coco_weights.pt")


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
        if words[:2] in (["parse", "texts"], ["index", "photos"]):
            return {"--clip_model_type": self.clip}
        if "parse" in words or words[0].startswith("parse/"):
            return {"--clip_model_type": self.clip, "--lm": self.lm}
        if {"train", "train-clip-gpt"} & set(words) or words[0] == "train.py":
            return {"--lm": self.lm, "--epochs": "1"}
        if words[0] == "evaluate" and "--train_data" not in words:
            return {"--no_java": None}  # Java, which takes seconds to start, judges one evaluation of a page
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
                words += [flag] if value is None else [flag, value]
        return environment, words

    def run(self, command: str) -> None:
        """Type a command; it must end well, and print a caption alone where it captions one photo."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err):
            status = self.type(command)
        shown, notes = (stream.buffer.getvalue().decode() for stream in (out, err))
        assert status == 0, f"{command}\nends with {status}:\n{shown}\n{notes}"
        if "--img photo.jpg" in command and "predict" in command:
            assert len(shown.splitlines()) == 1, f"{command}\nprints more than the caption:\n{shown}"

    def execute(self, block: str, names: dict, name: str) -> None:
        """Run a block of Python, the small encoder in place of the published one."""
        with redirect_stdout(io.StringIO()):
            exec(compile(block.replace("ViT-B/32", self.clip), name, "exec"), names)

    def type(self, command):
        """Run a command, in this process where it is one of clipcap's; its exit status."""
        environment, (program, *words) = self.words(command)
        if program == "clipcap":
            return main(words)
        if program == "python" and words[0] != "-m":
            return self._script(words)
        launcher = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        environment = {**os.environ, **environment}
        ended = subprocess.run([sys.executable, *launcher, *words], env=environment, capture_output=True, text=True)
        print(ended.stdout)
        print(ended.stderr, file=sys.stderr)
        return ended.returncode

    def _script(self, words):
        before, sys.argv = sys.argv, words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            return end.code
        finally:
            sys.argv = before
        raise AssertionError(f"{words[0]} ended without a status")


@contextmanager
def inside(folder: Path):
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
