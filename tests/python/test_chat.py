"""`Generator.chat`: tokens of the prompt, where an answer ends, sampling as the model says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pard_rt
from chat_models import CLOSE_ID, TEMPLATES, close_instead, make_chat_model
from conftest import TinyModels
from pard_rt import FolderError, Generator, InvalidArgumentError, export, load
from pard_rt.models.checkpoint import load_tokenizer
from tiny_models import BOS, EOS

MESSAGES = [{"role": "user", "content": "the cat and the hat?"}]
EIGHT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def checkpoint(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that chats, and does not end by itself."""
    source = tiny_models.checkpoint("llama", seed=3, max_position_embeddings=512)
    folder = make_chat_model(source, tmp_path_factory.mktemp("chat") / "target")
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": 5}')
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.with_name("folder")).folder


@pytest.fixture(scope="module", params=["hugging face", "onnx", "module"])
def generator(request: pytest.FixtureRequest, checkpoint: Path, folder: Path) -> Generator:
    sources = {"hugging face": checkpoint, "onnx": folder, "module": load(checkpoint)}
    return Generator(sources[request.param], threads=1)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def ids_of(folder: Path, messages: list[dict[str, str]], **options: Any) -> list[int]:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer is not None
    options = {"add_generation_prompt": True, **options}
    return list(tokenizer.apply_chat_template(messages, return_dict=False, **options))


def test_a_chat_is_decoding_behind_the_template(generator: Generator, checkpoint: Path) -> None:
    prompt = ids_of(checkpoint, MESSAGES)
    plain = generator.generate(prompt, **EIGHT)
    assert BOS not in prompt  # of its template; the tokenizer would add one
    assert generator.chat(MESSAGES, **EIGHT).token_ids == plain.token_ids
    with generator.stream_chat(MESSAGES, **EIGHT) as stream:
        assert "".join(map(str, stream)) == plain.text
    assert stream.output.token_ids == plain.token_ids


def test_an_answer_that_has_begun_is_continued(generator: Generator, checkpoint: Path) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "the hat"}]
    prompt = ids_of(checkpoint, begun, add_generation_prompt=False, continue_final_message=True)
    assert generator.chat(begun, **EIGHT).token_ids == generator.generate(prompt, **EIGHT).token_ids


def test_options_of_the_template(generator: Generator, checkpoint: Path) -> None:
    options = {"enable_thinking": False}
    plain = generator.generate(ids_of(checkpoint, MESSAGES, **options), **EIGHT)
    assert plain.token_ids != generator.chat(MESSAGES, **EIGHT).token_ids
    answer = generator.chat(MESSAGES, template_options=options, **EIGHT)
    assert answer.token_ids == plain.token_ids


def test_special_tokens_of_a_prompt_are_left_out(generator: Generator, checkpoint: Path) -> None:
    tokenizer = load_tokenizer(str(checkpoint))
    assert tokenizer is not None
    with_them = tokenizer("the hat").input_ids
    without = tokenizer("the hat", add_special_tokens=False).input_ids
    assert with_them == [BOS, *without]
    for add, ids in ((True, with_them), (False, without)):
        plain = generator.generate(ids, **EIGHT).token_ids
        output = generator.generate("the hat", add_special_tokens=add, **EIGHT)
        assert output.token_ids == plain
        stream = generator.stream("the hat", add_special_tokens=add, **EIGHT)
        assert [piece.token_id for piece in stream] == plain
    assert generator.generate("the hat", **EIGHT).token_ids == (
        generator.generate(with_them, **EIGHT).token_ids
    )


def test_the_end_of_a_turn_ends_an_answer(generator: Generator, copy: Path) -> None:
    """Though neither configuration names the token: a plain prompt does not end there."""
    said = generator.chat(MESSAGES, **EIGHT).token_ids
    close_instead(copy, said[5])
    target = Generator(copy, threads=1)
    answer = target.chat(MESSAGES, max_new_tokens=40)
    assert answer.finish_reason == "eos"
    assert answer.token_ids[-1] == CLOSE_ID
    assert CLOSE_ID not in answer.token_ids[:-1]
    plain = target.generate(ids_of(copy, MESSAGES), max_new_tokens=40)
    assert plain.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert len(plain.token_ids) == 40
    going_on = target.chat(MESSAGES, max_new_tokens=40, eos_token_ids=[EOS])
    assert going_on.token_ids == plain.token_ids
    with target.stream_chat(MESSAGES, max_new_tokens=40) as stream:
        assert [piece.token_id for piece in stream] == answer.token_ids


def test_both_configurations_name_ends(copy: Path, tmp_path: Path) -> None:
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 11]}')
    assert load(copy).facts.eos_token_ids == (7, 11, EOS)
    contract = export(copy, tmp_path / "folder").folder / "pard_rt.json"
    assert json.loads(contract.read_text())["eos_token_ids"] == [7, 11, EOS]
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert load(copy).facts.eos_token_ids == (7, EOS)


def test_an_exported_folder_has_every_template(copy: Path, tmp_path: Path) -> None:
    tools = [{"name": "weather"}]
    (copy / "additional_chat_templates").mkdir()
    for_tools = "tools of {{ bos_token }}" + TEMPLATES["qwen"]
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text(for_tools)
    folder = export(copy, tmp_path / "folder").folder
    before, after = (Generator(each, threads=1).chat_template for each in (copy, folder))
    text = after.render(MESSAGES, {"tools": tools})
    assert text.startswith("tools of <s>")
    assert text == before.render(MESSAGES, {"tools": tools})
    assert after.render(MESSAGES) == before.render(MESSAGES) != text
    places = [folder, *(place for place in folder.rglob("*") if place.is_dir())]
    assert all(place.stat().st_mode & 0o100 for place in places)  # can be entered


# ---- sampling as the model says ------------------------------------------------------------------


def test_sampling_is_the_models(generator: Generator) -> None:
    sampled = {**EIGHT, "seed": 4}
    expected = generator.generate("the", temperature=1.0, top_k=5, **sampled)
    assert generator.generate("the", sampling="model", **sampled).token_ids == expected.token_ids
    stream = generator.stream("the", sampling="model", **sampled)
    assert [piece.token_id for piece in stream] == expected.token_ids
    warm = generator.chat(MESSAGES, temperature=0.6, top_k=5, **sampled)
    chosen = generator.chat(MESSAGES, sampling="model", temperature=0.6, **sampled)
    assert chosen.token_ids == warm.token_ids
    greedy = generator.chat(MESSAGES, sampling="model", temperature=0.0, **sampled)
    assert greedy.token_ids == generator.chat(MESSAGES, **EIGHT).token_ids


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"temperature": 0.6}, {}),  # transformers would decode greedily, too
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": None, "top_p": 0.9, "min_p": 0.1},
            {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1},
        ),
    ],
)
def test_what_a_generation_config_says(
    config: dict[str, Any], sampling: dict[str, Any], copy: Path
) -> None:
    (copy / "generation_config.json").write_text(json.dumps(config))
    generator = Generator(copy, threads=1)
    options = {"seed": 4, **EIGHT}
    output = generator.generate("the", sampling="model", **options)
    assert output.token_ids == generator.generate("the", **sampling, **options).token_ids


def test_sampling_that_cannot_be_read(copy: Path) -> None:
    def refused(error: type[pard_rt.Error], match: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            Generator(copy, threads=1).generate("the", **options)

    refused(InvalidArgumentError, "Unknown sampling.*model.*'greedy'", sampling="greedy")
    file = copy / "generation_config.json"
    file.write_text('{"do_sample": true, "temperature": "warm"}')
    refused(pard_rt.Error, "temperature.*a number.*'warm'", sampling="model")
    file.unlink()
    refused(InvalidArgumentError, "does not say how it is sampled", sampling="model")


# ---- what is refused -----------------------------------------------------------------------------


def test_a_chat_that_is_too_long(generator: Generator) -> None:
    messages = [{"role": "user", "content": "cat " * 200}]
    with pytest.raises(InvalidArgumentError, match=r"too long.*at most 511 tokens, got \d+ tokens"):
        generator.chat(messages)
    with pytest.raises(InvalidArgumentError, match="Leave out old messages"):
        generator.stream_chat(messages)


def test_messages_and_options_are_checked_before_any_work(generator: Generator) -> None:
    before = generator.decoder.counts.rounds
    for messages in ([], [{"role": "usr", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(InvalidArgumentError):
            generator.chat(messages)
    with pytest.raises(InvalidArgumentError, match="Unicode"):
        generator.chat([{"role": "user", "content": "\ud800"}])
    with pytest.raises(InvalidArgumentError, match="max_new_tokens"):
        generator.chat(MESSAGES, max_new_tokens=0)
    assert generator.decoder.counts.rounds == before


def test_models_that_cannot_chat(copy: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has no chat template.*Use generate"):
        Generator(threads=1).chat(MESSAGES)
    (copy / "chat_template.jinja").write_text("{% for")
    generator = Generator(copy, threads=1)
    with pytest.raises(FolderError, match=r"chat template of .* cannot be read"):
        generator.chat(MESSAGES)
    assert generator.generate("the", **EIGHT).token_ids  # it can do that


def test_a_folder_chats_without_transformers(folder: Path, generator: Generator) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers"]))
from pard_rt import Generator
print(Generator({str(folder)!r}, threads=1).chat({MESSAGES!r}, max_new_tokens=8).token_ids)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == generator.chat(MESSAGES, **EIGHT).token_ids


def test_a_generator_for_another_method_chats_too(checkpoint: Path, generator: Generator) -> None:
    drafting = generator.with_method("draft", checkpoint, num_speculative_tokens=3)
    assert drafting.chat(MESSAGES, **EIGHT).token_ids == generator.chat(MESSAGES, **EIGHT).token_ids
