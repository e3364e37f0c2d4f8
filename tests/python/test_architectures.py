"""Architectures of transformers: each is decoded exactly, or refused by an error that says why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pard_rt import Generator, ModelError
from pard_rt.models.checkpoint import load
from tiny_models import SHAPE, VOCAB_SIZE

# No embedding tied to the head: where they are, the next token is the last one, for ever.
PLAIN = SHAPE | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 2,
}
UNSEEN = {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
RECURRENT = "cannot forget a rejected proposal.*keys and values.*got"


@dataclass(frozen=True)
class Case:
    """A configuration, and what the error says; nothing where it decodes."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    refused: str = ""

    def config(self) -> PreTrainedConfig:
        config_class = getattr(transformers, f"{self.name}Config")
        entries = PLAIN | self.changes
        return config_class(**{key: each for key, each in entries.items() if each is not None})


DECODED = (
    Case("GPT2"),
    Case("GPTNeoX"),
    Case("GPTJ", {"rotary_dim": 8}),
    Case("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Case("Phi", {"num_key_value_heads": 4, "num_hidden_layers": 4}),
    Case("Phi3", {"sliding_window": 8}),
    Case("StableLm"),
    Case("Starcoder2", {"sliding_window": 8}),
    Case("Olmo2"),
    Case("Cohere2", {"sliding_window": 8}),
    Case("Glm4"),
    Case("SmolLM3"),
    Case("Mixtral", {"num_local_experts": 4}),
    Case("Qwen3Moe", {**EXPERTS, "num_experts": 4}),
    Case("Gemma2", {"sliding_window": 8, "attn_logit_softcapping": 2.0}),
    Case("Gemma3Text", {"sliding_window": 8}),
    Case("GptOss", {"sliding_window": 8, "num_local_experts": 4}),  # sinks
)

# Refused by what the configuration says.
REFUSED = (
    Case("Mamba", refused=f"mamba {RECURRENT}"),
    Case("Mamba2", {"num_heads": 8, "expand": 2}, f"mamba2 {RECURRENT}"),
    Case("FalconMamba", refused=f"falcon_mamba {RECURRENT}"),
    Case("FalconH1", refused=f"falcon_h1 {RECURRENT}.*hybrid"),
    Case("Jamba", refused=f"jamba {RECURRENT}"),
    Case("Zamba2", {"num_hidden_layers": 54}, f"zamba2 {RECURRENT}.*hybrid"),
    Case("RecurrentGemma", refused=f"recurrent_gemma {RECURRENT}"),
    Case("Qwen3Next", {**EXPERTS, "num_experts": 4}, f"qwen3_next {RECURRENT}.*linear_attention"),
    Case("Lfm2", {"layer_types": ["conv", "full_attention"]}, f"lfm2 {RECURRENT}.*conv"),
    Case("Rwkv", refused=f"rwkv {RECURRENT}"),
    Case("Llama4Text", {"num_local_experts": 4}, "chunked_attention"),
    Case("DeepseekV32", refused="indexed_attention"),
    Case("T5", refused=r"not a decoder-only.*encoder-decoder \(t5\)"),
    Case("Bart", refused=r"not a decoder-only.*encoder-decoder \(bart\)"),
    Case("Bert", {"architectures": ["BertForMaskedLM"]}, "masked language model.*BertForMaskedLM"),
    Case("ModernBert", {"architectures": ["ModernBertForMaskedLM"]}, "masked language model"),
    Case("ViT", refused="not a decoder-only.*got vit"),
)

# Refused by what the module does, where nothing else tells.
FOUND_OUT = (
    Case("Bloom", refused="do not call their attention through"),
    Case("Falcon", {"alibi": True, "head_dim": None}, "does not run as pard-rt runs decoders"),
    Case("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2}, "MptForCausalLM"),
    Case("Bert", refused="BertSelfAttention needs.*bidirectional"),
    Case("MiniMaxM2", UNSEEN, "window.*cannot see it"),
    Case("DiffLlama", refused="DiffLlama.*computes other logits"),
    Case("DeepseekV3", LATENT, "keys and values differ in shape"),
)


def checkpoint(case: Case, folder: Path) -> Path:
    """Write seeded weights so large that logits differ clearly between tokens."""
    config = case.config()
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    return folder


def assert_decoded_exactly(folder: Path, *, draft: bool = True, **options: Any) -> None:
    prompt = torch.randint(3, VOCAB_SIZE, (1, 19), generator=torch.Generator().manual_seed(1))
    module = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = module.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 19:].tolist()
    assert len(set(expected)) > 4
    generators = [Generator(folder, **options)]
    if draft:
        generators.append(generators[0].with_method("draft", folder, num_speculative_tokens=4))
    for generator in generators:
        output = generator.generate(prompt[0], max_new_tokens=24, eos_token_ids=[])
        assert output.token_ids == expected


@pytest.mark.parametrize("case", DECODED, ids=lambda case: case.name)
def test_decoded_exactly(case: Case, tmp_path: Path) -> None:
    assert_decoded_exactly(checkpoint(case, tmp_path / "model"))


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused_before_weights_are_read(case: Case, tmp_path: Path) -> None:
    case.config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=case.refused):
        Generator(tmp_path, max_length=64)


@pytest.mark.parametrize("case", FOUND_OUT, ids=lambda case: case.name)
def test_refused_once_it_was_tried(case: Case, tmp_path: Path) -> None:
    folder = checkpoint(case, tmp_path / "model")
    with pytest.raises(ModelError, match=case.refused):
        Generator(folder, max_length=64)


def test_a_window_that_is_not_seen_does_not_matter_in_short_texts(tmp_path: Path) -> None:
    case = Case("MiniMaxM2", UNSEEN | {"sliding_window": 64})
    assert_decoded_exactly(checkpoint(case, tmp_path / "model"), draft=False, max_length=64)


def test_no_tokenizer_is_made_up(tmp_path: Path) -> None:
    folder = checkpoint(Case("GPT2"), tmp_path / "model")  # transformers would
    assert load(folder, need_tokenizer=False).tokenizer is None
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(folder)
