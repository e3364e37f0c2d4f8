"""What `Generator` returns."""

from __future__ import annotations

from dataclasses import dataclass

from pard_rt._core import RoundCounts

__all__ = ["Output", "Piece", "Stats"]


@dataclass(frozen=True)
class Stats:
    """What a text took.

    Attributes
    ----------
    counts
        Rounds, proposals and what came of them, by place in the round.
    seconds
        From the request to its last token, whoever else was decoded meanwhile.
    """

    counts: RoundCounts
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens committed per second."""
        return self.counts.committed / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Tokens committed per forward of the target: 1 in plain decoding."""
        return self.counts.mean_tokens_per_round


@dataclass(frozen=True)
class Output:
    """The continuation of one prompt.

    Attributes
    ----------
    text
        What the tokens spell, up to a stop string; None if the target has no tokenizer. Special
        tokens are left out unless ``skip_special_tokens=False``. Bytes that are not UTF-8 become
        U+FFFD. (A tokenizer's own `decode` may drop a space at the beginning.)
    token_ids
        All tokens, with the one that ended it and those that spell a stop string.
    finish_reason
        'eos', 'stop', 'length' or 'cancelled'; None while a stream goes on.
    seed
        The seed it was sampled with: the same one gives the same text.
    stats
        How many rounds and how much time it took.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str | None
    seed: int
    stats: Stats


@dataclass(frozen=True)
class Piece:
    """A token of a stream; printed, it is its text.

    Attributes
    ----------
    text
        The characters it completes: for most tokens one or more, for some none yet. A special token
        has none unless ``skip_special_tokens=False``. What may be the beginning of a stop string
        waits for the next token.
    token_id
        The token.
    from_draft
        Whether it is an accepted proposal, not a correction or bonus token.
    """

    text: str
    token_id: int
    from_draft: bool

    def __str__(self) -> str:
        return self.text
