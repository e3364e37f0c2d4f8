"""Documents to train on: texts and conversations, as token ids and what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import InvalidArgumentError
from pard_rt.training.records import (
    Record,
    chat_ids,
    read_records,
    require_chat_template,
    suiting_the_template,
)


@dataclass(frozen=True)
class Document:
    """Token ids, and which of them are to be predicted: int64 and bool, [n]."""

    tokens: Tensor
    learnt: Tensor


@dataclass(frozen=True)
class Pack:
    """Documents laid end to end: what one step sees."""

    tokens: Tensor  # int64 [N]
    learnt: Tensor  # bool [N]
    lengths: list[int]


def read_documents(
    paths: Sequence[str | Path], tokenizer: Any, *, max_length: int
) -> list[Document]:
    """Read documents, longer ones in pieces of `max_length` tokens.

    Parameters
    ----------
    paths
        ``.jsonl`` files, a line of which is ``{"messages": [..]}`` (a conversation, through the
        tokenizer's chat template: what the assistant says is learnt) or ``{"text": ".."}``; any
        other file is one text.
    tokenizer
        Of the model.
    max_length
        At least 2.

    Raises
    ------
    InvalidArgumentError
        A file is missing or cannot be read, a conversation has no template, or there is nothing to
        learn in all of it.
    """
    found: list[Document] = []
    for record in read_records(paths):
        document = _document(record, tokenizer)
        for start in range(0, len(document.tokens), max_length):
            piece = slice(start, start + max_length)
            if document.learnt[piece][1:].any():
                found.append(Document(document.tokens[piece], document.learnt[piece]))
    if not found:
        raise InvalidArgumentError(
            "There is nothing to learn in the data",
            "texts of two tokens or more, or conversations in which an assistant speaks",
            ", ".join(map(str, paths)) or "no files",
            "Name files that hold some.",
        )
    return found


def _document(record: Record, tokenizer: Any) -> Document:
    if isinstance(record.content, str):
        return _of_text(record.content, tokenizer)
    require_chat_template(tokenizer, record.where)
    with suiting_the_template(record.where):
        return _of_messages(record.content, tokenizer)


def _of_text(text: str, tokenizer: Any) -> Document:
    ids = list(tokenizer(text).input_ids)
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    tokens = torch.tensor(ids, dtype=torch.int64)
    return Document(tokens, torch.ones(len(tokens), dtype=torch.bool))


def _of_messages(messages: list[Any], tokenizer: Any) -> Document:
    """Learn what lies between the cue for the assistant and the end of what it says."""
    tokens = chat_ids(tokenizer, messages, cue=False)
    learnt = torch.zeros(len(tokens), dtype=torch.bool)
    for number, message in enumerate(messages):
        if message.get("role") != "assistant" or number == 0:  # what comes first answers nothing
            continue
        before = chat_ids(tokenizer, messages[:number], cue=True)
        after = chat_ids(tokenizer, messages[: number + 1], cue=False)
        if tokens[: len(after)] != after or after[: len(before)] != before:
            # Templates that rewrite earlier turns: only the last answer can be found in the whole.
            if number + 1 < len(messages):
                continue
            before = _common(before, tokens)
        learnt[len(before) : len(after)] = True
    return Document(torch.tensor(tokens, dtype=torch.int64), learnt)


def _common(one: list[int], other: list[int]) -> list[int]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def digest_documents(documents: Sequence[Document]) -> str:
    """Digest of their tokens, in their order, and of what of them is to be learnt."""
    digest = sha256()
    for document in documents:
        digest.update(f"{len(document.tokens)} ".encode())
        digest.update(document.tokens.numpy().tobytes() + document.learnt.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def pack_documents(documents: Sequence[Document], size: int, seed: int) -> list[Pack]:
    """Shuffle documents and lay them end to end, at most `size` tokens together."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    packs: list[Pack] = []
    held: list[Document] = []

    def close() -> None:
        if held:
            packs.append(
                Pack(
                    torch.cat([document.tokens for document in held]),
                    torch.cat([document.learnt for document in held]),
                    [len(document.tokens) for document in held],
                )
            )
            held.clear()

    for index in order:
        document = documents[index]
        if sum(len(other.tokens) for other in held) + len(document.tokens) > size:
            close()
        held.append(document)
    close()
    return packs


class Epochs:
    """The packs of a training, step by step; every epoch lays the documents out anew.

    Parameters
    ----------
    documents
        What is seen in an epoch.
    tokens_per_step
        Of a pack, at most.
    seed
        Of their order.
    """

    def __init__(self, documents: Sequence[Document], tokens_per_step: int, seed: int) -> None:
        self._documents = documents
        self._tokens_per_step = tokens_per_step
        self._seed = seed
        self._epoch, self._packs = 0, self._lay_out(0)
        self.num_steps = len(self._packs)  # of an epoch

    def __call__(self, step: int) -> Pack:
        """Return what a step sees."""
        epoch, place = divmod(step, self.num_steps)
        if epoch != self._epoch:
            self._epoch, self._packs = epoch, self._lay_out(epoch)
        return self._packs[place % len(self._packs)]  # some have a pack more or less

    def _lay_out(self, epoch: int) -> list[Pack]:
        return pack_documents(self._documents, self._tokens_per_step, self._seed + epoch)
