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


@dataclass(frozen=True)
class Record:
    """A text, or the messages of a conversation, and where it stands."""

    where: str
    content: str | list[Any]


def read_records(paths: Sequence[str | Path]) -> Iterator[Record]:
    """Read files one after the other.

    Parameters
    ----------
    paths
        ``.jsonl`` files, a line of which is ``{"messages": [..]}`` or ``{"text": ".."}``; any other
        file is one text.

    Raises
    ------
    InvalidArgumentError
        A file is missing or cannot be read, or a line is neither.
    """
    for path in map(Path, paths):
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(
                f"The data file '{path}' cannot be read", "a text file in UTF-8", str(error),
                "Check the path.",
            ) from error  # fmt: skip
        if path.suffix != ".jsonl":
            yield Record(str(path), text)
            continue
        # Not splitlines(): JSON may have U+2028 and its like inside a string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def _parse(line: str, where: str) -> Record:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        parsed = str(error)
    if isinstance(parsed, dict):
        _require_unicode(parsed, where)
        for content, kind in ((parsed.get("text"), str), (parsed.get("messages"), list)):
            if isinstance(content, kind):
                return Record(where, content)
    raise InvalidArgumentError(
        f"{where} is no document",
        '{"messages": [{"role": .., "content": ..}, ..]} or {"text": ".."}',
        str(parsed)[:80],
        "Mend the line.",
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
            f"{where} holds what is no text", "Unicode", str(error), "Mend the line."
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


def chat_ids(tokenizer: Any, messages: list[Any], *, cue: bool) -> list[int]:
    """Token ids of messages; a `cue` behind them asks the assistant to speak."""
    template = ChatTemplate.of_tokenizer("the tokenizer", tokenizer)
    text = template.render_turns(messages, cue=cue)
    return list(tokenizer(text, add_special_tokens=False).input_ids)
