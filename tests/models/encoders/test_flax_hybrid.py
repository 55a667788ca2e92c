"""Hybrid CLIPs of flax: read without flax, positions as flax gives them, converted, refused where damaged."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.flax_files import array, chunked, packed, tree, write_hybrid
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from clipcap import load_encoder
from clipcap.cli.main import main
from clipcap.errors import ClipcapError
from clipcap.models.encoders.flax_hybrid import convert, load_hybrid
from clipcap.runtime.safe_load.flax_msgpack import MsgpackError, read_parameters

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VISION |= {"image_size": 16, "patch_size": 8}
IDS = torch.tensor([[0, 5, 9, 2, 1, 1], [0, 7, 8, 11, 12, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def hybrid(shared):
    return shared / "fixtures" / "flax-hybrid-clip"


def arrays(path):
    return {name: torch.from_numpy(values) for name, values in np.load(path).items()}


def assert_like_the_reference(folder, hybrid):
    inputs, expected = arrays(hybrid / "inputs.npz"), arrays(hybrid / "expected.npz")
    encoder = load_encoder(f"hf:{folder}")
    image = encoder.encode_images(inputs["pixel_values"])
    text = encoder.encode_token_ids(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(normalize(image), expected["image_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(text), expected["text_embeds"], atol=1e-5, rtol=0)
    logits = encoder.logit_scale * normalize(image) @ normalize(text).T
    torch.testing.assert_close(logits, expected["logits_per_image"], atol=1e-4, rtol=0)
    shares = json.loads((hybrid / "expected.json").read_text())["softmax_over_images_for_text_0"]
    assert logits[:, 0].softmax(0).tolist() == pytest.approx(shares, abs=1e-5)


def test_a_flax_folder_gives_the_embeddings_of_flax(hybrid):
    assert_like_the_reference(hybrid, hybrid)


def test_a_converted_folder_gives_the_same_by_itself(hybrid, tmp_path):
    assert main(["convert", str(hybrid), "--out", str(tmp_path / "pair")]) == 0
    inputs, expected = arrays(hybrid / "inputs.npz"), arrays(hybrid / "expected.npz")
    network = AutoModel.from_pretrained(tmp_path / "pair").eval()
    with torch.inference_mode():
        output = network(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    torch.testing.assert_close(output.logits_per_image, expected["logits_per_image"], atol=1e-4, rtol=0)
    assert not (tmp_path / "pair" / "flax_model.msgpack").exists()


def pair(kind):
    """(state dict of both towers and projections, config, expected embeddings of images and texts)."""
    torch.manual_seed(1)
    text_config = {"roberta": RobertaConfig, "bert": BertConfig}[kind](
        **TEXT, max_position_embeddings=10, pad_token_id=1
    )
    text = {"roberta": RobertaModel, "bert": BertModel}[kind](text_config).eval()
    image = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    projections = torch.randn(12, 16), torch.randn(12, 16)
    with torch.inference_mode():
        positions = torch.arange(6).expand(2, -1)  # what flax hands over, whatever the tower's kind
        texts = text(input_ids=IDS, attention_mask=MASK, position_ids=positions).pooler_output @ projections[0].T
        images = image(pixel_values=PIXELS).pooler_output @ projections[1].T
    state = {f"text_model.{name}": tensor for name, tensor in text.state_dict().items()}
    prefix = "" if next(iter(image.state_dict())).startswith("vision_model.") else "vision_model."
    state |= {f"vision_model.{prefix}{name}": tensor for name, tensor in image.state_dict().items()}
    state |= {"text_projection.weight": projections[0], "visual_projection.weight": projections[1]}
    state = {
        name: tensor for name, tensor in state.items() if "position_ids" not in name and "token_type_ids" not in name
    }
    state["logit_scale"] = torch.tensor(1.0)
    config = {"text_config": text_config.to_dict(), "vision_config": CLIPVisionConfig(**VISION).to_dict()}
    return state, config, images, texts


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_the_text_tower_gets_the_positions_0_to_t_whatever_its_kind(kind, tmp_path):
    state, config, images, texts = pair(kind)
    encoder = load_encoder(f"hf:{write_hybrid(tmp_path / 'pair', state, config)}")
    torch.testing.assert_close(encoder.encode_images(PIXELS), images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_token_ids(IDS, MASK), texts, atol=1e-5, rtol=1e-4)
    assert encoder.logit_scale == pytest.approx(2.71828, abs=1e-4)
    assert encoder.dim == 12


def test_a_vit_without_a_second_nesting_loads(tmp_path):
    state, config, _, _ = pair("bert")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("vision_model.")}
    torch.manual_seed(2)
    vit = ViTModel(ViTConfig(**VISION)).eval()
    vit.save_pretrained(tmp_path / "vit")  # under the classic names
    from safetensors.torch import load_file

    state |= {
        f"vision_model.{name}": tensor for name, tensor in load_file(tmp_path / "vit" / "model.safetensors").items()
    }
    with torch.inference_mode():
        expected = vit(pixel_values=PIXELS).pooler_output @ state["visual_projection.weight"].T
    config["vision_config"] = ViTConfig(**VISION).to_dict()
    encoder = load_encoder(f"hf:{write_hybrid(tmp_path / 'pair', state, config)}")
    torch.testing.assert_close(encoder.encode_images(PIXELS), expected, atol=1e-5, rtol=1e-4)


def test_older_configurations_and_whole_clips_are_read(tmp_path):
    state, config, images, _ = pair("bert")
    older = {"text_config_dict": config["text_config"]}
    older["vision_config_dict"] = {"model_type": "clip", "vision_config": config["vision_config"]}
    encoder = load_encoder(f"hf:{write_hybrid(tmp_path / 'pair', state, older)}")
    torch.testing.assert_close(encoder.encode_images(PIXELS), images, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_arrays_in_chunks_are_read(dtype, tmp_path):
    values = torch.randn(5, 3).to(dtype)
    content = {"a": {"kernel": values}, "b": chunked(values, 4), "scale": torch.tensor(2.0)}
    (tmp_path / "x.msgpack").write_bytes(packed(content))
    found = {name: stored.tensor() for name, stored in read_parameters(tmp_path / "x.msgpack").items()}
    assert set(found) == {"a/kernel", "b", "scale"}
    assert torch.equal(found["a/kernel"], values)
    assert torch.equal(found["b"], values)
    assert found["scale"].shape == ()


def deep(levels):
    return b"\x81\xa1a" * levels + packed({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (packed({"a": torch.zeros(3)})[:-5], "cut short"),
        (packed({"a": torch.zeros(3)}) + b"\x00", "goes on after its end"),
        (packed({}).replace(b"\xdf\x00\x00\x00\x00", b"\xdf\xff\xff\xff\xff"), "a map of 4,294,967,295"),
        (b"\x81\xa1a" + array([2, 2], "float32", b"1234"), "with 4 bytes in place of 16"),
        (b"\x81\xa1a" + array([2**20, 2**20], "float32", b"1234"), "in place of 4,398,046,511,104"),
        (b"\x81\xa1a" + struct.pack(">BI", 0xC6, 2**32 - 1), "4,294,967,295 bytes are claimed"),
        (b"\x81\xa1a" + array([1], "float32", b"1234", kind=42), "extension of type 42"),
        (b"\x81\xa1a" + array([1], "float32", b"1234", kind=2), "extension of type 2"),
        (b"\x81\xa1a" + array([1], "object", b"12345678"), "an array of 'object'"),
        (b"\x81\xa1a" + array([1], ["float32"], b"1234"), "not .shape, dtype, bytes"),
        (b"\x81\xa1a" + array([0, 2**31, 2**31, 2**31], "float32", b""), "not .shape, dtype, bytes"),
        (b"\x82\xa1a" + array([0], "float32", b"") + b"\xa1a" + array([0], "float32", b""), "'a' twice"),
        (deep(10_000), "nested more than 64 deep"),
        (b"\x81\x01\x01", "a name that is a int"),
        (packed({"a": 3}), "holds a int at a"),
        (packed([1, 2]), "no map of parameters"),
        (b"\xc1", "unknown byte 0xc1"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "x.msgpack").write_bytes(content)
    with pytest.raises(MsgpackError, match=message):
        read_parameters(tmp_path / "x.msgpack")


def test_a_hostile_folder_is_refused_with_its_name(tmp_path):
    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    content = (folder / "flax_model.msgpack").read_bytes()
    (folder / "flax_model.msgpack").write_bytes(content[:-100])
    with pytest.raises(ClipcapError, match=r"flax_model\.msgpack: is cut short.*download or copy it again"):
        load_encoder(f"hf:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c: s.pop("text_projection.weight"), "lacks text_projection.weight"),
        (lambda s, c: s.update({"more.bias": torch.zeros(2)}), "unknown more.bias"),
        (lambda s, c: s.update({"text_projection.weight": torch.zeros(9, 9)}), "text_projection"),
        (lambda s, c: c.pop("text_config"), "lacks 'text_config_dict'"),
        (lambda s, c: c.update({"projection_dim": "wide"}), "projection_dim is wide"),
        (lambda s, c: c["text_config"].update({"vocab_size": 10**11}), "asks for 1,6"),
        (lambda s, c: c["text_config"].update({"num_hidden_layers": 10**9}), "num_hidden_layers must lie"),
    ],
)
def test_weights_and_configurations_that_do_not_fit_are_refused(change, message, tmp_path):
    state, config, *_ = pair("bert")
    change(state, config)
    with pytest.raises(ClipcapError, match=message):
        load_hybrid(write_hybrid(tmp_path / "pair", state, config))


def test_texts_without_a_tokenizer_name_the_flag(tmp_path, lm_folder):
    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    with pytest.raises(ClipcapError, match="--tokenizer NAME"):
        load_encoder(f"hf:{folder}").encode_texts(["a dog"])
    for name in ("vocab.txt", "tokenizer_config.json"):
        words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"])
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / name).write_text(
            words if name == "vocab.txt" else '{"tokenizer_class": "BertTokenizer"}'
        )
    encoder = load_encoder(f"hf:{folder}", tokenizer=str(tmp_path / "words"))
    assert encoder.encode_texts(["a dog", "a"]).shape == (2, 12)
    convert(str(folder), str(tmp_path / "torch"), str(tmp_path / "words"))
    stored = load_encoder(f"hf:{tmp_path / 'torch'}")
    torch.testing.assert_close(stored.encode_texts(["a dog"]), encoder.encode_texts(["a dog"]), atol=1e-5, rtol=1e-4)


def test_photos_are_parsed_by_a_flax_folder_without_a_tokenizer(tmp_path):
    from support.road import picture

    from clipcap.features.files import read_features

    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    (tmp_path / "set").mkdir()
    picture(0).save(tmp_path / "set" / "a.jpg")
    (tmp_path / "set" / "a.txt").write_text("a dog")
    words = ["parse", "custom", "--data_path", str(tmp_path / "set"), "--clip_model_type", f"hf:{folder}"]
    assert main([*words, "--out", str(tmp_path / "x.pkl")]) == 0
    assert read_features(tmp_path / "x.pkl").dim == 12


def test_nothing_of_jax_or_flax_is_imported(tmp_path):
    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    code = (
        "import sys\n"
        "for name in ('jax', 'flax', 'msgpack'): sys.modules[name] = None\n"
        f"from clipcap import load_encoder; print(load_encoder('hf:{folder}').dim)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "12\n"


def test_convert_refuses_what_is_no_flax_folder_or_a_place_in_use(tmp_path):
    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    with pytest.raises(ClipcapError, match="holds no hybrid CLIP of flax"):
        convert(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ClipcapError, match="exists: choose"):
        convert(str(folder), str(folder))
    shutil.rmtree(folder)
    with pytest.raises(ClipcapError, match="holds no hybrid CLIP"):
        convert(str(folder), str(tmp_path / "out"))


def test_the_writer_of_these_tests_writes_what_flax_wrote(hybrid):
    stored = {
        name.replace("/", "."): array.tensor()
        for name, array in read_parameters(hybrid / "flax_model.msgpack").items()
    }
    shapes = json.loads((hybrid / "params.json").read_text())
    assert {name.replace(".", "/"): [list(t.shape), "float32"] for name, t in stored.items()} == shapes
    assert tree({"a.dense.weight": torch.zeros(2, 3)})["a"]["dense"]["kernel"].shape == (3, 2)


def test_predict_takes_the_tokenizer_that_a_flax_folder_lacks(tmp_path, lm_folder, capsys):
    from support.road import picture, run, save_captioner

    state, config, *_ = pair("bert")
    folder = write_hybrid(tmp_path / "pair", state, config)
    checkpoint = save_captioner(tmp_path / "checkpoint", lm_folder, f"hf:{folder}")
    picture(0).save(tmp_path / "a.jpg")
    words = ("predict", "--load_pt", checkpoint, "--img", tmp_path / "a.jpg", "--rerank", "clip", "--num_captions", 2)
    status, _, err = run(capsys, *words)
    assert status == 1 and "--tokenizer NAME" in err[-1]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    status, out, err = run(capsys, *words, "--tokenizer", tmp_path / "words")
    assert status == 0 and out, err
