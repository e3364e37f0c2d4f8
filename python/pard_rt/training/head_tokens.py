"""Which tokens a draft is to propose: those that its target writes most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import require_range
from pard_rt.models.facts import ModelFacts
from pard_rt.training.documents import Document
from pard_rt.vocabulary import special_token_ids


def most_written(
    documents: Sequence[Document], count: int, tokenizer: Any, facts: ModelFacts
) -> tuple[Tensor, float]:
    """Choose the tokens that are learnt most often; special ones are always among them.

    Parameters
    ----------
    documents
        What the target wrote.
    count
        Tokens to choose.
    tokenizer, facts
        Of the draft.

    Returns
    -------
    ids, share
        int64 [count], rising; and the share of the learnt tokens that they are.

    Raises
    ------
    InvalidArgumentError
        There are fewer tokens, or more special ones.
    """
    written = torch.cat([document.tokens[document.learnt] for document in documents])
    counts = torch.bincount(written, minlength=facts.num_tokens)[: facts.num_tokens]
    special = {*special_token_ids(tokenizer), *facts.eos_token_ids}
    always = torch.tensor(sorted(token for token in special if token < facts.num_tokens))
    require_range(
        "head_tokens",
        count,
        max(1, len(always)),
        facts.num_tokens,
        f"The tokenizer has {len(always)} special tokens, which stay.",
    )
    rank = counts.clone()
    rank[always.long()] = int(counts.max()) + 1
    ids = torch.argsort(rank, descending=True, stable=True)[:count].sort().values
    return ids, float(counts[ids].sum() / counts.sum())
