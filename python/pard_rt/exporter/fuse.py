"""Graph rewrites that leave the traced graph as a hand-written one would be.

Matrices of one input are packed, residual additions join the norm behind them, and shapes are
constants wherever they can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.convenience import replace_all_uses_with

from pard_rt.exporter.lower import layers_of
from pard_rt.exporter.matrices import DOMAIN, LAYERS, PRODUCT


def fuse(model: ir.Model, joinable: Callable[[Sequence[str]], bool]) -> None:
    """Rewrite a traced graph in place; it computes the same.

    Parameters
    ----------
    model
        Still without matrices.
    joinable
        Whether the matrices of some layers can be put one under the other.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Reshape":
            _simplify_reshape(graph, node)
    common.RemoveUnusedNodesPass()(model)
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            _pack_projections(graph, node, joinable)
    for node in list(graph):
        if node.op_type == "SimplifiedLayerNormalization":
            _join_residual(graph, node)
    graph.sort()
    common.RemoveUnusedNodesPass()(model)
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


def _pack_projections(
    graph: ir.Graph, attention: ir.Node, joinable: Callable[[Sequence[str]], bool]
) -> None:
    """Three projections of one input become one, which GroupQueryAttention takes packed."""
    parts = [value.producer() for value in attention.inputs[:3] if value is not None]
    products = [part for part in parts if part is not None and part.op_type == PRODUCT]
    if len(products) != 3 or any(len(part.outputs[0].uses()) != 1 for part in products):
        return
    x = products[0].inputs[0]
    layers = [layer for part in products for layer in layers_of(part)]
    if any(part.inputs[0] is not x for part in products) or not joinable(layers):
        return
    packed = ir.node(PRODUCT, [x], {LAYERS: layers}, domain=DOMAIN)
    packed.outputs[0].type = products[0].outputs[0].type
    graph.insert_before(attention, packed)
    for index, value in enumerate((packed.outputs[0], None, None)):
        attention.replace_input_with(index, value)


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
