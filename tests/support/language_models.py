"""Language models of two layers with random weights, the same at every call: `gpt2`, or anything else for a Llama."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SMALL = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0}


def language_model(kind: str) -> PreTrainedModel:
    """In evaluation mode, 32 wide, of 97 tokens."""
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL)).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **sizes, **SMALL)).eval()
