"""Chat templates: the text that transformers renders, without it; and every way they say no."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chat_models import CLOSE, TEMPLATES, make_chat_tokenizer
from pard_rt import Error, FolderError, InvalidArgumentError
from pard_rt.chat import ChatTemplate
from pard_rt.text import TokenText


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CONVERSATIONS = {
    "one question": [says("user", "Is <b>é</b> 'bold' & \"é\"?\n")],
    "system": [says("system", "Be brief. "), says("user", "one?")],
    "turns": [
        says("user", "one?"),
        says("assistant", "<think>\nhm\n</think>\n\ntwo "),
        says("user", " three?\n\n"),
    ],
    "an answer to continue": [says("user", "one?"), says("assistant", "It is")],
    "an answer that ends in space": [says("user", "one?"), says("assistant", "It is: ")],
    "an answer not begun": [says("user", "one?"), says("assistant", "")],
}


def expected(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    continued = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        return_dict=False,
        **options,
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_text_and_tokens_are_those_of_transformers(name: str, conversation: str) -> None:
    tokenizer = make_chat_tokenizer(TEMPLATES[name])
    template = ChatTemplate.of_tokenizer(name, tokenizer)
    messages = CONVERSATIONS[conversation]
    text = template.render(messages)
    assert text == expected(tokenizer, messages, tokenize=False)
    spelling = TokenText.of_tokenizer(tokenizer, len(tokenizer))
    assert spelling.encode(text, add_special_tokens=False) == expected(tokenizer, messages)


def test_published_templates_are_rendered_as_transformers_does(published: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    if tokenizer.chat_template is None:
        with pytest.raises(InvalidArgumentError, match="no chat template"):
            ChatTemplate.of_folder(published)
        return
    template = ChatTemplate.of_folder(published)
    spelling = TokenText.of_folder(published, len(tokenizer))
    for messages in CONVERSATIONS.values():
        text = template.render(messages)
        assert text == expected(tokenizer, messages, tokenize=False)
        assert spelling.encode(text, add_special_tokens=False) == expected(tokenizer, messages)
    end = template.end_of_turn(spelling.added_tokens)
    assert end is not None
    assert spelling.added_tokens[end] == tokenizer.eos_token_id


def test_options_and_tools_reach_the_template() -> None:
    tokenizer = make_chat_tokenizer(TEMPLATES["qwen"])
    template = ChatTemplate.of_tokenizer("qwen", tokenizer)
    tools = [{"name": "weather", "parameters": {"city": "Zürich <3"}}]
    for options in ({"enable_thinking": False}, {"enable_thinking": True}, {"tools": tools}):
        text = template.render([says("user", "one?")], options)
        assert text == expected(tokenizer, [says("user", "one?")], tokenize=False, **options)
    assert "Zürich <3" in text
    of_tokens = ChatTemplate("x", {"default": "{{ bos_token }}{{ kind }}"}, {"bos_token": "<s>"})
    assert of_tokens.render([says("user", "")], {"kind": 1}) == "<s>1"
    assert of_tokens.render([says("user", "")], {"bos_token": ""}) == ""


def test_calls_of_tools_may_come_without_content() -> None:
    template = ChatTemplate(
        "x", {"default": "{% for m in messages %}{{ m.keys() | list }}{% endfor %}"}, {}
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather"}]}
    text = template.render([call, says("tool", "sunny")])
    assert text == "['role', 'tool_calls']['role', 'content']"


def test_messages_are_neither_changed_nor_handed_out() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = (says("user", "one?"), says("assistant", "tw"))
    assert ChatTemplate("x", {"default": source}, {}).render(iter(messages)) == "one?tw"
    assert messages[1] == says("assistant", "tw")
    for reach in ("messages.append(1)", "messages[0].update(a=1)", "''.__class__.__mro__"):
        template = ChatTemplate("x", {"default": "{{ %s }}" % reach}, {})  # noqa: UP031
        with pytest.raises(FolderError, match="SecurityError"):
            template.render([says("user", "one?")])


# ---- where templates come from -------------------------------------------------------------------


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), "utf-8")


def of_both(folder: Path) -> tuple[ChatTemplate, Any]:
    """The template of a folder's files, and transformers' tokenizer of them."""
    return ChatTemplate.of_folder(folder), AutoTokenizer.from_pretrained(folder)


ECHO = "{{ bos_token }}|{{ eos_token }}|{{ image_token }}|{{ messages[0].content }}"


def in_its_own_file(folder: Path, config: dict[str, Any]) -> None:
    (folder / "chat_template.jinja").write_text(ECHO)
    config["chat_template"] = "not this one"


def in_the_config(folder: Path, config: dict[str, Any]) -> None:
    config["chat_template"] = ECHO
    config["image_token"] = "<|open|>"


def as_one_of_several(folder: Path, config: dict[str, Any]) -> None:
    config["chat_template"] = [
        {"name": "tool_use", "template": "tools: " + ECHO},
        {"name": "default", "template": ECHO},
    ]


def in_several_files(folder: Path, config: dict[str, Any]) -> None:
    (folder / "chat_template.jinja").write_text(ECHO)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools: " + ECHO)


def with_tokens_as_dicts(folder: Path, config: dict[str, Any]) -> None:
    config["chat_template"] = ECHO
    config["bos_token"] = {"__type": "AddedToken", "content": "<|close|>", "lstrip": False}
    config["extra_special_tokens"] = {"image_token": "<|header|>"}


def with_tokens_in_a_map(folder: Path, config: dict[str, Any]) -> None:
    config["chat_template"] = ECHO
    del config["bos_token"]
    tokens = {"bos_token": {"content": "<|open|>"}, "eos_token": "<|close|>"}
    write_json(folder / "special_tokens_map.json", tokens)


def without_some_tokens(folder: Path, config: dict[str, Any]) -> None:
    config["chat_template"] = ECHO
    config["bos_token"] = None


@pytest.mark.parametrize(
    "place",
    [
        in_its_own_file,
        in_the_config,
        as_one_of_several,
        in_several_files,
        with_tokens_as_dicts,
        with_tokens_in_a_map,
        without_some_tokens,
    ],
    ids=lambda place: place.__name__,
)
def test_files_are_read_as_transformers_reads_them(
    place: Callable[[Path, dict[str, Any]], None], tmp_path: Path
) -> None:
    make_chat_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    place(tmp_path, config)
    write_json(file, config)
    template, tokenizer = of_both(tmp_path)
    messages = [says("user", "one?")]
    for options in ({}, {"tools": [{"name": "weather"}]}):
        text = template.render(messages, options)
        assert text == expected(tokenizer, messages, tokenize=False, **options)


@pytest.mark.parametrize(
    ("template", "error", "match"),
    [
        (None, InvalidArgumentError, "no chat template.*neither.*pard-rt generate"),
        ("", InvalidArgumentError, "no chat template"),
        ([], InvalidArgumentError, "no chat template"),
        ([{"name": "rag", "template": "x"}], InvalidArgumentError, "none for every chat.*rag"),
        (5, FolderError, "cannot be read"),
        ([{"name": "default"}], FolderError, "cannot be read"),
        ("{% for m in messages %}", FolderError, "cannot be read.*endfor.*line 1"),
        ("a\n{{ messages | shout }}", FolderError, "cannot be read.*shout.*line 2"),
    ],
)
def test_a_folder_whose_template_is_missing_or_damaged(
    template: Any, error: type[Error], match: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": template})
    with pytest.raises(error, match=match):
        ChatTemplate.of_folder(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        ChatTemplate.of_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(FolderError, match=r"tokenizer_config.json' cannot be read.*JSON object"):
        ChatTemplate.of_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FolderError, match=r"chat_template.jinja' cannot be read.*UTF-8"):
        ChatTemplate.of_folder(tmp_path)
    for tokenizer in (None, object(), make_chat_tokenizer()):
        with pytest.raises(InvalidArgumentError, match="target has no chat template"):
            ChatTemplate.of_tokenizer("target", tokenizer)


# ---- the end of a turn ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "end"),
    [
        *((TEMPLATES[name], CLOSE) for name in ("smollm2", "llama3", "qwen", "gemma", "phi3")),
        (TEMPLATES["mistral"], "</s>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        # A turn is closed before the next one only.
        ("{% for m in messages %}{{ m.content }}{{ ' <|close|>' * loop.revindex0 }}{% endfor %}",
         CLOSE),
        # The longer of two tokens that could follow.
        ("{% for m in messages %}{{ m.content }}<|close|>>{% endfor %}", "<|close|>>"),
        # The template wants a system, and never shows an answer.
        ("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}", None),
        ("{{ messages[0].content }}<|close|>", None),
    ],
)  # fmt: skip
def test_the_token_behind_an_answer_is_found(source: str, end: str | None) -> None:
    template = ChatTemplate("x", {"default": source}, {"eos_token": "</s>", "bos_token": "<s>"})
    assert template.end_of_turn(["", "<s>", "</s>", "<|open|>", CLOSE, CLOSE + ">"]) == end


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages cannot be read.*none"),
        ("Hello", "messages cannot be read.*'Hello'"),
        (says("user", "Hello"), "messages cannot be read: expected a list"),
        (None, "messages cannot be read"),
        (["Hello"], r"messages\[0\] cannot be read: expected a dict"),
        ([{"content": "Hello"}], r"messages\[0\] has no role: expected assistant, developer"),
        ([says("usr", "Hello")], r"messages\[0\] has an unknown role.*tool, user, got 'usr'"),
        ([says(["user"], "Hello")], "unknown role"),
        ([says("user", "Hello"), {"role": "user"}], r"messages\[1\] has no content"),
        ([says("user", None)], r"messages\[0\] has no content"),
        ([says("user", 5)], r"content of messages\[0\] is not text.*got 5"),
        ([says("user", [{"type": "text", "text": "Hello"}])], "is not text"),
        ([{"role": "assistant", "tool_calls": [1]}], "has no content"),
        ([{**says("user", "Hello"), "image": b"\x00"}], "cannot be given to a chat.*bytes"),
        ([says("user", "one?"), says("user", "two?")], "refuses these.*Roles must alternate"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_used(messages: Any, match: str) -> None:
    template = ChatTemplate("gemma", {"default": TEMPLATES["gemma"]}, {})
    with pytest.raises(InvalidArgumentError, match=match):
        template.render(messages)


def test_a_role_that_only_the_template_knows() -> None:
    template = ChatTemplate("gemma", {"default": TEMPLATES["gemma"]}, {})
    text = template.render([says("user", "one?"), says("model", "two"), says("user", "three?")])
    assert "<|open|>model\ntwo<|close|>" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"messages": []}, "cannot be used.*'messages' among them"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' among them"),
        (["enable_thinking"], "cannot be used: expected a dict"),
        ({"tools": [print]}, "cannot be given to a chat template"),
    ],
)
def test_template_options_that_cannot_be_used(options: Any, match: str) -> None:
    template = ChatTemplate("qwen", {"default": TEMPLATES["qwen"]}, {})
    with pytest.raises(InvalidArgumentError, match=match):
        template.render([says("user", "one?")], options)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("{{ shout(messages) }}", FolderError, "fails.*UndefinedError: 'shout' is undefined"),
        ("{{ messages[0].content + 1 }}", FolderError, "fails.*TypeError"),
        ("{{ raise_exception('no\nmore') }}", InvalidArgumentError, "refuses.*got no"),
        ("{{ messages[1].content }}", InvalidArgumentError, r"leaves out messages\[0\].*'system'"),
        ("{{ messages[0].content ~ messages[1].content[1:] }}", InvalidArgumentError, "leaves out"),
    ],
)  # fmt: skip
def test_templates_that_fail_or_leave_something_out(
    source: str, error: type[Error], match: str
) -> None:
    template = ChatTemplate("target", {"default": source}, {})
    with pytest.raises(error, match=match):
        template.render([says("system", "Be brief."), says("user", "one?")])


def test_an_answer_that_the_template_changes_cannot_be_continued() -> None:
    messages = [says("user", "one?"), says("assistant", "It is")]
    for shown in ("messages[0].content", "messages[0].content ~ messages[1].content | upper"):
        template = ChatTemplate("x", {"default": f"{{{{ {shown} }}}}"}, {})
        with pytest.raises(InvalidArgumentError, match="cannot continue the assistant's last"):
            template.render(messages)
