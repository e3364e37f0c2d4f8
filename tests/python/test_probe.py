"""What is tried when a module is adopted refuses a wrong attention, and no sensitive model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pard_rt
from own_modules import Rotary, seeded
from pard_rt import Generator, ModelError
from pard_rt.models.checkpoint import LoadedModel, load
from pard_rt.pytorch import attention
from pard_rt.pytorch.attention import AttentionCall, Segment
from pard_rt.pytorch.probe import TOLERANCE, own_text, tolerance
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import make_model

Patch = Callable[[pytest.MonkeyPatch], None]


def changed_call(**changes: Callable[[AttentionCall], object]) -> Patch:
    """An attention that computes another call than it was asked for."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        attend_rows = attention.attend_rows

        def wrong(call: AttentionCall, *tensors: Any) -> Tensor:
            values = {name: change(call) for name, change in changes.items()}
            return attend_rows(replace(call, **values), *tensors)

        monkeypatch.setattr(attention, "attend_rows", wrong)

    return patch


def masked(shift: int) -> Patch:
    """An attention whose rows see `shift` positions more than they may."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(rows: int, past: int, window: int | None, like: Tensor) -> Tensor:
            position = torch.arange(past, past + rows)[:, None] + shift
            hidden = torch.arange(past + rows)[None, :] > position.clamp(min=0)
            bias = torch.zeros(hidden.shape, dtype=like.dtype)
            return bias.masked_fill(hidden, torch.finfo(like.dtype).min)

        monkeypatch.setattr(attention, "causal_bias", wrong)

    return patch


def windowless(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = Segment.bias
    monkeypatch.setattr(Segment, "bias", lambda self, window, like: bias(self, None, like))


def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that hands out its rows one place off."""
    write = attention.SequenceCache.write

    def wrong(self: Any, layer: int, past: int, key: Tensor, value: Tensor) -> Any:
        keys, values = write(self, layer, past, key, value)
        return keys.roll(1, 0), values

    monkeypatch.setattr(attention.SequenceCache, "write", wrong)


WRONG: dict[str, Patch] = {
    "scale": changed_call(scale=lambda call: call.scale * 1.05),
    "soft cap": changed_call(softcap=lambda call: 2.0),
    "sees the next row": masked(1),
    "does not see itself": masked(-1),
    "keys of other positions": stale,
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "mistral_window"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_attention_is_refused(
    what: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(make_model(tmp_path / "model", architecture))
    WRONG[what](monkeypatch)
    with pytest.raises(ModelError, match="computes other logits"):
        TorchModel(loaded)


def test_a_forgotten_window_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(make_model(tmp_path / "model", "mistral_window", sliding_window=4))
    windowless(monkeypatch)
    with pytest.raises(ModelError, match="computes other logits"):
        TorchModel(loaded)


@pytest.mark.parametrize(("told", "length"), [(None, 64), (65, 64), (63, 63)])
def test_a_window_too_long_for_the_probe_is_compared_by_what_layers_are_told(
    told: int | None, length: int, tmp_path: Path
) -> None:
    windows = {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True}
    folder = make_model(tmp_path / "model", "qwen2", sliding_window=64, **windows)
    TorchModel(load(folder))
    loaded = load(folder)
    loaded.module.model.layers[1].self_attn.sliding_window = told
    with pytest.raises(ModelError, match=rf"got {told} in layers \[1\].*max_length={length}"):
        TorchModel(loaded)
    shorter = load(folder, max_length=length)
    shorter.module.model.layers[1].self_attn.sliding_window = told
    TorchModel(shorter)


def test_a_module_that_counts_positions_by_itself_is_refused(tmp_path: Path) -> None:
    def from_zero(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        positions = torch.arange(kwargs["input_ids"].shape[1])[None]
        return args, kwargs | {"position_ids": positions}

    loaded = load(make_model(tmp_path / "model"))
    loaded.module.register_forward_pre_hook(from_zero, with_kwargs=True)
    with pytest.raises(ModelError, match="computes other logits"):
        TorchModel(loaded)


def unsteady(folder: Path, by: float) -> LoadedModel:
    """A model whose rows are a little different where few of them are computed together."""

    def change(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * (1 + by / output.shape[1])

    loaded = load(folder)
    loaded.module.model.layers[0].mlp.register_forward_hook(change)
    return loaded


def test_a_model_that_amplifies_rounding_is_not_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    steady, sensitive = load(folder).module, unsteady(folder, 2e-3).module
    assert own_text(steady, 8).tolerance == TOLERANCE[torch.float32]
    assert own_text(sensitive, 8).tolerance > 5 * TOLERANCE[torch.float32]
    Generator(unsteady(folder, 2e-3))
    with pytest.raises(ModelError, match="computes other logits"):
        TorchModel(unsteady(folder, 0.5))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_difference_is_allowed_between_a_floor_and_a_ceiling(dtype: torch.dtype) -> None:
    assert tolerance(dtype, 0.0) == TOLERANCE[dtype]
    between = tolerance(dtype, TOLERANCE[dtype] / 4)
    assert TOLERANCE[dtype] < between < tolerance(dtype, 1.0) <= 0.2


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma"])
def test_a_model_writes_its_text_without_a_token_twice(architecture: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", architecture)
    first, second = (own_text(load(folder).module, 8) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert len(set(first.tokens[0].tolist())) == first.tokens.shape[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_named(value: float, tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"))
    name = "model.layers.1.mlp.up_proj.weight"
    loaded.module.get_parameter(name).data[3, 2] = value
    with pytest.raises(ModelError, match=f"weights of LlamaForCausalLM are damaged.*{name}"):
        TorchModel(loaded)
    module = seeded(Rotary(), 1)
    module.lm_head.weight.data[5] = value
    with pytest.raises(ModelError, match=r"weights of mine are damaged.*lm_head.weight"):
        TorchModel(pard_rt.wrap(module, max_length=32, name="mine"))


def test_a_module_that_overflows_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"), dtype=torch.float16)
    loaded.module.model.norm.weight.data.mul_(300)
    loaded.module.lm_head.weight.data.mul_(3000)
    with pytest.raises(ModelError, match=r"own attention too.*float16 weights.*float32"):
        TorchModel(loaded)
