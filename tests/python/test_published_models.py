"""Real weights: the greedy text is transformers', in PyTorch and from a folder, drafted or not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoTokenizer

import pard_rt
from pard_rt.exporter import ExportReport
from pard_rt.exporter.gguf_blocks import carry_over
from pard_rt.generator import Generator, Method
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.models.open import Source
from pard_rt.text import TokenText
from published_equality import PROMPTS, Reference, exported, token_ids
from published_models import REQUIREMENTS, gguf_file

MAX_NEW_TOKENS = 64
LLAMA_TOKENS = REQUIREMENTS / "llama_tokens.json"  # what its llama-tokenize prints
SMALLER = {"qwen1.5b": "qwen0.5b"}  # which drafts for it
ROUNDED = ("qwen1.5b",)  # its float32 folder would take 20 GB to export


@pytest.fixture(scope="module")
def reference(published: Path) -> Reference:
    return Reference(published)


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[list[int]]:
    return [reference.encode(prompt) for prompt in PROMPTS[:2]]


@pytest.fixture(scope="module")
def expected(reference: Reference, prompts: list[list[int]]) -> list[list[int]]:
    return reference.texts(prompts, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def folder(published: Path) -> Path:
    return exported(published, "int8" if published.name in ROUNDED else "fp32")


@pytest.fixture(scope="module")
def in_pytorch(published: Path) -> LoadedModel:
    return pard_rt.load(published, dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(in_pytorch: LoadedModel) -> Generator:
    return Generator(in_pytorch, threads=1)


@pytest.fixture(scope="module")
def plain_folder(folder: Path) -> Generator:
    return Generator(folder, threads=1)


@pytest.fixture(scope="module")
def undrafted(plain_folder: Generator, prompts: list[list[int]]) -> list[list[int]]:
    return token_ids(plain_folder, prompts, MAX_NEW_TOKENS)


def test_pytorch_writes_what_transformers_does(
    plain: Generator, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert token_ids(plain, prompts, MAX_NEW_TOKENS) == expected


def test_a_folder_writes_what_transformers_does(
    published: Path, undrafted: list[list[int]], expected: list[list[int]]
) -> None:
    if published.name in ROUNDED:
        pytest.skip(f"the folder of {published.name} has rounded weights")
    assert undrafted == expected


@pytest.mark.parametrize(("method", "k"), [("pard", 1), ("pard", 4), ("draft", 8)])
def test_drafting_in_pytorch_changes_no_text(
    in_pytorch: LoadedModel,
    plain: Generator,
    prompts: list[list[int]],
    expected: list[list[int]],
    method: Method,
    k: int,
) -> None:
    drafted = draft_with(in_pytorch, plain, method, k)
    assert token_ids(drafted, prompts, MAX_NEW_TOKENS, batch_size=2) == expected
    assert drafted.decoder.counts.accepted > 0


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("method", ["pard", "draft"])
def test_drafting_over_a_folder_changes_no_text(
    folder: Path,
    plain_folder: Generator,
    prompts: list[list[int]],
    undrafted: list[list[int]],
    method: Method,
    k: int,
) -> None:
    drafted = draft_with(folder, plain_folder, method, k)
    assert token_ids(drafted, prompts, MAX_NEW_TOKENS) == undrafted
    assert drafted.decoder.counts.accepted > 0


def test_a_folder_encodes_and_spells_as_the_checkpoint(published: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    text = TokenText.of_folder(folder, pard_rt.read_folder(folder).num_tokens)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    for each in [*PROMPTS, *added, " spaces  and\ttabs\r\n", "1234567890", "a" * 100, ""]:
        ids = tokenizer(each)["input_ids"]
        assert text.encode(each) == ids
        spelled = b"".join(map(text.spell, ids)).decode()
        assert spelled == tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def draft_with(model: Source, plain: Generator, method: Method, k: int) -> Generator:
    """Let a model draft for itself.

    Classic proposals are then all accepted, and of those for mask tokens, which the model was
    not trained with, at least the first of a round: it stands where no mask token is yet.
    """
    mask = 0 if method == "pard" else None
    return plain.with_method(method, model, num_speculative_tokens=k, mask_token_id=mask)


def carry_file_over(name: str) -> ExportReport:
    """Export a model's GGUF file."""
    out = gguf_file(name).with_name(f"{name}.carried")
    shutil.rmtree(out, ignore_errors=True)
    return pard_rt.export(gguf_file(name), out)


@pytest.fixture(scope="module")
def carried(published: Path) -> ExportReport:
    return carry_file_over(published.name)


@pytest.fixture(scope="module")
def carried_draft(published: Path, carried: ExportReport) -> Path:
    return (
        carry_file_over(SMALLER[published.name]).folder
        if published.name in SMALLER
        else carried.folder
    )


@pytest.fixture(scope="module")
def five(reference: Reference) -> list[list[int]]:
    return [reference.encode(prompt) for prompt in PROMPTS[:5]]


@pytest.fixture(scope="module")
def carried_texts(carried: ExportReport, five: list[list[int]]) -> list[list[int]]:
    return token_ids(Generator(carried.folder, threads=1), five, MAX_NEW_TOKENS)


def test_a_gguf_file_keeps_its_blocks(published: Path, carried: ExportReport) -> None:
    assert carried.weights == "gguf"
    assert carried.agreement.kl_divergence < 0.02  # rows are rounded, weights are not
    graph = onnx.load(carried.folder / "model.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["MatMul"] == operators["FusedMatMul"] == 0
    file = GGUFReader(gguf_file(published.name))
    kinds = {}
    for tensor in file.tensors:
        if len(tensor.shape) == 2:
            blocks = carry_over(tensor.tensor_type.name, tensor.data, int(tensor.shape[0]))
            assert blocks is not None
            kinds[tensor.name] = blocks.kind
            np.testing.assert_array_equal(
                blocks.dequantize(), dequantize(tensor.data, tensor.tensor_type)
            )
    normed = any(tensor.name.endswith("attn_q_norm.weight") for tensor in file.tensors)
    projections = [[f"blk.{i}.attn_{x}.weight" for x in "qkv"] for i in range(len(kinds))]
    alike = sum(len({kinds.get(name, name) for name in names}) == 1 for names in projections)
    joined = 0 if normed else alike  # what norms stand behind stays apart
    is_tied = "output.weight" not in kinds
    assert operators["MatMulNBits"] == len(kinds) - 2 * joined - (0 if is_tied else 1)
    assert operators["GatherBlockQuantized"] == 1


@pytest.mark.parametrize("k", [1, 4, 8])
def test_drafting_over_a_gguf_s_blocks_changes_no_text(
    carried: ExportReport,
    carried_draft: Path,
    five: list[list[int]],
    carried_texts: list[list[int]],
    k: int,
) -> None:
    drafted = Generator(carried.folder, carried_draft, num_speculative_tokens=k, threads=2)
    for batch_size in (1, 5):
        assert token_ids(drafted, five, MAX_NEW_TOKENS, batch_size) == carried_texts
    assert drafted.decoder.counts.accepted > 0


def test_a_gguf_file_s_text_is_split_as_llama_cpp_splits_it(
    published: Path, carried: ExportReport
) -> None:
    known = json.loads(LLAMA_TOKENS.read_text("utf-8"))
    text = TokenText.of_folder(carried.folder, pard_rt.read_folder(carried.folder).num_tokens)
    assert text.encode(known["text"]) == known["ids"][published.name]
