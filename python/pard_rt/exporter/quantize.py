"""Block-wise integer weights through ONNX Runtime's own quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from pard_rt.exporter.blocks import ACCURACY_LEVEL

BITS = {"int8": 8, "int4": 4}
BLOCK_SIZE = 32  # weights that share a scale

_BLOCKED_OPSET = 21  # the first whose DequantizeLinear has blocks, and the first with int4


def quantize(source: Path, target: Path, form: str, weights: str) -> None:
    """Write the graph at `source` to `target` with every weight matrix in blocks of integers.

    Of form "gqa" they are multiplied by MatMulNBits; of form "portable" the same integers and
    scales go through DequantizeLinear into MatMul. The embedding stays as it is. Needs memory for
    the whole float32 model.
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
    model = quantizer.model.model
    _round_scales(model)
    if form == "portable":
        _use_standard_operators(model, BITS[weights])
    onnx.save(
        model,
        target,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{target.name}.data",
        size_threshold=256,
    )


def _round_scales(model: onnx.ModelProto) -> None:
    """Leave scales that float16 can say: kernels read them so, a tenth to a fifth less in all."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        scales = onnx.numpy_helper.to_array(tensors[node.input[2]])
        with np.errstate(over="ignore"):
            rounded = scales.astype(np.float16).astype(scales.dtype)
        if np.allclose(rounded, scales, rtol=2**-11, atol=0):
            tensors[node.input[2]].CopyFrom(onnx.numpy_helper.from_array(rounded, node.input[2]))


def _use_standard_operators(model: onnx.ModelProto, bits: int) -> None:
    """Replace every MatMulNBits by DequantizeLinear and MatMul: the quantizer's QDQ has no int8."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        x, weight, scales = node.input
        rows = next(attribute.i for attribute in node.attribute if attribute.name == "K")
        _transpose_weight(tensors[weight], bits, rows)
        by_column = onnx.numpy_helper.to_array(tensors[scales])
        by_column = by_column.reshape(tensors[weight].dims[1], -1)  # some versions have them flat
        tensors[scales].CopyFrom(onnx.numpy_helper.from_array(by_column.T.copy(), scales))
        nodes += [
            onnx.helper.make_node(
                "DequantizeLinear",
                [weight, scales],
                [f"{weight}.dequantized"],
                axis=0,
                block_size=BLOCK_SIZE,
            ),
            onnx.helper.make_node("MatMul", [x, f"{weight}.dequantized"], node.output),
        ]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid("", _BLOCKED_OPSET))


def _transpose_weight(tensor: onnx.TensorProto, bits: int, rows: int) -> None:
    """Make packed unsigned numbers [N, blocks, bytes] signed ones [K = rows, N]."""
    numbers = onnx.numpy_helper.to_array(tensor)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
    numbers = numbers.reshape(len(numbers), -1)[:, :rows].T.astype(np.int16) - (1 << bits - 1)
    kind = {8: onnx.TensorProto.INT8, 4: onnx.TensorProto.INT4}[bits]
    signed = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    tensor.CopyFrom(onnx.numpy_helper.from_array(signed, tensor.name))
