"""Modules that ONNX Runtime has one operator for: recognised by what they compute, not by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from pard_rt.exporter.matrices import DOMAIN, LAYERS, SCALE

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@contextmanager
def fused_modules(module: nn.Module) -> Iterator[None]:
    """While tracing, let RMS norms and GELUs of `module` become one operator each."""
    with _forwards(module, lambda name, part: _fused_norm(name, part) or _fused_gelu(part)):
        yield


@contextmanager
def plain_norms(module: nn.Module) -> Iterator[None]:
    """While tracing, let RMS norms of `module` divide by a root, as ONNX Runtime's fusion expects.

    It does not recognise the product with a reciprocal that `rsqrt` becomes.
    """
    with _forwards(module, _plain_norm):
        yield


@contextmanager
def _forwards(
    module: nn.Module, replacement: Callable[[str, nn.Module], Callable[[Tensor], Tensor] | None]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name, part in module.named_modules():
            forward = replacement(name, part)
            if forward is not None:
                stack.enter_context(mock.patch.object(part, "forward", forward))
        yield


def _equal(actual: Tensor, expected: Tensor) -> bool:
    tolerance = _TOLERANCE.get(expected.dtype, 0.0)
    return actual.shape == expected.shape and torch.allclose(
        actual, expected, rtol=tolerance, atol=tolerance
    )


def _probe(width: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, width, generator=generator).to(like.device, like.dtype)


def norm_of(part: nn.Module) -> tuple[Tensor, float] | None:
    """Scale and epsilon of a module that is RMS norm with `weight` or 1 + `weight`."""
    parameters = dict(part.named_parameters())
    weight = parameters.get("weight")
    eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if len(parameters) != 1 or weight is None or weight.ndim != 1 or not isinstance(eps, float):
        return None
    x = _probe(weight.shape[0], weight)
    for scale in (weight.detach(), 1 + weight.detach()):
        with torch.no_grad():
            if _equal(part(x), nn.functional.rms_norm(x, weight.shape, scale, eps)):
                return scale, eps
    return None


def _named_scale(name: str, scale: Tensor) -> Tensor:
    """Return an operator that stands for the scale of the norm of that name."""
    layers: dict[str, Any] = {LAYERS: [name]}
    return symbolic(
        f"{DOMAIN}::{SCALE}", (), layers, dtype=scale.dtype, shape=scale.shape, version=1
    )


def _fused_norm(name: str, part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """SimplifiedLayerNormalization for an RMS norm."""
    norm = norm_of(part)
    if norm is None:
        return None
    scale, eps = norm
    return lambda x: symbolic(
        "SimplifiedLayerNormalization",
        (x, _named_scale(name, scale)),
        {"axis": -1, "epsilon": eps, "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
    )


def _plain_norm(name: str, part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    norm = norm_of(part)
    if norm is None:
        return None
    scale, eps = norm

    def forward(x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return normed.to(x.dtype) * _named_scale(name, scale)

    return forward


def _fused_gelu(part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """FastGelu or Gelu for a module without parameters that computes it."""
    if any(True for _ in part.parameters()) or any(True for _ in part.buffers()):
        return None
    x = _probe(64, torch.zeros(()))
    try:
        with torch.no_grad():
            result = part(x)
    except Exception:
        return None
    if not isinstance(result, Tensor):
        return None
    for approximate, op in (("tanh", "FastGelu"), ("none", "Gelu")):
        if _equal(result, nn.functional.gelu(x, approximate=approximate)):

            def forward(x: Tensor, op: str = op) -> Tensor:
                return symbolic(
                    f"com.microsoft::{op}", (x,), dtype=x.dtype, shape=x.shape, version=1
                )

            return forward
    return None
