"""GGUF files are opened like any model: converted once, block by block, or refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch

import pard_rt
from gguf_files import MODELS, write_gguf
from pard_rt import Error, FolderError, Generator, InvalidArgumentError, ModelError
from pard_rt.cli import main
from pard_rt.exporter import carried
from pard_rt.models import OpenOptions, converted
from pard_rt.models.gguf import load_gguf
from tiny_models import BOS, EOS, make_tokenizer

PROMPTS = [[5, 6, 7, 8], list(range(40, 60)), [9]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pard-rt" / "gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("type_name", ["Q4_1", "Q8_0", "F16"])
def test_weights_are_what_transformers_reads(
    architecture: str, type_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", architecture, type_name)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: TOKENIZER)
    expected = load_gguf(file, OpenOptions()).module
    loaded, blocks = carried.load_blocks(file, OpenOptions())
    parts = dict(loaded.module.named_modules())
    for name, parameter in expected.named_parameters():
        layer = name.rpartition(".")[0]
        actual = parts[layer].get_parameter(name.rpartition(".")[2])
        if layer in blocks and name.endswith("weight"):
            actual = torch.from_numpy(blocks[layer].dequantize())
        torch.testing.assert_close(actual, parameter, rtol=0, atol=0, msg=name)
    matrices = {name for name, part in parts.items() if isinstance(part, torch.nn.Linear)}
    assert set(blocks) >= (set() if type_name == "F16" else matrices)


TOKENIZER = make_tokenizer()


def test_a_file_is_opened_like_any_model(file: Path, cache: Path) -> None:
    plain = Generator(file, threads=1)
    (folder,) = cache.glob("tiny-*/")
    expected = [plain.generate(each, max_new_tokens=20).token_ids for each in PROMPTS]
    written = os.stat(folder / "model.onnx").st_mtime_ns
    for k in (1, 4):
        drafted = Generator(str(file), file, num_speculative_tokens=k, threads=2)
        outputs = drafted.generate(PROMPTS, max_new_tokens=20)
        assert [output.token_ids for output in outputs] == expected
    assert os.stat(folder / "model.onnx").st_mtime_ns == written  # converted once
    assert plain.tokenizer.encode("the in").ids == TOKENIZER.encode("the in")
    assert pard_rt.read_folder(folder).eos_token_ids == [EOS]


def test_pytorch_dequantizes_a_file(file: Path, cache: Path) -> None:
    with pytest.warns(pard_rt.Notice, match="is dequantized.* GB in the file"):
        loaded = pard_rt.load(file)
    with pytest.warns(pard_rt.Notice, match="is dequantized"):
        generator = Generator(file, backend="torch")
    assert generator.generate([5, 6], max_new_tokens=4).token_ids
    assert loaded.facts.name == "tiny"
    assert not cache.exists()


def test_tables_are_stored_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", "qwen2", "Q8_0")
    pard_rt.export(file, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    (gather,) = (node for node in graph.node if node.op_type == "GatherBlockQuantized")
    (head,) = (node for node in graph.node if "logits" in node.output)
    assert gather.input[0] == head.input[1]
    assert not any(tensor.name.endswith("embed_tokens.weight") for tensor in graph.initializer)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("gpt-2", "I|'|LL|Ġpay|Ġ1234567|ĊĊĠ|Ġ\"|it|'s|Ġa|ĠURLPath|./|Ċ"),
        ("smollm", "I|'|LL|Ġpay|Ġ|1|2|3|4|5|6|7|ĊĊĠ|Ġ\"|it|'s|Ġa|ĠURLPath|./|Ċ"),
        ("llama-bpe", "I|'LL|Ġpay|Ġ|123|456|7|ĊĊ|Ġ|Ġ\"|it|'s|Ġa|ĠURLPath|./Ċ"),
        ("qwen2", "I|'LL|Ġpay|Ġ|1|2|3|4|5|6|7|ĊĊ|Ġ|Ġ\"|it|'s|Ġa|ĠURLPath|./Ċ"),
        ("gpt-4o", "I'LL|Ġpay|Ġ|123|456|7|ĊĊ|Ġ|Ġ\"|it's|Ġa|ĠURLPath|./Ċ"),
        ("tekken", "I|'LL|Ġpay|Ġ|1|2|3|4|5|6|7|ĊĊ|Ġ|Ġ\"|it|'s|Ġa|ĠURLPath|./Ċ"),
        ("deepseek-coder", "I|'|LL|Ġpay|Ġ|1|2|3|4|5|6|7|Ċ|Ċ|Ġ|Ġ\"|it|'|s|Ġa|ĠURLPath|./|Ċ"),
    ],
)
def test_text_is_split_as_the_file_says(split: str, expected: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", fields={"tokenizer.ggml.pre": split})
    splits = load_gguf(file, OpenOptions()).tokenizer.backend_tokenizer.pre_tokenizer
    pieces = splits.pre_tokenize_str("I'LL pay 1234567\n\n  \"it's a URLPath./\n")
    assert "|".join(piece for piece, _ in pieces) == expected


@pytest.mark.parametrize("says", [None, True, False])
def test_llama_3_begins_a_text(says: bool | None, tmp_path: Path) -> None:
    fields: dict[str, int | str] = {"tokenizer.ggml.pre": "llama-bpe"}
    if says is not None:
        fields["tokenizer.ggml.add_bos_token"] = says
    tokenizer = load_gguf(write_gguf(tmp_path / "m.gguf", fields=fields), OpenOptions()).tokenizer
    begins = [BOS] if says in (None, True) else []
    assert tokenizer.encode("the") == begins + TOKENIZER.encode("the", add_special_tokens=False)
    assert tokenizer.backend_tokenizer.model.ignore_merges


@pytest.mark.parametrize(("split", "said"), [("", "does not say how"), ("zz", "says 'zz'")])
def test_an_unknown_split_is_noticed(split: str, said: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", fields={"tokenizer.ggml.pre": split})
    with pytest.warns(pard_rt.Notice, match=f"other tokens than the model was made for.*{said}"):
        load_gguf(file, OpenOptions())


def test_a_changed_file_is_converted_again(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Generator(file).generate([5, 6], max_new_tokens=8).token_ids
    write_gguf(file, seed=1)
    assert Generator(file).generate([5, 6], max_new_tokens=8).token_ids != before
    folders = list(cache.glob("tiny-*/"))
    assert len(folders) == 2
    assert main(["cache", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(str(folder) in listed for folder in folders)
    assert main(["cache", "clear"]) == 0
    assert not cache.exists()
    assert main(["cache", "list"]) == 0
    assert "nothing in" in capsys.readouterr().out


def test_files_in_parts_open_from_the_first(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf")
    first = write_gguf(tmp_path / "m.gguf", splits=3)
    expected = Generator(whole).generate([5, 6], max_new_tokens=8).token_ids
    assert Generator(first).generate([5, 6], max_new_tokens=8).token_ids == expected
    second = tmp_path / "m-00002-of-00003.gguf"
    with pytest.raises(ModelError, match="is part 2 of a model of 3 files"):
        Generator(second)
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"no 'm-00002-of-00003\.gguf'"):
        Generator(first)


def test_parts_that_were_merged_are_one_file(tmp_path: Path) -> None:
    merged = write_gguf(tmp_path / "m.gguf", fields={"split.count": 0})
    assert Generator(merged).generate([5, 6], max_new_tokens=2).token_ids


def test_files_beside_it_do_not_count(file: Path) -> None:
    expected = Generator(file).tokenizer.encode("the in").ids
    os.utime(file, (0, 0))  # converted again
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (file.parent / name).write_text("{}")
    assert Generator(file).tokenizer.encode("the in").ids == expected


def test_what_a_killed_process_left_is_removed(file: Path, cache: Path) -> None:
    folder = converted.conversion_of(file)
    rest = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    rest.mkdir(parents=True)
    (rest / "model.onnx").write_text("")
    assert converted.conversions() == []
    assert converted.converted(file) == folder
    assert converted.conversions() == [folder]
    assert not rest.exists()


def test_options_are_refused_before_a_file_is_converted(file: Path, cache: Path) -> None:
    for options in ({"device": "cuda"}, {"dtype": torch.float16}):
        with pytest.raises(InvalidArgumentError, match="run on the CPU"):
            Generator(file, **options)
    assert not cache.exists()


def _convert(file: Path, cache: str, results: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    results.put(str(converted.converted(file)))


def test_two_processes_convert_once(file: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (file, str(cache.parents[1]), results)
    both = [context.Process(target=_convert, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    folders = {results.get(timeout=300) for _ in both}
    for process in both:
        process.join()
    assert folders == {str(folder) for folder in cache.glob("tiny-*/")}


def _set_type(data: bytearray) -> None:
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    data[at : at + 4] = struct.pack("<I", 999)


def _set_count(data: bytearray) -> None:
    data[16:24] = struct.pack("<Q", 1 << 60)


def _set_array(data: bytearray) -> None:
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    data[at : at + 8] = struct.pack("<Q", 1 << 60)


def _spoil_string(data: bytearray) -> None:
    at = data.index(b"tokenizer.ggml.model") + len(b"tokenizer.ggml.model") + 12
    data[at : at + 2] = b"\xff\xfe"


def _cut(data: bytearray) -> None:
    del data[-4000:]


@pytest.mark.parametrize("spoil", [_set_type, _set_count, _set_array, _spoil_string, _cut])
def test_damaged_files_are_refused(
    spoil: Callable[[bytearray], None], file: Path, cache: Path
) -> None:
    data = bytearray(file.read_bytes())
    spoil(data)
    file.write_bytes(data)
    with pytest.raises(ModelError, match="cannot be read"):
        Generator(file)
    assert not list(cache.glob("*/"))


def test_files_that_say_too_much_are_refused(tmp_path: Path) -> None:
    more = write_gguf(tmp_path / "a.gguf", extra={"blk.0.ssm_a.weight": np.ones((4, 64))})
    with pytest.raises(ModelError, match=r"no place for.*blk\.0\.ssm_a\.weight"):
        Generator(more)
    turns = "turns positions in a way"
    with pytest.raises(ModelError, match=rf"{turns}.*yarn"):
        Generator(write_gguf(tmp_path / "b.gguf", scaling="yarn"))
    half = write_gguf(tmp_path / "d.gguf", fields={"llama.rope.dimension_count": 8})
    with pytest.raises(ModelError, match=rf"{turns}.*8 of 16 dimensions"):
        Generator(half)
    factors = {"rope_factors_long.weight": np.ones(8, np.float32)}
    with pytest.raises(ModelError, match=rf"{turns}.*rope_factors_long"):
        Generator(write_gguf(tmp_path / "e.gguf", "phi3", extra=factors))
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError):
        Generator(tmp_path / "c.gguf")


def test_rope_factors_count(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    file = write_gguf(tmp_path / "m.gguf", extra=factors)
    scaled, _ = carried.load_blocks(file, OpenOptions())
    plain, _ = carried.load_blocks(write_gguf(tmp_path / "n.gguf"), OpenOptions())
    for module in (scaled.module, load_gguf(file, OpenOptions()).module):
        actual = module.base_model.rotary_emb.inv_freq
        expected = plain.module.base_model.rotary_emb.inv_freq
        torch.testing.assert_close(actual, expected / torch.linspace(1, 8, 8))


def test_what_a_file_is_not_for(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is a file, which has no revisions"):
        Generator(file, revision="main")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelError, match="cannot be read"):
        Generator(tmp_path / "text.gguf")
    with pytest.raises(InvalidArgumentError, match="kept only where there is one"):
        pard_rt.export(tmp_path, tmp_path / "out", weights="gguf")


def test_a_cache_that_cannot_be_written_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(FolderError, match="cannot be written"):
        Generator(file)


def test_any_damage_is_a_typed_error_or_a_model(tmp_path: Path, cache: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", num_hidden_layers=1).read_bytes()
    header = whole.index(b"token_embd.weight") + 200
    drawn = random.Random(1)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            data[drawn.randrange(header)] = drawn.randrange(256)
        spoilt = tmp_path / "spoilt.gguf"
        spoilt.write_bytes(data)
        try:
            carried.load_blocks(spoilt, OpenOptions())
        except Error:
            continue
    assert not cache.exists()


def test_info_says_what_a_file_is(
    file: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert main(["info", str(file)]) == 0
    out = capsys.readouterr().out
    assert "GGUF file" in out
    assert "llama" in out
    assert "not converted" in out
    Generator(file)
    assert main(["info", str(file)]) == 0
    assert str(next(cache.glob("tiny-*/"))) in capsys.readouterr().out
