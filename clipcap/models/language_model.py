"""The language model and its tokenizer, from transformers, with clear errors."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import LM, bundled
from clipcap.runtime.hub import load_pretrained, one_line

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_lm(name: str) -> PreTrainedModel:
    """A causal language model in float32, by hub name or local folder, or the bundled one, `demo`.

    Raises:
        ClipcapError: it cannot be had, is incomplete, or is not a causal language model.
    """
    options = {"config": load_lm_config(name), "dtype": torch.float32, "output_loading_info": True}
    model, info = load_pretrained(AutoModelForCausalLM, bundled(name, LM), "language model", "--lm", **options)
    if info["missing_keys"]:  # transformers fills them with random numbers and goes on
        lacking = min(info["missing_keys"])
        raise ClipcapError(f"--lm {name}: its weights lack {lacking}: the files are incomplete, fetch them again")
    return model


def load_lm_config(name: str) -> PretrainedConfig:
    """The configuration of a causal language model; encoders and encoder-decoders are refused."""
    config = load_pretrained(AutoConfig, bundled(name, LM), "language model", "--lm")
    checked_lm_config(config, f"--lm {name}")
    decoder_only = not config.is_encoder_decoder and type(config) in AutoModelForCausalLM._model_mapping
    # BERT and its kin have a causal head too, but unless told `is_decoder` they look at the words to come.
    encoder_only = hasattr(config, "is_decoder") and not config.is_decoder and config.model_type in _ENCODERS
    if not decoder_only or encoder_only:
        raise ClipcapError(
            f"--lm {name} is a {config.model_type} model, which does not continue text from left to right: "
            f"choose a causal language model such as gpt2, distilgpt2 or facebook/opt-125m"
        )
    return config


def checked_lm_config(config: PretrainedConfig, where: str) -> PretrainedConfig:
    """The configuration, where its sizes are those of a language model; others fill the memory, or take for ever.

    Raises:
        ClipcapError: names the size; `where` is where it stands.
    """
    limits = {"num_hidden_layers": 1_000, "hidden_size": 100_000, "vocab_size": 10_000_000}
    limits |= {"num_attention_heads": 10_000, "max_position_embeddings": 10_000_000}
    for name, limit in limits.items():
        size = getattr(config, name, 1)
        if type(size) is int and not 0 < size <= limit:
            raise ClipcapError(f"{where}: its configuration has {name} {size}, which no language model has")
    usual = type(config)().to_dict()
    for name, value in config.to_dict().items():
        number, expected = type(value) in (int, float), type(usual.get(name))
        wrong = type(value) is not bool if expected is bool else expected in (int, float) and not number
        if wrong and value is not None:
            raise ClipcapError(f"{where}: its configuration has {name} {value!r:.40}, expected {expected.__name__}")
    return config


def lm_of(config: PretrainedConfig, path: Path) -> PreTrainedModel:
    """A language model with random weights, of a configuration that stands in the file at `path`.

    Raises:
        ClipcapError: transformers cannot make one of it.
    """
    try:
        return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of nonsense transformers lets through almost anything
        raise ClipcapError(f"{path}: its lm_config is damaged: {one_line(error)}") from error


_ENCODERS = {
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm",
    "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a language model, by hub name or local folder, or the bundled one, `demo`.

    Raises:
        ClipcapError: it cannot be had, or it has no end-of-text token.
    """
    tokenizer = load_pretrained(AutoTokenizer, bundled(name, LM), "tokenizer", "--lm")
    if len(tokenizer) < 2:
        raise ClipcapError(
            f"{name}: its tokenizer is empty; the folder needs tokenizer.json or vocab.json and merges.txt"
        )
    if tokenizer.eos_token_id is None:
        raise ClipcapError(f"{name}: its tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
    return tokenizer
