"""Matrices of a module, rounded to blocks of integers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pard_rt.exporter.blocks import Array, Blocks, pack_nibbles
from pard_rt.exporter.calibrate import input_powers
from pard_rt.exporter.matrices import matrices, weight_of
from pard_rt.models.checkpoint import LoadedModel

BITS = {"int8": 8, "int4": 4}
BLOCK_SIZE = 32  # weights that share a scale
_TABLE_BITS = 8  # of the head: rounding it to 4 bits adds 5 % to SmolLM2's perplexity
_SHRINKS = torch.linspace(0.72, 1.12, 9).tolist()  # of the scale that reaches the largest number
_PART = 1 << 18  # weights that are rounded at a time: they stay in the processor's caches


def rounded_matrices(loaded: LoadedModel, bits: int) -> dict[str, Blocks]:
    """Return the blocks of every matrix of an adopted module by its layer's name.

    The head has 8 bits. An embedding has its blocks where the two are tied; one that is its own
    stays as it is.
    """
    module = loaded.module
    powers = input_powers(loaded) if bits < _TABLE_BITS else {}
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    rounded = {
        name: round_matrix(weight_of(part), _TABLE_BITS if part is head else bits, powers.get(name))
        for name, part in matrices(module).items()
    }
    names = {part: name for name, part in module.named_modules()}
    if head.weight is embedding.weight and head.weight.shape[1] % BLOCK_SIZE == 0:
        rounded[names[embedding]] = rounded[names[head]]
    return rounded


@torch.no_grad()
def round_matrix(matrix: Tensor, bits: int, powers: Tensor | None = None) -> Blocks:
    """Round a matrix [N, K] to blocks without zero points.

    Its scales are float16 numbers in float32 if that moves none by more than their rounding:
    kernels read them so, a tenth to a fifth less in all.

    Parameters
    ----------
    matrix, bits
        What is rounded, and to what.
    powers
        Mean squares of the matrix's inputs, [K]. With few bits, scales are searched for by the
        squared errors of its numbers: each counts by its input's power, and large numbers more.
    """
    rows, depth = matrix.shape
    powers = torch.ones(depth) if powers is None else powers
    weights = _in_blocks(powers[None])[0]
    count = max(1, _PART // weights.numel())
    parts = [matrix[start : start + count].detach() for start in range(0, rows, count)]
    with _threads() as pool:
        reaching = list(pool.map(lambda part: _reaching_scales(_in_blocks(part), bits), parts))
        halve = all(pool.map(_are_half, reaching))

        def round_part(part: Tensor, scale: Tensor) -> tuple[Array, Array]:
            numbers = _in_blocks(part)
            found = _rounded(scale, halve)
            if bits < _TABLE_BITS:
                found = _searched(numbers, found, bits, weights * _sizes(numbers), halve)
            rounded = _integers(numbers, found, bits).add_(1 << bits - 1).to(torch.uint8).numpy()
            return pack_nibbles(rounded) if bits == 4 else rounded, found.numpy()

        integers, scales = zip(*pool.map(round_part, parts, reaching), strict=True)
    return Blocks(bits, BLOCK_SIZE, depth, np.concatenate(integers), np.concatenate(scales))


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Give as many threads as PyTorch has, whose operations take one each.

    They are short. Where other work keeps a core busy, sharing each out takes many times as long.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def _in_blocks(rows: Tensor) -> Tensor:
    """Return rows [R, K] as float32 [R, blocks, 32], padded with zeros."""
    padded = torch.nn.functional.pad(rows.float().cpu(), (0, -rows.shape[1] % BLOCK_SIZE))
    return padded.view(len(rows), -1, BLOCK_SIZE)


def _reaching_scales(numbers: Tensor, bits: int) -> Tensor:
    """Return the scales of blocks by which the largest number becomes the lowest integer.

    It has no opposite, so the number's sign goes into the scale.
    """
    low, high = numbers.aminmax(dim=-1)
    return torch.where(-low > high, low, high) / -(1 << bits - 1)


def _searched(numbers: Tensor, scales: Tensor, bits: int, weights: Tensor, halve: bool) -> Tensor:
    """Return, near some scales, those with the least squared error, weighted.

    Each candidate is refitted to the integers that it gives.
    """
    best, least_error = scales, torch.full_like(scales, torch.inf)
    highest = (1 << bits - 1) - 1
    for shrink in _SHRINKS:
        for sign in (1, -(highest + 1) / highest):
            integers = _integers(numbers, scales * shrink * sign, bits)
            weighted = weights * integers
            norms = (weighted * integers).sum(-1)
            fitted = torch.where(norms > 0, (weighted * numbers).sum(-1) / norms, scales)
            fitted = _rounded(fitted, halve)
            error = (weights * (integers * fitted[..., None] - numbers).square_()).sum(-1)
            best = torch.where(error < least_error, fitted, best)
            least_error = torch.minimum(error, least_error)
    return best


def _sizes(numbers: Tensor) -> Tensor:
    """Return the magnitudes of numbers, those below their row's kept from counting for nothing.

    By the inputs' powers alone, int4 of Qwen2.5 predicted worse than rounded to nearest: a channel
    that is a thousand times the others takes a block's scale for itself.
    """
    squares = numbers.square()
    return (squares + squares.mean((-2, -1), keepdim=True)).sqrt_()


def _integers(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    inverse = torch.where(scales == 0, 0, 1 / scales)
    least = -(1 << bits - 1)
    return (numbers * inverse[..., None]).round_().clamp_(least, -least - 1)


def _rounded(scales: Tensor, halve: bool) -> Tensor:
    return scales.half().float() if halve else scales


def _are_half(scales: Tensor) -> bool:
    """Whether rounding to float16 moves no scale by more than its rounding."""
    return torch.allclose(_rounded(scales, True), scales, rtol=2**-11, atol=0)
