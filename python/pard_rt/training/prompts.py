"""What a target is asked, record by record, for a data set in its own words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from pard_rt.chat import ChatTemplate
from pard_rt.errors import InvalidArgumentError, ModelError, require_range
from pard_rt.training.records import (
    Record,
    chat_ids,
    require_chat_template,
    suiting_the_template,
)

_ASKING = ("system", "developer", "user")
_TRIES = 64  # at a question or a beginning, until one is whole


@dataclass(frozen=True)
class Asked:
    """A prompt for the target, and how far it is to continue it."""

    prompt: list[int]
    max_new_tokens: int
    stop_token_ids: list[int] = field(default_factory=list)
    invents: bool = False  # it writes what a user would: sampled, not answered


@dataclass(frozen=True)
class Answer:
    """What the target wrote, and what that took."""

    text: str
    is_cut: bool  # by the limit of length
    tokens: int = 0
    rounds: int = 0  # 0: nobody knows


# Asks, takes the target's answer, and so on; returns the line.
Dialogue = Generator[Asked, Answer, dict[str, Any]]
Task = Callable[[], Dialogue]


class Prompter:
    """Turns records into tasks, one for every line there will be.

    Parameters
    ----------
    tokenizer
        Of the target, from transformers.
    max_length
        Positions a sequence of the target may have.
    prompt_tokens
        Of the pieces of a text: the target is given so many, or invents them.
    question_tokens
        Of a question that the target invents: the most.
    continued_tokens
        Of an answer, and of what continues a text: the most.

    Attributes
    ----------
    num_skipped
        Prompts that left no room for an answer: they have no task.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        prompt_tokens: int,
        question_tokens: int,
        continued_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._prompt_tokens = prompt_tokens
        self._question_tokens = question_tokens
        self._continued_tokens = continued_tokens
        self._piece_tokens = prompt_tokens + continued_tokens
        self.num_skipped = 0

    def tasks(self, records: Iterable[Record], inventions: int = 0) -> list[Task]:
        """Return the tasks of records, in order, and then those of what the target invents.

        With a chat template it invents questions and answers them; without one, the beginnings of
        texts, which it continues.

        Raises
        ------
        InvalidArgumentError
            A conversation cannot be asked, nothing can be invented, or there is nothing to ask.
        """
        found: list[Task] = []
        for record in records:
            for task in self._tasks_of(record):
                if self._fits(next(task()).prompt):
                    found.append(task)
                else:
                    self.num_skipped += 1
        if inventions:
            found += [self._invention()] * inventions
        if not found:
            raise InvalidArgumentError(
                "There is nothing to answer in the data",
                f"texts, or conversations with a user, of less than {self._max_length} tokens",
                f"{self.num_skipped} longer ones" if self.num_skipped else "no text at all",
                "Name files that hold some, or ask for questions.",
            )
        return found

    def _invention(self) -> Task:
        if not self._tokenizer.chat_template:
            return partial(self._invent_text, self._beginning_token())
        opening = self._template.open_user_turn()
        prompt = list(self._tokenizer(opening, add_special_tokens=False).input_ids)
        room = self._max_length - len(prompt)
        require_range("question_tokens", self._question_tokens, 1, room - 1)
        return partial(self._invent_question, prompt)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate.of_tokenizer("the target", self._tokenizer)

    @cached_property
    def _ends_of_turn(self) -> list[int]:
        """The token that the template puts after an answer: not all targets name it as an end."""
        known = self._tokenizer.get_added_vocab()
        end = self._template.end_of_turn(known)
        return [] if end is None else [known[end]]

    def _beginning_token(self) -> int:
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise InvalidArgumentError(
            "The target cannot begin a text",
            "a tokenizer with a token that begins or ends texts, or a chat template",
            "neither",
            "Name files with prompts in place of inventing them.",
        )

    def _fits(self, prompt: list[int]) -> bool:
        return len(prompt) < self._max_length

    def _tasks_of(self, record: Record) -> Iterator[Task]:
        if isinstance(record.content, str):
            for beginning in self._beginnings(record.content):
                yield partial(self._continue, beginning)
            return
        require_chat_template(self._tokenizer, record.where)
        runs = _runs(record.content, record.where)
        self._rehearse(runs, record.where)
        yield partial(self._converse, runs)

    def _converse(self, runs: list[list[dict[str, Any]]]) -> Dialogue:
        """Answer every run of messages, after the target's own answers to those before."""
        said: list[dict[str, Any]] = []
        for run in runs:
            prompt = chat_ids(self._tokenizer, said + run)
            if said and not self._fits(prompt):
                break
            answer = yield Asked(prompt, self._continued_tokens, self._ends_of_turn)
            said += [*run, {"role": "assistant", "content": _text_of(answer)}]
            if answer.is_cut:  # nobody asks on in the middle of an answer
                break
        return {"messages": said}

    def _continue(self, beginning: str) -> Dialogue:
        answer = yield Asked(list(self._tokenizer(beginning).input_ids), self._continued_tokens)
        return {"text": beginning + _text_of(answer)}

    def _invent_question(self, opening: list[int]) -> Dialogue:
        for _ in range(_TRIES):
            ends = self._ends_of_turn
            invented = yield Asked(opening, self._question_tokens, ends, invents=True)
            question = {"role": "user", "content": invented.text.strip()}
            if not invented.is_cut and question["content"] and self._is_answerable(question):
                return (yield from self._converse([[question]]))
        raise ModelError(
            "The target does not end the questions that it invents",
            f"one that ends within {self._question_tokens} tokens",
            f"none in {_TRIES} tries",
            "Raise question_tokens, or name files with questions.",
        )

    def _is_answerable(self, question: dict[str, Any]) -> bool:
        return self._fits(chat_ids(self._tokenizer, [question]))

    def _invent_text(self, begin: int) -> Dialogue:
        for _ in range(_TRIES):
            invented = yield Asked([begin], self._prompt_tokens, invents=True)
            if invented.is_cut:  # where it ended by itself there is nothing to continue
                return (yield from self._continue(_text_of(invented)))
        raise ModelError(
            "The target ends the texts that it begins at once",
            f"one of {self._prompt_tokens} tokens",
            f"none in {_TRIES} tries",
            "Lower prompt_tokens, or name files with texts.",
        )

    def _beginnings(self, text: str) -> Iterator[str]:
        """Yield the beginning of every piece; a last piece too short for one is left out."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = encoded.offset_mapping  # in characters: no piece splits one
        for first in range(0, len(offsets), self._piece_tokens):
            if first == 0 or first + self._prompt_tokens <= len(offsets):
                last = min(first + self._prompt_tokens, len(offsets)) - 1
                yield text[offsets[first][0] : offsets[last][1]]

    def _rehearse(self, runs: list[list[dict[str, Any]]], where: str) -> None:
        """Meet what the template has against a conversation before the target is asked anything."""
        answer = {"role": "assistant", "content": "."}
        answered = [message for run in runs[:-1] for message in (*run, answer)]
        with suiting_the_template(where):
            chat_ids(self._tokenizer, answered + runs[-1])


def _runs(messages: list[Any], where: str) -> list[list[dict[str, Any]]]:
    """Return what stands between the assistant's turns: runs in which a user speaks."""
    runs: list[list[dict[str, Any]]] = [[]]
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role == "assistant":
            if runs[-1]:
                runs.append([])
        elif role in _ASKING and isinstance(content, str):
            runs[-1].append(message)
        else:
            raise _unanswerable(where, str(message))
    runs = [run for run in runs if any(message["role"] == "user" for message in run)]
    if not runs:
        raise _unanswerable(where, "no turn of a user")
    return runs


def _unanswerable(where: str, actual: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{where} is a conversation that cannot be answered anew",
        f"texts of the roles {', '.join(_ASKING)} and assistant",
        actual[:80],
        "Mend the line, or leave it out: what a tool said answers what the target may not ask.",
    )


def _text_of(answer: Answer) -> str:
    """Return what was said; of a character cut in two at the end, nothing."""
    return answer.text.rstrip("\ufffd") if answer.is_cut else answer.text
