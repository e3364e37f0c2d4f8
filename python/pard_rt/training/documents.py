"""Documents to train on: texts and conversations, as token ids and what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt.chat import ChatTemplate
from pard_rt.errors import InvalidArgumentError
from pard_rt.training.records import (
    Record,
    read_records,
    require_chat_template,
    suiting_the_template,
)


@dataclass(frozen=True)
class Document:
    """Token ids, which of them are to be predicted, and where they come from."""

    tokens: Tensor  # int64 [n]
    learnt: Tensor  # bool [n]
    record: int = 0  # its number in the data
    offset: int = 0  # learnt tokens of the record that lie before
    likely: Likely | None = None  # [learnt, K]


@dataclass(frozen=True)
class Likely:
    """Of tokens: what a target finds likeliest in their places, and how likely; at -inf nothing."""

    ids: Tensor  # int64 [.., K]
    logprobs: Tensor  # float32 [.., K]

    def take(self, rows: Tensor) -> Likely:
        """Return some rows."""
        return Likely(self.ids[rows], self.logprobs[rows])

    def spread(self, over: Tensor) -> Likely:
        """Lay rows at the places where a mask [N] is true; elsewhere there is nothing."""
        ids = torch.zeros(len(over), self.ids.shape[-1], dtype=torch.int64)
        logprobs = torch.full(ids.shape, -torch.inf)
        ids[over], logprobs[over] = self.ids, self.logprobs
        return Likely(ids, logprobs)


@dataclass(frozen=True)
class Pack:
    """Documents laid end to end: what one step sees."""

    tokens: Tensor  # int64 [N]
    learnt: Tensor  # bool [N]
    lengths: list[int]
    likely: Likely | None = None  # [N, K]


def read_documents(
    paths: Sequence[str | Path], tokenizer: Any, *, max_length: int
) -> list[Document]:
    """Read documents; longer ones come in pieces of at most `max_length` tokens.

    A text is cut anywhere. A conversation is cut before a question, so that no answer is learnt
    without the question before it.

    Parameters
    ----------
    paths
        Files: see `read_records`. A conversation goes through the tokenizer's chat template, and
        the assistant's answers are learnt.
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
    found = [
        document
        for number, record in enumerate(read_records(paths))
        for document in documents_of(record, number, tokenizer, max_length)
        if document.learnt[1:].any()
    ]
    if not found:
        raise InvalidArgumentError(
            "There is nothing to learn in the data",
            "texts of two tokens or more, or conversations in which an assistant speaks",
            ", ".join(map(str, paths)) or "no files",
            "Name files that hold some.",
        )
    return found


def documents_of(
    record: Record, number: int, tokenizer: Any, max_length: int
) -> Iterator[Document]:
    """Yield the documents of the record of this number: see `read_documents`."""
    if isinstance(record.content, str):
        yield from _of_text(record.content, number, tokenizer, max_length)
        return
    require_chat_template(tokenizer, record.where)
    with suiting_the_template(record.where):
        dialogues = list(_dialogues(record.content, tokenizer))
    offset = 0
    for text, answers in dialogues:
        tokens, places = _tokenize(text, answers, tokenizer)
        learnt = torch.zeros(len(tokens), dtype=torch.bool)
        for first, last in places:
            learnt[first:last] = True
        for piece in _pieces(places, max_length):
            before = offset + int(learnt[: piece.start].sum())
            yield Document(tokens[piece], learnt[piece], number, before)
        offset += int(learnt.sum())


def _of_text(text: str, number: int, tokenizer: Any, max_length: int) -> Iterator[Document]:
    ids = list(tokenizer(text).input_ids)
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    pieces = torch.split(torch.tensor(ids, dtype=torch.int64), max_length)
    for place, piece in enumerate(pieces):
        learnt = torch.ones(len(piece), dtype=torch.bool)
        yield Document(piece, learnt, number, place * max_length)


def _dialogues(
    messages: list[dict[str, Any]], tokenizer: Any
) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Render a conversation, and say between which characters of the text answers lie.

    An answer lies between the cue for the assistant and the end of what it says. Some templates
    write earlier answers otherwise than the last one, without their thinking for instance. Such an
    answer is not in the whole as the model wrote it, so it ends a text of its own.
    """
    template = ChatTemplate.of_tokenizer("the tokenizer", tokenizer)
    # What comes first answers nothing.
    left = [n for n, message in enumerate(messages) if n and message["role"] == "assistant"]
    ends = [template.render_turns(messages[: number + 1], cue=False) for number in left]
    begins = [template.render_turns(messages[:number], cue=True) for number in left]
    while ends:
        whole = ends[-1]
        answers, others = [], []
        for begin, end in zip(begins, ends, strict=True):
            if end is whole or (whole.startswith(end) and end.startswith(begin)):
                # The last one may begin otherwise than its cue, which some templates fill in.
                answers.append((_common(begin, end), len(end.rstrip())))
            else:
                others.append((begin, end))
        yield whole, answers
        begins, ends = [begin for begin, _ in others], [end for _, end in others]


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    differ = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _tokenize(
    text: str, answers: list[tuple[int, int]], tokenizer: Any
) -> tuple[Tensor, list[list[int]]]:
    """Return the tokens of a conversation, and of each answer the first one and the one after."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begins = torch.tensor([begin for begin, _ in encoded.offset_mapping], dtype=torch.int64)
    places: list[list[int]] = torch.searchsorted(begins, torch.tensor(answers)).tolist()
    return torch.tensor(encoded.input_ids, dtype=torch.int64), places


def _pieces(places: list[list[int]], max_length: int) -> Iterator[slice]:
    """Cut a conversation after answers, so that its pieces are short enough if they can be."""
    start = 0
    for number, (_, last) in enumerate(places):
        following = places[number + 1][1] if number + 1 < len(places) else None
        if following is None or following - start > max_length:
            yield slice(start, min(last, start + max_length))
            start = last


def digest_documents(documents: Sequence[Document]) -> str:
    """Digest of their tokens, in their order, of what of them is to be learnt, and from what."""
    digest = sha256()
    for document in documents:
        digest.update(f"{len(document.tokens)} ".encode())
        digest.update(document.tokens.numpy().tobytes() + document.learnt.numpy().tobytes())
        if document.likely is not None:
            digest.update(document.likely.ids.numpy().tobytes())
            digest.update(document.likely.logprobs.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def pack_documents(documents: Sequence[Document], size: int, seed: int) -> list[Pack]:
    """Shuffle documents and lay them end to end, at most `size` tokens together."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    packs: list[Pack] = []
    held: list[Document] = []

    def close() -> None:
        if held:
            learnt = torch.cat([document.learnt for document in held])
            packs.append(
                Pack(
                    torch.cat([document.tokens for document in held]),
                    learnt,
                    [len(document.tokens) for document in held],
                    _likely_of(held, learnt),
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


def _likely_of(documents: Sequence[Document], learnt: Tensor) -> Likely | None:
    """Lay the logits of documents end to end; where some have none, there is nothing."""
    k = max((each.likely.ids.shape[-1] for each in documents if each.likely), default=0)
    if not k:
        return None
    nothing = [
        each.likely or Likely(torch.zeros(n, k, dtype=torch.int64), torch.full((n, k), -torch.inf))
        for each in documents
        for n in [int(each.learnt.sum())]
    ]
    ids = torch.cat([each.ids for each in nothing])
    return Likely(ids, torch.cat([each.logprobs for each in nothing])).spread(learnt)


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
