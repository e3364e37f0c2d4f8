"""Files of half the size: float32 graphs whose weights lie on disk as float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import replace_all_uses_with

from pard_rt.errors import ModelError


@torch.no_grad()
def round_to_half(module: Any) -> None:
    """Round a module's weights to what float16 can say, whatever type they stay in.

    Raises
    ------
    ModelError
        One is too large for it.
    """
    for name, parameter in module.named_parameters():
        half = parameter.half()
        if half.isinf().any():
            raise ModelError(
                f"The weights {name} cannot be stored in float16",
                f"numbers up to {torch.finfo(torch.float16).max:.0f}",
                f"{parameter.abs().max():.0f}",
                "Export without fp16_files.",
            )
        parameter.copy_(half)


def store_halved(model: ir.Model, *, matrices_only: bool = False) -> None:
    """Store as float16 what loses nothing by it; a Cast makes it float32, once, at load."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output():
            continue
        if matrices_only and len(tensor.shape) < 2:
            continue
        full = tensor.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        name = f"{value.name}.fp16"
        stored = ir.Value(name=name, const_value=ir.tensor(half, name=name))
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
        del graph.initializers[value.name or ""]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)
        replace_all_uses_with(value, cast.outputs[0])
