"""Parsing: each image once, the same bytes whatever happens on the way, nothing invented for what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.road import REPO, draw_photos, draw_set, picture, run, start, write_captions

from clipcap.errors import ClipcapError
from clipcap.features.config import ParseConfig
from clipcap.features.encode import encode_halving
from clipcap.features.files import read_features
from clipcap.features.parse import parse
from clipcap.features.unfinished import PartialRows
from clipcap.images.read import open_image
from clipcap.images.skipped import too_many
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai import OpenAIEncoder
from tests.faults.forked import Running, two_ranks

IMAGES, BATCH = 11, 4  # two full batches and a rest


@pytest.fixture
def photos(tmp_path):
    return draw_set(tmp_path / "set", IMAGES)


@pytest.fixture
def parsing(tmp_path, photos, clip_file, messages):
    """Parses the photos in this process: (features, what was said)."""

    def run_parse(**options):
        defaults = {"data_path": str(photos), "clip_model_type": str(clip_file), "out": str(tmp_path / "f.pkl"),
                    "batch_size": BATCH, "device": "cpu", "workers": 0}  # fmt: skip
        messages()
        written = parse("custom", ParseConfig.of(**{**defaults, **options}))
        return (read_features(written[0]) if written else None), messages()

    return run_parse


class Watched(OpenAIEncoder):
    """Remembers what it is given; can stop in the middle of the work, as Ctrl-C does."""

    def __init__(self, name, stop_after=None, spoilt=()):
        super().__init__(name, torch.device("cpu"), torch.float32)
        self.images, self.stop_after, self.spoilt = [], stop_after, spoilt

    def encode_images(self, pixels):
        if self.stop_after is not None and len(self.images) >= self.stop_after:
            raise KeyboardInterrupt
        self.images += list(pixels)
        embeddings = super().encode_images(pixels).clone()
        for row in self.spoilt:
            embeddings[row] = float("nan")
        return embeddings


@pytest.fixture
def watch(monkeypatch, clip_file):
    """Has the next run use a `Watched` encoder, which is returned."""

    def install(**options):
        encoder = Watched(str(clip_file), **options)
        monkeypatch.setattr("clipcap.features.parse.load_encoder", lambda *_: encoder)
        return encoder

    return install


def one_by_one(clip_file, paths):
    """Features as if each photo were alone."""
    encoder = load_encoder(str(clip_file), "cpu")
    return torch.cat([encoder.encode_images(encoder.preprocess(open_image(path))[None]) for path in paths])


def errors(place):
    with place.open(newline="") as file:
        return {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}


# --- each image once ----------------------------------------------------------------------------------------------


def test_each_image_is_encoded_once_though_it_has_five_captions(parsing, watch):
    encoder = watch()
    features, said = parsing()
    assert len(encoder.images) == IMAGES == features.num_images
    assert len(features.captions) == 5 * IMAGES
    assert features.captions_of(3) == [f"picture 3 said in way {k}" for k in range(5)]
    assert said[-2:] == [f"wrote {features.path}: 11 images, 55 captions", "no image was missing or unreadable"]


@pytest.mark.parametrize("workers", [0, 2])
def test_features_equal_encoding_one_by_one(workers, parsing, photos, clip_file):
    features, _ = parsing(workers=workers)
    assert features.image_ids == [f"photo{i}.png" for i in range(IMAGES)]
    alone = one_by_one(clip_file, [photos / name for name in features.image_ids])
    torch.testing.assert_close(features.rows(range(IMAGES)), alone, rtol=1e-5, atol=1e-5)


def test_a_feature_file_knows_its_encoder(parsing, clip_file):
    features, said = parsing()
    assert features.meta.encoder == str(clip_file)
    assert features.meta.encoder_weights_id == load_encoder(str(clip_file), "cpu").weights_id
    assert f"1 process on cpu, encoder {clip_file}, 64 wide, float32" in said


def test_a_folder_holds_the_same_as_a_pickle(parsing, tmp_path):
    pickle, _ = parsing()
    folder, _ = parsing(out=str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "img_emb" / "img_emb_0.npy").is_file()
    assert torch.equal(folder.rows(range(IMAGES)), pickle.rows(range(IMAGES)))
    assert list(folder.captions) == list(pickle.captions)


def test_numbers_of_sixteen_bits_are_stored_as_such(parsing, tmp_path):
    features, _ = parsing(dtype="float16")
    assert features.embeddings.dtype == torch.float16
    assert parsing(dtype="bfloat16", out=str(tmp_path / "b.pkl"))[0].embeddings.dtype == torch.float32


@pytest.mark.parametrize("out", ["f.pkl", "f"])
def test_images_can_be_found_from_any_folder(out, parsing, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features, _ = parsing(data_path="set", out=out)
    assert features.image_paths[1] == str(photos / "photo1.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(photos / "photo1.png", "1.png")
        tar.add(photos / "captions.csv", "1.txt")
    features, _ = parsing(data_path="shard.tar", out=out)
    assert features.image_paths[0] == str(tmp_path / "shard.tar" / "1.png")
    (photos / "photo1.png").unlink()
    parsing(data_path="set", out=out)
    assert (tmp_path / "f_errors.csv").read_text().splitlines()[1:] == [f"{photos / 'photo1.png'},file not found"]


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("a/food_train.pkl", ["food_train.pkl", "food_val.pkl"]),
        ("a/food.pkl", ["food_train.pkl", "food_val.pkl"]),
        ("a/food.v2", ["food.v2_train", "food.v2_val"]),
    ],
)
def test_several_splits_get_their_names(out, names, parsing, tmp_path):
    parsing(train_size=0.7, out=str(tmp_path / out))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names


def test_splits_are_by_image(parsing, tmp_path):
    parsing(train_size=0.7, out=str(tmp_path / "food_train.pkl"))
    train, val = (read_features(tmp_path / f"food_{split}.pkl") for split in ("train", "val"))
    assert (train.num_images, val.num_images) == (7, 4)
    assert not set(train.image_ids) & set(val.image_ids)
    assert len(train.captions) == 35


# --- what cannot be read ------------------------------------------------------------------------------------------


def test_bad_images_are_left_out_and_listed(parsing, photos, tmp_path, clip_file):
    (photos / "photo2.png").unlink()
    (photos / "photo5.png").write_bytes((photos / "photo5.png").read_bytes()[:200])
    (photos / "photo6.png").write_text("no picture")
    features, said = parsing(max_bad=0.5)
    good = [i for i in range(IMAGES) if i not in (2, 5, 6)]
    assert features.image_ids == [f"photo{i}.png" for i in good]
    alone = one_by_one(clip_file, [photos / f"photo{i}.png" for i in good])
    torch.testing.assert_close(features.rows(range(len(good))), alone, rtol=1e-5, atol=1e-5)
    found = errors(tmp_path / "f_errors.csv")
    assert found["photo2.png"] == "file not found"
    assert "cannot be read" in found["photo5.png"]
    assert "not an image" in found["photo6.png"]
    assert said[-1] == f"3 of 11 images skipped: 1 missing, 2 unreadable (listed in {tmp_path / 'f_errors.csv'})"


def test_a_batch_without_any_readable_image_is_no_row(parsing, photos):
    for i in range(BATCH):
        (photos / f"photo{i}.png").unlink()
    assert parsing(max_bad=0.5)[0].num_images == IMAGES - BATCH


def test_features_that_are_not_finite_are_left_out(parsing, watch, tmp_path):
    watch(spoilt=[1])
    features, _ = parsing(max_bad=0.5)
    assert features.num_images == IMAGES - 3
    assert all("no finite numbers" in reason for reason in errors(tmp_path / "f_errors.csv").values())


def test_too_many_bad_images_end_the_run_after_the_good_ones_are_saved(parsing, photos, tmp_path):
    for i in (1, 2):
        (photos / f"photo{i}.png").unlink()
    with pytest.raises(
        ClipcapError, match=r"2 of 11 images skipped: 2 missing.*--max_bad 0\.05.*9 good ones are saved"
    ):
        parsing()
    assert read_features(tmp_path / "f.pkl").num_images == 9
    assert not (tmp_path / "f.pkl.partial").exists()


def test_one_bad_image_is_always_allowed_unless_none_is_asked_for(parsing, photos, tmp_path):
    (photos / "photo1.png").unlink()
    assert parsing()[0].num_images == 10
    with pytest.raises(ClipcapError, match=r"more than --max_bad 0\.0"):
        parsing(max_bad=0.0)


@pytest.mark.parametrize(
    ("bad", "images", "max_bad", "too_many_of_them"),
    [(0, 1, 0.0, False), (1, 1000, 0.0, True), (1, 2, 0.05, False), (2, 39, 0.05, True), (2, 40, 0.05, False)],
)
def test_a_share_may_be_bad_and_one_image_always_unless_none_may(bad, images, max_bad, too_many_of_them):
    assert bool(too_many(bad, images, max_bad)) is too_many_of_them


def test_the_list_of_errors_does_not_outlive_them(parsing, photos, tmp_path):
    kept = (photos / "photo1.png").read_bytes()
    (photos / "photo1.png").unlink()
    parsing()
    assert (tmp_path / "f_errors.csv").exists()
    (photos / "photo1.png").write_bytes(kept)
    parsing()
    assert not (tmp_path / "f_errors.csv").exists()


def test_each_feature_file_has_a_list_of_errors_of_its_own(parsing, photos, tmp_path):
    """A clean run into the same folder used to delete another set's list, a bad one to overwrite it."""
    for number, out in ((1, "one.pkl"), (2, "two"), (3, "three_train.pkl")):
        kept = (photos / f"photo{number}.png").read_bytes()
        (photos / f"photo{number}.png").unlink()
        parsing(out=str(tmp_path / out), train_size=0.5 if "train" in out else None)
        (photos / f"photo{number}.png").write_bytes(kept)
    parsing(out=str(tmp_path / "clean.pkl"))
    lists = {path.name: list(errors(path)) for path in tmp_path.glob("*errors.csv")}
    assert lists == {"one_errors.csv": ["photo1.png"], "two_errors.csv": ["photo2.png"],
                     "three_errors.csv": ["photo3.png"]}  # fmt: skip


def test_a_set_of_which_no_image_can_be_read_is_an_error(parsing, photos, tmp_path):
    """One bad image is always allowed: a set of one used to end well and write nothing."""
    write_captions(photos, [("gone.png", "a caption")])
    with pytest.raises(ClipcapError, match=r"1 of 1 images skipped: 1 missing.*none is left, nothing is written"):
        parsing()
    assert not (tmp_path / "f.pkl").exists()


def test_images_without_a_caption_are_counted_in_the_last_line(parsing, photos, lm_folder, tokenizer, tmp_path):
    rows = [
        ("photo0.png", "a red apple"),
        ("photo1.png", "  "),
        ("photo2.png", ""),
        ("photo3.png", "a red apple " * 9),
    ]
    write_captions(photos, rows)
    assert parsing()[1][-1] == "2 of 4 images skipped: 0 missing, 0 unreadable, 2 without a caption"
    limit = len(tokenizer("a red apple")["input_ids"])
    _, said = parsing(token_limit=limit, lm=str(lm_folder))
    assert said[-1] == "3 of 4 images skipped: 0 missing, 0 unreadable, 3 without a caption"
    (photos / "photo3.png").unlink()
    listed = f"1 missing, 0 unreadable (listed in {tmp_path / 'f_errors.csv'}), 2 without a caption"
    assert parsing()[1][-1] == f"3 of 4 images skipped: {listed}"


def test_odd_pictures_work(tmp_path, clip_file):
    """Rotated by EXIF, CMYK, 16 bits, a palette: their features are those of the plain picture."""
    folder = tmp_path / "odd"
    draw_photos(folder, 1)
    photo = picture(1, (48, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    Image.open(folder / "turned.jpg").transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.open(folder / "cmyk.jpg").convert("RGB").save(folder / "rgb.png")
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(grey).save(folder / "eight.png")
    photo.quantize(16).save(folder / "palette.png")
    photo.quantize(16).convert("RGB").save(folder / "colours.png")
    Image.new("RGB", (3000, 1), "red").save(folder / "ribbon.png")
    write_captions(folder, [(path.name, "odd") for path in folder.iterdir()])
    options = {"data_path": str(folder), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0}
    parse("custom", ParseConfig.of(out=str(tmp_path / "odd.pkl"), **options))
    features = read_features(tmp_path / "odd.pkl")
    row = {name: features.rows([i])[0] for i, name in enumerate(features.image_ids)}
    for odd, plain in (("turned.jpg", "upright.png"), ("cmyk.jpg", "rgb.png"), ("sixteen.png", "eight.png"),
                       ("palette.png", "colours.png")):  # fmt: skip
        torch.testing.assert_close(row[odd], row[plain], rtol=1e-5, atol=1e-5)
    parse("custom", ParseConfig.of(out=str(tmp_path / "raw.pkl"), recipe="reference", **options))
    raw = read_features(tmp_path / "raw.pkl")
    turned = list(raw.image_ids).index("turned.jpg")
    assert (raw.rows([turned])[0] - row["turned.jpg"]).norm() > 0.1  # the original leaves it lying


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed(parsing, tmp_path):
    """The bytes of a run without interruption."""
    parsing(out=str(tmp_path / "whole.pkl"))
    return (tmp_path / "whole.pkl").read_bytes()


@pytest.mark.parametrize("images", [0, 4, 8])
def test_an_interrupted_run_goes_on_where_it_stopped(images, parsing, watch, undisturbed, tmp_path):
    watch(stop_after=images)
    with pytest.raises(KeyboardInterrupt):
        parsing()
    rest = watch()
    _, said = parsing()
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed
    assert len(rest.images) == IMAGES - images
    assert any("continuing where an earlier run stopped" in line for line in said) == bool(images)


def test_an_interrupt_that_a_decoder_swallows_ends_the_run_all_the_same(parsing, watch, undisturbed, tmp_path):
    encoder = watch()
    usual = encoder.preprocess

    def swallowing(image):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # interrupted at once
        except KeyboardInterrupt:
            raise ValueError("broken data stream") from None
        return usual(image)

    encoder.preprocess = swallowing
    with pytest.raises(KeyboardInterrupt):
        parsing()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    watch()
    parsing()
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed


def test_a_torn_log_line_does_not_count(parsing, watch, undisturbed, tmp_path):
    watch(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        parsing()
    log = tmp_path / "f.pkl.partial" / "done-0.jsonl"
    log.write_bytes(log.read_bytes()[:-7])  # the second batch's line is cut
    rest = watch()
    parsing()
    assert len(rest.images) == IMAGES - BATCH
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed


@pytest.mark.parametrize(
    "change", [{"batch_size": 3}, {"dtype": "float16"}, {"frame": "middle"}, {"recipe": "reference"}]
)
def test_another_commands_work_is_not_continued(change, parsing, watch, undisturbed, tmp_path, monkeypatch):
    watch(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        parsing()
    monkeypatch.undo()
    with pytest.raises(ClipcapError, match=r"f\.pkl\.partial holds the unfinished work of another command"):
        parsing(**change)
    parsing()
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed


def test_other_captions_are_another_command(parsing, watch, photos):
    watch(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        parsing()
    with (photos / "captions.csv").open("a") as file:
        file.write("photo0.png,one more\n")
    with pytest.raises(ClipcapError, match="unfinished work of another command"):
        parsing()


def test_a_removal_cut_short_counts_as_not_started(parsing, watch, undisturbed, tmp_path):
    watch(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        parsing()
    (tmp_path / "f.pkl.partial" / "fingerprint").unlink()
    again = watch()
    parsing()
    assert len(again.images) == IMAGES
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed


def command(photos, clip_file, out, **options):
    flags = {"data_path": photos, "clip_model_type": clip_file, "out": out, "batch_size": BATCH, "device": "cpu",
             **options}  # fmt: skip
    return ["parse", "custom", *(word for name, value in flags.items() for word in (f"--{name}", value))]


def batches_done(out):
    return sum(log.read_bytes().count(b"\n") for log in out.with_name(f"{out.name}.partial").glob("done-*.jsonl"))


def kill_after(runs, out, batches):
    """SIGKILL as soon as this many batches are done, some by each process; returns how many were in the end."""
    logs = out.with_name(f"{out.name}.partial")
    while batches_done(out) < batches or len(list(logs.glob("done-*.jsonl"))) < len(runs):
        assert runs[0].alive, runs[0].wait()
        time.sleep(0.002)
    for running in runs:
        running.kill()
    assert all(running.wait().killed for running in runs)
    return batches_done(out)


def test_a_killed_run_gives_the_same_bytes(tmp_path, clip_file):
    photos = draw_set(tmp_path / "many", 150, captions=1)
    whole, out = tmp_path / "whole.pkl", tmp_path / "f.pkl"
    options = {"data_path": str(photos), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0}
    parse("custom", ParseConfig.of(out=str(whole), batch_size=1, **options))
    for moment in (1, 40, 90):
        running = Running(command(photos, clip_file, out, batch_size=1, workers=0), tmp_path / "log")
        assert moment <= kill_after([running], out, moment) < 150
    finish = start(*command(photos, clip_file, out, batch_size=1, workers=1))
    _, err = finish.communicate(timeout=60)
    assert finish.returncode == 0, err
    assert "continuing where an earlier run stopped" in err
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pkl", "log", "many", "whole.pkl"]


def test_ctrl_c_ends_without_tracebacks(tmp_path, clip_file):
    photos = draw_set(tmp_path / "many", 1500, captions=1)  # seconds of work: the signal comes long before its end
    out = tmp_path / "f.pkl"
    process = start(*command(photos, clip_file, out, batch_size=1, workers=2))
    while batches_done(out) < 5 and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal: to all processes
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"clipcap: interrupted; [1-9]\d* batches .*: the same command continues", err.splitlines()[-1]
    )
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are looked up in /proc")
def test_a_worker_that_dies_is_said_in_one_line(tmp_path, clip_file, messages):
    photos, out = draw_set(tmp_path / "many", 1500, captions=1), tmp_path / "f.pkl"
    process = start(*command(photos, clip_file, out, batch_size=1, workers=1))
    while batches_done(out) < 3 and process.poll() is None:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("clipcap: error: a process that decodes images died")
    assert err.count("clipcap: error") == 1 and "Traceback" not in err
    options = {"data_path": str(photos), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0}
    messages()
    parse("custom", ParseConfig.of(out=str(out), batch_size=1, **options))
    assert any("continuing where an earlier run stopped" in line for line in messages())


def test_two_runs_of_one_command_do_not_work_side_by_side(tmp_path, clip_file):
    photos = draw_set(tmp_path / "many", 300, captions=1)
    out = tmp_path / "f.pkl"
    other = Running(command(photos, clip_file, out, batch_size=1), tmp_path / "log", first=os.setsid)
    while batches_done(out) < 2 and other.alive:
        time.sleep(0.002)
    other.kill(signal.SIGSTOP)
    try:
        options = {"data_path": str(photos), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0}
        with pytest.raises(ClipcapError, match=r"f\.pkl: another process is writing there: wait for it"):
            parse("custom", ParseConfig.of(out=str(out), batch_size=1, **options))
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


# --- processes ----------------------------------------------------------------------------------------------------


def test_two_processes_give_the_same_file(photos, clip_file, undisturbed, tmp_path):
    """Whatever torchrun does to the number of threads, on which PyTorch's last bits depend."""
    words = command(photos, clip_file, tmp_path / "f.pkl", workers=0)[2:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, REPO / "parse" / "custom.py", *map(str, words)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"}, cwd=REPO, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    assert done.stderr.count("wrote") == 1
    assert (tmp_path / "f.pkl").read_bytes() == undisturbed


def test_the_number_of_processes_may_change_between_runs(tmp_path, clip_file, messages):
    photos, out = draw_set(tmp_path / "many", 400, captions=1), tmp_path / "f.pkl"
    options = {"data_path": str(photos), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0,
               "batch_size": BATCH}  # fmt: skip
    parse("custom", ParseConfig.of(out=str(tmp_path / "whole.pkl"), **options))
    done = kill_after(two_ranks(command(photos, clip_file, out, workers=0), tmp_path / "log"), out, 4)
    assert 4 <= done < 100
    messages()
    parse("custom", ParseConfig.of(out=str(out), **options))
    assert f"continuing where an earlier run stopped: {done} batches of 4 are done" in messages()
    assert out.read_bytes() == (tmp_path / "whole.pkl").read_bytes()


@pytest.mark.parametrize("batch", [1, 5, 7, 16])
def test_the_number_of_threads_does_not_change_a_bit(batch, parsing, tmp_path):
    usual, files = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            files.append(parsing(batch_size=batch, out=str(tmp_path / f"{threads}.pkl"))[0].path.read_bytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    assert files[0] == files[1]


def test_batches_that_another_machine_kept_to_itself_are_missed(parsing, tmp_path, monkeypatch):
    monkeypatch.setattr("clipcap.features.parse.encode_missing", lambda *_: None)
    with pytest.raises(ClipcapError, match="3 batches of other processes are not there"):
        parsing()
    assert not (tmp_path / "f.pkl").exists()


class SmallGPU(OpenAIEncoder):
    """Runs out of memory on batches of more than `room` images."""

    def __init__(self, name, room):
        super().__init__(name, torch.device("cpu"), torch.float32)
        self.room, self.sizes = room, []

    def encode_images(self, pixels):
        if len(pixels) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(pixels))
        return super().encode_images(pixels)


def test_a_batch_too_big_for_the_gpu_is_halved(clip_file):
    encoder = SmallGPU(str(clip_file), room=3)
    pixels = torch.randn(11, 3, 64, 64)
    [embeddings] = encode_halving(lambda part: (encoder.encode_images(part),), pixels)
    assert encoder.sizes == [3, 3, 3, 2]
    whole = load_encoder(str(clip_file), "cpu").encode_images(pixels)
    torch.testing.assert_close(embeddings, whole, rtol=1e-5, atol=1e-5)


def test_a_gpu_without_room_for_one_image_is_said(clip_file):
    with pytest.raises(ClipcapError, match="not even one image fits the GPU's memory"):
        encode_halving(SmallGPU(str(clip_file), room=0).encode_images, torch.randn(4, 3, 64, 64))


# --- dry run, token limit -----------------------------------------------------------------------------------------


def test_a_dry_run_encodes_and_writes_nothing(parsing, watch, photos, tmp_path, capsys):
    (photos / "photo2.png").unlink()
    encoder = watch()
    before = sorted(tmp_path.rglob("*"))
    features, _ = parsing(dry_run=True, clip_model_type="no such encoder")
    report = capsys.readouterr().out
    assert features is None
    assert not encoder.images
    assert sorted(tmp_path.rglob("*")) == before
    assert "11 images with 55 captions (per image: min 5, mean 5.00, max 5)" in report
    assert "10 found, 1 missing, 0 unreadable" in report
    assert "words, not tokens" in report


def test_a_dry_run_that_finds_no_image_reports_and_fails(parsing, photos, capsys):
    for photo in photos.glob("photo*"):
        photo.unlink()
    with pytest.raises(ClipcapError, match="none of these images can be read: correct --data_path or --images"):
        parsing(dry_run=True, clip_model_type="no such encoder")
    assert "images: 0 found" in capsys.readouterr().out


def test_a_dry_run_counts_tokens_where_there_is_a_tokenizer(parsing, lm_folder, capsys):
    parsing(dry_run=True, lm=str(lm_folder))
    assert "tokens, image" in capsys.readouterr().out


def test_the_token_limit_counts_tokens(parsing, photos, lm_folder, tokenizer):
    long = "a red apple " * 30
    write_captions(photos, [("photo0.png", "a red apple"), ("photo0.png", long), ("photo1.png", long)])
    limit = len(tokenizer("a red apple")["input_ids"])
    features, said = parsing(token_limit=limit, lm=str(lm_folder))
    assert features.captions == ["a red apple"]
    assert f"--token_limit {limit}: 2 longer captions dropped, 1 images left without one" in said
    with pytest.raises(ClipcapError, match=f"set: every caption is longer than --token_limit {limit - 1}"):
        parsing(token_limit=limit - 1, lm=str(lm_folder))
    with pytest.raises(ClipcapError, match="every caption is longer"):
        parsing(token_limit=limit - 1, lm=str(lm_folder), dry_run=True)


def test_a_token_limit_without_a_tokenizer_is_an_error(parsing):
    with pytest.raises(ClipcapError, match=r"--token_limit counts tokens, but .*'nobody/nothing'.*hf download"):
        parsing(token_limit=9, lm="nobody/nothing")


# --- places -------------------------------------------------------------------------------------------------------


def test_places_that_cannot_take_the_features_are_refused_before_the_work(parsing, photos, watch, tmp_path):
    encoder = watch()
    (tmp_path / "folder.pkl").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, said in (("folder.pkl", "is a folder"), ("file", "is a file"), ("set", "is a folder of other files"),
                      ("file/f.pkl", r"file/f\.pkl\.partial: cannot be written \(Not a directory\)")):  # fmt: skip
        with pytest.raises(ClipcapError, match=said):
            parsing(out=str(tmp_path / out))
    assert not encoder.images
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(photos.iterdir())) == IMAGES + 1


def test_a_full_disk_loses_nothing(tmp_path, small_disk, clip_file, capsys):
    photos, out = draw_set(tmp_path / "many", 60, captions=1), small_disk / "f.pkl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 44_000)
    words = command(photos, clip_file, out, workers=0)
    status, _, err = run(capsys, *words)
    assert status == 1
    assert "f.pkl.partial: cannot be written (No space left on device): make room" in err[-1]
    assert sum(line.startswith("clipcap: error: ") for line in err) == 1 and "Traceback" not in "".join(err)
    done = batches_done(out)
    assert 0 < done < 15
    ballast.unlink()
    status, printed, said = run(capsys, *words)
    assert (status, printed) == (0, [])
    assert f"continuing where an earlier run stopped: {done} batches of 4 are done" in said
    assert read_features(out).num_images == 60


def test_a_read_only_place_is_said(parsing, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ClipcapError, match=r"f\.pkl\.partial: cannot be written \(Read-only file system\)"):
        parsing(out=str(small_disk / "f.pkl"))


def test_rows_of_a_selection_are_read_from_disk(tmp_path):
    partial = PartialRows(tmp_path / "f.pkl", "abc", 5, 3, torch.float32, 0)
    partial.create()
    values = torch.arange(15.0).view(5, 3)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda i: partial.write(i, [i], values[i : i + 1], []), range(5)))
    chosen = partial.rows([0, 3, 4])
    assert isinstance(chosen, np.memmap)
    assert np.array_equal(chosen, values[[0, 3, 4]].numpy())
    assert partial.done() == set(range(5))
    assert json.loads((tmp_path / "f.pkl.partial" / "done-0.jsonl").read_text().splitlines()[0])["bad"] == []


# --- used and left out ---------------------------------------------------------------------------------------------


def test_the_last_lines_account_for_every_photo(parsing, tmp_path):
    folder = draw_set(tmp_path / "mixed", 6)
    for number in range(6):
        (folder / f"photo{number}.txt").write_text(f"photo number {number}")
    (folder / "captions.csv").unlink(missing_ok=True)
    (folder / "photo0.txt").unlink()
    (folder / "photo1.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(folder / "photo2.png")
    _, said = parsing(data_path=str(folder), max_bad=0.5)
    assert "1 image of more than 8 bits, shown with 4095 as white" in said
    listed = f"0 missing, 1 unreadable (listed in {tmp_path / 'f_errors.csv'}), 1 without a caption"
    assert said[-1] == f"2 of 6 images skipped: {listed}"
    (folder / "photo1.png").rename(folder / "photo1.CR2")
    _, said = parsing(data_path=str(folder), max_bad=0.5)
    assert any("photo1.CR2: " in line and "convert it" in line for line in said)


def test_pictures_inside_a_table_give_the_features_of_files(parsing, tmp_path, photos):
    paths = sorted(photos.rglob("*.png"))
    rows = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "text": path.stem} for path in paths]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=3)
    stored, _ = parsing(data_path=str(tmp_path / "t.parquet"), workers=1)
    files, _ = parsing(data_path=str(put_texts(tmp_path / "files", paths)), out=str(tmp_path / "g.pkl"), workers=1)
    assert torch.equal(stored.rows(range(len(paths))), files.rows(range(len(paths))))
    assert list(stored.captions) == list(files.captions)


def put_texts(folder, paths):
    """The photos in a folder of their own, each with its name as its caption."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:03d}.png").write_bytes(path.read_bytes())
        (folder / f"{number:03d}.txt").write_text(path.stem)
    return folder
