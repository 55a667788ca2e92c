"""The training loop on accelerate: steps, schedule, checkpoints. It does not know what it trains."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from clipcap.errors import ClipcapError
from clipcap.runtime.files import replaced_file, replaced_folder, writing
from clipcap.runtime.interruption import states_what_is_left
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.progress import PartBar
from clipcap.training.accelerator import log_picture, loggable, sum_over_processes
from clipcap.training.config import LoopConfig
from clipcap.training.disk import check_disk, disk_needed
from clipcap.training.gradients import make_gradients
from clipcap.training.optimizer import PLATEAU_EPOCHS, make_optimizer, make_schedule
from clipcap.training.resume import STATE, Progress, damaged_json, resume, run_identity
from clipcap.training.run_folder import LOG, checkpoint_path, numbered, shorten_list
from clipcap.training.run_state import canonical, restore
from clipcap.training.step_log import StepLog
from clipcap.training.task import MicroBatch, Task

MANY_STALE = 5  # epochs without a better one, after which a run is worth a remark


class Loop:
    """Trains a task: `fit` returns the path of the checkpoint to use.

    Args:
        task: what is trained; its model already holds the initial weights.
        options: see `LoopConfig`.
        accelerator: from `make_accelerator`.
    """

    def __init__(self, task: Task[Any], options: LoopConfig, accelerator: Accelerator):
        self.task, self.options, self.accelerator = task, options, accelerator
        self.out_dir = Path(options.out_dir)
        self.identity = run_identity(task, options, accelerator)
        state = resume(task, options, accelerator, self.identity) if options.resume else None
        self.progress = Progress() if state is None else state.progress
        self.saved = None if state is None else (self.progress.epoch, self.progress.step)  # what `last` holds
        self.damaged = "" if state is None else damaged_json(self.path("last"))
        if accelerator.is_main_process:
            needed, line = disk_needed(task, options)
            logger.info(line)
            if warning := check_disk(needed, self.out_dir):
                logger.warning(warning)
            self._start_log()
        with warnings.catch_warnings():  # accelerate knows no other name for it yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model = accelerator.prepare_model(task.model)
        self.gradients = make_gradients(self.model, accelerator)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(task.parameter_groups(), options.weight_decay))
        self.total = task.steps_per_epoch() * options.epochs  # optimiser steps of the run
        if options.max_steps:
            self.total = min(self.total, options.max_steps)
        # Not prepared: a prepared scheduler moves `num_processes` ticks a step.
        self.scheduler = make_schedule(self.optimizer, options, self.total, lambda: self.progress.reductions)
        if state is not None:
            parts = {name: (getattr(self, name), getattr(state, name)) for name in ("optimizer", "scheduler")}
            if accelerator.scaler is not None and state.scaler:
                parts["scaler"] = (accelerator.scaler, state.scaler)
            restore(parts, self.path("last") / STATE)
        done = self.progress.epoch * task.steps_per_epoch() + self.progress.step
        self.steps = StepLog(self.out_dir, self.total, done) if accelerator.is_main_process else None

    def path(self, name: str | int) -> Path:
        """Checkpoint `prefix-last`, `prefix-best` or, of an epoch, `prefix-003`."""
        return checkpoint_path(self.options, name)

    def fit(self) -> Path:
        """Train to the last epoch, or until `patience` is spent."""
        options, progress = self.options, self.progress
        with states_what_is_left(self._left):
            if self.damaged:
                self._complete_last()
            while not self._finished() and not self._out_of_patience():
                epoch = progress.epoch
                self._epoch(epoch)
                metrics = self._finish_epoch(epoch)
                progress.epoch, progress.step, progress.loss_sum, progress.loss_weight = epoch + 1, 0, 0.0, 0.0
                progress.history.append(metrics)
                self._save_epoch(epoch, metrics)
        if self._out_of_patience():
            logger.info(f"stopped: no better epoch in {options.patience}")
        elif progress.stale >= MANY_STALE:
            best = progress.epoch - progress.stale - 1
            logger.info(
                f"the best is epoch {best}; the {progress.stale} after it were no better (--patience stops there)"
            )
        self.accelerator.end_training()
        return self.path("best")

    def _complete_last(self) -> None:
        """Write `last` again, whose weights and state are whole: no step may be left that would."""
        logger.warning(f"{self.damaged}: {self.path('last')} is written again")
        self.accelerator.wait_for_everyone()  # all have looked
        progress = self.progress
        self._save(self.path("last"), progress.history[-1] if progress.history and not progress.step else {})

    def _finished(self) -> bool:
        """Whether all epochs, or --max_steps, are done."""
        return self.progress.epoch * self.task.steps_per_epoch() >= self.total

    def _left(self) -> str:
        """What an interrupted run leaves."""
        if self.saved is None:
            return "no checkpoint was written yet, so nothing is kept (--save_steps saves within an epoch)"
        epochs, step = self.saved
        where = f"{epochs} epoch{'s' * (epochs != 1)}" + (f" and {step} steps" if step else "")
        return f"{self.path('last')} holds the run after {where}: the same command with --resume continues it"

    def _out_of_patience(self) -> bool:
        return bool(self.options.patience) and self.progress.stale >= self.options.patience

    def _epoch(self, epoch: int) -> None:
        """Train one epoch, from the current step of the run."""
        progress, per_epoch = self.progress, self.task.steps_per_epoch()
        self.model.train()
        hidden = not self.accelerator.is_main_process
        here = min(per_epoch, self.total - epoch * per_epoch)  # steps of this epoch
        done = epoch * per_epoch + progress.step
        options = {"desc": f"epoch {epoch}", "unit": "step", "hidden": hidden}
        with PartBar(part="training", total=self.total, initial=done, **options) as bar:
            for window in self.task.windows(epoch, progress.step):
                # Dropout of a step depends on (seed, step, process) alone: resuming needs no generator's state.
                step = epoch * per_epoch + progress.step
                torch.manual_seed((self.options.seed * 1_000_003 + step) * 1009 + self.accelerator.process_index)
                rate = float(self.scheduler.get_last_lr()[0])
                loss, weight = self._step(window)
                progress.step += 1
                progress.loss_sum += loss
                progress.loss_weight += weight
                bar.set_postfix(loss=f"{loss / weight:.3f}", refresh=False)
                bar.update()
                self._log({"loss": loss / weight, "lr": rate}, step + 1)
                if self.steps is not None:
                    self.steps.add(step + 1, loss, weight, rate)
                if self._save_is_due(per_epoch):
                    self._check_weights()
                    self._save(self.path("last"), {})
                if progress.step == here:
                    break

    def _save_is_due(self, per_epoch: int) -> bool:
        """Whether `last` is to be written in the middle of an epoch."""
        step, every = self.progress.step, self.options.save_steps
        return bool(every) and step % every == 0 and step < per_epoch

    def _step(self, window: list[MicroBatch]) -> tuple[float, float]:
        """One optimiser step; the loss summed over the global batch, and what it was summed over."""
        accelerator = self.accelerator
        [weight] = sum_over_processes(accelerator, sum(self.task.weight(batch) for batch in window))
        weight = max(weight, 1)
        loss_sum = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(window):
            # Gradients are averaged over processes: the factor makes that the sum over the global batch.
            loss_sum += self.gradients.add(batch, accelerator.num_processes / weight, last=i + 1 == len(window))
        [loss] = sum_over_processes(accelerator, loss_sum.item())
        if not math.isfinite(loss):
            self._stop("the loss is not finite", window)
        if self.options.grad_clip:
            accelerator.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.gradients.clear(self.optimizer)
        return loss, weight

    def _check_weights(self) -> None:
        """A loss may still be finite where its gradient was not: such weights must not replace good ones."""
        if not all(p.isfinite().all() for p in self.task.model.parameters() if p.requires_grad):
            self._stop("the weights are not finite", [])

    def _stop(self, what: str, window: list[MicroBatch]) -> None:
        """End the run with an error that names images, those of all processes; what was saved stays.

        Args:
            what: is wrong.
            window: the micro-batches of this process where it came up: the images to blame in them are named, or,
                where none can be told from the others, all of them.
        """
        culprits, images = (
            list(dict.fromkeys(gather_object([name for batch in window for name in names(batch)])))
            for names in (self.task.culprits, self.task.images)
        )
        if culprits:
            why = f"of {shorten_list(culprits)}"
        else:
            batch = f"a batch with images {shorten_list(images)}; " if images else ""
            why = f"{batch}the run has diverged, try a lower learning rate or --grad_clip 1"
        last = self.path("last")
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint had been written"
        raise ClipcapError(f"{what} in epoch {self.progress.epoch}, step {self.progress.step}: {why}; {kept}")

    def _finish_epoch(self, epoch: int) -> dict[str, float]:
        """Validate and report."""
        self._check_weights()
        progress = self.progress
        steps = min((epoch + 1) * self.task.steps_per_epoch(), self.total)
        metrics: dict[str, float] = {"epoch": epoch, "step": steps}
        metrics["train_loss"] = progress.loss_sum / progress.loss_weight
        self.model.eval()
        metrics |= self.task.validate()
        if not math.isfinite(metrics.get("val_loss", 0)):  # before `last` takes the place of weights that were good
            self._stop("the validation loss is not finite", [])
        score = self.task.score(metrics)
        better = score < progress.best
        progress.best, progress.stale = (score, 0) if better else (progress.best, progress.stale + 1)
        progress.reductions += bool(progress.stale) and progress.stale % PLATEAU_EPOCHS == 0
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k not in ("epoch", "step"))
        logger.info(f"epoch {epoch}: {shown}{' (best)' if better else ''}")
        self._log({k: v for k, v in metrics.items() if k != "step"}, steps)
        if self.options.tracker != "none" and self.accelerator.is_main_process:
            log_picture(self.accelerator, "captions", self.task.sheet(), steps)
        return metrics

    def _save_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """`best` and a numbered checkpoint where they are due, and `last`.

        `last` is written after the others: a run killed in between repeats the epoch and writes them again.
        """
        options = self.options
        if self.accelerator.is_main_process:
            path = self.out_dir / LOG
            with writing(path), path.open("a", encoding="utf-8") as log:
                log.write(_json_line(metrics))
        if self.progress.stale == 0:
            self._save(self.path("best"), metrics, with_state=False)
        if options.numbering and ((epoch + 1) % options.numbering == 0 or self._finished()):
            self._save(self.path(epoch), metrics, with_state=False)
        if options.keep and self.accelerator.is_main_process:
            for old in list(numbered(self.out_dir, options.prefix).values())[: -options.keep]:
                shutil.rmtree(old)
        self._save(self.path("last"), metrics)

    def _save(self, folder: Path, metrics: Mapping[str, float], with_state: bool = True) -> None:
        if self.accelerator.is_main_process:
            with writing(folder), replaced_folder(folder) as draft:
                if with_state:
                    torch.save(canonical(self._state()), draft / STATE)
                self.task.write(draft, metrics)
        if with_state:
            self.saved = (self.progress.epoch, self.progress.step)
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs besides the weights."""
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _start_log(self) -> None:
        """`metrics.jsonl` holds the finished epochs: none of a new run, those before `last` of a resumed one."""
        with writing(self.out_dir / LOG):
            self.out_dir.mkdir(parents=True, exist_ok=True)
            with replaced_file(self.out_dir / LOG) as draft:
                lines = _as_written(self.out_dir / LOG, list(map(_json_line, self.progress.history)))
                draft.write_text("".join(lines), encoding="utf-8")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self.options.tracker != "none":
            self.accelerator.log(loggable(values), step=step)


def _as_written(log: Path, lines: list[str]) -> list[str]:
    """The lines, each as it is in the log where the log has it: a training state does not keep the order of names."""
    try:
        written = log.read_text(encoding="utf-8").splitlines(keepends=True)
        same = [json.loads(old) == json.loads(new) for old, new in zip(written, lines)]
    except (OSError, ValueError, RecursionError):  # there is none, or it is damaged
        return lines
    return [written[i] if i < len(same) and same[i] else line for i, line in enumerate(lines)]


def _json_line(metrics: Mapping[str, float]) -> str:
    return to_json(metrics) + "\n"
