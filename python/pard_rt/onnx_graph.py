"""What a graph file says of its operators and types, read without the onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pard_rt.errors import FolderError

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Node:
    """One operator of a graph; a name that is empty stands for an input left out."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """A graph without its weights; subgraphs are not entered."""

    opsets: dict[str, int] = field(default_factory=dict)  # by domain, "" being ONNX's own
    nodes: list[Node] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    element_types: set[int] = field(default_factory=set)  # TensorProto.DataType, of any tensor


def read_graph(file: Path) -> Graph:
    """Read a graph; weights in it are not touched.

    Raises
    ------
    FolderError
        There is no ONNX graph in the file.
    """
    try:
        with file.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        graph = _parse(data)
        if not graph.nodes:
            raise ValueError("no node")
    except (OSError, ValueError) as error:
        raise FolderError(
            f"'{file}' cannot be read",
            "an ONNX graph",
            str(error),
            "Copy or export the folder again.",
        ) from error
    return graph


# The numbers below are those of onnx.proto.


def _parse(model: Bytes) -> Graph:
    graph = Graph()
    for number, value in _fields(model):
        if number == 8:  # opset_import
            opset = dict(_fields(value))
            version = opset.get(2, 0)
            if not isinstance(version, int):
                raise ValueError("something else, or a file cut short")
            graph.opsets[_text(opset.get(1, b""))] = version
        elif number == 7:
            _read_graph(value, graph)
    return graph


def _read_graph(message: int | Bytes, graph: Graph) -> None:
    for number, value in _fields(message):
        if number == 1:
            graph.nodes.append(_read_node(value, graph))
        elif number == 5:
            tensor = dict(_fields(value))
            graph.initializers.add(_text(tensor.get(8, b"")))
            _add_type(tensor.get(2), graph)
        elif number in (11, 12, 13):  # an input, an output, a value between
            for kind in _values(value, 2):
                for tensor_type in _values(kind, 1):
                    _add_type(dict(_fields(tensor_type)).get(1), graph)


def _read_node(message: int | Bytes, graph: Graph) -> Node:
    inputs, outputs, op_type, domain = [], [], "", ""
    for number, value in _fields(message):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            op_type = _text(value)
        elif number == 5:
            attribute = dict(_fields(value))
            if _text(attribute.get(1, b"")) == "to":  # of a Cast
                _add_type(attribute.get(3), graph)
            if 5 in attribute:  # a tensor
                _add_type(dict(_fields(attribute[5])).get(2), graph)
        elif number == 7:
            domain = _text(value)
    return Node(op_type, domain, tuple(inputs), tuple(outputs))


def _add_type(value: int | Bytes | None, graph: Graph) -> None:
    if isinstance(value, int):
        graph.element_types.add(value)


def _values(message: int | Bytes, wanted: int) -> Iterator[int | memoryview]:
    return (value for number, value in _fields(message) if number == wanted)


def _text(value: int | Bytes) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8")


def _fields(message: int | Bytes) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of every field of a protobuf message."""
    if isinstance(message, int):
        raise ValueError("something else, or a file cut short")
    rest = memoryview(message)
    while rest:
        key, rest = _varint(rest)
        wire = key & 7
        if wire == 0:
            value, rest = _varint(rest)
            yield key >> 3, value
            continue
        if wire == 2:
            size, rest = _varint(rest)
        elif wire in (1, 5):
            size = {1: 8, 5: 4}[wire]
        else:
            size = len(rest) + 1
        if size > len(rest):
            raise ValueError("something else, or a file cut short")
        yield key >> 3, rest[:size]
        rest = rest[size:]


def _varint(rest: memoryview) -> tuple[int, memoryview]:
    value = 0
    for i, byte in enumerate(rest[:10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, rest[i + 1 :]
    raise ValueError("something else, or a file cut short")
