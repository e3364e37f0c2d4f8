"""PARD in plain torch, for reading: the method, and the oracle of the tests.

No caches, no batches, no core: every forward runs the whole text again. Slow on purpose. See
arXiv 2504.18583, section 3, for the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Round", "generate", "plain", "propose", "verify"]

# Token ids of shape [n] in, logits of shape [n, vocabulary] out: row i says what follows token i.
CausalModel = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Round:
    """What one round did: the draft's proposals, how many held, and the tokens it committed."""

    proposals: list[int]
    num_accepted: int
    committed: list[int]


def plain(target: CausalModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Generate greedily with the target alone, one token per forward."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(target(torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def propose(draft: CausalModel, tokens: list[int], mask_token_id: int, k: int) -> list[int]:
    """Propose k tokens in one forward: the last token and k - 1 masks each name what follows."""
    rows = draft(torch.tensor(tokens + [mask_token_id] * (k - 1)))
    return rows[-k:].argmax(dim=-1).tolist()


def verify(target: CausalModel, tokens: list[int], proposals: list[int]) -> Round:
    """Check all proposals in one forward; behind those that hold comes a token of the target's."""
    rows = target(torch.tensor(tokens + proposals))
    choices = rows[-len(proposals) - 1 :].argmax(dim=-1).tolist()
    num_accepted = 0
    while num_accepted < len(proposals) and proposals[num_accepted] == choices[num_accepted]:
        num_accepted += 1
    return Round(proposals, num_accepted, choices[: num_accepted + 1])


def generate(
    target: CausalModel,
    draft: CausalModel,
    prompt: list[int],
    *,
    mask_token_id: int,
    k: int,
    max_new_tokens: int,
) -> tuple[list[int], list[Round]]:
    """Generate greedily in rounds: the same tokens as `plain`, in fewer target forwards.

    Returns
    -------
    tokens : list of int
        The generated ids, `max_new_tokens` of them.
    rounds : list of Round
        What each round did; the last one may have committed more than was asked for.
    """
    tokens, rounds = list(prompt), []
    while len(tokens) < len(prompt) + max_new_tokens:
        rounds.append(verify(target, tokens, propose(draft, tokens, mask_token_id, k)))
        tokens += rounds[-1].committed
    return tokens[len(prompt) :][:max_new_tokens], rounds
