"""transformers' own generate, timed as our rounds are: from the second round's end on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from gpu_models import Json, equal_share


def generate(
    target: Any, prompt: Sequence[int], count: int, turns: int, *, spare: int = 0, **options: Any
) -> Json:
    """Generate `count` tokens, and at most `spare` more.

    With so much room no round is smaller than the others, which would compile it anew.
    """
    tokens = torch.tensor([prompt], device=target.device)
    enough = StoppingCriteriaList([Enough(len(prompt) + count)])
    clocks = []
    for _ in range(turns + 1):  # the first compiles
        clocks.append(TokenClock())
        out = target.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count + spare,
            stopping_criteria=enough,
            do_sample=False,
            pad_token_id=0,
            streamer=clocks[-1],
            **options,
        )
    rounds = [clock.rounds for clock in clocks[1:]]
    num_tokens = clocks[-1].num_tokens
    per_round = num_tokens / len(rounds[-1])
    return {
        "tokens/s": num_tokens / median(map(sum, rounds)),
        "tokens/s at the median round": per_round / median(s for turn in rounds for s in turn),
        "tokens per round": per_round,
        "equal tokens": equal_share(prompt, out[0, len(prompt) :][:count].tolist()),
    }


class TokenClock(BaseStreamer):
    """Notes when transformers' generate hands tokens on: the prompt, then those of each round."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._counts: list[int] = []

    def put(self, value: Tensor) -> None:
        """Note tokens, which are in host memory: the round that made them is over."""
        self._times.append(time.perf_counter())
        self._counts.append(value.numel())

    def end(self) -> None:
        """Nothing is left to note."""

    # Behind the second round, when target and draft have seen the prompt.

    @property
    def rounds(self) -> list[float]:
        """Seconds of each."""
        return [b - a for a, b in zip(self._times[2:], self._times[3:], strict=False)]

    @property
    def num_tokens(self) -> int:
        """Tokens of these rounds."""
        return sum(self._counts[3:])


class Enough(StoppingCriteria):
    """Ends transformers' generate at a length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Whether each sequence is that long."""
        enough = input_ids.shape[1] >= self._length
        return torch.full((len(input_ids),), enough, device=input_ids.device)
