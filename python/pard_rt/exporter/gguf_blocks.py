"""Blocks of GGUF files, carried over: integers, scales and minima stay the file's.

The formats are those of ggml. Types of 5 and 6 bits become 8 bits, which hold the same integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pard_rt.exporter.blocks import SPAN, Array, Blocks, pack_nibbles


def carry_over(type_name: str, rows: Array, depth: int) -> Blocks | None:
    """Return a tensor's blocks; None for types that have none, or that are not carried over.

    Parameters
    ----------
    type_name
        ggml's name of the type, such as "Q4_K".
    rows
        uint8 [N, bytes of a row].
    depth
        Weights of a row.
    """
    reader = _READERS.get(type_name)
    if reader is None:
        return None
    read, size, weights = reader
    return read(rows.reshape(len(rows), depth // weights, size), depth)


def _half(data: Array) -> Array:
    """[.., 2] bytes: float16 [..]."""
    return np.ascontiguousarray(data).view(np.float16)[..., 0]


def _halves_of_bytes(data: Array) -> Array:
    """[.., n] bytes: their lower halves, then their upper ones: [.., 2 n]."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _bits_of(words: Array) -> Array:
    """[.., 4] bytes: their 32 bits, lowest first."""
    return np.unpackbits(words, axis=-1, bitorder="little")


def _q4_0(data: Array, depth: int) -> Blocks:
    return Blocks(4, 32, depth, pack_nibbles(_halves_of_bytes(data[..., 2:])), _half(data[..., :2]))


def _q4_1(data: Array, depth: int) -> Blocks:
    integers = pack_nibbles(_halves_of_bytes(data[..., 4:]))
    return Blocks(4, 32, depth, integers, _half(data[..., :2]), _half(data[..., 2:4]))


def _q5_0(data: Array, depth: int) -> Blocks:
    integers = _halves_of_bytes(data[..., 6:]) | _bits_of(data[..., 2:6]) << 4
    return Blocks(8, 32, depth, integers + np.uint8(128 - 16), _half(data[..., :2]))


def _q5_1(data: Array, depth: int) -> Blocks:
    integers = _halves_of_bytes(data[..., 8:]) | _bits_of(data[..., 4:8]) << 4
    return Blocks(8, 32, depth, integers, _half(data[..., :2]), _half(data[..., 2:4]))


def _q8_0(data: Array, depth: int) -> Blocks:
    return Blocks(8, 32, depth, data[..., 2:] ^ np.uint8(128), _half(data[..., :2]))


def _six_bits(data: Array) -> tuple[Array, Array]:
    """[.., 12] bytes: eight scales and eight minima of 6 bits each, as int8 [.., 8]."""
    a, b, c = data[..., :4], data[..., 4:8], data[..., 8:]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1)
    minima = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1)
    return scales.astype(np.int8), minima.astype(np.int8)


def _q4_k(data: Array, depth: int) -> Blocks:
    chunks = data[..., 16:].reshape(*data.shape[:-1], 4, 32)
    return _k(data, depth, 4, pack_nibbles(_halves_of_chunks(chunks)))


def _q5_k(data: Array, depth: int) -> Blocks:
    chunks = data[..., 48:].reshape(*data.shape[:-1], 4, 32)
    fifth = data[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k(data, depth, 8, _halves_of_chunks(chunks) | fifth << 4)


def _halves_of_chunks(chunks: Array) -> Array:
    """[.., c, n] bytes: of every chunk the lower halves, then the upper ones: [.., 2 c, n]."""
    halves = np.stack([chunks & 15, chunks >> 4], axis=-2)
    return halves.reshape(*chunks.shape[:-2], -1, chunks.shape[-1])


def _k(data: Array, depth: int, bits: int, integers: Array) -> Blocks:
    scales, minima = _six_bits(data[..., 4:16])
    rows = len(data)
    return Blocks(
        bits,
        32,
        depth,
        integers.reshape(rows, depth // 32, -1),
        scales.reshape(rows, -1),
        minima.reshape(rows, -1),
        _half(data[..., :2]),
        -_half(data[..., 2:4]),
    )


def _q6_k(data: Array, depth: int) -> Blocks:
    rows, spans = data.shape[:2]
    low = _halves_of_chunks(data[..., :128].reshape(rows, spans, 2, 64))
    high = data[..., 128:192].reshape(rows, spans, 2, 1, 32)
    high = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    integers = low.reshape(rows, -1, 16) | high.reshape(rows, -1, 16) << 4
    return Blocks(
        8,
        16,
        depth,
        integers + np.uint8(128 - 32),
        np.ascontiguousarray(data[..., 192:208]).view(np.int8).reshape(rows, -1),
        scale_factors=_half(data[..., 208:]),
    )


# How to read a type; bytes and weights of its blocks.
_READERS: dict[str, tuple[Callable[[Array, int], Blocks], int, int]] = {
    "Q4_0": (_q4_0, 18, 32),
    "Q4_1": (_q4_1, 20, 32),
    "Q5_0": (_q5_0, 22, 32),
    "Q5_1": (_q5_1, 24, 32),
    "Q8_0": (_q8_0, 34, 32),
    "Q4_K": (_q4_k, 144, SPAN),
    "Q5_K": (_q5_k, 176, SPAN),
    "Q6_K": (_q6_k, 210, SPAN),
}
