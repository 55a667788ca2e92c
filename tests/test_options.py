"""Options: one declaration gives the field, the flag and what a checkpoint stores."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from clipcap.captioning.config import DecodeConfig, PredictConfig
from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.options import FlagParser, add_flags, from_flags
from clipcap.training.config import TrainConfig


def parse(config_class, *words):
    parser = FlagParser()
    add_flags(parser, config_class)
    return from_flags(config_class, parser.parse_args(words))


def fails(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, *words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_no_flags_give_the_defaults():
    for config_class in (TrainConfig, PredictConfig):
        assert parse(config_class) == config_class()


def test_every_option_is_a_flag_and_back():
    config = TrainConfig(
        data="x.pkl", epochs=3, lr=1e-4, only_prefix=True, dropout=False, val="0.1", tune="none", warmup_steps=7
    )
    words = []
    for f in fields(TrainConfig):
        value = getattr(config, f.name)
        if isinstance(value, bool):
            words.append(f"--{f.name}" if value else f"--no_{f.name}")
        elif value is not None:
            words.append(f"--{f.name}={value}")
    assert parse(TrainConfig, *words) == config


@pytest.mark.parametrize("words", [["--only-prefix"], ["--only_prefix"], ["--only-prefix", "--no-dropout"]])
def test_hyphens_are_as_good_as_underscores(words):
    config = parse(TrainConfig, *words)
    assert config.only_prefix and config.dropout == (len(words) == 1)
    assert parse(TrainConfig, "--prefix-length=12", "--out-dir", "a-b").prefix_length == 12
    assert parse(TrainConfig, "--out-dir", "a-b").out_dir == "a-b"


def test_flags_of_the_original_and_other_spellings():
    assert parse(TrainConfig, "--batch_size", "7").bs == 7
    config = parse(PredictConfig, "--entry_length", "9", "--temperature", "0.5")
    assert (config.max_new_tokens, config.temp) == (9, 0.5)
    original = "data out_dir prefix epochs save_every prefix_length prefix_length_clip bs only_prefix mapping_type"
    original += " num_layers is_rn normalize_prefix weights_dir"
    assert set(original.split()) <= {f.name for f in fields(TrainConfig)}


def test_what_argparse_refuses_names_flag_and_choices(capsys):
    assert "--epoch" in fails(capsys, "--epoch", "3")  # no abbreviations: --epochs was meant
    said = fails(capsys, "--mapping_type", "rnn")
    assert "--mapping_type" in said and "mlp" in said and "transformer" in said
    assert "--bs" in fails(capsys, "--bs", "many")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"lr": float("nan")}, "--lr must be at least 0, got nan"),
        ({"bs": -1}, "--bs must be at least 1"),
        ({"prefix_length": 0}, "--prefix_length must be at least 1"),
        ({"max_tokens": 0}, "--max_tokens must be at least 1"),
        ({"num_heads": 0}, "--num_heads must be at least 1"),
        ({"prefix": "runs/one"}, "--prefix 'runs/one': must be a name"),
        ({"prefix": ""}, "--prefix '': must be a name"),
        (
            {"only_prefix": True, "tune": "full"},
            "--only_prefix means --tune none, but --tune full",
        ),
    ],
)
def test_impossible_values_are_refused(options, said):
    with pytest.raises(ClipcapError, match=said):
        TrainConfig(**options)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"beam": True, "num_captions": 6}, "--num_captions 6 is more than --beam_size 5: raise --beam_size to 6"),
        ({"top_p": 1.5}, "--top_p must lie between 0 and 1, got 1.5"),
        ({"repetition_penalty": 0}, "--repetition_penalty must be above 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "--min_new_tokens 9 is above --max_new_tokens 3"),
    ],
)
def test_impossible_decoding_is_refused(options, said):
    with pytest.raises(ClipcapError, match=said):
        DecodeConfig(**options)


def test_tuning_follows_only_prefix_unless_said():
    assert TrainConfig().tuning == "full"
    assert TrainConfig(only_prefix=True).tuning == "none"
    assert TrainConfig(only_prefix=True, tune="none").tuning == "none"
    assert TrainConfig(tune="lora").tuning == "lora"


def test_what_a_checkpoint_stores_is_left_to_it_unless_said():
    config = parse(TrainConfig)
    assert config.prefix_length is config.mapping_type is config.lm is config.normalize_prefix is None
    assert parse(TrainConfig, "--prefix_length", "10").prefix_length == ModelConfig().prefix_length == 10
    assert parse(TrainConfig, "--no_normalize_prefix").normalize_prefix is False
    meaning = TrainConfig.__dataclass_fields__["prefix_length"].metadata["help"]
    assert meaning.endswith("(default: 10; with --weights_dir the checkpoint's)")


def test_every_field_has_a_meaning_and_help_shows_it(capsys):
    for config_class in (TrainConfig, PredictConfig, ModelConfig):
        assert all(f.metadata["help"] for f in fields(config_class))
    with pytest.raises(SystemExit):
        parse(TrainConfig, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "optimiser steps" in shown and "(default: 10)" in shown


def test_a_stored_model_configuration_comes_back():
    config = ModelConfig(mapping_type="transformer", clip_dim=640, stop_token=".")
    assert ModelConfig(**asdict(config)) == config
