"""Two decoders written out in plain PyTorch, as users have them, and how they decode by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pard_rt
from pard_rt.pytorch.own_module import Attend

VOCAB_SIZE = 96


class Rotary(nn.Module):
    """In the manner of Llama: rotary positions, RMSNorm, grouped heads, SwiGLU."""

    def __init__(self, *, layers: int = 2, window: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, 48)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.RMSNorm(48),
                    "qkv": nn.Linear(48, (4 + 2 + 2) * 12, bias=False),
                    "out": nn.Linear(48, 48, bias=False),
                    "up": nn.Linear(48, 2 * 64, bias=False),
                    "down": nn.Linear(64, 48, bias=False),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(48)
        self.lm_head = nn.Linear(48, VOCAB_SIZE, bias=False)
        self.window = window

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        hidden = self.embed(input_ids)
        for i, layer in enumerate(self.layers):
            q, k, v = (
                layer["qkv"](layer["norm"](hidden)).unflatten(-1, (8, 12)).split((4, 2, 2), dim=2)
            )
            q, k = rotate(q, position_ids), rotate(k, position_ids)
            mixed = attend(i, q, k, v, sliding_window=self.window)
            hidden = hidden + layer["out"](mixed.flatten(2))
            gate, up = layer["up"](layer["norm"](hidden)).chunk(2, dim=-1)
            hidden = hidden + layer["down"](nn.functional.silu(gate) * up)
        return self.norm(hidden)


def rotate(x: Tensor, position_ids: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = position_ids[..., None] * 100.0 ** (-torch.arange(half, device=x.device) / half)
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Learned(nn.Module):
    """In the manner of GPT-2: a table of positions, LayerNorm, dropout, tied embeddings."""

    def __init__(self, positions: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, 32)
        self.positions = nn.Embedding(positions, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 3 * 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Dropout(0.5))

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        hidden = self.tokens(input_ids) + self.positions(position_ids)
        q, k, v = self.qkv(self.norm(hidden)).unflatten(-1, (3, 4, 8)).unbind(2)
        hidden = hidden + attend(0, q, k, v, scale=0.5).flatten(2)
        return hidden + self.mlp(self.norm(hidden))

    def lm_head(self, hidden: Tensor) -> Tensor:
        return hidden @ self.tokens.weight.T


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """Weights so large that logits differ clearly between tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4, generator=generator)
    return module.requires_grad_(False)


def attend_all(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention over one whole text, without a cache, head by head."""
    rows = torch.arange(query.shape[1])
    hidden = rows[None, :] > rows[:, None]
    if sliding_window is not None:
        hidden = hidden | (rows[None, :] <= rows[:, None] - sliding_window)
    share = query.shape[2] // key.shape[2]
    out = torch.empty_like(query)
    for head in range(query.shape[2]):
        scores = query[0, :, head] @ key[0, :, head // share].T
        scores = scores * (query.shape[3] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[0, :, head] = weights @ value[0, :, head // share]
    return out


@torch.inference_mode()
def decode_by_hand(
    module: nn.Module, prompt: list[int], count: int, sampling: pard_rt.SamplingParams
) -> list[int]:
    """Decode plainly: the whole text through the module for every token."""
    module.eval()
    text = list(prompt)
    for _ in range(count):
        positions = torch.arange(len(text))[None]
        hidden = module(torch.tensor([text]), positions, attend_all)
        text.append(pard_rt.choose(module.lm_head(hidden[0, -1:])[0], sampling, len(text)))
    return text[len(prompt) :]
