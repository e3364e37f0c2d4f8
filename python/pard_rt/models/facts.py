"""What decoding and export need to know of a model besides its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard_rt._core import TokenBytes
from pard_rt.errors import InvalidArgumentError, ModelError
from pard_rt.models.fields import Fields
from pard_rt.vocabulary import count_tokens, try_token_bytes

_MASK_TOKEN_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")


@dataclass(frozen=True)
class ModelFacts:
    """What decoding and export need to know of a model besides its weights."""

    name: str
    vocab_size: int  # ids below can be fed
    num_tokens: int  # ids below are the tokenizer's; rows from there on are padding
    token_bytes: TokenBytes | None  # what the ids stand for, if the tokenizer tells
    max_length: int  # most positions a sequence may have
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    mask_token_id: int | None  # the parallel draft's mask token
    head_tokens: tuple[int, ...] = ()  # of every logit, rising; empty: of all tokens


def facts_of(
    name: str,
    tokenizer: Any,
    *,
    vocab_size: int,
    max_length: int,
    bos_token_id: int | None,
    eos_token_ids: tuple[int, ...],
    mask_token_id: int | None,
) -> ModelFacts:
    """Put a model's facts together with what its tokenizer says.

    A tokenizer may know more tokens than there are logits, such as a pad token that was added
    without resizing the embedding: only using one is an error.
    """
    num_tokens = vocab_size
    if tokenizer is not None:
        num_tokens = min(count_tokens(tokenizer) or vocab_size, vocab_size)
    return ModelFacts(
        name=name,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        token_bytes=None if tokenizer is None else try_token_bytes(tokenizer, num_tokens),
        max_length=max_length,
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        mask_token_id=mask_token_id,
    )


def read_mask_token(config: Fields, embedding_rows: int) -> int | None:
    """Find a parallel draft's mask token id; None for a model that is no parallel draft.

    It is ``pard_token``, ``ptd_token_id``, ``mask_token_id`` or ``dflash_config.mask_token_id`` of
    the configuration, the first that is set.

    Raises
    ------
    ModelError
        The id is outside the embedding, or the draft is a PARD-2 one.
    """
    if (config.text("spd_type") or "").lower() == "pard2":
        raise ModelError(
            "A PARD-2 draft needs its projection of target states, which the module lacks",
            'spd_type "pard"',
            'spd_type "pard2"',
            "Use a PARD draft.",
        )
    for key in _MASK_TOKEN_KEYS:
        if (token := config.token(key, embedding_rows)) is not None:
            return token
    dflash = config.object("dflash_config")
    return None if dflash is None else dflash.token("mask_token_id", embedding_rows)


def require_mask_token(token: int, embedding_rows: int) -> int:
    """Return a mask token that the caller names.

    Raises
    ------
    InvalidArgumentError
        It is outside the embedding.
    """
    if not 0 <= token < embedding_rows:
        raise InvalidArgumentError(
            "The mask token is outside the draft's embedding",
            f"mask_token_id in 0..{embedding_rows - 1}",
            str(token),
            "Pass the mask_token_id the draft was trained with.",
        )
    return token


def read_eos_tokens(
    config: Fields, generation: Fields | None, vocab_size: int, fallback: int | None
) -> tuple[int, ...]:
    """Return the tokens that end a text: generation_config's, then the configuration's.

    The `fallback`, a tokenizer's own, is for a model that names none.

    Raises
    ------
    ModelError
        An id is outside the vocabulary.
    """
    named = () if generation is None else generation.tokens("eos_token_id", vocab_size)
    named += config.tokens("eos_token_id", vocab_size)
    if not named and fallback is not None and 0 <= fallback < vocab_size:
        named = (fallback,)
    return tuple(dict.fromkeys(named))


def read_generation_config(folder: Path) -> Fields | None:
    """Read a folder's generation_config.json; None where there is none.

    Raises
    ------
    FolderError
        It is damaged.
    """
    file = folder / "generation_config.json"
    return Fields.read(file) if file.is_file() else None


def read_sampling(generation: Fields | None, model: str) -> dict[str, Any]:
    """Return how a model's makers sample it, as options of `Generator.generate`.

    As in transformers, a model is greedy unless ``do_sample`` is true.

    Raises
    ------
    InvalidArgumentError
        The model has no generation config.
    ModelError
        A field is of the wrong type, or out of range.
    """
    if generation is None:
        raise InvalidArgumentError(
            f"{model} does not say how it is sampled",
            "a generation_config.json",
            "none",
            'Leave out sampling="model", and pass temperature, top_k or top_p.',
        )
    if not generation.flag("do_sample"):
        return {}
    fields = {
        "temperature": generation.number("temperature", 0, math.inf),
        "top_k": generation.integer("top_k", 0, 2**31 - 1),
        "top_p": generation.number("top_p", 0, 1),
        "min_p": generation.number("min_p", 0, 1),
    }
    return {"temperature": 1.0} | {k: v for k, v in fields.items() if v is not None}
