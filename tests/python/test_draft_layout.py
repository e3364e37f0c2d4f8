"""What `train` leaves, beside published drafts: an ordinary checkpoint and two keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from conftest import TinyModels
from pard_rt.models.checkpoint import load
from pard_rt.training.train import train
from tiny_models import BOS, EOS, VOCAB_SIZE

_LAYER = (
    "input_layernorm.weight", "post_attention_layernorm.weight",
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip
_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


@pytest.mark.parametrize(
    ("architecture", "class_name", "is_tied", "more"),
    [("llama", "LlamaForCausalLM", False, ()), ("qwen2", "Qwen2ForCausalLM", True, _BIASES)],
)
def test_the_layout_is_that_of_published_drafts(
    architecture: str,
    class_name: str,
    is_tied: bool,
    more: tuple[str, ...],
    tmp_path: Path,
    tiny_models: TinyModels,
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("the cat and the hat")
    base = tiny_models.checkpoint(architecture, seed=9)
    done = train(base, [data], tmp_path / "draft", max_length=64, log=lambda _: None)

    config = json.loads((done.folder / "config.json").read_text())
    expected = {
        "pard_token": done.mask_token_id,
        "spd_type": "pard",
        "architectures": [class_name],
        "model_type": architecture,
        "tie_word_embeddings": is_tied,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    assert {key: config.get(key) for key in expected} == expected
    before = json.loads((base / "config.json").read_text())
    assert config.keys() - before.keys() == {"pard_token", "spd_type", "rope_theta"}
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert load(done.folder).config.rope_parameters == load(base).config.rope_parameters
    assert before.keys() <= config.keys()

    layers = range(config["num_hidden_layers"])
    names = {f"model.layers.{i}.{name}" for i in layers for name in (*_LAYER, *more)}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    names |= set() if is_tied else {"lm_head.weight"}
    with safe_open(done.folder / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == names
        assert file.metadata() == {"format": "pt"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in done.folder.iterdir()
    }
    assert not list(done.folder.glob("*.bin"))


def test_a_scaled_rotation_is_named_as_before_too(tmp_path: Path, tiny_models: TinyModels) -> None:
    data = tmp_path / "data.txt"
    data.write_text("the cat and the hat")
    base = shutil.copytree(tiny_models.checkpoint("llama", seed=9), tmp_path / "base")
    scaled = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": scaled}))
    done = train(base, [data], tmp_path / "draft", max_length=64, log=lambda _: None)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["rope_parameters"] == scaled
    assert config["rope_theta"] == scaled.pop("rope_theta")
    assert config["rope_scaling"] == scaled
    assert load(done.folder).config.rope_parameters == load(base).config.rope_parameters
