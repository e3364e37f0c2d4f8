"""Data files: what is read of them, and what of it is learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pard_rt import InvalidArgumentError
from pard_rt.training.acceptance import hold_out
from pard_rt.training.documents import Document, read_documents
from pard_rt.training.records import read_records
from tiny_models import make_tokenizer

PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Thinking models' templates: only the last answer keeps what was thought, and the cue may begin it.
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' and loop.last %}{thinks}{% endif %}"
    "{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "four, five"},
    {"role": "user", "content": "and?"},
]


def read(tmp_path: Path, template: str, *chats: Any, max_length: int = 200) -> Iterator[Document]:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return iter(read_documents([file], tokenizer, max_length=max_length))


def text_of(document: Document) -> str:
    text: str = make_tokenizer().decode(document.tokens)
    return text


def learnt_of(document: Document) -> str:
    learnt: str = make_tokenizer().decode(document.tokens[document.learnt])
    return learnt


def test_answers_are_learnt_with_the_token_that_ends_them(tmp_path: Path) -> None:
    (document,) = read(tmp_path, PLAIN, CHAT)
    assert learnt_of(document) == "two</s>four, five</s>"
    assert text_of(document).startswith("<system>brief</s>\n<user>one?</s>\n<assistant>two")


def test_every_answer_is_learnt_as_the_model_wrote_it(tmp_path: Path) -> None:
    last, first = read(tmp_path, THINKING, CHAT)
    assert learnt_of(last) == "{thinks}four, five</s>"
    assert "<assistant>two</s>" in text_of(last)
    assert learnt_of(first) == "{thinks}two</s>"
    assert "four" not in text_of(first)


def test_a_conversation_is_the_same_on_every_day(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "{{ strftime_now('%Y-%m-%d') }}" + PLAIN, CHAT)
    assert text_of(document).startswith("2026-01-01<system>")


def test_a_cue_that_the_answer_changes_is_not_learnt(tmp_path: Path) -> None:
    cue = PLAIN.replace("<assistant>{%", "<assistant>{thinks nothing}{%")
    (document,) = read(tmp_path, cue, CHAT[:3])
    assert learnt_of(document) == "two</s>"


def test_long_conversations_are_cut_before_questions(tmp_path: Path) -> None:
    (whole,) = read(tmp_path, PLAIN, CHAT)
    first, second = read(tmp_path, PLAIN, CHAT, max_length=len(whole.tokens) - 20)
    assert text_of(first).endswith("<assistant>two</s>")
    assert text_of(second).strip().startswith("<user>three?")
    assert learnt_of(first) + learnt_of(second) == learnt_of(whole)
    # An answer too long for a piece keeps its question and loses its end.
    long = [*CHAT[:2], {"role": "assistant", "content": "x" * 500}]
    (cut,) = read(tmp_path, PLAIN, long, max_length=100)
    assert len(cut.tokens) == 100
    assert "one?" in text_of(cut)
    assert set(learnt_of(cut)) == {"x"}


def test_conversations_are_held_out_whole(tmp_path: Path) -> None:
    documents = list(read(tmp_path, PLAIN, *[CHAT] * 20, max_length=45))
    assert len(documents) == 40
    kept, held_out = hold_out(documents, 0)
    assert (len(kept), len(held_out)) == (24, 8)
    assert {each.record for each in kept}.isdisjoint(each.record for each in held_out)
    # One text has pieces alone to hold out.
    kept, held_out = hold_out([Document(d.tokens, d.learnt) for d in documents], 0)
    assert (len(kept), len(held_out)) == (32, 8)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "list.json"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_records_are_read_whatever_the_file_is_called(tmp_path: Path, name: str, mark: str) -> None:
    record = json.dumps({"text": "one\u2028two"}, ensure_ascii=False)
    text = {"a.json": json.dumps({"text": "one\u2028two"}, indent=1), "list.json": f"[{record}]"}
    file = tmp_path / name
    file.write_text(mark + text.get(name, f"{record}\n\n"), "utf-8")
    assert [each.content for each in read_records([file])] == ["one\u2028two"]


def test_a_byte_order_mark_is_not_learnt(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\ufeffone", "utf-8")
    assert [each.content for each in read_records([file])] == ["one"]


def test_parts_of_a_message_become_one_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    parts = [{"type": "text", "text": "one"}, "two"]
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    (record,) = read_records([file])
    assert record.content == [{"role": "user", "content": "one\ntwo"}]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.json", '[{"text": "a"}, {"words": 3}]', r"a\.json, record 2 is not a document"),
        ("a.json", "[" * 100_000, r"a\.json is (nested too deeply|not JSON)"),
        ("a.jsonl", '{"messages": ["hello"]}', r"a\.jsonl:1 has a message without a role"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}]}',
            r"a\.jsonl:1 has a content part that is not text",
        ),
    ],
)
def test_what_is_not_data_is_refused_by_its_place(
    tmp_path: Path, name: str, text: str, match: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidArgumentError, match=match):
        list(read_records([tmp_path / name]))
