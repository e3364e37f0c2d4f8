"""Matrices of a module, rounded to blocks of integers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pard_rt.exporter.blocks import Array, Blocks, pack_nibbles
from pard_rt.exporter.calibrate import input_powers
from pard_rt.exporter.matrices import matrices, weight_of
from pard_rt.models.checkpoint import LoadedModel

BITS = {"int8": 8, "int4": 4}
BLOCK_SIZE = 32  # weights that share a scale
_TABLE_BITS = 8  # of embeddings and heads: rounding them to 4 costs more than all else together
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

    Scales are float16 numbers in float32, where those reach: kernels read them so, a tenth to a
    fifth less in all.

    Parameters
    ----------
    matrix, bits
        What is rounded, and to what.
    powers
        Of the matrix' inputs, [K]: with few bits, scales are searched whose products err least.
    """
    depth = matrix.shape[1]
    powers = torch.ones(depth) if powers is None else powers
    padded = -(-depth // BLOCK_SIZE) * BLOCK_SIZE
    count = max(1, _PART // padded)
    starts = range(0, len(matrix), count)
    parts = [_round_rows(matrix[start : start + count], bits, powers) for start in starts]
    packed, scales = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Blocks(bits, BLOCK_SIZE, depth, packed, scales)


def _round_rows(rows: Tensor, bits: int, powers: Tensor) -> tuple[Array, Array]:
    """Return integers as they are packed, and scales."""
    padding = -rows.shape[1] % BLOCK_SIZE
    numbers = torch.nn.functional.pad(rows.float().cpu(), (0, padding))
    numbers = numbers.view(len(rows), -1, BLOCK_SIZE)
    least = 1 << bits - 1
    low, high = numbers.aminmax(dim=-1)
    # The largest number of a block, if it is the negative of what it is, becomes the one integer
    # that has no opposite.
    scales = _halved(torch.where(-low > high, low, high) / -least)
    if bits < _TABLE_BITS:
        weights = torch.nn.functional.pad(powers, (0, padding)).view(-1, BLOCK_SIZE)
        scales = _searched(numbers, scales, least, weights)
    integers = _integers(numbers, scales, least).add_(least).to(torch.uint8).numpy()
    return pack_nibbles(integers) if bits == 4 else integers, scales.numpy()


def _searched(numbers: Tensor, scales: Tensor, least: int, weights: Tensor) -> Tensor:
    """Return, near some scales, those with the least squared error, weighted.

    Each candidate is refitted to the integers that it gives.
    """
    best, least_error = scales, torch.full_like(scales, torch.inf)
    for shrink in _SHRINKS:
        for sign in (1, -(least / (least - 1))):
            integers = _integers(numbers, scales * shrink * sign, least)
            weighted = weights * integers
            norms = (weighted * integers).sum(-1)
            fitted = torch.where(norms > 0, (weighted * numbers).sum(-1) / norms, scales)
            fitted = _halved(fitted)
            error = (weights * (integers * fitted[..., None] - numbers).square_()).sum(-1)
            best = torch.where(error < least_error, fitted, best)
            least_error = torch.minimum(error, least_error)
    return best


def _integers(numbers: Tensor, scales: Tensor, least: int) -> Tensor:
    inverse = torch.where(scales == 0, 0, 1 / scales)
    return (numbers * inverse[..., None]).round_().clamp_(-least, least - 1)


def _halved(scales: Tensor) -> Tensor:
    """Round scales to float16, unless that moves one by more than its rounding."""
    halved = scales.half().float()
    return halved if torch.allclose(halved, scales, rtol=2**-11, atol=0) else scales
