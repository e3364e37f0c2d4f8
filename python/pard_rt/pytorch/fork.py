"""A process that was forked has none of the threads of PyTorch, which wait for each other there."""

from __future__ import annotations

import os

import torch

from pard_rt.errors import ModelError


class OpenedHere:
    """Remembers in which process a model was opened."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def require(self, name: str, device: torch.device) -> None:
        """Refuse a model that a fork took along, where it would hang or its card is not there.

        Raises
        ------
        ModelError
            Names the model and both processes.
        """
        if os.getpid() == self._pid or (device.type == "cpu" and torch.get_num_threads() == 1):
            return
        raise ModelError(
            f"{name} was opened before this process was forked, and PyTorch would hang here",
            f"process {self._pid}, where it was opened, or one thread on the CPU",
            f"process {os.getpid()}, {torch.get_num_threads()} threads, {device}",
            "Open the model after the fork, start processes with multiprocessing's 'spawn', or "
            "pass threads=1.",
        )
