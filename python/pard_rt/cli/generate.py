"""`pard-rt generate`: text from a target, as it comes; and beside other ways of drafting it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import cast

from pard_rt.cli.output import paint, print_field, progress
from pard_rt.errors import IncompatibleModelsError, InvalidArgumentError
from pard_rt.generator import Generator, Method, Options
from pard_rt.outputs import Output

# What the demo's model writes on from where no prompt is given.
DEMO_PROMPTS = (
    "class Parser:\n    def ",
    "def read(self, size=-1):\n    ",
    "import os\nimport sys\n\ndef main(",
    "        return self.",
)
_COMPARED_K = (2, 4, 6, 8)
_METHODS: tuple[tuple[Method, str], ...] = (("draft", "classic drafting"), ("pard", "PARD"))
_REPEATS = 3  # of every text that is timed; their median counts


def run_generate(arguments: argparse.Namespace) -> int:
    """Generate behind every prompt; 1 where a comparison found another text."""
    generator = _open(arguments)
    ways = _ways(generator) if arguments.compare else []  # or their error, first
    if ways and arguments.seed is None:
        arguments.seed = 0  # all of them write the same text
    prompts = [_read(prompt) for prompt in arguments.prompts or DEMO_PROMPTS]
    for prompt in prompts:
        _stream(generator, prompt, arguments)
    return _compare(ways, prompts, _options(arguments)) if ways else 0


def _open(arguments: argparse.Namespace) -> Generator:
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


def _read(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            "The prompt on stdin is no text", "UTF-8", str(error), "Convert it."
        ) from error


def _options(arguments: argparse.Namespace) -> Options:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
    return cast(Options, {name: getattr(arguments, name) for name in names})


def _stream(generator: Generator, prompt: str, arguments: argparse.Namespace) -> None:
    """Print a text while it comes, what drafts gave in green; then, on stderr, what it took."""
    stream = generator.stream(prompt, **_options(arguments))
    print(paint(prompt, "bold"), end="", flush=True)
    for piece in stream:
        print(paint(piece.text, "ok") if piece.from_draft else piece, end="", flush=True)
    print(flush=True)
    stats = stream.output.stats
    k = generator.num_speculative_tokens
    most = "at most " if arguments.adaptive else ""
    rounds = f", {stats.tokens_per_round:.2f} tokens per round (K = {most}{k})" if k else ""
    line = f"-- {stats.counts.committed} tokens, {stats.tokens_per_second:.0f} per second{rounds}"
    print(paint(line, "note"), file=sys.stderr, flush=True)


@dataclass
class _Way:
    """One way of decoding, and what it took over all prompts."""

    name: str
    generator: Generator
    num_speculative_tokens: int
    seconds: float = 0.0
    rounds: int = 0
    texts: list[list[int]] = field(default_factory=list)

    def generate(self, prompt: str, options: Options) -> Output:
        self.generator.num_speculative_tokens = self.num_speculative_tokens
        return self.generator.generate(prompt, **options)

    def add(self, runs: list[Output]) -> None:
        self.seconds += median(run.stats.seconds for run in runs)
        self.rounds += runs[0].stats.counts.rounds
        self.texts.append(runs[0].token_ids)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds


def _compare(ways: list[_Way], prompts: list[str], options: Options) -> int:
    """Decode every prompt in every way, in turns, and print what it took."""
    with progress("comparing") as shown:
        for i, prompt in enumerate(prompts):
            shown.text = f"comparing, prompt {i + 1} of {len(prompts)}"
            turns = [[way.generate(prompt, options) for way in ways] for _ in range(_REPEATS)]
            for way, runs in zip(ways, zip(*turns, strict=True), strict=True):
                way.add(list(runs))
    print()
    print_field("", f"{'tokens/s':>10}{'speed-up':>10}{'tokens per round':>18}", width=24)
    plain, best = ways[0], max(ways, key=lambda way: way.rate)
    for way in ways:
        speed_up, tokens_per_round = way.rate / plain.rate, way.num_tokens / way.rounds
        line = f"{way.rate:>10.0f}{speed_up:>9.2f}x{tokens_per_round:>18.2f}"
        print_field(way.name, paint(line, "ok") if way is best else line, width=24)
    same = all(way.texts == plain.texts for way in ways)
    print(f"identical output: {paint('yes', 'ok') if same else paint('NO', 'FAIL')}")
    return 0 if same else 1


def _ways(generator: Generator) -> list[_Way]:
    """Plain decoding, then classic drafting and PARD at several K."""
    ways = [_Way("plain", generator.with_method("plain"), 0)]
    for method, name in _METHODS:
        try:
            drafting = generator.with_method(method, num_speculative_tokens=max(_COMPARED_K))
        except IncompatibleModelsError:
            if method == "draft":
                raise
            continue  # no parallel draft, but a classic one
        ways += [_Way(f"{name}, K = {k}", drafting, k) for k in _COMPARED_K]
    return ways
