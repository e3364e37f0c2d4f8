"""Which matrices of a module are blocks of its GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pard_rt.exporter.blocks import Array, Blocks
from pard_rt.exporter.gguf_blocks import carry_over


def carried_blocks(file: Path, module: Any) -> dict[str, Blocks]:
    """Return the blocks of a file by the name of the linear layer that they are the weights of.

    Every matrix is compared with the module's, bit for bit, so layers whose weights transformers
    changed while reading are left out.

    Parameters
    ----------
    file
        The GGUF file that the module was read from.
    module
        With float32 weights.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(file)
    field = reader.get_field("general.architecture")
    architecture = field.contents() if field is not None else ""
    known = [arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names = get_tensor_name_map(known[0], len(module.base_model.layers))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = [module.config.num_attention_heads, module.config.num_key_value_heads]
    carried = {}
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        is_head = part is module.get_output_embeddings()
        wanted = [names.get_name(f"{name}.weight", try_suffixes=(".weight",))]
        wanted += ["token_embd.weight"] if is_head else []
        tensor = next((tensors[each] for each in wanted if each in tensors), None)
        if tensor is None:
            continue
        blocks = carry_over(tensor.tensor_type.name, tensor.data, int(tensor.shape[0]))
        fitted = None if blocks is None else _fit(blocks, part.weight, heads)
        if fitted is not None:
            carried[name] = fitted
    return carried


def _fit(blocks: Blocks, weight: torch.Tensor, heads: list[int]) -> Blocks | None:
    """Return blocks with their rows in the order of a module's matrix; None if none is equal."""
    expected = weight.detach().numpy()
    actual = blocks.dequantize()
    if actual.shape != expected.shape:
        return None
    if np.array_equal(actual, expected):
        return blocks
    for count in heads:
        if len(actual) % (2 * count) == 0:
            order = _halves_apart(len(actual), count)
            if np.array_equal(actual[order], expected):
                return blocks.rows(order)
    return None


def _halves_apart(rows: int, heads: int) -> Array:
    """Return the order of rows in which halves of a head follow each other.

    llama.cpp rotates neighbours, so for some architectures a row of the first half of every head
    is followed by one of the second.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
