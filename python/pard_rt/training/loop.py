"""A training loop that can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pard_rt.errors import FolderError, first_line
from pard_rt.training.muon import Muon

# The batch of a step and what it is to cost: step -> loss of the module there. It depends on the
# step alone, so that a resumed run sees the data an unbroken one would have seen.
StepLoss = Callable[[int], Tensor]


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

    def scale(self, step: int) -> float:
        """Share of the full learning rate at a step."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, left)


Optimizers = Callable[[nn.Module, Schedule], tuple[torch.optim.Optimizer, ...]]


def muon_and_adamw(module: nn.Module, schedule: Schedule) -> tuple[torch.optim.Optimizer, ...]:
    """For models trained from nothing: Muon for the matrices inside, AdamW for all else."""
    inner = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = {id(parameter) for parameter in inner}
    others = [p for p in module.parameters() if id(p) not in chosen]
    return (
        Muon(inner, lr=schedule.matrix_rate),
        torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def adamw(module: nn.Module, schedule: Schedule) -> tuple[torch.optim.Optimizer, ...]:
    """For models that have been trained already."""
    return (
        torch.optim.AdamW(
            module.parameters(), lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0
        ),
    )


class Trainer:
    """Trains one module, with a checkpoint file it resumes from.

    Parameters
    ----------
    module
        The module, on the device it trains on.
    schedule
        Steps and learning rates. A resumed run may have another one.
    checkpoint
        File of the state; JSON lines of the losses go beside it.
    optimizers
        What makes them, each with its full learning rate as `lr`.
    log
        Takes lines about the progress.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        checkpoint: Path,
        *,
        optimizers: Optimizers = muon_and_adamw,
        log: Callable[[str], None] = print,
    ) -> None:
        self.module = module
        self.schedule = schedule
        self.checkpoint = checkpoint
        self.step = 0
        self.last_loss = math.nan  # mean over the steps logged last
        self._print = log
        self._optimizers = optimizers(module, schedule)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        if checkpoint.is_file():
            self._load()

    def run(self, loss_of: StepLoss, *, save_every: float = 300.0, log_every: int = 20) -> None:
        """Train to the end of the schedule, saving every `save_every` seconds."""
        self.module.train()
        saved, began, first = time.monotonic(), time.monotonic(), self.step
        losses: list[float] = []
        while self.step < self.schedule.steps:
            for rate, optimizer in zip(self._rates, self._optimizers, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.schedule.scale(self.step)
            loss = loss_of(self.step)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimizer in self._optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            self.step += 1
            if self.step % log_every == 0 or self.step == self.schedule.steps:
                seconds = (time.monotonic() - began) / (self.step - first)
                self._log(sum(losses) / len(losses), seconds)
                losses.clear()
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the checkpoint: whole, or the one before stays.

        Raises
        ------
        FolderError
            It cannot be written.
        """
        unfinished = self.checkpoint.with_suffix(".partial")
        state = {
            "step": self.step,
            "schedule": asdict(self.schedule),
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, self.checkpoint)
        except (OSError, RuntimeError) as error:
            unfinished.unlink(missing_ok=True)
            raise FolderError(
                f"A checkpoint cannot be written at step {self.step}",
                f"room for '{self.checkpoint}', and rights to write it",
                first_line(error),
                "Make room and start again: it goes on from the checkpoint before.",
            ) from error

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu")
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        log = self.checkpoint.with_suffix(".jsonl")  # lines of steps that are run again go
        lines = log.read_text("utf-8").splitlines(keepends=True) if log.is_file() else []
        log.write_text("".join(x for x in lines if json.loads(x)["step"] <= self.step), "utf-8")

    def _log(self, loss: float, seconds: float) -> None:
        left = (self.schedule.steps - self.step) * seconds
        self.last_loss = loss
        self._print(
            f"step {self.step}/{self.schedule.steps}  loss {loss:.4f} "
            f"({loss / math.log(2):.3f} bits)  {seconds:.2f} s a step, {left / 60:.0f} min left"
        )
        record = {"step": self.step, "loss": round(loss, 5), "seconds_per_step": round(seconds, 4)}
        with self.checkpoint.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
