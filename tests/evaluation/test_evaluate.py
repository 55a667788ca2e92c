"""Evaluation: captioning a feature file, scoring, the files it writes; other people's captions; comparison."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPO
from support.launched import forked_in_two
from support.road import draw_set, run, save_captioner

from clipcap.captioning.config import DecodeConfig
from clipcap.evaluation.evaluate import describe_decoding
from clipcap.evaluation.report.content import Difference, Interval, Run, Versus
from clipcap.evaluation.report.verdict import verdicts
from clipcap.images.read import open_image
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai_weights import read_openai_weights

REFERENCES = {
    "0": ["a red apple on a white plate", "one apple"],
    "1": ["two fried eggs beside a napkin"],
    "2": ["a bowl of soup with bread", "hot soup in a bowl"],
    "3": ["slices of pizza on a wooden table"],
}
GOOD = {"0": "a red apple on a plate", "1": "two eggs", "2": "a bowl of hot soup", "3": "pizza on a table"}
SAME = dict.fromkeys(REFERENCES, "a photo of food")


def results(path, captions):
    path.write_text(json.dumps([{"image_id": int(i), "caption": c} for i, c in captions.items()]))
    return path


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    path = tmp_path_factory.mktemp("references") / "references.json"
    path.write_text(json.dumps(REFERENCES))
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory, clip_file, lm_folder):
    """Features of seven photos with two captions each, and a checkpoint of their encoder."""
    folder = tmp_path_factory.mktemp("road")
    from clipcap.cli.main import main

    photos = draw_set(folder / "photos", images=7, captions=2)
    data = folder / "photos.pkl"
    assert main(["parse", "custom", "--data_path", str(photos), "--clip_model_type", str(clip_file),
                 "--out", str(data)]) == 0  # fmt: skip
    return data, save_captioner(folder / "captioner", lm_folder, clip_file)


def evaluated(capsys, road, out, *words):
    data, checkpoint = road
    status, lines, errors = run(
        capsys, "evaluate", "--load_pt", checkpoint, "--data", data, "--out", out, "--max_new_tokens", 8, *words
    )
    assert status == 0, errors
    return lines, json.loads((out / "metrics.json").read_text())


def test_a_checkpoint_is_scored_on_every_image_of_a_feature_file(capsys, road, tmp_path):
    lines, metrics = evaluated(capsys, road, tmp_path / "e")
    predictions = json.loads((tmp_path / "e" / "predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == set(metrics["per_image"]) and len(predictions) == 7
    assert (metrics["images"], metrics["references"]) == (7, 14)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "CLIPScore", "RefCLIPScore"):
        score = metrics["corpus"][name]
        assert score["low"] <= score["value"] <= score["high"]
        assert any(line.startswith(name) for line in lines)
    assert all(0 <= scores["CLIPScore"] <= 2.5 for scores in metrics["per_image"].values())
    report = (tmp_path / "e" / "report.html").read_text()
    assert all(p["caption"] in report for p in predictions if p["caption"].isalnum())
    assert any(line == "images: 7, references: 14" for line in lines)


def test_clip_score_is_that_of_the_paper_by_the_encoder_of_the_features(capsys, road, tmp_path, clip_file):
    _, metrics = evaluated(capsys, road, tmp_path / "e", "--no_java")
    encoder, unit = load_encoder(str(clip_file), "cpu"), torch.nn.functional.normalize
    said = {p["image_id"]: p["caption"] for p in json.loads((tmp_path / "e" / "predictions.json").read_text())}
    for image, scores in metrics["per_image"].items():
        pixels = encoder.preprocess(open_image(metrics["images_at"][image]))[None]
        photo, text = encoder.encode_images(pixels), encoder.encode_texts([f"A photo depicts {said[image]}"])
        cosine = float((unit(photo) * unit(text)).sum())
        assert scores["CLIPScore"] == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    mean = sum(scores["CLIPScore"] for scores in metrics["per_image"].values()) / 7
    assert metrics["corpus"]["CLIPScore"]["value"] == pytest.approx(mean)


def test_captions_are_those_of_predict(capsys, road, tmp_path):
    data, checkpoint = road
    evaluated(capsys, road, tmp_path / "e", "--no_java")
    run(capsys, "predict", "--beam", "--load_pt", checkpoint, "--features", data, "--max_new_tokens", 8,
        "--out", tmp_path / "p.jsonl")  # fmt: skip
    predicted = [json.loads(line)["caption"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [p["caption"] for p in json.loads((tmp_path / "e" / "predictions.json").read_text())] == predicted


def test_captions_that_were_trained_on_are_counted(capsys, road, tmp_path):
    _, metrics = evaluated(capsys, road, tmp_path / "e", "--no_java", "--train_data", road[0])
    assert metrics["diversity"]["copied"] == 0
    caption = next(iter(json.loads((tmp_path / "e" / "references.json").read_text()).values()))[0]
    copies = results(tmp_path / "p.json", {"0": caption, "1": "never seen"})
    (tmp_path / "r.json").write_text(json.dumps({"0": ["a"], "1": ["b"]}))
    run(capsys, "evaluate", "--predictions", copies, "--references", tmp_path / "r.json", "--out", tmp_path / "c",
        "--no_java", "--train_data", road[0])  # fmt: skip
    assert json.loads((tmp_path / "c" / "metrics.json").read_text())["diversity"]["copied"] == 0.5


def test_two_processes_caption_each_image_once_and_score_as_one(capsys, road, tmp_path):
    data, checkpoint = road
    words = ["--load_pt", checkpoint, "--data", data, "--max_new_tokens", 8, "--no_beam", "--seed", 3, "--no_java"]
    run(capsys, "evaluate", *words, "--out", tmp_path / "one")
    both = forked_in_two(tmp_path / "log", "evaluate", *words, "--out", tmp_path / "two")
    assert [rank.status for rank in both] == [0, 0], both
    printed, said = ("".join(getattr(rank, name) for rank in both) for name in ("out", "err"))
    assert printed.count("evaluation: ") == 1 and said.count("2 processes on cpu") == 1
    for name in ("predictions.json", "references.json", "metrics.json"):
        one, two = ((tmp_path / folder / name).read_text() for folder in ("one", "two"))
        assert one == two, name
    assert "images: 7, references: 14" in printed


@pytest.mark.parametrize("kind", ["coco", "jsonl", "csv"])
def test_captions_of_others_are_scored_whatever_the_file(capsys, references, tmp_path, kind):
    path = tmp_path / {"coco": "p.json", "jsonl": "p.jsonl", "csv": "p.csv"}[kind]
    if kind == "coco":
        results(path, GOOD)
    elif kind == "jsonl":
        lines = [json.dumps({"image": f"photos/{i}.jpg", "caption": c}) for i, c in GOOD.items()]
        path.write_text("\n".join(lines))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *((f"/x/{i}.jpg", c) for i, c in GOOD.items())])
    words = ["--predictions", path, "--references", references, "--out", tmp_path / "e", "--no_java"]
    status, lines, errors = run(capsys, "evaluate", *words)
    assert status == 0, errors
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["images"] == 4 and metrics["references"] == 6
    # Of 18 words in the candidates all but "hot soup"'s order stand in a reference.
    assert metrics["corpus"]["BLEU-1"]["value"] > metrics["corpus"]["BLEU-2"]["value"] > 0.3


def test_coco_annotations_and_file_names_of_coco_go_together(capsys, tmp_path):
    annotations = [{"image_id": int(i), "id": n, "caption": t} for n, (i, ts) in enumerate(REFERENCES.items())
                   for t in ts]  # fmt: skip
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    lines = [json.dumps({"image": f"COCO_val2014_{int(i):012d}.jpg", "caption": c}) for i, c in GOOD.items()]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    words = ["--predictions", tmp_path / "p.jsonl", "--references", tmp_path / "captions_val.json", "--no_java"]
    status, _, errors = run(capsys, "evaluate", *words, "--out", tmp_path / "e")
    assert status == 0, errors
    written = json.loads((tmp_path / "e" / "predictions.json").read_text())
    assert [p["image_id"] for p in written] == [0, 1, 2, 3]


def test_comparing_says_which_is_better_and_how_sure(capsys, tmp_path):
    scenes = itertools.product(("one", "two", "three"), ("apple", "egg", "pizza"), ("red", "blue"))
    wanted = {str(i): [f"{count} {food} on a {colour} plate"] for i, (count, food, colour) in enumerate(scenes)}
    (tmp_path / "r.json").write_text(json.dumps(wanted))
    runs = {"good": {i: texts[0].replace("plate", "dish") for i, texts in wanted.items()},
            "poor": dict.fromkeys(wanted, "one apple on a red plate")}  # fmt: skip
    for name, captions in runs.items():
        path = results(tmp_path / f"{name}.json", captions)
        run(capsys, "evaluate", "--predictions", path, "--references", tmp_path / "r.json", "--out", tmp_path / name,
            "--no_java")  # fmt: skip
    out = tmp_path / "both.html"
    status, lines, _ = run(capsys, "compare", tmp_path / "poor", tmp_path / "good", "--no_java", "--out", out)
    assert status == 0
    assert "good is better than poor by CIDEr-D, p < 0.002 on 18 images" in lines
    assert "good is better than poor by CIDEr-D, p &lt; 0.002 on 18 images" in out.read_text()
    _, lines, _ = run(capsys, "compare", tmp_path / "good", tmp_path / "good", "--no_java")
    assert lines[-1].startswith("No difference by CIDEr-D")


def test_several_runs_are_compared_with_the_first_and_shown_side_by_side(capsys, references, tmp_path):
    folders = [tmp_path / "a" / "same", tmp_path / "b" / "same", tmp_path / "a" / "other"]
    for number, (folder, captions) in enumerate(zip(folders, (GOOD, SAME, GOOD))):
        path = results(tmp_path / f"{number}.json", captions)
        run(capsys, "evaluate", "--predictions", path, "--references", references, "--out", folder, "--no_java")
    _, lines, _ = run(capsys, "compare", *folders, "--no_java", "--out", tmp_path)
    assert sum("difference and its 95 % interval" in line for line in lines) == 2
    assert any("same (1)" in line and "same (2)" in line for line in lines)
    assert lines[-2] == "No difference by CIDEr-D that is significant on 4 images (p = 1.000)"
    report = (tmp_path / "report.html").read_text()
    assert "same (1), same (2) and other (3)" in report and report.count("a photo of food") == 4
    status, _, errors = run(capsys, "compare", folders[0])
    assert status == 1 and "give two folders or more" in errors[0]


def test_runs_scored_by_character_are_compared_by_character(capsys, tmp_path):
    wanted = {"0": ["一只狗在草地上跑"], "1": ["两只猫"], "2": ["红色的苹果"]}
    (tmp_path / "r.json").write_text(json.dumps(wanted))
    for name, flags in (("one", []), ("two", ["--characters"]), ("words", ["--no_characters"])):
        path = results(
            tmp_path / f"{name}.json", {i: texts[0][: 2 if name == "two" else 5] for i, texts in wanted.items()}
        )
        run(capsys, "evaluate", "--predictions", path, "--references", tmp_path / "r.json", "--out", tmp_path / name,
            "--no_java", *flags)  # fmt: skip
    status, lines, _ = run(capsys, "compare", tmp_path / "one", tmp_path / "two", "--no_java")
    assert status == 0 and "tokens: single characters" in lines
    value = json.loads((tmp_path / "one" / "metrics.json").read_text())["corpus"]["BLEU-1"]["value"]
    assert any(line.startswith("BLEU-1") and f"{value:.4f}" in line for line in lines)
    status, _, errors = run(capsys, "compare", tmp_path / "one", tmp_path / "words", "--no_java")
    assert status == 1 and "by characters" in errors[0] and "--characters" in errors[0]


@pytest.mark.parametrize(
    ("captions", "text", "said"),
    [
        ({"0": "a", "9": "b"}, None, "1 of 2 images have no reference, the first is 9"),
        (None, "[1, 2", "is not JSON"),
        (None, '[{"image_id": 1}]', "entry 0 has no image_id"),
        (None, "[]", "holds no captions"),
        (None, '[{"image_id": 0, "caption": "a"}, {"image_id": 0, "caption": "b"}]', "image 0 has two captions"),
    ],
)
def test_captions_that_cannot_be_scored_are_one_line(capsys, references, tmp_path, captions, text, said):
    path = tmp_path / "p.json"
    results(path, captions) if captions else path.write_text(text)
    words = ["--predictions", path, "--references", references, "--out", tmp_path / "e"]
    status, _, errors = run(capsys, "evaluate", *words)
    assert status == 1 and len(errors) == 1 and said in errors[0]


_KILLED = """
import os, sys
from pathlib import Path
import clipcap.evaluation.evaluate
from tests.faults.forked import Running, die_before
place, predictions, references = map(Path, sys.argv[1:])
for change in range(0, 99, 2):
    words = ["evaluate", "--predictions", predictions, "--references", references, "--no_java"]
    words += ["--out", place / str(change) / "scores"]
    (place / str(change)).mkdir(parents=True)
    killed = Running(words, place / "log", first=die_before(change, place)).wait()
    again = Running(words, place / "log").wait()
    print(change, killed.status, again.status, *again.err.splitlines()[-1:])
    if not killed.killed:
        break
"""


def test_an_evaluation_killed_before_any_change_of_files_can_be_run_again(references, tmp_path):
    path = results(tmp_path / "p.json", GOOD)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, tmp_path / "runs", path, references], cwd=REPO, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 5, done.stderr
    for line in lines:
        change, killed, again = line.split()[:3]
        assert (killed, again) == (str(-signal.SIGKILL) if line != lines[-1] else "0", "0"), line
        found = {path.name for path in (tmp_path / "runs" / change / "scores").iterdir()}
        assert found == {
            "predictions.json", "references.json", "metrics.json", "scores.npz", "report.html", "run.yaml"
        }  # fmt: skip


def test_a_folder_of_something_else_is_not_written_into(capsys, references, tmp_path):
    (tmp_path / "thesis.txt").write_text("work of years")
    path = results(tmp_path / "p.json", GOOD)
    status, _, errors = run(capsys, "evaluate", "--predictions", path, "--references", references, "--out", tmp_path)
    assert status == 1 and "choose another folder" in errors[0]


def test_runs_of_other_images_are_not_compared(capsys, references, tmp_path):
    for name, captions in (("all", GOOD), ("few", {i: GOOD[i] for i in ("0", "1")})):
        path = results(tmp_path / f"{name}.json", captions)
        run(capsys, "evaluate", "--predictions", path, "--references", references, "--out", tmp_path / name,
            "--no_java")  # fmt: skip
    status, _, errors = run(capsys, "compare", tmp_path / "all", tmp_path / "few")
    assert status == 1 and "4 images" in errors[0] and "2 of them the same" in errors[0]
    status, _, errors = run(capsys, "compare", tmp_path / "all", tmp_path / "nowhere")
    assert status == 1 and "is not an evaluation" in errors[0]


def test_self_retrieval_is_the_rank_of_the_own_image_with_chance_beside_it(capsys, road, tmp_path, clip_file):
    lines, metrics = evaluated(capsys, road, tmp_path / "e", "--no_java")
    encoder, unit = load_encoder(str(clip_file), "cpu"), torch.nn.functional.normalize
    said = {p["image_id"]: p["caption"] for p in json.loads((tmp_path / "e" / "predictions.json").read_text())}
    pixels = [encoder.preprocess(open_image(metrics["images_at"][image])) for image in said]
    cosines = unit(encoder.encode_texts(list(said.values()))) @ unit(encoder.encode_images(torch.stack(pixels))).T
    for i, image in enumerate(said):
        rank = 1 + int((cosines[i] > cosines[i, i]).sum())
        assert metrics["per_image"][image]["rank"] == pytest.approx(rank, abs=1)  # near ties of tiny weights
    ranks = sorted(scores["rank"] for scores in metrics["per_image"].values())
    assert metrics["corpus"]["R@1"]["value"] == pytest.approx(ranks.count(1) / 7)
    assert metrics["corpus"]["R@10"]["value"] == 1 and metrics["corpus"]["median rank"]["value"] == ranks[3]
    assert metrics["chance"] == {"R@1": pytest.approx(1 / 7), "R@5": pytest.approx(5 / 7), "R@10": 1}
    assert any("by chance R@1 0.1429" in line for line in lines)
    assert any(line.startswith("R@1 ") for line in lines)


def test_captions_and_their_variety_are_scored_for_several_an_image(capsys, road, tmp_path):
    _, one = evaluated(capsys, road, tmp_path / "one", "--no_java")
    _, more = evaluated(capsys, road, tmp_path / "more", "--no_java", "--num_captions", 3)
    several = json.loads((tmp_path / "more" / "captions.json").read_text())
    best = {p["image_id"]: p["caption"] for p in json.loads((tmp_path / "more" / "predictions.json").read_text())}
    assert {image: texts[0] for image, texts in several.items()} == best
    assert all(len(texts) == 3 for texts in several.values()) and not (tmp_path / "one" / "captions.json").exists()
    assert one["corpus"] == more["corpus"]  # five beams each: the best caption is the same
    assert more["language"].keys() - one["language"].keys() == {"mBLEU-4", "self-CIDEr"}
    for score in more["language"].values():
        assert score["low"] <= score["value"] <= score["high"]


def test_weights_of_pac_s_judge_the_pictures_themselves(capsys, road, tmp_path, clip_file):
    """By the captioner's own CLIP, PAC-S is 2 / 2.5 of CLIPScore; published files are state dicts in a wrapper."""
    weights = tmp_path / "clip_ViT-B-32.pth"
    torch.save({"state_dict": read_openai_weights(clip_file)}, weights)
    _, metrics = evaluated(capsys, road, tmp_path / "e", "--no_java", "--pac_weights", weights)
    for scores in metrics["per_image"].values():
        assert scores["PAC-S"] == pytest.approx(scores["CLIPScore"] * 2 / 2.5, abs=2e-3)
    assert 0 <= metrics["corpus"]["RefPAC-S"]["value"] <= 2
    lines, metrics = evaluated(capsys, road, tmp_path / "n", "--no_java", "--pac_weights", tmp_path / "none.pth")
    assert "PAC-S" not in metrics["corpus"] and "CLIPScore" in metrics["corpus"]
    assert any(line.startswith("PAC-S skipped: ") for line in lines)


def test_objects_that_no_reference_names_are_counted(capsys, references, tmp_path):
    (tmp_path / "objects.txt").write_text("apple\negg\nsoup\npizza\nfork\n")
    captions = results(tmp_path / "p.json", GOOD | {"1": "an egg and a fork"})
    words = ["--predictions", captions, "--references", references, "--no_java", "--out", tmp_path / "e"]
    status, _, _ = run(capsys, "evaluate", *words, "--objects", tmp_path / "objects.txt")
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert status == 0 and metrics["corpus"]["CHAIRi"]["value"] == pytest.approx(1 / 5)
    assert metrics["corpus"]["CHAIRs"]["value"] == pytest.approx(1 / 4)
    status, _, errors = run(capsys, "evaluate", *words, "--objects", tmp_path / "absent.txt")
    assert status == 1 and "--objects" in errors[0]


@pytest.fixture
def two_runs(capsys, references, tmp_path):
    """Two evaluations of the same four images."""
    for name, captions in (("good", GOOD), ("same", SAME)):
        path = results(tmp_path / f"{name}.json", captions)
        run(capsys, "evaluate", "--predictions", path, "--references", references, "--out", tmp_path / name,
            "--no_java")  # fmt: skip
    return tmp_path / "good", tmp_path / "same"


def test_nothing_is_scored_twice_unless_the_captions_have_changed(capsys, two_runs):
    _, lines, said = run(capsys, "compare", *two_runs, "--no_java")
    assert not any("scoring" in line for line in said)
    (two_runs[0] / "scores.npz").unlink()  # as a folder of an older version
    _, again, said = run(capsys, "compare", *two_runs, "--no_java")
    assert sum("scoring 4 captions" in line for line in said) == 2 and again == lines
    run(capsys, "evaluate", "--predictions", two_runs[0] / "predictions.json", "--references",
        two_runs[0] / "references.json", "--out", two_runs[0], "--no_java")  # fmt: skip
    path = two_runs[0] / "predictions.json"
    path.write_text(path.read_text().replace("two eggs", "no eggs"))
    _, changed, said = run(capsys, "compare", *two_runs, "--no_java")
    assert any("scoring" in line for line in said) and changed != lines


def test_a_damaged_file_of_scores_is_scored_anew(capsys, two_runs):
    _, lines, _ = run(capsys, "compare", *two_runs, "--no_java")
    for content in (b"", b"PK\x03\x04 no zip", (two_runs[0] / "scores.npz").read_bytes()[:-40]):
        (two_runs[0] / "scores.npz").write_bytes(content)
        status, again, _ = run(capsys, "compare", *two_runs, "--no_java")
        assert status == 0 and again == lines


def test_a_report_of_scores_computed_anew_is_that_of_stored_ones(capsys, road, tmp_path):
    """With what encoders found, of which the note on self-retrieval is a part."""
    out, pages = tmp_path / "e", []
    evaluated(capsys, road, out, "--no_java")
    for name in ("stored", "anew"):
        status, _, said = run(capsys, "compare", out, out, "--no_java", "--out", tmp_path / f"{name}.html")
        assert status == 0 and any("scoring 7 captions" in line for line in said) == (name == "anew")
        pages.append((tmp_path / f"{name}.html").read_bytes())
        (out / "scores.npz").write_bytes(b"")
    assert pages[0] == pages[1] and b"self-retrieval: each caption looks for" in pages[0]


def test_the_comparison_leads_with_the_verdict_and_shows_both_runs_scores(capsys, two_runs, tmp_path):
    _, lines, _ = run(capsys, "compare", *two_runs, "--no_java", "--out", tmp_path / "both.html")
    assert max(map(len, lines[-25:-1])) <= 80
    page = (tmp_path / "both.html").read_text()
    assert page.index('id="verdict"') < page.index('id="scores"') < page.index('id="pictures"')
    for name in ("CIDEr-D", "distinct-1", "bad endings"):
        assert page[page.index('id="verdict"') : page.index('id="scores"')].count(f"<bdi>{name}</bdi>") == 1
    metrics = [json.loads((folder / "metrics.json").read_text())["per_image"] for folder in two_runs]
    lead = metrics[0]["0"]["CIDEr-D"] - metrics[1]["0"]["CIDEr-D"]
    assert f"lead {lead:+.3f}" in page and 'value="ahead"' in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    "name, value, colour",
    [("CIDEr-D", 0.2, "s0"), ("CIDEr-D", -0.2, "s1"), ("bad endings", 0.2, "s1"), ("median rank", -2.0, "s0")],
)
def test_a_difference_has_the_colour_of_the_better_run(name, value, colour):
    one = Difference(value, min(value / 2, value * 2), max(value / 2, value * 2), 0.002)
    runs = [Run(run, {name: Interval(0.5)}, {}) for run in ("a", "b")]
    page = str(verdicts(runs, [Versus("a", "b", "a is better", {name: one})]))
    assert f'class="whisker {colour}"' in page


def test_the_report_says_how_captions_were_written_and_chosen():
    assert describe_decoding(DecodeConfig()) == "beam search, 5 beams"
    chosen = describe_decoding(DecodeConfig(rerank="consensus"))
    assert chosen == "beam search, 20 beams, the best by --rerank consensus"
    assert describe_decoding(DecodeConfig(greedy=True)) == "greedy"
    drawn = describe_decoding(DecodeConfig(temp=0.7, top_p=0.9, rerank="clip"))
    assert drawn == "sampling, temperature 0.7, top-p 0.9, the best by --rerank clip"
