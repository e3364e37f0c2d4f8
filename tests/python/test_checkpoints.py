"""Checkpoints as they are published: in shards, in half precision, quantized."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pard_rt import Generator, ModelError, RuntimeMissingError
from pard_rt.models.checkpoint import load
from tiny_models import EOS, make_model, make_tokenizer

PROMPT = "the rain in the"

# method -> (what its quantization_config has besides, the package it takes)
METHODS: dict[str, tuple[dict[str, object], str]] = {
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes|accelerate"),
    "gptq": ({"bits": 4, "group_size": 32}, "optimum"),
    "awq": ({"bits": 4, "group_size": 32}, "gptqmodel"),
    "compressed-tensors": ({}, "compressed-tensors"),
    "torchao": ({"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "torchao"),
    "quanto": ({}, "optimum-quanto"),
    "fp8": ({}, "accelerate"),
    "mxfp4": ({}, "accelerate"),
    "hqq": ({}, "hqq"),
}


def in_shards(checkpoint: Path, folder: Path, dtype: torch.dtype) -> Path:
    load(checkpoint, dtype=dtype).module.save_pretrained(folder, max_shard_size="60KB")
    make_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shards_are_decoded_as_one_file(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole", seed=3)
    shards = in_shards(whole, tmp_path / "shards", dtype)
    assert load(shards).module.dtype == dtype
    load(whole, dtype=dtype).module.save_pretrained(whole)
    expected = Generator(whole).generate(PROMPT, max_new_tokens=24, eos_token_ids=[])
    plain = Generator(shards)
    generators = [plain]
    if dtype == torch.float32:  # narrower kernels round one row and several otherwise
        generators.append(plain.with_method("draft", whole, num_speculative_tokens=4))
    for generator in generators:
        output = generator.generate(PROMPT, max_new_tokens=24, eos_token_ids=[])
        assert output.text == expected.text
        assert output.token_ids == expected.token_ids
    assert len(set(expected.token_ids) - {EOS}) > 4


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = in_shards(make_model(tmp_path / "whole"), tmp_path / "shards", torch.float32)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"lacks part of its weights.*missing: {lost.name}"):
        Generator(folder)


def test_shards_without_their_index_are_refused(tmp_path: Path) -> None:
    folder = in_shards(make_model(tmp_path / "whole"), tmp_path / "shards", torch.float32)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Generator(folder)


def quantized(folder: Path, method: str, **entries: object) -> Path:
    file = make_model(folder) / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {"quant_method": method, **entries}
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_checkpoint_names_the_package_it_takes(method: str, tmp_path: Path) -> None:
    entries, package = METHODS[method]
    if any(find_spec(name.replace("-", "_").split("_quanto")[0]) for name in package.split("|")):
        pytest.skip(f"{package} is installed")
    with pytest.raises(RuntimeMissingError, match=rf"is quantized \({method}\).*({package})"):
        Generator(quantized(tmp_path / "model", method, **entries))


def test_a_quantization_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not know.*sorcery"):
        Generator(quantized(tmp_path / "model", "sorcery"))
