import math

import pytest
import torch

from clipcap.errors import ClipcapError
from clipcap.models.mapper import MLP, TransformerMapper


def test_mlp_has_the_sizes_of_the_paper():
    mapper = MLP(clip_dim=20, embed_dim=16, prefix_length=5)
    assert [tuple(p.shape) for p in mapper.parameters()] == [(40, 20), (40,), (80, 40), (80,)]
    assert mapper(torch.randn(3, 20)).shape == (3, 5, 16)


def test_transformer_attention_equals_attention_written_out():
    torch.manual_seed(0)
    mapper = TransformerMapper(12, 16, prefix_length=3, prefix_length_clip=2, num_layers=1, num_heads=4)
    attn = mapper.transformer.layers[0].attn
    x = torch.randn(2, 5, 16)
    q = attn.to_queries(x).reshape(2, 5, 4, 4)
    k, v = attn.to_keys_values(x).reshape(2, 5, 2, 4, 4).unbind(2)
    weights = torch.einsum("bnhd,bmhd->bnmh", q, k).div(math.sqrt(4)).softmax(dim=2)
    expected = attn.project(torch.einsum("bnmh,bmhd->bnhd", weights, v).reshape(2, 5, 16))
    torch.testing.assert_close(attn(x), expected)


def test_transformer_returns_the_constants_outputs():
    mapper = TransformerMapper(12, 16, prefix_length=3, prefix_length_clip=7, num_layers=2, num_heads=4)
    prefix = mapper(torch.randn(2, 12))
    assert prefix.shape == (2, 3, 16)
    assert not torch.equal(prefix[0], prefix[1])  # the constants have looked at the image


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ClipcapError, match=r"30 wide.*8 attention heads.*--num_heads"):
        TransformerMapper(12, 30, 3, 3)
