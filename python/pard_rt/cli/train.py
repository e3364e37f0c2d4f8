"""`pard-rt train`: a small model of a target's family becomes its parallel draft."""

from __future__ import annotations

import argparse
import os
from functools import partial

from pard_rt.cli.output import paint, print_field
from pard_rt.errors import require_range, requiring
from pard_rt.progress import progress


def run_train(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    with requiring("train", "Training"):
        import torch

        from pard_rt.models.checkpoint import hush_transformers
        from pard_rt.training.mask_prediction import MaskPrediction
        from pard_rt.training.train import train
    hush_transformers()
    require_range("threads", arguments.threads, 0, 1024)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with progress(f"opening {arguments.model}") as shown:
        done = train(
            arguments.model,
            arguments.data,
            arguments.output,
            settings=MaskPrediction(
                arguments.num_subtasks, arguments.retention, arguments.min_retention
            ),
            mask_token_id=arguments.mask_token_id,
            epochs=arguments.epochs,
            max_length=arguments.max_length,
            tokens_per_step=arguments.tokens_per_step,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            device=arguments.device,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            target=arguments.target,
            measure_every=arguments.measure_every,
            checkpoint_layers=arguments.checkpoint_layers,
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
