"""The language model and its tokenizer, from transformers, with clear errors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipcap.errors import ClipcapError
from clipcap.models.adapters import adapted_model, with_adapter
from clipcap.models.limits import check_network_size, checked_lm_config
from clipcap.models.pretrained import check_loaded, load_network
from clipcap.runtime.bundled import LM, bundled
from clipcap.runtime.heavy_imports import transformers_package
from clipcap.runtime.hub import is_local, load_pretrained
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def load_lm(name: str) -> PreTrainedModel:
    """A causal language model in float32, by hub name or local folder, or a bundled one, `demo` or `demo-tuned`.

    Raises:
        ClipcapError: it cannot be had, is incomplete, or is not a causal language model.
    """
    if adapted := adapted_model(name):
        return with_adapter(load_lm(adapted), Path(name).expanduser())
    if is_gguf(name):
        return _load_gguf(name)
    config = load_lm_config(name)
    return load_network(
        transformers_package().AutoModelForCausalLM, bundled(name, LM), "language model", "--lm", config
    )[0]


def is_gguf(name: str) -> bool:
    """Whether `name` is a file of llama.cpp's format."""
    return name.endswith(".gguf")


def _gguf_part(loader: Any, name: str, what: str, **options: Any) -> Any:
    """A part of `FILE.gguf`, whose weights transformers brings back to floating-point numbers."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise ClipcapError(f"--lm {name}: there is no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            check_weights_file(path)
            raise ClipcapError(f"--lm {name}: is no file of llama.cpp's format: fetch it again")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ClipcapError(
            f"--lm {name}: reading GGUF needs the gguf package: pip install 'clipcap-toolkit[gguf]'"
        ) from error
    try:
        return loader.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True, **options)
    except Exception as error:  # of damaged files anything may come
        if _is_damaged(path):
            raise ClipcapError(f"--lm {name}: is damaged or cut off: fetch it again") from error
        raise ClipcapError(f"--lm {name}: cannot load the {what}: {one_line(error)}") from error


def _is_damaged(path: Path) -> bool:
    """Whether the package that reads GGUF makes no sense of a file of a version that it knows."""
    import gguf

    try:
        gguf.GGUFReader(path)
    except Exception as error:
        return "version" not in str(error)
    return False


def _load_gguf(name: str) -> PreTrainedModel:
    """The language model of a GGUF file, built anew: as transformers loads it, it cannot be saved."""
    options = {"dtype": torch.float32, "output_loading_info": True}
    auto = transformers_package().AutoModelForCausalLM
    read, info = _gguf_part(auto, name, "language model", **options)
    checked_lm_config(read.config, f"--lm {name}")
    read.config.__dict__.pop("quantization_config", None)  # saved with it, the model would count as quantised still
    model = auto.from_config(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    check_loaded(model, info, f"--lm {name}")
    return model.eval()


def load_lm_config(name: str) -> PretrainedConfig:
    """The configuration of a causal language model; encoders and encoder-decoders are refused."""
    transformers = transformers_package()
    place = bundled(adapted_model(name) or name, LM)
    if is_local(place) and (wrong := _wrong_folder(Path(place).expanduser())):
        raise ClipcapError(f"--lm {name}: {wrong}")
    config = load_pretrained(transformers.AutoConfig, place, "language model", "--lm")
    checked_lm_config(config, f"--lm {name}")
    decoder_only = not config.is_encoder_decoder and type(config) in transformers.AutoModelForCausalLM._model_mapping
    # BERT and its kin have a causal head too, but without `is_decoder` they look at the words to come.
    encoder_only = hasattr(config, "is_decoder") and not config.is_decoder and config.model_type in _ENCODERS
    if not decoder_only or encoder_only:
        raise ClipcapError(
            f"--lm {name} is a {config.model_type} model, which does not continue text from left to right: "
            f"choose a causal language model such as gpt2, distilgpt2 or facebook/opt-125m"
        )
    forward = transformers.AutoModelForCausalLM._model_mapping[type(config)].forward
    if not {"cache", "past_key_values"} & signature(forward).parameters.keys():
        raise ClipcapError(
            f"--lm {name} is a {config.model_type} model, which keeps what it has read in a way of its own: choose "
            f"one that decodes with transformers' cache, such as gpt2 or facebook/opt-125m"
        )
    if getattr(config, "add_cross_attention", False):  # of an encoder that is not here: without it, they do nothing
        config.add_cross_attention = False
    if getattr(config, "_attn_implementation", None) in _OTHER_ATTENTIONS:
        config._attn_implementation = None
    return config


def _wrong_folder(folder: Path) -> str | None:
    """What a folder without a language model's configuration is; None where it has one."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "has no config.json: pass the folder that save_pretrained wrote, with all of its files"
    except (OSError, ValueError, RecursionError):  # loading it will say what is wrong
        return None
    if isinstance(content, dict) and "format_version" in content and "model_type" not in content:
        return "is a checkpoint of clipcap, not a language model: to train on from it, pass it as --weights_dir"
    return None


def check_vocabulary(lm: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer whose tokens the language model does not have.

    Tokens that were added to the vocabulary and never learnt do no harm: of them the end of text alone is used.

    Raises:
        ClipcapError: says both numbers.
    """
    known, end = token_embeddings(lm).num_embeddings, end_of_text(tokenizer)
    own = 1 + max(tokens_in_text(tokenizer), default=0)
    if own > known or end >= known:
        what = f"tokens up to the number {own - 1:,}" if own > known else f"the number {end:,} for the end of texts"
        raise ClipcapError(
            f"{name}: its tokenizer has {what}, the language model knows {known:,}: they do not belong together"
        )


def tokens_in_text(tokenizer: Any) -> Iterable[int]:
    """The tokens that a text may become: the vocabulary, and of what was added to it those that are words."""
    if not hasattr(tokenizer, "added_tokens_decoder"):  # GPT-2's alone, by the tokenizers package
        return tokenizer.tokenizer.get_vocab(with_added_tokens=False).values()
    added = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    return [number for number in tokenizer.get_vocab().values() if number not in special]


def lm_of(config: PretrainedConfig, path: Path, stored: Iterable[Tensor]) -> PreTrainedModel:
    """A language model with random weights, of the configuration in the file at `path`.

    Args:
        stored: the tensors beside it, of which the language model's are some.
    Raises:
        ClipcapError: transformers cannot make one of it, or it is far larger than what is stored.
    """
    check_network_size(config, stored, path)
    try:
        return transformers_package().AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of nonsense transformers lets through almost anything
        raise ClipcapError(f"{path}: its lm_config is damaged: {one_line(error)}") from error


# Ways to compute the same attention that the machine of the weights had, and that others lack.
_OTHER_ATTENTIONS = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
_ENCODERS = {
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm",
    "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a language model, by hub name or local folder, or a bundled one, `demo` or `demo-tuned`.

    Raises:
        ClipcapError: it cannot be had, or it has no end-of-text token.
    """
    if (base := adapted_model(name)) and not (Path(name).expanduser() / "tokenizer_config.json").is_file():
        name = base
    auto = transformers_package().AutoTokenizer
    if is_gguf(name):
        tokenizer = _gguf_part(auto, name, "tokenizer")
    else:
        tokenizer = load_pretrained(auto, bundled(name, LM), "tokenizer", "--lm")
    try:
        tokenizer("a")
    except Exception as error:  # of nonsense in its configuration
        raise ClipcapError(
            f"{name}: its tokenizer cannot be used ({one_line(error)}): fetch its files again"
        ) from error
    if len(tokenizer) < 2:
        raise ClipcapError(
            f"{name}: its tokenizer is empty; the folder needs tokenizer.json or vocab.json and merges.txt"
        )
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token  # as GPT-2s with BERT's tokenizer are trained
    if tokenizer.eos_token_id is None:
        raise ClipcapError(f"{name}: its tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
    return tokenizer


def token_embeddings(lm: PreTrainedModel) -> nn.Embedding:
    """Token ids → language-model inputs: a causal model of transformers has them, which its types do not say."""
    return cast(nn.Embedding, lm.get_input_embeddings())


def output_head(lm: PreTrainedModel) -> nn.Linear:
    """Hidden states → logits: a linear layer, or what takes its place in int8."""
    return cast(nn.Linear, lm.get_output_embeddings())


def token_ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    """The tokens of a text; `special` adds those that the tokenizer sets around every text."""
    return list(cast(list[int], tokenizer(text, add_special_tokens=special)["input_ids"]))


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end-of-text token; `load_tokenizer` refuses a tokenizer without one."""
    return cast(int, tokenizer.eos_token_id)


def max_positions(lm: PreTrainedModel) -> int:
    """Longest sequence the language model takes."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(lm.config, name, None):
            return getattr(lm.config, name)
    return 1 << 30


def head_is_plain(lm: PreTrainedModel) -> bool:
    """Whether logits are just the output embeddings, a linear layer, applied to the last hidden state.

    Some models scale or cap them afterwards (Gemma, Cohere, Granite); tried on two random positions, since no
    attribute of transformers says so.
    """
    weight, head = token_embeddings(lm).weight, output_head(lm)
    probe = torch.randn(1, 2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)  # [1, 2, E]
    training = lm.training
    lm.eval()
    with torch.no_grad():
        logits = lm(inputs_embeds=probe, use_cache=False).logits
        hidden = lm.base_model(inputs_embeds=probe, use_cache=False).last_hidden_state
        plain = head(hidden)
    lm.train(training)
    linear = type(head) is nn.Linear
    return linear and plain.shape == logits.shape and torch.allclose(plain, logits, rtol=1e-3, atol=1e-3)


def checkpoint_layers(lm: PreTrainedModel) -> None:
    """Let each layer of a language model compute its activations again in the backward pass, not keep them; in place.

    transformers' own switch acts in training mode alone, in which a frozen language model never is.

    Raises:
        ClipcapError: the model does not say what its layers are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ClipcapError(f"--gradient_checkpointing is not possible with {lm.config.model_type} models: drop it")
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def add_lora(lm: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Put a LoRA adapter (arXiv 2106.09685) into the language model's attention, in place, where it has none yet.

    Raises:
        ClipcapError: peft is not installed, or does not know this kind of model.
    """
    if any("lora_" in name for name, _ in lm.named_parameters()):
        return lm
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ClipcapError("--tune lora needs the peft package: pip install 'clipcap-toolkit[lora]'") from error
    try:
        # Conv1D layers (GPT-2's) store [in, out]: peft finds the transposition out, and warns about it.
        fan_in_fan_out = lm.config.model_type == "gpt2"
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            fan_in_fan_out=fan_in_fan_out,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute on its way out
            return cast("PreTrainedModel", get_peft_model(lm, config).get_base_model())
    except ValueError as error:
        raise ClipcapError(
            f"--tune lora: peft does not know {lm.config.model_type} models: use --tune full"
        ) from error
