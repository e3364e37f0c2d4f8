"""What a module does past the seam: layers and windows that its attention is not told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pard_rt.errors import ModelError
from pard_rt.pytorch.attention import AttentionCall


def refuse_bypass(module: Any, calls: Mapping[int, AttentionCall], max_length: int) -> None:
    """Refuse modules with layers or windows that do not come through the seam.

    Parameters
    ----------
    module
        A ``PreTrainedModel``.
    calls
        What its layers asked of the attention in one forward.
    max_length
        Most positions a sequence will have.

    Raises
    ------
    ModelError
        Names the layers.
    """
    config = module.config.get_text_config()
    layers = config.num_hidden_layers
    remedy = "Use another architecture."
    if sorted(calls) != list(range(layers)):
        problem = "some layers do not call their attention through transformers' registry"
        expected, actual = f"layers 0..{layers - 1}", f"layers {sorted(calls)}"
    elif unlike := _unlike_windows(config, calls, max_length):
        layer, window = next(iter(unlike.items()))
        told = calls[layer].sliding_window
        shortest = min(each for each in (window, told) if each is not None)
        problem = "a sliding window is applied where pard-rt cannot see it"
        expected = f"sliding_window={window} passed to the attention"
        actual = f"{told} in layers {list(unlike)}"
        remedy = f"Pass max_length={shortest}, up to which it does not matter."
    else:
        return
    raise ModelError(f"{type(module).__name__}: {problem}", expected, actual, remedy)


def _unlike_windows(
    config: Any, calls: Mapping[int, AttentionCall], max_length: int
) -> dict[int, int | None]:
    """Layers whose attention is told another window than transformers' masks and caches apply.

    Both take it from the configuration, and the seam replaces both. Texts short enough for a probe
    do not show it.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(calls)
    applied = {i: window if kind == "sliding_attention" else None for i, kind in enumerate(kinds)}
    return {
        layer: applied[layer]
        for layer, call in sorted(calls.items())
        if _within(call.sliding_window, max_length) != _within(applied[layer], max_length)
    }


def _within(window: int | None, max_length: int) -> int | None:
    return window if window is not None and 0 < window < max_length else None
