"""A draft's LM head without the tokens that its target hardly ever writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pard_rt.errors import Notice, notify
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.training.documents import read_documents
from pard_rt.training.head_tokens import most_written
from pard_rt.training.loss import rows_of_head


def trim_head(loaded: LoadedModel, count: int, answers: Sequence[Path]) -> LoadedModel:
    """Leave a draft the logits of the tokens that occur most in answers, in place.

    Tokens that end texts, and other special ones, always stay. The draft still reads all tokens.

    Parameters
    ----------
    loaded
        The draft.
    count
        Tokens to keep.
    answers
        Files that the target wrote: see `read_records`. Of conversations the answers count.

    Returns
    -------
    LoadedModel
        The same module, with facts that say which tokens its logits are of.

    Raises
    ------
    InvalidArgumentError
        There are fewer tokens, or more special ones; or the answers cannot be read.

    Warns
    -----
    Notice
        What share of the answers the draft can propose.
    """
    facts, module = loaded.facts, loaded.module
    documents = read_documents(answers, loaded.tokenizer, max_length=1 << 30)
    kept, share = most_written(documents, count, loaded.tokenizer, facts)
    total = sum(int(document.learnt.sum()) for document in documents)
    notify(
        Notice(
            f"The draft proposes {count} of its {facts.num_tokens} tokens",
            f"They are {100 * share:.1f} % of the {total} tokens of the answers.",
            "The text stays the target's: what is never proposed costs rounds.",
        )
    )
    module.config.tie_word_embeddings = False
    module.set_output_embeddings(rows_of_head(module.get_output_embeddings(), kept))
    return replace(loaded, facts=replace(facts, head_tokens=tuple(kept.tolist())))
