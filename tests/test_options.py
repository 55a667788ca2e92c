"""Options: one declaration gives the field, the flag and what a checkpoint stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib import import_module

import pytest

from clipcap.captioning.config import DecodeConfig, PredictConfig
from clipcap.contrastive.config import ContrastiveConfig
from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.options import (
    FlagParser,
    HelpGroups,
    Options,
    add_flags,
    flags_of,
    from_flags,
    given,
    option,
    part,
    read_options,
)
from clipcap.training.config import TrainConfig


def parse(config_class, *words):
    parser = FlagParser()
    add_flags(HelpGroups(parser), config_class)
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
    config = TrainConfig.of(
        data="x.pkl", epochs=3, lr=1e-4, only_prefix=True, dropout=False, val="0.1", tune="none", warmup_steps=7
    )
    words = []
    for name, value in config.flat().items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    assert parse(TrainConfig, *words) == config


@pytest.mark.parametrize("words", [["--only-prefix"], ["--only_prefix"], ["--only-prefix", "--no-dropout"]])
def test_hyphens_are_as_good_as_underscores(words):
    config = parse(TrainConfig, *words)
    assert config.model.only_prefix and config.task.dropout == (len(words) == 1)
    assert parse(TrainConfig, "--prefix-length=12", "--out-dir", "a-b").model.prefix_length == 12
    assert parse(TrainConfig, "--out-dir", "a-b").loop.out_dir == "a-b"


def test_flags_of_the_original_and_other_spellings():
    assert parse(TrainConfig, "--batch_size", "7").task.bs == 7
    config = parse(PredictConfig, "--entry_length", "9", "--temperature", "0.5").decode
    assert (config.max_new_tokens, config.temp) == (9, 0.5)
    original = "data out_dir prefix epochs save_every prefix_length prefix_length_clip bs only_prefix mapping_type"
    original += " num_layers is_rn normalize_prefix weights_dir"
    assert set(original.split()) <= set(flags_of(TrainConfig))


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
        TrainConfig.of(**options)


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"beam": True, "beam_size": 5, "num_captions": 6},
            "--num_captions 6 is more than --beam_size 5: raise --beam_size to 6",
        ),
        ({"top_p": 1.5}, "--top_p must lie between 0 and 1, got 1.5"),
        ({"repetition_penalty": 0}, "--repetition_penalty must be above 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "--min_new_tokens 9 is above --max_new_tokens 3"),
    ],
)
def test_impossible_decoding_is_refused(options, said):
    with pytest.raises(ClipcapError, match=said):
        DecodeConfig(**options)


def test_tuning_follows_only_prefix_unless_said():
    assert TrainConfig().model.tuning == "full"
    assert TrainConfig.of(only_prefix=True).model.tuning == "none"
    assert TrainConfig.of(only_prefix=True, tune="none").model.tuning == "none"
    assert TrainConfig.of(tune="lora").model.tuning == "lora"


def test_what_a_checkpoint_stores_is_left_to_it_unless_said():
    config = parse(TrainConfig).model
    assert config.prefix_length is config.mapping_type is config.lm is config.normalize_prefix is None
    assert parse(TrainConfig, "--prefix_length", "10").model.prefix_length == ModelConfig().prefix_length == 10
    assert parse(TrainConfig, "--no_normalize_prefix").model.normalize_prefix is False
    meaning = flags_of(TrainConfig)["prefix_length"].field.metadata["help"]
    assert meaning.endswith("(default: 10; with --weights_dir the checkpoint's)")


def test_every_field_has_a_meaning_and_help_shows_it(capsys):
    for config_class in (TrainConfig, PredictConfig, ModelConfig):
        assert all(flag.field.metadata["help"] for flag in flags_of(config_class).values())
    with pytest.raises(SystemExit):
        parse(TrainConfig, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "optimiser steps" in shown and "(default: 42)" in shown


def test_a_config_is_built_and_changed_by_the_names_of_its_flags():
    config = TrainConfig.of(data="x.pkl", epochs=3, lr=1e-4)
    assert (config.features.data, config.loop.epochs, config.task.lr) == ("x.pkl", 3, 1e-4)
    changed = config.with_options(epochs=5, only_prefix=True)
    assert (changed.loop.epochs, changed.model.only_prefix, changed.features) == (5, True, config.features)
    whole = PredictConfig.of(load_pt="run", decode=DecodeConfig(beam=True))
    assert (whole.load.load_pt, whole.decode.beam) == ("run", True)
    assert whole.with_options(**whole.flat()) == whole


def test_options_over_a_config_or_instead_of_one():
    assert given(DecodeConfig, None, {"beam": True}) == DecodeConfig(beam=True)
    assert given(DecodeConfig, DecodeConfig(beam=True), {"num_captions": 3}) == DecodeConfig(
        beam=True, num_captions=3
    )


@pytest.mark.parametrize("build", [TrainConfig.of, TrainConfig().with_options])
def test_an_unknown_option_is_named_with_the_nearest(build):
    with pytest.raises(ClipcapError, match="TrainConfig has no option 'epoch'; did you mean 'epochs'"):
        build(epoch=3)


def test_an_unknown_choice_is_refused_with_the_known_ones():
    with pytest.raises(ClipcapError, match="rerank is 'agreement', not one of none, clip, consensus"):
        DecodeConfig().with_options(rerank="agreement")
    with pytest.raises(ClipcapError, match="tune is None, not one of none, lora, full"):
        ModelConfig.of(tune=None)


def test_a_changed_config_is_checked_again():
    with pytest.raises(ClipcapError, match="--epochs must be at least 1"):
        TrainConfig().with_options(epochs=0)


def test_a_flag_of_several_parts_sets_them_all():
    config = parse(ContrastiveConfig, "--seed", "7")
    assert config.loop.seed == config.source.seed == 7
    assert ContrastiveConfig.of(seed=8).with_options(seed=9).source.seed == 9
    assert "crops" in flags_of(ContrastiveConfig)["seed"].field.metadata["help"]  # the first part's


def _declared(config_class, found=None) -> dict[str, list]:
    """The fields that a config and its parts declare, by name."""
    found = {} if found is None else found
    for f in fields(config_class):
        if "part" in f.metadata:
            _declared(f.metadata["part"], found)
        else:
            found.setdefault(f.name, []).append(f)
    return found


import_module("clipcap.cli.main")  # and with it every config


def _configs(base=Options) -> list[type[Options]]:
    return [c for sub in base.__subclasses__() for c in (sub, *_configs(sub)) if c.__module__.startswith("clipcap.")]


@pytest.mark.parametrize("config_class", _configs(), ids=lambda c: c.__name__)
def test_parts_of_a_config_agree_on_the_flags_they_share(config_class):
    declared = _declared(config_class)
    for name, several in declared.items():
        assert len({(f.default, f.metadata["aliases"], f.type) for f in several}) == 1, name
    parts = {f.name for f in fields(config_class) if "part" in f.metadata}
    assert not parts & declared.keys()  # `of` takes both by name


@dataclass(frozen=True)
class Inner(Options, group="model"):
    size: int = option(1, "a size")
    device: str = option("cpu", "a device", group="machine")


@dataclass(frozen=True)
class Outer(Options):
    inner: Inner = part(Inner)
    path: str = option("", "a path")


def test_the_group_of_an_option_is_its_own_or_its_classes():
    assert {name: flag.group for name, flag in flags_of(Outer).items()} == {
        "size": "model", "device": "machine", "path": "data",
    }  # fmt: skip


def test_a_stored_model_configuration_comes_back():
    config = ModelConfig(mapping_type="transformer", clip_dim=640, stop_token=".")
    assert ModelConfig(**asdict(config)) == config


def test_an_option_may_take_one_text_or_several():
    def read(value):
        return read_options(TrainConfig, {"data": value}, "a file")["data"]

    assert read("photos.pkl") == read(["photos.pkl"]) == "photos.pkl"
    assert read(["photos.pkl", "texts"]) == ("photos.pkl", "texts")
    for value in ([], ["photos.pkl", 3], {"a": "b"}):
        with pytest.raises(ClipcapError, match="a file: data is"):
            read(value)
    assert parse(TrainConfig, "--data", "a", "b").features.data == ("a", "b")
    assert parse(TrainConfig, "--data", "a").features.data == "a"
