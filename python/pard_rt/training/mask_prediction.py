"""Parallel mask prediction with conditional drop: what a parallel draft is trained on.

Sub-task d in 1..K predicts the token d ahead. Sub-task 1 is next-token prediction over the real
text; sub-task d > 1 puts mask tokens in. The query of sub-task d that starts from real token s, its
*anchor*, stands at position s + d - 1 and names token s + d. It sees the real tokens up to s and
the mask tokens of its own chain, which are those of the same anchor up to itself:

    position        s        s+1      s+2
    real tokens    t(s)
    chain of s               [M]      [M]
    sub-task         1         2        3
    names          t(s+1)   t(s+2)   t(s+3)

This is what decoding does: the last K rows of `t(s) [M] .. [M]` are K proposals. Conditional drop
(COD) keeps fewer anchors the deeper the sub-task, and a chain it keeps it keeps from the start.
Documents packed into one sequence know nothing of each other.
Method: PARD, arXiv 2504.18583, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pard_rt.errors import InvalidArgumentError

IGNORED = -100  # the label of a row that names nothing, as torch's cross_entropy has it


@dataclass(frozen=True)
class MaskPrediction:
    """Settings of parallel mask prediction.

    Parameters
    ----------
    num_subtasks
        K in training; decoding may use more.
    retention
        r: sub-task d keeps the share ``max(r ** (d - 1), min_retention)`` of the anchors. 1 is no
        conditional drop.
    min_retention
        The least share kept.

    Raises
    ------
    InvalidArgumentError
        A setting is out of range.
    """

    num_subtasks: int = 8
    retention: float = 0.7
    min_retention: float = 0.2

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num_subtasks", self.num_subtasks, 1, 64),
            ("retention", self.retention, 0, 1),
            ("min_retention", self.min_retention, 0, 1),
        ):
            if not low <= value <= high:
                raise InvalidArgumentError(
                    f"{name} is out of range", f"{low} to {high}", str(value), "Choose one inside."
                )

    def num_kept(self, depth: int, num_anchors: int) -> int:
        """Anchors that sub-task `depth` keeps, of `num_anchors`."""
        return round(num_anchors * max(self.retention ** (depth - 1), self.min_retention))


@dataclass(frozen=True)
class Rows:
    """The rows of one training forward over N real tokens.

    Those come first, in their order; behind them the mask tokens, chain by chain in the order of
    their anchors. Each field has shape [M], on the CPU.
    """

    anchors: Tensor  # the last real token a row sees
    depths: Tensor  # its sub-task, 1..K
    firsts: Tensor  # the first token of its document
    ends: Tensor  # one behind the last

    @property
    def num_real(self) -> int:
        """N."""
        return int((self.depths == 1).sum())

    @property
    def positions(self) -> Tensor:
        """Where each row stands in its document."""
        return self.anchors - self.firsts + self.depths - 1

    def part(self, begin: int, end: int) -> Rows:
        """Rows of the documents that lie in the real tokens begin..end, as if they were alone."""
        inside = (self.anchors >= begin) & (self.anchors < end)
        anchors, depths, firsts, ends = (field[inside] for field in vars(self).values())
        return Rows(anchors - begin, depths, firsts - begin, ends - begin)

    def visible(self) -> Tensor:
        """Which row sees which, bool [M, M] indexed [query, key].

        Real tokens of its document up to its anchor, and its own chain up to itself. This is the
        definition; `pard_rt.training.attention` has the same without the square.
        """
        anchor, depth, first = self.anchors[:, None], self.depths[:, None], self.firsts[:, None]
        real = (self.depths == 1) & (self.anchors <= anchor) & (self.anchors >= first)
        chain = (self.anchors == anchor) & (self.depths <= depth)
        return real | chain

    def fill(self, tokens: Tensor, mask_token_id: int) -> Tensor:
        """Return the token ids to feed, [..., M], for real tokens [..., N]."""
        return torch.where(self.depths == 1, tokens[..., self.anchors], mask_token_id)

    def labels(self, tokens: Tensor) -> Tensor:
        """Return the tokens each row is to name, [..., M]; IGNORED behind a document's end."""
        ahead = self.anchors + self.depths
        inside = ahead < self.ends
        return torch.where(inside, tokens[..., ahead.clamp(max=tokens.shape[-1] - 1)], IGNORED)


def draw_rows(lengths: Sequence[int], settings: MaskPrediction, generator: torch.Generator) -> Rows:
    """Draw which mask tokens a training forward over documents of these lengths has.

    All anchors are ranked at random once; each sub-task keeps the first ones of that ranking, so a
    chain that reaches depth d has every depth before it. Chains that would name a token behind the
    end of their document stop there.
    """
    sizes = torch.tensor(lengths)
    last = sizes.cumsum(0)
    end = last.repeat_interleave(sizes)
    first = (last - sizes).repeat_interleave(sizes)
    ranking = torch.randperm(len(end), generator=generator)
    depth_of = torch.ones(len(end), dtype=torch.int64)  # the deepest sub-task of each anchor
    for depth in range(2, settings.num_subtasks + 1):
        depth_of[ranking[: settings.num_kept(depth, len(end))]] = depth
    room = end - torch.arange(len(end)) - 1
    num_masks = torch.minimum(depth_of, room).sub(1).clamp(min=0)
    anchors = torch.arange(len(end)).repeat_interleave(num_masks)
    begins = (num_masks.cumsum(0) - num_masks).repeat_interleave(num_masks)
    depths = torch.arange(len(anchors)) - begins + 2
    anchors = torch.cat([torch.arange(len(end)), anchors])
    return Rows(
        anchors,
        torch.cat([torch.ones(len(end), dtype=torch.int64), depths]),
        first[anchors],
        end[anchors],
    )
