"""Rows of 16-bit weights that have the same bits whatever rows are computed with them, on CPUs.

How a kernel sums depends on how many rows there are, and on where among them a row lies. So every
forward has `SLOTS` rows, each position its own slot among them, and each row attends by itself.
Then neither its companions nor their number can change it. Many rows of a prompt run alone instead:
they are the same ones whatever comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pard_rt.pytorch.attention import AttentionCall, SequenceCache, attend_rows

SLOTS = 16
_PAST, _TRIED = 3, (1, 2, 3, 7)  # rows before those that are tried, and how these are cut


@dataclass(frozen=True, eq=False)
class NewRows:
    """The new tokens of one sequence, behind the `past` rows of its cache."""

    cache: SequenceCache
    past: int
    tokens: Tensor  # int64 [R]
    num_wanted: int  # logits are wanted for the last so many

    @property
    def is_prefill(self) -> bool:
        """Whether these are many rows of a prompt."""
        return len(self.tokens) > SLOTS and self.num_wanted < 2

    @property
    def positions(self) -> Tensor:
        """Where they stand in their sequence, int64 [R]."""
        return torch.arange(self.past, self.past + len(self.tokens))

    @property
    def slots(self) -> Tensor:
        """Their places in a forward, int64 [R]."""
        return self.positions % SLOTS

    def parts(self) -> Iterator[NewRows]:
        """Cut them into parts that have a slot for each row."""
        total = len(self.tokens)
        for start in range(0, total, SLOTS):
            stop = min(start + SLOTS, total)
            wanted = min(stop - start, max(0, stop - (total - self.num_wanted)))
            yield NewRows(self.cache, self.past + start, self.tokens[start:stop], wanted)


def exact_forwards(batch: Sequence[NewRows]) -> Iterator[list[NewRows]]:
    """Cut a batch, in its order, into prompts that run alone and rows whose slots differ."""
    together: list[NewRows] = []
    taken: set[int] = set()
    for rows in batch:
        for part in [rows] if rows.is_prefill else rows.parts():
            slots = set(range(SLOTS) if rows.is_prefill else part.slots.tolist())
            if taken & slots:
                yield together
                together, taken = [], set()
            together.append(part)
            taken |= slots
    if together:
        yield together


class Slotted:
    """`Attention` over `SLOTS` rows, each by itself, over just the keys it sees; B is 1."""

    def __init__(self, batch: Sequence[NewRows]) -> None:
        self._batch = [(rows, rows.slots) for rows in batch]

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `pard_rt.pytorch.attention.Attention.attend`."""
        out = torch.zeros_like(query[0])
        for rows, slots in self._batch:
            keys, values = rows.cache.write(call.layer, rows.past, key[0, slots], value[0, slots])
            for length, slot in enumerate(slots.tolist(), rows.past + 1):
                seen = slice(max(0, length - (call.sliding_window or length)), length)
                row = query[0, slot : slot + 1]
                out[slot] = attend_rows(call, row, keys[seen], values[seen], None)[0]
        return out[None]


def rows_are_exact(
    run: Callable[[list[NewRows]], Tensor | None], num_embeddings: int, max_length: int
) -> bool:
    """Try whether the bits of some rows depend on how many are computed together.

    Parameters
    ----------
    run
        Logits of a batch, cut as by `exact_forwards`.
    num_embeddings, max_length
        Of the model.
    """
    ids = [(7919 * i + 13) % num_embeddings for i in range(_PAST + sum(_TRIED))]
    text = torch.tensor(ids[:max_length])
    cache = SequenceCache(len(text))

    def rows(past: int, count: int) -> Tensor:
        tokens = text[past : past + count]
        logits = run([NewRows(cache, past, tokens, len(tokens))])
        return text.new_zeros(0) if logits is None else logits

    rows(0, _PAST)
    together = rows(_PAST, sum(_TRIED))
    starts = [_PAST + sum(_TRIED[:i]) for i in range(len(_TRIED))]
    parts = [rows(*each) for each in zip(starts, _TRIED, strict=True) if each[0] < len(text)]
    return not parts or torch.equal(together, torch.cat(parts))
