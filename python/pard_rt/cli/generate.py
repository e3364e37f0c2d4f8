"""`pard-rt generate`: text from a target, as it comes; and beside other ways of drafting it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from pard_rt.cli.output import paint, print_field
from pard_rt.cli.texts import open_generator, options_of, print_pieces, print_stats, text_of_stdin
from pard_rt.errors import IncompatibleModelsError, InvalidArgumentError
from pard_rt.generator import Generator, Method
from pard_rt.outputs import Output
from pard_rt.progress import progress
from pard_rt.streams import Stream

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

Ask = Callable[[Generator], Stream]  # has a generator continue or answer one prompt


def run_generate(arguments: argparse.Namespace) -> int:
    """Continue every prompt. Return 1 where a comparison found another text."""
    if arguments.template_options is not None and not arguments.chat:
        raise InvalidArgumentError(
            "--template-options is about the chat template", "--chat", "no --chat", "Add --chat."
        )
    generator = open_generator(arguments)
    ways = _ways(generator) if arguments.compare else []  # or their error, first
    if ways and arguments.seed is None:
        arguments.seed = 0  # all of them write the same text
    prompts = [
        text_of_stdin(sys.stdin.read) if prompt == "-" else prompt
        for prompt in arguments.prompts or DEMO_PROMPTS
    ]
    asks = [_ask(prompt, arguments) for prompt in prompts]
    for prompt, ask in zip(prompts, asks, strict=True):
        stream = ask(generator)
        print(paint(prompt, "bold"), end="\n" if arguments.chat else "", flush=True)
        print_pieces(stream)
        print_stats(generator, stream.output, adaptive=arguments.adaptive)
    return _compare(ways, asks) if ways else 0


def _ask(prompt: str, arguments: argparse.Namespace) -> Ask:
    options = options_of(arguments)
    if not arguments.chat:
        return lambda generator: generator.stream(prompt, **options)
    messages = [{"role": "user", "content": prompt}]
    variables = arguments.template_options
    return lambda generator: generator.stream_chat(messages, template_options=variables, **options)


@dataclass
class _Way:
    """One way of decoding, and what it took over all prompts."""

    name: str
    generator: Generator
    num_speculative_tokens: int
    seconds: float = 0.0
    rounds: int = 0
    texts: list[list[int]] = field(default_factory=list)

    def generate(self, ask: Ask) -> Output:
        self.generator.num_speculative_tokens = self.num_speculative_tokens
        stream = ask(self.generator)
        for _ in stream:
            pass
        return stream.output

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


def _compare(ways: list[_Way], asks: list[Ask]) -> int:
    """Decode every prompt in every way, in turns, and print what it took."""
    with progress("comparing") as shown:
        for i, ask in enumerate(asks):
            shown.text = f"comparing, prompt {i + 1} of {len(asks)}"
            turns = [[way.generate(ask) for way in ways] for _ in range(_REPEATS)]
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
