"""Tiny seeded models in Hugging Face format: every architecture the project claims, in kilobytes.

The tokenizer is byte-level BPE: 256 bytes, a few merges, three special tokens. The embedding is
padded behind it, and the parallel draft's mask token lies in the padding, as in real checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB_SIZE = 288  # 256 bytes + MERGES + 3 special tokens, padded
MERGES = ("t h", "th e", "i n", "a n", "e r", "o n", "Ġ the", "Ġ a")
NUM_TOKENS = 256 + len(MERGES) + 3
MASK_TOKEN_ID = NUM_TOKENS + 1
BOS, EOS, PAD = NUM_TOKENS - 3, NUM_TOKENS - 2, NUM_TOKENS - 1

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

# name -> (configuration class, what differs from SHAPE)
ARCHITECTURES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama31": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama_bias": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2_yarn": (Qwen2Config, {"rope_parameters": _YARN_ROPE}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 32}),
    "mistral_window": (MistralConfig, {"sliding_window": 8}),
    "gemma": (
        GemmaConfig,
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32},
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer of all tiny models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [merge.replace(" ", "") for merge in MERGES]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    bpe = models.BPE(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_model(
    folder: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    mask_token: bool = False,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a tiny model to `folder` and return it.

    Weights are seeded and large enough that logits differ clearly between tokens; norms and biases
    are random too, so that a forgotten one shows.
    """
    config_class, changes = ARCHITECTURES[architecture]
    config = config_class(**{**SHAPE, **changes, **overrides})
    if mask_token:
        config.pard_token = MASK_TOKEN_ID
        config.spd_type = "pard"
    torch.manual_seed(seed)
    module = MODEL_FOR_CAUSAL_LM_MAPPING[config_class](config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(std=0.15)
    module.save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return folder
