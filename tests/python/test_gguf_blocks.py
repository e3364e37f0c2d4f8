"""Blocks of GGUF files are carried over: they are worth what the gguf library says, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pard_rt.exporter.gguf_blocks import carry_over

# Where the float16 numbers of a block lie.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def draw(type_name: str, rows: int = 7, blocks: int = 3) -> tuple[np.ndarray, int]:
    """Bytes of random weights, uint8 [rows, ..], and how many weights a row has."""
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[type_name]:
        halves = rng.normal(0, 0.01, (rows, blocks, 1)).astype(np.float16)
        drawn[..., at : at + 2] = halves.view(np.uint8)
    return drawn.reshape(rows, -1), weights * blocks


@pytest.mark.parametrize("type_name", HALVES)
def test_blocks_are_worth_what_the_library_says(type_name: str) -> None:
    drawn, depth = draw(type_name)
    blocks = carry_over(type_name, drawn, depth)
    assert blocks is not None
    expected = dequantize(drawn, GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(blocks.dequantize().view(np.uint32), expected.view(np.uint32))
    order = np.array([3, 0, 6])
    np.testing.assert_array_equal(blocks.rows(order).dequantize(), expected[order])


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q2_K", "IQ4_XS"])
def test_other_types_are_not_carried_over(type_name: str) -> None:
    assert carry_over(type_name, np.zeros((1, 256), np.uint8), 256) is None
