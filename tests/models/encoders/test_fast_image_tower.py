"""OpenAI's image towers, laid out for a CPU, give the features of the published network with less work."""

from __future__ import annotations

from functools import partial

import clip
import pytest
import torch
from clip.model import CLIP
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from clipcap.models.encoders.fast_image_tower import FastVisionTransformer, fast_image_tower
from clipcap.models.encoders.load import load_encoder
from clipcap.models.kernels.bfloat16 import pick_cpu_dtype
from clipcap.models.kernels.packed_linear import PackedLinear, can_pack, pack_for_rows

SIZES = {"vit": (32, 64, 3, 128, 16), "resnet": (32, 64, (1, 2, 1, 1), 16, None)}
needs_packing = pytest.mark.skipif(not can_pack(), reason="torch has no oneDNN here, which packs weights")


class Shapes(TorchDispatchMode):
    """Notes the shapes of all results, by operation."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.append((func.__name__, tuple(result.shape)))
        return result


def network(kind):
    """With statistics in its batch norms that folding cannot ignore."""
    torch.manual_seed(0)
    whole = CLIP(*SIZES[kind], 77, 49408, 64, 1, 1).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values)
    return whole


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", SIZES)
def test_an_encoder_gives_the_features_of_the_published_network(kind, images, tmp_path):
    whole = network(kind)
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    pixels = torch.randn(images, 3, 64, 64)
    with torch.no_grad():
        expected = whole.encode_image(pixels)
    found = load_encoder(str(tmp_path / "clip.pt"), "cpu").encode_images(pixels)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().mean()


@needs_packing
def test_of_the_last_block_the_class_token_alone_is_computed():
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tower = fast_image_tower(network("vit").visual)
        with Shapes() as shapes:
            tower(pixels)
    wide = [shape for name, shape in shapes.seen if "linear" in name and shape[-1] == 4 * 128]
    assert wide == [(2, 17, 512), (2, 17, 512), (2, 1, 512)]


@needs_packing
def test_the_matrices_of_a_vision_transformer_are_held_once():
    visual = network("vit").visual
    tower = fast_image_tower(visual)
    assert isinstance(tower, FastVisionTransformer) and not len(visual.transformer.resblocks)
    assert all(p.ndim < 2 or "." not in name or name == "conv1.weight" for name, p in tower.named_parameters())


def test_no_batch_norm_is_left_of_a_resnet():
    tower = fast_image_tower(network("resnet").visual)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
    assert tower.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_float16_keeps_the_published_network(tmp_path):
    torch.save(network("vit").state_dict(), tmp_path / "clip.pt")
    encoder = load_encoder(str(tmp_path / "clip.pt"), "cpu", "float16")
    assert type(encoder.network.visual) is clip.model.VisionTransformer


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="torch packs no weights in bfloat16 here")
@pytest.mark.parametrize("kind", SIZES)
def test_features_in_bfloat16_point_where_those_in_float32_do(kind, tmp_path):
    torch.save(network(kind).state_dict(), tmp_path / "clip.pt")
    exact, rounded = (load_encoder(str(tmp_path / "clip.pt"), "cpu", dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == torch.bfloat16 and rounded.weights_id == exact.weights_id
    pixels, texts = torch.randn(3, 3, 64, 64), ["a red apple", "two eggs on a plate"]
    for one, other in (
        (exact.encode_images(pixels), rounded.encode_images(pixels)),
        (exact.encode_texts(texts), rounded.encode_texts(texts)),
    ):
        assert other.dtype == torch.float32 and not torch.equal(one, other)
        assert F.cosine_similarity(one, other).min() > 0.999


def test_the_dtype_of_an_encoder_is_float32_on_a_cpu_unless_one_is_asked_for(tmp_path):
    torch.save(network("vit").state_dict(), tmp_path / "clip.pt")
    assert load_encoder(str(tmp_path / "clip.pt"), "cpu").dtype == torch.float32
    assert load_encoder(str(tmp_path / "clip.pt"), "cpu", "auto").dtype == pick_cpu_dtype("auto")


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 7, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_are_those_of_a_linear_layer(rows, bias):
    torch.manual_seed(rows)
    layer, x = nn.Linear(70, 33, bias=bias), torch.randn(rows, 5, 70)
    with torch.no_grad():
        expected = layer(x)
        functions = {"none": lambda y: y, "swish": F.silu, "gelu": partial(F.gelu, approximate="tanh")}
        for activation, function in functions.items():
            found = PackedLinear(layer.weight, layer.bias, activation)(x)
            torch.testing.assert_close(found, function(expected), rtol=1e-5, atol=1e-5)


@needs_packing
def test_a_packed_network_multiplies_several_rows_by_packed_weights_and_keeps_its_parameters():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), Conv1D(24, 32))
    nn.init.normal_(plain[2].bias)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    inputs = [torch.randn(5, 1, 16), torch.randn(1, 1, 16)]
    with torch.inference_mode():
        expected = [plain(x) for x in inputs]
        pack_for_rows(plain)
        for x, wanted, packed in zip(inputs, expected, (True, False), strict=True):
            with Shapes() as shapes:
                torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
            assert any("linear_pointwise" in name for name, _ in shapes.seen) == packed
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.items())


@needs_packing
def test_weights_that_have_changed_since_are_packed_again():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(5, 16)
    pack_for_rows(layer)
    with torch.inference_mode():
        before = layer(x)
    layer(x).sum().backward()  # where gradients are wanted, the layer is torch's own
    torch.optim.SGD(layer.parameters(), 0.5).step()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        assert (layer(x) - before).abs().max() > 0.1


@needs_packing
def test_gpt2s_activation_is_part_of_the_packed_product_before_it(make_model):
    model, inputs = make_model().eval(), torch.randn(3, 5, 64)
    with torch.inference_mode():
        several, one = model.lm(inputs_embeds=inputs).logits, model.lm(inputs_embeds=inputs[:1, :1]).logits
        for _ in range(2):  # as before every batch
            pack_for_rows(model.lm)
        with Shapes() as shapes:
            torch.testing.assert_close(model.lm(inputs_embeds=inputs).logits, several, rtol=1e-4, atol=1e-5)
        assert not any("gelu" in name for name, _ in shapes.seen)
        with Shapes() as shapes:
            torch.testing.assert_close(model.lm(inputs_embeds=inputs[:1, :1]).logits, one, rtol=1e-4, atol=1e-5)
        assert any("gelu" in name for name, _ in shapes.seen)


@needs_packing
def test_a_network_may_be_packed_in_the_middle_of_a_pass_as_by_another_thread(make_model):
    model, inputs = make_model().eval(), torch.randn(3, 5, 64)
    with torch.inference_mode():
        expected = model.lm(inputs_embeds=inputs).logits
        widen = model.lm.transformer.h[0].mlp.c_fc
        widen.register_forward_hook(lambda *_: pack_for_rows(model.lm))  # its activation comes next
        for _ in range(2):
            torch.testing.assert_close(model.lm(inputs_embeds=inputs).logits, expected, rtol=1e-4, atol=1e-5)
