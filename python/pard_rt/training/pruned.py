"""Drafts made of some of the target's own layers, with its embedding and LM head as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pard_rt.errors import InvalidArgumentError, ModelError
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.training.config import fast_dtype
from pard_rt.training.documents import Document

_TOKENS = 256  # that layers are chosen by


def choose_layers(loaded: LoadedModel, count: int, documents: Sequence[Document]) -> list[int]:
    """Choose the layers that a draft starts from.

    Layers are left out one by one, each time the one without which the model still predicts the
    documents best.

    Parameters
    ----------
    loaded
        The model.
    count
        Layers to keep.
    documents
        The first tokens of them, 256 in all, are predicted.

    Returns
    -------
    list of int
        The layers, in the model's order.

    Raises
    ------
    InvalidArgumentError
        The model has fewer layers.
    ModelError
        The layers cannot be found.
    """
    module = loaded.module
    stack = _layers_of(module)
    _require_layers(stack, range(count))
    kept = list(range(len(stack)))
    tokens = torch.cat([document.tokens for document in documents])[:_TOKENS].to(module.device)
    while len(kept) > count:
        rest = {layer: [other for other in kept if other != layer] for layer in kept}
        if len(kept) > 1:
            del rest[kept[0]]  # it turns embeddings into states
        kept = min(rest.values(), key=lambda left: _loss(module, stack, left, tokens))
    return kept


def keep_layers(loaded: LoadedModel, layers: Sequence[int]) -> list[int]:
    """Leave a model some of its layers, in place, and return them in the model's order.

    Raises
    ------
    InvalidArgumentError
        There are no such layers.
    ModelError
        The layers cannot be found, or depend on where they are in the model.
    """
    module, config = loaded.module, loaded.module.config
    stack = _layers_of(module)
    _require_layers(stack, layers)
    kept = sorted(set(layers))
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise ModelError(
            f"The layers of {type(module).__name__} cannot be taken out one by one",
            "layers that do not depend on their number",
            "experts in some of the layers",
            "Start from a smaller model of the family instead.",
        )
    for name, value in list(vars(config).items()):  # layer_types, no_rope_layers
        if "layer" in name and isinstance(value, list) and len(value) == len(stack):
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    module.base_model.layers = nn.ModuleList([stack[layer] for layer in kept])
    for number, layer in enumerate(module.base_model.layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    return kept


def _require_layers(stack: nn.ModuleList, layers: Sequence[int]) -> None:
    if not layers or not all(0 <= layer < len(stack) for layer in layers):
        raise InvalidArgumentError(
            "The draft cannot have these layers",
            f"1 to {len(stack)} layers, or some of 0 to {len(stack) - 1}",
            ", ".join(map(str, layers)) or "none",
            "Choose others.",
        )


def _layers_of(module: Any) -> nn.ModuleList:
    stack = getattr(module.base_model, "layers", None)
    if isinstance(stack, nn.ModuleList) and len(stack) == module.config.num_hidden_layers:
        return stack
    raise ModelError(
        f"The layers of {type(module).__name__} are not found",
        "a list named layers in its base model",
        type(stack).__name__,
        "Start from a smaller model of the family instead.",
    )


@torch.no_grad()
def _loss(module: Any, stack: nn.ModuleList, kept: Sequence[int], tokens: Tensor) -> float:
    """Predict tokens by some of the layers; a rough answer will do."""
    device = module.device
    module.base_model.layers = nn.ModuleList([stack[layer] for layer in kept])
    module.config.num_hidden_layers = len(kept)
    try:
        dtype = fast_dtype(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = module(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        return float(cross_entropy(logits.float(), tokens[1:]))
    finally:
        module.base_model.layers = stack
        module.config.num_hidden_layers = len(stack)


class MaskRow(nn.Module):
    """A frozen embedding, of which one row is learnt.

    Parameters
    ----------
    embedding
        Of the model; the row is written into it by `merged`.
    token
        The mask token.
    """

    def __init__(self, embedding: nn.Embedding, token: int) -> None:
        super().__init__()
        self.embedding = embedding.requires_grad_(False)
        self.row = nn.Parameter(embedding.weight[token].detach().clone())
        self._token = token

    @property
    def weight(self) -> Tensor:
        """What the LM head may share."""
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids, the mask token by the row that is learnt."""
        scale = getattr(self.embedding, "embed_scale", 1.0)  # Gemma's
        embedded: Tensor = self.embedding(ids)
        return torch.where((ids == self._token)[..., None], self.row * scale, embedded)

    @torch.no_grad()
    def merged(self) -> nn.Embedding:
        """Return the embedding with the row in it, which a tied LM head then has too."""
        self.embedding.weight[self._token] = self.row
        return self.embedding


def freeze_embeddings(module: Any, mask_token_id: int) -> None:
    """Leave embedding and LM head as they are, but for the mask token's row."""
    row = MaskRow(module.get_input_embeddings(), mask_token_id)
    module.get_output_embeddings().requires_grad_(False)
    module.set_input_embeddings(row)
