"""Frozen encoders: the numbers of their own packages from any kind of weights, clear words where there are none."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import threading
import warnings

import clip
import pytest
import torch
from conftest import CAPTIONS
from PIL import Image
from safetensors.torch import save_file
from support.road import picture
from tokenizers.processors import TemplateProcessing

from clipcap.demo.tiny import END_OF_TEXT, make_clip, make_tokenizer
from clipcap.errors import ClipcapError
from clipcap.images.read import open_image
from clipcap.models.encoders import openai_weights
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.names import is_resnet
from clipcap.models.encoders.openai_weights import clip_package, clip_tokens, within_reach

FILES = ("tiny_vit_state_dict", "tiny_vit_torchscript", "tiny_rn_state_dict", "tiny_rn_torchscript")
TEXTS = ["a red apple", "two fried eggs on a plate, with bread and a cup of tea", "tea"]


@pytest.fixture(params=FILES)
def fixture(request, shared):
    root = shared / "fixtures" / "openai-clip"
    expected = torch.load(root / "expected.pt", weights_only=True)[f"{request.param}.pt"]
    return load_encoder(str(root / f"{request.param}.pt"), "cpu"), expected, root / "images"


def assert_near(ours, expected, share):
    """Every row within `share` of its own norm."""
    assert ours.shape == expected.shape
    assert ((ours - expected).norm(dim=1) / expected.norm(dim=1)).max() < share


def test_embeddings_of_the_fixtures_from_preprocessed_pixels(fixture):
    encoder, expected, _ = fixture
    assert encoder.dim == expected["embed_dim"]
    assert_near(encoder.encode_images(expected["preprocessed"]), expected["embedding"], 1e-4)


def test_embeddings_of_the_fixtures_from_jpegs(fixture):
    encoder, expected, images = fixture
    pixels = torch.stack([encoder.preprocess(open_image(images / name)) for name in expected["images"]])
    assert_near(encoder.encode_images(pixels), expected["embedding"], 1e-2)


def own_network(path, **sizes):
    """The file's network, built without our loader, in the file's own float32."""
    from clip.model import CLIP

    defaults = {"embed_dim": 64, "image_resolution": 64, "vision_layers": 2, "vision_width": 64,
                "vision_patch_size": 8, "context_length": 77, "vocab_size": 49408, "transformer_width": 64,
                "transformer_heads": 1, "transformer_layers": 1}  # fmt: skip
    network = CLIP(**{**defaults, **sizes})
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:FutureWarning")  # of the package's own loader
def test_a_float32_fine_tune_is_not_rounded(clip_file):
    encoder = load_encoder(str(clip_file), "cpu")
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        network = own_network(clip_file)
        images = network.encode_image(pixels)
        texts = network.encode_text(clip.tokenize(TEXTS))
        rounded = clip.load(str(clip_file), device="cpu")[0].encode_image(pixels)
    assert (encoder.encode_images(pixels) - images).abs().max() < 1e-6
    assert (encoder.encode_texts(TEXTS) - texts).abs().max() < 1e-6
    assert (rounded - images).abs().max() > 1e-5  # what the package's own loader does


def test_preprocessing_is_that_of_the_package(clip_file):
    preprocess = load_encoder(str(clip_file), "cpu").preprocess
    for size in ((40, 32), (200, 90), (64, 64), (65, 300)):
        image = picture(0, size)
        assert (preprocess(image) - clip.clip._transform(64)(image)).abs().max() < 1e-6


def test_a_ribbon_is_cut_before_it_is_enlarged(clip_file):
    assert crop_extreme_aspect(Image.new("RGB", (100_000, 1))).size == (32, 1)
    assert crop_extreme_aspect(Image.new("RGB", (3, 5_000))).size == (3, 96)
    assert crop_extreme_aspect(Image.new("RGB", (320, 10))).size == (320, 10)
    assert load_encoder(str(clip_file), "cpu").preprocess(Image.new("RGB", (1, 100_000))).shape == (3, 64, 64)


@pytest.mark.parametrize("wrap", [lambda state: {"state_dict": state}, lambda state: state])
def test_weights_wrapped_by_a_training_script_load(wrap, clip_file, tmp_path):
    state = torch.load(clip_file, weights_only=True)
    torch.save(wrap({f"module.{name}": tensor for name, tensor in state.items()}), tmp_path / "clip.pt")
    encoder, plain = load_encoder(str(tmp_path / "clip.pt"), "cpu"), load_encoder(str(clip_file), "cpu")
    assert encoder.weights_id == plain.weights_id


def test_the_folder_of_a_run_stands_for_its_best_weights(clip_file, tmp_path):
    with pytest.raises(ClipcapError, match=r"is a folder without clip\.pt"):
        load_encoder(str(tmp_path), "cpu")
    state, ids = torch.load(clip_file, weights_only=True), {}
    for number, name in enumerate(("clip-000", "clip-001", "clip-last", "clip-best", "notes")):
        (tmp_path / name).mkdir()
        if name != "notes":
            torch.save({**state, "visual.proj": state["visual.proj"] * (2 + number)}, tmp_path / name / "clip.pt")
            ids[name] = load_encoder(str(tmp_path / name), "cpu").weights_id
            assert load_encoder(str(tmp_path), "cpu").weights_id == ids[name]
    assert len(set(ids.values())) == 4
    (tmp_path / "clip-best").rename(tmp_path / ".clip-best.old")  # as a kill while it is replaced leaves it
    assert load_encoder(str(tmp_path), "cpu").weights_id == ids["clip-best"]


def test_what_is_not_read_of_a_long_text_is_behind_the_last_token():
    words = " ".join(CAPTIONS * 100)
    assert len(within_reach(words)) < len(words)
    for text in (words, "a plate\n\n" * 5000, "🍕 " * 9000, "Crème " + "\t" * 9000 + words):
        assert torch.equal(clip_tokens([text], 77), clip.tokenize([text], truncate=True))


def test_the_fingerprint_tells_weights_apart(clip_file, tmp_path):
    state = torch.load(clip_file, weights_only=True)
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    state["visual.proj"] *= 1.01
    torch.save(state, tmp_path / "tuned.pt")
    ids = {load_encoder(str(path), "cpu").weights_id for path in (clip_file, *tmp_path.glob("*.pt"))}
    assert len(ids) == 3
    assert load_encoder(str(clip_file), "cpu", "bfloat16").weights_id in ids


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_reduced_precision_runs_on_a_cpu(dtype, share, clip_file):
    pixels = torch.randn(2, 3, 64, 64)
    exact, reduced = load_encoder(str(clip_file), "cpu"), load_encoder(str(clip_file), "cpu", dtype)
    assert reduced.encode_images(pixels).dtype == torch.float32
    assert_near(reduced.encode_images(pixels), exact.encode_images(pixels), share)
    assert_near(reduced.encode_texts(TEXTS), exact.encode_texts(TEXTS), share)


def test_a_text_too_long_for_the_tower_is_cut(clip_file):
    encoder = load_encoder(str(clip_file), "cpu")
    assert encoder.encode_texts(["many words " * 200]).isfinite().all()


def test_a_text_tower_too_small_for_the_tokenizer_is_refused(tmp_path):
    own_network(tmp_path / "clip.pt", vocab_size=512)
    encoder = load_encoder(str(tmp_path / "clip.pt"), "cpu")
    assert encoder.encode_images(torch.randn(1, 3, 64, 64)).shape == (1, 64)
    with pytest.raises(ClipcapError, match=r"512 tokens, CLIP's tokenizer has 49408.*images only"):
        encoder.encode_texts(TEXTS)


# --- transformers -------------------------------------------------------------------------------------------------


def hf_tokenizer(folder, longest):
    tokenizer = make_tokenizer(TEXTS)
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
    )
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, longest
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_hf(kind, folder):
    """A tiny dual encoder of transformers, its image processor and tokenizer, as a local folder."""
    import transformers as tf

    torch.manual_seed(0)
    tokenizer = hf_tokenizer(folder, 16)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16}  # fmt: skip
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    processor = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    if kind == "CLIPModel":
        model = tf.CLIPModel(tf.CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=24))
    elif kind == "SiglipModel":
        config = tf.SiglipConfig(text_config={**text, **ends, "projection_size": 32}, vision_config=vision)
        model, processor = tf.SiglipModel(config), tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
            tf.ViTConfig(**vision), tf.BertConfig(**text), projection_dim=24
        )
        model = tf.VisionTextDualEncoderModel(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor, tokenizer


@pytest.mark.parametrize("kind", ["CLIPModel", "SiglipModel", "VisionTextDualEncoder"])
def test_both_towers_equal_those_of_transformers(kind, tmp_path):
    model, processor, tokenizer = make_hf(kind, tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", "cpu")
    images = [picture(i) for i in range(3)]
    padding = "max_length" if kind == "SiglipModel" else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        text = model.get_text_features(**tokens).pooler_output
    assert encoder.dim == image.shape[1] == text.shape[1]
    ours = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in images]))
    torch.testing.assert_close(ours, image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), text, rtol=1e-5, atol=1e-5)
    alone = torch.cat([encoder.encode_texts([t]) for t in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), alone, rtol=1e-5, atol=1e-5)


def test_a_model_without_two_towers_is_refused(lm_folder):
    with pytest.raises(ClipcapError, match="gpt2 model, which has no image and text tower"):
        load_encoder(f"hf:{lm_folder}", "cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:/no/such/folder", r"--clip_model_type hf:/no/such/folder: there is no such folder"),
        ("hf:nobody/nothing", r"nobody/nothing.*hf download nobody/nothing.*or pass --clip_model_type hf:FOLDER"),
    ],
)
def test_a_missing_model_of_transformers_says_where_to_place_it(name, said):
    with pytest.raises(ClipcapError, match=said):
        load_encoder(name, "cpu")


# --- open_clip ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    """A tiny model in open_clip's own layout, and the network itself."""
    open_clip = pytest.importorskip(
        "open_clip", reason="open_clip is not installed: pip install 'clipcap-toolkit[open_clip]'"
    )
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    network = open_clip.CLIP(**config).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "configs")
    return folder, network


@pytest.mark.parametrize("name", ["open_clip:local-dir:{}", "open_clip:tiny/{}/open_clip_model.safetensors"])
def test_both_towers_equal_those_of_open_clip(name, open_clip_folder):
    import open_clip

    folder, network = open_clip_folder
    encoder = load_encoder(name.format(folder), "cpu")
    pixels = torch.stack([encoder.preprocess(picture(i)) for i in range(3)])
    with torch.no_grad():
        image, text = network.encode_image(pixels), network.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS))
    torch.testing.assert_close(encoder.encode_images(pixels), image)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), text)
    assert encoder.dim == 32


def test_open_clip_weights_run_with_the_activation_they_were_trained_with(open_clip_folder):
    from clipcap.models.encoders.open_clip import _open_clip_parts

    assert _open_clip_parts("open_clip:ViT-B-32/openai") == ("ViT-B-32", "openai", True)
    assert _open_clip_parts("open_clip:ViT-B-32/laion2b_s34b_b79k")[2] is False


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-33/x", "no model 'ViT-B-33'; the nearest are .*ViT-B-32"),
        ("open_clip:ViT-B-32", "which weights.*openai, laion400m_e31"),
        ("open_clip:tiny/no.pt", "tiny/no.pt: cannot load the weights.*not a known tag or valid file path"),
        ("open_clip:local-dir:/no/such", "/no/such.*cannot load the weights"),
    ],
)
def test_open_clip_names_that_do_not_load(name, said, open_clip_folder, capfd):
    with pytest.raises(ClipcapError, match=said):
        load_encoder(name, "cpu")
    assert capfd.readouterr().err == ""  # open_clip logs what it raises


def test_open_clip_weights_missing_from_a_folder_are_not_drawn_at_random(open_clip_folder, tmp_path):
    pytest.importorskip("open_clip")
    (tmp_path / "open_clip_config.json").write_bytes((open_clip_folder[0] / "open_clip_config.json").read_bytes())
    with pytest.raises(ClipcapError, match="cannot load the weights"):
        load_encoder(f"open_clip:local-dir:{tmp_path}", "cpu")


# --- names, files, devices ----------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ClipcapError, match=r"RN51: neither a file nor a name .*RN50, RN101, .*ViT-L/14@336px"):
        load_encoder("RN51", "cpu")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04" + b"\0" * 64, {"wte.weight": torch.zeros(2, 2)}, {}, {"a": 1}, torch.zeros(2)],
    ids=["empty", "text", "broken zip", "a language model", "no tensors", "no weights", "a tensor"],
)
def test_another_kind_of_file_is_refused(content, tmp_path):
    path = tmp_path / "clip.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ClipcapError, match=r"clip\.pt: (not a CLIP|holds no tensors|its tensors are not)"):
        load_encoder(str(path), "cpu")


def test_a_truncated_file_is_refused(clip_file, tmp_path):
    (tmp_path / "clip.pt").write_bytes(clip_file.read_bytes()[:-1000])
    with pytest.raises(ClipcapError, match=r"clip\.pt: not a CLIP .*truncated"):
        load_encoder(str(tmp_path / "clip.pt"), "cpu")


class Weights(http.server.BaseHTTPRequestHandler):
    """Serves one file, or less of it than announced."""

    content, cut = b"", 0

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) - self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def weights_server(clip_file, tmp_path, monkeypatch):
    content = clip_file.read_bytes()
    handler = type("Handler", (Weights,), {"content": content})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{hashlib.sha256(content).hexdigest()}/RN50.pt"
    monkeypatch.setitem(clip_package().clip._MODELS, "RN50", url)
    monkeypatch.setattr(openai_weights, "CACHE", tmp_path / "cache")
    yield handler
    server.shutdown()
    server.server_close()


def test_weights_of_a_name_are_fetched_once(weights_server, tmp_path):
    first = load_encoder("RN50", "cpu")
    weights_server.content = b"gone"
    assert load_encoder("RN50", "cpu").weights_id == first.weights_id
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["RN50.pt"]


def test_names_stay_and_paths_become_absolute(weights_server, clip_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RN50").mkdir()
    (tmp_path / "clip.pt").write_bytes(clip_file.read_bytes())
    assert load_encoder("RN50", "cpu").name == "RN50"
    assert load_encoder("clip.pt", "cpu").name == str(tmp_path / "clip.pt")


def test_a_download_cut_short_does_not_pass_for_weights(weights_server, tmp_path):
    weights_server.cut = 5000
    with pytest.raises(ClipcapError, match=r"weights of RN50 .* cannot be downloaded .*place it at .*RN50\.pt"):
        load_encoder("RN50", "cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_weights_missing_without_network_say_where_to_place_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(clip_package().clip._MODELS, "RN50", "http://127.0.0.1:9/abc/RN50.pt")  # nobody listens there
    monkeypatch.setattr(openai_weights, "CACHE", tmp_path)
    with pytest.raises(ClipcapError) as caught:
        load_encoder("RN50", "cpu")
    assert (
        f"fetch http://127.0.0.1:9/abc/RN50.pt where there is a network and place it at {tmp_path / 'RN50.pt'}"
        in str(caught.value)
    )


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", "cpu:1", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused(device, clip_file):
    with pytest.raises(ClipcapError, match=f"--device {device}"):
        load_encoder(str(clip_file), device)


def test_preprocessing_can_be_sent_to_worker_processes(clip_file, tmp_path):
    make_hf("CLIPModel", tmp_path)
    for name in (str(clip_file), f"hf:{tmp_path}"):
        preprocess = load_encoder(name, "cpu").preprocess
        image = picture(0)
        assert torch.equal(pickle.loads(pickle.dumps(preprocess))(image), preprocess(image))


@pytest.mark.parametrize(
    ("name", "resnet"),
    [("RN50x4", True), ("ViT-B/32", False), ("open_clip:RN50/openai", True), ("hf:RN/x", None), (None, None)],
)
def test_resnets_are_known_by_their_names(name, resnet):
    assert is_resnet(name) is resnet


def test_a_file_tells_by_its_tensors_whether_it_is_a_resnet(tmp_path, shared):
    assert is_resnet(str(make_clip(tmp_path / "RN51"))) is False
    assert is_resnet(str(shared / "fixtures" / "openai-clip" / "tiny_rn_state_dict.pt")) is True
    (tmp_path / "other.pt").write_text("no weights")
    assert is_resnet(str(tmp_path / "other.pt")) is None


def test_loading_warns_of_nothing(clip_file, shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder(str(clip_file), "cpu")
        load_encoder(str(shared / "fixtures" / "openai-clip" / "tiny_vit_torchscript.pt"), "cpu")
