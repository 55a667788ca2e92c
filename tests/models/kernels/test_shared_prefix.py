"""Captions behind one prefix have the loss and the gradients of captions computed one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.small import feature_file

from clipcap.features.files import read_features
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.kernels.shared_prefix import can_share_prefix
from clipcap.models.language_model import checkpoint_layers, load_tokenizer
from clipcap.training.dataset import CaptionDataset

# Different numbers of captions, of different lengths: rows and captions are padded.
CAPTIONS = [
    ("a red apple on a white plate", "an apple", "one apple that lies on a plate", "fruit"),
    ("two fried eggs beside a green napkin",),
    ("three cookies, a fork and a cup of tea", "tea"),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000}


@pytest.fixture(scope="module")
def batches(tmp_path_factory, lm_folder):
    """The same captions in rows of their own, and sharing rows."""
    features = read_features(feature_file(tmp_path_factory.mktemp("data") / "f.pkl", CAPTIONS))
    tokenizer = load_tokenizer(str(lm_folder))
    datasets = [CaptionDataset(features, tokenizer, 100, share_prefix=share) for share in (False, True)]
    apart, shared = (dataset.batch(np.arange(7)) for dataset in datasets)
    assert (len(apart.input_ids), len(shared.input_ids)) == (7, 3)
    return apart, shared


def loss_and_gradients(model, batch):
    inputs = batch.inputs(torch.device("cpu"))
    model.zero_grad()
    loss = model(**inputs | {"given": inputs["given"].vectors.to(next(model.parameters()))})
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
@pytest.mark.parametrize("tune", ["full", "none"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_equal(make_model, batches, mapping_type, tune, attention):
    model = make_model(mapping_type=mapping_type, tune=tune).double()
    model.lm.set_attn_implementation(attention)
    (loss, gradients), (shared, of_shared) = (loss_and_gradients(model, batch) for batch in batches)
    torch.testing.assert_close(shared, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(of_shared, gradients, rtol=1e-9, atol=1e-11)
    assert gradients and any("lm." in name for name in gradients) == (tune == "full")


def test_captions_in_another_order_or_row_change_nothing(make_model, batches, tmp_path, tokenizer):
    model = make_model().double()
    features = read_features(feature_file(tmp_path / "f.pkl", CAPTIONS))
    dataset = CaptionDataset(features, tokenizer, 100, share_prefix=True)
    other = dataset.batch(np.array([6, 5, 2, 4, 0, 3, 1]))
    assert other.row_of.tolist() == [0, 0, 1, 2, 3, 3, 3]
    torch.testing.assert_close(
        loss_and_gradients(model, other), loss_and_gradients(model, batches[1]), rtol=1e-9, atol=1e-11
    )


def test_mixed_precision_stays_near(make_model, batches):
    model = make_model()
    exact, _ = loss_and_gradients(model, batches[0])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_and_gradients(model, batches[1])
    assert loss.dtype == torch.float32 and loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def build(name):
    import transformers

    torch.manual_seed(0)
    few = {
        "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
        "GPTNeoX": {"intermediate_size": 64},
        "Llama": {"intermediate_size": 64},
        "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "Mamba": {"state_size": 4},
    }
    config = getattr(transformers, f"{name}Config")(**SIZES | few.get(name, {}))
    return getattr(transformers, f"{name}LMHeadModel" if name == "XLM" else f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", ["OPT", "GPTNeoX", "Llama"])
def test_other_language_models_share_too(batches, name):
    lm = build(name)
    assert can_share_prefix(lm)
    model = ClipCaptionModel(ModelConfig(clip_dim=32, prefix_length=4, tune="full"), lm).eval().double()
    (loss, gradients), (shared, of_shared) = (loss_and_gradients(model, batch) for batch in batches)
    torch.testing.assert_close(shared, loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(of_shared, gradients, rtol=1e-4, atol=1e-7)  # Llama computes its norms in float32


@pytest.mark.parametrize("name", ["Bloom", "GPTNeo", "Mamba"])
def test_models_without_such_masks_or_with_windows_are_found_out(name):
    assert not can_share_prefix(build(name))


def test_asking_leaves_the_model_and_the_random_numbers_as_they_were(make_model):
    lm = make_model().lm.train()
    before = torch.get_rng_state()
    assert can_share_prefix(lm)
    assert lm.training and torch.equal(torch.get_rng_state(), before)


class TestGradientCheckpointing:
    def kept(self, model, batch):
        """Bytes that the forward pass keeps, the gradients, and the loss."""
        sizes = {}

        def keep(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = loss_and_gradients(model, batch)
        return sum(sizes.values()), result

    @pytest.mark.parametrize("tune", ["full", "none"])
    def test_keeps_less_and_changes_nothing(self, make_model, batches, tune):
        model = make_model(tune=tune).double().train()
        torch.manual_seed(1)
        much, expected = self.kept(model, batches[1])
        checkpoint_layers(model.lm)
        torch.manual_seed(1)  # of dropout
        little, found = self.kept(model, batches[1])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert little < 0.7 * much
