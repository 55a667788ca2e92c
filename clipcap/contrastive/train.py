"""Train a dual encoder on images and their captions: CLIP from scratch, or fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.task import ContrastiveTask
from clipcap.contrastive.towers.make import make_towers
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.run_file import write_run_file
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS, read_source
from clipcap.sources.record import Record
from clipcap.training.accelerator import make_accelerator
from clipcap.training.curves import write_curves
from clipcap.training.loop import Loop
from clipcap.training.run_folder import check_run_folder


def read_extra(config: ContrastiveConfig) -> list[Record]:
    """The records of --extra, all for training; none without a share of the batches."""
    if not config.extra or not config.extra_share:
        return []
    records = READERS["custom"](SourceConfig(data_path=config.extra, frame=config.source.frame)).records
    return [replace(record, image_id=f"extra/{record.image_id}", split="train") for record in records]


@writes_to("config.loop.out_dir")
def train_contrastive(source_name: str, config: ContrastiveConfig) -> Path:
    """Train on a source's images and captions.

    Returns:
        the folder of the `best` checkpoint: by recall@10 of the validation images, or by the training loss.
    Raises:
        ClipcapError: a run that would be replaced, bad data, options at odds, a loss that is not finite; what was
            saved stays.
    """
    check_run_folder(config.loop)
    accelerator = make_accelerator(config.loop, config.flat())
    source = read_source(source_name, config.source)
    for note in source.notes:
        logger.info(note)
    set_seed(config.loop.seed)
    task = ContrastiveTask(config, make_towers(config.towers), source.records, accelerator, read_extra(config))
    logger.info(task.describe())
    task.decode()
    return run(task, f"contrastive {source_name}", config.flat())


def run(task: ContrastiveTask, command: str, options: Mapping[str, Any]) -> Path:
    """Train, and draw the curves.

    Args:
        task: ready to be trained.
        command: that the run is of.
        options: of it, by name.
    Returns:
        the folder of the `best` checkpoint.
    """
    if task.accelerator.is_main_process:
        write_run_file(Path(task.config.loop.out_dir), command, options)
    loop = Loop(task, task.config.loop, task.accelerator)
    best = loop.fit()
    if task.accelerator.is_main_process:
        write_curves(loop.out_dir, task.held_out.chance())
    return best
