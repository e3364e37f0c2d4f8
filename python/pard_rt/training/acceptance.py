"""What a draft in training is worth: its tokens per round with a target, on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

import torch
from torch import Tensor

from pard_rt._core import Decoder, ParallelDrafter
from pard_rt.errors import InvalidArgumentError
from pard_rt.models import OpenedModel
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.torch_model import TorchModel
from pard_rt.training.attention import use_chain_attention
from pard_rt.training.documents import Document
from pard_rt.training.loss import rows_of_head
from pard_rt.training.pruned import MaskRow

NUM_HELD_OUT = 8
_NEW_TOKENS = 64


def hold_out(documents: Sequence[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """Set some documents apart: those to train on, and those held out.

    Whole records are set apart, and the first piece of each is held out, so that no conversation is
    learnt in part and measured in part. Data of fewer records is divided by its pieces.

    Raises
    ------
    InvalidArgumentError
        There would be fewer left than are set apart.
    """
    if len(documents) < 2 * NUM_HELD_OUT:
        raise InvalidArgumentError(
            "There are too few documents to hold some out for the target",
            f"at least {2 * NUM_HELD_OUT}",
            str(len(documents)),
            "Give more data, a smaller max_length, or no target.",
        )
    pieces = [[document] for document in documents]
    records = [list(group) for _, group in groupby(documents, key=lambda each: each.record)]
    groups = records if len(records) >= 2 * NUM_HELD_OUT else pieces
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = set(order[:NUM_HELD_OUT])
    kept = [group for number, group in enumerate(groups) if number not in held_out]
    return list(chain.from_iterable(kept)), [groups[number][0] for number in sorted(held_out)]


@dataclass(frozen=True)
class MeasuredAcceptance:
    """What a draft is worth to a target.

    Attributes
    ----------
    target
        Name of the target.
    num_speculative_tokens
        K, that of training.
    tokens_per_round
        Committed tokens over rounds.
    held
        [i]: share of the rounds with i + 1 proposals or more in which the first i + 1 held.
    """

    target: str
    num_speculative_tokens: int
    tokens_per_round: float
    held: list[float]


class Acceptance:
    """Decodes the target's greedy text with the draft as it is.

    Parameters
    ----------
    target
        The model that the draft is for.
    draft
        The model in training; it attends through chains again when it has been tried.
    documents
        The prompt of a document ends where there is something to learn, or in its middle.
    mask_token_id
        The mask token it is trained with.
    num_speculative_tokens
        K.
    head_tokens
        The only tokens that the draft is to propose, int64 [n], rising.
    """

    def __init__(
        self,
        target: OpenedModel,
        draft: LoadedModel,
        documents: Sequence[Document],
        mask_token_id: int,
        num_speculative_tokens: int,
        head_tokens: Tensor | None = None,
    ) -> None:
        vocab_size = draft.module.get_output_embeddings().weight.shape[0]  # it may have grown
        self._target = target
        head = () if head_tokens is None else tuple(head_tokens.tolist())
        facts = replace(draft.facts, vocab_size=vocab_size, head_tokens=head)
        self._draft = replace(draft, facts=facts)
        self._head_tokens = head_tokens
        self._mask = mask_token_id
        self._k = num_speculative_tokens
        limit = min(target.info.max_length, draft.facts.max_length)
        self._new_tokens = min(_NEW_TOKENS, limit // 2)
        longest = limit - self._new_tokens
        self._prompts = [_prompt(document)[:longest] for document in documents]

    def __call__(self) -> MeasuredAcceptance:
        """Decode, and return what came of it.

        Raises
        ------
        IncompatibleModelsError
            The draft does not fit the target.
        """
        module = self._draft.module
        embedding, whole = module.get_input_embeddings(), module.get_output_embeddings()
        if isinstance(embedding, MaskRow):
            embedding.merged()  # a tied head has the row as it is now
        try:
            if self._head_tokens is not None:
                module.set_output_embeddings(rows_of_head(whole, self._head_tokens))
            drafter = ParallelDrafter(TorchModel(self._draft), self._mask)
            decoder = Decoder(self._target.model, drafter, num_speculative_tokens=self._k)
            for prompt in self._prompts:
                decoder.add(
                    prompt,
                    max_new_tokens=self._new_tokens,
                    eos_token_ids=list(self._target.eos_token_ids),
                )
            decoder.run()
        finally:
            module.set_output_embeddings(whole)
            use_chain_attention(module)
            module.train()
        counts = decoder.counts
        return MeasuredAcceptance(
            self._target.info.name,
            self._k,
            counts.mean_tokens_per_round,
            [a / d for a, d in zip(counts.accepted_at, counts.drafted_at, strict=True)],
        )


def _prompt(document: Document) -> list[int]:
    learnt = int(document.learnt.int().argmax())
    end = learnt if learnt > 0 else max(1, len(document.tokens) // 2)
    tokens: list[int] = document.tokens[:end].tolist()
    return tokens
