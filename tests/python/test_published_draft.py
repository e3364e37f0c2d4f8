"""A draft trained on some layers of a published model drafts for that model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pard_rt
from pard_rt import Generator
from pard_rt.cli import main

LAYERS = (0, 1, 28, 29)  # of SmolLM2's thirty
PROMPTS = ("The capital of France is", "<|im_start|>user\nHello!<|im_end|>\n")
TEXT = "The cat sat on the mat, and the dog sat on the cat. " * 40


def keep_layers(checkpoint: Path, layers: tuple[int, ...], out: Path) -> Path:
    """Write a Llama-like checkpoint with some of its layers, and everything else."""
    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("*.safetensors", "DONE"))
    weights = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if found := re.match(r"model\.layers\.(\d+)\.", name):
            if int(found[1]) not in layers:
                continue
            place = layers.index(int(found[1]))
            name = name.replace(found[0], f"model.layers.{place}.")
        weights[name] = weight
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config.pop("layer_types", None)
    config["num_hidden_layers"] = len(layers)
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def draft(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `pard-rt train`, after a few steps."""
    root = tmp_path_factory.mktemp("draft")
    pruned = keep_layers(smollm2, LAYERS, root / "pruned")
    (root / "text.txt").write_text(TEXT)
    threads = torch.get_num_threads()
    given = ["train", "--model", pruned, "--data", root / "text.txt", "--output", root / "draft"]
    settings = ["--max-length", 64, "--tokens-per-step", 128, "--learning-rate", 6e-4]
    assert main(list(map(str, [*given, *settings]))) == 0
    torch.set_num_threads(threads)
    return root / "draft"


def test_its_mask_token_is_one_that_chats_do_not_use(draft: Path, smollm2: Path) -> None:
    """And its vocabulary is the target's, which engines like vLLM ask for."""
    config = json.loads((draft / "config.json").read_text())
    target = json.loads((smollm2 / "config.json").read_text())
    vocabulary = json.loads((smollm2 / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    assert config["pard_token"] == special["<empty_output>"]
    assert config["vocab_size"] == target["vocab_size"]
    assert config["spd_type"] == "pard"


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_its_target_s_text_is_the_same_with_it_and_without(
    backend: str,
    draft: Path,
    smollm2: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    target, drafting = smollm2, draft
    if backend == "onnx":
        target = request.getfixturevalue("smollm2_folder")
        drafting = pard_rt.export(draft, tmp_path / "draft").folder
    generator = Generator(target, drafting, num_speculative_tokens=4, max_length=256)
    plain = generator.with_method("plain")
    options: pard_rt.Options = {"max_new_tokens": 24}
    for prompt in (*PROMPTS, TEXT[:300]):  # the last is what the draft has learnt, and goes on so
        expected = plain.generate(prompt, **options)
        assert generator.generate(prompt, **options).token_ids == expected.token_ids
    assert generator.decoder.counts.accepted > 0
