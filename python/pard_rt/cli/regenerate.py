"""`pard-rt train regenerate`: a data set in the words of the target."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pard_rt.cli.output import paint, print_field
from pard_rt.errors import requiring
from pard_rt.progress import progress

if TYPE_CHECKING:
    from pard_rt.training.regenerate import Regenerated

_NAMES = (
    "questions", "draft", "max_new_tokens", "prompt_tokens", "question_tokens", "temperature",
    "top_k", "top_p", "min_p", "seed", "shard", "batch_size", "max_length", "endpoint",
    "endpoint_model", "keep_logits", "num_speculative_tokens", "device", "dtype",
    "mask_token_id", "threads", "trust_remote_code", "revision", "draft_revision",
)  # fmt: skip


def run_regenerate(arguments: argparse.Namespace) -> int:
    """Write the data set, and say what came of it."""
    with requiring("torch", "Answering a data set anew"):
        from pard_rt.models.checkpoint import hush_transformers
        from pard_rt.training.regenerate import regenerate
    hush_transformers()
    with progress(f"opening {arguments.target}") as shown:

        def report(done: Regenerated) -> None:
            shown.text = f"{done.lines} of {done.total} lines, {_speed(done)}"
            if done.kept:
                shown.text = f"logits of {done.kept} of {done.total} lines"

        options = {name: value for name, value in vars(arguments).items() if name in _NAMES}
        done = regenerate(
            arguments.target,
            arguments.data,
            arguments.output,
            report=report,
            capturing=progress,
            **options,
        )
    print(paint(str(done.file), "bold"))
    print_field("lines", f"{done.lines}")
    if done.kept:
        print_field("logits", f"{arguments.keep_logits} per token, of {done.kept} lines")
    if done.answers:
        cut = f", {done.cut} of them cut at the limit of length" if done.cut else ""
        print_field("answers", f"{done.answers}{cut}")
        rounds = f", {done.tokens / done.rounds:.2f} per round" if done.rounds else ""
        print_field("speed", f"{_speed(done)}{rounds}")
    if done.skipped:
        print_field("skipped", f"{done.skipped} prompts, too long for the target")
    return 0


def _speed(done: Regenerated) -> str:
    return f"{done.tokens / max(done.seconds, 1e-9):.0f} tokens per second"
