"""The processes of one training run, as torchrun starts them: every one holds the whole draft."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pard_rt.errors import InvalidArgumentError, requiring

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that had nothing to do adds zeros."""
        if self.size == 1:
            return
        waiting = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()

    def agree(self, answer: T) -> T:
        """Return what the first process says."""
        if self.size == 1:
            return answer
        said = [answer]
        dist.broadcast_object_list(said)
        return said[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(device: str) -> tuple[Workers, str]:
    """Join the processes that torchrun started; alone where it started none.

    Parameters
    ----------
    device
        As PyTorch names it. "cuda" becomes the card of this process.

    Returns
    -------
    tuple of Workers and str
        The processes, and the device of this one.

    Raises
    ------
    InvalidArgumentError
        There are fewer cards than processes on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Workers(), device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_cards = torch.device(device).type == "cuda"
    if on_cards and local >= torch.cuda.device_count():
        raise InvalidArgumentError(
            "There are more processes than cards",
            f"at most {torch.cuda.device_count()} on this machine",
            f"process {local + 1}",
            "Start torchrun with a smaller --nproc-per-node.",
        )
    with requiring("train", "Training in several processes"):
        from accelerate import PartialState  # type: ignore[import-untyped]
    state = PartialState(cpu=not on_cards)  # sets the process's card, and joins the others
    return Workers(state.process_index, state.num_processes), str(state.device)
