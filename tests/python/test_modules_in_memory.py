"""A transformers module that is in memory runs as it is, and stays as it is."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pard_rt
from pard_rt import Generator, ModelError
from pard_rt.models.checkpoint import LoadedModel, load
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import make_model

PROMPT = [5, 90, 17, 33]
NEW_TOKENS = 12


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load(make_model(tmp_path / "model"))


def written(module: Any) -> list[int]:
    """What transformers' own greedy decoding writes."""
    prompt = torch.tensor([PROMPT], device=module.device)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    ids: Tensor = module.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return ids[0, len(PROMPT) :].tolist()


def generated(loaded: LoadedModel) -> list[int]:
    generator = Generator(loaded.module)
    return generator.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_ids=[]).token_ids


def test_the_module_works_on_outside(loaded: LoadedModel) -> None:
    module = loaded.module
    before, attention = written(module), module.config._attn_implementation
    generator = Generator(loaded)
    assert written(module) == before
    assert generator.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_ids=[]).token_ids == (
        before
    )
    assert written(module) == before
    assert module.config._attn_implementation == attention
    assert module.config is loaded.config


def test_the_module_works_while_ours_does(loaded: LoadedModel) -> None:
    expected = written(loaded.module)
    generator = Generator(loaded)
    texts: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: texts.append(written(loaded.module))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in range(3):
        output = generator.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_ids=[])
        assert output.token_ids == expected
    for thread in threads:
        thread.join()
    assert texts == [expected, expected]


def test_a_module_in_training_mode_stays_in_it(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model", attention_dropout=0.5))
    expected = written(loaded.module)
    loaded.module.train()
    assert generated(loaded) == expected
    assert all(part.training for part in loaded.module.modules())


def test_weights_are_shared_and_never_copied(loaded: LoadedModel) -> None:
    other = Generator(loaded)
    weight = loaded.module.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():  # as merging an adapter does
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    changed = other.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_ids=[]).token_ids
    assert changed == written(loaded.module)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma"])
def test_tied_weights(architecture: str, tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model", architecture))
    assert generated(loaded) == written(loaded.module)


def test_weights_that_are_not_loaded_are_refused(loaded: LoadedModel) -> None:
    with torch.device("meta"):
        module = type(loaded.module)(loaded.config)
    with pytest.raises(ModelError, match=r"not on one device.*got meta.*device_map"):
        TorchModel(replace(loaded, module=module))
    half = copy.deepcopy(loaded.module)
    half.lm_head.to("meta")
    with pytest.raises(ModelError, match=r"got cpu and meta"):
        TorchModel(replace(loaded, module=half))


def test_quantized_activations_are_refused(loaded: LoadedModel) -> None:
    """One scale for all rows of a forward: a proposal would change the row before it."""

    def quantize(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        scale = inputs[0].abs().max() / 31
        return ((inputs[0] / scale).round() * scale,)

    for layer in loaded.module.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(quantize)
    with pytest.raises(ModelError, match="row"):
        Generator(loaded)


def forked(work: Callable[[], str]) -> str:
    """Return what `work` says in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_is_told_where_it_would_hang(threads: int, loaded: LoadedModel) -> None:
    before = torch.get_num_threads()
    try:
        generator = Generator(loaded, threads=threads)
        expected = generator.generate(PROMPT, max_new_tokens=4, eos_token_ids=[]).token_ids

        def child() -> str:
            try:
                output = generator.generate(PROMPT, max_new_tokens=4, eos_token_ids=[])
            except pard_rt.Error as error:
                return f"{type(error).__name__}: {error}"
            return str(output.token_ids)

        said = forked(child)
    finally:
        torch.set_num_threads(before)
    if threads == 1:
        assert said == str(expected)
    else:
        assert said.startswith("ModelError: ")
        assert "was opened before this process was forked" in said
        assert "spawn" in said
