"""Texts to pictures: the original's pictures, words without slip, files, config.yml, slide shows."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image
from support.small_generator import FOODS, write_small_generator

from clipcap.cli.main import main
from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import FOLDER, GENERATOR
from clipcap.text_to_image.config import DrawConfig, SlideshowConfig
from clipcap.text_to_image.draw import Drawer, draw
from clipcap.text_to_image.mapping import MappingFacts, TextMapping, save_mapping
from clipcap.text_to_image.slideshow import slideshow
from clipcap.text_to_image.text_model import TextModel


@pytest.fixture
def biggan(shared):
    return shared / "fixtures" / "biggan"


def original(biggan, **changes):
    options = {"load_pt": str(biggan / "mapping_catalyst.pth"), "generator": str(biggan), "recipe": "reference"}
    return DrawConfig(**options | {"text_model": str(biggan / "text")} | changes)


def test_tokens_and_hidden_states_are_the_originals(biggan):
    expected = torch.load(biggan / "text" / "expected.pt", weights_only=True)
    texts = [entry["text"] for entry in json.loads((biggan / "text" / "expected.json").read_text())["texts"]]
    model = TextModel(str(biggan / "text"), 15)
    tokens = model.tokenize(texts)
    assert torch.equal(tokens.input_ids, expected["ids"])
    torch.testing.assert_close(model.hidden_states(tokens, mask=False), expected["hidden"], atol=1e-4, rtol=0)
    masked = model.hidden_states(tokens, mask=True)
    torch.testing.assert_close(masked, expected["NOT_hidden_with_attention_mask"], atol=1e-4, rtol=0)
    mapping = Drawer(original(biggan)).mapping
    torch.testing.assert_close(mapping(expected["hidden"]), expected["rows"], atol=1e-4, rtol=0)


def test_the_reference_recipe_draws_the_originals_frames(biggan):
    expected = torch.load(biggan / "text" / "expected.pt", weights_only=True)["images_text_0_uint8"]
    entries = json.loads((biggan / "text" / "expected.json").read_text())["texts"]
    drawer = Drawer(original(biggan))
    for entry in entries:
        frames = drawer.frames(entry["text"])
        assert len(frames) == len(entry["frames_of_original"])
        assert [frame.title for frame in frames] == [title.strip() for title in entry["titles_of_original"]]
        means = [torch.tensor(list(frame.picture.tobytes())).float().mean().item() for frame in frames]
        shown = [entry["mean_of_each_image"][i] for i in entry["frames_of_original"]]
        assert means == pytest.approx(shown, abs=0.01)
    for frame, pixels in zip(drawer.frames(entries[0]["text"]), expected[1:]):
        found = torch.frombuffer(bytearray(frame.picture.tobytes()), dtype=torch.uint8).view(32, 32, 3)
        assert (found.int() - pixels.int()).abs().max() <= 1


def test_a_word_of_two_pieces_gets_one_picture_of_their_mean(biggan):
    drawer = Drawer(original(biggan, recipe="default"))
    frames = drawer.frames("i was standing at the buss stop")
    assert [frame.word for frame in frames] == ["i", "was", "standing", "at", "the", "buss", "stop"]
    tokens = drawer.text_model.tokenize(["i was standing at the buss stop"])
    assert tokens.words[0][:10] == [-1, 0, 1, 2, 3, 4, 5, 5, 6, -1]
    rows = drawer.mapping(drawer.text_model.hidden_states(tokens, mask=False)[0])
    chosen = drawer._rows(rows, tokens, ["i", "was", "standing", "at", "the", "buss", "stop"])
    torch.testing.assert_close(chosen[5].embedding, rows[6:8].mean(0))


@pytest.fixture(scope="module")
def place(tmp_path_factory, lm_folder):
    """A small generator, and a mapping onto it for the small language model."""
    folder = tmp_path_factory.mktemp("draw")
    write_small_generator(folder / "generator")
    torch.manual_seed(0)
    facts = MappingFacts(str(lm_folder), str(folder / "generator"), 12, True)
    save_mapping(TextMapping(torch.randn(4, 64) / 8, torch.randn(4), facts), folder / "mapping")
    return folder


def words_of(gif):
    with Image.open(gif) as image:
        return image.n_frames, image.info["duration"]


def test_a_gif_has_a_frame_for_each_word_and_the_same_bytes_on_each_run(place, tmp_path, capsys):
    for name in ("one.gif", "two.gif"):
        words = [
            "draw",
            "two cherries on a plate",
            "--load_pt",
            str(place / "mapping"),
            "--out",
            str(tmp_path / name),
        ]
        assert main(words) == 0
    assert "one.gif: 5 pictures" in capsys.readouterr().out
    assert words_of(tmp_path / "one.gif") == (5, 1000)
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "two.gif").read_bytes()


def test_grids_and_folders_are_written_and_several_texts_numbered(place, tmp_path):
    config = {"load_pt": str(place / "mapping")}
    draw(["an apple", "a red apple"], DrawConfig(**config, out=str(tmp_path / "grid.png")))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["grid_1.png", "grid_2.png"]
    draw(["an apple"], DrawConfig(**config, out=str(tmp_path / "folder")))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["0_an.png", "1_apple.png"]
    assert Image.open(tmp_path / "folder" / "0_an.png").size == (16, 16)


def test_one_picture_a_token_or_a_sentence(place):
    count = {}
    for per in ("token", "word", "sentence"):
        count[per] = len(Drawer(DrawConfig(load_pt=str(place / "mapping"), per=per)).frames("a red apple"))
    assert count["word"] == 3
    assert count["sentence"] == 1
    assert count["token"] >= 3


def test_a_class_word_is_drawn_by_its_own_embedding_where_asked(place):
    drawer = Drawer(DrawConfig(load_pt=str(place / "mapping"), exact=True))
    tokens = drawer.text_model.tokenize(["a Donut."])
    rows = drawer.mapping(drawer.text_model.hidden_states(tokens, True)[0])
    chosen = drawer._rows(rows, tokens, ["a", "Donut."])
    assert torch.equal(chosen[1].embedding, drawer.generator.class_embeddings[FOODS.index("donut")])


def test_a_long_text_says_how_many_words_are_drawn(place, messages):
    frames = Drawer(DrawConfig(load_pt=str(place / "mapping"))).frames("apple " * 40)
    assert messages() == [f"note: {len(frames)} of 40 words are drawn: the text model reads 12 tokens"]


CONFIG = """\
transformer_pretrained_model_name: '{text}'
bert_hidden_size: 32
biggan_pretrained_model_name: '{generator}'
biggan_emb_size: 16
num_imagenet_classes: 10
path_to_mapping_model_ckpt: '{mapping}'
max_seq_length: 15
display_pause_time: 1
image_width: 300
torch_device: 'cpu'
seed: 17
interactive: False
texts:
  - 'a dog is faster than a cat'
"""


def test_the_authors_config_is_read_unchanged(biggan, tmp_path, capsys):
    names = {"text": biggan / "text", "generator": biggan, "mapping": biggan / "mapping_catalyst.pth"}
    (tmp_path / "config.yml").write_text(CONFIG.format(**names))
    assert main(["draw", "--config", str(tmp_path / "config.yml"), "--out", str(tmp_path / "x.gif")]) == 0
    assert words_of(tmp_path / "x.gif") == (7, 1000)
    (tmp_path / "config.yml").write_text(
        CONFIG.format(**names).replace("bert_hidden_size: 32", "bert_hidden_size: 768")
    )
    assert main(["draw", "--config", str(tmp_path / "config.yml"), "--out", str(tmp_path / "y.gif")]) == 1
    assert "bert_hidden_size is 768, the model that was loaded has 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 3", "unknown keys: sed"),
        ("seed: many", "seed cannot be 'many'"),
        ("texts: [1]", "texts cannot be"),
        ("{", "is not YAML"),
        ("- a", "holds no options"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "config.yml").write_text(text)
    assert main(["draw", "--config", str(tmp_path / "config.yml"), "--out", str(tmp_path / "x.gif")]) == 1
    assert message in capsys.readouterr().err


def test_interactive_drawing_goes_on_after_a_bad_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("an apple\n\n" + "x" * 20_000 + "\na donut\n"))
    config = DrawConfig(load_pt=str(place / "mapping"), out=str(tmp_path / "x.gif"), interactive=True)
    assert [path.name for path in draw([], config)] == ["x_1.gif", "x_3.gif"]
    assert "20,000 characters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": None}, "--out is missing"),
        ({"out": "x.jpg"}, "write to NAME.gif"),
        ({"load_pt": "nothing"}, "no such file or folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(place, changes, message):
    with pytest.raises(ClipcapError, match=message):
        draw(["a dog"], DrawConfig(**{"load_pt": str(place / "mapping"), "out": "x.gif"} | changes))


def test_a_mapping_of_other_models_is_refused(place, biggan):
    with pytest.raises(ClipcapError, match=r"goes from 64 to 4, the text model .* takes 16"):
        Drawer(DrawConfig(load_pt=str(place / "mapping"), generator=str(biggan)))


def pictures(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"ex1_dog_{number}.png")
    Image.new("RGB", (8, 8)).save(folder / "other_0.png")
    return folder


def test_a_slideshow_orders_2_before_10(tmp_path):
    folder, text = pictures(tmp_path / "shots", 12), "one two three four five six seven eight nine ten eleven twelve"
    out = slideshow(str(folder), SlideshowConfig(mask="ex1_dog", text=text, out=str(tmp_path / "x.gif")))
    with Image.open(out) as gif:
        assert (gif.n_frames, gif.info["duration"]) == (12, 500)
        reds = []
        for number in range(12):
            gif.seek(number)
            reds.append(gif.convert("RGB").getpixel((100, 100))[0])
    assert reds == pytest.approx([number * 20 for number in range(12)], abs=6)


def test_a_slideshow_says_both_counts_where_they_differ(tmp_path):
    folder = pictures(tmp_path / "shots", 3)
    for text in ("one two", "one two three four"):
        with pytest.raises(ClipcapError, match=f"3 pictures are called .* the text has {len(text.split())} words"):
            slideshow(str(folder), SlideshowConfig(mask="ex1_dog", text=text, out=str(tmp_path / "x.gif")))


def test_drawing_needs_no_network_nltk_or_boto3():
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('nltk', 'boto3', 'jax', 'flax', 'requests'): sys.modules[name] = None\n"
        "import clipcap.text_to_image.draw, clipcap.text_to_image.train, clipcap.text_to_image.slideshow\n"
        "print('scipy' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_the_bundled_generator_draws_right_after_installation(tmp_path, capsys):
    assert main(["draw", "two cherries on a plate", "--out", str(tmp_path / "x.gif")]) == 0
    assert words_of(tmp_path / "x.gif") == (5, 1000)
    drawer = Drawer(DrawConfig(exact=True))
    weights = sum(path.stat().st_size for path in (FOLDER / GENERATOR).iterdir())
    assert weights <= 2_000_000
    assert drawer.table.words_in("Two cherries, please") == ["cherries"]
    rows = drawer.mapping(drawer.text_model.hidden_states(drawer.text_model.tokenize(["two cherries"]), True)[0])
    nearest = torch.cdist(rows[:4], drawer.generator.class_embeddings).argmin(1).tolist()
    assert drawer.table.words["cherry"].given in nearest
