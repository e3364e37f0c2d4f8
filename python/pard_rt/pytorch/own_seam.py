"""How a `DecoderModule` is run: its attention given as an argument, what it returns looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import ModelError
from pard_rt.pytorch.attention import Attention, AttentionCall, PackedRows, Segment, SequenceCache
from pard_rt.pytorch.probe import (
    TOLERANCE,
    Adopted,
    Recorder,
    difference,
    layout_of,
    refuse_not_finite,
    running_as_decoder,
    tolerance,
    write_text,
)

SHAPE = (
    "an nn.Module on one device, called with (input_ids, position_ids, attend), that has an lm_head"
)
REMEDY = "See docs/models.md, or pard_rt.pytorch.own_module.DecoderModule."
_TRIED = 5  # tokens of a text


class OwnSeam:
    """The `Seam` of a `DecoderModule`."""

    def __init__(self, module: Any, name: str, num_embeddings: int) -> None:
        self._module = module
        self._name = name
        self._num_embeddings = num_embeddings
        weights: list[Tensor] = list(module.parameters())
        self._weight = next((each for each in weights if each.is_floating_point()), weights[0])

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its first weight of floating point."""
        return self._weight.dtype

    @property
    def num_embeddings(self) -> int:
        """Token ids it can be fed."""
        return self._num_embeddings

    def logits(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, attention: Attention
    ) -> Tensor:
        """See `pard_rt.pytorch.seam.Seam.logits`."""
        num_rows = tokens.shape[1]
        hidden = self._module(tokens, positions, _AttendOnce(self._name, num_rows, attention))
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[:2] != tokens.shape:
            raise self._wrong("other hidden rows", f"[1, {num_rows}, C]", hidden)
        logits = self._module.lm_head(hidden[0, rows])
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(rows):
            raise self._wrong("other logits", f"[{len(rows)}, vocab_size]", logits)
        if logits.dtype not in TOLERANCE:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in TOLERANCE)
            raise self._wrong("logits of another type", kinds, logits)
        return logits.contiguous()  # kernels know the stride of rows alone

    def vocab_size(self) -> int:
        """Run one token, and return how many logits it gets."""
        self._module.eval()
        with self._trying():
            logits, _ = self._rows(_Piece(SequenceCache(1), torch.zeros(1, dtype=torch.int64), 0))
        return logits.shape[1]

    def adopt(self, max_length: int) -> Adopted:
        """Prove that a row is the same alone and among those of another sequence.

        Raises
        ------
        ModelError
            It is not, or the module cannot be run.
        """
        self._module.eval()
        with self._trying():
            self._run_last_position(max_length)
            return self._compare_packed(min(_TRIED, max(2, max_length)))

    @contextmanager
    def _trying(self) -> Iterator[None]:
        with torch.inference_mode(), running_as_decoder(self._name, SHAPE, REMEDY):
            yield

    def _run_last_position(self, max_length: int) -> None:
        zero = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        alone = PackedRows([Segment(SequenceCache(1), 0, 0, 1)])
        self.logits(zero, zero + max_length - 1, zero[0], alone)

    def _compare_packed(self, length: int) -> Adopted:
        texts, one_by_one = zip(
            *(self._written(start, length) for start in (0, self._num_embeddings // 2)), strict=True
        )
        a, b = texts
        expected = torch.cat([self._rows(_Piece(SequenceCache(length), t, 0))[0] for t in texts])
        refuse_not_finite(self._name, self._module, expected)
        ours, other = SequenceCache(length), SequenceCache(length)
        i, j = length - 1, length // 2
        heads, _ = self._rows(_Piece(ours, a[:i], 0), _Piece(other, b[:j], 0))
        tails, seen = self._rows(_Piece(ours, a[i:], i), _Piece(other, b[j:], j))
        rest = length - i
        actual = torch.cat([heads[:i], tails[:rest], heads[i:], tails[rest:]])
        error = difference(actual, expected)
        limit = tolerance(expected.dtype, difference(torch.cat(one_by_one), expected))
        if not error <= limit:
            raise ModelError(
                f"{self._name} computes other logits for rows among others than alone",
                f"a relative difference of at most {limit:.1g}",
                f"{error:.3g}",
                "A row may depend on its token, its position_id and what attend returns for it, "
                "and on nothing else.",
            )
        return Adopted(layout_of(self._name, seen), limit)

    def _written(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Return a text it wrote, int64 [length], and its logits, computed one row at a time."""
        cache = SequenceCache(length)

        def step(token: Tensor, position: int) -> Tensor:
            return self._rows(_Piece(cache, token[0], position))[0][0]

        tokens, logits = write_text(step, self._num_embeddings, start, length)
        return tokens[0], logits

    def _rows(self, *pieces: _Piece) -> tuple[Tensor, Recorder]:
        """Run the next tokens of some sequences together; logits [R, vocab_size] of all of them."""
        segments, start = [], 0
        for piece in pieces:
            stop = start + len(piece.tokens)
            segments.append(Segment(piece.cache, piece.past, start, stop))
            start = stop
        tokens = torch.cat([piece.tokens for piece in pieces])
        positions = torch.cat([piece.past + torch.arange(len(piece.tokens)) for piece in pieces])
        seen = Recorder(PackedRows(segments))
        there = self.device
        rows = torch.arange(start, device=there)
        return self.logits(tokens[None].to(there), positions[None].to(there), rows, seen), seen

    def _wrong(self, what: str, expected: str, actual: Any) -> ModelError:
        return ModelError(f"{self._name} returns {what}", expected, _described(actual), REMEDY)


@dataclass(frozen=True)
class _Piece:
    """The next tokens of a sequence, behind the `past` rows of its cache."""

    cache: SequenceCache
    tokens: Tensor  # int64 [n]
    past: int


class _AttendOnce:
    """The `Attend` of one forward, over R rows."""

    def __init__(self, name: str, num_rows: int, attention: Attention) -> None:
        self._name = name
        self._num_rows = num_rows
        self._attention = attention
        self._layers: set[int] = set()

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        self._require_layer(layer)
        self._require_shapes(query, key, value, sinks)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        call = AttentionCall(layer, scale, sliding_window, softcap, sinks)
        return self._attention.attend(call, query, key, value)

    def _require_layer(self, layer: Any) -> None:
        if isinstance(layer, int) and layer not in self._layers:
            self._layers.add(layer)
            return
        raise ModelError(
            f"{self._name} calls attend with a layer that cannot be",
            "a number of its own for every layer, once in a forward",
            f"{layer!r} behind {sorted(self._layers)}",
            REMEDY,
        )

    def _require_shapes(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None
    ) -> None:
        given = (query, key, value)
        if (
            all(isinstance(each, Tensor) and each.dim() == 4 for each in given)
            and all(each.shape[:2] == (1, self._num_rows) for each in given)
            and key.shape == value.shape
            and key.shape[3] == query.shape[3]
            and query.shape[2] % key.shape[2] == 0
            and key.dtype == value.dtype == query.dtype
            and (sinks is None or sinks.shape == query.shape[2:3])
        ):
            return
        rows = self._num_rows
        raise ModelError(
            f"{self._name} calls attend with tensors of other shapes or types",
            f"query [1, {rows}, num_heads, head_dim], key and value "
            f"[1, {rows}, num_kv_heads, head_dim] whose heads divide the query's, in its type; "
            "sinks [num_heads], if any",
            ", ".join(_described(each) for each in (*given, *([] if sinks is None else [sinks]))),
            REMEDY,
        )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{list(value.shape)} in {str(value.dtype).removeprefix('torch.')}"
