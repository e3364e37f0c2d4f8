"""A data set in the words of the target: what is asked, what is written, going on, saying no."""

from __future__ import annotations

import doctest
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pard_rt
from conftest import TinyModels
from pard_rt import Generator, regenerate
from pard_rt.cli import main
from pard_rt.models.checkpoint import load_tokenizer
from pard_rt.training import regenerate as regenerate_module
from pard_rt.training.documents import read_documents
from pard_rt.training.line_file import LineFile
from pard_rt.training.prompts import Prompter
from pard_rt.training.records import Record, read_records
from tiny_models import EOS, VOCAB_SIZE, make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = "the cat and the hat, the cat on the mat; " * 8


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHATS = [
    [says("system", "be brief"), says("user", "one?"), says("assistant", "old"),
     says("user", "two?"), says("assistant", "old"), says("user", "three?")],
    [says("user", "and the hat?"), says("assistant", "old")],
    [says("user", "a rather long question, " * 4), says("assistant", "old"), says("user", "so?")],
]  # fmt: skip


def write_lines(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return file


def read_lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def target(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that chats, and ends at every seventh token: its answers differ in length."""
    source = tiny_models.checkpoint("llama", seed=3, max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("regenerate") / "target"
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ends = {"eos_token_id": [*range(0, VOCAB_SIZE, 7), EOS]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations and texts in turn."""
    records = [{"messages": chat} for chat in CHATS]
    return write_lines(tmp_path / "data.jsonl", *records, {"text": TEXT}, *records)


def make_prompter(max_length: int = 512, prompt_tokens: int = 10) -> Prompter:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Prompter(
        tokenizer, max_length=max_length, prompt_tokens=prompt_tokens, continued_tokens=20
    )


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", {"text": "one\u2028two\x85"}, {"text": "three"})
    assert [record.content for record in read_records([file])] == ["one\u2028two\x85", "three"]


def test_texts_are_asked_in_pieces() -> None:
    prompter = make_prompter()
    tokens = make_tokenizer()(TEXT).input_ids
    prompts = [next(task()) for task in prompter.tasks([Record("here", TEXT)])]
    pieces = [tokens[first : first + 10] for first in range(0, len(tokens), 30)]
    assert prompts == [piece for piece in pieces if len(piece) == 10]
    short = prompter.tasks([Record("here", "the"), Record("there", "über" * 9)])
    assert [make_tokenizer().decode(next(task())) for task in short] == ["the", "überüberü"]


def test_prompts_too_long_are_counted() -> None:
    records = [Record("here", [says("user", "x" * n)]) for n in (10, 200, 20)]
    prompter = make_prompter(max_length=100)
    assert len(prompter.tasks(records)) == 2
    assert prompter.num_skipped == 1
    with pytest.raises(pard_rt.InvalidArgumentError, match="got 1 longer ones"):
        make_prompter(max_length=100).tasks(records[1:2])


def output(text: str, reason: str) -> pard_rt.Output:
    nothing: Any = None
    return pard_rt.Output(text, [], reason, seed=0, stats=nothing)


def line_of(prompter: Prompter, content: Any, *outputs: pard_rt.Output) -> Any:
    """What comes of a record whose prompts are answered so."""
    (task,) = prompter.tasks([Record("here", content)])
    dialogue = task()
    next(dialogue)
    try:
        for said in outputs:
            dialogue.send(said)
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks on")


def test_a_cut_answer_ends_its_conversation() -> None:
    turns = [says("user", "one?"), says("assistant", "old"), says("user", "two?")]
    cut = output("wh\ufffd", "length")  # half a character at the end
    expected = {"messages": [says("user", "one?"), says("assistant", "wh")]}
    assert line_of(make_prompter(), turns, cut) == expected
    expected = {"messages": [says("user", "one?"), says("assistant", "wh\ufffd")]}
    whole = output("wh\ufffd", "eos")
    assert line_of(make_prompter(max_length=30), turns, whole) == expected  # no room for two?
    last = line_of(make_prompter(), turns, whole, output("yes", "eos"))
    assert last["messages"][2:] == [says("user", "two?"), says("assistant", "yes")]
    assert line_of(make_prompter(), "the", cut) == {"text": "thewh"}


def test_what_the_assistant_said_is_dropped() -> None:
    turns = [
        says("assistant", "hello"), says("user", "one"), says("user", "two?"),
        says("assistant", "old"), says("assistant", "older"), says("system", "stop"),
    ]  # fmt: skip
    answer = output("new", "eos")
    assert line_of(make_prompter(), turns, answer)["messages"] == [
        says("user", "one"), says("user", "two?"), says("assistant", "new")
    ]  # fmt: skip


def test_what_cannot_be_asked_is_refused() -> None:
    def refused(match: str, content: Any) -> None:
        with pytest.raises(pard_rt.InvalidArgumentError, match=match):
            make_prompter().tasks([Record("file:1", content)])

    refused("nothing to answer", "")
    refused("file:1 .* no turn of a user", [])
    refused("file:1 .* no turn of a user", [says("system", "be"), says("assistant", "hello")])
    refused("'tool'", [says("user", "what time is it?"), says("tool", "noon")])
    refused("None", [says("user", "?"), {"role": "user", "content": None}])
    refused("the system speaks first", [says("user", "?"), says("system", "be brief")])
    bare = Prompter(make_tokenizer(), max_length=99, prompt_tokens=1, continued_tokens=1)
    with pytest.raises(pard_rt.InvalidArgumentError, match="no chat template"):
        bare.tasks([Record("file:1", [says("user", "?")])])


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "out.jsonl", {"seed": 1})
    file.begin()
    file.append({"text": "one"})
    with file.path.open("a") as torn:
        torn.write('{"text": "tw')
    again = LineFile(file.path, {"seed": 1})
    assert again.num_lines == 1
    again.begin()
    again.append({"text": "three"})
    assert read_lines(file.path) == [{"text": "one"}, {"text": "three"}]


def test_lines_made_otherwise_are_left_alone(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "out.jsonl", {"seed": 1})
    file.begin()
    LineFile(file.path, {"seed": 2}).begin()  # nothing was written yet
    LineFile(file.path, {"seed": 2}).append({"text": "one"})
    with pytest.raises(pard_rt.FolderError, match="expected seed = 2, got seed = 3"):
        LineFile(file.path, {"seed": 3})
    foreign = write_lines(tmp_path / "foreign.jsonl", {"text": "mine"})
    with pytest.raises(pard_rt.FolderError, match="none that says how"):
        LineFile(foreign, {"seed": 3})


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for place, why in (("missing/out.jsonl", "no folder"), ("folder.jsonl", "got a folder"),
                       ("out.txt", "ends in '.txt'")):  # fmt: skip
        with pytest.raises(pard_rt.FolderError, match=why):
            LineFile(tmp_path / place, {})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse what would make a file larger, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "out.jsonl", {})
    file.begin()
    file.append({"text": "one"})
    with largest_file(20), pytest.raises(pard_rt.FolderError, match="after the last whole line"):
        file.append({"text": "two"})
    assert file.path.stat().st_size == 20  # torn
    again = LineFile(file.path, {})
    again.begin()
    again.append({"text": "two"})
    assert read_lines(file.path) == [{"text": "one"}, {"text": "two"}]


def test_every_turn_is_answered_on_top_of_the_answers_before(target: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", *({"messages": chat} for chat in CHATS))
    done = regenerate(target, [data], tmp_path / "out.jsonl", max_new_tokens=30)
    generator, tokenizer = Generator(target), load_tokenizer(str(target))
    assert tokenizer is not None
    answers = cut = 0
    for line, chat in zip(read_lines(done.file), CHATS, strict=True):
        rendered, said = "", []
        for message in chat:
            if message["role"] == "assistant":
                continue
            rendered += f"<{message['role']}>{message['content']}</s>"
            said.append(message)
            if message["role"] == "user":
                output = generator.generate(
                    tokenizer(rendered + "<assistant>").input_ids, max_new_tokens=30
                )
                assert output.text is not None
                at_limit = output.finish_reason == "length"
                answers, cut = answers + 1, cut + at_limit
                text = output.text.rstrip("\ufffd") if at_limit else output.text
                rendered += f"<assistant>{text}</s>"
                said.append(says("assistant", text))
                if at_limit:
                    break
        assert line == {"messages": said}
    assert (done.lines, done.answers, done.cut) == (len(CHATS), answers, cut)
    assert answers > len(CHATS) > cut  # some conversation went on


def test_texts_are_written_on(target: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = regenerate(target, [text], tmp_path / "out.jsonl", prompt_tokens=20, max_new_tokens=30)
    generator, tokenizer = Generator(target), make_tokenizer()
    tokens = tokenizer(TEXT).input_ids
    expected = []
    for first in range(0, len(tokens) - 19, 50):
        output = generator.generate(tokens[first : first + 20], max_new_tokens=30)
        assert output.text is not None
        written = output.text.rstrip("\ufffd") if output.finish_reason == "length" else output.text
        expected.append({"text": tokenizer.decode(tokens[first : first + 20]) + written})
    assert read_lines(done.file) == expected
    assert len(expected) > 1


SAMPLED: Any = {"max_new_tokens": 24, "prompt_tokens": 8, "temperature": 1.2, "seed": 5}


def test_neither_batch_nor_draft_nor_a_cut_changes_a_line(
    target: Path, data: Path, tmp_path: Path, tiny_models: TinyModels
) -> None:
    one = regenerate(target, [data], tmp_path / "one.jsonl", batch_size=1, **SAMPLED)
    expected = one.file.read_bytes()
    assert len(set(expected.splitlines())) == one.lines  # nor does noise repeat between lines

    draft = tiny_models.checkpoint("llama", seed=4, mask_token=True)
    drafted: Any = {"draft": draft, "num_speculative_tokens": 3, "batch_size": 5, **SAMPLED}
    assert regenerate(target, [data], tmp_path / "two.jsonl", **drafted).rounds < one.tokens
    assert (tmp_path / "two.jsonl").read_bytes() == expected

    class CutError(Exception):
        pass

    def cut(done: regenerate_module.Regenerated) -> None:
        if done.lines in (1, 4):
            raise CutError

    output = tmp_path / "three.jsonl"
    for size in (2, 7):
        with pytest.raises(CutError):
            regenerate(target, [data], output, batch_size=size, report=cut, **SAMPLED)
        with output.open("ab") as torn:
            torn.write(b'{"text": "to')
    done = regenerate(target, [data], output, **SAMPLED)
    assert output.read_bytes() == expected
    assert (done.lines, done.total) == (one.lines, one.total)
    assert done.answers < one.answers
    assert regenerate(target, [data], output, **SAMPLED).answers == 0
    other = regenerate(target, [data], tmp_path / "four.jsonl", **SAMPLED | {"seed": 6})
    assert other.file.read_bytes() != expected


def test_an_onnx_folder_says_the_same(target: Path, data: Path, tmp_path: Path) -> None:
    folder = pard_rt.export(target, tmp_path / "onnx").folder
    ours = regenerate(folder, [data], tmp_path / "onnx.jsonl", threads=1, **SAMPLED)
    assert (
        ours.file.read_bytes()
        == regenerate(target, [data], tmp_path / "torch.jsonl", **SAMPLED).file.read_bytes()
    )


def test_lines_of_another_target_are_left_alone(target: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    regenerate(target, [data], output, **SAMPLED)
    before = output.read_bytes()
    other = shutil.copytree(target, tmp_path / "other" / target.name)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)

    def refused(match: str, **changes: Any) -> None:
        arguments = {"target": target, "data": [data], **SAMPLED, **changes}
        with pytest.raises(pard_rt.FolderError, match=match):
            regenerate(output=output, **arguments)
        assert output.read_bytes() == before

    refused("expected target = ", target=other)
    refused("expected data = ", data=[data, data])
    refused("got seed = 6", seed=6)
    refused("got temperature = 0.5", temperature=0.5)
    refused("got max_length = 100", max_length=100)


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    target: Path, data: Path, tmp_path: Path
) -> None:
    def refused(match: str, *files: Path, **options: Any) -> None:
        with pytest.raises(pard_rt.Error, match=match):
            regenerate(target, files, tmp_path / "out.jsonl", **options)
        assert not list(tmp_path.glob("out*"))

    refused("nothing to answer")
    refused("cannot be read", tmp_path / "missing.jsonl")
    refused("is no document", write_lines(tmp_path / "odd.jsonl", {"words": 3}))
    refused("batch_size is out of range", data, batch_size=0)
    refused("max_new_tokens is out of range", data, max_new_tokens=0)
    refused("temperature", data, temperature=-1.0)
    refused("longer ones", data, max_length=5)
    refused("Unknown device", data, device="abacus")


def test_training_reads_what_was_written(target: Path, data: Path, tmp_path: Path) -> None:
    done = regenerate(target, [data], tmp_path / "out.jsonl", **SAMPLED)
    tokenizer = load_tokenizer(str(target))
    documents = read_documents([done.file], tokenizer, max_length=512)
    assert len(documents) == done.lines
    chat = read_lines(done.file)[0]["messages"]
    assert chat[2]["content"] in tokenizer.decode(documents[0].tokens[documents[0].learnt])


def test_the_command(
    target: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    long = write_lines(tmp_path / "long.jsonl", {"messages": [says("user", "x" * 600)]})
    command = ["train", "regenerate", "--target", str(target), "--data", str(data), str(long)]
    command += ["--output", str(output), "--max-new-tokens", "24", "--temperature", "1.2"]
    assert main([*command, "--prompt-tokens", "8", "--seed", "5", "--batch-size", "3"]) == 0
    said = capsys.readouterr().out
    assert "tokens per second" in said
    assert "1 prompts, too long for the target" in said
    assert read_lines(output) == read_lines(
        regenerate(target, [data], tmp_path / "same.jsonl", **SAMPLED).file
    )
    assert main([*command, "--seed", "6"]) == 2
    assert "made otherwise" in capsys.readouterr().err
    assert main([*command, "--prompt-tokens", "8", "--seed", "5"]) == 0
    assert "answers" not in capsys.readouterr().out


def test_the_example() -> None:
    found = doctest.testmod(regenerate_module)
    assert (found.failed, found.attempted > 0) == (0, True)
