"""Graph rewrites that leave the traced graph as a hand-written one would be.

Weight matrices of one input are packed, residual additions join the norm behind them, and shapes
are constants wherever they can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.convenience import replace_all_uses_with


def fuse(model: ir.Model, *, untie: bool = False) -> None:
    """Rewrite a traced graph in place; it computes the same.

    `untie` gives an LM head that shares the embedding's weights a matrix of its own, which takes
    its space on disk but can be quantized. Otherwise ONNX Runtime's own operator multiplies by the
    embedding transposed; a graph of standard operators has it transposed at load, slowly.
    """
    graph = model.graph
    is_portable = all(node.op_type != "GroupQueryAttention" for node in graph)
    for node in list(graph):
        if node.op_type == "Transpose" and (weight := _initializer(node.inputs[0])) is not None:
            if untie:
                _transpose_now(graph, node)
            elif not is_portable and weight.dtype == ir.DataType.FLOAT:
                _multiply_transposed(node)
    for node in list(graph):
        if node.op_type == "Reshape":
            _simplify_reshape(graph, node)
    common.RemoveUnusedNodesPass()(model)
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            _pack_projections(graph, node)
    for node in list(graph):
        if node.op_type == "SimplifiedLayerNormalization":
            _join_residual(graph, node)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    if any(node.domain == "com.microsoft" for node in graph):
        model.opset_imports["com.microsoft"] = 1
    common.ClearMetadataAndDocStringPass()(model)


def _dims(value: ir.Value) -> tuple[str, ...] | None:
    return None if value.shape is None else tuple(str(dim) for dim in value.shape)


def _simplify_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Drop a reshape back to where a chain of reshapes began; else give it a constant shape."""
    out = node.outputs[0]
    source = node.inputs[0]
    while True:
        assert source is not None
        producer = source.producer()
        if producer is None or producer.op_type != "Reshape":
            break
        source = producer.inputs[0]
    here, there = _dims(out), _dims(source)
    if here is None or there is None:
        return
    if here == there and not out.is_graph_output():
        replace_all_uses_with(out, source)
        graph.remove(node, safe=True)
        return
    node.replace_input_with(0, source)
    kept = 0
    while kept < min(len(here), len(there)) and here[kept] == there[kept]:
        kept += 1
    if all(dim.isdigit() for dim in here[kept:]):
        shape = [0] * kept + [int(dim) for dim in here[kept:]]
        node.replace_input_with(1, _constant(graph, shape))
        node.attributes.pop("allowzero", None)


def _constant(graph: ir.Graph, values: list[int]) -> ir.Value:
    name = "shape_" + "_".join(map(str, values))
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(values, name=name)))
    return graph.initializers[name]


def _initializer(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.is_initializer() else None


def _linear(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None] | None:
    """(x, weight, bias) of a value that is x @ weight (+ bias), used once."""
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add":
        left, right = node.inputs
        assert left is not None
        assert right is not None
        left, right = (right, left) if _initializer(left) is not None else (left, right)
        bias, node = right, left.producer()
        if _initializer(bias) is None or len(left.uses()) != 1:
            return None
    if node is None or node.op_type != "MatMul" or len(value.uses()) != 1:
        return None
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    return None if _initializer(weight) is None else (x, weight, bias)


def _pack_projections(graph: ir.Graph, attention: ir.Node) -> None:
    """Three projections of one input become one, which GroupQueryAttention takes packed."""
    parts = [_linear(value) for value in attention.inputs[:3] if value is not None]
    found = [part for part in parts if part is not None]
    if len(found) != 3 or len({id(x) for x, _, _ in found}) != 1:
        return
    biases = [bias for _, _, bias in found if bias is not None]
    if len(biases) not in (0, 3):
        return
    x = found[0][0]
    stem = (found[0][1].name or "").removesuffix(".weight")
    packed = ir.node("MatMul", [x, _concatenated(graph, f"{stem}.qkv", [w for _, w, _ in found])])
    nodes = [packed]
    if biases:
        bias = _concatenated(graph, f"{stem}.qkv_bias", biases)
        nodes.append(ir.node("Add", [packed.outputs[0], bias]))
    graph.insert_before(attention, nodes)
    out = nodes[-1].outputs[0]
    for made in (out, packed.outputs[0]):
        made.type = x.type
    for index, value in enumerate((out, None, None)):
        attention.replace_input_with(index, value)


def _concatenated(graph: ir.Graph, name: str, values: Iterable[ir.Value]) -> ir.Value:
    """Put weights side by side."""
    tensors = [tensor for value in values if (tensor := value.const_value) is not None]
    dims = [int(dim) for dim in tensors[0].shape.numpy()]
    dims[-1] = sum(tensor.shape.numpy()[-1] for tensor in tensors)
    return _lazy(
        graph,
        name,
        tensors[0].dtype,
        dims,
        lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis=-1),
    )


def _transpose_now(graph: ir.Graph, node: ir.Node) -> None:
    """Replace the transpose of a weight matrix by a transposed weight matrix."""
    tensor = _initializer(node.inputs[0])
    assert tensor is not None
    rows, columns = tensor.shape.numpy()
    name = f"{node.outputs[0].name}.transposed"
    value = _lazy(
        graph, name, tensor.dtype, [columns, rows], lambda: np.ascontiguousarray(tensor.numpy().T)
    )
    replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)


def _multiply_transposed(transpose: ir.Node) -> None:
    """Make products take weights as they lie, not transposed."""
    for product, index in transpose.outputs[0].uses():
        if (product.op_type, index) == ("MatMul", 1):
            product.domain, product.op_type = "com.microsoft", "FusedMatMul"
            product.attributes["transB"] = ir.AttrInt64("transB", 1)
            product.replace_input_with(1, transpose.inputs[0])


def _lazy(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    dims: Sequence[int],
    make: Callable[[], npt.NDArray[Any]],
) -> ir.Value:
    """Add a weight that is put together only while the graph is written."""
    shape = ir.Shape(dims)
    tensor = ir.LazyTensor(lambda: ir.Tensor(make()), dtype=dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _join_residual(graph: ir.Graph, norm: ir.Node) -> None:
    """Make an addition and the norm of its sum one SkipSimplifiedLayerNormalization."""
    total = norm.inputs[0]
    assert total is not None
    add = total.producer()
    if add is None or add.op_type != "Add":
        return
    left, right = add.inputs
    assert left is not None
    assert right is not None
    if _dims(left) is None or _dims(left) != _dims(right) or len(_dims(left) or ()) != 3:
        return
    joined = ir.node(
        "SkipSimplifiedLayerNormalization",
        [left, right, norm.inputs[1]],
        {"epsilon": norm.attributes["epsilon"].as_float()},
        domain="com.microsoft",
        num_outputs=4,
    )
    for old, new in ((norm.outputs[0], joined.outputs[0]), (total, joined.outputs[3])):
        new.type, new.shape = old.type, old.shape
    for unused in joined.outputs[1:3]:
        unused.name = ""
    graph.insert_after(add, joined)
    replace_all_uses_with(norm.outputs[0], joined.outputs[0])
    graph.remove(norm, safe=True)
    replace_all_uses_with(total, joined.outputs[3])
    graph.remove(add, safe=True)
    if not joined.outputs[3].uses():
        joined.outputs[3].name = ""
