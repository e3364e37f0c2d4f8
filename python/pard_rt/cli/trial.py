"""Decoding for `pard-rt check`: plainly and speculatively, with the time every round took."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from pard_rt._core import (
    Decoder,
    Drafter,
    ForwardItem,
    Model,
    ModelInfo,
    SamplingParams,
    TokenEvent,
    score,
)

_WRONG_EVERY = 4  # of the made-up draft's proposals


@dataclass
class RoundSamples:
    """Seconds of rounds with the full number of proposals, prefills left out."""

    target: list[float] = field(default_factory=list)
    draft: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """What a text is generated from and when it ends."""

    tokens: list[int]
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]


def generate(
    decoder: Decoder, prompt: Prompt, sampling: SamplingParams, samples: RoundSamples
) -> list[int]:
    """Generate one text, adding the times of its rounds to `samples`."""
    sequence = decoder.add(
        prompt.tokens,
        max_new_tokens=prompt.max_new_tokens,
        sampling=sampling,
        eos_token_ids=list(prompt.eos_token_ids),
    )
    more, prefilled = True, False
    while more:
        counts, times = decoder.counts, decoder.times
        more = decoder.step()
        proposed = decoder.counts.drafted - counts.drafted
        if prefilled and proposed == decoder.num_speculative_tokens:
            samples.target.append(decoder.times.target - times.target)
            samples.draft.append(decoder.times.draft - times.draft)
        prefilled = prefilled or decoder.counts.committed > counts.committed
    return [int(token) for token in sequence.generated]


@dataclass(frozen=True)
class RowPair:
    """The row of plain decoding and that of a round, where they gave two tokens."""

    apart: float  # the largest difference of two logits, as a share of the largest logit
    plain_lead: float  # by how much plain decoding's token wins in its row, in scores
    round_lead: float  # and the round's token in the other row


@dataclass(frozen=True)
class Difference:
    """The first token at which a text is not the one expected."""

    index: int  # among the generated tokens
    expected: int | None  # None: the text had ended
    actual: int | None
    rows: RowPair | None  # None: it did not happen again, or a text had ended

    def __str__(self) -> str:
        actual, expected = ("the end" if t is None else t for t in (self.actual, self.expected))
        return f"token {self.index} is {actual}, plain decoding has {expected}"

    def explain(self, rounding: float) -> str:
        """Say where it comes from; `rounding` is the most that rounding explains in a row."""
        if self.expected is None or self.actual is None:
            return "One of the texts ended there. Please report this: ends do not depend on drafts."
        if self.rows is None:
            return "It did not happen again: the model's forwards do not repeat their own results."
        if self.rows.apart == 0:
            return "Both tokens came from the same logits, bit for bit. Please report this."
        apart = f"their logits differ by {self.rows.apart:.1g} of the largest logit"
        if self.rows.apart > rounding:
            return (
                f"This is no near-tie: {apart}, and rounding explains {rounding:.1g}. Export the "
                "model again, or report it."
            )
        return (
            f"The two tokens nearly tie, so rounding decided: {apart}. Plain decoding's token "
            f"leads by a score of {self.rows.plain_lead:.1g} in its row, the round's by "
            f"{self.rows.round_lead:.1g}. On CPUs an ONNX folder of the gqa form rounds every row "
            "alike; elsewhere float32 weights have the fewest near-ties."
        )


def find_difference(
    alone: Decoder,
    together: Decoder,
    prompt: Prompt,
    sampling: SamplingParams,
    expected: list[int],
    actual: list[int],
) -> Difference | None:
    """Compare a text with plain decoding's, and look at the rows of the first two tokens apart."""
    pairs = enumerate(zip_longest(expected, actual))
    index, (wanted, found) = next(((i, p) for i, p in pairs if p[0] != p[1]), (-1, (None, None)))
    if index < 0:
        return None
    rows = None
    if wanted is not None and found is not None:
        rows = _compare_rows(alone, together, prompt, sampling, index, (wanted, found))
    return Difference(index, wanted, found, rows)


def _compare_rows(
    alone: Decoder,
    together: Decoder,
    prompt: Prompt,
    sampling: SamplingParams,
    index: int,
    tokens: tuple[int, int],
) -> RowPair | None:
    position = len(prompt.tokens) + index
    seen: list[tuple[int, NDArray[np.float32]]] = []

    def look(event: TokenEvent) -> bool:
        if event.position < position:
            return True
        seen.append((event.token, event.logits()))
        return False

    for decoder in (alone, together):
        decoder.add(
            prompt.tokens,
            max_new_tokens=prompt.max_new_tokens,
            sampling=sampling,
            eos_token_ids=list(prompt.eos_token_ids),
            observer=look,
        )
        decoder.run()
    if tuple(token for token, _ in seen) != tokens:
        return None
    (expected, plain), (actual, together_row) = seen

    def lead(row: NDArray[np.float32], token: int, other: int) -> float:
        scores = [score(row, sampling, position, t) for t in (token, other)]
        return scores[0] - scores[1]

    usable = np.isfinite(plain) & np.isfinite(together_row)
    largest = np.abs(plain[usable]).max()
    return RowPair(
        apart=float(np.abs(plain[usable] - together_row[usable]).max() / largest),
        plain_lead=lead(plain, expected, actual),
        round_lead=lead(together_row, actual, expected),
    )


class MadeUpDraft(Model):
    """Proposes a text it was told, with every fourth token wrong: a draft for a lone target."""

    def __init__(self, target: ModelInfo) -> None:
        super().__init__()
        self.text: list[int] = []
        self._info = ModelInfo(
            name="made-up draft",
            vocab_size=target.vocab_size,
            max_length=target.max_length,
            num_tokens=target.num_tokens,
            token_bytes=target.token_bytes,
        )

    def info(self) -> ModelInfo:
        """Return the target's sizes."""
        return self._info

    def forward(self, batch: list[ForwardItem]) -> NDArray[np.float32] | None:
        """Return rows with one token that no temperature lets another win against."""
        positions = [
            item.past_length + len(item.tokens) - item.num_rows + row + 1
            for item in batch
            for row in range(item.num_rows)
        ]
        rows = np.zeros((len(positions), self._info.vocab_size), np.float32)
        for row, position in zip(rows, positions, strict=True):
            token = self.text[position] if position < len(self.text) else 0
            row[(token + (position % _WRONG_EVERY == 0)) % len(row)] = 1e6
        return rows if positions else None

    def release(self, sequence: int) -> None:
        """Free nothing."""


@dataclass(frozen=True)
class Outcome:
    """What one sampling setting gave over all prompts."""

    num_tokens: int
    tokens_per_round: float
    difference: tuple[int, Difference] | None  # the first, with its prompt's index


def compare(
    target: Model,
    drafter: Drafter,
    made_up: MadeUpDraft | None,
    prompts: list[Prompt],
    sampling: SamplingParams,
    num_speculative_tokens: int,
    plain: RoundSamples,
    speculative: RoundSamples,
) -> Outcome:
    """Decode every prompt both ways, stopping at the first text that differs."""
    alone = Decoder(target)
    together = Decoder(target, drafter, num_speculative_tokens=num_speculative_tokens)
    num_tokens, difference = 0, None
    for i, prompt in enumerate(prompts):
        expected = generate(alone, prompt, sampling, plain)
        if made_up is not None:
            made_up.text = prompt.tokens + expected
        actual = generate(together, prompt, sampling, speculative)
        num_tokens += len(expected)
        found = find_difference(alone, together, prompt, sampling, expected, actual)
        if found is not None:
            difference = (i, found)
            break
    return Outcome(num_tokens, together.counts.mean_tokens_per_round, difference)
