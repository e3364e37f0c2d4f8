"""A decoder whose shapes never change: keys and values in slots, rows at positions a tensor says.

What a graph captured from it reads and writes stays where it was, so that it can be replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pard_rt._core import ModelInfo
from pard_rt.errors import ModelError
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.attention import AttentionCall, softmax_scores
from pard_rt.pytorch.fork import OpenedHere


class SlotCache:
    """Keys and values [slots, H, capacity, D] of every layer, made at its first write."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers of a layer, for rows like key and value [.., H, D]."""
        if layer not in self._layers:
            keys, values = (
                like.new_zeros(self.num_slots, like.shape[-2], self.capacity, like.shape[-1])
                for like in (key, value)
            )
            self._layers[layer] = (keys, values)
        return self._layers[layer]


class SlotRows:
    """`Attention` over R rows for each of m neighbouring slots, laid end to end.

    Parameters
    ----------
    cache
        Where keys and values lie.
    first
        The first slot.
    positions
        Where the rows stand, int64 [m, R]; each sees its slot up to itself.
    context
        Positions that are looked at: all rows stand before it.
    """

    def __init__(self, cache: SlotCache, first: int, positions: Tensor, context: int) -> None:
        self._cache = cache
        self._slots = slice(first, first + positions.shape[0])
        self._positions = positions
        self._context = context
        self._index = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self._biases: dict[tuple[int | None, int], Tensor] = {}

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `pard_rt.pytorch.attention.Attention.attend`; B is 1."""
        m, rows = self._positions.shape
        kv_heads, dim = key.shape[-2:]
        groups = query.shape[-2] // kv_heads
        keys, values = (buffer[self._slots] for buffer in self._cache.layer(call.layer, key, value))
        keys[self._index, :, self._positions] = key.view(m, rows, kv_heads, dim)
        values[self._index, :, self._positions] = value.view(m, rows, kv_heads, -1)
        k, v = keys[:, :, : self._context], values[:, :, : self._context]

        # The heads of a group are rows of their one KV head.
        grouped = query.view(m, rows, kv_heads, groups, dim).permute(0, 2, 3, 1, 4)
        q = grouped.reshape(m, kv_heads, groups * rows, dim)
        bias = self._bias(call.sliding_window, groups, query)
        if call.softcap is None and call.sinks is None:
            out = nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=call.scale)
        else:
            sinks = call.sinks
            if sinks is not None:
                shape = (m, kv_heads, groups, rows)
                sinks = sinks.view(1, kv_heads, groups, 1).expand(shape).reshape(*q.shape[:3], 1)
            scores = (q @ k.transpose(-1, -2)) * call.scale
            out = softmax_scores(scores, bias, call.softcap, sinks) @ v
        out = out.view(m, kv_heads, groups, rows, -1).permute(0, 3, 1, 2, 4)
        return out.reshape(1, m * rows, kv_heads * groups, -1)

    def _bias(self, window: int | None, groups: int, like: Tensor) -> Tensor:
        if (window, groups) not in self._biases:
            column = torch.arange(self._context, device=like.device)
            position = self._positions.repeat(1, groups)[:, None, :, None]
            hidden = column > position
            if window is not None:
                hidden = hidden | (column <= position - window)
            bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._biases[window, groups] = bias.masked_fill_(hidden, torch.finfo(like.dtype).min)
        return self._biases[window, groups]


class StaticModel:
    """A causal language model over slots.

    Parameters
    ----------
    loaded
        What `pard_rt.load` or `pard_rt.wrap` returned; adopted, as by `TorchModel`.
    num_slots, capacity
        Sequences there is room for, and positions of each.
    torch_compile
        Whether `forward` may be asked to run ``compiled``.

    Raises
    ------
    ModelError
        The module cannot be run this way.
    """

    def __init__(
        self, loaded: LoadedModel, num_slots: int, capacity: int, *, torch_compile: bool = False
    ) -> None:
        facts = loaded.facts
        self._seam = loaded.seam
        self._seam.adopt(facts.max_length)
        self.device = self._seam.device
        self.num_embeddings = self._seam.num_embeddings
        self.cache = SlotCache(num_slots, capacity)
        self._opened_here = OpenedHere()
        self._compiled = (
            torch.compile(self._logits, fullgraph=True, dynamic=False)
            if torch_compile
            else self._logits
        )
        self.info = ModelInfo(
            name=facts.name,
            vocab_size=facts.vocab_size,
            max_length=facts.max_length,
            num_tokens=facts.num_tokens,
            token_bytes=facts.token_bytes,
        )

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        rows: Tensor,
        *,
        first: int,
        context: int,
        compiled: bool = False,
    ) -> Tensor:
        """Run R tokens at given positions in each of m slots from `first` on.

        Parameters
        ----------
        tokens, positions
            int64 [m, R], all positions below `context`.
        rows
            Which of the m * R rows logits are wanted for, int64 [n].
        compiled
            Run it compiled, which takes seconds once for every m, R, n, `first` and `context`.

        Returns
        -------
        Tensor
            Logits [n, vocab_size] in the module's dtype.

        Raises
        ------
        ModelError
            The device has no memory left; what was there before still works. Or the process was
            forked after the model was opened.
        """
        self._opened_here.require(self.info.name, self.device)
        run = self._compiled if compiled else self._logits
        try:
            return run(tokens, positions, rows, first, context)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.info.name} ran out of the memory of {self.device}",
                f"room for {tokens.numel()} rows and the keys and values of "
                f"{self.cache.num_slots} x {self.cache.capacity} positions",
                str(error).split(". ")[0],
                "Pass a smaller max_length, decode fewer sequences together, or free the card.",
            ) from error

    def _logits(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, first: int, context: int
    ) -> Tensor:
        attention = SlotRows(self.cache, first, positions, context)
        return self._seam.logits(tokens.view(1, -1), positions.view(1, -1), rows, attention)
