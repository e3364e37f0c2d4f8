"""Attention of mask prediction without the square of its rows.

A row sees the real tokens of its document up to its anchor, and its own chain (see
`mask_prediction`). The rows are taken in blocks of neighbouring anchors. The queries of a block are
its real tokens and all their chains; its keys are the real tokens up to the block's last and the
block's own chains. Only the corner of keys within the block needs a mask, the same one in every
layer, so that memory grows with the number of rows, and no score is computed of a chain that
another block owns:

                     keys: real tokens before the block | the block: real, chains
    queries: real                  all seen             |  causal  ,  none
             chains                all seen             |  <= anchor, own chain

`ChainAttention` keeps queries, keys and values alone for the backward pass and attends again there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from pard_rt.errors import ModelError
from pard_rt.training.mask_prediction import Rows

_REFUSED = ("sliding_window", "softcap", "s_aux", "dropout")  # of what layers may ask for
NAME = "pard_chain"  # of this attention among those of transformers
# Anchors of a block: wide enough for fast products, narrow enough to waste little on chains; on a
# card, which would wait for so many small calls, fewer and wider blocks.
_ANCHORS, _ANCHORS_ON_A_CARD = 64, 256


@dataclass(frozen=True)
class Block:
    """Neighbouring anchors of one document, and their chains."""

    first: int  # real token of its document
    begin: int  # real tokens of the block
    end: int
    chains_begin: int  # rows of their mask tokens
    chains_end: int
    corner: Tensor  # [queries, keys within the block]: 0 where seen, else -inf

    def take(self, rows: Tensor, begin: int) -> Tensor:
        """Real rows from `begin` and the rows of the chains, of [..., M, D]."""
        real = rows[..., begin : self.end, :]
        if self.chains_begin == self.chains_end:
            return real
        return torch.cat([real, rows[..., self.chains_begin : self.chains_end, :]], dim=-2)

    def add(self, rows: Tensor, values: Tensor, begin: int) -> None:
        """Add to the rows that `take` takes."""
        num_real = self.end - begin
        rows[..., begin : self.end, :] += values[..., :num_real, :]
        rows[..., self.chains_begin : self.chains_end, :] += values[..., num_real:, :]


def plan_blocks(rows: Rows, device: torch.device | str = "cpu") -> list[Block]:
    """Cut the rows into blocks; none has two documents."""
    num_real = rows.num_real
    anchors = _ANCHORS if torch.device(device).type == "cpu" else _ANCHORS_ON_A_CARD
    chain_anchors = rows.anchors[num_real:].contiguous()
    blocks = []
    begin = 0
    while begin < num_real:
        end = min(begin + anchors, int(rows.ends[begin]))
        low, high = torch.searchsorted(chain_anchors, torch.tensor([begin, end])).tolist()
        low, high = low + num_real, high + num_real
        of_block = rows.part(begin, end)
        corner = torch.where(of_block.visible(), 0.0, -torch.inf)
        blocks.append(Block(int(rows.firsts[begin]), begin, end, low, high, corner.to(device)))
        begin = end
    return blocks


class ChainAttention(torch.autograd.Function):
    """Queries [H_kv, G, M, D], keys and values [H_kv, M, D] to outputs [H_kv, G, M, D].

    G query heads share a key head. A block is one call of PyTorch's fused attention.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[Block], scale: float
    ) -> Tensor:
        """Attend, block by block."""
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scale = blocks, scale
        out = torch.empty_like(q)
        for block in blocks:
            keys, values = (block.take(rows, block.first) for rows in (k, v))
            rows = _attend_block(block.take(q, block.begin), keys, values, block, scale)
            num_real = block.end - block.begin
            out[..., block.begin : block.end, :] = rows[..., :num_real, :]
            out[..., block.chains_begin : block.chains_end, :] = rows[..., num_real:, :]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Attend again, and go back through that."""
        inputs = ctx.saved_tensors  # once: they may be computed again for it
        gradients = [torch.zeros_like(rows) for rows in inputs]
        for block in ctx.blocks:
            begin = (block.begin, block.first, block.first)
            with torch.enable_grad():
                taken = [
                    block.take(rows.detach(), start).requires_grad_()
                    for rows, start in zip(inputs, begin, strict=True)
                ]
                queries, keys, values = taken
                rows = _attend_block(queries, keys, values, block, ctx.scale)
            found = torch.autograd.grad(rows, taken, block.take(grad, block.begin))
            for gradient, part, start in zip(gradients, found, begin, strict=True):
                block.add(gradient, part, start)
        return *gradients, None, None


def _attend_block(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> Tensor:
    """Attend from the queries of a block to its keys; the heads that share keys are a batch."""
    before = k.shape[-2] - block.corner.shape[-1]
    mask = pad(block.corner.to(q.dtype), (before, 0))
    keys, values = (rows[:, None].expand(*q.shape[:2], -1, -1) for rows in (k, v))
    return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    blocks: list[Block],
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the layers of transformers ask for it.

    Takes [1, H, M, D], returns [1, M, H, D]. `blocks` comes through the model's keyword arguments.

    Raises
    ------
    ModelError
        The layer asks for more than causal attention.
    """
    asked = [name for name in _REFUSED if _is_set(options.get(name))]
    if asked:
        raise ModelError(
            f"{type(module).__name__} cannot be trained through mask tokens here",
            "plain causal attention",
            ", ".join(f"{name} = {options[name]}" for name in asked),
            "Take a draft whose layers attend to everything before them, without dropout.",
        )
    (q,), (k,), (v,) = query, key, value
    q, k = q.to(v.dtype), k.to(v.dtype)  # autocast may leave rotated ones wider
    grouped = q.unflatten(0, (k.shape[0], -1))
    out = ChainAttention.apply(grouped, k, v, blocks, scaling)  # type: ignore[no-untyped-call]
    return out.flatten(0, 1).transpose(0, 1)[None], None


def _is_set(option: Any) -> bool:
    return isinstance(option, Tensor) or bool(option)


def use_chain_attention(model: nn.Module) -> None:
    """Let a transformers model attend so; its calls then need `blocks`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
