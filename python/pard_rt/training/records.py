"""Records of data files: conversations and texts, as training and `regenerate` read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pard_rt.chat import ChatTemplate
from pard_rt.errors import InvalidArgumentError, first_line

_LINES = (".jsonl", ".ndjson")  # a record in every line
_FORMS = '{"messages": [{"role": .., "content": ..}, ..]} or {"text": ".."}'


@dataclass(frozen=True)
class Record:
    """A text, or the messages of a conversation, and where it stands."""

    where: str
    content: str | list[dict[str, Any]]


def read_records(paths: Sequence[str | Path]) -> Iterator[Record]:
    """Read files one after the other.

    Parameters
    ----------
    paths
        ``.jsonl`` or ``.ndjson`` files, a line of which is ``{"messages": [..]}`` or
        ``{"text": ".."}``; ``.json`` files with one of these or a list of them; any other file is
        one text. Message contents given as parts become one text, a line per part.

    Raises
    ------
    InvalidArgumentError
        A file is missing or cannot be read, or a record has another form.
    """
    for path in map(Path, paths):
        try:
            text = path.read_text("utf-8-sig")  # with or without a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(
                f"The data file '{path}' cannot be read", "a text file in UTF-8", str(error),
                "Check the path.",
            ) from error  # fmt: skip
        kind = path.suffix.lower()
        if kind in _LINES:
            # Not splitlines(): JSON may have U+2028 and its like inside a string.
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield _record(_parse(line, f"{path}:{number}"), f"{path}:{number}")
        elif kind == ".json":
            parsed = _parse(text, str(path))
            if isinstance(parsed, list):
                for number, each in enumerate(parsed, start=1):
                    yield _record(each, f"{path}, record {number}")
            else:
                yield _record(parsed, str(path))
        else:
            yield Record(str(path), text)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{where} is not JSON", _FORMS, str(error), "Correct it."
        ) from error
    except RecursionError as error:
        raise InvalidArgumentError(
            f"{where} is nested too deeply", _FORMS, first_line(error), "Correct it."
        ) from error


def _record(parsed: Any, where: str) -> Record:
    if isinstance(parsed, dict):
        _require_unicode(parsed, where)
        if isinstance(text := parsed.get("text"), str):
            return Record(where, text)
        if isinstance(messages := parsed.get("messages"), list):
            return Record(where, [_message(message, where) for message in messages])
    raise InvalidArgumentError(
        f"{where} is not a document", _FORMS, repr(parsed)[:80], "Correct it."
    )


def _message(message: Any, where: str) -> dict[str, Any]:
    """Return a message whose content is one text, if it has any."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidArgumentError(
            f"{where} has a message without a role", _FORMS, repr(message)[:80], "Correct it."
        )
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    return {**message, "content": "\n".join(_part_text(part, where) for part in parts)}


def _part_text(part: Any, where: str) -> str:
    kind, text = (
        (part.get("type", "text"), part.get("text")) if isinstance(part, dict) else ("text", part)
    )
    if kind == "text" and isinstance(text, str):
        return text
    raise InvalidArgumentError(
        f"{where} has a content part that is not text",
        '{"type": "text", "text": ".."}',
        repr(part)[:80],
        "Leave the line out: models here read text.",
    )


def require_chat_template(tokenizer: Any, where: str) -> None:
    """Refuse conversations that nothing turns into tokens.

    Raises
    ------
    InvalidArgumentError
        The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InvalidArgumentError(
            f"{where} is a conversation, and the tokenizer has no chat template",
            "a tokenizer with a chat template",
            "none",
            'Use the tokenizer of the instruct model, or data of the form {"text": ".."}.',
        )


def _require_unicode(parsed: dict[str, Any], where: str) -> None:
    """Refuse halves of surrogate pairs, which JSON can hold."""
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{where} holds half of a character", "Unicode", str(error), "Correct it."
        ) from error


@contextmanager
def suiting_the_template(where: str) -> Iterator[None]:
    """Turn what a chat template has against a conversation into an InvalidArgumentError."""
    try:
        yield
    except Exception as error:  # templates raise what they like
        raise InvalidArgumentError(
            f"{where} does not suit the chat template",
            "a conversation as the model knows them",
            first_line(error),
            "Mend the line.",
        ) from error


def chat_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """Return the token ids of messages that ask the assistant to speak."""
    text = ChatTemplate.of_tokenizer("the tokenizer", tokenizer).render_turns(messages, cue=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)
