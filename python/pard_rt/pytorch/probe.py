"""Adopting a module: refuse by name what the seam cannot honour, then prove it against eager."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pard_rt.errors import Error, ModelError, first_line
from pard_rt.pytorch.attention import (
    ATTENTION_NAME,
    AttentionCall,
    PackedRows,
    Segment,
    SequenceCache,
    attending,
)
from pard_rt.pytorch.requirements import refuse_layers, refuse_moving_rope

# Largest difference to eager, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}

_PREFILL, _NEW_ROWS = 9, 5


@dataclass(frozen=True)
class CacheLayout:
    """Shape of a module's KV cache, as its attention layers were seen to use it."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    sliding_windows: tuple[int | None, ...]  # by layer


@contextmanager
def attention_implementation(module: nn.Module, name: str) -> Iterator[None]:
    """Run `module` with another attention implementation for a while."""
    config: Any = module.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def adopt(module: Any, max_length: int) -> CacheLayout:
    """Route a decoder's attention through the seam, in place, and prove that it computes the same.

    The module's configuration, which transformers shares between models, is copied first.

    Parameters
    ----------
    module
        A ``PreTrainedModel`` for causal language modelling.
    max_length
        Most positions a sequence will have.

    Raises
    ------
    ModelError
        The module needs something the seam does not honour, or its logits differ from eager's.
    """
    module.eval()
    _own_config(module)
    config = module.config
    refuse_layers(config)
    refuse_moving_rope(config, max_length)
    config._attn_implementation = ATTENTION_NAME
    with running_as_decoder(
        type(module).__name__,
        "logits of token ids at given positions, by attention of transformers' registry",
        "Use another architecture.",
    ):
        return _compare_with_eager(module, max_length)


@contextmanager
def running_as_decoder(name: str, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever a module raises inside the block into an error that says what was tried."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # every module has its own
        raise ModelError(
            f"{name} does not run as pard-rt runs decoders",
            expected,
            f"{type(error).__name__}: {first_line(error)}",
            remedy,
        ) from error


def _own_config(module: nn.Module) -> None:
    copies: dict[int, Any] = {}  # so that parts that shared a configuration still do
    for part in module.modules():
        if hasattr(part, "config"):
            part.config = copy.deepcopy(part.config, copies)


class Recorder:
    """An `Attention` that passes calls on, remembering what each layer asked for."""

    def __init__(self, inner: PackedRows) -> None:
        self._inner = inner
        self.calls: dict[int, AttentionCall] = {}
        self.shapes: set[tuple[int, int]] = set()  # (heads, size) of keys and values

    def attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attention.attend`."""
        self.calls[call.layer] = call
        self.shapes |= {(x.shape[2], x.shape[3]) for x in (key, value)}
        return self._inner.attend(call, query, key, value)


def layout_of(name: str, seen: Recorder) -> CacheLayout:
    """Return the layout of a module's cache, by the calls of one forward.

    Raises
    ------
    ModelError
        Layers differ in shape, or there is none.
    """
    if len(seen.shapes) != 1:
        raise ModelError(
            f"{name}: keys and values differ in shape between layers or from each other",
            "one (heads, size) for all",
            str(sorted(seen.shapes) or "no layer that attends"),
            "Use another architecture.",
        )
    ((num_kv_heads, head_dim),) = seen.shapes
    windows = tuple(seen.calls[layer].sliding_window for layer in sorted(seen.calls))
    return CacheLayout(len(windows), num_kv_heads, head_dim, windows)


def probe_tokens(module: Any, count: int) -> Tensor:
    """`count` fixed pseudo-random token ids [1, count] within the module's embedding."""
    rows = module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(20)
    return torch.randint(rows, (1, count), generator=generator).to(module.device)


@torch.inference_mode()
def _compare_with_eager(module: Any, max_length: int) -> CacheLayout:
    tokens = probe_tokens(module, _PREFILL + _NEW_ROWS)
    length = tokens.shape[1]
    positions = torch.arange(length, device=tokens.device)[None]
    with attention_implementation(module, "eager"):
        expected = module(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]

    cache = SequenceCache(length)
    seen: list[Recorder] = []
    rows = []
    for start, stop in ((0, _PREFILL), (_PREFILL, length)):
        recorder = Recorder(PackedRows([Segment(cache, start, 0, stop - start)]))
        with attending(recorder):
            out = module(
                input_ids=tokens[:, start:stop],
                position_ids=positions[:, start:stop],
                use_cache=False,
            )
        rows.append(out.logits[0])
        seen.append(recorder)
    _refuse_bypass(module, seen[1], max_length)
    layout = layout_of(type(module).__name__, seen[1])

    actual = torch.cat(rows).float()
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    tolerance = TOLERANCE.get(module.dtype, 1e-1)
    if not error <= tolerance:
        raise ModelError(
            f"{type(module).__name__} computes other logits through pard-rt's attention",
            f"a relative difference to eager attention of at most {tolerance:g}",
            f"{error:.3g}",
            "Its attention does something of its own, or its quantized weights make a row depend "
            "on others; use other weights or another architecture.",
        )
    return layout


def _refuse_bypass(module: Any, seen: Recorder, max_length: int) -> None:
    """Refuse modules with layers or windows that do not come through the seam."""
    config = module.config.get_text_config()
    layers = config.num_hidden_layers
    remedy = "Use another architecture."
    if sorted(seen.calls) != list(range(layers)):
        problem = "some layers do not call their attention through transformers' registry"
        expected, actual = f"layers 0..{layers - 1}", f"layers {sorted(seen.calls)}"
    elif silent := _silent_windows(config, seen, max_length):
        problem = "a sliding window is applied where pard-rt cannot see it"
        expected, actual = "sliding_window passed to the attention", f"none in layers {silent}"
        remedy = f"Pass max_length={config.sliding_window}, up to which it does not matter."
    else:
        return
    raise ModelError(f"{type(module).__name__}: {problem}", expected, actual, remedy)


def _silent_windows(config: Any, seen: Recorder, max_length: int) -> list[int]:
    """Layers with a window, as transformers' caches know them, of which the attention was not told.

    Their masks apply it, which the seam replaces by its own, or their caches do.
    """
    window = getattr(config, "sliding_window", None)
    if not window or window >= max_length:
        return []
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(seen.calls)
    return [
        layer
        for layer, kind in enumerate(kinds)
        if kind == "sliding_attention" and seen.calls[layer].sliding_window is None
    ]
