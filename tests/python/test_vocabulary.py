"""Tokens of a pair: what ids stand for, which pairs fit, what is proposed and what is said."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

import pard_rt
from conftest import TinyModels
from pard_rt import Generator
from pard_rt.cli import main
from pard_rt.errors import (
    FolderError,
    IncompatibleModelsError,
    InvalidArgumentError,
    ModelError,
    Notice,
)
from pard_rt.models.checkpoint import load
from pard_rt.pytorch.captured_executor import CapturedExecutor
from pard_rt.pytorch.torch_model import TorchModel
from pard_rt.text import TokenText
from pard_rt.training.train import train
from pard_rt.vocabulary import count_tokens, token_bytes
from tiny_models import BOS, EOS, NUM_TOKENS, PAD, VOCAB_SIZE, make_tokenizer

PROMPT = "the cat in a hat "
SMALL = NUM_TOKENS + 2  # rows of a draft that lacks some of its target's


def copy_with_tokens(checkpoint: Path, to: Path, *tokens: str, special: bool = False) -> Path:
    """A checkpoint whose tokenizer has some tokens more than the tiny models'."""
    shutil.copytree(checkpoint, to)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.save_pretrained(to)
    return to


def with_another_token(checkpoint: Path, to: Path) -> Path:
    """A checkpoint whose tokenizer has two tokens in each other's place."""
    shutil.copytree(checkpoint, to)
    file = to / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(content))
    return to


def spelled(tokens: dict[str, int], *decoder: decoders.Decoder) -> list[bytes]:
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.decoder = decoders.Sequence(list(decoder))
    table = token_bytes(tokenizer, count_tokens(tokenizer))
    for token, i in tokens.items():
        assert tokenizer.decode([i]) == table[i].decode(errors="replace"), token
    return table


# What ids stand for ------------------------------------------------------------------------------


def test_only_two_hexadecimal_digits_make_a_byte() -> None:
    named = ("<0x41>", "<0xe9>", "<0xZZ>", "<0x4>", "<0x>", "<0x411>", "<0x4 >", "<0x\u00e9>")
    tokens = {token: i for i, token in enumerate(named)}
    assert spelled(tokens, decoders.ByteFallback(), decoders.Fuse()) == [
        b"A",
        b"\xe9",
        *(token.encode() for token in named[2:]),
    ]


def test_a_byte_is_only_where_the_decoder_says_so() -> None:
    assert spelled({"<0x41>": 0, "\u2581a": 1}, decoders.Replace("\u2581", " ")) == [
        b"<0x41>",
        b" a",
    ]


def test_a_space_is_what_the_decoder_replaces() -> None:
    tokens = {"x_a": 0, "x\u2581a": 1}
    assert spelled(tokens, decoders.Replace("_", " "), decoders.Fuse()) == [
        b"x a",
        "x\u2581a".encode(),
    ]
    assert spelled(tokens, decoders.Metaspace("_", "never")) == [b"x a", "x\u2581a".encode()]


@pytest.mark.parametrize(
    "decoder",
    [decoders.WordPiece(), decoders.BPEDecoder(), decoders.CTC(), None],
    ids=["WordPiece", "BPEDecoder", "CTC", "none"],
)
def test_a_decoder_that_looks_at_neighbours_is_refused(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoders.Sequence([decoders.Replace("_", " "), decoder])
    with pytest.raises(ModelError, match="cannot be told"):
        token_bytes(tokenizer, 1)


def test_half_a_surrogate_pair_is_no_token(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = copy_with_tokens(tiny_models.checkpoint("llama"), tmp_path / "model", "<odd>")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<odd>", "\\ud800"))
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read"):
        load(folder)
    with pytest.raises(FolderError, match="a damaged one"):
        TokenText.of_folder(folder, NUM_TOKENS)


# Tokens without logits ---------------------------------------------------------------------------


def test_a_token_behind_the_logits_is_an_error_only_where_it_is_used(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    tokens = [f"<extra_{i}>" for i in range(VOCAB_SIZE - NUM_TOKENS + 1)]
    checkpoint = copy_with_tokens(
        tiny_models.checkpoint("llama"), tmp_path / "model", *tokens, special=True
    )
    assert load(checkpoint).facts.num_tokens == VOCAB_SIZE
    folder = pard_rt.export(checkpoint, tmp_path / "onnx").folder
    for source in (checkpoint, folder):
        generator = Generator(source)
        assert generator.generate(PROMPT + tokens[-2], max_new_tokens=4).token_ids
        with pytest.raises(InvalidArgumentError, match=f"'{tokens[-1]}'.*id {VOCAB_SIZE}"):
            generator.generate(PROMPT + tokens[-1], max_new_tokens=4)
        assert generator.generate(PROMPT, max_new_tokens=4).token_ids
    data = tmp_path / "data.txt"
    data.write_text(PROMPT + tokens[-1])
    with pytest.raises(InvalidArgumentError, match=f"'{tokens[-1]}'"):
        train(checkpoint, [data], tmp_path / "draft", max_length=64)


# Pairs -------------------------------------------------------------------------------------------


def test_a_draft_with_tokens_of_its_own_drafts_and_a_notice_names_them(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Qwen2 and Qwen2.5: the newer tokenizer has <tool_call>, and each may be the target."""
    older = tiny_models.checkpoint("llama", seed=3)
    newer = copy_with_tokens(older, tmp_path / "newer", "<tool_call>", "</tool_call>")
    old_onnx, new_onnx = (
        pard_rt.export(each, tmp_path / f"{each.name}-onnx").folder for each in (older, newer)
    )
    for target, draft in ((older, newer), (newer, older), (old_onnx, new_onnx)):
        with pytest.warns(Notice) as warned:
            generator = Generator(target, draft, method="draft", num_speculative_tokens=3)
        side = "draft" if "newer" in draft.name else "target"
        notice = str(warned[0].message)
        assert f"Only the {side} knows 2 tokens: '<tool_call>' ({NUM_TOKENS}), " in notice
        assert f"Ids from {NUM_TOKENS} on are never proposed." in notice
        assert len(warned) == 1
        assert warned[0].filename == __file__
        output = generator.generate(PROMPT, max_new_tokens=16)
        plain = generator.with_method("plain").generate(PROMPT, max_new_tokens=16)
        assert output.token_ids == plain.token_ids


def test_special_tokens_are_nobody_s_difference(tiny_models: TinyModels, tmp_path: Path) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    draft = copy_with_tokens(target, tmp_path / "draft", "<mask>", special=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Generator(target, draft, method="pard", mask_token_id=NUM_TOKENS)


def test_ids_that_mean_other_text_are_refused(tiny_models: TinyModels, tmp_path: Path) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    draft = with_another_token(target, tmp_path / "draft")
    folder = pard_rt.export(draft, tmp_path / "onnx").folder
    for source in (draft, folder):
        with pytest.raises(IncompatibleModelsError, match=r"2 of the \d+ token ids .*'a'.*'b'"):
            Generator(target, source, method="draft")


def test_a_draft_made_of_its_target_fits_whatever_its_mask_token(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    """The mask token may be text to the tokenizer, special, padding, or the last of all."""
    target = copy_with_tokens(
        tiny_models.checkpoint("llama", seed=3), tmp_path / "target", "<unused0>", "<last>"
    )
    mask_of = {"text": 40, "special": PAD, "unused": NUM_TOKENS, "last": NUM_TOKENS + 1}
    folder = pard_rt.export(target, tmp_path / "onnx").folder
    plain = Generator(target)
    expected = plain.generate(PROMPT, max_new_tokens=16).token_ids
    for name, mask in {**mask_of, "padding": NUM_TOKENS + 2}.items():
        for source, file, key in (
            (target, "config.json", "pard_token"),
            (folder, "pard_rt.json", "mask_token_id"),
        ):
            draft = shutil.copytree(source, tmp_path / f"{source.name}-{name}")
            content = json.loads((draft / file).read_text())
            (draft / file).write_text(json.dumps({**content, key: mask}))
            generator = plain.with_method("pard", draft, num_speculative_tokens=3)
            assert generator.generate(PROMPT, max_new_tokens=16).token_ids == expected, name
            assert generator.decoder.counts.accepted > 0


def test_a_model_whose_tokens_nobody_knows_may_draft_and_a_notice_says_so(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    target = tiny_models.folder("llama", "gqa", seed=3)
    silent = shutil.copytree(target, tmp_path / "silent")
    for name in ("token_bytes.bin", "tokenizer.json"):
        (silent / name).unlink()
    with pytest.warns(Notice, match="cannot be compared.*token_bytes"):
        Generator(target, silent, method="draft")
    with warnings.catch_warnings():  # ids only: who passes them knows what they mean
        warnings.simplefilter("error")
        Generator(silent, silent, method="draft")


def test_a_folder_s_tokens_are_those_of_its_tokenizer_where_it_has_no_table(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    target = tiny_models.folder("llama", "gqa", seed=3)
    other = with_another_token(tiny_models.checkpoint("llama", seed=3), tmp_path / "other")
    bare = shutil.copytree(target, tmp_path / "bare")
    (bare / "token_bytes.bin").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Generator(target, bare, method="draft")
    shutil.copyfile(other / "tokenizer.json", bare / "tokenizer.json")
    with pytest.raises(IncompatibleModelsError, match="different tokenizers"):
        Generator(target, bare, method="draft")


def test_an_old_folder_s_digest_is_ignored(tiny_models: TinyModels, tmp_path: Path) -> None:
    target = tiny_models.folder("llama", "gqa", seed=3)
    old = shutil.copytree(target, tmp_path / "old")
    contract = json.loads((old / "pard_rt.json").read_text())
    (old / "pard_rt.json").write_text(json.dumps({**contract, "vocabulary_id": "sha256:old"}))
    Generator(target, old, method="draft")


# A target with more tokens than its draft --------------------------------------------------------


@pytest.fixture(scope="module")
def larger_target(tiny_models: TinyModels) -> tuple[Path, Path]:
    """A target that emits ids past its draft's embedding, and that draft."""
    target = tiny_models.checkpoint("llama", seed=3)
    draft = tiny_models.checkpoint("llama", seed=3, mask_token=True, vocab_size=SMALL)
    return target, draft


@pytest.mark.parametrize("method", ["pard", "draft"])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_draft_goes_on_behind_ids_that_it_cannot_be_fed(
    method: pard_rt.Method,
    backend: str,
    larger_target: tuple[Path, Path],
    tiny_models: TinyModels,
) -> None:
    target, draft = larger_target
    if backend == "onnx":
        target = tiny_models.folder("llama", "gqa", seed=3)
        draft = tiny_models.folder("llama", "gqa", seed=3, mask_token=True, vocab_size=SMALL)
    generator = Generator(target, draft, method=method, num_speculative_tokens=4)
    plain = generator.with_method("plain")
    prompts = [[SMALL, 5, VOCAB_SIZE - 1, 9], [7, SMALL + 1], *([n, SMALL + n] for n in range(8))]
    emitted: list[int] = []
    for prompt in prompts:
        options: pard_rt.Options = {"max_new_tokens": 40, "eos_token_ids": []}
        expected = plain.generate(prompt, **options).token_ids
        assert generator.generate(prompt, **options).token_ids == expected
        emitted += expected
    assert any(token >= SMALL for token in emitted)
    assert generator.decoder.counts.drafted > 4 * len(prompts)


def test_captured_rounds_go_on_behind_ids_that_the_draft_cannot_be_fed(
    larger_target: tuple[Path, Path],
) -> None:
    target, draft = (load(each) for each in larger_target)
    executor = CapturedExecutor(
        target, draft, draft.facts.mask_token_id, prefill_chunk=4, max_batch_size=1
    )
    captured = pard_rt.Decoder(executor, num_speculative_tokens=4)
    plain = pard_rt.Decoder(TorchModel(load(larger_target[0])))
    emitted: list[int] = []
    for prompt in ([SMALL, 5, VOCAB_SIZE - 1, 9, 8, 7, SMALL], [7, SMALL + 1]):
        texts = []
        for decoder in (plain, captured):
            sequence = decoder.add(np.array(prompt), max_new_tokens=60)
            decoder.run()
            texts.append(sequence.generated.tolist())
        assert texts[0] == texts[1]
        emitted += texts[0]
    assert any(token >= SMALL for token in emitted)
    assert captured.counts.drafted > 40


# What is said ------------------------------------------------------------------------------------


def test_check_counts_and_names_tokens_of_one_side(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    draft = copy_with_tokens(target, tmp_path / "draft", *(f"<tool_{i}>" for i in range(7)))
    few = ("--max-new-tokens", "8", "--num-speculative-tokens", "2")
    assert main(["check", str(target), str(draft), *few]) == 0
    said = capsys.readouterr().out
    assert "note  tokenizers" in said
    assert "Only the draft knows 7 tokens: '<tool_0>'" in said
    assert "and 2 more." in said
    assert "Notice" not in said


@pytest.mark.filterwarnings("default::pard_rt.Notice")
def test_the_command_line_prints_a_notice_once(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    draft = copy_with_tokens(target, tmp_path / "draft", "<tool_call>")
    given = ["generate", PROMPT, "--target", str(target), "--draft", str(draft)]
    assert main([*given, "--max-new-tokens", "2"]) == 0
    said = capsys.readouterr().err
    assert said.count("pard-rt: The tokenizers of target") == 1
    assert "  Only the draft knows 1 token: '<tool_call>'" in said


def test_end_tokens_are_still_proposed(tiny_models: TinyModels) -> None:
    """They spell nothing, and yet both models know them."""
    info = TorchModel(load(tiny_models.checkpoint("llama", seed=3))).info()
    assert pard_rt._core.num_proposable(info, info) == NUM_TOKENS > max(BOS, EOS, PAD)
