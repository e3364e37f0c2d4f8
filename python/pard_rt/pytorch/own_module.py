"""Decoders in plain PyTorch: a module that takes its attention as an argument (docs/models.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pard_rt.errors import InvalidArgumentError, ModelError
from pard_rt.models.checkpoint import LoadedModel, loaded_from
from pard_rt.models.facts import facts_of, require_mask_token
from pard_rt.models.options import OpenOptions
from pard_rt.pytorch.own_seam import REMEDY, SHAPE, OwnSeam
from pard_rt.pytorch.seam import Seam


class Attend(Protocol):
    """The attention of a forward: each row sees its own sequence, up to and with itself."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Keep the new keys and values of a layer, and attend to all there are.

        Parameters
        ----------
        layer
            Its number; each layer asks once in a forward.
        query
            [1, R, num_heads, head_dim], rotated where the model rotates.
        key, value
            [1, R, num_kv_heads, head_dim], of the same dtype; num_kv_heads divides num_heads, and
            neighbouring query heads share one.
        scale
            Of the scores; ``head_dim ** -0.5`` by default.
        sliding_window
            A row sees this many positions, its own included.
        softcap
            Scores become ``tanh(score / softcap) * softcap``.
        sinks
            [num_heads], one extra logit per head.

        Returns
        -------
        Tensor
            [1, R, num_heads, head_dim]
        """
        ...


class DecoderModule(Protocol):
    """What `wrap` takes: an ``nn.Module`` of this shape.

    It keeps no cache. Rows of several sequences lie end to end, so what a row becomes may depend on
    its token, its position and what `attend` returns for it, and on nothing else.
    """

    def __call__(self, input_ids: Tensor, position_ids: Tensor, attend: Attend, /) -> Tensor:
        """Run R new tokens.

        Parameters
        ----------
        input_ids, position_ids
            int64 [1, R]: tokens, and where each stands in its sequence.
        attend
            What every layer calls instead of an attention of its own.

        Returns
        -------
        Tensor
            Hidden rows [1, R, C].
        """
        ...

    def lm_head(self, hidden: Tensor, /) -> Tensor:
        """Map those hidden rows that are asked for, [n, C], to logits [n, vocab_size]."""
        ...


def wrap(
    module: DecoderModule | PreTrainedModel,
    *,
    max_length: int | None = None,
    tokenizer: PreTrainedTokenizerBase | Tokenizer | None = None,
    num_embeddings: int | None = None,
    eos_token_ids: Iterable[int] | None = None,
    mask_token_id: int | None = None,
    name: str | None = None,
) -> LoadedModel:
    """Turn a decoder in memory into something that `Generator` takes as a target or a draft.

    Parameters
    ----------
    module
        An ``nn.Module`` as `DecoderModule` says, on the device it is to run on, or a model of
        transformers. It is put in eval mode. The layers and heads of the former are seen by running
        it once.
    max_length
        Most positions a sequence may have, 2 or more. A model of transformers has a limit of its
        own, which is the default.
    tokenizer
        Of transformers, or a `tokenizers.Tokenizer`; without one, prompts are token ids.
    num_embeddings
        Token ids a module of your own can be fed; by default as many as a row has logits.
    eos_token_ids
        What ends a text; by default the tokenizer's ``eos_token_id``, where it has one, or what
        the configurations of a model of transformers say.
    mask_token_id
        A parallel draft's mask token.
    name
        What messages call it; by default its class.

    Raises
    ------
    ModelError
        The module cannot be run like this. Whether its rows are right is tried when it is opened.
    InvalidArgumentError
        Another argument does not fit it.

    Examples
    --------
    See docs/models.md for a module.

    >>> target = wrap(module, max_length=1024, tokenizer=tokenizer)  # doctest: +SKIP
    >>> pard_rt.Generator(target).generate("The rain")  # doctest: +SKIP
    """
    name = type(module).__name__ if name is None else name
    if tokenizer is not None and not isinstance(tokenizer, (PreTrainedTokenizerBase, Tokenizer)):
        raise InvalidArgumentError(
            f"The tokenizer of {name} cannot be used",
            "one of transformers, a tokenizers.Tokenizer, or None",
            type(tokenizer).__name__,
            "Leave it out, and pass token ids.",
        )
    if isinstance(module, PreTrainedModel):
        options = OpenOptions(
            max_length=max_length, mask_token_id=mask_token_id, tokenizer=tokenizer
        )
        loaded = loaded_from(module, options, name)
        if eos_token_ids is None:
            return loaded
        return replace(loaded, facts=replace(loaded.facts, eos_token_ids=tuple(eos_token_ids)))
    _require_decoder(name, module)
    if max_length is None:
        raise InvalidArgumentError(
            f"The max_length of {name} is missing", "at least 2", "None", REMEDY
        )
    vocab_size = OwnSeam(module, name, 1).vocab_size()
    known = vocab_size if num_embeddings is None else num_embeddings
    for what, value, least in (("max_length", max_length, 2), ("num_embeddings", known, 1)):
        if value < least:
            raise InvalidArgumentError(
                f"The {what} of {name} is out of range", f"at least {least}", str(value), REMEDY
            )
    own_eos = getattr(tokenizer, "eos_token_id", None)
    ends = () if own_eos is None else (own_eos,)
    facts = facts_of(
        name,
        tokenizer,
        vocab_size=vocab_size,
        max_length=max_length,
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        eos_token_ids=tuple(ends if eos_token_ids is None else eos_token_ids),
        mask_token_id=None if mask_token_id is None else require_mask_token(mask_token_id, known),
    )
    return _OwnModel(module, None, tokenizer, facts, known)


def _require_decoder(name: str, module: Any) -> None:
    if not isinstance(module, nn.Module):
        actual = "no nn.Module"
    elif not callable(getattr(module, "lm_head", None)):
        actual = "no lm_head"
    elif len(devices := sorted({str(each.device) for each in module.parameters()})) != 1:
        actual = f"parameters on {' and '.join(devices) or 'no device'}"
    else:
        return
    raise ModelError(f"{name} cannot be wrapped", SHAPE, actual, REMEDY)


@dataclass(frozen=True)
class _OwnModel(LoadedModel):
    num_embeddings: int

    @property
    def seam(self) -> Seam:
        return OwnSeam(self.module, self.facts.name, self.num_embeddings)
