"""Adopting a module: refuse by name what the seam cannot honour, then prove it against eager."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pard_rt.errors import Error, ModelError, first_line
from pard_rt.pytorch.attention import (
    ATTENTION_NAME,
    AttentionCall,
    PackedRows,
    Segment,
    SequenceCache,
    attending,
)
from pard_rt.pytorch.bypass import refuse_bypass
from pard_rt.pytorch.requirements import refuse_layers, refuse_moving_rope, refuse_scattered

# How far logits may differ, as a share of the largest one: always, and at most.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_CEILING = {torch.float32: 1e-2, torch.float16: 8e-2, torch.bfloat16: 2e-1}
_TIMES_ITS_OWN = 8  # between these, so many times what the module's own computation differs by

_WRITTEN, _NEW_ROWS = 8, 3


@dataclass(frozen=True)
class CacheLayout:
    """Shape of a module's KV cache, as its attention layers were seen to use it."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    sliding_windows: tuple[int | None, ...]  # by layer


@dataclass(frozen=True)
class Adopted:
    """What trying a module has shown."""

    layout: CacheLayout
    tolerance: float  # for its logits in whatever way rows are computed: see `tolerance`
    text: OwnText | None = None  # that it was tried on, where transformers runs it


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


def adopt(module: Any, max_length: int, written: int = _WRITTEN) -> Adopted:
    """Route a decoder's attention through the seam, in place, and prove that it computes the same.

    This changes the module's configuration, so it has to be its own.

    Parameters
    ----------
    module
        A ``PreTrainedModel`` for causal language modelling.
    max_length
        Most positions a sequence will have.
    written
        Tokens that it writes to be tried on.

    Raises
    ------
    ModelError
        The module needs something the seam does not honour, or its logits differ from eager's.
    """
    module.eval()
    config = module.config
    refuse_scattered(module)
    refuse_layers(config)
    refuse_moving_rope(config, max_length)
    config._attn_implementation = ATTENTION_NAME
    with running_as_decoder(
        type(module).__name__,
        "logits of token ids at given positions, by attention of transformers' registry",
        "Use another architecture.",
    ):
        return _compare_with_eager(module, max_length, written)


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


def write_text(
    step: Callable[[Tensor, int], Tensor], num_tokens: int, start: int, count: int
) -> tuple[Tensor, Tensor]:
    """Let a model write: its likeliest token after each, but no token twice.

    Where tokens repeat, as weak models' do, values are equal and any attention gives the same.

    Parameters
    ----------
    step
        Maps a token, int64 [1, 1], and its position to its logits [V].
    num_tokens
        Ids it may write: 0 to one less.
    start
        Its first token.

    Returns
    -------
    Tensor, Tensor
        int64 [1, count], and logits [count, V] of rows computed one at a time.
    """
    rows: list[Tensor] = []
    tokens = [start]
    for position in range(count):
        rows.append(step(torch.tensor([tokens[-1:]]), position))
        unwritten = rows[-1][:num_tokens].to(torch.float32, copy=True)
        unwritten[[token for token in tokens if token < len(unwritten)]] = -torch.inf
        tokens.append(int(unwritten.argmax()))
    return torch.tensor([tokens[:count]]), torch.stack(rows)


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two logits, as a share of the largest one."""
    actual, expected = actual.float(), expected.float()
    both_out = (actual == expected) & expected.isinf()  # tokens that are ruled out
    apart = (actual - expected).masked_fill_(both_out, 0).abs().max()
    return (apart / expected.masked_fill(both_out, 0).abs().max()).item()


def tolerance(dtype: torch.dtype, own: float) -> float:
    """Return how far logits may differ from a module's whose own computation differs by `own`."""
    least, most = TOLERANCE.get(dtype, 1e-1), _CEILING.get(dtype, 2e-1)
    return min(max(least, _TIMES_ITS_OWN * own), most)


def refuse_not_finite(name: str, module: nn.Module, logits: Tensor) -> None:
    """Refuse a module that computes NaN before any attention of ours is involved.

    Raises
    ------
    ModelError
        Names its first damaged weight, if there is one.
    """
    if not (logits.isnan() | logits.isposinf()).any():
        return
    damaged = (
        key
        for key, weight in module.named_parameters()
        if weight.is_floating_point() and not weight.isfinite().all()
    )
    key = next(damaged, None)
    if key is not None:
        raise ModelError(
            f"The weights of {name} are damaged",
            "finite numbers",
            f"NaN or an infinity in {key}",
            "Download or train the model again.",
        )
    raise ModelError(
        f"{name} computes logits that are not finite, with its own attention too",
        "finite numbers",
        f"NaN or an infinity, with {str(logits.dtype).removeprefix('torch.')} weights",
        "Load it in the dtype it was trained in, or in float32.",
    )


@dataclass(frozen=True)
class OwnText:
    """A text that a module of transformers wrote with its own attention, and what it computed."""

    tokens: Tensor  # int64 [1, R]
    logits: Tensor  # [R, V] of all rows together, by eager attention
    tolerance: float  # for logits of the same rows, computed in another way


def new_cache(module: Any) -> dict[str, DynamicCache]:
    """Return an empty cache, under the name that the module's forward has for it."""
    named = inspect.signature(module.forward).parameters
    return {"cache" if "cache" in named else "past_key_values": DynamicCache(config=module.config)}


@torch.inference_mode()
def own_text(module: Any, count: int) -> OwnText:
    """Let a module write `count` tokens, and see how far its own computation of them differs.

    A module that amplifies rounding differs from itself when the text is cut otherwise. So what
    differs as much as that is no wrong attention.

    Raises
    ------
    ModelError
        Its logits are not finite.
    """
    device = module.device
    past = new_cache(module)

    def step(token: Tensor, position: int) -> Tensor:
        at = torch.full_like(token, position).to(device)
        out = module(input_ids=token.to(device), position_ids=at, use_cache=True, **past)
        row: Tensor = out.logits[0, -1]
        return row

    num_tokens = module.get_input_embeddings().weight.shape[0]
    start = module.config.get_text_config().bos_token_id
    if not isinstance(start, int) or not 0 <= start < num_tokens:
        start = 0
    with attention_implementation(module, "eager"):
        tokens, alone = write_text(step, num_tokens, start, count)
        tokens = tokens.to(device)
        positions = torch.arange(count, device=device)[None]
        logits = module(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]
    refuse_not_finite(type(module).__name__, module, logits)
    return OwnText(tokens, logits, tolerance(module.dtype, difference(alone, logits)))


@torch.inference_mode()
def _compare_with_eager(module: Any, max_length: int, written: int) -> Adopted:
    text = own_text(module, max(2, min(written, max_length)))
    length = text.tokens.shape[1]
    positions = torch.arange(length, device=text.tokens.device)[None]

    cache = SequenceCache(length)
    seen: list[Recorder] = []
    rows = []
    cut = max(1, length - _NEW_ROWS)
    for start, stop in ((0, cut), (cut, length)):
        recorder = Recorder(PackedRows([Segment(cache, start, 0, stop - start)]))
        with attending(recorder):
            out = module(
                input_ids=text.tokens[:, start:stop],
                position_ids=positions[:, start:stop],
                use_cache=False,
            )
        rows.append(out.logits[0])
        seen.append(recorder)
    refuse_bypass(module, seen[1].calls, max_length)
    layout = layout_of(type(module).__name__, seen[1])

    error = difference(torch.cat(rows), text.logits)
    if not error <= text.tolerance:
        raise ModelError(
            f"{type(module).__name__} computes other logits through pard-rt's attention",
            f"a relative difference to eager attention of at most {text.tolerance:.1g}",
            f"{error:.3g}",
            "Its attention does something of its own, or its quantized weights make a row depend "
            "on others; use other weights or another architecture.",
        )
    return Adopted(layout, text.tolerance, text)
