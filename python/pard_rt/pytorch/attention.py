"""The seam between transformers and pard-rt.

Every decoder of transformers calls its attention through one registry. One function registered
there hands each layer's queries and its *new* keys and values to whichever `Attention` is active,
which holds the past and computes the whole attention. So an unmodified module runs with our KV
layout, [S, H, D] per sequence, with positions given per row, and the exporter writes both ONNX
forms through the same door.

The module is called with ``use_cache=False``: what it then passes on is exactly the new rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from pard_rt.errors import ModelError

ATTENTION_NAME = "pard_rt"

_MIN_CAPACITY = 64


@dataclass(frozen=True)
class AttentionCall:
    """What one layer asks of its attention, besides the tensors."""

    layer: int
    scale: float
    sliding_window: int | None = None  # a row sees this many positions, its own included
    softcap: float | None = None
    sinks: Tensor | None = None  # [Hq], one extra logit per head


class Attention(Protocol):
    """Holds the past of some sequences and attends to it."""

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with new rows: query [B, R, Hq, D], key and value [B, R, H, D].

        Returns
        -------
        Tensor
            [B, R, Hq, D]
        """
        ...


_active = threading.local()


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Route the attention of modules run in this thread to `attention`."""
    outer = getattr(_active, "attention", None)
    _active.attention = attention
    try:
        yield
    finally:
        _active.attention = outer


# Arguments that change what an attention computes and that are not honoured here.
_REFUSED = ("position_bias", "relative_position", "alibi", "head_mask")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    asked = [name for name in _REFUSED if kwargs.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if is_causal is False or not getattr(module, "is_causal", True):
        asked.append("bidirectional attention")
    if dropout:
        asked.append("dropout (the module is in training mode)")
    if asked:
        raise ModelError(
            f"{type(module).__name__} needs an attention pard-rt does not have",
            "causal attention, with a sliding window, soft cap or sinks at most",
            ", ".join(asked),
            "Use a plain decoder-only model in eval mode.",
        )
    attention: Attention | None = getattr(_active, "attention", None)
    if attention is None:
        raise ModelError(
            f"{type(module).__name__} was run outside pard_rt.pytorch.attention.attending()",
            "an active Attention",
            "none",
            "Run the module through TorchModel, or set another attention implementation on it.",
        )
    call = AttentionCall(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    rows_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return attention.attend(call, *rows_first), None


AttentionInterface.register(ATTENTION_NAME, _attention)


def causal_bias(rows: int, past: int, window: int | None, like: Tensor) -> Tensor | None:
    """Additive mask [R, past + R] for rows at positions past..past+R-1; None where all is seen."""
    length = past + rows
    if rows == 1 and (window is None or length <= window):
        return None
    position = torch.arange(past, length, device=like.device)[:, None]
    column = torch.arange(length, device=like.device)[None, :]
    hidden = column > position
    if window is not None:
        hidden |= column <= position - window
    return torch.zeros(rows, length, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, torch.finfo(like.dtype).min
    )


def attend_rows(
    call: AttentionCall, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend with the rows of one sequence: query [R, Hq, D] over keys, values [T, H, D].

    The heads of a group are laid out as rows of their one KV head, so keys are never repeated.
    """
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    grouped = query.view(rows, kv_heads, groups, dim).permute(1, 2, 0, 3)
    q = grouped.reshape(1, kv_heads, groups * rows, dim)
    k = keys.transpose(0, 1)[None]
    v = values.transpose(0, 1)[None]
    mask = None if bias is None else bias.repeat(groups, 1)
    if call.softcap is None and call.sinks is None:
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=call.scale)
    else:
        sinks = call.sinks
        if sinks is not None:
            sinks = (
                sinks.view(1, kv_heads, groups, 1)
                .expand(-1, -1, -1, rows)
                .reshape(1, kv_heads, groups * rows, 1)
            )
        scores = (q @ k.transpose(-1, -2)) * call.scale
        out = softmax_scores(scores, mask, call.softcap, sinks) @ v
    return out.view(kv_heads, groups, rows, -1).permute(2, 0, 1, 3).reshape(rows, heads, -1)


def softmax_scores(
    scores: Tensor, bias: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Scaled scores [..., T] to weights: soft cap, bias, sinks [..., 1], softmax in float32."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return weights if sinks is None else weights[..., :-1]


class SequenceCache:
    """Keys and values of one sequence: two buffers [S, H, D] per layer, grown as needed.

    It keeps no length. Rows at and past the `past` of a write are void.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put rows key, value [R, H, D] behind `past`; returns views of rows 0..past+R-1."""
        length = past + key.shape[0]
        keys, values = self._layers.get(layer, (key[:0], value[:0]))
        if keys.shape[0] < length:
            capacity = min(max(length, 2 * keys.shape[0], _MIN_CAPACITY), self._max_length)
            keys, values = _grown(keys, capacity, past), _grown(values, capacity, past)
            self._layers[layer] = (keys, values)
        keys[past:length] = key
        values[past:length] = value
        return keys[:length], values[:length]

    def capacity(self, layer: int) -> int:
        """Rows there is room for; 0 before a layer's first write."""
        return self._layers[layer][0].shape[0] if layer in self._layers else 0

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Return views of rows 0..length-1, as they were written."""
        keys, values = self._layers[layer]
        return keys[:length], values[:length]


def _grown(buffer: Tensor, capacity: int, kept: int) -> Tensor:
    grown = buffer.new_empty((capacity, *buffer.shape[1:]))
    grown[:kept] = buffer[:kept]
    return grown


@dataclass
class Segment:
    """Rows `start` to `stop` of a packed forward: the new rows of one sequence behind its past."""

    cache: SequenceCache
    past: int
    start: int
    stop: int
    _bias: dict[int | None, Tensor | None] = field(default_factory=dict)

    def bias(self, window: int | None, like: Tensor) -> Tensor | None:
        """Return the causal bias of these rows, computed once per forward and window."""
        if window not in self._bias:
            self._bias[window] = causal_bias(self.stop - self.start, self.past, window, like)
        return self._bias[window]


class PackedRows:
    """`Attention` over the rows of several sequences laid end to end in one row of a batch.

    Weights are read once for all sequences, nothing is padded, and each sequence attends to its
    own past only.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attention.attend`; B is 1, the rows are those of all segments."""
        out = []
        for segment in self._segments:
            rows = slice(segment.start, segment.stop)
            keys, values = segment.cache.write(
                call.layer, segment.past, key[0, rows], value[0, rows]
            )
            bias = segment.bias(call.sliding_window, query)
            out.append(attend_rows(call, query[0, rows], keys, values, bias))
        return torch.cat(out)[None]
