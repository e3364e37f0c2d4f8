"""From a graph that names its matrices to one that has them: as floats, or as blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.convenience import replace_all_uses_with

from pard_rt.exporter.blocks import Array, Blocks, pack_nibbles
from pard_rt.exporter.fused import norm_of
from pard_rt.exporter.matrices import DOMAIN, LAYERS, PRODUCT, SCALE, TABLE, weight_of

ACCURACY_LEVEL = 4  # of MatMulNBits: rows are rounded to int8
_BLOCKED_OPSET = 21  # the first whose DequantizeLinear has blocks, and the first with int4
_CONTRIB = "com.microsoft"
_ALIGNMENT = 1 << 16  # of large weights in their file, so that they can be mapped


def layers_of(node: ir.Node) -> list[str]:
    """Return the names of the layers by whose matrices a node multiplies."""
    return list(node.attributes[LAYERS].as_strings())


def joinable(module: Any, blocks: Mapping[str, Blocks], layers: Sequence[str]) -> bool:
    """Whether the matrices of some layers can be put one under the other."""
    parts = [module.get_submodule(layer) for layer in layers]
    kinds = {blocks[layer].kind if layer in blocks else None for layer in layers}
    return len(kinds) == 1 and len({part.bias is None for part in parts}) == 1


def lowered(
    model: ir.Model, module: Any, form: str, blocks: Mapping[str, Blocks] | None = None
) -> ir.Model:
    """Return a fused graph with the matrices that it names.

    Parameters
    ----------
    model
        Stays as it is.
    module
        What it was traced from.
    form
        "gqa" or "portable": of the latter, standard operators only.
    blocks
        By the name of their layer; matrices of other layers are floats.
    """
    model = model.clone()
    weights = _Weights(model.graph, module, form, blocks or {})
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        old = node.outputs[0]
        if node.op_type == SCALE:
            replace_all_uses_with(old, weights.scale(*layers_of(node)))
            model.graph.remove(node, safe=True)
            continue
        (taken,) = node.inputs
        assert taken is not None
        make = {PRODUCT: weights.product, TABLE: weights.table}[node.op_type]
        nodes = make(taken, layers_of(node))
        model.graph.insert_before(node, nodes)
        new = nodes[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedOpsetsPass()(model)
    if any(node.domain == _CONTRIB for node in model.graph):
        model.opset_imports[_CONTRIB] = 1
    if weights.need_blocked_opset:
        model.opset_imports[""] = _BLOCKED_OPSET
    model.metadata_props.clear()
    model.meta["views"] = weights.views
    return model


class _Weights:
    """Weights of a graph; those that several operators share are there once."""

    def __init__(
        self, graph: ir.Graph, module: Any, form: str, blocks: Mapping[str, Blocks]
    ) -> None:
        self._graph = graph
        self._parts = dict(module.named_modules())
        self._names = {id(x): name for name, x in module.named_parameters()}
        self._is_portable = form == "portable"
        self._blocks = blocks
        self._arrays_of: dict[int, dict[str, ir.Value]] = {}  # by the id of integers
        self.views: dict[str, tuple[str, tuple[int, ...]]] = {}  # of other weights: their shapes
        self.need_blocked_opset = False

    def product(self, x: ir.Value, layers: Sequence[str]) -> list[ir.Node]:
        """Multiply rows by matrices that lie one under the other, and add their biases."""
        found = [self._blocks[layer] for layer in layers if layer in self._blocks]
        biases = [self._parts[layer].bias for layer in layers]
        bias = None
        if biases[0] is not None:
            bias = self._initializer(
                f"{layers[0]}.bias{_others(layers)}",
                np.concatenate([each.detach().cpu().numpy() for each in biases]),
            )
        stem = f"{layers[0]}{_others(layers)}"
        if len(found) == len(layers):
            blocks = Blocks.stacked(found)
            if not self._is_portable:
                return [self._matmul_n_bits(x, stem, blocks, bias)]
            nodes = self._dequantized(x, stem, blocks)
        else:
            nodes = self._matmul(x, stem, layers)
        if bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
        return nodes

    def table(self, ids: ir.Value, layers: Sequence[str]) -> list[ir.Node]:
        """Look rows of an embedding up."""
        (layer,) = layers
        blocks = self._blocks.get(layer)
        if blocks is None or self._is_portable:
            return [ir.node("Gather", [self._parameter(layer), ids])]
        attributes = {"bits": blocks.bits, "block_size": blocks.block}
        values = self._arrays(layer, blocks)
        table, scales = values["integers"], values["scales"]
        own = [values.get(name) for name in ("minima", "scale_factors", "minimum_factors")]
        points = values.get("zero_points")
        if blocks.scales.dtype == np.float32 and not any(own):  # what ONNX Runtime takes too
            table, scales = (self._view(each, (len(blocks.scales), -1)) for each in (table, scales))
            points = None if points is None else self._view(points, (len(blocks.scales), -1))
        inputs = _trimmed([table, ids, scales, points, *own])
        return [ir.node("GatherBlockQuantized", inputs, attributes, domain=_CONTRIB, name=layer)]

    def scale(self, layer: str) -> ir.Value:
        """Return what a norm multiplies by."""
        norm = norm_of(self._parts[layer])
        assert norm is not None
        name = f"{layer}.weight"
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return self._initializer(name, norm[0].detach().cpu().numpy())

    def _matmul(self, x: ir.Value, stem: str, layers: Sequence[str]) -> list[ir.Node]:
        parts = [self._parts[layer] for layer in layers]
        dtype = ir.DataType.from_numpy(_numpy_dtype(parts[0].weight))
        shared = self._names.get(id(parts[0].weight))
        if shared in self._graph.initializers:  # with the embedding
            weight = self._parameter(layers[0])
            if dtype == ir.DataType.FLOAT and not self._is_portable:
                # ONNX Runtime's own operator multiplies by the embedding transposed
                attributes = {"transB": 1}
                return [ir.node("FusedMatMul", [x, weight], attributes, domain=_CONTRIB)]
            transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
            return [transpose, ir.node("MatMul", [x, transpose.outputs[0]])]
        matrices = [weight_of(part) for part in parts]
        dims = [matrices[0].shape[1], sum(map(len, matrices))]

        def make() -> Array:
            return np.concatenate([each.detach().cpu().numpy().T for each in matrices], axis=1)

        lazy = ir.LazyTensor(
            lambda: ir.Tensor(np.ascontiguousarray(make())),
            dtype=dtype,
            shape=ir.Shape(dims),
            name=f"{stem}.weight",
        )
        return [ir.node("MatMul", [x, self._registered(lazy)])]

    def _matmul_n_bits(
        self, x: ir.Value, stem: str, blocks: Blocks, bias: ir.Value | None
    ) -> ir.Node:
        attributes = {
            "N": len(blocks.scales),
            "K": blocks.depth,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": ACCURACY_LEVEL,
        }
        values = self._arrays(stem, blocks)
        first = [values.get(name) for name in ("integers", "scales", "zero_points")]
        own = [values.get(name) for name in ("minima", "scale_factors", "minimum_factors")]
        inputs = _trimmed([x, *first, None, bias, *own])
        return ir.node("MatMulNBits", inputs, attributes, domain=_CONTRIB, name=stem)

    def _dequantized(self, x: ir.Value, stem: str, blocks: Blocks) -> list[ir.Node]:
        """Multiply by the same integers and scales in standard operators."""
        self.need_blocked_opset = True
        dtype = {4: ir.DataType.INT4, 8: ir.DataType.INT8}[blocks.bits]
        zero = 1 << blocks.bits - 1

        def transposed(numbers: Array) -> ir.Tensor[Any]:
            signed = (numbers.T.astype(np.int16) - zero).astype(dtype.numpy())
            return ir.Tensor(np.ascontiguousarray(signed), dtype=dtype)

        numbers = blocks.numbers()
        matrix = transposed(numbers.reshape(len(numbers), -1)[:, : blocks.depth])
        inputs = [
            self._tensor(f"{stem}.integers", matrix),
            self._initializer(f"{stem}.scales", np.ascontiguousarray(blocks.scales.T)),
        ]
        if blocks.zero_points is not None:
            inputs.append(self._tensor(f"{stem}.zero_points", transposed(blocks.zero_points)))
        attributes = {"axis": 0, "block_size": blocks.block}
        dequantize = ir.node("DequantizeLinear", inputs, attributes)
        return [dequantize, ir.node("MatMul", [x, dequantize.outputs[0]])]

    def _arrays(self, stem: str, blocks: Blocks) -> dict[str, ir.Value]:
        """Return a matrix' arrays as MatMulNBits takes them."""
        arrays = dict(blocks.arrays)
        if blocks.zero_points is not None and blocks.bits == 4:
            points = blocks.zero_points
            filled = np.pad(points, [(0, 0), (0, points.shape[1] % 2)])
            arrays["zero_points"] = pack_nibbles(filled)
        key = id(blocks.integers)
        if key not in self._arrays_of:
            self._arrays_of[key] = {
                name: self._initializer(f"{stem}.{name}", array) for name, array in arrays.items()
            }
        return self._arrays_of[key]

    def _view(self, value: ir.Value, shape: tuple[int, int]) -> ir.Value:
        """Return a weight in another shape, which takes no place of its own in a file."""
        tensor = value.const_value
        assert tensor is not None
        dims = tensor.numpy().reshape(shape).shape
        if dims == tuple(tensor.shape.numpy()):
            return value
        name = f"{value.name}.table"
        self.views[name] = (value.name or "", dims)
        return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(dims))

    def _parameter(self, layer: str) -> ir.Value:
        weight = self._parts[layer].weight
        name = self._names[id(weight)]
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return self._initializer(name, weight.detach().cpu().numpy())

    def _initializer(self, name: str, array: Array) -> ir.Value:
        return self._tensor(name, ir.Tensor(array))

    def _tensor(self, name: str, tensor: ir.Tensor[Any]) -> ir.Value:
        tensor.name = name
        return self._registered(tensor)

    def _registered(self, tensor: ir.TensorProtocol) -> ir.Value:
        known = self._graph.initializers.get(tensor.name or "")
        if known is not None:  # of a layer that runs twice
            return known
        kind = ir.TensorType(tensor.dtype)
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _others(layers: Sequence[str]) -> str:
    """Say which layers lie under the first one."""
    return "".join(f"+{layer.rpartition('.')[2]}" for layer in layers[1:])


def _trimmed(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Leave out what is not given at the end."""
    rest = itertools.dropwhile(lambda value: value is None, reversed(inputs))
    return list(rest)[::-1]


def _numpy_dtype(weight: Any) -> np.dtype[Any]:
    return np.asarray(weight.detach()[:0].cpu().numpy()).dtype


def save(model: ir.Model, file: Path) -> None:
    """Write a graph and, beside it, its weights."""
    ir.save(model, file, external_data=f"{file.name}.data", alignment=_ALIGNMENT)
    views = model.meta.get("views")
    if not views:
        return
    proto = onnx.load(file, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, (viewed, dims) in views.items():
        view = proto.graph.initializer.add()
        view.CopyFrom(tensors[viewed])
        view.name = name
        del view.dims[:]
        view.dims.extend(dims)
    onnx.save(proto, file)
