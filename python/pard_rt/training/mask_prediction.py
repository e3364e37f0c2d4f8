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
Method: PARD, arXiv 2504.18583, section 3.
"""

from __future__ import annotations

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
    """The rows of one training forward over N real tokens: those first, then the mask tokens.

    Each field has shape [M], on the CPU.
    """

    anchors: Tensor  # the last real token a row sees
    depths: Tensor  # its sub-task, 1..K

    @property
    def positions(self) -> Tensor:
        """Where each row stands in the text."""
        return self.anchors + self.depths - 1

    def visible(self) -> Tensor:
        """Which row sees which, bool [M, M] indexed [query, key].

        Real tokens up to its anchor, and its own chain up to itself.
        """
        anchor, depth = self.anchors[:, None], self.depths[:, None]
        real = (self.depths == 1) & (self.anchors <= anchor)
        chain = (self.anchors == anchor) & (self.depths <= depth)
        return real | chain

    def fill(self, tokens: Tensor, mask_token_id: int) -> Tensor:
        """Return the token ids to feed, [B, M], for texts [B, N]."""
        return torch.where(self.depths == 1, tokens[:, self.anchors], mask_token_id)

    def labels(self, tokens: Tensor) -> Tensor:
        """Return the tokens each row is to name, [B, M]; IGNORED behind the end of a text."""
        ahead = self.anchors + self.depths
        inside = ahead < tokens.shape[1]
        return torch.where(inside, tokens[:, ahead.clamp(max=tokens.shape[1] - 1)], IGNORED)


def draw_rows(length: int, settings: MaskPrediction, generator: torch.Generator) -> Rows:
    """Draw which mask tokens a training forward over `length` real tokens has.

    Anchors are ranked at random once; each sub-task keeps the first ones of that ranking, so a
    chain that reaches depth d has every depth before it. Chains that would name a token behind the
    end of the text stop there.
    """
    ranking = torch.randperm(length, generator=generator)
    anchors, depths = [torch.arange(length)], [torch.ones(length, dtype=torch.int64)]
    for depth in range(2, settings.num_subtasks + 1):
        kept = ranking[: settings.num_kept(depth, length)]
        kept = kept[kept + depth < length]
        anchors.append(kept)
        depths.append(torch.full_like(kept, depth))
    return Rows(torch.cat(anchors), torch.cat(depths))
