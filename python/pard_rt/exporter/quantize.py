"""Block-wise integer weights through ONNX Runtime's own quantizer."""

from __future__ import annotations

from pathlib import Path

import onnx

BITS = {"int8": 8, "int4": 4}
BLOCK_SIZE = 32  # weights that share a scale
ACCURACY_LEVEL = 4  # activations are rounded to int8 for the products


def quantize(source: Path, target: Path, weights: str) -> None:
    """Write the graph at `source` to `target` with every weight matrix as MatMulNBits.

    The embedding stays as it is. Needs memory for the whole float32 model.
    """
    # importing it configures the root logger: not at the top, and only where quiet() undoes that
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # type: ignore[import-untyped]
        MatMulNBitsQuantizer,
    )

    quantizer = MatMulNBitsQuantizer(
        onnx.load(source),
        bits=BITS[weights],
        block_size=BLOCK_SIZE,
        is_symmetric=True,
        accuracy_level=ACCURACY_LEVEL,
    )
    quantizer.process()
    onnx.save(
        quantizer.model.model,
        target,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{target.name}.data",
        size_threshold=256,
    )
