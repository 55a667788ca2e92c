import pytest
import torch
from support import oracle

from clipcap.errors import ClipcapError
from clipcap.models.base import IGNORE
from clipcap.models.language_model import head_is_plain


def padded(token_lists):
    longest = max(map(len, token_lists))
    ids = torch.tensor([tokens + [7] * (longest - len(tokens)) for tokens in token_lists])
    counted = torch.tensor([[True] * len(t) + [False] * (longest - len(t)) for t in token_lists])
    return ids, ids.masked_fill(~counted, IGNORE)


TOKENS = [[5, 9, 300], [1], [17, 0, 0, 40, 2]]


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
def test_loss_equals_the_plain_computation(make_model, mapping_type):
    model = make_model(mapping_type=mapping_type)
    embeddings = torch.randn(3, 32)
    ids, labels = padded(TOKENS)
    total = model(embeddings, ids, labels)
    assert total.item() / 9 == pytest.approx(oracle.loss(model, embeddings, TOKENS), rel=1e-5)


def test_logits_of_position_t_predict_token_t(make_model):
    model = make_model()
    embedding = torch.randn(1, 32)
    logits = model(embedding, torch.tensor([[5, 9, 300]]))
    for t in range(3):
        expected = oracle.log_probs(model, embedding[0], [5, 9, 300][:t])
        torch.testing.assert_close(logits[0, t].log_softmax(-1), expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_loss_nor_gradients(make_model):
    model = make_model()
    embeddings = torch.randn(3, 32)
    ids, labels = padded(TOKENS)
    gradients = []
    for extra in (0, 6):
        model.zero_grad()
        wide = torch.nn.functional.pad(ids, (0, extra), value=3)
        model(embeddings, wide, torch.nn.functional.pad(labels, (0, extra), value=IGNORE)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_two_micro_batches_give_the_gradient_of_one_big_batch(make_model):
    model = make_model()
    embeddings = torch.randn(3, 32)
    ids, labels = padded(TOKENS)
    model(embeddings, ids, labels).backward()
    whole = model.mapper.model[0].weight.grad.clone()
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        model(embeddings[rows], ids[rows], labels[rows]).backward()
    torch.testing.assert_close(model.mapper.model[0].weight.grad, whole, rtol=1e-4, atol=1e-5)


def test_frozen_language_model_collects_no_gradient_and_has_no_dropout(make_model):
    model = make_model(tune="none").train()
    ids, labels = padded(TOKENS)
    embeddings = torch.randn(3, 32)
    first = model(embeddings, ids, labels)
    assert torch.equal(first, model(embeddings, ids, labels))
    first.backward()
    assert all(p.grad is None for p in model.lm.parameters())
    assert all(p.grad is not None for p in model.mapper.parameters())


def test_lora_trains_only_its_adapter(make_model):
    pytest.importorskip("peft", reason="the lora extra is not installed")
    model = make_model(tune="lora")
    trained = {name for name, p in model.lm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    embeddings = torch.randn(1, 32)
    ids, labels = padded([[5, 9]])
    model(embeddings, ids, labels).backward()
    assert any(p.grad.abs().sum() > 0 for n, p in model.lm.named_parameters() if "lora_B" in n)


def test_normalised_prefix_ignores_the_length_of_the_embedding(make_model):
    model = make_model(normalize_prefix=True)
    x = torch.randn(2, 32)
    torch.testing.assert_close(model.prefix(x), model.prefix(5 * x))
    assert not torch.allclose(make_model().prefix(x), make_model().prefix(5 * x))


def test_head_with_soft_capping_is_found_out_and_loss_stays_right():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.config import ModelConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 301, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=0.5)
    lm = Gemma2ForCausalLM(config).eval()
    assert not head_is_plain(lm)
    model = ClipCaptionModel(ModelConfig(clip_dim=32, prefix_length=4), lm).eval()
    embeddings = torch.randn(3, 32)
    ids, labels = padded(TOKENS)
    assert model(embeddings, ids, labels).item() / 9 == pytest.approx(
        oracle.loss(model, embeddings, TOKENS), rel=1e-5
    )


def test_opt_whose_embeddings_are_narrower_than_its_states_works():
    from transformers import OPTConfig, OPTForCausalLM

    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.config import ModelConfig

    torch.manual_seed(0)
    config = OPTConfig(hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
                       vocab_size=301, max_position_embeddings=64)  # fmt: skip
    model = ClipCaptionModel(ModelConfig(clip_dim=32, prefix_length=4), OPTForCausalLM(config).eval()).eval()
    embeddings = torch.randn(3, 32)
    ids, labels = padded(TOKENS)
    assert model.prefix(embeddings).shape == (3, 4, 16)
    assert model(embeddings, ids, labels).item() / 9 == pytest.approx(
        oracle.loss(model, embeddings, TOKENS), rel=1e-5
    )


def test_activation_of_gpt2_is_one_operation_and_the_same_function(make_model, lm_folder):
    from transformers.activations import NewGELUActivation

    from clipcap.models.language_model import load_lm

    plain, model = load_lm(str(lm_folder)).double(), make_model().double()
    plain.load_state_dict(model.lm.state_dict())
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in model.lm.modules())
    ids = torch.tensor([[5, 9, 300, 17]])
    torch.testing.assert_close(model.lm(ids).logits, plain(ids).logits, rtol=1e-12, atol=1e-12)


def test_prefix_longer_than_the_language_model_is_refused(make_model):
    with pytest.raises(ClipcapError, match=r"--prefix_length 128 leaves no room.*128 positions"):
        make_model(prefix_length=128)


def test_embeddings_of_another_width_are_refused_with_both_widths(make_model):
    with pytest.raises(ClipcapError, match=r"640 wide.*expects 32 \(ViT-B/32\)"):
        make_model(encoder="ViT-B/32").prefix(torch.randn(1, 640))


def test_exploding_mlp_is_warned_of(make_model):
    assert "warning" not in make_model(tune="none").parameter_report()
    report = make_model(tune="none", prefix_length=100, clip_dim=30_000).parameter_report()
    assert "warning: the MLP mapper has" in report and "--mapping_type transformer" in report
