"""A model's chat template: from the messages of a conversation to the text of a prompt.

Templates are rendered as transformers renders them, with jinja2 alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pard_rt.errors import FolderError, InvalidArgumentError, first_line

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["ChatTemplate", "Message"]

Message = Mapping[str, Any]  # {"role": .., "content": ..}; templates may read other keys too

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_HEARD = ("system", "developer", "user")  # what they say has to reach the model as it is
_OURS = ("messages", "add_generation_prompt")  # variables of a template that callers cannot set
_END = "\uf8ffthe answer ends here\uf8ff "  # the space tells whether the template trims an answer


def _on_a_fixed_day(form: str) -> str:
    return datetime(2026, 1, 1).strftime(form)


_DATED = {"strftime_now": _on_a_fixed_day}


class ChatTemplate:
    """Renders conversations.

    Parameters
    ----------
    name
        Of the model, for messages.
    sources
        Jinja templates by name: "default", and "tool_use" if there is another one for tools.
    special_tokens
        What templates call ``bos_token``, ``eos_token`` and so on.

    Raises
    ------
    FolderError
        A template cannot be parsed.
    """

    def __init__(
        self, name: str, sources: Mapping[str, str], special_tokens: Mapping[str, str]
    ) -> None:
        self.name = name
        read = {key: _compile(name, source) for key, source in sources.items()}
        self._templates = {key: template for key, (template, _) in read.items()}
        self._roles = _ROLES.union(*(texts for _, texts in read.values()))
        self._special_tokens = dict(special_tokens)

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template beside a tokenizer: its own file, or a field of tokenizer_config.json.

        Raises
        ------
        InvalidArgumentError
            There is no template.
        FolderError
            A file is damaged.
        """
        config = _read_config(folder / "tokenizer_config.json")
        named = {"default": folder / "chat_template.jinja"}
        named |= {file.stem: file for file in folder.glob("additional_chat_templates/*.jinja")}
        sources: Any = {name: _read(file) for name, file in named.items() if file.is_file()}
        tokens = _tokens_of(config)
        if "added_tokens_decoder" not in config:  # older tokenizers name them in another file
            tokens |= _tokens_of(_read_config(folder / "special_tokens_map.json"))
        return cls(
            str(folder), _by_name(str(folder), sources or config.get("chat_template")), tokens
        )

    @classmethod
    def of_tokenizer(cls, name: str, tokenizer: Any) -> ChatTemplate:
        """Take the template of a tokenizer of transformers.

        Raises
        ------
        InvalidArgumentError
            It has none.
        """
        template = getattr(tokenizer, "chat_template", None)
        tokens = getattr(tokenizer, "special_tokens_map", {})
        return cls(name, _by_name(name, template), _tokens_of(tokens))

    def render(self, messages: Iterable[Message], options: Mapping[str, Any] | None = None) -> str:
        """Return the text of a prompt that asks the assistant for its next turn.

        If the last message is the assistant's, the text ends with it, for the model to continue.

        Parameters
        ----------
        messages
            Of roles that the template knows; their ``content`` is text.
        options
            Variables of the template, such as ``enable_thinking``, ``tools`` or ``documents``.

        Raises
        ------
        InvalidArgumentError
            The messages or options cannot be used, or the template refuses them.
        FolderError
            The template itself fails.
        """
        variables = _plain("template_options", {} if options is None else options)
        if not isinstance(variables, dict) or (taken := [n for n in _OURS if n in variables]):
            raise InvalidArgumentError(
                "template_options cannot be used",
                f"a dict of the template's variables without {' and '.join(_OURS)}",
                repr(options) if not isinstance(variables, dict) else f"{taken[0]!r} among them",
                "Pass messages as the first argument; the rest follows from the last message.",
            )
        conversation = self._check(messages)
        last = conversation[-1]
        if last["role"] != "assistant":
            text = self._render(conversation, variables, add_generation_prompt=True)
        else:
            text = self._begin_answer(conversation, variables)
        for number, message in enumerate(conversation):
            said = message.get("content", "").strip()
            quoted = json.dumps(said, ensure_ascii=False)[1:-1]  # some templates write JSON
            if message["role"] in _HEARD and said not in text and quoted not in text:
                raise InvalidArgumentError(
                    f"The chat template of {self.name} leaves out messages[{number}]",
                    "messages that the model gets to read",
                    f"one of the role {message['role']!r} that the template drops or changes",
                    "Say it in a user message.",
                )
        return text

    def render_turns(self, messages: list[Any], *, cue: bool) -> str:
        """Return the text of whole turns, unchecked; a `cue` then asks the assistant to speak.

        It is the same on every day: templates that write the date write the same one.

        Raises
        ------
        InvalidArgumentError, FolderError
            As from `render`.
        """
        return self._render(_plain("messages", messages), _DATED, add_generation_prompt=cue)

    def open_user_turn(self) -> str:
        """Return the text of a conversation up to where its first user begins to speak.

        Raises
        ------
        InvalidArgumentError, FolderError
            The template writes no such place, or fails.
        """
        text = self._render(
            [{"role": "user", "content": _END}], _DATED, add_generation_prompt=False
        )
        opening, found, _ = text.partition(_END.strip())
        if not found:
            raise InvalidArgumentError(
                f"The chat template of {self.name} has no place for a user's words",
                "a template that writes a user's message as it is",
                repr(text)[:80],
                "Give questions of your own.",
            )
        return opening

    def end_of_turn(self, tokens: Iterable[str]) -> str | None:
        """Return which of these tokens the template puts behind an answer; None without one."""
        turns = [{"role": "user", "content": "."}, {"role": "assistant", "content": _END}]
        for conversation in (turns, [*turns, turns[0]]):  # some close a turn before the next only
            try:
                text = self._render(conversation, {}, add_generation_prompt=False)
            except (InvalidArgumentError, FolderError):  # who chats meets it with more to say
                continue
            _, answer, behind = text.rpartition(_END.strip())
            behind = behind.lstrip()
            found = [token for token in tokens if token and behind.startswith(token)]
            if answer and found:
                return max(found, key=len)
        return None

    def _begin_answer(self, conversation: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """Render a conversation up to where the assistant's last message ends."""
        last = conversation[-1]
        said = last.get("content", "")
        marked = [*conversation[:-1], {**last, "content": said + _END}]
        text, answer, behind = self._render(
            marked, variables, add_generation_prompt=False
        ).rpartition(_END.strip())
        if not answer or said.strip() not in text:
            raise InvalidArgumentError(
                f"The chat template of {self.name} cannot continue the assistant's last message",
                "a template that writes the message as it is",
                "one that drops or changes it",
                "End the messages with the user's.",
            )
        return text if behind.startswith(" ") else text.rstrip()

    def _render(
        self, conversation: list[dict[str, Any]], variables: dict[str, Any], **more: bool
    ) -> str:
        values = {"tools": None, "documents": None, **self._special_tokens, **variables, **more}
        from pard_rt.template_language import RefusalError

        kind = "default" if values["tools"] is None else "tool_use"
        template = self._templates.get(kind, self._templates["default"])
        try:
            return template.render(messages=conversation, **values)
        except RefusalError as error:
            raise InvalidArgumentError(
                f"The chat template of {self.name} refuses these messages",
                "messages as the template wants them",
                first_line(error),
                "Change the messages.",
            ) from error
        except Exception as error:  # templates are programs
            raise FolderError(
                f"The chat template of {self.name} fails",
                "a template that renders these messages",
                f"{type(error).__name__}: {first_line(error)}",
                "Check the template, and what it needs in template_options.",
            ) from error

    def _check(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
        """Return messages as templates may see them: plain data, and a copy."""
        given: Any = messages
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
            raise _unusable("messages", repr(given))
        conversation = list(given)
        if not conversation:
            raise _unusable("messages", "none")
        for number, message in enumerate(conversation):
            where = f"messages[{number}]"
            if not isinstance(message, Mapping):
                raise _unusable(where, repr(message))
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or role not in self._roles:
                raise InvalidArgumentError(
                    f"{where} has an unknown role" if role is not None else f"{where} has no role",
                    ", ".join(sorted(_ROLES)),
                    repr(role),
                    "Choose one of these roles.",
                )
            may_lack_it = bool(message.get("tool_calls")) and number + 1 < len(conversation)
            if not isinstance(content, str) and not (content is None and may_lack_it):
                raise InvalidArgumentError(
                    f"{where} has no content"
                    if content is None
                    else f"The content of {where} is not text",
                    "a string",
                    repr(content)[:80],
                    "Put what the message says into its content, as one string.",
                )
        plain = _plain("messages", [dict(message) for message in conversation])
        return [{k: v for k, v in message.items() if v is not None} for message in plain]


@lru_cache
def _compile(model: str, source: str) -> tuple[Template, frozenset[str]]:
    """Return a template, and the strings that it names: the roles it looks for are among them."""
    from jinja2 import nodes

    from pard_rt.template_language import ENVIRONMENT  # not before: jinja2 takes time to import

    try:
        constants = ENVIRONMENT.parse(source).find_all(nodes.Const)
        texts = frozenset(node.value for node in constants if isinstance(node.value, str))
        return ENVIRONMENT.from_string(source), texts
    except Exception as error:  # jinja2's own, or Python's, such as for too deep a nesting
        line = getattr(error, "lineno", None)
        raise FolderError(
            f"The chat template of {model} cannot be read",
            "a Jinja template",
            first_line(error) + (f" (line {line})" if line else ""),
            "Correct the template, or download the model again.",
        ) from error


def _unusable(where: str, actual: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{where} cannot be read",
        'a list of messages, such as [{"role": "user", "content": "Hello"}]'
        if where == "messages"
        else 'a dict such as {"role": "user", "content": "Hello"}',
        actual[:80],
        "Pass one message or more.",
    )


def _plain(what: str, value: Any) -> Any:
    """Copy what a template gets to see: templates are strangers' programs, so nothing but JSON."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{what} cannot be given to a chat template",
            "text, numbers, lists and dicts",
            first_line(error),
            "Convert what is something else.",
        ) from error


def _tokens_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return special tokens by the names that templates know; in a config they may be dicts."""
    extra = config.get("extra_special_tokens")
    fields = {**config, **(extra if isinstance(extra, dict) else {})}
    tokens = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in fields.items()
        if name.endswith("_token")
    }
    return {name: str(token) for name, token in tokens.items() if isinstance(token, str)}


def _by_name(model: str, template: Any) -> dict[str, str]:
    """Return templates by name from what a tokenizer has: a text, a dict, or a list of dicts."""
    if isinstance(template, list):
        pairs = [each for each in template if isinstance(each, dict)]
        template = {each.get("name"): each.get("template") for each in pairs}
    if template and isinstance(template, str):
        template = {"default": template}
    if not template:
        raise InvalidArgumentError(
            f"{model} has no chat template",
            "chat_template.jinja, or chat_template in tokenizer_config.json",
            "neither",
            "Use generate (pard-rt generate), which continues text, or a model made for chats.",
        )
    if not isinstance(template, dict) or not all(
        isinstance(text, str) for pair in template.items() for text in pair
    ):
        raise FolderError(
            f"The chat template of {model} cannot be read",
            "a text, or a list of texts with names",
            repr(template)[:80],
            "Download the model again.",
        )
    if "default" not in template:
        raise InvalidArgumentError(
            f"{model} has chat templates, but none for every chat",
            "one with the name default",
            ", ".join(template),
            "Copy the one to use to chat_template.jinja.",
        )
    return template


def _read_config(file: Path) -> dict[str, Any]:
    from pard_rt.models.fields import read_json  # not before: models read templates

    return read_json(file) if file.is_file() else {}


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(
            f"'{file}' cannot be read", "a text in UTF-8", str(error), "Download the model again."
        ) from error
