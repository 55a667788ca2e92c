"""The training loop on accelerate: steps, schedule, checkpoints, resume. It does not know what it trains."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from clipcap.checkpoint import CONFIG, recover, replaced_folder
from clipcap.config import LoopOptions
from clipcap.errors import ClipcapError
from clipcap.hub import one_line

STATE = "training_state.pt"
REFERENCE_WARMUP_STEPS = 5000


class Batch(Protocol):
    """One micro-batch of one process."""

    labels: Tensor

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""


class Task(Protocol):
    """What is trained: the model, its batches, its validation and its files."""

    model: nn.Module  # forward(**batch.inputs()) → loss summed over what `weight` counts

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""

    def weight(self, batch: Batch) -> Tensor:
        """What a micro-batch's loss is summed over (label tokens), a scalar."""

    def culprits(self, batch: Batch) -> str:
        """Names for an error message what in the batch has no finite loss."""

    def validate(self) -> dict[str, float]:
        """Scores after an epoch; all processes take part and return the same."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`: lower is better."""

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write the checkpoint's files into an existing folder."""


def make_accelerator(options: LoopOptions) -> Accelerator:
    """Start accelerate and say how many processes there really are.

    On CPU `accelerate launch --num_processes 2` silently starts one process; that is warned of.
    """
    tracker = None if options.tracker == "none" else options.tracker
    try:
        accelerator = Accelerator(
            log_with=tracker,
            project_dir=options.out_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ImportError, ValueError) as error:
        if tracker:
            raise ClipcapError(f"--tracker {tracker}: {one_line(error)}: pip install 'clipcap[track]'") from error
        raise
    processes = accelerator.num_processes
    accelerator.print(f"{processes} process{'es' * (processes > 1)} on {accelerator.device}", end=", ")
    accelerator.print(f"mixed precision {accelerator.mixed_precision}")
    if processes == 1 and (asked := processes_asked_for()) > 1:
        accelerator.print(
            f"warning: the launcher asked for {asked} processes, one is running; on CPU start them with "
            f"`ACCELERATE_USE_CPU=true torchrun --nproc_per_node {asked} train.py …`"
        )
    if tracker:
        accelerator.init_trackers("clipcap", config=_loggable(vars(options)))
    return accelerator


def processes_asked_for() -> int:
    """How many processes the launcher was told to start, as far as its environment tells."""
    for name in ("WORLD_SIZE", "ACCELERATE_NUM_PROCESSES"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 2 if "MASTER_ADDR" in os.environ else 1


def warmup_steps(options: LoopOptions, total: int) -> int:
    """Steps of warm-up: as asked; 5000 in the original; by default at most a tenth of the run."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return REFERENCE_WARMUP_STEPS if options.recipe == "reference" else min(REFERENCE_WARMUP_STEPS, total // 10)


def make_optimizer(model: nn.Module, options: LoopOptions) -> torch.optim.AdamW:
    """AdamW as the original sets it, over what is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=options.lr, eps=1e-6, weight_decay=options.weight_decay)


@dataclass
class Progress:
    """Where a run stands; stored with `last`."""

    epoch: int = 0
    step: int = 0  # optimiser steps in this epoch
    loss_sum: float = 0.0  # of this epoch so far
    loss_weight: float = 0.0
    best: float = math.inf
    stale: int = 0  # epochs since the best
    total_steps: int = 0  # of the whole run: a resumed run must be the same run
    processes: int = 1


class Loop:
    """Trains a task: `fit` returns the path of the checkpoint to use.

    Args:
        task: what is trained; its model already holds the initial weights.
        options: see `LoopOptions`.
        accelerator: from `make_accelerator`.
        restore: puts a checkpoint folder's weights into the task's model (called on resume).
    """

    def __init__(self, task: Task, options: LoopOptions, accelerator: Accelerator, restore: Callable[[Path], None]):
        self.task, self.options, self.accelerator = task, options, accelerator
        self.out_dir = Path(options.out_dir)
        self.progress = Progress(
            total_steps=task.steps_per_epoch() * options.epochs, processes=accelerator.num_processes
        )
        state = self._resume(restore) if options.resume else None
        if accelerator.is_main_process:
            self._start_log(resumed=state is not None)
        self.model = accelerator.prepare_model(task.model)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(task.model, options))
        total = self.progress.total_steps
        # Not prepared: a prepared scheduler moves `num_processes` ticks a step.
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, warmup_steps(options, total), total)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if accelerator.scaler is not None and state["scaler"]:
                accelerator.scaler.load_state_dict(state["scaler"])

    def path(self, name: str | int) -> Path:
        """Checkpoint `prefix-last`, `prefix-best` or, of an epoch, `prefix-003`."""
        name = name if isinstance(name, str) else f"{name:03d}"
        return self.out_dir / f"{self.options.prefix}-{name}"

    def fit(self) -> Path:
        """Train to the last epoch, or until `patience` is spent."""
        options, progress = self.options, self.progress
        while progress.epoch < options.epochs and not self._out_of_patience():
            self._epoch(progress.epoch)
            metrics = self._finish_epoch(progress.epoch)
            epoch = progress.epoch
            progress.epoch, progress.step, progress.loss_sum, progress.loss_weight = epoch + 1, 0, 0.0, 0.0
            self._save_epoch(epoch, metrics)
        if self._out_of_patience():
            self.accelerator.print(f"stopped: no better epoch in {options.patience}")
        self.accelerator.end_training()
        return self.path("best")

    def _out_of_patience(self) -> bool:
        return bool(self.options.patience) and self.progress.stale >= self.options.patience

    def _epoch(self, epoch: int) -> None:
        """Train one epoch, from the step the run stands at."""
        progress, per_epoch = self.progress, self.task.steps_per_epoch()
        self.model.train()
        bar = tqdm(
            total=per_epoch,
            initial=progress.step,
            desc=f"epoch {epoch}",
            disable=not self.accelerator.is_main_process,
            unit="step",
        )
        for window in self.task.windows(epoch, progress.step):
            # Dropout of a step depends on (seed, step, process) alone, so that resuming needs no generator state.
            step_seed = epoch * per_epoch + progress.step
            torch.manual_seed((self.options.seed * 1_000_003 + step_seed) * 1009 + self.accelerator.process_index)
            loss, weight = self._step(window)
            progress.step += 1
            progress.loss_sum += loss
            progress.loss_weight += weight
            bar.update()
            bar.set_postfix(loss=f"{loss / max(weight, 1):.3f}", refresh=False)
            self._log({"loss": loss / max(weight, 1), "lr": self.scheduler.get_last_lr()[0]}, step_seed + 1)
            if self.options.save_steps and progress.step % self.options.save_steps == 0 and progress.step < per_epoch:
                self._save(self.path("last"), {})
        bar.close()

    def _step(self, window: list[Batch]) -> tuple[float, float]:
        """One optimiser step; the loss summed over the global batch, and what it was summed over."""
        accelerator = self.accelerator
        weights = torch.stack([self.task.weight(batch) for batch in window]).sum().to(accelerator.device)
        total = accelerator.reduce(weights.double(), "sum").clamp(min=1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for i, batch in enumerate(window):
            last = i + 1 == len(window)
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(**batch.inputs(accelerator.device))
                # Gradients are averaged over processes: the factor makes that the sum over the global batch.
                accelerator.backward(loss * (accelerator.num_processes / total).float())
            loss_sum += loss.detach()
        loss_sum = accelerator.reduce(loss_sum, "sum")
        if not math.isfinite(loss_sum.item()):
            self._stop_on_nan(window)
        if self.options.grad_clip:
            accelerator.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss_sum.item(), total.item()

    def _stop_on_nan(self, window: list[Batch]) -> None:
        named = "; ".join(filter(None, (self.task.culprits(batch) for batch in window)))
        last = self.path("last")
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint had been written"
        raise ClipcapError(
            f"the loss is not finite in epoch {self.progress.epoch}, step {self.progress.step}: "
            f"{named or 'the weights themselves have diverged, try a lower --lr or --grad_clip 1'}; {kept}"
        )

    def _finish_epoch(self, epoch: int) -> dict[str, float]:
        """Validate and report."""
        progress = self.progress
        metrics = {"epoch": epoch, "step": (epoch + 1) * self.task.steps_per_epoch()}
        metrics["train_loss"] = progress.loss_sum / max(progress.loss_weight, 1)
        self.model.eval()
        metrics |= self.task.validate()
        score = self.task.score(metrics)
        better = score < progress.best
        progress.best, progress.stale = (score, 0) if better else (progress.best, progress.stale + 1)
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k not in ("epoch", "step"))
        self.accelerator.print(f"epoch {epoch}: {shown}{' (best)' if better else ''}")
        self._log({k: v for k, v in metrics.items() if k != "step"}, metrics["step"])
        return metrics

    def _save_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """`last`, and `best` and a numbered checkpoint where they are due.

        `last` is written after the others: a run killed in between repeats the epoch and writes them again.
        """
        options = self.options
        if self.accelerator.is_main_process:
            with (self.out_dir / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(metrics) + "\n")
        if self.progress.stale == 0:
            self._save(self.path("best"), metrics, with_state=False)
        if (epoch + 1) % options.save_every == 0 or epoch + 1 == options.epochs:
            self._save(self.path(epoch), metrics, with_state=False)
            if options.keep and self.accelerator.is_main_process:
                numbered = sorted(self.out_dir.glob(f"{options.prefix}-[0-9][0-9][0-9]*"))
                for old in numbered[: -options.keep]:
                    shutil.rmtree(old)
        self._save(self.path("last"), metrics)

    def _save(self, folder: Path, metrics: Mapping[str, float], with_state: bool = True) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                with replaced_folder(folder) as draft:
                    if with_state:
                        torch.save(self._state(), draft / STATE)
                    self.task.write(draft, metrics)
            except (OSError, RuntimeError) as error:  # torch and safetensors say RuntimeError on a full disk
                raise ClipcapError(
                    f"{folder}: cannot write the checkpoint: {one_line(error)}; what was there before is untouched"
                ) from error
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs besides the weights."""
        scaler = self.accelerator.scaler
        return {
            "progress": vars(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _resume(self, restore: Callable[[Path], None]) -> dict[str, Any] | None:
        """Load `last`; None where the run has not saved one yet, and starts from the beginning."""
        last = self.path("last")
        if self.accelerator.is_main_process:
            recover(last)
        self.accelerator.wait_for_everyone()
        if not (last / CONFIG).is_file():
            self.accelerator.print(f"--resume: {last} is not there yet, starting from the beginning")
            return None
        try:
            state = torch.load(last / STATE, map_location="cpu", weights_only=True)
            progress = Progress(**state["progress"])
        except Exception as error:
            raise ClipcapError(f"{last / STATE}: cannot resume from it: {one_line(error)[:160]}") from error
        for name, what in (("total_steps", "optimiser steps"), ("processes", "processes")):
            was, now = getattr(progress, name), getattr(self.progress, name)
            if was != now:
                raise ClipcapError(
                    f"--resume: the run in {self.out_dir} has {was} {what}, this command {now}: use the same data, "
                    f"--epochs, --bs, --grad_accum and number of processes, or another --out_dir"
                )
        self.progress = progress
        restore(last)
        self.accelerator.print(f"resumed from {last} at epoch {progress.epoch}, step {progress.step}")
        return state

    def _start_log(self, resumed: bool) -> None:
        """Keep `metrics.jsonl` of the epochs that a resumed run will not repeat; a new run starts a new one."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        log = self.out_dir / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if resumed and log.exists() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < self.progress.epoch]
        temporary = log.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(log)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self.options.tracker != "none":
            self.accelerator.log(_loggable(values), step=step)


def _loggable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers take: numbers, booleans and text."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
