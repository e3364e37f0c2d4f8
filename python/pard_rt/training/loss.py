"""The loss of parallel mask prediction, with what every sub-task costs and gets right."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from pard_rt.training.attention import plan_blocks
from pard_rt.training.documents import Likely, Pack
from pard_rt.training.mask_prediction import IGNORED, MaskPrediction, Rows, draw_rows
from pard_rt.training.pruned import MaskRow
from pard_rt.training.workers import Workers

_LOGIT_ROWS = 1024  # of one piece of the LM head: a vocabulary is wide


class MaskPredictionLoss:
    """Losses of a pack's parts, which sum to the mean over the rows that name a token to be learnt.

    Parameters
    ----------
    module
        A transformers model that attends through chains (`use_chain_attention`).
    settings
        K in training and conditional drop.
    mask_token_id
        What mask tokens are fed as.
    workers
        Each takes its share of a pack's documents.
    tokens_per_forward
        A share of more real tokens takes several forwards; documents are not cut.
    dtype
        Of the computation where it is narrower than the weights.
    distill
        Where a pack has logits of the target: their share of the loss, beside the tokens'.
    head_tokens
        The only tokens that are learnt, int64 [n], rising, of a module whose LM head is frozen.
    """

    def __init__(
        self,
        module: Any,
        settings: MaskPrediction,
        mask_token_id: int,
        *,
        workers: Workers | None = None,
        tokens_per_forward: int = 1 << 24,
        dtype: torch.dtype = torch.float32,
        distill: float = 0.0,
        head_tokens: Tensor | None = None,
    ) -> None:
        self._module = module
        self._settings = settings
        self._mask = mask_token_id
        self._workers = workers or Workers()
        self._tokens_per_forward = tokens_per_forward
        self._dtype = dtype
        self._distill = distill
        self._head = module.get_output_embeddings()
        embedding = module.get_input_embeddings()
        is_tied = self._head.weight is embedding.weight
        self._tied = embedding if is_tied and isinstance(embedding, MaskRow) else None
        if not self._head.weight.requires_grad:  # then it need not be rounded anew in every piece
            rows = slice(None) if head_tokens is None else head_tokens.to(module.device)
            self._head = rows_of_head(self._head, rows).to(dtype)
        self._columns: Tensor | None = None  # of the tokens, in the logits
        if head_tokens is not None:
            self._columns = torch.full((self._module.config.vocab_size,), IGNORED)
            self._columns[head_tokens] = torch.arange(len(head_tokens))
        self._mask_column = mask_token_id if self._columns is None else self._columns[mask_token_id]
        # Of every sub-task: its loss, how many of its rows named the right token, how many rows.
        self.measured = torch.zeros(
            3, settings.num_subtasks, dtype=torch.float64, device=module.device
        )

    def __call__(
        self, pack: Pack, generator: torch.Generator, *, next_tokens_alone: bool = False
    ) -> Iterator[Tensor]:
        """Draw the rows of a pack, the same in every worker, and give the losses of this one's."""
        settings = MaskPrediction(1) if next_tokens_alone else self._settings
        rows = draw_rows(pack.lengths, settings, generator)
        to_name = torch.where(pack.learnt, pack.tokens, IGNORED)
        if self._columns is not None:
            to_name = torch.where(pack.learnt, self._columns[pack.tokens], IGNORED)
        num_named = max(1, int((rows.labels(to_name) != IGNORED).sum()))
        count = max(self._workers.size, -(-len(to_name) // self._tokens_per_forward))
        for begin, end in cut(pack.lengths, count)[self._workers.rank :: self._workers.size]:
            if begin < end:
                yield self._sum(rows.part(begin, end), pack, to_name, begin, end) / num_named

    def _sum(self, rows: Rows, pack: Pack, to_name: Tensor, begin: int, end: int) -> Tensor:
        device = self._module.device
        tokens = pack.tokens[begin:end]
        labels = rows.labels(to_name[begin:end])
        named = (labels != IGNORED).nonzero()[:, 0]
        places = rows.labels(torch.arange(begin, end))[named]
        labels, depths = labels[named].to(device), rows.depths[named].to(device)
        narrow = self._dtype != torch.float32
        with torch.autocast(torch.device(device).type, self._dtype, enabled=narrow):
            hidden = self._module.base_model(
                input_ids=rows.fill(tokens, self._mask)[None].to(device),
                position_ids=rows.positions[None].to(device),
                blocks=plan_blocks(rows, device),
                use_cache=False,
            ).last_hidden_state[0, named.to(device)]

            def piece(
                states: Tensor, named: Tensor, likely: Likely | None
            ) -> tuple[Tensor, Tensor]:
                logits = self._head(states)
                if self._tied is not None and self._mask_column != IGNORED:  # it learns as it reads
                    row = self._tied.row.to(states.dtype)
                    logits[:, self._mask_column] = states @ row
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                right = logits.detach().argmax(-1) == named
                losses = cross_entropy(logits, named, reduction="none")
                if likely is not None:
                    losses = torch.lerp(losses, _soft(logits, losses, likely), self._distill)
                return losses, right

            total: Tensor = hidden.sum() * 0.0  # of no rows, too, a loss with a gradient
            for start in range(0, len(labels), _LOGIT_ROWS):
                part = slice(start, start + _LOGIT_ROWS)
                likely = self._likely(pack, places[part])
                losses, right = checkpoint(
                    piece, hidden[part], labels[part], likely, use_reentrant=False
                )
                total = total + losses.sum()
                self._measure(depths[part], losses.detach(), right)
        return total

    def _likely(self, pack: Pack, places: Tensor) -> Likely | None:
        if pack.likely is None or not self._distill:
            return None
        likely = pack.likely.take(places)
        if self._columns is not None:
            columns = self._columns[likely.ids]
            known = torch.where(columns == IGNORED, -torch.inf, likely.logprobs)
            likely = Likely(columns.clamp(min=0), known)
        device = self._module.device
        return Likely(likely.ids.to(device), likely.logprobs.to(device))

    def _measure(self, depths: Tensor, losses: Tensor, right: Tensor) -> None:
        found = torch.stack([losses.double(), right.double(), torch.ones_like(losses).double()])
        self.measured.index_add_(1, depths - 1, found)


def rows_of_head(head: nn.Linear, rows: Tensor | slice) -> nn.Linear:
    """Return an LM head with some rows of another."""
    chosen = copy.deepcopy(head)
    chosen.weight = nn.Parameter(head.weight.detach()[rows].clone(), requires_grad=False)
    if head.bias is not None:
        chosen.bias = nn.Parameter(head.bias.detach()[rows].clone(), requires_grad=False)
    chosen.out_features = len(chosen.weight)
    return chosen


def _soft(logits: Tensor, losses: Tensor, likely: Likely) -> Tensor:
    """Cross entropy with the target's likeliest tokens; `losses` where these are not known."""
    shares = likely.logprobs.softmax(-1)  # NaN where nothing is known
    found = logits.log_softmax(-1).gather(-1, likely.ids)
    known = likely.logprobs.isfinite().any(-1)
    return torch.where(known, -(shares.nan_to_num() * found).sum(-1), losses)


def by_subtask(measured: Tensor) -> dict[str, list[float | None]]:
    """Loss (nats a row) and accuracy of every sub-task; None where it had no rows."""
    losses, right, rows = measured.tolist()

    def mean(sums: list[float]) -> list[float | None]:
        return [
            round(value / count, 5) if count else None
            for value, count in zip(sums, rows, strict=True)
        ]

    return {"subtask_loss": mean(losses), "subtask_accuracy": mean(right)}


def cut(lengths: list[int], count: int) -> list[tuple[int, int]]:
    """Cut documents laid end to end into `count` runs about as long as each other.

    Returns
    -------
    list of pairs
        First token of a run and the one behind its last. Some are empty where documents are few.
    """
    total = sum(lengths)
    cuts, behind, number = [0], 0, 1
    for length in lengths:
        # A document belongs to the run in which its middle lies.
        while number < count and behind + length / 2 >= number * total / count:
            cuts.append(behind)
            number += 1
        behind += length
    cuts += [total] * (count + 1 - len(cuts))
    return list(pairwise(cuts))
