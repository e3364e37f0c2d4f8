"""What `generate` and `chat` share: opening, options, a text as it comes and what it took."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

from pard_rt.cli.output import paint
from pard_rt.errors import InvalidArgumentError
from pard_rt.generator import Generator, Options
from pard_rt.outputs import Output
from pard_rt.progress import progress
from pard_rt.streams import Stream


def open_generator(arguments: argparse.Namespace) -> Generator:
    """Open the target and the draft that arguments name."""
    with progress(f"opening {arguments.target}"):
        return Generator(
            arguments.target,
            arguments.draft,
            method=arguments.method,
            num_speculative_tokens=arguments.num_speculative_tokens,
            adaptive=arguments.adaptive,
            device=arguments.device,
            dtype=arguments.dtype,
            revision=arguments.revision,
            draft_revision=arguments.draft_revision,
            trust_remote_code=arguments.trust_remote_code,
            max_length=arguments.max_length,
            mask_token_id=arguments.mask_token_id,
            threads=arguments.threads,
            capturing=partial(progress, behind_text=True),
        )


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the options of a text that arguments give."""
    known = Options.__annotations__
    given = {name: value for name, value in vars(arguments).items() if name in known}
    return cast(Options, given)


def text_of_stdin(read: Callable[[], str]) -> str:
    """Read text.

    Raises
    ------
    InvalidArgumentError
        It is not text.
    """
    try:
        return read()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            "What stdin gave is not text", "UTF-8", str(error), "Convert it."
        ) from error


def print_pieces(stream: Stream) -> None:
    """Print a text while it comes, what drafts gave in green."""
    for piece in stream:
        print(paint(piece.text, "ok") if piece.from_draft else piece, end="", flush=True)
    print(flush=True)


def print_stats(generator: Generator, output: Output, *, adaptive: bool) -> None:
    """Say on stderr what a text took."""
    stats, k = output.stats, generator.num_speculative_tokens
    most = "at most " if adaptive else ""
    drafted = f" (K = {most}{k})" if k else ""
    line = (
        f"-- {stats.counts.committed} tokens, {stats.tokens_per_second:.0f} per second, "
        f"{stats.tokens_per_round:.2f} tokens per round{drafted}"
    )
    print(paint(line, "note"), file=sys.stderr, flush=True)
