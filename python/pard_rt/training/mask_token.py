"""Which token stands for what a draft has not seen yet."""

from __future__ import annotations

import torch

from pard_rt.errors import InvalidArgumentError
from pard_rt.models.checkpoint import LoadedModel


def choose_mask_token(loaded: LoadedModel, given: int | None, used: set[int]) -> tuple[int, str]:
    """Choose the mask token: the one given, the model's own, or an id that no text has.

    Ids behind the tokenizer's are rows of padding that nothing has trained; where there are none, a
    reserved token serves, and else the embedding grows by a row.

    Parameters
    ----------
    loaded
        The model, whose embedding may grow.
    given
        What the user asks for.
    used
        Ids that occur in the data.

    Raises
    ------
    InvalidArgumentError
        The token given is outside the embedding, or occurs in the data.
    """
    rows = loaded.module.get_input_embeddings().weight.shape[0]
    if given is not None:
        if not 0 <= given < rows or given in used:
            raise InvalidArgumentError(
                "The mask token cannot be used",
                f"an id in 0..{rows - 1} that no document has",
                f"{given}, which {'occurs in the data' if given in used else 'is outside'}",
                "Leave it out: one is chosen.",
            )
        return given, "as asked for"
    own = loaded.facts.mask_token_id
    if own is not None and own not in used:
        return own, "the model's own"
    vocabulary = loaded.tokenizer.get_vocab() if loaded.tokenizer is not None else {}
    known = max(vocabulary.values(), default=-1) + 1
    if known < rows:
        return known, f"the first of {rows - known} rows that pad the embedding"
    reserved = sorted(
        token for text, token in vocabulary.items()
        if ("reserved" in text or "unused" in text) and token not in used
    )  # fmt: skip
    if reserved:
        return reserved[-1], "a reserved token of the tokenizer"
    loaded.module.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        embedding = loaded.module.get_input_embeddings().weight
        embedding[rows] = embedding[:rows].float().mean(dim=0).to(embedding.dtype)
    return rows, "a new row of the embedding: no id was free"
