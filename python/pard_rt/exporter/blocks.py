"""Weights in blocks of integers, as MatMulNBits and its inputs of ours hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SPAN = 256  # weights of a row that share factors
ACCURACY_LEVEL = 4  # of MatMulNBits: rows are rounded to int8


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in blocks along K (docs/architecture.md, "Integer weights on CPUs").

    Attributes
    ----------
    bits, block
        Of an integer, 4 or 8; weights of a block.
    depth
        K.
    integers
        uint8 [N, K / block, block * bits / 8]; of two integers in a byte, the first lies lower.
    scales
        [N, K / block]: float16 or float32; int8 where there are factors.
    minima
        The same. Without them 8 or 128 is zero.
    scale_factors, minimum_factors
        float16 [N, K / 256]: what the integers among scales and minima are worth.
    """

    bits: int
    block: int
    depth: int
    integers: Array
    scales: Array
    minima: Array | None = None
    scale_factors: Array | None = None
    minimum_factors: Array | None = None

    @property
    def factors(self) -> tuple[Array | None, Array | None]:
        """Those of scales and those of minima."""
        return self.scale_factors, self.minimum_factors

    def rows(self, order: Array) -> Blocks:
        """Return some rows, in some order."""
        names = [field.name for field in fields(self)]
        arrays: dict[str, Any] = {
            name: getattr(self, name)[order]
            for name in names
            if isinstance(getattr(self, name), np.ndarray)
        }
        return replace(self, **arrays)

    def dequantize(self) -> Array:
        """Return the matrix, float32 [N, K], as q * scale + minimum."""
        numbers = self.integers
        if self.bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
        rows, count = self.scales.shape
        numbers = numbers.reshape(rows, count, self.block).astype(np.float32)
        if self.minima is None:
            numbers -= 1 << self.bits - 1
        numbers *= self._floats(self.scales, self.scale_factors)[..., None]
        if self.minima is not None:
            numbers += self._floats(self.minima, self.minimum_factors)[..., None]
        return numbers.reshape(rows, -1)[:, : self.depth]

    def _floats(self, numbers: Array, factors: Array | None) -> Array:
        floats = numbers.astype(np.float32)
        if factors is None:
            return floats
        spread = np.repeat(factors.astype(np.float32), SPAN // self.block, axis=1)
        return np.asarray(floats * spread[:, : floats.shape[1]])


def pack_nibbles(numbers: Array) -> Array:
    """Return uint8 [.., n] below 16 as uint8 [.., n / 2], the first of two in the lower half."""
    pairs = numbers.reshape(*numbers.shape[:-1], -1, 2)
    return np.asarray(pairs[..., 0] | pairs[..., 1] << 4)
