"""Models in the shapes of published pairs, with random weights: no network and no files.

A target is made to count: behind token t it says t + 1, by far. Random weights have near-ties, and
bfloat16 rows computed alone and together decide some of them differently: every recorded proposal
behind such a place would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pard_rt.models.checkpoint import LoadedModel, ModelFacts

Json = dict[str, Any]

MAX_LENGTH = 2048


@dataclass(frozen=True)
class Pair:
    """Shapes of a published target and its draft."""

    family: Any  # configuration, model class
    target: Json
    draft: Json

    @property
    def num_tokens(self) -> int:
        """Ids that both know; rows behind them are padding."""
        return int(min(self.target["vocab_size"], self.draft["vocab_size"]))


def _shape(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    }


_LLAMA, _QWEN = (LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)
_QWEN_DRAFT = _shape(896, 4864, 24, 14, 2, 151936) | {"tie_word_embeddings": True}
PAIRS = {
    "llama-3.1-8b + 1b": Pair(
        _LLAMA,
        _shape(4096, 14336, 32, 32, 8, 128256),
        _shape(2048, 8192, 16, 32, 8, 128256) | {"tie_word_embeddings": True},
    ),
    "qwen2.5-7b + 0.5b": Pair(_QWEN, _shape(3584, 18944, 28, 28, 4, 152064), _QWEN_DRAFT),
    "qwen2.5-14b + 0.5b": Pair(_QWEN, _shape(5120, 13824, 48, 40, 8, 152064), _QWEN_DRAFT),
}
TINY = {"tiny": Pair(_LLAMA, _shape(64, 128, 2, 4, 2, 320), _shape(32, 64, 2, 2, 1, 300))}


def load(pair: Pair, shape: Json, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Make a model of random weights on its device."""
    config_class, model_class = pair.family
    config = config_class(
        **shape, max_position_embeddings=MAX_LENGTH, bos_token_id=None, eos_token_id=None
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            module = model_class(config).eval()
    finally:
        torch.set_default_dtype(before)
    facts = ModelFacts(
        name="random",
        vocab_size=shape["vocab_size"],
        num_tokens=pair.num_tokens,
        token_bytes=None,
        max_length=MAX_LENGTH,
        bos_token_id=None,
        eos_token_ids=(),
        mask_token_id=None,
    )
    return LoadedModel(module, module.config, None, facts)


@torch.no_grad()
def load_counting(pair: Pair, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Make a target that counts: its embedding outweighs what the layers add to it."""
    target = load(pair, pair.target, device, dtype)
    embedding = target.module.get_input_embeddings().weight
    target.module.get_output_embeddings().weight.copy_(embedding.roll(1, 0))
    embedding.mul_(1000)
    return target


def counted(prompt: Sequence[int], count: int) -> list[int]:
    """Return what such a target says behind a prompt."""
    return [prompt[-1] + 1 + i for i in range(count)]


def equal_share(prompt: Sequence[int], text: Sequence[int]) -> float:
    """Share of the tokens behind a prompt that are such a target's."""
    expected = counted(prompt, len(text))
    return sum(a == b for a, b in zip(text, expected, strict=True)) / len(text)


def bytes_read(target: LoadedModel) -> int:
    """Bytes of weights that a token of plain decoding reads: of the embedding, a row."""
    weights = sum(p.numel() * p.element_size() for p in target.module.parameters())
    embedding = target.module.get_input_embeddings().weight
    return int(weights - embedding.numel() * embedding.element_size())
