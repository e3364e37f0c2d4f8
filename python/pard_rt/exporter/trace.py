"""From a module behind the seam to an ONNX graph in one of the two attention forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx.ops import symbolic, symbolic_multi_out

from pard_rt.errors import ModelError, first_line
from pard_rt.exporter.fused import fused_modules, plain_norms
from pard_rt.exporter.matrices import named_matrices
from pard_rt.exporter.quiet import silent
from pard_rt.exporter.repeat import Repeats, repeat, repeating
from pard_rt.exporter.rope import RopeTables, find_rope, read_full_tables, tabled, unrotated
from pard_rt.pytorch.attention import AttentionCall, attending, softmax_scores
from pard_rt.pytorch.probe import Adopted, CacheLayout

OPSET = 18

_DYNAMIC = torch.export.Dim.DYNAMIC
_INT64_MAX = torch.iinfo(torch.int64).max

Past = list[tuple[Tensor, Tensor]]


class _GqaAttention:
    """Each layer is one GroupQueryAttention over a buffer [B, H, S, D], written in place."""

    def __init__(
        self,
        past: Past,
        seqlens_k: Tensor,
        total: Tensor,
        rope: RopeTables | None,
        max_length: int,
    ) -> None:
        self._past = past
        self._lengths = (seqlens_k, total)
        self._rope = rope
        self._max_length = max_length
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, rows, heads, dim = query.shape
        past_key, past_value = self._past[call.layer]
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": key.shape[2],
            "scale": call.scale,
        }
        tables: list[Tensor | None] = []
        if self._rope is not None:
            tables = [self._rope.cos, self._rope.sin]
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(self._rope.interleaved)}
        if call.softcap is not None:
            attributes["softcap"] = call.softcap
        if call.sliding_window is not None and call.sliding_window < self._max_length:
            attributes["local_window_size"] = call.sliding_window
        if call.sinks is not None:
            tables = [*(tables or [None, None]), None, None, call.sinks]
        out, keys, values = symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (
                *(x.reshape(batch, rows, -1) for x in (query, key, value)),
                past_key,
                past_value,
                *self._lengths,
                *tables,
            ),
            attributes,
            dtypes=[query.dtype] * 3,
            shapes=[[batch, rows, heads * dim], past_key.shape, past_value.shape],
            version=1,
        )
        self.written[call.layer] = (keys, values)
        return out.reshape(batch, rows, heads, dim)


class _PortableAttention:
    """Standard operators over a past [B, P, H, D] that is only read; new rows are handed out."""

    def __init__(self, past: Past, positions: Tensor, bias: Tensor, max_length: int) -> None:
        self._past = past
        self._positions = positions
        self._max_length = max_length
        self._biases: dict[int | None, Tensor] = {None: bias}
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, rows, heads, dim = query.shape
        kv_heads = key.shape[2]
        groups = heads // kv_heads
        past_key, past_value = self._past[call.layer]
        self.written[call.layer] = (key, value)

        # [B, H, R * G, D]: the heads of a group are further rows of their one KV head
        q = (query * call.scale).reshape(batch, rows, kv_heads, groups, dim)
        q = q.permute(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, dim)
        scores = torch.cat([_scores(q, k) for k in (past_key, key)], dim=-1)
        sinks = call.sinks
        if sinks is not None:
            sinks = sinks.view(1, kv_heads, 1, groups, 1).expand(batch, -1, rows, -1, -1)
        weights = softmax_scores(
            scores.reshape(batch, kv_heads, rows, groups, -1),
            self._bias(call.sliding_window)[:, :, :, None],
            call.softcap,
            sinks,
        ).reshape(batch, kv_heads, rows * groups, -1)
        past = past_key.shape[1]
        out = weights[..., :past] @ past_value.transpose(1, 2)
        out = out + weights[..., past:] @ value.transpose(1, 2)
        out = out.reshape(batch, kv_heads, rows, groups, dim).permute(0, 2, 1, 3, 4)
        return out.reshape(batch, rows, heads, dim)

    def _bias(self, window: int | None) -> Tensor:
        """[B, 1, R, P + R]; the caller's bias knows no windows, so they are added here."""
        if window is not None and window >= self._max_length:
            window = None
        if window is not None and window not in self._biases:
            bias = self._biases[None]
            batch, past = self._past[0][0].shape[:2]
            columns = torch.arange(past, device=bias.device).expand(batch, past)
            columns = torch.cat([columns, self._positions], dim=1)
            outside = columns[:, None, :] <= self._positions[:, :, None] - window
            self._biases[window] = bias.masked_fill(outside[:, None], torch.finfo(bias.dtype).min)
        return self._biases[window]


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """[B, H, N, D] times [B, R, H, D]: [B, H, N, R].

    The reshape keeps the two transposes apart. ONNX Runtime does the first, which moves whole
    heads, and leaves the second to the product; made one, they gather the past number by number.
    """
    keys = key.transpose(1, 2).flatten(0, 1)
    scores = query.flatten(0, 1) @ keys.transpose(1, 2)
    return scores.reshape(*query.shape[:3], key.shape[1])


class _Graph(nn.Module):
    """The forward to trace: the module with its LM head on the last `num_logits` rows.

    Or with its LM head on all rows (`head_on_all_rows`), of which the last are handed out.
    """

    def __init__(
        self,
        module: Any,
        form: str,
        rope: RopeTables | None,
        max_length: int,
        head_on_all_rows: bool,
    ) -> None:
        super().__init__()
        self.module = module
        self._form = form
        self._rope = rope
        self._max_length = max_length
        self._head_on_all_rows = head_on_all_rows

    def forward(
        self, input_ids: Tensor, a: Tensor, b: Tensor, num_logits: Tensor, past: Past
    ) -> tuple[Tensor, ...]:
        attention: _GqaAttention | _PortableAttention
        if self._form == "gqa":
            attention = _GqaAttention(past, a, b, self._rope, self._max_length)
            rows = input_ids.shape[1]
            positions = a[:, None].long() + 1 - rows + torch.arange(rows, device=a.device)[None]
        else:
            attention = _PortableAttention(past, a, b, self._max_length)
            positions = a

        def last_rows(x: Tensor) -> Tensor:
            bounds = (-num_logits, torch.tensor([_INT64_MAX]), torch.tensor([1]))
            # The shape is a white lie (rows for logit rows): nothing after the head looks at it.
            return symbolic("Slice", (x, *bounds), dtype=x.dtype, shape=x.shape)

        head = self.module.get_output_embeddings()
        if self._head_on_all_rows:
            hook = head.register_forward_hook(lambda _, inputs, logits: last_rows(logits))
        else:
            hook = head.register_forward_pre_hook(lambda _, inputs: (last_rows(inputs[0]),))
        try:
            with attending(attention):
                out = self.module(input_ids=input_ids, position_ids=positions, use_cache=False)
        finally:
            hook.remove()
        written = [x for layer in sorted(attention.written) for x in attention.written[layer]]
        return (out.logits, *written)


def trace(
    module: Any,
    adopted: Adopted,
    form: str,
    max_length: int,
    repeats: Repeats | None = None,
    *,
    head_on_all_rows: bool = False,
) -> ir.Model:
    """Trace a module (see `pard_rt.pytorch.probe.adopt`) in form "gqa" or "portable".

    Layers that repeat are not traced, but copied.

    Returns
    -------
    onnx_ir.Model
        Named and shaped as docs/onnx-folder.md says; not yet fused, and in place of matrices and
        embeddings with operators that name their layers.

    Raises
    ------
    ModelError
        PyTorch cannot trace or translate the module; the layer at fault is named.
    DiffersError
        Layers that should repeat do not.
    """
    layout, text = adopted.layout, adopted.text
    full = read_full_tables(module, max_length)
    rope = find_rope(module, full, text) if form == "gqa" and text is not None else None
    with ExitStack() as stack:
        if full is not None:
            stack.enter_context(tabled(module, full))
        if rope is not None:
            stack.enter_context(unrotated(module))
        stack.enter_context(fused_modules(module) if form == "gqa" else plain_norms(module))
        stack.enter_context(named_matrices(module))
        stack.enter_context(torch.no_grad())
        stack.enter_context(silent())
        graph = _Graph(module, form, rope, max_length, head_on_all_rows).eval()
        if repeats is not None:
            stack.enter_context(repeating(module, repeats))
        model = _traced(graph, layout, form)
    if repeats is not None:
        repeat(model, module, repeats)
    _name(model, layout, form)
    return model


def _traced(graph: _Graph, layout: CacheLayout, form: str) -> ir.Model:
    arguments, shapes = _example(graph.module, layout, form)
    exported = None
    try:
        exported = torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, optimize=True, verbose=False
        )
    except Exception as error:  # every operator fails in its own way
        raise _untraceable(graph.module, exported, error) from error
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model


def _untraceable(
    module: nn.Module, exported: torch.export.ExportedProgram | None, error: Exception
) -> ModelError:
    """Name the layer, and the operator or what else cannot be traced."""
    innermost: BaseException = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    operator = re.search(r"op='([^']+)'", str(innermost))
    if exported is not None and operator is not None:
        layer = _layer_with(exported, operator[1])
        actual = f"the operator {operator[1]}, which has none in ONNX"
    else:
        layer = _layer_running(module, error)
        actual = first_line(innermost)
        if isinstance(innermost, GuardOnDataDependentSymNode):
            actual = "a branch that depends on the values in a tensor"
    return ModelError(
        f"{type(module).__name__} cannot be exported to ONNX",
        "layers whose operators torch.onnx translates",
        f"{actual}{f', in {layer}' if layer else ''}",
        "Run the checkpoint through PyTorch instead. docs/models.md lists what does not export.",
    )


def _layer_with(exported: torch.export.ExportedProgram, operator: str) -> str:
    """Return the first layer of a traced module that uses an operator, or nothing."""
    for node in exported.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if str(node.target).startswith(operator) and stack:
            return str(list(stack.values())[-1][0]).removeprefix("module.")
    return ""


def _layer_running(module: nn.Module, error: Exception) -> str:
    """Return the innermost layer of a module that an exception passed through, or nothing."""
    names = {id(part): name for name, part in module.named_modules()}
    layer, at = "", error.__traceback__
    while at is not None:
        layer = names.get(id(at.tb_frame.f_locals.get("self")), layer)
        at = at.tb_next
    return layer


def _example(module: Any, layout: CacheLayout, form: str) -> tuple[tuple[Any, ...], Any]:
    """Arguments to trace with (sizes that differ, so that none is taken for another) and dims."""
    batch, rows, past = 2, 3, 5
    heads, dim, device = layout.num_kv_heads, layout.head_dim, module.device
    ids = torch.ones(batch, rows, dtype=torch.int64, device=device)
    num_logits = torch.ones(1, dtype=torch.int64, device=device)
    dynamic = {0: _DYNAMIC, 1: _DYNAMIC}
    a: Tensor
    b: Tensor
    if form == "gqa":
        a = torch.full((batch,), past + rows - 1, dtype=torch.int32, device=device)
        b = torch.tensor(past + rows, dtype=torch.int32, device=device)
        kv_shape, kv_dims = (batch, heads, 16, dim), {0: _DYNAMIC, 2: _DYNAMIC}
        ab_dims: Sequence[Any] = ({0: _DYNAMIC}, None)
    else:
        a = torch.arange(past, past + rows, device=device).expand(batch, rows).contiguous()
        b = torch.zeros(batch, 1, rows, past + rows, dtype=module.dtype, device=device)
        kv_shape, kv_dims = (batch, past, heads, dim), dynamic
        ab_dims = (dynamic, {0: _DYNAMIC, 2: _DYNAMIC, 3: _DYNAMIC})
    layers = layout.num_layers
    kv = [
        tuple(torch.zeros(kv_shape, dtype=module.dtype, device=device) for _ in range(2))
        for _ in range(layers)
    ]
    return (ids, a, b, num_logits, kv), (dynamic, *ab_dims, None, [(kv_dims, kv_dims)] * layers)


def _name(model: ir.Model, layout: CacheLayout, form: str) -> None:
    """Give inputs and outputs the names and symbolic shapes of the contract."""
    heads, dim = layout.num_kv_heads, layout.head_dim
    past: list[Any]
    new: list[Any]
    lengths: dict[str, list[Any]]
    if form == "gqa":
        lengths = {"seqlens_k": ["B"], "total_sequence_length": []}
        past = new = ["B", heads, "S", dim]
        written = "present"
    else:
        lengths = {"position_ids": ["B", "R"], "attention_bias": ["B", 1, "R", "P + R"]}
        past, new = ["B", "P", heads, dim], ["B", "R", heads, dim]
        written = "new"

    def per_layer(stem: str) -> list[str]:
        return [f"{stem}.{i}.{x}" for i in range(layout.num_layers) for x in ("key", "value")]

    inputs: dict[str, list[Any]] = {"input_ids": ["B", "R"], **lengths, "num_logits": [1]}
    inputs |= dict.fromkeys(per_layer("past"), past)
    graph = model.graph
    logits = graph.outputs[0]
    assert logits.shape is not None
    outputs: dict[str, list[Any]] = {"logits": ["B", "L", logits.shape[-1]]}
    outputs |= dict.fromkeys(per_layer(written), new)
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, (name, shape) in zip(values, names.items(), strict=True):
            value.name = name
            value.meta["shape"] = shape
    graph.name = "pard_rt"
    model.ir_version = 10


def apply_contract_shapes(model: ir.Model) -> None:
    """Replace the tracer's shapes by the contract's; those between are of no use any more."""
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(value.meta["shape"])
