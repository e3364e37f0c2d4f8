"""The matrices of a module: found by name, and multiplied by in some other way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic
from transformers.pytorch_utils import Conv1D

from pard_rt.exporter.blocks import Blocks

DOMAIN = "pard_rt"  # of the operators that a traced graph has in place of matrices
PRODUCT, TABLE, SCALE = "Product", "Table", "Scale"
LAYERS = "layers"  # attribute: names of the layers whose stacked matrices multiply the input

Matrix = nn.Linear | Conv1D
_Way = Callable[[str, Any, Tensor], Tensor]


def matrices(module: nn.Module) -> dict[str, Matrix]:
    """Return the layers of a module that multiply by a matrix, by name."""
    kinds = (nn.Linear, Conv1D)
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds)}


def weight_of(part: nn.Module) -> Tensor:
    """Return a layer's matrix [N, K]: what a row [K] is multiplied by becomes [N]."""
    weight: Tensor = part.weight  # type: ignore[assignment]
    return weight.T if isinstance(part, Conv1D) else weight


@contextmanager
def _computed(module: nn.Module, multiply: _Way, look_up: _Way) -> Iterator[None]:
    """While the block runs, compute products and embeddings otherwise, given layers' names.

    The classes are patched, so layers that add something to what these compute still do, and so do
    other modules.
    """
    names = {part: name for name, part in module.named_modules()}
    with ExitStack() as stack:
        for kind, way in ((nn.Linear, multiply), (Conv1D, multiply), (nn.Embedding, look_up)):

            def forward(
                part: nn.Module, x: Tensor, way: _Way = way, usual: Any = kind.forward
            ) -> Tensor:
                name = names.get(part)
                return way(name, part, x) if name is not None else usual(part, x)

            stack.enter_context(mock.patch.object(kind, "forward", forward))
        yield


@contextmanager
def named_matrices(module: nn.Module) -> Iterator[None]:
    """While tracing, let products and embeddings be operators that name their layers."""

    def marked(operator: str, width: int, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        shape: tuple[Any, ...] = (*x.shape, width)
        layers: dict[str, Any] = {LAYERS: [name]}
        if operator == PRODUCT:
            shape = (*x.shape[:-1], width)
        return symbolic(f"{DOMAIN}::{operator}", (x,), layers, dtype=dtype, shape=shape, version=1)

    def multiply(name: str, part: Any, x: Tensor) -> Tensor:
        return marked(PRODUCT, len(weight_of(part)), name, x, x.dtype)

    def look_up(name: str, part: Any, ids: Tensor) -> Tensor:
        return marked(TABLE, part.embedding_dim, name, ids, part.weight.dtype)

    with _computed(module, multiply, look_up):
        yield


@contextmanager
def blocks_multiplied(
    module: nn.Module, blocks: Mapping[str, Blocks], zeros: tuple[str, ...] = ()
) -> Iterator[None]:
    """While the block runs, dequantize matrices while they are multiplied by, a few rows at a time.

    Layers without blocks keep their weights. Those whose names begin with one of `zeros` give
    zeros: what a residual adds nothing by.
    """

    def multiply(name: str, part: Any, x: Tensor) -> Tensor:
        if name.startswith(zeros):
            return x.new_zeros(*x.shape[:-1], len(weight_of(part)))
        found = blocks.get(name)
        if found is None:
            return nn.functional.linear(x, weight_of(part), part.bias)
        products = [nn.functional.linear(x, rows.to(x.dtype)) for rows in found.in_parts()]
        product = torch.cat(products, dim=-1)
        return product if part.bias is None else product + part.bias

    def look_up(name: str, part: Any, ids: Tensor) -> Tensor:
        found = blocks.get(name)
        if found is None:
            return nn.functional.embedding(ids, part.weight)
        found_in: Any = torch.unique(ids, return_inverse=True)
        wanted, places = found_in
        rows = torch.from_numpy(found.rows(wanted.numpy()).dequantize())
        return nn.functional.embedding(places, rows.to(part.weight.dtype))

    with _computed(module, multiply, look_up):
        yield
