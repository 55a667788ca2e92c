"""The BigGAN-deep: the published rules of statistics, spectral norms, noise and pixels, and files read strictly."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from support.attacks import INSTRUCTIONS, attack
from support.small_generator import noise, small_config, small_generator, write_small_generator

from clipcap.errors import ClipcapError
from clipcap.text_to_image import load_generator
from clipcap.text_to_image.generator import StoredNorm
from clipcap.text_to_image.generator_config import PUBLISHED, parse_config
from clipcap.text_to_image.noise import to_pixels, truncated_noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_generator(tmp_path_factory.mktemp("generator") / "small")


@pytest.fixture
def biggan(shared):
    return shared / "fixtures" / "biggan"


def test_the_published_folder_gives_the_packages_pictures_at_every_truncation(biggan):
    generator = load_generator(biggan)
    inputs, expected = (torch.load(biggan / f"{name}.pt", weights_only=True) for name in ("inputs", "expected"))
    embedding = generator.class_embeddings[inputs["class_ids"]]
    assert torch.equal(embedding, expected["embedding_rows"])
    for name in (name for name in expected if name.startswith("images_")):
        truncation = float(name.removeprefix("images_"))
        pictures = generator(truncation * inputs["z"], embedding, truncation)
        torch.testing.assert_close(pictures, expected[name], atol=1e-4, rtol=0)
    dense = generator(0.4 * inputs["z_dense"], inputs["dense"], 0.4)
    torch.testing.assert_close(dense, expected["dense_images_0.4"], atol=1e-4, rtol=0)


def test_inner_tensors_and_spectral_norms_are_the_packages(biggan):
    generator = load_generator(biggan)
    inputs, expected = (torch.load(biggan / f"{name}.pt", weights_only=True) for name in ("inputs", "expected"))
    seen = {}
    parts = {"gen_z": "gen_z", "layers.0": "layers.0", "layers.4": "layers.4", "bn": "bn"}
    for name, place in parts.items():
        module = generator.generator.get_submodule(place)
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    generator(0.4 * inputs["z"], generator.class_embeddings[inputs["class_ids"]], 0.4)
    for name, tensor in expected["intermediate"].items():
        found = seen[name][:1] if tensor.dim() == 2 else seen[name][:1, :8]
        torch.testing.assert_close(found, tensor, atol=1e-4, rtol=0)
    sigma = json.loads((biggan / "expected.json").read_text())["sigma"]
    state = torch.load(biggan / "pytorch_model.bin", weights_only=True)
    for name, value in sigma.items():
        key = name.removesuffix(".weight")
        folded = generator.state_dict()[key + ".weight"]
        torch.testing.assert_close(folded * value, state[key + ".weight_orig"], atol=1e-5, rtol=1e-4)


def test_noise_is_that_of_scipy_for_a_seed(biggan):
    expected = torch.load(biggan / "expected.pt", weights_only=True)["noise"]
    for name, rows in expected.items():
        words = name.split()
        found = truncated_noise(15, 16, int(words[1]), float(words[3]))
        torch.testing.assert_close(found, rows, atol=1e-6, rtol=0)


def test_noise_follows_scipys_truncnorm():
    from scipy.stats import truncnorm

    expected = torch.tensor(truncnorm.rvs(-2, 2, size=(3, 5), random_state=4)).float() * 0.3
    torch.testing.assert_close(truncated_noise(3, 5, 4, 0.3), expected, atol=1e-6, rtol=0)


def test_pixels_are_cut_and_not_rounded(biggan):
    values = torch.tensor([-1.0, -0.5, 0.0, 0.999, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 64, 128, 255, 255]
    generator, inputs = load_generator(biggan), torch.load(biggan / "inputs.pt", weights_only=True)
    drawn = generator(0.5 * inputs["z"], generator.class_embeddings[inputs["class_ids"]], 0.5)
    expected = torch.load(biggan / "expected.pt", weights_only=True)["uint8_0.5"]
    assert (torch.from_numpy(to_pixels(drawn)).int() - expected.int()).abs().max() <= 1


def test_statistics_between_stored_truncations_weigh_the_next_row_by_what_is_left():
    norm = StoredNorm(1, small_config())  # rows at 0, 0.25, 0.5, 0.75, 1
    norm.running_means[:, 0] = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0])
    means = {t: norm.statistics(torch.zeros(1), t)[0].item() for t in (0.25, 0.3, 0.45, 1.0)}
    assert means == pytest.approx({0.25: 10, 0.3: 0.2 * 10 + 0.8 * 20, 0.45: 0.8 * 10 + 0.2 * 20, 1.0: 40})


def test_a_stored_generator_draws_the_same_pictures_again(folder):
    network, stored = small_generator(), load_generator(folder)
    embedding = network.class_embeddings[:2]
    expected = network(0.5 * noise(), embedding, 0.5)
    torch.testing.assert_close(stored(0.5 * noise(), embedding, 0.5), expected, atol=1e-5, rtol=0)
    assert stored.class_embeddings.shape == (4, 4)
    assert expected.shape == (2, 3, 16, 16)
    assert expected.abs().max() <= 1


@pytest.mark.parametrize("truncation", [0, -0.1, 1.01, float("nan")])
def test_a_truncation_out_of_range_is_refused(folder, truncation):
    generator = load_generator(folder)
    with pytest.raises(ClipcapError, match="truncation"):
        generator(noise(), generator.class_embeddings[:2], truncation)


def test_rows_of_another_width_are_refused(folder):
    generator = load_generator(folder)
    with pytest.raises(ClipcapError, match=r"\[B, 4\].*\[2, 5\]"):
        generator(torch.zeros(2, 5), torch.zeros(2, 5), 0.4)


def changed(folder, tmp_path, change):
    """A copy of the generator whose state dict went through `change`."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    change(state)
    torch.save(state, copy / "pytorch_model.bin")
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("generator.layers.0.conv_0.bias"), "lacks generator.layers.0.conv_0.bias"),
        (lambda s: s.update({"generator.more": torch.zeros(2)}), "unknown generator.more"),
        (lambda s: s.pop("generator.gen_z.weight_u"), "lacks generator.gen_z.weight_u"),
        (lambda s: s.pop("generator.gen_z.weight_orig"), "gen_z.weight_[uv] belongs to no weight"),
        (lambda s: s.update({"generator.gen_z.weight_v": torch.zeros(3)}), "does not fit"),
        (lambda s: s.update({"generator.gen_z.weight_v": torch.zeros(8)}), "spectral norm 0"),
        (lambda s: s.update({"generator.bn.bias": torch.zeros(9)}), r"generator.bn.bias is \[9\].*asks for \[8\]"),
        (lambda s: s.update({"note": "text"}), "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, tmp_path, change, message):
    with pytest.raises(ClipcapError, match=message):
        load_generator(changed(folder, tmp_path, change))


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_a_bin_with_code_is_refused_and_not_run(folder, tmp_path, instruction):
    copy, canary = tmp_path / "copy", tmp_path / "canary"
    shutil.copytree(folder, copy)
    (copy / "pytorch_model.bin").write_bytes(attack(instruction, "os.system", canary))
    with pytest.raises(ClipcapError, match="cannot be loaded safely"):
        load_generator(copy)
    assert not canary.exists()


def test_a_cut_file_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = (copy / "pytorch_model.bin").read_bytes()
    (copy / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipcapError, match="damaged"):
        load_generator(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_dim": 10**9}, "z_dim must be a whole number"),
        ({"layers": [[True, 16, 8]] * 3}, "after a width of 8"),
        ({"layers": "many"}, "list of 1 to 64"),
        ({"output_dim": 32}, "not at 1 and 32"),
        ({"eps": "small"}, "eps"),
        ({"dropout": 0.1}, "unknown dropout"),
        ({"channel_width": True}, "channel_width"),
    ],
)
def test_a_configuration_that_no_biggan_has_is_refused(folder, tmp_path, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(ClipcapError, match=message):
        load_generator(copy)


def test_a_large_configuration_takes_no_memory_before_the_file_is_compared(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {"channel_width": 1024, "z_dim": 4096, "n_stats": 10_001}))
    with pytest.raises(ClipcapError, match="asks for"):
        load_generator(copy)


def test_a_bare_bin_takes_the_configuration_beside_it(folder, tmp_path):
    shutil.copy(folder / "pytorch_model.bin", tmp_path / "mine-pytorch_model.bin")
    with pytest.raises(ClipcapError, match=r"place config\.json beside it"):
        load_generator(tmp_path / "mine-pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path / "mine-config.json")
    assert load_generator(tmp_path / "mine-pytorch_model.bin").config == parse_config(folder / "config.json")


def test_the_packages_cache_is_read_by_name_or_folder(folder, tmp_path, monkeypatch):
    for part in ("pytorch_model.bin", "config.json"):
        url = f"https://example.org/biggan/biggan-deep-128-{part}"
        name = f"{hashlib.sha256(url.encode()).hexdigest()}.{hashlib.sha256(part.encode()).hexdigest()}"
        shutil.copy(folder / part, tmp_path / name)
        (tmp_path / f"{name}.json").write_text(json.dumps({"url": url, "etag": part}))
    monkeypatch.setenv("PYTORCH_PRETRAINED_BIGGAN_CACHE", str(tmp_path))
    assert load_generator("biggan-deep-128").config == load_generator(tmp_path).config == small_config()
    with pytest.raises(ClipcapError, match="biggan-deep-256-pytorch_model"):
        load_generator("biggan-deep-256")


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    from clipcap.text_to_image.generator import Generator

    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in Generator(config).parameters()) for name, config in PUBLISHED.items()}
    millions = {name: round(count / 1e6, 1) for name, count in counts.items()}
    assert millions == {"biggan-deep-128": 50.4, "biggan-deep-256": 55.9, "biggan-deep-512": 56.2}


def test_a_name_that_is_nothing_is_refused():
    with pytest.raises(ClipcapError, match="no such folder or file"):
        load_generator("no-such-generator")
