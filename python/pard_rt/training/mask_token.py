"""Which token stands for what a draft has not seen yet."""

from __future__ import annotations

import re
from typing import Any

import torch

from pard_rt.errors import InvalidArgumentError, Notice, notify
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.vocabulary import special_token_ids

# <|reserved_special_token_5|>, <unused12>, [unused3], <|placeholder1|>, <|dummy_85|>, and
# [PAD151665], as GGUF names rows of padding: the token is in brackets, and no letter stands beside
# the word.
_SPARE = re.compile(
    r"[<\[](?:.*[^a-z])?(?:reserved|unused|placeholder|dummy|pad(?=\d))(?:[^a-z].*)?[>\]]",
    re.IGNORECASE | re.DOTALL,
)
_ROLES = ("system", "user", "assistant", "tool")


def choose_mask_token(loaded: LoadedModel, given: int | None, used: set[int]) -> tuple[int, str]:
    """Choose the mask token: the one given, the model's own, or an id that no text has.

    These are tried in order: a row of the embedding that no token has; a token whose name says that
    it is reserved or unused; a special token that the chat template does not write; a new row.

    Parameters
    ----------
    loaded
        The model, whose embedding may grow.
    given
        What the user asks for.
    used
        Ids that occur in the data.

    Returns
    -------
    token, reason
        The id, and why this one.

    Raises
    ------
    InvalidArgumentError
        The token given is outside the embedding, or occurs in the data.

    Warns
    -----
    Notice
        The embedding has grown.
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
    tokenizer = loaded.tokenizer
    tokens: dict[int, str] = (
        {} if tokenizer is None else {i: text for text, i in tokenizer.get_vocab().items()}
    )
    taken = used | {*loaded.facts.eos_token_ids, loaded.facts.bos_token_id}
    padding = [i for i in range(rows) if i not in tokens and i not in taken]
    if padding:
        return padding[0], f"the first of {len(padding)} rows of the embedding that no token has"
    free = sorted(i for i in tokens.keys() - taken if i < rows)
    spare = [i for i in free if _SPARE.fullmatch(tokens[i])]
    if spare:
        return spare[-1], f"{tokens[spare[-1]]}, a spare token of the tokenizer"
    special = {i: tokens[i] for i in special_token_ids(tokenizer) if i in tokens}
    needed = _ids_in_use(tokenizer, special)
    unneeded = [i for i in free if i in special and i not in needed]
    if unneeded:
        return unneeded[-1], f"{tokens[unneeded[-1]]}, a special token that nothing here uses"
    return _add_row(loaded, rows), "a new row of the embedding: no id was free"


def _ids_in_use(tokenizer: Any, special: dict[int, str]) -> set[int]:
    """Return ids of special tokens with a role of their own, and of those a chat is made of."""
    roles = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "pad_token_id")
    ids = {getattr(tokenizer, role, None) for role in (*roles, "cls_token_id", "mask_token_id")}
    template = getattr(tokenizer, "chat_template", None) or ""
    ids |= {i for i, text in special.items() if text in str(template)}
    for role in _ROLES if template else ():  # templates may put names together, like <|role|>
        messages = [{"role": "user", "content": "."}, {"role": role, "content": "."}]
        for cue in (False, True):
            try:
                ids |= set(
                    tokenizer.apply_chat_template(
                        messages, add_generation_prompt=cue, return_dict=False
                    )
                )
            except Exception:  # templates refuse roles in their own ways
                continue
    return {i for i in ids if i is not None}


def _add_row(loaded: LoadedModel, rows: int) -> int:
    notify(
        Notice(
            f"The embedding of {loaded.facts.name} grows by a row for the mask token",
            f"All of its {rows} rows stand for tokens that are in use.",
            "pard-rt decodes with such a draft; engines that want the draft's vocab_size to equal "
            "the target's, such as vLLM, will refuse it.",
            "If a token is unused in your texts, name it: --mask-token-id.",
        )
    )
    loaded.module.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        embedding = loaded.module.get_input_embeddings().weight
        embedding[rows] = embedding[:rows].float().mean(dim=0).to(embedding.dtype)
    return rows
