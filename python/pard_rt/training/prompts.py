"""What a target is asked, record by record, for a data set in its own words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

from pard_rt.errors import InvalidArgumentError
from pard_rt.outputs import Output
from pard_rt.training.records import (
    Record,
    chat_ids,
    require_chat_template,
    suiting_the_template,
)

# Gives a prompt's token ids, takes what the target says behind it, and so on; returns the line.
Dialogue = Generator[list[int], Output, dict[str, Any]]
Task = Callable[[], Dialogue]

_ASKING = ("system", "developer", "user")


class Prompter:
    """Turns records into tasks, one for every line there will be.

    Parameters
    ----------
    tokenizer
        Of the target, from transformers.
    max_length
        Positions a sequence of the target may have.
    prompt_tokens
        Of the pieces of a text: the target is given so many.
    continued_tokens
        Of the pieces of a text: the target writes at most so many in place of the others.

    Attributes
    ----------
    num_skipped
        Prompts that left no room for an answer: they have no task.
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int, prompt_tokens: int, continued_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._prompt_tokens = prompt_tokens
        self._piece_tokens = prompt_tokens + continued_tokens
        self.num_skipped = 0

    def tasks(self, records: Iterable[Record]) -> list[Task]:
        """Return the tasks of records, in order.

        Raises
        ------
        InvalidArgumentError
            A conversation cannot be asked, or there is nothing to ask at all.
        """
        found: list[Task] = []
        for record in records:
            for task in self._tasks_of(record):
                if self._fits(next(task())):
                    found.append(task)
                else:
                    self.num_skipped += 1
        if not found:
            raise InvalidArgumentError(
                "There is nothing to answer in the data",
                f"texts, or conversations with a user, of less than {self._max_length} tokens",
                f"{self.num_skipped} longer ones" if self.num_skipped else "no text at all",
                "Name files that hold some.",
            )
        return found

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
        """Answer every run of messages, behind the target's own answers to those before."""
        said: list[dict[str, Any]] = []
        for run in runs:
            prompt = chat_ids(self._tokenizer, said + run, cue=True)
            if said and not self._fits(prompt):
                break
            output = yield prompt
            said += [*run, {"role": "assistant", "content": _text_of(output)}]
            if output.finish_reason == "length":  # nobody asks on in the middle of an answer
                break
        return {"messages": said}

    def _continue(self, beginning: str) -> Dialogue:
        output = yield list(self._tokenizer(beginning).input_ids)
        return {"text": beginning + _text_of(output)}

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
            chat_ids(self._tokenizer, answered + runs[-1], cue=True)


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


def _text_of(output: Output) -> str:
    """Return what was said; of a character cut in two at the end, nothing."""
    text = output.text or ""
    return text.rstrip("\ufffd") if output.finish_reason == "length" else text
