"""`pard-rt train`: a small model of a target's family becomes its parallel draft."""

from __future__ import annotations

import argparse
import os
from functools import partial

from pard_rt.cli.output import paint, print_field
from pard_rt.errors import InvalidArgumentError, require_range, requiring
from pard_rt.progress import progress

_NAMES = (
    "layers", "heal", "distill", "head_tokens", "mask_token_id", "epochs", "max_length",
    "tokens_per_step", "learning_rate", "seed", "measure_every", "device", "checkpoint_layers",
    "revision", "trust_remote_code",
)  # fmt: skip


def run_train(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    with requiring("train", "Training"):
        import torch

        from pard_rt.models.checkpoint import hush_transformers
        from pard_rt.training.config import TrainConfig
        from pard_rt.training.mask_prediction import MaskPrediction
        from pard_rt.training.train import train
    hush_transformers()
    if (arguments.layers is None) != (arguments.from_target is None):
        raise InvalidArgumentError(
            "--from-target and --layers belong together",
            "both, or a --model",
            "one of them",
            "Say how many of the target's layers the draft starts from, such as --layers 6.",
        )
    require_range("threads", arguments.threads, 0, 1024)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with progress(f"opening {arguments.from_target or arguments.model}") as shown:
        start = arguments.from_target or arguments.model
        done = train(
            start,
            arguments.data,
            arguments.output,
            TrainConfig(
                MaskPrediction(
                    arguments.num_subtasks, arguments.retention, arguments.min_retention
                ),
                dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
                **{name: getattr(arguments, name) for name in _NAMES},
            ),
            target=arguments.target or arguments.from_target,
            log=shown.print,
            watch=partial(setattr, shown, "text"),
        )
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes one speaks
        return 0
    print(paint(str(done.folder), "bold"))
    print_field("mask token", f"{done.mask_token_id}, {done.mask_token_reason}")
    print_field("seen", f"{done.tokens} tokens in {done.steps} steps")
    print_field("loss", f"{done.loss:.3f} nats a row")
    if done.acceptance is not None:
        print_field("held out", f"{done.acceptance.tokens_per_round:.2f} tokens per round")
    return 0
