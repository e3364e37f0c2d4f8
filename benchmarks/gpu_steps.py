"""The steps of the check, on one device. Each loads what it needs and returns what it found."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import mean, median
from typing import Any

import torch
from transformers.cache_utils import StaticLayer

import draft_training
import pard_rt
from gpu_measures import idle_share, memory, seconds_per_call, trace
from gpu_models import (
    PAIRS,
    TINY,
    Json,
    Pair,
    bytes_read,
    counted,
    equal_share,
    load,
    load_counting,
)
from gpu_onnx import decode_demo, runtime_here
from gpu_stand_ins import RecordedAssistant, RecordedExecutor, break_text
from gpu_transformers import generate
from pard_rt.pytorch.captured_executor import CapturedExecutor
from pard_rt.pytorch.kernels import open_kernels, try_kernels
from pard_rt.pytorch.torch_model import TorchModel

DRAFTED_K = (2, 4, 8, 12)
PROMPT = [7 + i % 200 for i in range(128)]
CONTEXT = 1024
SOAK_SLICE_S = 300


@dataclass(frozen=True)
class Step:
    """Something to be found out, in minutes and independently of the others."""

    name: str
    expected_s: int  # on an H100; a guess
    run: Callable[[], Json]


@dataclass(frozen=True)
class Timed:
    """What was decoded behind the second round: by then target and draft have seen the prompt."""

    text: list[int]  # all of it
    num_tokens: int
    seconds: float  # median of the turns
    shapes: Counter[Any]  # of the rounds

    @property
    def num_rounds(self) -> int:
        """Rounds of the last turn; all turns have the same."""
        return sum(self.shapes.values())

    def per_round(self, seconds: Mapping[Any, float]) -> float:
        """Mean over the rounds of what one of its shape takes."""
        return sum(seconds[shape] * n for shape, n in self.shapes.items()) / self.num_rounds


class Steps:
    """All steps, on a GPU, or dry: on the CPU, with tiny models and a few tokens."""

    def __init__(self, dry_run: bool, soak_seconds: float) -> None:
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self.new_tokens = 24 if dry_run else 256
        self.turns = 1 if dry_run else 3
        self.soak_seconds = soak_seconds

    def all(self) -> list[Step]:
        """Name every step, in the order they are run in."""
        pairs = TINY if self.dry_run else PAIRS
        steps = [
            Step("kernels", 30, self.kernels),
            Step("exactness", 60, self.exactness),
            Step("bandwidth", 20, self.bandwidth),
            Step("onnx", 60, self.onnx),
            Step("draft training", 150, self.draft_training),
        ]
        for name, pair in pairs.items():
            steps += [
                Step(f"rounds, {name}", 120, partial(self.rounds, pair)),
                Step(f"compiled, {name}", 300, partial(self.compiled, pair)),
                Step(f"trace, {name}", 90, partial(self.trace, pair)),
                Step(f"transformers, {name}", 150, partial(self.transformers, pair)),
                Step(f"transformers assisted, {name}", 240, partial(self.assisted, pair)),
            ]
            # Older releases refuse to roll a static cache back.
            if getattr(StaticLayer, "is_croppable", False):
                compiled = partial(self.assisted, pair, ks=(8,), cache_implementation="static")
                steps.append(Step(f"transformers assisted and compiled, {name}", 240, compiled))
        name, pair = next(iter(pairs.items()))
        slices = max(2, ceil(self.soak_seconds / SOAK_SLICE_S))
        for i in range(slices):
            soak = partial(self.soak, pair, i, self.soak_seconds / slices)
            steps.append(Step(f"soak {i + 1} of {slices}, {name}", SOAK_SLICE_S + 90, soak))
        return steps

    # Right ----------------------------------------------------------------------------------------

    def kernels(self) -> Json:
        """Choose on the device what choose() chooses on the host, from rows of all types."""
        torch.zeros(1, device=self.device)  # a driver loads code into the context that this makes
        kernels = open_kernels(self.device)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for vocab in (259, 1000 if self.dry_run else 151936):
                logits = (3 * torch.randn(9, vocab)).to(self.device, dtype)
                try_kernels(kernels, logits)
        return {"same": True, "code object": kernels.code_object or "host"}

    def exactness(self) -> Json:
        """Decode tiny float32 models: captured rounds give the composed executor's tokens."""
        (pair,) = TINY.values()
        torch.manual_seed(3)
        target, twin = (load(pair, pair.target, self.device, torch.float32) for _ in range(2))
        twin.module.load_state_dict(target.module.state_dict())
        compared = equal = 0
        for sampling in (
            pard_rt.SamplingParams(),
            pard_rt.SamplingParams(temperature=0.8, top_p=0.9, seed=5),
        ):
            plain = pard_rt.Decoder(TorchModel(target), max_batch_size=4)
            expected = self._texts(plain, sampling)
            for k in (0, 1, 4, 8):
                executor = CapturedExecutor(target, twin, 299, max_batch_size=4)
                decoder = pard_rt.Decoder(executor, num_speculative_tokens=k, max_batch_size=4)
                compared += sum(map(len, expected))
                equal += _num_equal(self._texts(decoder, sampling), expected)
        return {"tokens": compared, "equal tokens": equal / compared}

    def _texts(self, decoder: pard_rt.Decoder, sampling: pard_rt.SamplingParams) -> list[list[int]]:
        sequences = [
            decoder.add(list(range(n, 2 * n)), max_new_tokens=40, sampling=sampling)
            for n in (3, 17, 50, 90, 120)
        ]
        decoder.run()
        return [sequence.generated.tolist() for sequence in sequences]

    def onnx(self) -> Json:
        """Decode the demo pair through ONNX Runtime, where it has a provider for the card."""
        provider = "cpu" if self.dry_run else runtime_here()[1]
        return decode_demo(provider, self.new_tokens, self.turns)

    # Fast -----------------------------------------------------------------------------------------

    def bandwidth(self) -> Json:
        """Copy memory: bytes read and written per second."""
        size = 1 << (20 if self.dry_run else 32)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        to = torch.empty_like(source)
        seconds = seconds_per_call(lambda: to.copy_(source), self.device)
        return {"bytes per second": 2 * size / seconds}

    def draft_training(self) -> Json:
        """Train through mask tokens: attention over prefix and chain, beside a dense mask."""
        steps, lengths = (1, (64,)) if self.dry_run else (5, draft_training.LENGTHS)
        found = draft_training.measure(steps, 1, self.device.type, lengths)
        rows = [
            {"length": row["length"]}
            | {f"{form}, s": row[form]["seconds"] for form in draft_training.FORMS}
            | {f"{form}, MiB": row[form]["mebibytes"] for form in draft_training.FORMS}
            for row in found["rows"]
        ]
        return {"steps": rows}

    def rounds(self, pair: Pair) -> Json:
        """Decode plainly and with recorded proposals; beside it, the parts of these rounds alone.

        A round is predicted to take its bare forwards, and what a plain round takes besides its own
        forward: building inputs, choosing, and whatever of the host the device has to wait for.
        """
        target = load_counting(pair, self.device, self.dtype)
        draft = load(pair, pair.draft, self.device, self.dtype)
        executor = RecordedExecutor(target, None, CONTEXT)
        plain = self._decode(executor, 0)
        (bare,) = self._bare(executor, plain)
        overhead = plain.seconds / plain.num_rounds - bare
        found: Json = {
            "plain": {
                "tokens/s": plain.num_tokens / plain.seconds,
                "bytes of weights read per token": bytes_read(target),
                "bare target, ms": 1e3 * bare,
                "the rest of a round, ms": 1e3 * overhead,
                "efficiency": bare * plain.num_rounds / plain.seconds,
                "equal tokens": equal_share(PROMPT, plain.text),
            },
            "recorded": [],
        }
        for k in DRAFTED_K:
            executor = RecordedExecutor(target, draft, CONTEXT)
            timed = self._decode(executor, k)
            of_target, of_draft = self._bare(executor, timed)
            replayed = {s: seconds_per_call(executor.whole(s), self.device) for s in timed.shapes}
            bare = of_target + of_draft
            per_round = timed.num_tokens / timed.num_rounds
            speed, predicted = timed.num_tokens / timed.seconds, per_round / (bare + overhead)
            found["recorded"].append(
                {
                    "K": k,
                    "tokens/s": speed,
                    "tokens per round": per_round,
                    "bare target, ms": 1e3 * of_target,
                    "bare draft, ms": 1e3 * of_draft,
                    "round replayed alone, ms": 1e3 * timed.per_round(replayed),
                    "efficiency": bare * timed.num_rounds / timed.seconds,
                    "predicted tokens/s": predicted,
                    "measured / predicted": speed / predicted,
                    "equal tokens": equal_share(PROMPT, timed.text),
                }
            )
        return found

    def compiled(self, pair: Pair) -> Json:
        """Decode plainly and with K = 8, forwards as they are and compiled."""
        target = load_counting(pair, self.device, self.dtype)
        draft = load(pair, pair.draft, self.device, self.dtype)
        rows = []
        for k in (0, 8):
            own = draft if k > 0 else None
            plainly, compiled = (
                self._decode(RecordedExecutor(target, own, CONTEXT, torch_compile=compile_it), k)
                for compile_it in (False, True)
            )
            speeds = [timed.num_tokens / timed.seconds for timed in (plainly, compiled)]
            rows.append(
                {
                    "K": k,
                    "tokens/s": speeds[0],
                    "compiled, tokens/s": speeds[1],
                    "compiled / not": speeds[1] / speeds[0],
                    "equal tokens": equal_share(PROMPT, compiled.text),
                }
            )
        return {"recorded": rows}

    def _decode(self, executor: RecordedExecutor, k: int) -> Timed:
        decoder = self._decoder(executor, k, self.new_tokens)
        times = []
        for turn in range(self.turns + 1):  # the first captures
            sequence = decoder.add(PROMPT, max_new_tokens=self.new_tokens)
            decoder.step()
            decoder.step()
            # The next round is on its way, so the clock runs from one round's arrival to another's.
            before = sequence.length
            executor.rounds.clear()
            began = time.perf_counter()
            while decoder.step():
                pass
            if turn > 0:
                times.append(time.perf_counter() - began)
        text = sequence.generated.tolist()
        num_tokens = sequence.length - before
        return Timed(text, num_tokens, median(times), Counter(executor.rounds))

    def _decoder(self, executor: RecordedExecutor, k: int, new_tokens: int) -> pard_rt.Decoder:
        text = PROMPT + counted(PROMPT, new_tokens)
        executor.record(0, break_text(text, len(PROMPT) + 1, k))
        return pard_rt.Decoder(executor, num_speculative_tokens=k)

    def _bare(self, executor: RecordedExecutor, timed: Timed) -> list[float]:
        """Return the mean seconds of the bare forwards of a round: the target's, the draft's."""
        found = {
            shape: [seconds_per_call(run, self.device) for run in executor.bare(shape)]
            for shape in timed.shapes
        }
        parts = range(len(next(iter(found.values()))))
        return [timed.per_round({s: seconds[i] for s, seconds in found.items()}) for i in parts]

    def trace(self, pair: Pair) -> Json:
        """Profile some seconds of steady recorded decoding: how long the device has nothing to do.

        The profiler itself takes time between kernels, so this is at most so much.
        """
        k, windows, rounds = 8, 3, 3 if self.dry_run else 80
        new_tokens = 7 * (windows * rounds + 4)  # rounds yield six of them on average
        target = load_counting(pair, self.device, self.dtype)
        draft = load(pair, pair.draft, self.device, self.dtype)
        executor = RecordedExecutor(target, draft, 2048)
        decoder = self._decoder(executor, k, new_tokens)
        decoder.add(PROMPT, max_new_tokens=new_tokens)
        decoder.run()  # captures
        sequence = decoder.add(PROMPT, max_new_tokens=new_tokens)
        for _ in range(2):  # the prompt
            decoder.step()

        def some() -> None:
            for _ in range(rounds):
                decoder.step()

        traces = [trace(some, self.device) for _ in range(windows)]
        if sequence.finished:
            raise RuntimeError("the text was too short for all windows")
        return {
            "of": "operators of a CPU: meaningless" if self.dry_run else "the device",
            "recorded, K": k,
            "idle": mean(idle_share(intervals) for intervals in traces),
            "idle in gaps above 5 us": mean(idle_share(intervals, 5.0) for intervals in traces),
            "kernels and copies per round": sum(map(len, traces)) / (windows * rounds),
            "rounds": windows * rounds,
        }

    def transformers(self, pair: Pair) -> Json:
        """Run transformers' own generate on the same weights: compiled, with a static cache."""
        target = load_counting(pair, self.device, self.dtype).module
        return generate(target, PROMPT, self.new_tokens, self.turns, cache_implementation="static")

    def assisted(self, pair: Pair, ks: tuple[int, ...] = DRAFTED_K, **options: Any) -> Json:
        """Run transformers' assisted generation with the same stand-in for the draft as ours."""
        target = load_counting(pair, self.device, self.dtype).module
        draft = load(pair, pair.draft, self.device, self.dtype)
        assistant = RecordedAssistant(draft, target.config.vocab_size, CONTEXT)
        options["assistant_model"] = assistant.module
        rows = []
        for k in ks:
            text = PROMPT + counted(PROMPT, self.new_tokens + k + 1)
            assistant.record(break_text(text, len(PROMPT) + 1, k), k)
            found = generate(target, PROMPT, self.new_tokens, self.turns, spare=k + 1, **options)
            rows.append({"K": k} | found)
        return {"recorded": rows}

    # Steady ---------------------------------------------------------------------------------------

    def soak(self, pair: Pair, number: int, seconds: float) -> Json:
        """Decode changing prompts with changing K and batch; memory at the start and the end.

        Every cycle has rounds of every shape, so that the first one, before the start, captures all
        there are.
        """
        target = load_counting(pair, self.device, self.dtype)
        draft = load(pair, pair.draft, self.device, self.dtype)
        executor = RecordedExecutor(target, draft, CONTEXT, slots=4)
        decoder = pard_rt.Decoder(executor, max_batch_size=4)
        generator = random.Random(number)
        tokens, equal = self._soak_cycle(executor, decoder, pair, generator)
        before, cycles = memory(self.device), 1
        began = time.perf_counter()
        while cycles == 1 or time.perf_counter() - began < seconds:
            more, more_equal = self._soak_cycle(executor, decoder, pair, generator)
            tokens, equal, cycles = tokens + more, equal + more_equal, cycles + 1
        after = memory(self.device)
        return {
            "recorded, tokens": tokens,
            "cycles": cycles,
            "equal tokens": equal / tokens,
            "memory": [{"when": "start"} | before, {"when": "end"} | after],
        }

    def _soak_cycle(
        self,
        executor: RecordedExecutor,
        decoder: pard_rt.Decoder,
        pair: Pair,
        generator: random.Random,
    ) -> tuple[int, int]:
        """Return how many tokens were decoded, and how many of them are the target's own."""
        new_tokens = self.new_tokens // 2
        tokens = equal = 0
        for batch in (1, 2, 4):
            for shortest, longest in ((20, 80), (260, 330)):  # in a context of 256, of 512
                prompts = [
                    generator.choices(range(pair.num_tokens // 2), k=length)
                    for length in generator.sample(range(shortest, longest), batch)
                ]
                texts = [counted(prompt, new_tokens) for prompt in prompts]
                for k in (0, *DRAFTED_K):
                    decoder.num_speculative_tokens = k
                    for slot, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
                        executor.record(slot, break_text(prompt + text, len(prompt) + 1, k))
                    found = [decoder.add(prompt, max_new_tokens=new_tokens) for prompt in prompts]
                    decoder.run()
                    executor.rounds.clear()
                    tokens += batch * new_tokens
                    equal += _num_equal([each.generated.tolist() for each in found], texts)
        return tokens, equal


def _num_equal(texts: list[list[int]], expected: list[list[int]]) -> int:
    """Count the tokens that stand where they are expected."""
    pairs = zip(texts, expected, strict=True)
    return sum(a == b for text, own in pairs for a, b in zip(text, own, strict=False))
