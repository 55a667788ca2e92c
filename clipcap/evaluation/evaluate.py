"""`clipcap evaluate`: caption the images of a feature file in batches, score the captions, report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.load_captioner import load_captioner
from clipcap.captioning.prompting import check_datastore
from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import (
    captions_by_image,
    match_images,
    read_predictions,
    read_references,
    results,
)
from clipcap.evaluation.config import EvaluateConfig
from clipcap.evaluation.judges import BY_CLIP, BY_PAC, CLIP_SCORE, Judgement, chance_of_recall, judge
from clipcap.evaluation.metrics.objects import read_objects
from clipcap.evaluation.metrics.score import RECALLS, Scores, cider_scorer, score
from clipcap.evaluation.report.content import Interval, Pictured, Run
from clipcap.evaluation.report.page import write_report
from clipcap.evaluation.stored_scores import save_scores
from clipcap.features.encoder_check import check_same_encoder, for_model
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.models.encoders.base import pick_device
from clipcap.options import given
from clipcap.prompts.datastore import Retrieved
from clipcap.prompts.prompter import report_prompts
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.processes import alone
from clipcap.runtime.progress import PartBar
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import counted, printable, without_folders

PREDICTIONS, REFERENCES, METRICS, REPORT = "predictions.json", "references.json", "metrics.json", "report.html"
SEVERAL = "captions.json"  # all captions of each image, where there are several


@dataclass
class Captioned:
    """The model's caption and the human captions of each image, by image id."""

    captions: dict[str, str]
    references: dict[str, list[str]]
    facts: dict[str, str]  # of the run, for the report
    images: dict[str, str | None] = field(default_factory=dict)  # paths of the pictures
    epochs: list[dict[str, float]] = field(default_factory=list)  # of metrics.jsonl, where there is one
    several: dict[str, list[str]] = field(default_factory=dict)  # all captions of each image, if there are several
    retrieved: dict[str, tuple[Retrieved, ...]] = field(default_factory=dict)  # what each image's prompt was made of
    judgement: Judgement = field(default_factory=Judgement)
    notes: list[str] = field(default_factory=list)


@writes_to(lambda called: given(EvaluateConfig, called["config"], called["options"]).out)
def evaluate(config: EvaluateConfig | None = None, **options: Any) -> Path:
    """Caption where needed, score, write `predictions.json`, `metrics.json`, `report.html`.

    Under a launcher of several processes each captions its share of the images; the first scores and writes.

    >>> evaluate(load_pt="checkpoints", data="food_val.pkl", out="evaluation")

    Args:
        config: of the evaluation (default: the defaults of `clipcap evaluate`).
        options: in place of those of `config`, by the names of their flags.
    Returns:
        the folder.
    Raises:
        ClipcapError: bad input; what was written before stays.
    """
    config = given(EvaluateConfig, config, options)
    out = Path(config.out).expanduser()
    cider_scorer()  # an extra: before the captions are written, not after
    if config.objects:
        read_objects(config.objects)  # its faults likewise
    _check_folder(out)
    state = PartialState(cpu=pick_device(config.load.device).type == "cpu")
    if config.predictions and config.references:
        found = _read(config.predictions, config.references)
    else:
        found = _caption(config, str(config.data), state)
    if state.is_main_process:
        _write_json(out / PREDICTIONS, results(found.captions))  # hours of work: before anything else can fail
        write_run_file(out, "evaluate", config.flat())  # after what marks the folder: see `_check_folder`
        _write_json(out / REFERENCES, found.references)
        if found.several:
            _write_json(out / SEVERAL, found.several)
        scores = _score(found, config)
        content = {**summary(scores, found), "characters": scores.characters}
        save_scores(out, scores, found.captions, found.references)
        _write_json(out / METRICS, content)
        write_report(out / REPORT, "Captions evaluated", [report_run(content, found)], report_pictures(scores, found))
        print(score_table(content))
        print(f"evaluation: {out} ({PREDICTIONS}, {METRICS}, {REPORT})")
    state.wait_for_everyone()
    return out


def _score(found: Captioned, config: EvaluateConfig) -> Scores:
    logger.info(f"scoring {counted(len(found.captions), 'caption')}")
    training = list(read_features(config.train_data).captions) if config.train_data else None
    scores = score(
        list(found.captions.values()),
        list(found.references.values()),
        training,
        config.characters,
        config.java,
        list(found.several.values()),
        read_objects(config.objects) if config.objects else None,
    )
    for name, per_image in found.judgement.scores.items():
        scores.add(name, per_image)
    if found.judgement.ranks is not None:
        scores.add_ranks(found.judgement.ranks)
    scores.notes += found.judgement.notes + found.notes
    return scores


def _check_folder(out: Path) -> None:
    """Before the work starts, refuse a folder that holds other files."""
    found = (
        [path for path in out.iterdir() if path.suffix != ".draft"] if out.is_dir() else []
    )  # a kill leaves drafts
    if out.is_file() or (found and not (out / PREDICTIONS).exists()):
        raise ClipcapError(f"--out {out}: exists and does not hold an evaluation: choose another folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, content: Any) -> None:
    text = to_json(content, ensure_ascii=False, indent=1) + "\n"
    with writing(path), replaced_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate is JSON's \\ud800


def _read(predictions: str, references_path: str) -> Captioned:
    """Read captions that were written elsewhere, and their references."""
    references = read_references(references_path)
    captions = match_images(read_predictions(predictions), references, predictions)
    notes = []
    if len(captions) < len(references):
        notes.append(f"{len(references) - len(captions)} images of the references have no caption and are not scored")
    facts = {"captions": predictions, "references": references_path}
    return Captioned(captions, {image: references[image] for image in captions}, facts, notes=notes)


def _caption(config: EvaluateConfig, data: str, state: PartialState) -> Captioned:
    """The captions of all images of a feature file; every process returns all of them."""
    features = read_features(data, encoder=config.load.clip_model_type)
    references = captions_by_image(features)
    if not references:
        raise ClipcapError(f"--data {data}: holds no captions to compare with: parse the images with theirs")
    _report_processes(state)
    captioner = load_captioner(config.load)
    own = captioner.model.config
    check_datastore(config.decode.rerank, config.load.datastore, getattr(own, "prompts", "none"))
    check_same_encoder(
        features.meta, features.dim, own.encoder, own.encoder_weights_id, own.clip_dim, data,
        f"the checkpoint {config.load.load_pt}",
    )  # fmt: skip
    features = for_model(features, captioner.model)
    first_rows: dict[str, int] = {}
    for row, image in enumerate(features.image_ids):
        if str(image) in references:
            first_rows.setdefault(str(image), row)
    first_rows = dict(list(first_rows.items())[: config.limit or None])
    rows = list(first_rows.values())
    written = caption_rows(captioner, features, rows, config.decode, config.batch_size, state)
    if state.is_main_process and captioner.prompter is not None:
        report_prompts(captioner.prompter.counts)
    names = list(first_rows)
    several = {image: captions for image, (captions, _) in zip(names, written, strict=True)}
    found = Captioned(
        {image: best for image, (best, *_) in several.items()},
        {image: references[image] for image in names},
        facts={
            "checkpoint": captioner.summary,
            "features": f"{features.path} ({features.meta.encoder or 'encoder not known'})",
            "decoding": describe_decoding(config.decode),
        },
        images={image: features.image_paths[row] for image, row in first_rows.items()},
        epochs=_training_log(Path(config.load.load_pt)) if config.load.load_pt else [],
        several=several if config.decode.num_captions > 1 else {},
        retrieved={image: read for image, (_, read) in zip(names, written, strict=True)},
    )
    if state.is_main_process:
        _add_judgement(found, captioner, features, rows, config)
    return found


def _report_processes(state: PartialState) -> None:
    processes = state.num_processes
    logger.info(f"{processes} process{'es' * (processes > 1)} on {state.device}")
    if warning := alone(processes):
        logger.warning(warning)


def caption_rows(
    captioner: Captioner,
    features: Features,
    rows: Sequence[int],
    how: DecodeConfig,
    batch_size: int,
    state: PartialState,
) -> list[tuple[list[str], tuple[Retrieved, ...]]]:
    """The captions of each row, best first, and what its prompt was made of, gathered from all processes.

    A sample depends only on its row.
    """
    rank, world = state.process_index, state.num_processes
    mine = range(rank, len(rows), world)
    written: list[tuple[int, tuple[list[str], tuple[Retrieved, ...]]]] = []
    count = -(-len(mine) // batch_size)
    hidden = not state.is_main_process or count == 1
    batches = captioner.caption_rows(features, [rows[place] for place in mine], how, batch_size, mine)
    with PartBar(part="captioning", total=count, unit="batch", hidden=hidden) as bar:
        for batch, found in batches:
            if batch.bad:
                bad = rows[min(batch.bad)]
                raise ClipcapError(f"{features.path}: the features of image {features.image_ids[bad]} are not finite")
            written += [
                (place, ([caption.text for caption in captions], captions[0].retrieved))
                for place, captions in zip(batch.numbers, found)
            ]
            bar.update()
    everybody = dict(gather_object(written)) if world > 1 else dict(written)
    return [everybody[place] for place in range(len(rows))]


def describe_decoding(config: DecodeConfig) -> str:
    """A phrase for the report, such as `beam search, 5 beams, the best by --rerank consensus`."""
    config = config.resolved()
    best = "" if config.rerank == "none" else f", the best by --rerank {config.rerank}"
    if config.beam:
        return f"beam search, {config.beam_size} beams{best}"
    if config.greedy or config.temp == 0:
        return "greedy"
    return f"sampling, temperature {config.temp:g}, top-p {config.top_p:g}{best}"


def _training_log(checkpoint: Path) -> list[dict[str, float]]:
    """The epochs of the run that wrote a checkpoint."""
    for folder in (checkpoint, checkpoint.parent):
        path = folder / "metrics.jsonl"
        if path.is_file():
            try:
                lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError, RecursionError):
                return []
            return [_numbers(line) for line in lines if isinstance(line, dict)]
    return []


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if type(value) in (int, float) and math.isfinite(value)}


def _add_judgement(
    found: Captioned, captioner: Captioner, features: Features, rows: Sequence[int], config: EvaluateConfig
) -> None:
    """Add what encoders say of the captions: the captioner's own, that of --score_with, that of --pac_weights."""
    if not config.clip_score:
        found.notes.append(f"{CLIP_SCORE} skipped: switched off (and self-retrieval)")
        return
    found.judgement = judge(
        found.captions, found.references, captioner, features, rows, config.decode.score_with, config.pac_weights
    )
    found.facts |= found.judgement.facts


def summary(scores: Scores, found: Captioned) -> dict[str, Any]:
    """What metrics.json holds: scores with 95 % intervals, of each image, notes, and what a report is made of."""

    def measured(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        spans = {name: scores.interval(name) for name in values}
        return {name: {"value": values[name], "low": low, "high": high} for name, (low, high) in spans.items()}

    per_image = {
        image: {name: float(values[i]) for name, values in scores.per_image.items()}
        for i, image in enumerate(found.captions)
    }
    return {
        "images": scores.images,
        "references": scores.references,
        "corpus": measured(scores.corpus),
        "language": measured(scores.language),
        "chance": chance_of_recall(scores.images) if RECALLS.keys() <= scores.corpus.keys() else {},
        "diversity": scores.diversity,
        "notes": scores.notes,
        "run": found.facts,
        "epochs": found.epochs,
        "images_at": found.images,
        "per_image": per_image,
    }


def report_run(content: Mapping[str, Any], found: Captioned, name: str = "model") -> Run:
    """An evaluation as a column of the report."""
    shown = {metric: Interval(**interval) for metric, interval in content["corpus"].items()}
    shown |= {metric: Interval(**interval) for metric, interval in content["language"].items()}
    shown |= {metric: Interval(value) for metric, value in content["diversity"].items()}
    facts = {fact: without_folders(str(text)) for fact, text in found.facts.items()}
    return Run(name, shown, facts, [without_folders(str(note)) for note in content["notes"]], found.epochs)


def report_pictures(scores: Scores, found: Captioned, name: str = "model") -> list[Pictured]:
    """The pictures of the report's gallery."""
    path = {image: Path(place) if place else None for image, place in found.images.items()}
    return [
        Pictured(
            image, path.get(image), found.references[image], {name: caption},
            {metric: float(values[i]) for metric, values in scores.per_image.items()},
            retrieved=found.retrieved.get(image, ()),
        )
        for i, (image, caption) in enumerate(found.captions.items())
    ]  # fmt: skip


def score_table(content: Mapping[str, Any]) -> str:
    """The scores as a table for the terminal, followed by notes on skipped metrics."""
    lines = [
        f"{name:17}{interval['value']:8.4f}   95 % interval {interval['low']:.4f} to {interval['high']:.4f}"
        for name, interval in (content["corpus"] | content["language"]).items()
    ]
    lines += [f"{name:17}{value:8.4g}" for name, value in content["diversity"].items()]
    lines += [f"{fact} {printable(content['run'][fact])}" for fact in (BY_CLIP, BY_PAC) if fact in content["run"]]
    return "\n".join(lines + [printable(note) for note in content["notes"]])
