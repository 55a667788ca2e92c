"""The public face: images and embeddings in, captions out."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.road import draw_photos, save_captioner

from clipcap import Captioner, ClipcapError
from clipcap.captioning.config import DecodeConfig
from clipcap.models.kernels.packed_linear import can_pack
from clipcap.models.kernels.switch import plain


@pytest.fixture(scope="module")
def folder(lm_folder, clip_file, tmp_path_factory):
    return save_captioner(tmp_path_factory.mktemp("captioner") / "run-best", lm_folder, clip_file)


@pytest.fixture(scope="module")
def captioner(folder):
    return Captioner.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photos"), 5)


SHORT = DecodeConfig(beam=True, max_new_tokens=10)


def test_paths_bytes_pictures_and_embeddings_give_the_same(captioner, photos):
    paths = [str(p) for p in photos[:3]]
    expected = captioner(paths)
    assert len(set(expected)) == 3
    pictures = [Image.open(p) for p in paths]
    embeddings = captioner.embed([captioner.open(p) for p in paths])
    assert captioner(photos[:3]) == captioner(pictures) == captioner(embeddings) == expected
    mixed = [photos[0].read_bytes(), embeddings[1].numpy(), io.BytesIO(photos[2].read_bytes())]
    assert captioner(mixed) == expected
    assert captioner(np.asarray(embeddings)) == captioner(embeddings[:, None]) == expected
    assert captioner(path for path in paths) == captioner(np.array(paths)) == expected
    assert captioner([]) == []


def test_neither_order_nor_batch_size_matters(captioner, photos):
    found = captioner.caption(photos, SHORT, batch_size=5)
    turned = captioner.caption(photos[::-1], SHORT, batch_size=2)[::-1]
    assert [c.token_ids for [c] in found] == [c.token_ids for [c] in turned]
    assert [c.logprob for [c] in found] == pytest.approx([c.logprob for [c] in turned], abs=1e-4)


@pytest.mark.skipif(not can_pack(), reason="torch has no oneDNN here, which packs weights")
def test_weights_are_packed_for_several_images_and_captions_and_checkpoint_stay(folder, photos, tmp_path):
    captioner = Captioner.from_pretrained(folder, device="cpu")
    plain = captioner.caption(photos[:1], SHORT)
    assert not _packed(captioner)  # for one image it would not pay
    packed = captioner.caption(photos, SHORT)
    assert _packed(captioner)
    assert packed[0][0].token_ids == plain[0][0].token_ids
    assert packed[0][0].logprob == pytest.approx(plain[0][0].logprob, abs=1e-5)
    again = Captioner.from_pretrained(captioner.save_pretrained(tmp_path / "copy"), device="cpu")
    assert again(photos[:1], SHORT) == [plain[0][0].text]


def test_threads_may_share_a_captioner(captioner, photos):
    expected = captioner.caption(photos, SHORT, batch_size=2)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda size: captioner.caption(photos, SHORT, batch_size=size), [2, 1, 3, 2]))
    for captions in found:
        assert [c.token_ids for [c] in captions] == [c.token_ids for [c] in expected]


def test_a_captioner_loaded_in_inference_mode_works(folder, photos):
    with torch.inference_mode():
        captioner = Captioner.from_pretrained(folder, device="cpu")
        assert len(captioner(photos[:2])) == 2


def test_one_row_at_a_time_packs_nothing(folder, photos):
    captioner = Captioner.from_pretrained(folder, device="cpu")
    captioner.caption(photos, DecodeConfig(greedy=True, max_new_tokens=3), batch_size=1)
    assert not _packed(captioner)


def _packed(captioner):
    return any("forward" in vars(module) for module in captioner.model.lm.modules())


def test_save_pretrained_and_from_pretrained_round_trip(captioner, photos, tmp_path):
    again = Captioner.from_pretrained(captioner.save_pretrained(tmp_path / "copy"))
    assert again(photos) == captioner(photos)
    assert again.summary.startswith(str(tmp_path / "copy"))


def test_a_single_image_of_any_kind_gives_its_caption(captioner, photos):
    [expected] = captioner([photos[0]], SHORT)
    pixels = np.asarray(Image.open(photos[0]).convert("RGB"))
    with open(photos[0], "rb") as file:
        singles = [photos[0], str(photos[0]), photos[0].read_bytes(), Image.open(photos[0]), file, pixels]
        assert [captioner(single, SHORT) for single in singles] == [expected] * len(singles)
    assert captioner([pixels, photos[1]], SHORT) == captioner(photos[:2], SHORT)
    grey = Image.open(photos[0]).convert("L")
    assert captioner(np.asarray(grey), SHORT) == captioner(grey, SHORT)


def test_captions_are_tidied_except_under_the_reference_recipe(captioner, photos):
    untidy = {"beam": True, "max_new_tokens": 20, "prompt": "a red  apple"}  # the words a caption starts with
    raw = captioner.caption(photos, DecodeConfig(**untidy, recipe="reference", stop_token="e"))
    assert all(c.text.startswith("a red  apple") for [c] in raw)
    tidied = captioner.caption(photos, DecodeConfig(**untidy))
    assert all(c.text == " ".join(c.text.split()) for [c] in tidied)


def test_reranking_puts_the_caption_that_fits_the_image_first(captioner, photos):
    config = DecodeConfig(temp=1.5, top_p=1.0, num_captions=3, max_new_tokens=8, seed=1, rerank="clip")
    for found in captioner.caption(photos[:2], config):
        scores = [c.clip_score for c in found]
        assert len(found) == 3 and scores == sorted(scores, reverse=True)
    one = captioner.caption(photos[:2], DecodeConfig(temp=1.5, top_p=1.0, max_new_tokens=8, seed=1, rerank="clip"))
    assert [len(found) for found in one] == [1, 1]


def test_explain_names_the_nearest_words_of_each_position(captioner, photos):
    positions = captioner.explain(photos[0], top=3)
    assert len(positions) == captioner.model.config.prefix_length
    for found in positions:
        cosines = [cosine for _, cosine in found]
        assert (
            len(found) == 3 and cosines == sorted(cosines, reverse=True) and -1 <= min(cosines) <= max(cosines) <= 1
        )


class TestBadInput:
    def test_one_path_instead_of_a_list(self, captioner, photos):
        for image in (str(photos[0]), photos[0], photos[0].read_bytes()):
            with pytest.raises(ClipcapError, match="images is a list of images"):
                captioner.caption(image)

    def test_embeddings_of_another_width(self, captioner):
        for images in ([torch.zeros(64), torch.zeros(40)], torch.zeros(1, 40)):
            with pytest.raises(ClipcapError, match=r"embedding \d is 40 wide, this model expects 64"):
                captioner.caption(images)

    def test_no_list_at_all(self, captioner):
        for images in (None, 5, 0.5, object()):
            with pytest.raises(ClipcapError, match="images is a list of images, not"):
                captioner(images)
        for one in (Image.new("RGB", (4, 4)), io.BytesIO(b""), torch.zeros(64), np.zeros(64)):
            with pytest.raises(ClipcapError, match="images is a list of images: put a single one in brackets"):
                captioner.caption(one)
        for one in (torch.zeros(64), np.zeros(64)):
            with pytest.raises(ClipcapError, match="images is a list of images: put a single one in brackets"):
                captioner(one)

    def test_what_is_no_image_is_shown_with_its_number(self, captioner, photos):
        for wrong in (None, 5, ["a.jpg"], {"path": "a.jpg"}):
            with pytest.raises(ClipcapError, match=r"^image 2 is .*: an image is a path, bytes"):
                captioner.caption([*photos[:2], wrong], SHORT, batch_size=2)

    def test_arrays_that_are_no_embeddings(self, captioner, photos):
        with pytest.raises(ClipcapError, match=r"image 1 is an array of 32 x 40 x 3, .*: pass a picture as a Pillow"):
            captioner([photos[0], np.asarray(Image.open(photos[1]), dtype=np.float32)])
        with pytest.raises(ClipcapError, match="embedding 1 is not finite"):
            captioner([torch.zeros(64), torch.full((64,), torch.nan)])

    def test_a_batch_of_none(self, captioner, photos):
        with pytest.raises(ClipcapError, match="batch_size must be at least 1"):
            captioner.caption(photos, SHORT, batch_size=0)

    def test_an_image_that_is_none(self, captioner, tmp_path):
        (tmp_path / "a.jpg").write_text("hello")
        with pytest.raises(ClipcapError, match=r"a\.jpg"):
            captioner([tmp_path / "a.jpg"])

    def test_a_checkpoint_that_does_not_name_its_encoder(self, folder, photos):
        loaded = Captioner.from_pretrained(folder)
        loaded.model.config = replace(loaded.model.config, encoder=None)
        with pytest.raises(ClipcapError, match=r"does not say its encoder \(64 wide\): pass --clip_model_type"):
            loaded(photos)

    def test_another_encoder_than_the_one_it_was_trained_with(self, folder, photos, tmp_path):
        from clipcap.demo.tiny import make_clip

        other = make_clip(tmp_path / "other.pt", seed=1)
        wide = make_clip(tmp_path / "wide.pt", embed_dim=128)
        for path, said in (
            (other, r"has other weights \(\w+\) than"),
            (wide, r"128 wide, this checkpoint expects 64"),
        ):
            with pytest.raises(ClipcapError, match=said):
                Captioner.from_pretrained(folder, clip_model_type=str(path))(photos)

    def test_an_encoder_that_moved(self, folder, clip_file, photos, captioner, tmp_path):
        moved = shutil.copy(clip_file, tmp_path / "moved.pt")
        assert Captioner.from_pretrained(folder, clip_model_type=str(moved))(photos) == captioner(photos)


def test_bfloat16_scores_captions_nearly_as_float32_does_and_can_be_saved(captioner, tmp_path):
    captioner.save_pretrained(tmp_path / "saved")
    exact, rounded = (
        Captioner.from_pretrained(tmp_path / "saved", dtype=d, device="cpu") for d in ("float32", "bfloat16")
    )
    embeddings = list(torch.randn(3, exact.model.config.clip_dim))
    one, other = (c.caption(embeddings, greedy=True, max_new_tokens=6) for c in (exact, rounded))
    assert rounded.dtype == torch.bfloat16 and rounded.encoder.dtype == torch.bfloat16
    for [a], [b] in zip(one, other):
        assert a.logprob == pytest.approx(b.logprob, abs=0.1)
    rounded.save_pretrained(tmp_path / "again")
    again = Captioner.from_pretrained(tmp_path / "again", device="cpu")
    assert [c[0].text for c in again.caption(embeddings, greedy=True, max_new_tokens=6)] == [c[0].text for c in one]


def test_bfloat16_is_refused_where_faster_paths_are_off(captioner, tmp_path):
    captioner.save_pretrained(tmp_path / "saved")
    with plain(), pytest.raises(ClipcapError, match="CLIPCAP_PLAIN is set"):
        Captioner.from_pretrained(tmp_path / "saved", dtype="bfloat16", device="cpu")
    with plain():
        assert Captioner.from_pretrained(tmp_path / "saved", dtype="auto", device="cpu").dtype == torch.float32


def test_int8_scores_captions_nearly_as_float32_does(captioner, tmp_path):
    captioner.save_pretrained(tmp_path / "saved")
    exact, rounded = (
        Captioner.from_pretrained(tmp_path / "saved", dtype=d, device="cpu") for d in ("float32", "int8")
    )
    embeddings = torch.randn(6, captioner.model.config.clip_dim, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(1, 9).repeat(6, 1)  # [B, T]
    with torch.no_grad():
        prefix = exact.model.prefix(embeddings)  # [B, P, E]
        inputs = torch.cat([prefix, exact.model.embed_tokens(ids)], dim=1)
        one, other = (c.model.lm(inputs_embeds=inputs).logits.log_softmax(-1) for c in (exact, rounded))
    assert 0 < (one - other).abs().max() < 0.5
    assert len(rounded(list(embeddings), DecodeConfig(beam=True, max_new_tokens=5))) == 6
    with pytest.raises(ClipcapError, match="int8 cannot be saved: load it in float32"):
        rounded.save_pretrained(tmp_path / "again")
