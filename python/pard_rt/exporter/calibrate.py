"""What a module's matrices are multiplied by, over text that it writes itself."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pard_rt.exporter.matrices import matrices
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.probe import attention_implementation, new_cache

_TEXTS, _LENGTH = 8, 96  # tokens of each


def input_powers(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the mean square of every input of a module's matrices, [K] by the layer's name.

    The module writes the texts itself, sampling from its first token on, so no data set is needed,
    and the texts resemble what it was trained on.
    """
    module = loaded.module
    sums: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, part in matrices(module).items():

            def add(_: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
                rows = inputs[0].detach().flatten(0, -2).float()
                sums[name] = sums.get(name, 0) + rows.square().sum(0)

            stack.callback(part.register_forward_pre_hook(add).remove)
        _write(loaded, _first_token(loaded), min(_LENGTH, loaded.facts.max_length - 1))
    return {name: total.cpu() / total.mean() for name, total in sums.items()}


def _first_token(loaded: LoadedModel) -> int:
    named = (getattr(loaded.tokenizer, f"{which}_token_id", None) for which in ("bos", "eos"))
    return next((token for token in named if isinstance(token, int)), 0)


@torch.inference_mode()
def _write(loaded: LoadedModel, first: int, length: int) -> None:
    module = loaded.module
    drawn = torch.Generator(module.device).manual_seed(0)
    ids, cache = torch.full((_TEXTS, 1), first, device=module.device), new_cache(module)
    with attention_implementation(module, "eager"):
        for _ in range(length):
            logits = module(input_ids=ids, use_cache=True, logits_to_keep=1, **cache).logits
            shares = logits[:, -1].float().softmax(-1)
            ids = loaded.tokens_of(torch.multinomial(shares, 1, generator=drawn))
