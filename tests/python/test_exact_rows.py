"""16-bit weights on CPUs: a row has the same bits, and a text the same tokens, in any company."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pard_rt import FallbackWarning, Generator
from pard_rt.models.checkpoint import LoadedModel, load
from pard_rt.pytorch.attention import SequenceCache
from pard_rt.pytorch.exact_rows import SLOTS, NewRows, exact_forwards
from pard_rt.pytorch.torch_model import TorchModel
from test_torch_model import Item, random_tokens
from tiny_models import make_model

SMALL = [torch.bfloat16, torch.float16]


def opened(folder: Path, dtype: torch.dtype) -> TorchModel:
    model = TorchModel(load(folder, dtype=dtype), exact=True)
    if not model.exact:
        pytest.skip(f"rows of {dtype} cannot be exact on this CPU")
    return model


def rows_of(model: TorchModel, sequence: int, past: int, tokens: list[int]) -> Tensor:
    logits = model.forward([Item(sequence, past, tokens, len(tokens))])
    assert logits is not None
    return logits


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "mistral_window"])
def test_rows_have_the_same_bits_in_any_company(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = opened(make_model(tmp_path / "model", architecture, intermediate_size=1536), dtype)
    text, prompt = random_tokens(57), 24
    model.forward([Item(0, 0, text[:prompt])])
    expected = torch.cat([rows_of(model, 0, i, text[i : i + 1]) for i in range(prompt, 57)])
    for count in (2, 3, 9, 16, 17, 33):
        assert torch.equal(rows_of(model, 0, prompt, text[prompt:][:count]), expected[:count])
    other = random_tokens(40, seed=2)
    batch = [
        Item(1, 0, other[:30], 1),
        Item(0, prompt, text[prompt : prompt + 5], 5),
        Item(2, 0, other[30:], 10),
    ]
    logits = model.forward(batch)
    assert logits is not None
    assert torch.equal(logits[1:6], expected[:5])


@pytest.mark.parametrize("dtype", SMALL)
def test_a_prompt_is_computed_alike_beside_others(dtype: torch.dtype, tmp_path: Path) -> None:
    model = opened(make_model(tmp_path / "model"), dtype)
    prompt, other = random_tokens(41), random_tokens(30, seed=2)
    alone = model.forward([Item(0, 0, prompt, 1)])
    model.forward([Item(1, 0, other[:20])])
    beside = model.forward([Item(1, 20, other[20:], 10), Item(2, 0, prompt, 1)])
    assert alone is not None
    assert beside is not None
    assert torch.equal(alone[0], beside[-1])
    for layer in range(model.layout.num_layers):
        for a, b in zip(*(model.cached_rows(i, layer, 41) for i in (0, 2)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_texts_equal_plain_decoding(dtype: str, tmp_path: Path) -> None:
    target = make_model(tmp_path / "target")
    draft = make_model(tmp_path / "draft", seed=0, intermediate_size=96)
    prompts = [random_tokens(4 + 9 * seed, seed) for seed in range(8)]
    plain = Generator(target, dtype=dtype, method="plain")
    if not plain._target.model.exact:
        pytest.skip(f"rows of {dtype} cannot be exact on this CPU")
    options: Any = {"max_new_tokens": 40, "eos_token_ids": []}
    expected = [plain.generate(prompt, **options).token_ids for prompt in prompts]
    for k in (1, 4, 8):
        drafted = plain.with_method("draft", draft, num_speculative_tokens=k)
        assert [output.token_ids for output in drafted.generate(prompts, **options)] == expected
    assert drafted.decoder.counts.accepted > 50


@pytest.mark.parametrize("dtype", [torch.float32, *SMALL])
def test_exact_is_said_of_what_was_tried(dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert not TorchModel(loaded).exact  # a draft
        if dtype == torch.float32:
            assert not TorchModel(loaded, exact=True).exact


def quantizing(folder: Path) -> LoadedModel:
    """A model that rounds all rows of a forward by one scale."""

    def change(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        scale = output.abs().max() / 127
        return (output / scale).round() * scale

    loaded = load(folder, dtype=torch.bfloat16)
    loaded.module.model.layers[1].mlp.register_forward_hook(change)
    return loaded


def test_rows_that_cannot_be_exact_are_warned_of(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    with pytest.warns(FallbackWarning, match=r"bfloat16.*float32"):
        model = TorchModel(quantizing(folder), exact=True)
    assert not model.exact
    assert model.forward([Item(0, 0, random_tokens(9), 9)]) is not None


@pytest.mark.parametrize("lengths", [[1], [9], [16, 1], [5, 9, 9], [40], [1] * 40])
def test_every_row_has_its_slot(lengths: list[int]) -> None:
    batch = [NewRows(SequenceCache(99), 7 + i, torch.arange(n), n) for i, n in enumerate(lengths)]
    forwards = list(exact_forwards(batch))
    for forward in forwards:
        slots = torch.cat([part.slots for part in forward])
        assert len(slots.unique()) == len(slots)
    parts = [part for forward in forwards for part in forward]
    assert sum(part.num_wanted for part in parts) == sum(lengths)
    for new in batch:
        own = [part for part in parts if part.cache is new.cache]
        assert torch.equal(torch.cat([part.tokens for part in own]), new.tokens)
        assert torch.equal(torch.cat([part.positions for part in own]), new.positions)
        assert all(torch.equal(part.slots, part.positions % SLOTS) for part in own)


def test_a_prompt_runs_alone_and_whole() -> None:
    prompt = NewRows(SequenceCache(99), 0, torch.arange(50), 1)
    verified = NewRows(SequenceCache(99), 9, torch.arange(5), 5)
    forwards = list(exact_forwards([verified, prompt, verified]))
    assert [len(rows) for rows in forwards] == [1, 1, 1]
    assert forwards[1] == [prompt]
