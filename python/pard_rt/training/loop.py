"""A training loop that can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pard_rt.errors import FolderError, ModelError, first_line
from pard_rt.training.muon import Muon
from pard_rt.training.workers import Workers
from pard_rt.writing import writing

_RESUME = "Training then goes on from its last checkpoint."

# What a step is to cost: step -> losses of the module whose sum that is, made one after the other
# so that one graph is held at a time. They depend on the step alone, so that a resumed run sees the
# data an unbroken one would have seen. Of several workers each gives its own share.
StepLosses = Callable[[int], Iterable[Tensor]]


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    The learning rate rises over `warmup` steps, stays, and falls to zero over the last `decay`
    share of the steps.
    """

    steps: int
    matrix_rate: float = 0.02  # of Muon, for the weight matrices
    other_rate: float = 3e-3  # of AdamW, for embeddings, LM head and norms
    warmup: int = 40
    decay: float = 0.4

    def scale(self, step: int, since: int = 0) -> float:
        """Share of the full learning rate at a step; it has been rising `since` then."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1 - since) / self.warmup, left)


Optimizers = Callable[[nn.Module, Schedule], tuple[torch.optim.Optimizer, ...]]


def muon_and_adamw(module: nn.Module, schedule: Schedule) -> tuple[torch.optim.Optimizer, ...]:
    """For models trained from nothing: Muon for the matrices inside, AdamW for all else."""
    inner = [
        parameter
        for name, parameter in _learnt(module).items()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = {id(parameter) for parameter in inner}
    others = [p for p in _learnt(module).values() if id(p) not in chosen]
    return (
        Muon(inner, lr=schedule.matrix_rate),
        torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def adamw(module: nn.Module, schedule: Schedule) -> tuple[torch.optim.Optimizer, ...]:
    """For models that have been trained already."""
    return (
        torch.optim.AdamW(
            _learnt(module).values(), lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0
        ),
    )


def _learnt(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names, without those that stay as they are."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


class Trainer:
    """Trains one module, with a checkpoint file it resumes from.

    Parameters
    ----------
    module
        The module, on the device it trains on; the same in every worker.
    schedule
        Steps and learning rates. A resumed run may have another one.
    checkpoint
        File of the state; JSON lines of the losses go beside it.
    settings
        What else the steps depend on: a state of other settings is not gone on from.
    optimizers
        What makes them, each with its full learning rate as `lr`.
    workers
        The processes that train together. The first one writes.
    measured
        Sums that the losses add to as they are computed, shape and dtype theirs. They are cleared
        with every line of the log, and saved with the state.
    report
        What else goes into a line of the log: (step, measured summed over all workers) -> fields.
    log
        Takes lines about the progress.
    watch
        Takes, every step, a few words about it.
    on_log
        Takes the records of the log.

    Raises
    ------
    FolderError
        The checkpoint is damaged, or that of another training.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        checkpoint: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        optimizers: Optimizers = muon_and_adamw,
        workers: Workers | None = None,
        measured: Tensor | None = None,
        report: Callable[[int, Tensor], dict[str, Any]] = lambda step, measured: {},
        log: Callable[[str], None] = print,
        watch: Callable[[str], None] = lambda text: None,
        on_log: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self.module = module
        self.schedule = schedule
        self.checkpoint = checkpoint
        self.step = 0
        self.last_loss = math.nan  # mean over the steps logged last
        self._warm_since = 0  # a run that is lengthened has cooled down, and warms up again
        self._settings = dict(settings or {})
        self.measured = torch.zeros(1) if measured is None else measured
        self._losses: list[float] = []  # of steps not logged yet, this worker's share
        self._workers = workers or Workers()
        self._report = report
        self._print = log
        self._watch = watch
        self._on_log = on_log
        self._optimizers = optimizers(module, schedule)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        if checkpoint.is_file():
            self._load()
        elif self._workers.is_first:
            self.history.unlink(missing_ok=True)  # of a training that is not gone on from

    @property
    def history(self) -> Path:
        """Where the lines of the log go."""
        return self.checkpoint.with_suffix(".jsonl")

    def run(self, losses_of: StepLosses, *, save_every: float = 300.0, log_every: int = 20) -> None:
        """Train to the end of the schedule, saving every `save_every` seconds."""
        self.module.train()
        saved, began, first = time.monotonic(), time.monotonic(), self.step
        while self.step < self.schedule.steps:
            self.advance(losses_of)
            seconds = (time.monotonic() - began) / (self.step - first)
            left = (self.schedule.steps - self.step) * seconds / 60
            self._watch(f"step {self.step}/{self.schedule.steps}, {left:.0f} min left")
            if self.step % log_every == 0 or self.step == self.schedule.steps:
                self._log(seconds)
            # Clocks differ, so several processes ask one of them, but not in every step.
            if self._workers.size > 1 and self.step % log_every:
                continue
            if self._workers.agree(time.monotonic() - saved > save_every):
                self.save()
                saved = time.monotonic()
        self.save()

    def advance(self, losses_of: StepLosses) -> None:
        """Take one step of the schedule.

        Raises
        ------
        ModelError
            Training diverges. The weights are still those of the step before.
        """
        for rate, optimizer in zip(self._rates, self._optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.schedule.scale(self.step, self._warm_since)
        total = 0.0
        for loss in losses_of(self.step):
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        parameters = list(_learnt(self.module).values())
        self._workers.sum_gradients(parameters)
        norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
        if not math.isfinite(norm):  # the loss too, or of sums that overflow
            raise ModelError(
                f"Training diverged at step {self.step + 1}",
                "finite gradients",
                f"a gradient norm of {norm} and a loss of {total}",
                "Start again with a smaller learning rate; a state that was saved before stays.",
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._losses.append(total)
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint: whole, or the one before stays.

        Raises
        ------
        FolderError
            It cannot be written.
        """
        losses, measured = self._summed()
        if not self._workers.is_first:
            return
        state = {
            "step": self.step,
            "steps": self.schedule.steps,
            "warm_since": self._warm_since,
            "settings": self._settings,
            "module": {name: each.data for name, each in _learnt(self.module).items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "losses": losses,
            "measured": measured,
        }
        unfinished = self.checkpoint.with_suffix(".partial")
        with writing(self.checkpoint, resume=_RESUME):
            try:
                torch.save(state, unfinished)
                os.replace(unfinished, self.checkpoint)
            finally:
                unfinished.unlink(missing_ok=True)

    def _load(self) -> None:
        with self._reading():
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu")
            known = state["settings"]
        for name, value in self._settings.items():
            if known.get(name) != value:
                raise FolderError(
                    f"'{self.checkpoint}' is the state of another training",
                    f"{name} = {known.get(name)}",
                    f"{name} = {value}",
                    "Give the arguments it began with, or choose another folder.",
                )
        with self._reading():
            learnt = _learnt(self.module)
            for name in learnt.keys() | state["module"].keys():
                learnt[name].data.copy_(state["module"][name])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.measured.copy_(state["measured"])
            self.step = state["step"]
            self._warm_since = state["warm_since"]
            if self.schedule.steps > state["steps"]:
                self._warm_since = self.step
        if self._workers.is_first:  # what is summed over the workers must not be summed again
            self._losses = state["losses"]
            lines = []
            if self.history.is_file():
                lines = self.history.read_text("utf-8").splitlines(keepends=True)
            # Steps that are run again are logged again; a last line may be torn.
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= self.step]
            self.history.write_text("".join(kept), "utf-8")
            self.last_loss = json.loads(kept[-1])["loss"] if kept else math.nan
        else:
            self._losses = [0.0] * len(state["losses"])
            self.measured.zero_()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (
            OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError
        ) as error:  # fmt: skip
            raise FolderError(
                f"'{self.checkpoint}' is no state that this training can go on from",
                "what the same command left there",
                first_line(error),
                "Choose another folder, or remove the file to begin anew.",
            ) from error

    def _summed(self) -> tuple[list[float], Tensor]:
        """Losses and measurements since the last line of the log, of all workers together."""
        losses = torch.tensor(self._losses, dtype=torch.float64, device=self.measured.device)
        measured = self._workers.sum(self.measured.clone())
        return self._workers.sum(losses).tolist(), measured

    def _log(self, seconds: float) -> None:
        losses, measured = self._summed()
        self.last_loss = sum(losses) / len(losses)
        more = self._report(self.step, measured)
        self._losses.clear()
        self.measured.zero_()
        if not self._workers.is_first:
            return
        left = (self.schedule.steps - self.step) * seconds
        self._print(
            f"step {self.step}/{self.schedule.steps}  loss {self.last_loss:.4f} "
            f"({self.last_loss / math.log(2):.3f} bits)  {seconds:.2f} s a step, "
            f"{left / 60:.0f} min left"
        )
        record = {
            "step": self.step,
            "loss": round(self.last_loss, 5),
            "seconds_per_step": round(seconds, 4),
            **more,
        }
        with (
            writing(self.history, resume=_RESUME),
            self.history.open("a", encoding="utf-8") as history,
        ):
            history.write(json.dumps(record) + "\n")
        self._on_log(record)
