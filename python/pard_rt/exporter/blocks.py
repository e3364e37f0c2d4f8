"""Weights in blocks of integers, as MatMulNBits and its inputs of ours hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

SPAN = 256  # weights of a row that share factors
_PART = 1 << 18  # weights that are dequantized at a time: they stay in the processor's caches


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
    zero_points
        uint8 [N, K / block], where there are no minima: the integers that stand for zero.
    """

    bits: int
    block: int
    depth: int
    integers: Array
    scales: Array
    minima: Array | None = None
    scale_factors: Array | None = None
    minimum_factors: Array | None = None
    zero_points: Array | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """Those that there are, by name; rows are their first dimension."""
        names = [field.name for field in fields(self)]
        return {name: x for name in names if isinstance(x := getattr(self, name), np.ndarray)}

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is the same in matrices that can be put one under the other."""
        types = ((name, array.dtype) for name, array in self.arrays.items())
        return (self.bits, self.block, self.depth, *types)

    def rows(self, wanted: Array | slice) -> Blocks:
        """Return some rows, in some order."""
        some: dict[str, Any] = {name: array[wanted] for name, array in self.arrays.items()}
        return replace(self, **some)

    @staticmethod
    def stacked(parts: Sequence[Blocks]) -> Blocks:
        """Put matrices of one kind one under the other."""
        if len(parts) == 1:
            return parts[0]
        of_parts = [part.arrays for part in parts]
        joined: dict[str, Any] = {
            name: np.concatenate([arrays[name] for arrays in of_parts]) for name in of_parts[0]
        }
        return replace(parts[0], **joined)

    def in_parts(self) -> Iterator[torch.Tensor]:
        """Yield the matrix, float32, a few rows at a time."""
        count = max(1, _PART // self.depth)
        for begin in range(0, len(self.scales), count):
            yield torch.from_numpy(self.rows(slice(begin, begin + count)).dequantize())

    def dequantize(self) -> Array:
        """Return the matrix, float32 [N, K]: q * scale + minimum, or (q - zero) * scale."""
        numbers = self.numbers().astype(np.float32)
        if self.zero_points is not None:
            numbers -= self.zero_points[..., None]
        elif self.minima is None:
            numbers -= 1 << self.bits - 1
        numbers *= self._floats(self.scales, self.scale_factors)[..., None]
        if self.minima is not None:
            numbers += self._floats(self.minima, self.minimum_factors)[..., None]
        return numbers.reshape(len(numbers), -1)[:, : self.depth]

    def numbers(self) -> Array:
        """Return the integers one by one, uint8 [N, K / block, block]."""
        numbers = self.integers
        if self.bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
        return numbers.reshape(*self.scales.shape, self.block)

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
