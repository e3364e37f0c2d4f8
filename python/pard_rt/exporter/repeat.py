"""Layers that repeat: three of a kind are traced, and the others are copies of the third."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from pard_rt.errors import ModelError
from pard_rt.exporter.matrices import DOMAIN, LAYERS

_ENTER, _LEAVE, _COPY = "Enter", "Leave", "Copy"
_LAYER = "layer"  # attribute: which one
_INPUTS_BEFORE_PAST = 4  # of a graph's, and two for each layer after them
_PREFIX = "module."  # of a graph's weights, before their names in the module
_T = TypeVar("_T")
_TRACED = 3  # of a kind: the first may compute what others share, the next two are compared


class DiffersError(Exception):
    """Layers that look alike are not: they have to be traced one by one."""


@dataclass(frozen=True)
class Repeats:
    """Which layers of a module are copies of which.

    Attributes
    ----------
    stem
        Of the layers' names: ``stem.0``, ``stem.1``, ...
    num_layers
        All of them.
    models
        By layer that is not traced: the two that are compared, of which the second is copied.
    """

    stem: str
    num_layers: int
    models: Mapping[int, tuple[int, int]]

    @property
    def copies(self) -> tuple[str, ...]:
        """What the names of weights begin with in layers that are not traced."""
        return tuple(f"{self.stem}.{layer}." for layer in self.models)

    @property
    def traced(self) -> list[int]:
        """The layers that are traced."""
        return [layer for layer in range(self.num_layers) if layer not in self.models]


def find_repeats(module: nn.Module, num_layers: int) -> Repeats | None:
    """Find layers that are built alike: of one class, with the same settings and sizes inside.

    None where there are too few.
    """
    for stem, part in module.named_modules():
        if not isinstance(part, nn.ModuleList) or len(part) != num_layers:
            continue
        kinds: dict[Any, list[int]] = {}
        for index, layer in enumerate(part):
            kinds.setdefault(_build(layer), []).append(index)
        models = {
            index: (alike[1], alike[2]) for alike in kinds.values() for index in alike[_TRACED:]
        }
        return Repeats(stem, num_layers, models) if models else None
    return None


def _build(part: nn.Module) -> Any:
    """Return what is equal for modules that compute the same but for their weights."""
    settings = {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else id(value)
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in ("layer_idx", "forward")
    }
    own = itertools.chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
    return (
        type(part),
        tuple(sorted(settings.items())),
        tuple((name, tensor.shape, tensor.dtype) for name, tensor in own),
        tuple((name, _build(child)) for name, child in part.named_children()),
    )


def copying_layers(repeats: Repeats | None, attempt: Callable[[Repeats | None], _T]) -> _T:
    """Attempt something with layers that are copies; if they turn out not to be, with none."""
    if repeats is not None:
        with suppress(DiffersError, ModelError):
            return attempt(repeats)
    return attempt(None)


@contextmanager
def repeating(module: nn.Module, repeats: Repeats) -> Iterator[None]:
    """While tracing, mark where layers begin and end, and let copies be marks alone."""
    is_tuple = False

    def marked(operator: str, layer: int, x: Tensor) -> Tensor:
        return symbolic(
            f"{DOMAIN}::{operator}", (x,), {_LAYER: layer}, dtype=x.dtype, shape=x.shape, version=1
        )

    def forward(layer: int, inner: Any, x: Tensor, *others: Any, **named: Any) -> Any:
        nonlocal is_tuple
        out = inner(marked(_ENTER, layer, x), *others, **named)
        is_tuple = isinstance(out, tuple)
        if not is_tuple:
            return marked(_LEAVE, layer, out)
        return (marked(_LEAVE, layer, out[0]), *out[1:])

    def copied(layer: int, x: Tensor, *_: Any, **__: Any) -> Any:
        out = marked(_COPY, layer, x)
        return (out,) if is_tuple else out

    layers: Any = module.get_submodule(repeats.stem)
    with ExitStack() as stack:
        for index, part in enumerate(layers):
            way = _named_first(
                index, None if index in repeats.models else part.forward, forward, copied
            )
            stack.enter_context(mock.patch.object(part, "forward", way))
        yield


def _named_first(index: int, inner: Any, forward: Any, copied: Any) -> Any:
    def way(*arguments: Any, **named: Any) -> Any:
        if not arguments:
            arguments = (named.pop("hidden_states"),)
        if inner is None:
            return copied(index, *arguments, **named)
        return forward(index, inner, *arguments, **named)

    return way


def repeat(model: ir.Model, module: nn.Module, repeats: Repeats) -> None:
    """Put copies of layers into a traced graph, in place.

    Raises
    ------
    DiffersError
        Two of the layers that were traced differ in more than their weights, or are not run one
        after the other.
    """
    graph = model.graph
    marks = {
        (node.op_type, node.attributes[_LAYER].as_int()): node
        for node in graph
        if node.domain == DOMAIN and _LAYER in node.attributes
    }
    expected = [(_COPY, layer) for layer in repeats.models]
    expected += itertools.product((_ENTER, _LEAVE), repeats.traced)
    logits, *written = graph.outputs
    if set(marks) != set(expected) or len(written) != 2 * len(repeats.traced):
        raise DiffersError
    of_layers = {layer: written[2 * i : 2 * i + 2] for i, layer in enumerate(repeats.traced)}
    graph.outputs.clear()
    positions = {node: i for i, node in enumerate(graph)}
    of_module = itertools.chain(module.named_parameters(), module.named_buffers())
    weights = {_PREFIX + name: weight for name, weight in of_module}
    layers = {
        layer: _Layer(
            repeats.stem,
            layer,
            weights,
            (marks[_ENTER, layer], marks[_LEAVE, layer]),
            outputs,
            positions,
        )
        for layer, outputs in of_layers.items()
    }
    for witness, like in set(repeats.models.values()):
        _require_alike(layers[witness], layers[like])
    for layer, (_, like) in repeats.models.items():
        of_layers[layer] = layers[like].copy(graph, layer, marks[_COPY, layer])
    for node in marks.values():
        if node.op_type != _COPY:
            replace_all_uses_with(node.outputs[0], _input(node))
            graph.remove(node, safe=True)
    graph.outputs.extend([logits, *itertools.chain(*(of_layers[i] for i in sorted(of_layers)))])


class _Layer:
    """The nodes of a traced layer, between its marks."""

    def __init__(
        self,
        stem: str,
        index: int,
        weights: Mapping[str, Tensor],
        marks: tuple[ir.Node, ir.Node],
        written: Sequence[ir.Value],
        positions: Mapping[ir.Node, int],
    ) -> None:
        enter, leave = marks
        self._stem = stem
        self._weights = weights
        self.index = index
        self.x = enter.outputs[0]
        self.results = [_input(leave), *written]
        found: set[ir.Node] = set()
        waiting = [value.producer() for value in self.results]
        while waiting:
            node = waiting.pop()
            if node is None or node in found or positions[node] <= positions[enter]:
                continue
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
        self.nodes = sorted(found, key=positions.__getitem__)

    def renamed(self, name: str, layer: int) -> str | None:
        """Return what something of this layer is called in another; None: it is not of a layer."""
        for prefix in ("", _PREFIX):
            of_layer = f"{prefix}{self._stem}.{self.index}."
            if name.startswith(of_layer):
                return f"{prefix}{self._stem}.{layer}.{name.removeprefix(of_layer)}"
        return None

    def attributes(self, node: ir.Node, layer: int) -> list[ir.Attr]:
        """Return a node's attributes as they are in another layer."""
        return [
            ir.AttrStrings(
                LAYERS, [self.renamed(name, layer) or name for name in each.as_strings()]
            )
            if each.name == LAYERS
            else each
            for each in node.attributes.values()
        ]

    def counterpart(self, graph: ir.Graph, value: ir.Value, layer: int) -> ir.Value | str:
        """Return what a value from outside is in another layer: a value, or a weight's name."""
        if value.is_graph_input():
            place = graph.inputs.index(value) - _INPUTS_BEFORE_PAST
            if place >= 0 and place // 2 == self.index:
                return graph.inputs[_INPUTS_BEFORE_PAST + 2 * layer + place % 2]
        if not value.is_initializer():
            return value
        name = value.name or ""
        renamed = self.renamed(name, layer)
        if renamed is not None:
            return graph.initializers.get(renamed, renamed)
        if name in self._weights and name.startswith(f"{_PREFIX}{self._stem}."):
            raise DiffersError  # another layer's: of equal weights the tracer keeps one
        return value  # of the whole module, or a constant named after the first layer to use it

    def copy(self, graph: ir.Graph, layer: int, mark: ir.Node) -> list[ir.Value]:
        """Put a copy in a mark's place, as another layer; return what it writes into the cache."""
        values: dict[ir.Value | None, ir.Value | None] = {self.x: _input(mark), None: None}
        for node in self.nodes:
            for value in node.inputs:
                if value in values:
                    continue
                assert value is not None
                other = self.counterpart(graph, value, layer)
                values[value] = self._weight(graph, other) if isinstance(other, str) else other
            outputs = [ir.Value(type=each.type, shape=each.shape) for each in node.outputs]
            values.update(zip(node.outputs, outputs, strict=True))
            attributes = self.attributes(node, layer)
            inputs = [values[value] for value in node.inputs]
            new = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs)
            graph.insert_before(mark, new)
        x, *written = (values[value] for value in self.results)
        assert x is not None
        replace_all_uses_with(mark.outputs[0], x)
        graph.remove(mark, safe=True)
        return [value for value in written if value is not None]

    def _weight(self, graph: ir.Graph, name: str) -> ir.Value:
        weight = self._weights.get(name)
        if weight is None:
            raise DiffersError
        array = weight.detach().cpu().numpy()
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
        return value


def _input(node: ir.Node) -> ir.Value:
    (value,) = node.inputs
    assert value is not None
    return value


def _require_alike(layer: _Layer, other: _Layer) -> None:
    """Compare two layers node by node."""
    graph = other.x.graph
    assert graph is not None
    if len(layer.nodes) != len(other.nodes):
        raise DiffersError
    pairs: dict[ir.Value, Any] = {layer.x: other.x}
    for left, right in zip(layer.nodes, other.nodes, strict=True):
        of_left = {each.name: each.value for each in layer.attributes(left, other.index)}
        of_right = {each.name: each.value for each in right.attributes.values()}
        if left.op_identifier() != right.op_identifier() or of_left != of_right:
            raise DiffersError
        for mine, its in itertools.zip_longest(left.inputs, right.inputs):
            if mine is not None and mine not in pairs:
                pairs[mine] = layer.counterpart(graph, mine, other.index)
            expected = None if mine is None else pairs[mine]
            if expected is not its and not _equal_constants(expected, its):
                raise DiffersError
        pairs.update(zip(left.outputs, right.outputs, strict=True))
    if [pairs.get(value) for value in layer.results] != other.results:
        raise DiffersError


def _equal_constants(mine: Any, its: ir.Value | None) -> bool:
    tensors = [getattr(each, "const_value", None) for each in (mine, its)]
    left, right = (None if each is None else each.numpy() for each in tensors)
    return left is not None and right is not None and np.array_equal(left, right)
