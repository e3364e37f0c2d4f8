"""A module over a GGUF file whose matrices stay the blocks that the file has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pard_rt.errors import ModelError, Notice, notify
from pard_rt.exporter.blocks import Array, Blocks
from pard_rt.exporter.gguf_blocks import carry_over
from pard_rt.models.checkpoint import LoadedModel, loaded_from
from pard_rt.models.gguf import (
    ROPE_FACTORS,
    config_and_tokenizer,
    open_gguf,
    reading,
    require_all,
    scale_rope,
    text,
)
from pard_rt.models.options import OpenOptions

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# Architectures whose weights are known to mean what transformers' modules take them for.
_ROTATE_NEIGHBOURS = ("llama",)  # rows of queries and keys lie so that neighbours are rotated
_NORMS_PLUS_ONE = ("gemma2", "gemma3")  # norms are stored as what they multiply by
_AS_THEY_ARE = ("qwen2", "qwen3", "phi3")
_FLOATS = ("F32", "F16", "BF16")
_KNOWN = (*_ROTATE_NEIGHBOURS, *_NORMS_PLUS_ONE, *_AS_THEY_ARE)


def load_blocks(file: Path, options: OpenOptions) -> tuple[LoadedModel, dict[str, Blocks]]:
    """Load a GGUF file; of its matrices only the blocks.

    Returns
    -------
    LoadedModel, dict of str to Blocks
        A module, float32, whose matrices and embedding hold nothing where they have blocks, by the
        layer's name. Of layers that are tied to each other both have the same. Matrices of types
        that are not carried over are rounded to float16.

    Raises
    ------
    ModelError
        The file is damaged, or of an architecture that is not read so.
    RuntimeMissingError
        The packages that read it are missing.

    Warns
    -----
    Notice
        Matrices are not carried over.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM

    reader = open_gguf(file)
    config, tokenizer = config_and_tokenizer(file, reader)
    names = _Names(file, reader, config)
    from_config: Any = AutoModelForCausalLM.from_config
    with reading(file), init_empty_weights():
        module: Any = from_config(config, dtype=torch.float32)
    module = module.eval().requires_grad_(False)
    blocks: dict[str, Blocks] = {}
    lacking = set()
    rarer: Counter[str] = Counter()
    head = module.get_output_embeddings()
    for name, part in list(module.named_modules()):
        for own, parameter in list(part.named_parameters(recurse=False)):
            tensor = names.tensor(f"{name}.{own}")
            if tensor is None and part is head and own == "weight":
                continue  # the tensors say that it is tied, whatever the file does
            if tensor is None:
                lacking.add(f"{name}.{own}")
                continue
            with reading(file):
                found = names.blocks(name, tensor) if own == "weight" else None
                if found is not None and (len(found.scales), found.depth) == parameter.shape:
                    blocks[name] = found
                    value = torch.zeros(1).expand(parameter.shape)
                else:
                    value = torch.from_numpy(names.floats(name, tensor)).reshape(parameter.shape)
                    if tensor.tensor_type.name not in _FLOATS:
                        rarer[tensor.tensor_type.name] += 1
                        value = value.half().float()
            setattr(part, own, nn.Parameter(value, requires_grad=False))
    require_all(file, lacking)
    if names.untaken:
        raise ModelError(
            f"'{file}' has weights that its architecture has no place for",
            f"those of {type(module).__name__}",
            ", ".join(sorted(names.untaken)[:3]),
            "Export the checkpoint that the file was made from.",
        )
    if rarer:
        count = ", ".join(f"{count} of type {name}" for name, count in rarer.most_common())
        notify(
            Notice(
                f"'{file}' has matrices whose blocks cannot be kept; they are stored as float16",
                f"{count}.",
                "They take more memory than in the file, and more time.",
            )
        )
    scale_rope(module, reader)
    embedding = module.get_input_embeddings()
    if head.weight.is_meta:
        head.weight = embedding.weight
        parts = {part: name for name, part in module.named_modules()}
        if parts[embedding] in blocks:
            blocks[parts[head]] = blocks[parts[embedding]]
    return loaded_from(module, options, file.stem, tokenizer=tokenizer), blocks


class _Names:
    """The tensors of a file by the names of a module's parameters."""

    def __init__(self, file: Path, reader: GGUFReader, config: Any) -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        self._architecture = text(reader, "general.architecture")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.untaken = set(self._tensors) - {ROPE_FACTORS}
        if self._architecture not in _KNOWN:
            raise ModelError(
                f"'{file}' has an architecture whose blocks cannot be kept",
                ", ".join(_KNOWN),
                self._architecture,
                "Export it with --weights int8, or export the checkpoint it was made from.",
            )
        (architecture,) = (
            each for each, name in MODEL_ARCH_NAMES.items() if name == self._architecture
        )
        self._map = get_tensor_name_map(architecture, config.num_hidden_layers)
        heads = config.num_attention_heads
        self._heads = {"q_proj": heads, "k_proj": config.num_key_value_heads or heads}

    def tensor(self, name: str) -> ReaderTensor | None:
        """Return the tensor of a parameter; None where there is none."""
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        self.untaken.discard(found or "")
        return None if found is None else self._tensors.get(found)

    def blocks(self, layer: str, tensor: ReaderTensor) -> Blocks | None:
        """Return a tensor's blocks, its rows in the module's order; None where it has none."""
        if len(tensor.shape) != 2:
            return None
        found = carry_over(tensor.tensor_type.name, tensor.data, int(tensor.shape[0]))
        order = self._order(layer, int(tensor.shape[-1]))
        return found if found is None or order is None else found.rows(order)

    def floats(self, layer: str, tensor: ReaderTensor) -> Array:
        """Return a tensor as float32, as the module has it."""
        from gguf.quants import dequantize

        floats = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if self._architecture in _NORMS_PLUS_ONE and layer.endswith("norm"):
            floats -= 1
        order = self._order(layer, len(floats))
        return floats if order is None else floats[order]

    def _order(self, layer: str, rows: int) -> Array | None:
        """Return the order of rows in which halves of a head follow each other; None: as it is."""
        heads = self._heads.get(layer.rpartition(".")[2])
        if heads is None or self._architecture not in _ROTATE_NEIGHBOURS:
            return None
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
