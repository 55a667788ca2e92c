"""Training of dual encoders: the loss, the batches, and whole runs from pictures to an encoder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from support.launched import forked_in_two
from support.road import draw_photos, draw_set, picture, run, write_captions
from support.small import metrics
from support.towers_small import text_tower, vision_tower
from torch import nn
from torch.nn import functional as F

from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.dataset import Crops, ImageTextDataset, normalised
from clipcap.contrastive.image_cache import NO_IMAGE, ImageCache, square
from clipcap.contrastive.loss import MAX_LOGIT_SCALE, ContrastiveModel, contrastive_loss
from clipcap.contrastive.task import ContrastiveTask
from clipcap.contrastive.towers.make import make_towers
from clipcap.contrastive.train import train_contrastive
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.images.ref import ImageRef
from clipcap.models.encoders.clip_preprocess import ClipPreprocess
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai_weights import read_openai_weights
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS
from clipcap.sources.record import Record
from clipcap.training.accelerator import make_accelerator
from clipcap.training.dataset import BatchShare

SMALL = {
    "resolution": 32, "patch_size": 16, "vision_width": 64, "vision_layers": "1", "text_width": 64, "text_layers": 1,
    "embed_dim": 16, "max_seq_length": 16, "workers": 0, "bs": 4, "epochs": 2, "warmup_steps": 0,
}  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange", "pink", "gray", "brown", "cyan")


def embeddings(count=6, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, width, generator=generator)
    return F.normalize(both[0], dim=1).requires_grad_(), F.normalize(both[1], dim=1).requires_grad_()


SCALE = torch.tensor(2.5)


def test_the_loss_is_clips():
    images, texts = embeddings()
    logits = SCALE.exp() * images @ texts.T
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2 * 6
    torch.testing.assert_close(contrastive_loss(images, texts, own + 100, SCALE), expected)


def test_equal_captions_are_not_each_others_negatives():
    images, texts = embeddings()
    keys = torch.tensor([0, 1, 2, 1, 4, 5])
    logits = SCALE.exp() * images @ texts.T
    logits[1, 3] = logits[3, 1] = -torch.inf
    own = torch.arange(6)
    expected = F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")
    torch.testing.assert_close(contrastive_loss(images, texts, keys, SCALE), expected / 2)


def test_a_hole_counts_for_nothing():
    images, texts = embeddings()
    keys = torch.tensor([0, 1, NO_IMAGE, 3, NO_IMAGE, 5])
    loss = contrastive_loss(images, texts, keys, SCALE)
    loss.backward()
    there = keys != NO_IMAGE
    torch.testing.assert_close(loss, contrastive_loss(images[there], texts[there], keys[there], SCALE))
    assert images.grad[~there].abs().max() == texts.grad[~there].abs().max() == 0


class _Twins(nn.Module):
    """The smallest dual encoder: a matrix and a temperature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(8, 5)
        self.logit_scale = nn.Parameter(SCALE.clone())

    def forward(self, images, texts, keys):
        images, texts = (F.normalize(self.project(x), dim=1) for x in (images, texts))
        return contrastive_loss(images, texts, keys, self.logit_scale)


def _batch():
    images, texts = embeddings(count=7)
    return images.detach(), texts.detach(), torch.tensor([0, 1, 2, 3, 1, NO_IMAGE, 6])


def _half(rank, folder):
    """One of two processes: every other row, the shorter half filled up with a hole."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, texts, keys = (x[rank::2] for x in _batch())
    if rank == 1:
        images, texts, keys = (
            torch.cat([images, images[:1]]),
            torch.cat([texts, texts[:1]]),
            F.pad(keys, (0, 1), value=NO_IMAGE),
        )
    twins = _Twins()
    together = nn.parallel.DistributedDataParallel(twins)
    loss = together(images, texts, keys)
    (loss * 2).backward()  # as the loop does: DDP averages what belongs to a sum
    torch.save((loss.detach(), [p.grad for p in twins.parameters()]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(_half, (str(tmp_path),), nprocs=2)
    twins = _Twins()
    loss = twins(*_batch())
    loss.backward()
    (loss_0, grads_0), (loss_1, grads_1) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(loss_0 + loss_1, loss.detach())
    for own, theirs, other in zip(twins.parameters(), grads_0, grads_1, strict=True):
        torch.testing.assert_close(theirs, own.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs, other)


def small_towers(**options):
    torch.manual_seed(0)
    return make_towers(ContrastiveConfig.of(**{**SMALL, **options}).towers)


def model_inputs(towers, count=4):
    captions = [f"picture {i}" for i in range(count)]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(t) for t in towers.tokenize(captions)], batch_first=True)
    side = towers.resolution
    return torch.randn(count, 3, side, side), ids, torch.ones_like(ids), torch.arange(count)


@pytest.mark.parametrize(("start", "expected"), [(9.0, MAX_LOGIT_SCALE), (-1.0, 0.0), (3.0, 3.0)])
def test_the_temperature_is_clamped_and_can_come_back(start, expected):
    model = ContrastiveModel(small_towers(), None)
    scale = model.towers.network.logit_scale
    scale.data.fill_(start)
    model(*model_inputs(model.towers)).backward()
    assert scale.item() == pytest.approx(expected)
    assert scale.grad.abs() > 0


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_stays_as_it_is(frozen, tmp_path):
    names = {"vision_model": vision_tower(tmp_path / "v", "resnet"), "text_model": text_tower(tmp_path / "t", "bert")}
    model = ContrastiveModel(small_towers(**names), frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    model.train()
    model(*model_inputs(model.towers)).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    towers = {name.split(".")[2] for name in changed}
    other = {"image": "text_model", "text": "vision_model"}[frozen]
    assert towers == {other, "visual_projection", "text_projection", "logit_scale"}


@pytest.mark.parametrize("size", [(100, 80), (64, 64), (70, 131), (33, 200), (31, 20)])
def test_squares_are_what_clip_sees(size):
    photo = picture(1, size)
    crops = Crops(32, 1.0, False, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    pixels = crops(
        torch.from_numpy(square(photo, crops.side)[None].copy()), crops.boxes(np.zeros((1, 4), np.float32))
    )
    torch.testing.assert_close(pixels[0], ClipPreprocess(32)(photo), atol=1e-5, rtol=1e-5)


def test_crops_lie_within_the_picture_and_keep_the_asked_share():
    crops = Crops(32, 0.6, False, (0.5,) * 3, (0.5,) * 3)
    draws = np.random.default_rng(0).random((500, 4), dtype=np.float32)
    draws[0], draws[1] = 0, 1
    boxes = crops.boxes(draws)
    scale, shift = boxes[:, 0, 0], boxes[:, :, 2]
    assert (boxes[:, 1, 1] == scale).all()
    assert scale.square().min() == pytest.approx(0.6) and scale.max() == 1
    assert (scale[:, None] + shift.abs()).max() <= 1 + 1e-6
    # A picture whose values grow to the right shows which part was taken.
    ramp = torch.arange(crops.side).mul(4).to(torch.uint8).expand(crops.side, crops.side)[..., None].repeat(1, 1, 3)
    left = boxes[:1].clone()
    left[0, 0, 2] = -(1 - left[0, 0, 0])
    right = boxes[:1].clone()
    right[0, 0, 2] = 1 - right[0, 0, 0]
    assert crops(ramp[None], left).mean() < crops(ramp[None], right).mean()


def test_mirrored_crops_are_mirrored():
    crops = replace(Crops(32, 1.0, True, (0.5,) * 3, (0.5,) * 3))
    photo = torch.from_numpy(square(picture(2), crops.side)[None].copy())
    plain, mirrored = (crops(photo, crops.boxes(np.array([[1, 0.5, 0.5, x]], np.float32))) for x in (0.9, 0.1))
    torch.testing.assert_close(plain, mirrored.flip(3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain, normalised(photo, crops.mean, crops.std), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eleven pictures of three captions each."""
    return draw_set(tmp_path_factory.mktemp("photos"), 11, 3)


def pairs_of(folder, cache_mb=0, seed=3):
    records = READERS["custom"](SourceConfig(data_path=str(folder))).records
    towers = small_towers()
    crops = Crops(32, 0.7, False, towers.mean, towers.std)
    pictures = ImageCache(records, crops.side, "first", 0, cache_mb, torch.device("cpu"))
    pictures.fill(quiet=True)
    return ImageTextDataset(records, towers, pictures, crops, seed), records


def seen(pairs, size, epoch, parts, skip=0):
    """Per optimiser step and micro-batch: keys of the captions, and what the pixels add up to."""
    windows = pairs.windows(size, epoch, parts, skip)
    return [[(b.keys.tolist(), b.inputs(torch.device("cpu"))["pixels"].sum((1, 2, 3))) for b in w] for w in windows]


def test_an_epoch_has_every_image_once_with_one_of_its_captions(photos):
    pairs, records = pairs_of(photos)
    texts = [caption for record in records for caption in record.captions]
    chosen = []
    for epoch in range(6):
        keys = [key for step in seen(pairs, 4, epoch, BatchShare(0, 1, 4)) for keys, _ in step for key in keys]
        assert sorted(key // 3 for key in keys) == list(range(11))
        chosen.append({key // 3: texts[key] for key in keys})
    assert len({captions[0] for captions in chosen}) > 1
    steps = [len(step) for step in pairs.steps(4, 0)]
    assert sorted(steps) == [3, 4, 4]  # no lonely rest


def test_batches_are_the_same_for_any_number_of_processes(photos):
    pairs, _ = pairs_of(photos)
    one = seen(pairs, 8, 1, BatchShare(0, 1, 4))
    halves = [seen(pairs, 8, 1, BatchShare(rank, 2, 2)) for rank in (0, 1)]
    for step, first, second in zip(one, *halves, strict=True):
        for (keys, sums), (keys_0, sums_0), (keys_1, sums_1) in zip(step, first, second, strict=True):
            assert len(keys_0) == len(keys_1)
            both = dict(zip(keys_0 + keys_1, torch.cat([sums_0, sums_1]).tolist(), strict=True))
            both.pop(NO_IMAGE, None)
            assert both == pytest.approx(dict(zip(keys, sums.tolist(), strict=True)))


def test_batches_go_on_where_a_run_was_interrupted(photos):
    pairs, _ = pairs_of(photos)
    whole, rest = seen(pairs, 4, 2, BatchShare(0, 1, 4)), seen(pairs, 4, 2, BatchShare(0, 1, 4), skip=1)
    assert [keys for step in whole[1:] for keys, _ in step] == [keys for step in rest for keys, _ in step]
    assert torch.equal(torch.cat([s for w in whole[1:] for _, s in w]), torch.cat([s for w in rest for _, s in w]))


def test_pictures_kept_in_memory_are_the_same(photos):
    (read, _), (kept, _) = pairs_of(photos), pairs_of(photos, cache_mb=10)
    assert read.pictures._cache is None and kept.pictures._cache is not None
    first, second = (seen(pairs, 4, 0, BatchShare(0, 1, 4)) for pairs in (read, kept))
    assert all(torch.equal(a[1], b[1]) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_worker_processes_give_the_same_pictures(photos):
    pairs, _ = pairs_of(photos)
    alone = seen(pairs, 4, 0, BatchShare(0, 1, 4))
    pairs.pictures.workers = 2
    together = seen(pairs, 4, 0, BatchShare(0, 1, 4))
    assert [keys for step in alone for keys, _ in step] == [keys for step in together for keys, _ in step]
    assert all(
        torch.equal(a[1], b[1]) for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_middle_of_an_animation_can_be_taken(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    records = [Record("x", ImageRef(tmp_path / "x.gif"), ("hello",))]
    for frame, expected in (("first", [255, 0, 0]), ("middle", [0, 255, 0])):
        [shown] = ImageCache(records, 32, frame, 0, 0, torch.device("cpu")).load([np.array([0])])
        assert shown[0, 5, 5].tolist() == pytest.approx(expected, abs=3)


def colour_set(folder: Path, copies: int = 4) -> Path:
    """Plain pictures and captions that name their colour; the middle third is for validation."""
    folder.mkdir()
    rows = []
    for i in range(copies):
        for colour in COLOURS:
            Image.new("RGB", (40, 36), colour).save(folder / f"{colour}{i}.png")
            rows += [(f"{colour}{i}.png", f"{words} {colour}") for words in ("a wall of", "plain", "all of it is")]
    write_captions(folder, rows)
    return folder


def options(data: Path, out: Path, **changes) -> dict:
    return {**SMALL, "data_path": str(data), "out_dir": str(out), "train_size": 0.75, **changes}


def trained(data: Path, out: Path, **changes) -> Path:
    return train_contrastive("custom", ContrastiveConfig.of(**options(data, out, **changes)))


def words(chosen: dict) -> list[str]:
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def test_a_clip_learns_colours_and_the_road_goes_on_with_it(tmp_path, capsys, messages):
    data = colour_set(tmp_path / "colours")
    best = trained(data, tmp_path / "out", epochs=20, bs=12)
    lines = metrics(tmp_path / "out")
    assert best == tmp_path / "out" / "clip-best" and len(lines) == 20
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"]
    said = "\n".join(messages())
    assert "validating on 12 images; by chance" in said
    page = (tmp_path / "out" / "curves.html").read_text()
    assert page.count("<svg") > 3 and "t2i_r10 by chance" in page
    encoder = load_encoder(str(best), "cpu")
    walls = torch.stack([encoder.preprocess(Image.new("RGB", (50, 50), colour)) for colour in COLOURS])
    images = F.normalize(encoder.encode_images(walls), dim=1)
    texts = F.normalize(encoder.encode_texts([f"a wall of {colour}" for colour in COLOURS]), dim=1)
    assert ((images @ texts.T).argmax(dim=1) == torch.arange(12)).float().mean() > 0.7

    features = tmp_path / "features.pkl"
    status, _, err = run(capsys, "parse", "custom", "--data_path", data, "--clip_model_type", best, "--out", features)
    assert status == 0, err
    assert read_features(features).meta.encoder_weights_id == encoder.weights_id
    grid = tmp_path / "grid.png"
    status, out, err = run(capsys, "search", "plain", "blue", "--index", features, "--k", 3, "--out", grid)
    assert status == 0 and len(out) == 4 and "blue" in out[1] and grid.is_file()
    assert f"wrote {grid}" in err


def test_a_resumed_run_equals_an_unbroken_one(photos, tmp_path):
    chosen = {"epochs": 3, "grad_accum": 2, "bs": 2}
    trained(photos, tmp_path / "whole", **chosen)
    whole = read_openai_weights(tmp_path / "whole" / "clip-last" / "clip.pt")
    config = ContrastiveConfig.of(**options(photos, tmp_path / "broken", **chosen, save_steps=1))
    task_steps = ContrastiveTask.windows

    def breaking(self, epoch, skip):
        for number, window in enumerate(task_steps(self, epoch, skip)):
            if (epoch, number + skip) == (1, 1):
                raise KeyboardInterrupt
            yield window

    ContrastiveTask.windows = breaking
    try:
        with pytest.raises(KeyboardInterrupt):
            train_contrastive("custom", config)
    finally:
        ContrastiveTask.windows = task_steps
    train_contrastive("custom", config.with_options(resume=True))
    broken = read_openai_weights(tmp_path / "broken" / "clip-last" / "clip.pt")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")


def test_a_run_with_other_options_is_not_resumed(photos, tmp_path):
    trained(photos, tmp_path, epochs=1)
    with pytest.raises(ClipcapError, match=r"--resume: .* has image_lr None, this command 0\.5"):
        trained(photos, tmp_path, epochs=1, image_lr=0.5, resume=True)
    with pytest.raises(ClipcapError, match="checksum of the model's sizes"):
        trained(photos, tmp_path, epochs=1, text_layers=2, resume=True)


def test_a_pair_of_transformers_is_trained_and_resumed(photos, tmp_path):
    pair = {
        "vision_model": vision_tower(tmp_path / "v", "resnet"),
        "text_model": text_tower(tmp_path / "t", "distilbert"),
    }
    trained(photos, tmp_path / "whole", epochs=2, save_every=1, **pair)
    trained(photos, tmp_path / "parts", epochs=2, patience=0, **pair)
    for name in ("best", "last"):
        first, second = (load_encoder(f"hf:{tmp_path / part / f'clip-{name}'}", "cpu") for part in ("whole", "parts"))
        assert first.weights_id == second.weights_id
    original = load_encoder(f"hf:{tmp_path / 'whole' / 'clip-001'}", "cpu").network
    tower = make_towers(ContrastiveConfig.of(**SMALL, **pair).towers).network
    name = "vision_model.embedder.embedder.convolution.weight"
    assert not torch.equal(original.state_dict()[name], tower.state_dict()[name])

    said = rf"this command 3: .* from its weights: --clip_model_type hf:{tmp_path / 'parts' / 'clip-last'} --out_dir"
    with pytest.raises(ClipcapError, match=said):
        trained(photos, tmp_path / "parts", epochs=3, resume=True, **pair)


def test_a_second_run_in_the_folder_is_refused_and_more_epochs_are_another_run(photos, tmp_path):
    first = trained(photos, tmp_path / "first", epochs=1)
    with pytest.raises(ClipcapError, match=r"first holds a run already \(clip-best, clip-last, metrics"):
        trained(photos, tmp_path / "first", epochs=1)
    with pytest.raises(ClipcapError, match=r"from its weights: --clip_model_type (.*) --out_dir NEW") as error:
        trained(photos, tmp_path / "first", epochs=2, resume=True)
    start = re.search("--clip_model_type (.*) --out_dir", str(error.value))[1]
    none = {"head_lr": 0.0, "image_lr": 0.0, "text_lr": 0.0}
    more = trained(photos, tmp_path / "more", epochs=1, clip_model_type=start, **none)
    assert load_encoder(str(more), "cpu").weights_id == load_encoder(str(first), "cpu").weights_id


def test_a_diverged_run_names_the_images_of_its_batch(photos, tmp_path):
    with pytest.raises(ClipcapError, match=r"is not finite .*: a batch with images (photo\d+\.png, )+.*has diverged"):
        trained(photos, tmp_path, image_lr=1e30)


def test_each_part_has_its_learning_rate_and_decay_is_for_matrices(photos):
    config = ContrastiveConfig.of(**options(photos, "out", head_lr=0.1, text_lr=0, freeze="image", weight_decay=0.2))
    records = READERS["custom"](config.source).records
    towers = make_towers(config.towers)
    groups = ContrastiveTask(config, towers, records, make_accelerator(config.loop, config.flat())).parameter_groups()
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0, 0]
    assert all(p.dim() > 1 for group in groups[::2] for p in group["params"])
    assert all(p.dim() < 2 for group in groups[1::2] for p in group["params"])
    assert [group.get("weight_decay", 0.2) for group in groups] == [0.2, 0, 0.2, 0]


def test_a_plateau_halves_the_learning_rate(photos, tmp_path, capsys):
    trained(photos, tmp_path, epochs=6, schedule="plateau", head_lr=0, image_lr=0, text_lr=0)
    state = torch.load(tmp_path / "clip-last" / "training_state.pt", weights_only=True)
    assert state["progress"]["stale"] == 5 and state["progress"]["reductions"] == 2


@pytest.mark.parametrize("cache_mb", [0, 10])
def test_pictures_that_cannot_be_read_are_left_out_and_named(cache_mb, tmp_path, messages):
    data = draw_set(tmp_path / "set", 12, 2)
    (data / "photo3.png").write_bytes(b"no picture")
    (data / "photo7.png").unlink()
    trained(data, tmp_path / "out", max_bad=0.2, cache_mb=cache_mb)
    out = "\n".join(messages())
    assert out.count("images cannot be read") == 1
    assert f"2 of 12 images cannot be read ({tmp_path / 'out' / 'errors.csv'})" in out
    errors = (tmp_path / "out" / "errors.csv").read_text().splitlines()
    assert len(errors) == 3 and "not an image" in errors[1] and "photo7.png" in errors[2]
    with pytest.raises(ClipcapError, match=r"2 of 12 images cannot be read .*more than --max_bad 0\.05"):
        trained(data, tmp_path / "strict", cache_mb=cache_mb)


def test_unreadable_pictures_leave_the_loss_of_the_others(tmp_path):
    """A black square in place of a picture would be learnt."""
    data = draw_set(tmp_path / "set", 9, 1)
    pairs, records = pairs_of(data)
    (data / "photo4.png").write_bytes(b"no picture")
    [keys] = [keys for step in seen(pairs, 16, 0, BatchShare(0, 1, 16)) for keys, _ in step]
    assert keys.count(NO_IMAGE) == 1 and sorted(keys)[1:] == [key for key in range(9) if key != 4]
    assert list(pairs.pictures.bad) == [4]
    assert records[4].image_id == "photo4.png"


def test_a_set_without_two_training_images_is_refused(tmp_path):
    with pytest.raises(ClipcapError, match="contrast needs two captioned training images or more, here: 1"):
        trained(draw_set(tmp_path / "one", 1, 2), tmp_path / "out", train_size=None)


def test_a_set_of_one_caption_is_refused(tmp_path):
    folder = tmp_path / "set"
    write_captions(folder, [(path.name, "a plate") for path in draw_photos(folder, 3)])
    with pytest.raises(ClipcapError, match="all captions are the same: there is nothing to tell images by"):
        trained(folder, tmp_path / "out", train_size=None)


def test_a_batch_without_contrast_is_refused(photos, tmp_path):
    with pytest.raises(ClipcapError, match="--bs 1 leaves no other image to compare with"):
        trained(photos, tmp_path, bs=1)


def test_without_validation_the_training_loss_decides(photos, tmp_path, messages):
    trained(photos, tmp_path, train_size=None, epochs=2)
    assert "no validation images: hold some out with --train_size" in "\n".join(messages())
    assert set(metrics(tmp_path)[0]) == {"epoch", "step", "train_loss"}


def test_two_processes_with_half_the_batch_train_as_one(photos, tmp_path):
    chosen = {"epochs": 2, "weight_decay": 0.0}
    trained(photos, tmp_path / "one", bs=4, **chosen)
    flags = words(options(photos, tmp_path / "two", bs=2, **chosen))
    both = forked_in_two(tmp_path / "log", "contrastive", "custom", *flags)
    assert [rank.status for rank in both] == [0, 0], both
    assert "2 processes on cpu" in both[0].err
    for line, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert line == pytest.approx(other, abs=1e-4)
    ours, theirs = (read_openai_weights(tmp_path / part / "clip-last" / "clip.pt") for part in ("one", "two"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


def test_the_command_needs_a_set(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "contrastive", "custom")
    assert status == 1 and "--data_path is missing" in err[0]
