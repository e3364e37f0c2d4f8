"""Tiny GGUF files, as llama.cpp's converter would write them of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import Gemma2Config, Gemma3TextConfig, Phi3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tiny_models import ARCHITECTURES, BOS, EOS, MERGES, SHAPE, make_tokenizer

_GEMMA: dict[str, Any] = {"tie_word_embeddings": True, "head_dim": 16, "sliding_window": 8}
# What transformers makes of a file's architecture, and what differs from SHAPE.
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": ARCHITECTURES["llama"],
    "qwen2": ARCHITECTURES["qwen2"],
    "qwen3": ARCHITECTURES["qwen3"],
    "phi3": (Phi3Config, {"pad_token_id": EOS}),
    "gemma2": (Gemma2Config, _GEMMA),
    "gemma3": (Gemma3TextConfig, _GEMMA),
}


def write_gguf(
    file: Path,
    architecture: str = "llama",
    type_name: str = "Q4_0",
    *,
    seed: int = 0,
    extra: dict[str, np.ndarray] | None = None,
    scaling: str = "",
    splits: int = 1,
    fields: dict[str, int | str] | None = None,
    **changes: Any,
) -> Path:
    """Write a tiny seeded model whose matrices have a type that gguf can quantize to.

    Parameters
    ----------
    extra
        More tensors.
    scaling
        Of the rotary embedding.
    splits
        Files to share the tensors out over, named as llama.cpp does.
    fields
        More of them, or others in the place of those that there are.
    changes
        Of the configuration.
    """
    config_class, differences = MODELS[architecture]
    config = config_class(**{**SHAPE, **differences, **changes})
    torch.manual_seed(seed)
    module = MODEL_FOR_CAUSAL_LM_MAPPING[config_class](config)
    tensors = dict(_tensors(module, architecture, config)) | (extra or {})
    names = list(tensors)
    for part in range(splits):
        here = file
        if splits > 1:
            here = file.with_name(f"{file.stem}-{part + 1:05}-of-{splits:05}.gguf")
        writer = gguf.GGUFWriter(here, architecture)
        if part == 0:
            _write_fields(writer, config, scaling)
            add: dict[type, Any] = {
                int: writer.add_uint32,
                bool: writer.add_bool,
                str: writer.add_string,
            }
            for key, value in (fields or {}).items():
                writer.kv_data[0].pop(key, None)
                add[type(value)](key, value)
        if splits > 1:
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", splits)
        for name in names[part::splits]:
            _write_tensor(writer, name, tensors[name], type_name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file if splits == 1 else file.with_name(f"{file.stem}-00001-of-{splits:05}.gguf")


def _tensors(module: Any, architecture: str, config: Any) -> Any:
    (arch,) = (each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm = "norm" in name
            parameter.normal_(0, 0.2 if is_norm else 0.15)
            numbers = parameter.numpy()
            if is_norm:
                numbers = numbers + 1
            projection = name.split(".")[-2]
            if architecture == "llama" and projection in heads:
                shape = (heads[projection], 2, -1, *numbers.shape[1:])
                numbers = numbers.reshape(shape).swapaxes(1, 2).reshape(numbers.shape)
            yield names.get_name(name, try_suffixes=(".weight", ".bias")), numbers


def _write_fields(writer: gguf.GGUFWriter, config: Any, scaling: str) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(getattr(config, "head_dim", 16))
    writer.add_key_length(getattr(config, "head_dim", 16))
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if scaling:
        writer.add_string(f"{writer.arch}.rope.scaling.type", scaling)
    tokenizer = make_tokenizer()
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    pieces += [f"[PAD{i}]" for i in range(len(pieces), config.vocab_size)]
    kinds = [gguf.TokenType.NORMAL] * len(pieces)
    for token in tokenizer.all_special_ids:
        kinds[token] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(EOS)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _write_tensor(writer: gguf.GGUFWriter, name: str, numbers: np.ndarray, type_name: str) -> None:
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    kind = gguf.GGMLQuantizationType[type_name]
    if numbers.ndim == 2 and numbers.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, numbers)
