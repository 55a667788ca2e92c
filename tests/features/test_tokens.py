"""Tokens in feature folders: parsed, resumed, verified, merged, split, converted, trained on and captioned."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support.road import draw_set, picture

from clipcap.captioning.captioner import Captioner
from clipcap.cli.main import main
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features, read_to_train
from clipcap.features.parse import parse
from clipcap.models.encoders.encode_given import encode_given, layout_of, views_of
from clipcap.models.encoders.encode_images import encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.token_spec import TokenSpec
from clipcap.training.train import train
from tests.faults.forked import Running


def files_of(folder):
    """The bytes of each file but run.yaml, which names the folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.yaml"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def photos(tmp_path):
    return draw_set(tmp_path / "photos", 12, captions=2)


@pytest.fixture
def parsing(photos, tmp_path):
    def run(name="f", **changes):
        how = {"data_path": str(photos), "clip_model_type": "demo", "batch_size": 4, "workers": 0, "tokens": "grid"}
        parse("custom", out=str(tmp_path / name), **{**how, **changes})
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    "asked", [{"tokens": "grid"}, {"layer": -2}, {"layer": -2, "pool": 2}, {"tokens": "crops:2"}]
)
def test_a_folder_holds_what_the_encoder_gives(parsing, photos, asked):
    folder = parsing(**asked)
    features, encoder = read_features(folder), load_encoder("demo", "cpu")
    spec = TokenSpec.parse(asked.get("tokens", "grid"), asked.get("layer", -1), asked.get("pool", 0))
    assert features.meta.tokens == layout_of(encoder, spec)
    [batch] = encode_images(encoder, [path for path in features.image_paths if path], 12, tokens=spec)
    assert batch.given is not None and batch.given.tokens is not None
    given = features.given(slice(None))
    torch.testing.assert_close(given.vectors, batch.given.vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.tokens, batch.given.tokens, rtol=1e-2, atol=1e-3)
    plain = read_features(parsing("plain", tokens=None))
    torch.testing.assert_close(plain.rows(slice(None)), given.vectors, rtol=1e-4, atol=1e-5)
    assert plain.meta.tokens is None and plain.tokens is None


def test_large_folders_subsets_and_shards_have_the_tokens_of_their_rows(parsing):
    features = read_to_train(parsing())
    some = features.subset_by_row(np.array([7, 2]))
    assert torch.equal(some.given([1, 0]).tokens, features.given([2, 7]).tokens)
    assert features.without_tokens().given([0]).tokens is None


def test_split_merge_and_convert_keep_tokens(parsing, tmp_path, capsys):
    whole = read_features(parsing())
    at = lambda name: str(tmp_path / name)  # noqa: E731
    assert main(["features", "split", at("f"), "--train_size", "0.5", "--out", at("s")]) == 0
    assert main(["features", "merge", at("s_train"), at("s_val"), "--out", at("m")]) == 0
    assert main(["features", "convert", at("m"), "--dtype", "float16", "--out", at("c")]) == 0
    for name in ("s_train", "s_val", "m", "c"):
        found = read_features(tmp_path / name)
        assert found.meta.tokens == whole.meta.tokens
        rows = [list(whole.image_ids).index(image) for image in found.image_ids]
        assert torch.equal(found.given(slice(None)).tokens, whole.given(rows).tokens)
        assert main(["features", "verify", at(name)]) == 0
    capsys.readouterr()
    assert main(["features", "info", at("m")]) == 0 and "4 x 512 (--tokens grid), float16" in capsys.readouterr().out


def test_what_cannot_hold_or_match_tokens_says_so_in_a_line(parsing, tmp_path):
    parsing()
    with pytest.raises(ClipcapError, match="a pickle holds no tokens of images: name a folder"):
        parsing("f.pkl")
    parsing("plain", tokens=None)
    from clipcap.features.tools import convert, merge

    with pytest.raises(ClipcapError, match="a pickle holds no tokens"):
        convert(tmp_path / "f", tmp_path / "c.pkl", None, None)
    with pytest.raises(ClipcapError, match="parse both with the same --tokens"):
        merge([tmp_path / "f", tmp_path / "plain"], tmp_path / "m", True, None)
    (tmp_path / "f/tok_emb/tok_emb_0.npy").unlink()
    with pytest.raises(ClipcapError, match="shard 0 has embeddings or tokens, but not both"):
        read_features(tmp_path / "f")
    with pytest.raises(ClipcapError, match="--layer and --pool are of --tokens grid"):
        parsing("g", tokens=None, layer=-2)


def test_verify_finds_tokens_that_are_not_finite(parsing, capsys):
    file = parsing() / "tok_emb/tok_emb_0.npy"
    tokens = np.load(file)
    tokens[3, 1, 5] = np.nan
    np.save(file, tokens)
    assert main(["features", "verify", str(file.parent.parent)]) == 1
    assert "tokens with NaN or infinity: 1, the first: row 3" in capsys.readouterr().out


def test_a_parse_killed_again_and_again_ends_in_the_same_bytes(parsing, photos, tmp_path):
    expected = files_of(parsing("whole"))
    words = ["parse", "custom", "--data_path", str(photos), "--clip_model_type", "demo", "--batch_size", "4"]
    words += ["--workers", "0", "--tokens", "grid", "--out", str(tmp_path / "killed")]
    partial = tmp_path / "killed.partial"
    for batches in (1, 2):
        child = Running(words, tmp_path / "log")
        log = partial / "done-0.jsonl"
        while child.alive and (not log.exists() or log.read_bytes().count(b"\n") < batches):
            time.sleep(0.002)
        child.kill()
        child.wait()
    assert main(words) == 0
    assert files_of(tmp_path / "killed") == expected


def test_frames_are_spread_over_animations_and_folders_and_stills_have_one(tmp_path):
    frames = [picture(i).resize((64, 64)) for i in range(7)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "folder").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"folder/{number}.png")
    frames[3].save(tmp_path / "still.png")
    encoder, spec = load_encoder("demo", "cpu"), TokenSpec.parse("frames:3")
    sources = [tmp_path / name for name in ("folder", "still.png", "a.gif")]
    [batch] = encode_images(encoder, sources, 3, tokens=spec)
    given = batch.given
    assert given is not None and given.tokens is not None and given.token_mask is not None
    assert given.token_mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    alone = encoder.encode_images(torch.stack([encoder.preprocess(frames[i]) for i in (1, 3, 5)]))
    torch.testing.assert_close(given.tokens[0], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.vectors[0], alone.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.tokens[1, 0], alone[1], rtol=1e-4, atol=1e-4)


def test_crops_cover_the_picture_and_stand_row_by_row():
    image = Image.new("RGB", (90, 60))
    image.paste((255, 0, 0), (60, 30, 90, 60))
    whole, *parts = views_of(image, TokenSpec.parse("crops:3"))
    assert whole is image and [part.size for part in parts] == [(30, 20)] * 9
    assert parts[8].getextrema()[0] == (255, 255) and parts[0].getextrema()[0] == (0, 0)
    assert len(views_of(Image.new("RGB", (1, 1)), TokenSpec.parse("crops:2"))) == 5
    encoder = load_encoder("demo", "cpu")
    pixels = torch.stack([encoder.preprocess(view) for view in views_of(image, TokenSpec.parse("crops:2"))])
    given = encode_given(encoder, pixels, [5], TokenSpec.parse("crops:2"))
    assert given.tokens is not None and given.tokens.shape == (1, 4, encoder.dim)


@pytest.mark.parametrize(
    "mapper",
    [{"mapping_type": "transformer", "num_layers": 1}, {"mapping_type": "project", "space_to_depth": 2},
     {"mapping_type": "project", "projection": "mlp", "projection_hidden": 16}],
)  # fmt: skip
def test_a_captioner_learns_from_tokens_and_captions_photos_and_features_alike(parsing, lm_folder, tmp_path, mapper):
    data = parsing()
    run = train(
        data=str(data), lm=str(lm_folder), only_prefix=True, epochs=1, bs=4, out_dir=str(tmp_path / "run"), **mapper
    )
    captioner = Captioner.from_pretrained(run, device="cpu")
    features = read_features(data)
    assert captioner.model.token_layout == features.meta.tokens
    paths = [path for path in features.image_paths if path]
    of_photos = captioner.caption(paths, greedy=True, max_new_tokens=8)
    [(_, of_rows)] = captioner.caption_rows(features, range(12), dataclasses.replace(greedy(), max_new_tokens=8), 12)
    assert [c[0].token_ids for c in of_photos] == [c[0].token_ids for c in of_rows]
    assert len(captioner.explain(paths[0])) == captioner.model.config.prefix_length
    with pytest.raises(ClipcapError, match=r"reads 4 x 512 .* was given none"):
        captioner.caption([features.rows([0])[0]])
    again = Captioner.from_pretrained(captioner.save_pretrained(tmp_path / "again"), device="cpu")
    assert again(paths[:1], greedy=True, max_new_tokens=8) == [of_photos[0][0].text]


def greedy():
    from clipcap.captioning.config import DecodeConfig

    return DecodeConfig(greedy=True)


def test_vectors_alone_are_read_where_the_mapper_is_asked_to_or_an_mlp(parsing, lm_folder, tmp_path):
    how = {"data": str(parsing()), "lm": str(lm_folder), "only_prefix": True, "epochs": 1, "bs": 4}
    for name, mapper in {
        "a": {"mapping_type": "mlp"},
        "b": {"mapping_type": "transformer", "read_tokens": False},
    }.items():
        run = train(**how, **mapper, out_dir=str(tmp_path / name))
        assert Captioner.from_pretrained(run, device="cpu").model.token_layout is None


def test_features_without_the_tokens_that_are_read_are_refused(parsing, lm_folder, tmp_path):
    plain, how = parsing("plain", tokens=None), {"lm": str(lm_folder), "only_prefix": True, "epochs": 1, "bs": 4}
    with pytest.raises(ClipcapError, match="the features hold none"):
        train(data=str(plain), **how, mapping_type="project", out_dir=str(tmp_path / "p"))
    run = train(data=str(parsing()), **how, mapping_type="transformer", num_layers=1, out_dir=str(tmp_path / "t"))
    with pytest.raises(ClipcapError, match=r"holds none, .* reads tokens 4 x 512 .*parse the images again"):
        train(data=str(plain), **how, weights_dir=str(run), out_dir=str(tmp_path / "w"))
    words = ["predict", "--features", str(plain), "--load_pt", str(run)]
    assert main(words) != 0


def test_imported_vectors_of_an_item_are_tokens_of_a_folder(tmp_path, lm_folder):
    rows = np.random.default_rng(0).standard_normal((6, 3, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    (tmp_path / "t.csv").write_text("id,caption\n" + "".join(f"{i},thing {i}\n" for i in range(6)))
    words = [
        "features",
        "import",
        str(tmp_path / "x.npy"),
        "--captions",
        str(tmp_path / "t.csv"),
        "--encoder",
        "video",
    ]
    assert main([*words, "--out", str(tmp_path / "f")]) == 0
    features = read_features(tmp_path / "f")
    assert str(features.meta.tokens) == "3 x 8 (imported)"
    torch.testing.assert_close(features.given(slice(None)).tokens, torch.from_numpy(rows), rtol=1e-3, atol=1e-3)
    run = train(data=str(tmp_path / "f"), lm=str(lm_folder), only_prefix=True, epochs=1, bs=4,
                mapping_type="transformer", num_layers=1, out_dir=str(tmp_path / "run"))  # fmt: skip
    assert main(["predict", "--features", str(tmp_path / "f"), "--load_pt", str(run), "--max_new_tokens", "5"]) == 0
