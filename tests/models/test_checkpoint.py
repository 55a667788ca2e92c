"""Checkpoints: what is stored, that it comes back the same, and what is said of files that are no good."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.disks import files_no_larger_than
from support.road import run
from support.small import feature_file, same
from transformers import GPT2Config, GPT2LMHeadModel

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import find_checkpoint, load_checkpoint, read_config, save_checkpoint
from clipcap.models.original import export_reference, read_state_dict
from clipcap.runtime.files import current_path, recover, replaced_folder


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(make_model, tokenizer, tmp_path):
    """A checkpoint with its language model in it."""
    return save_checkpoint(make_model(), tokenizer, tmp_path / "saved")


def captions(model, tokenizer, embeddings):
    config = DecodeConfig(beam=True, beam_size=3, num_captions=3, max_new_tokens=12)
    return [[(c.text, c.token_ids) for c in found] for found in decode(model, tokenizer, embeddings, config)]


def shake(module):
    """Other weights than those that were loaded, LoRA's too, which start without effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
@pytest.mark.parametrize("tune", ["none", "lora", "full"])
def test_round_trip_gives_identical_captions(
    make_model, lm_folder, tokenizer, embeddings, tmp_path, tune, mapping_type
):
    if tune == "lora":
        pytest.importorskip("peft", reason="the lora extra is not installed")
    model = make_model(tune=tune, mapping_type=mapping_type, normalize_prefix=True, stop_token=".")
    if tune != "full":  # its language model is read anew from its folder
        model.lm.load_state_dict(make_model_lm_state(lm_folder), strict=False)
    shake(model)
    loaded = load_checkpoint(save_checkpoint(model, tokenizer, tmp_path / "saved"))
    assert loaded.model.config == model.config
    assert same(loaded.model.state_dict(), model.state_dict())
    assert captions(loaded.model, loaded.tokenizer, embeddings) == captions(model, tokenizer, embeddings)
    assert not loaded.model.training


def make_model_lm_state(lm_folder):
    """The language model's weights as its folder has them, under plain names and under LoRA's."""
    state = load_file(lm_folder / "model.safetensors")
    return {**state, **{re.sub(r"(c_attn)\.", r"\1.base_layer.", name): tensor for name, tensor in state.items()}}


def test_only_what_was_trained_is_stored(make_model, tokenizer, tmp_path):
    pytest.importorskip("peft", reason="the lora extra is not installed")
    sizes, stored = {}, {}
    for tune in ("none", "lora", "full"):
        folder = save_checkpoint(make_model(tune=tune), tokenizer, tmp_path / tune)
        stored[tune] = load_file(folder / "model.safetensors")
        sizes[tune] = (folder / "model.safetensors").stat().st_size
    model = make_model()
    mapper = {f"mapper.{name}" for name in model.mapper.state_dict()}
    assert set(stored["none"]) == mapper
    assert set(stored["lora"]) - mapper and all("lora_" in name for name in set(stored["lora"]) - mapper)
    assert sizes["none"] < sizes["lora"] < sizes["full"]
    assert sizes["none"] < 4 * sum(p.numel() for p in model.mapper.parameters()) + 1000
    # GPT-2's head is its token embedding, and is stored once.
    assert sizes["full"] < 4 * sum(p.numel() for p in model.parameters()) + 6000
    assert "lm.lm_head.weight" not in stored["full"]


def test_files_of_a_checkpoint(saved):
    assert {p.name for p in saved.iterdir()} == {"config.json", "model.safetensors", "README.md", "tokenizer"}
    config = json.loads((saved / "config.json").read_text())
    assert config["format_version"] == 1 and config["model"]["prefix_length"] == 4
    assert {"clipcap_version", "torch_version", "transformers_version"} <= config.keys()
    assert "pipeline_tag: image-to-text" in (saved / "README.md").read_text()
    assert os.stat(saved / "model.safetensors").st_mode & 0o044


def test_a_moved_checkpoint_still_captions_without_the_language_models_folder(
    make_model, tokenizer, lm_folder, embeddings, tmp_path
):
    gone = shutil.copytree(lm_folder, tmp_path / "gone")
    whole = make_model(lm=str(gone))
    frozen = make_model(lm=str(gone), tune="none")
    before = captions(whole, tokenizer, embeddings)
    save_checkpoint(whole, tokenizer, tmp_path / "whole")
    save_checkpoint(frozen, tokenizer, tmp_path / "frozen")
    shutil.rmtree(gone)
    loaded = load_checkpoint(shutil.move(tmp_path / "whole", tmp_path / "elsewhere"))
    assert captions(loaded.model, loaded.tokenizer, embeddings) == before
    with pytest.raises(ClipcapError, match=r"--lm .*gone: there is no such folder"):
        load_checkpoint(tmp_path / "frozen")
    assert load_checkpoint(tmp_path / "frozen", lm=str(lm_folder)).model.config.lm == str(lm_folder)


class TestContradictions:
    """What a checkpoint stores is not overruled by flags that are for a `.pt`."""

    @pytest.mark.parametrize("stored", [True, False])
    def test_normalisation(self, make_model, tokenizer, tmp_path, stored):
        folder = save_checkpoint(make_model(normalize_prefix=stored), tokenizer, tmp_path / "saved")
        said = f"saved: was trained with normalize_prefix {stored}, not {not stored}.*leave out --normalize_prefix"
        with pytest.raises(ClipcapError, match=said):
            load_checkpoint(folder, normalize_prefix=not stored)
        for agreeing in (stored, None):
            assert load_checkpoint(folder, normalize_prefix=agreeing).model.config.normalize_prefix is stored

    def test_attention_heads(self, make_model, tokenizer, saved, tmp_path):
        model = make_model(mapping_type="transformer", num_heads=4)
        folder = save_checkpoint(model, tokenizer, tmp_path / "transformer")
        with pytest.raises(ClipcapError, match="num_heads 4, not 8"):
            load_checkpoint(folder, num_heads=8)
        assert load_checkpoint(folder, num_heads=4).model.config.num_heads == 4
        load_checkpoint(saved, num_heads=4)  # an MLP has none

    def test_language_model(self, saved, lm_folder, monkeypatch):
        said = f"saved: holds its own language model .from {lm_folder}.*--lm distilgpt2 would change nothing"
        with pytest.raises(ClipcapError, match=said):
            load_checkpoint(saved, lm="distilgpt2")
        monkeypatch.chdir(lm_folder.parent)
        assert load_checkpoint(saved, lm=lm_folder.name).model.config.lm == str(lm_folder)


class TestDamaged:
    def edit(self, folder, change):
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda c: c["model"].update(colour=3), r"unknown option 'colour'"),
            (lambda c: c["model"].update(prefix_length="ten"), r"option prefix_length cannot be 'ten'"),
            (lambda c: c["model"].update(prefix_length=True), r"option prefix_length cannot be True"),
            (lambda c: c["model"].update(prefix_length=0), r"prefix_length must be at least 1"),
            (lambda c: c["model"].update(mapping_type="rnn"), r"option mapping_type cannot be 'rnn'"),
            (lambda c: c["model"].update(num_heads=0), r"num_heads must be at least 1"),
            (lambda c: c["model"].update(clip_dim=-1), r"clip_dim must be at least 1"),
            (lambda c: c.update(model=7), r"not the configuration of a clipcap checkpoint"),
            (lambda c: c.update(format_version=99), r"written in format 99 by a newer clipcap; this one reads 1"),
            (lambda c: c.update(format_version="x"), r"not the configuration"),
            (lambda c: c.pop("model"), r"not the configuration"),
            (lambda c: c["lm_config"].update(model_type="gpt9"), r"not the configuration"),
            (lambda c: c["lm_config"].pop("model_type"), r"not the configuration"),
        ],
    )
    def test_configuration(self, saved, change, said):
        self.edit(saved, change)
        with pytest.raises(ClipcapError, match=f"config.json: .*{said}"):
            load_checkpoint(saved)

    def test_missing_files(self, saved):
        (saved / "config.json").rename(saved.parent / "aside.json")
        with pytest.raises(ClipcapError, match=r"without its config.json"):
            load_checkpoint(saved)
        (saved.parent / "aside.json").rename(saved / "config.json")
        (saved / "model.safetensors").unlink()
        with pytest.raises(ClipcapError, match=r"model.safetensors: missing or damaged"):
            load_checkpoint(saved)

    def test_truncated_weights(self, saved):
        path = saved / "model.safetensors"
        for size in (0, 5, 200, path.stat().st_size - 1):
            path.write_bytes(path.read_bytes()[:size])
            with pytest.raises(ClipcapError, match=r"model.safetensors: missing or damaged"):
                load_checkpoint(saved)

    def test_other_sizes_are_said_both(self, saved):
        self.edit(saved, lambda c: c["model"].update(prefix_length=5))
        with pytest.raises(ClipcapError, match=r"mapper.model.0.bias is \[128\] there and \[160\] here"):
            load_checkpoint(saved)

    def test_another_language_model(self, make_model, tokenizer, tmp_path):
        from clipcap.demo.tiny import make_gpt2

        folder = save_checkpoint(make_model(tune="none"), tokenizer, tmp_path / "saved")
        wide = make_gpt2(tmp_path / "wide", ["a b"], width=128)
        with pytest.raises(ClipcapError, match=r"is \[128\] there and \[256\] here: the language model"):
            load_checkpoint(folder, lm=str(wide))

    def test_missing_and_unknown_tensors(self, saved):
        state = load_file(saved / "model.safetensors")
        for changed, said in (
            ({k: v for k, v in state.items() if k != "mapper.model.0.bias"}, "tensor mapper.model.0.bias is missing"),
            ({**state, "mapper.extra": torch.zeros(1)}, "unknown tensor mapper.extra"),
        ):
            save_file(changed, saved / "model.safetensors")
            with pytest.raises(ClipcapError, match=said):
                load_checkpoint(saved)


class TestReplacing:
    def test_a_failed_write_leaves_the_old_checkpoint(self, make_model, tokenizer, saved, monkeypatch):
        before = (saved / "model.safetensors").read_bytes()
        with pytest.raises(KeyboardInterrupt), replaced_folder(saved) as draft:
            (draft / "config.json").write_text("half")
            raise KeyboardInterrupt
        assert (saved / "model.safetensors").read_bytes() == before
        assert [p.name for p in saved.parent.iterdir()] == ["saved"]

    @pytest.mark.parametrize("renames", [0, 1, 2, 3])
    def test_after_a_kill_between_any_two_renames_a_whole_checkpoint_is_found(self, tmp_path, monkeypatch, renames):
        """The renames are draft → new, folder → old, new → folder."""
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(name)
        folder = (tmp_path / "old").rename(tmp_path / "run-last")
        left = {"draft": ".run-last.draft", "new": ".run-last.new", "old": ".run-last.old"}
        (tmp_path / "new").rename(tmp_path / left["draft"])
        steps = [(tmp_path / left["draft"], tmp_path / left["new"]), (folder, tmp_path / left["old"])]
        for source, target in [*steps, (tmp_path / left["new"], folder)][:renames]:
            source.rename(target)
        found = "old" if renames < 2 else "new"
        assert (current_path(folder) / "config.json").read_text() == found
        assert find_checkpoint(folder) == find_checkpoint(tmp_path) == current_path(folder)
        recover(folder)
        assert (folder / "config.json").read_text() == ("old" if renames == 0 else "new")
        assert [p.name for p in tmp_path.iterdir()] == ["run-last"]

    def test_a_reader_leaves_a_draft_alone(self, tmp_path):
        with replaced_folder(tmp_path / "run-last") as draft:
            with pytest.raises(ClipcapError, match="no such checkpoint"):
                find_checkpoint(tmp_path / "run-last")
            assert draft.is_dir()

    def test_a_folder_of_other_things_is_not_replaced(self, make_model, tokenizer, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.jpg").write_text("dear")
        (tmp_path / "file").write_text("dear")
        for name in ("photos", "file"):
            with pytest.raises(ClipcapError, match="is not a checkpoint, so it is not replaced"):
                save_checkpoint(make_model(), tokenizer, tmp_path / name)
        assert (tmp_path / "photos" / "a.jpg").read_text() == (tmp_path / "file").read_text() == "dear"
        (tmp_path / "empty").mkdir()
        save_checkpoint(make_model(), tokenizer, tmp_path / "empty")

    def test_what_cannot_be_written_is_said(self, make_model, tokenizer, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ClipcapError, match=r"inside: cannot be written \(Not a directory"):
            save_checkpoint(make_model(), tokenizer, tmp_path / "file" / "inside")


class TestWhichOneAFolderMeans:
    def fill(self, folder, *names):
        for name in names:
            if name.endswith(".pt"):
                (folder / name).touch()
            else:
                (folder / name).mkdir(parents=True)
                (folder / name / "config.json").touch()

    def test_best_then_last_then_the_highest_number(self, tmp_path):
        names = ["a-v1.5-best", "a-last", "a-1000", "a-999", "a-009"]
        (tmp_path / "notes").mkdir()
        (tmp_path / "metrics.jsonl").touch()
        self.fill(tmp_path, *names)
        for name in names:
            assert find_checkpoint(tmp_path).name == name
            shutil.rmtree(tmp_path / name)
        with pytest.raises(ClipcapError, match=r"neither a checkpoint .* nor a folder holding one"):
            find_checkpoint(tmp_path)

    def test_pt_files_of_the_original(self, tmp_path):
        self.fill(tmp_path, "coco_prefix_latest.pt", "coco_prefix-008.pt", "coco_prefix-009.pt")
        assert find_checkpoint(tmp_path).name == "coco_prefix-009.pt"

    def test_a_file_of_a_checkpoint_means_the_checkpoint(self, saved):
        for name in ("config.json", "model.safetensors"):
            assert find_checkpoint(saved / name) == saved

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ClipcapError, match=r"nowhere: no such checkpoint"):
            find_checkpoint(tmp_path / "nowhere")


class TestReferenceFiles:
    @pytest.mark.parametrize("tune", ["none", "lora", "full"])
    def test_exported_and_loaded_again_captions_the_same(
        self, make_model, lm_folder, tokenizer, embeddings, tmp_path, tune
    ):
        if tune == "lora":
            pytest.importorskip("peft", reason="the lora extra is not installed")
        model = make_model(tune=tune, mapping_type="transformer", num_heads=8, stop_token=".")
        shake(model)
        export_reference(model, tmp_path / "out.pt")
        loaded = load_checkpoint(tmp_path / "out.pt", lm=str(lm_folder))
        assert captions(loaded.model, loaded.tokenizer, embeddings) == captions(model, tokenizer, embeddings)
        assert not any("lora" in name or "base_layer" in name for name in read_state_dict(tmp_path / "out.pt"))
        assert [p.name for p in tmp_path.iterdir()] == ["out.pt"]

    @pytest.mark.parametrize("variant", ["mlp_gpt_tuned", "transformer_prefix_only"])
    def test_exported_names_and_shapes_are_the_originals(self, shared, tmp_path, variant):
        root = shared / "fixtures" / "reference"
        loaded = load_checkpoint(root / variant / "reference_state_dict.pt", lm=str(root / "tiny-gpt2"))
        export_reference(loaded.model, tmp_path / "out.pt")
        expected = json.loads((root / variant / "state_dict_keys.json").read_text())
        found = torch.load(tmp_path / "out.pt", weights_only=True)
        assert {k: [list(v.shape), str(v.dtype)] for k, v in found.items()} == expected
        assert same(found, read_state_dict(root / variant / "reference_state_dict.pt"))

    def test_a_full_disk_is_said_in_words_and_leaves_the_old_file(self, saved, tmp_path, capsys):
        (tmp_path / "out.pt").write_text("old")
        with files_no_larger_than(20_000):
            status, _, err = run(capsys, "export", saved, "--out", tmp_path / "out.pt")
        assert (status, len(err)) == (1, 1)
        assert f"{tmp_path / 'out.pt'}: cannot be written (" in err[0]
        assert "free some space" in err[0]
        assert (tmp_path / "out.pt").read_text() == "old"

    def test_a_tied_head_is_written_once(self, make_model, tmp_path):
        model = make_model()
        export_reference(model, tmp_path / "out.pt")
        assert (tmp_path / "out.pt").stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 40_000

    def test_data_parallel_names_are_read(self, make_model, lm_folder, tmp_path):
        export_reference(make_model(), tmp_path / "plain.pt")
        state = torch.load(tmp_path / "plain.pt", weights_only=True)
        torch.save({"module." + name: tensor for name, tensor in state.items()}, tmp_path / "parallel.pt")
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
        torch.save(state | {"clip_model.visual.proj": torch.zeros(2, 2)}, tmp_path / "with_encoder.pt")
        names = ("plain.pt", "parallel.pt", "wrapped.pt", "with_encoder.pt")
        plain, *others = (load_checkpoint(tmp_path / name, lm=str(lm_folder)) for name in names)
        for other in others:
            assert same(plain.model.state_dict(), other.model.state_dict())
        assert "left out clip_model.visual.proj" in others[-1].summary

    def test_code_in_a_pt_is_not_run(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/owned",)

        torch.save({"gpt.transformer.wte.weight": Hostile()}, tmp_path / "hostile.pt")
        with pytest.raises(ClipcapError, match=r"hostile.pt: holds no tensors by name"):
            load_checkpoint(tmp_path / "hostile.pt")
        assert not (tmp_path / "owned").exists()

    def test_the_rest_of_gpt2s_configuration_is_that_of_the_language_model(
        self, make_model, tokenizer, embeddings, tmp_path
    ):
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=64, n_layer=2, n_head=4, activation_function="relu"
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "relu")
        tokenizer.save_pretrained(tmp_path / "relu")
        frozen = make_model(tune="none", stop_token=".")
        save_checkpoint(frozen, tokenizer, tmp_path / "frozen")
        model = load_checkpoint(tmp_path / "frozen", lm=str(tmp_path / "relu")).model
        export_reference(model, tmp_path / "out.pt")
        loaded = load_checkpoint(tmp_path / "out.pt", lm=str(tmp_path / "relu"))
        assert captions(loaded.model, tokenizer, embeddings) == captions(model, tokenizer, embeddings)

    def test_a_language_model_stored_in_half_precision_is_computed_in_float32(self, make_model, lm_folder, tmp_path):
        half = shutil.copytree(lm_folder, tmp_path / "half")
        content = json.loads((half / "config.json").read_text())
        (half / "config.json").write_text(json.dumps({**content, "dtype": "float16"}))
        model = make_model()
        export_reference(model, tmp_path / "out.pt")
        loaded = load_checkpoint(tmp_path / "out.pt", lm=str(half))
        assert same(loaded.model.state_dict(), model.state_dict())

    @pytest.mark.parametrize(
        "name, tensor",
        [
            ("clip_project.model.0.weight", torch.zeros(3)),
            ("clip_project.model.2.weight", torch.zeros(())),
            ("clip_project.model.2.weight", torch.zeros(3, 32)),
            ("gpt.transformer.wte.weight", torch.zeros(10, 0)),
            ("gpt.transformer.wpe.weight", torch.zeros(2)),
            ("gpt.transformer.h.0.ln_1.weight", torch.zeros(2)),
        ],
    )
    def test_tensors_of_senseless_shapes_are_one_line(self, make_model, lm_folder, tmp_path, name, tensor):
        export_reference(make_model(), tmp_path / "out.pt")
        state = torch.load(tmp_path / "out.pt", weights_only=True)
        torch.save({**state, name: tensor}, tmp_path / "bad.pt")
        with pytest.raises(ClipcapError):
            load_checkpoint(tmp_path / "bad.pt", lm=str(lm_folder))

    def test_a_file_that_cannot_be_read_is_no_damaged_one(self, tmp_path):
        with pytest.raises(ClipcapError, match=r"gone.pt: cannot be read \(No such file or directory\)"):
            read_state_dict(tmp_path / "gone.pt")

    def test_other_files_are_refused(self, tmp_path):
        (tmp_path / "empty.pt").touch()
        (tmp_path / "text.pt").write_text("hello")
        torch.save([1, 2], tmp_path / "list.pt")
        torch.save({0: torch.zeros(2)}, tmp_path / "numbered.pt")
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
        torch.save(
            {"gpt.transformer.wte.weight": torch.zeros(2, 2), "clip_project.x": torch.zeros(2)}, tmp_path / "part.pt"
        )
        for name, said in (
            ("empty.pt", "not a checkpoint that can be loaded safely"),
            ("text.pt", "not a checkpoint that can be loaded safely"),
            ("list.pt", "holds no tensors by name, but a list"),
            ("numbered.pt", "holds no tensors by name"),
            ("other.pt", "it has 'weight'"),
            ("part.pt", "it lacks gpt"),
        ):
            with pytest.raises(ClipcapError, match=f"{name}: .*{said}"):
                load_checkpoint(tmp_path / name)


def original_features(path):
    """A feature pickle as the original writes it."""
    path.write_bytes(pickle.dumps({"clip_embedding": torch.zeros(1, 4), "captions": []}))
    return path


def scripted_clip(path):
    """A TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have other archives
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    return path


def contrastive_clip(folder, clip_file):
    """A folder of `clipcap contrastive`."""
    folder.mkdir()
    shutil.copy(clip_file, folder / "clip.pt")
    (folder / "config.json").write_text(json.dumps({"format_version": 1, "dual_encoder": "clip.pt"}))
    return folder


def config_of(folder, **content):
    """A folder of transformers, as far as one looks into it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def state_of(lm_folder, path):
    """A language model's weights alone."""
    torch.save(load_file(lm_folder / "model.safetensors"), path)
    return path


OTHER_THINGS = {
    "a language model": (lambda t, lm, clip: lm, "a language model of transformers (gpt2)", "--lm {path}"),
    "its weights alone": (lambda t, lm, clip: state_of(lm, t / "gpt2.pt"), "a GPT-2 alone", "as --lm"),
    "a CLIP": (lambda t, lm, clip: clip, "a CLIP in OpenAI's format", "--clip_model_type {path}"),
    "a CLIP of OpenAI's": (
        lambda t, lm, clip: scripted_clip(t / "c.pt"), "a TorchScript archive", "--clip_model_type {path}"),
    "a CLIP of one's own": (
        lambda t, lm, clip: contrastive_clip(t / "own", clip), "an encoder made by `clipcap",
        "--clip_model_type {path}"),
    "a CLIP of transformers": (
        lambda t, lm, clip: config_of(t / "hf", model_type="clip", vision_config={}),
        "an encoder of transformers (clip)", "--clip_model_type hf:{path}"),
    "a dual encoder": (
        lambda t, lm, clip: config_of(t / "pair", model_type="vision-text-dual-encoder"), "an encoder",
        "--clip_model_type hf:{path}"),
    "features": (lambda t, lm, clip: feature_file(t / "f.pkl"), "features of images", "--features {path}"),
    "features of the original": (
        lambda t, lm, clip: original_features(t / "coco.pkl"), "features of images", "--features {path}"),
    "a folder of features": (lambda t, lm, clip: feature_file(t / "f"), "features of images", "--features {path}"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_THINGS)
def test_what_is_no_captioner_is_told_where_it_belongs(case, lm_folder, clip_file, tmp_path):
    make, said, flag = OTHER_THINGS[case]
    path = make(tmp_path, lm_folder, clip_file)
    with pytest.raises(ClipcapError) as error:
        load_checkpoint(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: is {said}")
    assert f"not a captioner: pass it as {flag.format(path=path)}" in line or line.endswith("as --lm")


def test_stored_configuration_is_read_back_alone(saved):
    config, lm_config = read_config(saved)
    assert config.tune == "full" and lm_config.n_embd == 64


def test_a_checkpoint_under_the_originals_name_is_answered_by_the_folder_beside_it(tmp_path):
    for name in ("clipcap-000", "clipcap-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ClipcapError, match=r"clipcap-000\.pt: no such checkpoint .*; did you mean .*clipcap-000\?$"):
        find_checkpoint(tmp_path / "clipcap-000.pt")
    with pytest.raises(ClipcapError, match=r"; .* has clipcap-000, clipcap-best$"):
        find_checkpoint(tmp_path / "clipcap-007.pt")
    with pytest.raises(ClipcapError, match=r"or a \.pt file\)$"):
        find_checkpoint(tmp_path / "nothing" / "clipcap-007.pt")
