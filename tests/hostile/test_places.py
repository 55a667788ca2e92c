"""Where commands write: no device is replaced, no link followed, and of two runs into one place one is told."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from support.road import draw_photos, draw_set, run, save_captioner
from support.small import feature_file, flags, options
from support.small_generator import write_small_generator

from clipcap.cli.main import main
from clipcap.errors import ClipcapError
from clipcap.runtime.files import recover, replaced_file, replaced_folder
from clipcap.runtime.places import sole_writer, writes_to
from clipcap.text_to_image.mapping import MappingFacts, TextMapping, save_mapping
from tests.faults.forked import warm_up

PAIRS = int(os.environ.get("CLIPCAP_PAIRS", "1"))  # 20 by hand


@pytest.fixture(params=["device", "pipe", "socket"])
def special(request, tmp_path, monkeypatch):
    """What is no file, and the place of nothing but itself."""
    path = tmp_path / "special.pkl"
    if request.param == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("making a device needs root")
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(tmp_path)  # addresses of sockets are short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    return path


def test_what_is_no_file_stays_what_it_is(special, tmp_path):
    kind = stat.S_IFMT(special.lstat().st_mode)
    link = tmp_path / "link.pkl"
    link.symlink_to(special)
    for place in (special, link):
        for replaced in (replaced_file, replaced_folder):
            with pytest.raises(ClipcapError, match="only files and folders are written"), replaced(place):
                pytest.fail("was opened")
    assert stat.S_IFMT(special.lstat().st_mode) == kind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.pkl", "special.pkl"]


def test_commands_refuse_them_before_they_work(special, tmp_path, capsys):
    data = feature_file(tmp_path / "in" / "f.pkl")
    for words in (("features", "convert", data, "--out"), ("index", data, "--out"), ("export", "demo", "--out"),
                  ("predict", "--features", data, "--out"), ("evaluate", "--data", data, "--out"),
                  ("train", "--data", data, "--out_dir")):  # fmt: skip
        special = special.rename(special.with_suffix(".pt" if words[0] == "export" else ".jsonl"))
        status, _, err = run(capsys, *words, special)
        assert status == 1, words
        assert "only files and folders are written" in err[-1], words


def test_a_link_in_the_way_of_a_draft_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    for name in (".out.draft", ".out.0123456789abcdef.draft", ".out.lock"):
        (tmp_path / name).symlink_to("precious")
    with replaced_file(tmp_path / "out") as draft:
        draft.write_text("new")
    assert (tmp_path / "out").read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_planted_folder_is_not_taken_for_an_interrupted_replacement(tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / ".out.new").symlink_to("evil")
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "evil").is_dir()


def test_drafts_of_killed_runs_are_removed_but_no_others(tmp_path):
    for name in (".out.0123456789abcdef.draft", ".out.draft", ".outer.0123456789abcdef.draft"):
        (tmp_path / name).touch()
    with replaced_file(tmp_path / "out") as draft:
        draft.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".outer.0123456789abcdef.draft", "out"]


def in_a_child(work, log: Path) -> int:
    """The process in which `work` runs; what it prints goes to `log`."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_lock_ends_with_its_holder_and_leaves_nothing(tmp_path):
    place = tmp_path / "out"
    ready, hold = os.pipe(), os.pipe()

    def holder():
        with sole_writer(place):
            os.write(ready[1], b"x")
            os.read(hold[0], 1)
            os._exit(9)  # as a kill

    child = in_a_child(holder, tmp_path / "log")
    os.read(ready[0], 1)
    with pytest.raises(ClipcapError, match="another process is writing there"), sole_writer(place):
        pytest.fail("was let in")
    with sole_writer(tmp_path / "other"):
        pass
    os.write(hold[1], b"x")
    assert status_of(child) == 9
    with sole_writer(place), sole_writer(place / "below"):
        assert (tmp_path / ".out.lock").exists()
    assert not (tmp_path / ".out.lock").exists()


def test_the_place_is_found_among_arguments_by_name_and_by_position(tmp_path):
    seen = []

    @writes_to("out")
    def write(what, out, more=None):
        seen.append((tmp_path / ".there.lock").exists())

    write("x", tmp_path / "there")
    write(out=tmp_path / "there", what="x")
    write("x", None)
    assert seen == [True, True, False]


@pytest.fixture(scope="module")
def material(tmp_path_factory, lm_folder, clip_file):
    """What commands are given."""
    warm_up()
    folder = tmp_path_factory.mktemp("material")
    feature_file(folder / "f.pkl", dim=64)
    feature_file(folder / "g.pkl", dim=64, seed=1)
    draw_set(folder / "photos", 4, 2)
    save_captioner(folder / "captioner", lm_folder, clip_file, tune="none")
    parse = ["parse", "custom", "--data_path", folder / "photos", "--clip_model_type", clip_file, "--device", "cpu"]
    write_texts_and_drawings(folder, lm_folder)
    made = [
        [*parse, "--out", folder / "p.pkl"],
        ["train-clip-gpt", *small_clip_gpt(folder, lm_folder), "--out_dir", folder / "clip_gpt"],
        [*text_tower(folder), "--out_dir", folder / "tower"],
        *([*evaluation(folder), "--seed", seed, "--out", folder / f"scores{seed}"] for seed in range(2)),
    ]
    for words in made:
        child = in_a_child(lambda words=words: main(list(map(str, words))), folder / "log")
        assert status_of(child) == 0, (folder / "log").read_text()
    return folder


def write_texts_and_drawings(folder: Path, lm: Path) -> None:
    """What fit, draw, synthesise, slideshow, parse texts and features import are given."""
    photos = draw_photos(folder / "many", 12)
    rows = [f"{photo.name},a plate with {number} things\n" for number, photo in enumerate(photos)]
    (folder / "many" / "captions.csv").write_text("image,caption\n" + "".join(rows))
    draw_photos(folder / "slides", 2)
    generator = write_small_generator(folder / "generator")
    facts = MappingFacts(str(lm), str(generator), 12, True)
    torch.manual_seed(0)
    save_mapping(TextMapping(torch.randn(4, 64) / 8, torch.randn(4), facts), folder / "mapping")
    foods = ("two apples on a plate", "one banana", "cherries on a table", "a donut", "an empty plate")
    (folder / "captions.txt").write_text("\n".join(foods))
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32))
    (folder / "x.csv").write_text("id,caption\n" + "".join(f"{n},a sound of {n}\n" for n in range(4)))


def small_clip_gpt(material: Path, lm: Path) -> list:
    """What train-clip-gpt is given."""
    return ["--data", material / "p.pkl", "--val", 0.25, "--lm", lm, "--epochs", 1, "--bs", 4, "--val_captions", 1]


def text_tower(material: Path) -> list:
    """The training of a text tower for features."""
    return ["contrastive", "features", "--data", material / "f.pkl", "--epochs", 1, "--bs", 4, "--embed_dim", 16,
            "--text_width", 64, "--text_layers", 1]  # fmt: skip


def evaluation(material: Path) -> list:
    """An evaluation of the captioner, by samples."""
    return ["evaluate", "--load_pt", material / "captioner", "--data", material / "p.pkl", "--no_beam", "--top_p",
            0.9, "--max_new_tokens", 6, "--no_java", "--no_clip_score", "--device", "cpu"]  # fmt: skip


def writing_commands(material: Path, lm: Path, clip: Path) -> dict[str, list]:
    """Each command that writes, and the name of what it writes."""
    f, photos, captioner = material / "f.pkl", material / "photos", material / "captioner"
    train = flags(options(f, lm, Path("OUT"), epochs=1))
    return {
        "parse": ["parse", "custom", "--data_path", photos, "--clip_model_type", clip, "--device", "cpu", "--out",
                  "OUT.pkl"],
        "parse to a folder": ["parse", "custom", "--data_path", photos, "--clip_model_type", clip, "--out", "OUT"],
        "train": ["train", *train],
        "convert": ["features", "convert", f, "--out", "OUT"],
        "merge": ["features", "merge", f, material / "g.pkl", "--prefix_ids", "--out", "OUT.pkl"],
        "split": ["features", "split", f, "--out", "OUT.pkl"],
        "index": ["index", f, "--out", "OUT"],
        "export": ["export", captioner, "--out", "OUT.pt"],
        "predict": ["predict", "--beam", "--load_pt", captioner, "--img", photos, "--out", "OUT.jsonl"],
        "search": ["search", "--index", f, "--image_id", "photo1", "--out", "OUT.jsonl"],
        "contrastive": ["contrastive", "custom", "--data_path", photos, "--out_dir", "OUT", "--train_size", 0.75,
                        "--epochs", 1, "--bs", 2, "--resolution", 32, "--patch_size", 8, "--vision_width", 64,
                        "--vision_layers", 1, "--text_width", 64, "--text_layers", 1, "--embed_dim", 32, "--workers",
                        0],
        "contrastive features": [*text_tower(material), "--out_dir", "OUT"],
        "project": ["features", "project", f, "--clip_model_type", material / "tower", "--out", "OUT.pkl"],
        "train with prompts": ["train", *train, "--prompts", "captions", "--datastore", f, "--prompt_captions", 1],
        "train-clip-gpt": ["train-clip-gpt", *small_clip_gpt(material, lm), "--out_dir", "OUT"],
        "evaluate": [*evaluation(material), "--seed", 0, "--out", "OUT"],
        "compare": ["compare", material / "scores0", material / "scores1", "--no_java", "--out", "OUT.html"],
        "imagine": ["imagine", "a plate", "--load_pt", material / "clip_gpt", "--index", material / "p.pkl", "--out",
                    "OUT.jsonl"],
        "import": ["features", "import", material / "x.npy", "--captions", material / "x.csv", "--encoder", "clap",
                   "--out", "OUT"],
        "parse texts": ["parse", "texts", "--data_path", material / "captions.txt", "--clip_model_type", clip,
                        "--device", "cpu", "--out", "OUT"],
        "classify": ["classify", "--img", photos, "--labels", "apple,egg", "--clip_model_type", clip, "--device",
                     "cpu", "--out", "OUT.jsonl"],
        "draw": ["draw", "two apples", "--load_pt", material / "mapping", "--device", "cpu", "--out", "OUT.gif"],
        "train-draw": ["train-draw", material / "captions.txt", "--generator", material / "generator", "--text_model",
                       lm, "--device", "cpu", "--out_dir", "OUT"],
        "synthesise": ["synthesise", material / "captions.txt", "--load_pt", material / "mapping", "--count", 8,
                       "--device", "cpu", "--out", "OUT"],
        "slideshow": ["slideshow", material / "slides", "--text", "two plates", "--out", "OUT.gif"],
        "fit": ["fit", material / "many", "--clip_model_type", clip, "--lm", lm, "--no_java", "--epochs", 1,
                "--bs", 4, "--out", "OUT"],
    }  # fmt: skip


NAMES = (
    "parse", "parse to a folder", "train", "convert", "merge", "split", "index", "export", "predict", "search",
    "contrastive", "contrastive features", "project", "train with prompts", "train-clip-gpt", "evaluate", "compare",
    "imagine", "import", "parse texts", "classify", "draw", "train-draw", "synthesise", "slideshow",
    *["fit"] * (PAIRS > 1),
)  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """All files that a command wrote, but for those with times in them, or digests of such."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log0", "log1", "steps.jsonl", ".train_done")
    }


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_into_one_place_leave_the_result_of_one(name, material, lm_folder, clip_file, tmp_path, monkeypatch):
    words = list(map(str, writing_commands(material, lm_folder, clip_file)[name]))
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    assert status_of(in_a_child(lambda: main(words), tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    right = content(alone)
    assert right
    for pair in range(PAIRS):
        folder = tmp_path / f"pair{pair}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        logs = [folder / f"log{number}" for number in range(2)]
        statuses = [status_of(child) for child in [in_a_child(lambda: main(words), log) for log in logs]]
        texts = [log.read_text() for log in logs]
        assert 0 in statuses, texts
        for status, text in zip(statuses, texts):
            told = [line for line in text.splitlines() if line.startswith("clipcap: error: ")]
            assert "Traceback" not in text
            assert status == 0 or (status == 1 and len(told) == 1), texts
            # One that comes when the first has ended finds its run, or writes the same again.
            assert status == 0 or "another process" in told[0] or "holds a run already" in told[0], texts
        assert content(folder) == right
        shutil.rmtree(folder)
