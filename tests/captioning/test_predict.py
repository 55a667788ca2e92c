"""Prediction: where captions go, what they carry, and what happens to photos that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.disks import files_no_larger_than
from support.road import SHORT, draw_photos, lines_of, picture, run, save_captioner

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.tiny import make_clip
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.models.checkpoint import load_checkpoint, save_checkpoint
from clipcap.models.encoders.load import load_encoder
from clipcap.models.original import export_reference


@pytest.fixture(scope="module")
def expected(checkpoint):
    """Beam captions through the Python interface."""
    captioner = Captioner.from_pretrained(checkpoint, device="cpu")
    return lambda paths, **options: captioner.caption(paths, DecodeConfig(beam=True, max_new_tokens=8, **options))


def feature_file(path, clip_file, photos, **meta):
    encoder = load_encoder(str(clip_file), "cpu")
    rows = encoder.encode_images(torch.stack([encoder.preprocess(picture(i)) for i in range(len(photos))]))
    known = {"encoder": encoder.name, "encoder_weights_id": encoder.weights_id, **meta}
    names = [str(photo) for photo in photos]
    write_features(path, embeddings=rows, image_ids=names, image_paths=names, captions=[("x",)] * len(names),
                   meta=FeatureMeta(**known))  # fmt: skip
    return path


# --- on the terminal ----------------------------------------------------------------------------------------------


def test_a_single_photo_prints_its_caption_alone(caption, photos, expected):
    status, out, err = caption("--beam", "--img", photos[0])
    assert (status, out) == (0, [expected(photos[:1])[0][0].text])
    assert len(err) == 1  # what was loaded
    assert "mlp mapper, prefix 4" in err[0]


def test_command_evaluation_and_python_write_the_same_caption_by_default(
    caption, capsys, checkpoint, photos, clip_file, tmp_path
):
    data = feature_file(tmp_path / "val.pkl", clip_file, photos)
    words = ("--load_pt", checkpoint, "--data", data, "--out", tmp_path / "scores", "--no_java", "--no_clip_score")
    assert run(capsys, "evaluate", *words, *SHORT)[0] == 0
    evaluated = [line["caption"] for line in json.loads((tmp_path / "scores" / "predictions.json").read_text())]
    python = Captioner.from_pretrained(checkpoint, device="cpu")(photos, max_new_tokens=8)
    predicted = [line.split("\t")[1] for line in caption("--img", *photos)[1]]
    assert (
        predicted == python == evaluated == [line.split("\t")[1] for line in caption("--beam", "--img", *photos)[1]]
    )


def test_several_photos_print_their_names(caption, photos, expected):
    _, out, _ = caption("--beam", "--img", photos[1], photos[0])
    captions = expected([photos[1], photos[0]])
    assert out == [f"{path}\t{found[0].text}" for path, found in zip((photos[1], photos[0]), captions)]


@pytest.mark.parametrize("what", ["photos", "photos/*.png", "**/*.png"])
def test_folders_and_globs_are_searched(what, caption, photos, tmp_path):
    (tmp_path / "photos" / "deep").mkdir()
    shutil.move(photos[4], tmp_path / "photos" / "deep" / "photo4.png")
    _, out, _ = caption("--beam", "--img", tmp_path / what)
    assert len(out) == (4 if what == "photos/*.png" else 5)


def test_several_captions_of_one_photo_come_best_first(caption, photos, expected):
    _, out, _ = caption("--beam", "--num_captions", 3, "--img", photos[0])
    assert out == [c.text for c in expected(photos[:1], num_captions=3)[0]]


def test_a_photo_is_captioned_the_same_alone_and_in_a_batch(caption, photos):
    _, together, _ = caption("--beam", "--img", *photos, "--batch_size", 3)
    alone = [f"{photo}\t{caption('--beam', '--img', photo)[1][0]}" for photo in photos]
    assert together == alone


def test_sampling_repeats_with_the_seed_whatever_the_batch(caption, photos):
    words = ("--img", *photos, "--seed", 7)
    first = caption(*words)[1]
    assert caption(*words, "--batch_size", 2)[1] == first
    assert caption("--img", *photos, "--seed", 8)[1] != first


def test_temperature_and_top_p_change_what_is_sampled(caption, photos):
    words = ("--img", *photos, "--seed", 7, "--top_p", 1)
    greedy = caption(*words, "--temp", 0)[1]
    assert caption(*words, "--greedy")[1] == greedy
    assert len({tuple(caption(*words, "--temp", t)[1]) for t in (0, 0.7, 2)}) == 3
    assert caption("--img", *photos, "--seed", 7, "--top_p", 0.3)[1] != caption(*words)[1]


def test_a_prompt_starts_every_caption(caption, photos):
    assert caption("--beam", "--img", photos[0], "--prompt", "a red apple")[1][0].startswith("a red apple")


def test_names_and_captions_cannot_forge_lines_or_steer_the_terminal(caption, tmp_path):
    names = ["a.png\nb.png\tforged", "\x1b[2J.png", "gnp.\u202eexe.png"]
    photo = draw_photos(tmp_path, 1)[0].read_bytes()
    for name in names:
        (tmp_path / f"{name}.png").write_bytes(photo)
    words = ("--beam", "--recipe", "reference", "--prompt", "one\ntwo\t\x1b[31m", "--img")
    _, out, _ = caption(*words, *(tmp_path / f"{name}.png" for name in names))
    assert [line.count("\t") for line in out] == [1, 1, 1]
    assert [line.split("\t")[0] for line in out] == [
        f"{tmp_path}/{name}.png" for name in (r"a.png\nb.png\tforged", r"\x1b[2J.png", r"gnp.\u202eexe.png")
    ]
    assert all(r"one\ntwo\t\x1b[31m" in line and "\x1b" not in line for line in out)
    (tmp_path / "bad\nclipcap: done.png").write_bytes(b"")
    assert len(caption("--img", tmp_path / "bad\nclipcap: done.png")[2]) == 2  # what was loaded, what was skipped


def test_samples_do_not_depend_on_bad_photos_before_them_nor_on_the_batch(caption, photos):
    words = ("--img", *photos, "--seed", 7)
    untouched = caption(*words)[1]
    photos[1].write_bytes(b"no picture")
    for batch_size in (1, 5):
        assert caption(*words, "--batch_size", batch_size)[1] == [untouched[0], *untouched[2:]]


# --- a model that says the same of every photo --------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind(checkpoint, tmp_path_factory):
    """A captioner whose mapper does not look at the embedding."""
    loaded = load_checkpoint(checkpoint)
    with torch.no_grad():
        loaded.model.mapper.model[0].weight.zero_()
    return save_checkpoint(loaded.model, loaded.tokenizer, tmp_path_factory.mktemp("blind") / "blind")


def test_the_same_caption_of_different_photos_is_warned_of(capsys, blind, tmp_path):
    photos = draw_photos(tmp_path, 8)
    status, out, err = run(capsys, "predict", "--load_pt", blind, "--beam", "--img", *photos, *SHORT)
    assert (status, len(out)) == (0, 8)
    assert err[-1].startswith("warning: only 1 different caption for 8 different images: ")


def test_few_photos_copies_of_one_and_a_model_that_looks_are_not_warned_of(capsys, blind, checkpoint, tmp_path):
    photos = draw_photos(tmp_path, 8)
    copies = [shutil.copy(photos[0], tmp_path / f"copy{i}.png") for i in range(8)]
    for folder, paths in ((blind, photos[:3]), (blind, copies), (checkpoint, photos)):
        _, _, err = run(capsys, "predict", "--load_pt", folder, "--beam", "--img", *paths, *SHORT)
        assert len(err) == 1


# --- files --------------------------------------------------------------------------------------------------------


def test_json_lines_hold_every_caption_best_first(caption, photos, expected, tmp_path):
    out = tmp_path / "new" / "captions.jsonl"
    status, printed, _ = caption("--beam", "--num_captions", 2, "--img", *photos, "--out", out)
    assert (status, printed) == (0, [])
    for line, photo, captions in zip(lines_of(out), photos, expected(photos, num_captions=2), strict=True):
        assert list(line) == ["image", "caption", "captions"]
        assert (line["image"], line["caption"]) == (str(photo), captions[0].text)
        assert [c["caption"] for c in line["captions"]] == [c.text for c in captions]
        assert [c["logprob"] for c in line["captions"]] == pytest.approx([c.logprob for c in captions], abs=1e-5)
        assert [c["clip_score"] for c in line["captions"]] == [None, None]


def test_csv_has_a_line_per_image(caption, photos, expected, tmp_path):
    caption("--beam", "--img", *photos, "--out", tmp_path / "captions.csv")
    with (tmp_path / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(photo) for photo in photos]
    assert [row["caption"] for row in rows] == [found[0].text for found in expected(photos)]
    assert list(rows[0]) == ["image", "caption", "logprob", "clip_score"]


def test_captions_with_commas_and_quotes_survive_a_csv(tmp_path):
    from clipcap.captioning.decode import Caption
    from clipcap.captioning.line_file import csv_lines

    text = 'a "red", round\napple'
    lines = csv_lines("a,b.jpg", [Caption(text, [1], -1.0, -1.0, 0.25)], first=True)
    assert list(csv.reader(io.StringIO(lines, newline="")))[1] == ["a,b.jpg", text, "-1.0000", "0.2500"]


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1", "\r1")


def test_a_spreadsheet_does_not_run_what_a_csv_holds(caption, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = draw_photos(tmp_path / "photos", 1)[0]
    names = [f"{start}.png" for start in FORMULAS]
    for name in names:
        shutil.copy(photo, name)
    words = ("--beam", "--recipe", "reference", "--prompt", '=HYPERLINK("http://a.b","c")', "--img")
    plain = shutil.copy(photo, "plain's.png")
    assert caption(*words, *[f"./{name}" for name in names], plain, "--out", "c.csv")[0] == 0
    assert caption(*words, *[f"./{name}" for name in names], plain, "--out", "c.jsonl")[0] == 0
    with open("c.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    exact = lines_of(tmp_path / "c.jsonl")
    assert [line["image"] for line in exact] == [*names, plain]
    assert [row["image"] for row in rows] == [*(f"'{name}" for name in names), plain]
    assert [row["caption"] for row in rows] == ["'" + line["caption"] for line in exact]
    assert all(line["caption"].startswith("=HYPERLINK(") for line in exact)
    assert [float(row["logprob"]) for row in rows] == pytest.approx(
        [c["captions"][0]["logprob"] for c in exact], abs=1e-4
    )


def test_an_older_file_is_replaced_only_when_there_is_a_caption(caption, photos, tmp_path):
    out = tmp_path / "captions.jsonl"
    out.write_text("older\n")
    assert caption("--img", photos[0], "--out", out, "--stop_token", "not one token")[0] == 1
    assert caption("--features", tmp_path / "missing.pkl", "--out", out)[0] == 1
    assert out.read_text() == "older\n"
    assert caption("--img", photos[0], "--out", out)[0] == 0
    assert len(lines_of(out)) == 1


def test_names_that_are_no_utf8_are_written(caption, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        shutil.copy(draw_photos(tmp_path, 1)[0], name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert caption("--img", os.fsdecode(name), tmp_path / "photo0.png", "--out", tmp_path / "c.jsonl")[0] == 0
    assert lines_of(tmp_path / "c.jsonl")[0]["image"] == os.fsdecode(name)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_full_disk_keeps_the_lines_before(suffix, caption, photos, tmp_path):
    out = tmp_path / f"captions.{suffix}"
    caption("--beam", "--img", *photos, "--out", out)
    whole = out.read_bytes()
    with files_no_larger_than(len(whole) - 5):
        status, _, err = caption("--beam", "--img", *photos, "--out", out)
    assert status == 1
    assert err[-1].startswith(f"clipcap: error: --out {out}: cannot be written: ")
    assert out.read_bytes() == whole[: whole.rindex(b"\n", 0, len(whole) - 1) + 1]


def test_sidecars_lie_beside_the_photos_and_are_kept(caption, photos, expected):
    photos[1].with_suffix(".txt").write_text("mine\n")
    status, out, err = caption("--beam", "--img", *photos, "--sidecar")
    assert (status, out) == (0, [])
    assert "1 of 5 photos have a .txt already (--overwrite replaces them)" in err
    captions = [found[0].text for found in expected(photos)]
    assert photos[0].with_suffix(".txt").read_text(encoding="utf-8") == captions[0] + "\n"
    assert photos[1].with_suffix(".txt").read_text() == "mine\n"
    assert caption("--beam", "--img", *photos, "--sidecar")[0] == 0  # nothing left to do
    caption("--beam", "--img", *photos, "--sidecar", "--overwrite")
    assert photos[1].with_suffix(".txt").read_text(encoding="utf-8") == captions[1] + "\n"
    assert len(list(photos[0].parent.iterdir())) == 10


def test_a_sidecar_that_cannot_be_written_is_one_line_and_leaves_no_draft(caption, photos):
    photos[0].with_suffix(".txt").mkdir()
    status, _, err = caption("--img", *photos, "--sidecar", "--overwrite")
    assert status == 1
    assert err[-1].startswith(f"clipcap: error: {photos[0].with_suffix('.txt')}: cannot be written (")
    assert sorted(photos[0].parent.iterdir()) == sorted([*photos, photos[0].with_suffix(".txt")])


def test_two_photos_cannot_share_a_sidecar(caption, photos):
    Image.open(photos[0]).save(photos[0].with_suffix(".jpg"))
    status, _, err = caption("--img", photos[0].parent, "--sidecar")
    assert status == 1
    jpg, png = photos[0].with_suffix(".jpg"), photos[0]
    assert f"warning: skipped {png}: {png.with_suffix('.txt')} is that of {jpg.name}" in err
    assert all(photo.with_suffix(".txt").exists() for photo in photos)


# --- bad photos ---------------------------------------------------------------------------------------------------


def test_a_bad_photo_among_good_ones_is_named_and_left_out(caption, photos, expected, tmp_path):
    photos[2].write_bytes(b"no picture")
    status, _, err = caption("--beam", "--img", *photos, "--batch_size", 2, "--out", tmp_path / "c.jsonl")
    assert status == 1
    skipped = [line for line in err if line.startswith("warning: skipped")]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"warning: skipped {photos[2]}: not an image")
    good = [photo for photo in photos if photo != photos[2]]
    assert [line["image"] for line in lines_of(tmp_path / "c.jsonl")] == [str(photo) for photo in good]
    assert [line["caption"] for line in lines_of(tmp_path / "c.jsonl")] == [c[0].text for c in expected(good)]


def test_captioned_and_left_out_add_up_and_pictures_of_other_depths_are_remarked(caption, photos):
    photos[2].write_bytes(b"no picture")
    (photos[0].parent / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(photos[0].parent / "deep.png")
    status, out, err = caption("--img", photos[0].parent)
    assert (status, len(out)) == (1, 5)
    assert "5 of 7 images captioned, 2 left out for the reasons above" in err
    assert "1 image of more than 8 bits, shown with 4095 as white" in err
    assert any("phone.HEIC" in line for line in err if line.startswith("warning: skipped"))


def test_what_is_wrong_with_the_encoder_is_no_fault_of_the_photo(capsys, photos, lm_folder, clip_file, tmp_path):
    folder = save_captioner(tmp_path / "c", lm_folder, clip_file, encoder=None, encoder_weights_id=None)
    status, _, err = run(capsys, "predict", "--load_pt", folder, "--img", *photos, *SHORT)
    assert (status, len(err)) == (1, 2)
    assert "the checkpoint does not say its encoder (64 wide): pass --clip_model_type" in err[-1]
    assert (
        run(capsys, "predict", "--load_pt", folder, "--img", *photos, "--clip_model_type", clip_file, *SHORT)[0] == 0
    )


def test_another_encoder_under_the_same_name_is_refused(capsys, photos, lm_folder, clip_file, tmp_path):
    folder = save_captioner(tmp_path / "c", lm_folder, clip_file)
    other = make_clip(tmp_path / "other.pt", seed=1)
    status, _, err = run(
        capsys, "predict", "--load_pt", folder, "--img", photos[0], "--clip_model_type", other, *SHORT
    )
    assert status == 1
    assert "has other weights" in err[-1]


# --- features, reranking ------------------------------------------------------------------------------------------


def test_features_are_captioned_like_their_photos(caption, photos, clip_file, tmp_path):
    path = feature_file(tmp_path / "f.pkl", clip_file, photos)
    assert caption("--beam", "--features", path)[1] == caption("--beam", "--img", *photos)[1]


def test_features_of_another_encoder_are_refused(caption, photos, clip_file, tmp_path):
    other = make_clip(tmp_path / "other.pt", seed=1)
    path = feature_file(tmp_path / "f.pkl", other, photos)
    status, _, err = caption("--features", path)
    assert status == 1
    assert f"{path}: embeddings were made with {other}" in err[-1]
    assert str(clip_file) in err[-1]


def test_features_of_another_width_are_refused(caption, photos, tmp_path):
    path = feature_file(tmp_path / "f.pkl", make_clip(tmp_path / "wide.pt", embed_dim=32), photos)
    assert "embeddings are 32 wide" in caption("--features", path)[2][-1]


def test_features_that_are_not_finite_are_named_and_left_out(caption, photos, clip_file, tmp_path):
    encoder = load_encoder(str(clip_file), "cpu")
    rows = encoder.encode_images(torch.stack([encoder.preprocess(picture(i)) for i in range(3)]))
    holed = rows.index_fill(0, torch.tensor(1), torch.nan)
    for path, embeddings in (("whole.pkl", rows), ("holed.pkl", holed)):
        write_features(
            tmp_path / path,
            embeddings=embeddings,
            image_ids=["a", "b\nforged", "c"],
            image_paths=[None] * 3,
            captions=[("x",)] * 3,
            meta=FeatureMeta(),
        )
    whole = caption("--seed", 7, "--features", tmp_path / "whole.pkl")[1]
    status, out, err = caption("--seed", 7, "--features", tmp_path / "holed.pkl")
    assert (status, out) == (1, [whole[0], whole[2]])
    assert r"warning: skipped b\nforged: its features are not finite" in err


def test_reranking_orders_by_the_fit_of_text_and_image(caption, photos, clip_file, tmp_path):
    caption("--beam", "--num_captions", 4, "--rerank", "clip", "--img", photos[0], "--out", tmp_path / "c.jsonl")
    (line,) = lines_of(tmp_path / "c.jsonl")
    encoder = load_encoder(str(clip_file), "cpu")
    image = encoder.encode_images(encoder.preprocess(picture(0))[None])
    texts = encoder.encode_texts([c["caption"] for c in line["captions"]])
    scores = torch.cosine_similarity(texts, image).tolist()
    assert scores == sorted(scores, reverse=True)
    assert [c["clip_score"] for c in line["captions"]] == pytest.approx(scores, abs=1e-5)
    assert line["caption"] == line["captions"][0]["caption"]


def test_reranking_keeps_the_best_fitting_of_several(caption, photos, tmp_path):
    caption("--beam", "--rerank", "clip", "--img", photos[0], "--out", tmp_path / "one.jsonl")
    caption("--beam", "--rerank", "clip", "--num_captions", 5, "--img", photos[0], "--out", tmp_path / "all.jsonl")
    (one,), (every,) = lines_of(tmp_path / "one.jsonl"), lines_of(tmp_path / "all.jsonl")
    assert one["captions"] == every["captions"][:1]


def test_features_can_be_reranked(caption, photos, clip_file, tmp_path):
    path = feature_file(tmp_path / "f.pkl", clip_file, photos)
    assert caption("--beam", "--rerank", "clip", "--features", path)[0] == 0


# --- checkpoints, mistakes ----------------------------------------------------------------------------------------


def test_a_reference_checkpoint_predicts_with_its_language_model(capsys, checkpoint, photos, lm_folder, clip_file,
                                                                 tmp_path):  # fmt: skip
    status, out, _ = run(capsys, "export", checkpoint, "--out", tmp_path / "old.pt")
    assert (status, out[0]) == (0, f"wrote {tmp_path / 'old.pt'}")
    words = ("--beam", "--img", photos[0], "--lm", lm_folder, "--clip_model_type", clip_file, *SHORT)
    status, out, _ = run(capsys, "predict", "--load_pt", tmp_path / "old.pt", *words)
    own = run(capsys, "predict", "--load_pt", checkpoint, "--beam", "--img", photos[0], "--stop_token", ".", *SHORT)
    assert (status, out) == (0, own[1])
    reference = load_checkpoint(tmp_path / "old.pt", str(lm_folder))
    export_reference(reference.model, tmp_path / "again.pt")
    assert run(capsys, "predict", "--load_pt", tmp_path / "again.pt", *words)[1] == out


@pytest.mark.parametrize(
    ("options", "flags", "reasons"),
    [
        ({"normalize_prefix": True}, ["--normalize_prefix", "--stop_token"], ["'.'", "not normalise", "gpt2"]),
        (
            {"mapping_type": "transformer", "num_heads": 4},
            ["--num_heads", "--stop_token"],
            ["'.'", "8 attention heads"],
        ),
        ({"stop_token": ".", "normalize_prefix": True}, ["--normalize_prefix"], ["not normalise"]),
        ({"recipe": "reference", "stop_token": "."}, [], []),
    ],
    ids=["normalised", "heads", "stop token", "reference"],
)
@pytest.mark.parametrize("gone", [False, True], ids=["language model there", "language model gone"])
def test_the_command_that_export_prints_writes_the_same_captions(
    options, flags, reasons, gone, capsys, lm_folder, clip_file, photos, tmp_path
):
    lm = shutil.copytree(lm_folder, tmp_path / "lm")
    folder = save_captioner(tmp_path / "checkpoint", lm, clip_file, **options)
    if gone:
        shutil.rmtree(lm)
    status, out, _ = run(capsys, "export", folder, "--out", tmp_path / "a folder" / "out.pt")
    assert (status, len(out)) == (0, 3)
    words = shlex.split(out[1].split(": ", 1)[1])
    assert words[:4] == ["clipcap", "predict", "--img", "PHOTO"]
    assert [w for w in words if w.startswith("--")][2:] == ["--lm", "--clip_model_type", *flags]
    assert out[2].startswith("the original's own tools write other captions with it: ")
    assert all(reason in out[2] for reason in reasons)
    for how in (["--beam"], ["--greedy"], ["--seed", 3]):
        asked = [word if word != "PHOTO" else photos[0].parent for word in words[1:]]
        exported = run(capsys, *asked, *how, *SHORT)
        native = run(capsys, "predict", "--load_pt", folder, "--img", photos[0].parent, *how, *SHORT)
        assert exported[:2] == native[:2]
        assert len(set(native[1])) == 5


def test_each_flag_that_export_prints_is_needed(capsys, lm_folder, clip_file, photos, tmp_path):
    folder = save_captioner(tmp_path / "checkpoint", lm_folder, clip_file, normalize_prefix=True)
    words = shlex.split(run(capsys, "export", folder, "--out", tmp_path / "out.pt")[1][1].split(": ", 1)[1])[1:]
    words[words.index("PHOTO")] = photos[0].parent
    _, out, _ = run(capsys, *words, "--beam", *SHORT)
    words.remove("--normalize_prefix")
    assert run(capsys, *words, "--beam", *SHORT)[1] != out


def test_export_of_a_pt_asks_for_no_tokenizer(capsys, make_model, tmp_path):
    export_reference(make_model(), tmp_path / "old.pt")  # gpt2 is not on this machine
    status, out, err = run(capsys, "export", tmp_path / "old.pt", "--out", tmp_path / "new.pt")
    assert (status, err) == (0, [])
    again = torch.load(tmp_path / "new.pt", weights_only=True)
    assert all(torch.equal(t, again[name]) for name, t in torch.load(tmp_path / "old.pt", weights_only=True).items())
    assert out[1].endswith(f"clipcap predict --img PHOTO --load_pt {tmp_path / 'new.pt'}")


def test_export_makes_its_folder_but_replaces_none(capsys, checkpoint, tmp_path):
    assert run(capsys, "export", checkpoint, "--out", tmp_path / "new" / "old.pt")[0] == 0
    (tmp_path / "folder.pt").mkdir()
    status, _, err = run(capsys, "export", checkpoint, "--out", tmp_path / "folder.pt")
    assert (status, len(err)) == (1, 1)
    assert f"--out {tmp_path / 'folder.pt'}: is a folder" in err[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "pass photos with --img, or a feature file with --features"),
        (("--img", "{photo}", "--features", "f.pkl"), "one of the two"),
        (("--img", "{photo}", "--sidecar", "--out", "c.csv"), "--sidecar and --out"),
        (("--img", "{photo}", "--out", "c.txt"), "--out c.txt: end the name in .jsonl or .csv"),
        (
            ("--img", "{photo}", "--beam_size", "5", "--num_captions", "6"),
            "--num_captions 6 is more than --beam_size 5",
        ),
        (("--img", "{photo}", "--greedy", "--num_captions", "2"), "greedy decoding writes one caption"),
        (("--img", "{photo}", "--greedy", "--rerank", "clip"), "--rerank need --beam or sampling"),
        (("--img", "{photo}", "--greedy", "--beam"), "--beam and --greedy are two ways to decode: choose one"),
        (("--img", "{photo}", "--normalize_prefix"), "normalize_prefix False, not True"),
        (("--img", "{photo}", "--lm", "distilgpt2"), "--lm distilgpt2 would change nothing: leave it out"),
        (("--img", "{photo}", "--num_heads", "0"), "--num_heads must be at least 1"),
        (("--img", "{photo}", "--max_new_tokens", "500"), "--max_new_tokens 500 does not fit"),
        (("--img", "{photo}", "--stop_token", "two words"), "--stop_token 'two words' is"),
        (("--img", "{photo}", "--temp", "-1"), "--temp must be at least 0"),
        (("--img", "/no/such.jpg"), "/no/such.jpg: no such file or folder"),
        (("--img", "{photo}", "--load_pt", "/no/such"), "/no/such: no such checkpoint"),
        (("--img", "{photo}", "--device", "nonsense"), "--device nonsense"),
    ],
)
def test_mistakes_are_one_line(words, said, caption, photos):
    status, out, err = caption(*(str(word).format(photo=photos[0]) for word in words))
    assert (status, out) == (1, [])
    assert err[-1].startswith("clipcap: error: ")
    assert said in err[-1]
    assert not any(line.startswith("clipcap:") for line in err[:-1])


def test_explain_prints_the_nearest_words_of_each_position(capsys, checkpoint, photos):
    status, out, _ = run(capsys, "explain", "--load_pt", checkpoint, "--img", photos[0], "--top", 3)
    assert (status, len(out)) == (0, 4)  # a line per prefix position
    assert all(len(line.split("  ")) >= 4 for line in out)
    assert run(capsys, "explain", "--load_pt", checkpoint, "--img", photos[0], "--top", 10**9)[0] == 0
    assert "--top must be at least 1" in run(capsys, "explain", "--load_pt", checkpoint, "--img", photos[0],
                                             "--top", 0)[2][-1]  # fmt: skip
