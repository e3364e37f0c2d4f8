"""A data set in the words of the target: what is asked, what is written, going on, saying no."""

from __future__ import annotations

import doctest
import json
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import pard_rt
from conftest import TinyModels
from pard_rt import Generator, regenerate
from pard_rt.cli import main
from pard_rt.models.checkpoint import load, load_tokenizer
from pard_rt.training import regenerate as regenerate_module
from pard_rt.training.documents import read_documents
from pard_rt.training.kept_logits import logits_file, with_logits
from pard_rt.training.line_file import LineFile
from pard_rt.training.prompts import Answer, Prompter
from pard_rt.training.records import Record, read_records
from tiny_models import EOS, NUM_TOKENS, VOCAB_SIZE, make_tokenizer

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
        tokenizer,
        max_length=max_length,
        prompt_tokens=prompt_tokens,
        question_tokens=30,
        continued_tokens=20,
    )


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", {"text": "one\u2028two\x85"}, {"text": "three"})
    assert [record.content for record in read_records([file])] == ["one\u2028two\x85", "three"]


def test_texts_are_asked_in_pieces() -> None:
    prompter = make_prompter()
    tokens = make_tokenizer()(TEXT).input_ids
    prompts = [next(task()).prompt for task in prompter.tasks([Record("here", TEXT)])]
    pieces = [tokens[first : first + 10] for first in range(0, len(tokens), 30)]
    assert prompts == [piece for piece in pieces if len(piece) == 10]
    short = prompter.tasks([Record("here", "the"), Record("there", "über" * 9)])
    assert [make_tokenizer().decode(next(task()).prompt) for task in short] == ["the", "überüberü"]


def test_prompts_too_long_are_counted() -> None:
    records = [Record("here", [says("user", "x" * n)]) for n in (10, 200, 20)]
    prompter = make_prompter(max_length=100)
    assert len(prompter.tasks(records)) == 2
    assert prompter.num_skipped == 1
    with pytest.raises(pard_rt.InvalidArgumentError, match="got 1 longer ones"):
        make_prompter(max_length=100).tasks(records[1:2])


def line_of(prompter: Prompter, content: Any, *outputs: Answer) -> Any:
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
    cut = Answer("wh\ufffd", is_cut=True)  # half a character at the end
    expected = {"messages": [says("user", "one?"), says("assistant", "wh")]}
    assert line_of(make_prompter(), turns, cut) == expected
    expected = {"messages": [says("user", "one?"), says("assistant", "wh\ufffd")]}
    whole = Answer("wh\ufffd", is_cut=False)
    assert line_of(make_prompter(max_length=30), turns, whole) == expected  # no room for two?
    last = line_of(make_prompter(), turns, whole, Answer("yes", is_cut=False))
    assert last["messages"][2:] == [says("user", "two?"), says("assistant", "yes")]
    assert line_of(make_prompter(), "the", cut) == {"text": "thewh"}


def test_what_the_assistant_said_is_dropped() -> None:
    turns = [
        says("assistant", "hello"), says("user", "one"), says("user", "two?"),
        says("assistant", "old"), says("assistant", "older"), says("system", "stop"),
    ]  # fmt: skip
    answer = Answer("new", is_cut=False)
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
    bare = Prompter(
        make_tokenizer(), max_length=99, prompt_tokens=1, question_tokens=1, continued_tokens=1
    )
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
    refused("shard is out of range", data, shard=(3, 2))
    refused("question_tokens is out of range", questions=1, question_tokens=600)
    refused("cannot be read", tmp_path / "missing.jsonl")
    refused("is not a document", write_lines(tmp_path / "odd.jsonl", {"words": 3}))
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


def test_questions_are_the_targets_own(target: Path, data: Path, tmp_path: Path) -> None:
    options: Any = {"questions": 6, "max_new_tokens": 24, "seed": 5}
    done = regenerate(target, [], tmp_path / "own.jsonl", **options)
    lines = read_lines(done.file)
    assert done.lines == done.answers == len(lines) == 6
    generator, tokenizer = Generator(target), load_tokenizer(str(target))
    assert tokenizer is not None
    for line in lines:
        question, answer = line["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        prompt = tokenizer(f"<user>{question['content']}</s><assistant>").input_ids
        output = generator.generate(prompt, max_new_tokens=24)
        assert (output.text or "").rstrip("\ufffd") == answer["content"].rstrip("\ufffd")
    assert len({line["messages"][0]["content"] for line in lines}) > 3  # sampled
    # After the data's lines they are the same but for their noise.
    both = regenerate(target, [data], tmp_path / "both.jsonl", **options, prompt_tokens=8)
    alone = regenerate(
        target, [data], tmp_path / "alone.jsonl", max_new_tokens=24, seed=5, prompt_tokens=8
    )
    assert read_lines(both.file)[: alone.lines] == read_lines(alone.file)
    assert both.lines == alone.lines + 6


def test_a_target_that_does_not_chat_begins_texts(target: Path, tmp_path: Path) -> None:
    base = shutil.copytree(target, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    options: Any = {"questions": 4, "prompt_tokens": 3, "max_new_tokens": 12}
    done = regenerate(base, [], tmp_path / "own.jsonl", **options)
    texts = [line["text"] for line in read_lines(done.file)]
    assert len(set(texts)) > 1
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(VOCAB_SIZE)]}))
    with pytest.raises(pard_rt.ModelError, match="ends the texts that it begins"):
        regenerate(base, [], tmp_path / "none.jsonl", **options)


def test_questions_that_never_end_are_an_error(target: Path, tmp_path: Path) -> None:
    target = shutil.copytree(target, tmp_path / "endless")
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    with pytest.raises(pard_rt.ModelError, match="does not end the questions") as raised:
        regenerate(target, [], tmp_path / "own.jsonl", questions=50, question_tokens=1, seed=1)
    assert "question_tokens" in str(raised.value)


def test_shards_are_the_whole_in_parts(target: Path, data: Path, tmp_path: Path) -> None:
    options: Any = {**SAMPLED, "questions": 3}
    whole = regenerate(target, [data], tmp_path / "whole.jsonl", **options)
    parts = [
        regenerate(target, [data], tmp_path / f"{part}.jsonl", shard=(part, 3), **options)
        for part in (1, 2, 3)
    ]
    assert b"".join(part.file.read_bytes() for part in parts) == whole.file.read_bytes()
    assert all(part.lines == part.total > 0 for part in parts)


@contextmanager
def serving(target: Path, fail_after: int = 1 << 30) -> Iterator[str]:
    """An OpenAI server of a target that fails after some answers."""
    generator = Generator(target)
    lock, served = threading.Lock(), iter(range(1 << 30))

    class Handler(BaseHTTPRequestHandler):
        def _say(self, status: int, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self._say(200, {"data": [{"id": "tiny", "max_model_len": 512}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, asked["model"]) == ("/v1/completions", "tiny")
            with lock:
                if next(served) >= fail_after:
                    self._say(500, {"error": {"message": "out of luck"}})
                    return
                output = generator.generate(
                    asked["prompt"],
                    max_new_tokens=asked["max_tokens"],
                    stop_token_ids=asked["stop_token_ids"],
                    temperature=asked["temperature"],
                    seed=asked["seed"],
                )
            reason = "length" if output.finish_reason == "length" else "stop"
            usage = {"completion_tokens": len(output.token_ids)}
            choice = {"text": output.text, "finish_reason": reason}
            self._say(200, {"choices": [choice], "usage": usage})

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_an_endpoint_answers_in_the_targets_place(target: Path, data: Path, tmp_path: Path) -> None:
    options: Any = {"max_new_tokens": 24, "prompt_tokens": 8}
    expected = regenerate(target, [data], tmp_path / "here.jsonl", **options)
    output = tmp_path / "there.jsonl"
    with (
        serving(target, fail_after=4) as url,
        pytest.raises(pard_rt.ModelError, match=r"failed.*500.*out of luck"),
    ):
        regenerate(target, [data], output, endpoint=url, **options)
    assert len(read_lines(output)) < expected.lines
    with serving(target) as url:
        done = regenerate(target, [data], output, endpoint=url, batch_size=40, **options)
        assert read_lines(output) == read_lines(expected.file)
        assert (done.lines, done.rounds) == (expected.lines, 0)
        assert done.tokens > 0
        with pytest.raises(pard_rt.InvalidArgumentError, match=r"serves no such model.*tiny"):
            regenerate(
                target, [data], tmp_path / "x.jsonl", endpoint=url, endpoint_model="x", **options
            )
    for nowhere in (url, "http://localhost:80a0/v1", "localhost"):
        with pytest.raises(pard_rt.InvalidArgumentError, match="does not list its models"):
            regenerate(target, [data], tmp_path / "x.jsonl", endpoint=nowhere, **options)


def test_kept_logits_are_the_targets(target: Path, data: Path, tmp_path: Path) -> None:
    options: Any = {**SAMPLED, "questions": 2}
    done = regenerate(target, [data], tmp_path / "out.jsonl", keep_logits=5, **options)
    assert done.kept == done.lines
    loaded = load(target)
    documents = read_documents([done.file], loaded.tokenizer, max_length=40)
    assert len(documents) > done.lines  # some are cut
    documents = with_logits(documents, [done.file], loaded.tokenizer)
    for document in documents:
        assert document.likely is not None
        with torch.no_grad():
            logits = loaded.module(input_ids=document.tokens[None]).logits[0, :-1]
        likely = document.likely.spread(document.learnt)
        for place in document.learnt[1:].nonzero()[:, 0].tolist():
            if document.offset or place == 0:
                continue  # a later piece does not see what came before
            expected = logits[place, :NUM_TOKENS].log_softmax(-1).topk(5)
            assert likely.ids[place + 1].tolist() == expected.indices.tolist()
            torch.testing.assert_close(
                likely.logprobs[place + 1], expected.values, atol=0.01, rtol=0.01
            )
    # They resume after the last whole line, and are of these lines alone.
    file = logits_file(done.file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(pard_rt.InvalidArgumentError, match="expected logits of"):
        with_logits(documents, [done.file], loaded.tokenizer)
    regenerate(target, [data], done.file, keep_logits=5, **options)
    assert file.read_bytes() == whole
    with pytest.raises(pard_rt.FolderError, match="holds other logits"):
        regenerate(target, [data], done.file, keep_logits=6, **options)
    with pytest.raises(pard_rt.InvalidArgumentError, match="keep_logits is out of range"):
        regenerate(target, [data], tmp_path / "few.jsonl", keep_logits=1000, **options)
    # Other answers under the same name.
    done.file.unlink()
    with pytest.raises(pard_rt.FolderError, match="holds other logits"):
        regenerate(target, [data], done.file, keep_logits=5, **{**options, "seed": 99})
    with pytest.raises(pard_rt.InvalidArgumentError, match="do not fit"):
        with_logits(documents, [done.file], loaded.tokenizer)
    done.file.unlink()
    regenerate(target, [data], done.file, **options)
    loaded.tokenizer.add_tokens(["more"])
    with pytest.raises(pard_rt.InvalidArgumentError, match=r"do not fit.*vocabulary"):
        with_logits(documents, [done.file], loaded.tokenizer)
    file.write_bytes(b"nothing\n" + whole)
    with pytest.raises(pard_rt.FolderError, match="does not begin as kept logits do"):
        with_logits(documents, [done.file], loaded.tokenizer)


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
    with pytest.raises(SystemExit):
        main([*command, "--shard", "half"])
    assert "expected two numbers such as 1/4, got 'half'" in capsys.readouterr().err
    assert main([*command, "--seed", "6"]) == 2
    assert "made otherwise" in capsys.readouterr().err
    assert main([*command, "--prompt-tokens", "8", "--seed", "5", "--shard", "1/1"]) == 0
    assert "answers" not in capsys.readouterr().out


def test_the_example() -> None:
    found = doctest.testmod(regenerate_module)
    assert (found.failed, found.attempted > 0) == (0, True)
