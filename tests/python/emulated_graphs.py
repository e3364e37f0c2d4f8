"""CUDA graphs, emulated on the CPU: operators and kernels are noted, and run again at a replay.

As on a device, nothing runs while it is captured, nothing may be read by the host, and what was
made before the capture is not kept alive by it: a replay that reads memory given back is an error.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pard_rt._core import KernelSet
from pard_rt.pytorch import kernels


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    capturing: Graph | None = None
    num_replays = 0

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.made: dict[int, Tensor] = {}  # during the capture, by id: the graph's own memory

    def replay(self) -> None:
        Graph.num_replays += 1
        for call in self.calls:
            call()

    def hold(self, tensor: Tensor) -> Held:
        return Held((lambda: tensor) if id(tensor) in self.made else weakref.ref(tensor))


@dataclass(frozen=True)
class Held:
    """A tensor that an operator was given."""

    get: Callable[[], Tensor | None]

    def alive(self) -> Tensor:
        tensor = self.get()
        assert tensor is not None, "a replay reads memory that was given back"
        return tensor


def storages(tree: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree_leaves(tree) if isinstance(t, Tensor)}


class Capture(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        assert torch.Tag.data_dependent_output not in operator.tags, f"{operator} asks the device"
        arguments = operator._schema.arguments
        given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        written = [given[a.name] for a in arguments if a.alias_info and a.alias_info.is_write]
        before = [tensor.clone() for tensor in written]
        out = operator(*args, **kwargs)
        for tensor, old in zip(written, before, strict=True):
            tensor.copy_(old)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        own = [t for t in made if not storages(t) & storages((args, kwargs))]
        held = tree_map_only(Tensor, self.graph.hold, (args, kwargs))
        there = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        self.graph.made |= {id(tensor): tensor for tensor in made if id(tensor) not in there}

        def call() -> None:
            again_args, again_kwargs = tree_map_only(Held, Held.alive, held)
            again = tree_leaves(operator(*again_args, **again_kwargs))
            for old, new in zip(made, again, strict=True):
                if any(old is tensor for tensor in own):
                    old.copy_(new)

        self.graph.calls.append(call)
        return out


class Kernels:
    """A `KernelSet` whose launches can be captured."""

    def __init__(self, driver: str, code_objects: list[str]) -> None:
        self._inner = KernelSet(driver, code_objects)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def launch(**arguments: Any) -> None:
            def call() -> None:
                getattr(self._inner, name)(**arguments)

            if Graph.capturing is None:
                call()
            else:
                Graph.capturing.calls.append(call)

        return launch


@contextlib.contextmanager
def capture(graph: Graph) -> Iterator[None]:
    Graph.capturing = graph
    try:
        with Capture(graph):
            yield
    finally:
        Graph.capturing = None


class Stream:
    def wait_stream(self, stream: Stream) -> None:
        pass


def emulate_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `CapturedExecutor(capture=True)` capture on the CPU."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(kernels, "KernelSet", Kernels)
    monkeypatch.setattr(Graph, "num_replays", 0)
