"""Rotary embeddings as tables: looked up by position, or handed to a fused attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from pard_rt.pytorch.attention import AttentionCall, attend_rows, attending, causal_bias
from pard_rt.pytorch.probe import OwnText, difference


@dataclass(frozen=True)
class RopeTables:
    """Cosines and sines [max_length, rotary_dim / 2] by position, in the module's dtype.

    `interleaved` tells how the pairs of a head lie: (0, 1), (2, 3), ... or (0, n/2), (1, n/2 + 1).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotate heads [R, H, D] at positions 0..R-1."""
        rows, half = heads.shape[0], self.cos.shape[1]
        cos, sin = self.cos[:rows, None], self.sin[:rows, None]
        rotary, rest = heads[..., : 2 * half], heads[..., 2 * half :]
        if self.interleaved:
            x, y = rotary[..., 0::2], rotary[..., 1::2]
        else:
            x, y = rotary[..., :half], rotary[..., half:]
        pairs = (x * cos - y * sin, y * cos + x * sin)
        turned = torch.stack(pairs, -1).flatten(-2) if self.interleaved else torch.cat(pairs, -1)
        return torch.cat([turned, rest], -1)


def read_full_tables(module: Any, max_length: int) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines [max_length, rotary_dim] as the module's rotary embedding gives them.

    They hold whatever scaling the embedding applies. None where the module has no single embedding
    that depends on positions alone.
    """
    embedding = getattr(module.base_model, "rotary_emb", None)
    if embedding is None:
        return None
    positions = torch.arange(max_length, device=module.device)[None]
    like = torch.zeros(1, 1, 1, dtype=module.dtype, device=module.device)
    try:
        with torch.no_grad():
            cos, sin = embedding(like, position_ids=positions)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    if cos.shape[:2] != (1, max_length) or cos.shape != sin.shape:
        return None
    return cos[0], sin[0]


@contextmanager
def tabled(module: Any, tables: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Let the module's rotary embedding look its values up instead of computing them."""
    half = tables[0].shape[-1] // 2
    twice = all(torch.equal(table[:, :half], table[:, half:]) for table in tables)
    stored = tuple(table[:, :half].contiguous() if twice else table for table in tables)

    def look_up(x: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        found = (nn.functional.embedding(position_ids, table) for table in stored)
        return tuple(torch.cat([row, row], dim=-1) if twice else row for row in found)

    with mock.patch.object(module.base_model.rotary_emb, "forward", look_up):
        yield


@contextmanager
def unrotated(module: Any) -> Iterator[None]:
    """Let the module's attention layers leave queries and keys unrotated."""
    names = {type(part).__module__ for part in module.modules() if hasattr(part, "layer_idx")}
    with ExitStack() as stack:
        for name in names:
            if hasattr(sys.modules[name], "apply_rotary_pos_emb"):
                stack.enter_context(
                    mock.patch.object(sys.modules[name], "apply_rotary_pos_emb", _leave)
                )
        yield


def _leave(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return query, key


def find_rope(module: Any, full: tuple[Tensor, Tensor] | None, text: OwnText) -> RopeTables | None:
    """Tables with which an attention that rotates for itself gives the logits of a module's text.

    None where the module rotates in some other way, or not right before its attention.
    """
    if full is None or full[0].shape[-1] % 2:
        return None
    cos, sin = full
    half = cos.shape[-1] // 2
    for interleaved, columns in ((False, slice(half)), (True, slice(0, None, 2))):
        tables = RopeTables(cos[:, columns].contiguous(), sin[:, columns].contiguous(), interleaved)
        if _gives_own_logits(module, text, tables):
            return tables
    return None


class _RotatingAttention:
    """Causal attention over one sequence from its start, rotating for itself."""

    def __init__(self, tables: RopeTables) -> None:
        self._tables = tables

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = causal_bias(query.shape[1], 0, call.sliding_window, query)
        q, k = self._tables.rotate(query[0]), self._tables.rotate(key[0])
        return attend_rows(call, q, k, value[0], bias)[None]


@torch.no_grad()
def _gives_own_logits(module: Any, text: OwnText, tables: RopeTables) -> bool:
    try:
        with unrotated(module), attending(_RotatingAttention(tables)):
            actual = module(input_ids=text.tokens, use_cache=False).logits[0]
    except Exception:  # its function for rotating takes or returns something else, as GPT-J's
        return False
    return difference(actual, text.logits) <= text.tolerance
