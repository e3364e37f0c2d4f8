"""Export: graphs that compute what PyTorch computes, in folders that are whole or not there."""

from __future__ import annotations

import errno
import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pard_rt._core import ForwardItem, OnnxModel
from pard_rt.errors import FolderError, InvalidArgumentError
from pard_rt.exporter import Form, Weights, export
from pard_rt.exporter.quantize import round_matrix
from pard_rt.vocabulary import decode_token_bytes, token_bytes
from tiny_models import EOS, MASK_TOKEN_ID, NUM_TOKENS, VOCAB_SIZE, make_model, make_tokenizer

HALF_WINDOWED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}


def operators(folder: Path) -> Counter[str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def rows_of(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """The logits of every token of a text."""
    item = ForwardItem(sequence=0, past_length=0, tokens=tokens, num_rows=len(tokens))
    logits = OnnxModel(folder).forward([item])
    assert logits is not None
    return np.array(np.from_dlpack(logits))


def contract(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "pard_rt.json").read_text()))


# export() itself compares with PyTorch; what is asserted here is what it cannot know.
@pytest.mark.parametrize(
    ("architecture", "packed", "extra"),
    [
        ("llama31", True, {}),
        ("llama_bias", True, {"Add": 2 * 2 + 2 * 3}),  # qkv, o and the three of the MLP
        ("qwen2_yarn", True, {"Add": 2}),
        ("qwen3", False, {"Reshape": 2 * 4}),  # into heads and back, for queries and keys
        ("mistral_window", True, {}),
        ("gemma", True, {"FastGelu": 2}),
    ],
)
def test_gqa_form_is_fused(
    architecture: str, packed: bool, extra: dict[str, int], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", architecture)
    report = export(model, tmp_path / "out", form="gqa")
    assert report.agreement.max_error < 1e-5
    found = operators(tmp_path / "out")
    per_layer = 5 if packed else 7
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    assert found["FusedMatMul"] == tied  # by the embedding, as it lies
    assert found["MatMul"] == 2 * per_layer + (not tied)
    assert found["GroupQueryAttention"] == 2
    assert found["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert found["SimplifiedLayerNormalization"] == (1 if packed else 5)
    assert not {"Cos", "Sin", "ReduceMean", "Softmax", "Shape", "Expand", "Transpose"} & set(found)
    for name, count in extra.items():
        assert found[name] == count


@pytest.mark.parametrize("architecture", ["llama31", "mistral_window"])
def test_portable_form_has_standard_operators_only(architecture: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", architecture, num_hidden_layers=1)
    report = export(model, tmp_path / "out", form="portable")
    assert report.agreement.max_error < 1e-5
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    assert [entry.domain for entry in graph.opset_import] == [""]
    onnx.checker.check_model(graph)


@pytest.mark.parametrize(
    ("architecture", "form", "settings"),
    [
        ("qwen3", "gqa", {"num_hidden_layers": 5}),
        ("qwen3", "portable", {"num_hidden_layers": 5}),
        ("llama31", "gqa", {"num_hidden_layers": 5}),
        ("qwen2", "gqa", {"num_hidden_layers": 8, **HALF_WINDOWED}),
    ],
)
def test_layers_that_repeat_are_copies(
    architecture: str,
    form: Form,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(tmp_path / "model", architecture, **settings)
    repeated, traced = tmp_path / "repeated", tmp_path / "traced"
    module = import_module("pard_rt.exporter.trace")
    with mock.patch.object(module, "_traced", wraps=module._traced) as traces:
        export(model, repeated, form=form)
    assert traces.call_count == 1
    monkeypatch.setattr("pard_rt.exporter.find_repeats", lambda *_: None)
    export(model, traced, form=form)
    assert operators(repeated) == operators(traced)
    tokens = list(range(5, 40))
    np.testing.assert_array_equal(rows_of(repeated, tokens), rows_of(traced, tokens))


@pytest.mark.parametrize("least", [0, 4])  # of the layers, the last is not among the compared
def test_layers_that_only_look_alike_are_traced(
    least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaDecoderLayer.forward

    def scaled(self: Any, *inputs: Any, **named: Any) -> Any:
        place = self.self_attn.layer_idx
        return forward(self, *inputs, **named) * (1 + place / 8 if place >= least else 1)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", scaled)
    model = make_model(tmp_path / "model", num_hidden_layers=5)
    assert export(model, tmp_path / "out").agreement.max_error < 1e-5


def test_batches_are_ragged_through_the_bias(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(make_model(tmp_path / "model", num_hidden_layers=1), out, form="portable")
    alone = [rows_of(out, [5, 6, 7])[-1:], rows_of(out, [8, 9])[-1:]]
    hidden = np.finfo(np.float32).min
    bias = np.full((2, 1, 3, 3), hidden, np.float32)
    for b, first in ((0, 0), (1, 1)):  # the second sequence's rows stand right-aligned
        for row in range(first, 3):
            bias[b, 0, row, first : row + 1] = 0
    bias[1, 0, 0, 0] = 0
    feeds = {
        "input_ids": np.array([[5, 6, 7], [0, 8, 9]]),
        "position_ids": np.array([[0, 1, 2], [0, 0, 1]]),
        "attention_bias": bias,
        "num_logits": np.array([1]),
    }
    empty = np.zeros((2, 0, 2, 16), np.float32)
    feeds |= {"past.0.key": empty, "past.0.value": empty}
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits, np.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantized_weights(weights: Weights, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "qwen2", num_hidden_layers=1)
    report = export(model, tmp_path / "out", weights=weights)
    found = operators(tmp_path / "out")
    assert (found["MatMulNBits"], found["MatMul"]) == (5 + 1, 0)
    assert report.agreement.kl_divergence < {"int8": 0.002, "int4": 0.1}[weights]
    assert contract(tmp_path / "out")["weights"] == weights
    assert not list((tmp_path / "out").glob("exact*"))


@pytest.mark.parametrize(("architecture", "weights"), [("qwen2", "int8"), ("llama_bias", "int4")])
def test_portable_quantized_weights_are_the_gqa_form_s(
    architecture: str, weights: Weights, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", architecture, num_hidden_layers=1)
    reports = {
        form: export(model, tmp_path / form, form=form, weights=weights) for form in get_args(Form)
    }
    graph = onnx.load(tmp_path / "portable" / "model.onnx")
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 21)]
    assert {node.domain for node in graph.graph.node} == {""}
    onnx.checker.check_model(graph)
    matrices = 7 + 1
    assert operators(tmp_path / "portable")["DequantizeLinear"] == matrices
    assert reports["portable"].agreement.kl_divergence == pytest.approx(
        reports["gqa"].agreement.kl_divergence,
        rel=0.2,
        abs=1e-3,  # it rounds activations too
    )

    optimized = tmp_path / "optimized" / "model.onnx"
    optimized.parent.mkdir()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(tmp_path / "portable" / "model.onnx", options)
    fused = operators(optimized.parent)
    assert (fused["MatMulNBits"], fused["DequantizeLinear"]) == (matrices, 0)


def test_half_precision_and_everything_that_travels_along(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", mask_token=True)
    out = tmp_path / "out"
    report = export(model, out, weights="fp16", max_length=64)
    assert report.agreement.max_error < 1e-2
    written = contract(out)
    assert written == {
        "format_version": 1,
        "name": "model",
        "form": "gqa",
        "model": "model.onnx",
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 16,
        "kv_dtype": "float16",
        "logits_dtype": "float16",
        "vocab_size": VOCAB_SIZE,
        "num_tokens": NUM_TOKENS,
        "max_length": 64,
        "bos_token_id": EOS - 1,
        "eos_token_ids": [EOS],
        "mask_token_id": MASK_TOKEN_ID,
        "weights": "fp16",
    }
    table = decode_token_bytes((out / "token_bytes.bin").read_bytes(), NUM_TOKENS)
    assert table == token_bytes(make_tokenizer(), NUM_TOKENS)
    packed, pretty = (folder / "tokenizer.json" for folder in (out, model))
    assert json.loads(packed.read_bytes()) == json.loads(pretty.read_bytes())
    assert b"\n" in pretty.read_bytes()
    assert b"\n" not in packed.read_bytes()
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1


def test_fp16_files_are_half_as_large_and_compute_in_float32(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama31")
    full, half = tmp_path / "full", tmp_path / "half"
    export(model, full)
    report = export(model, half, fp16_files=True)
    assert report.agreement.max_error < 1e-5
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    written = contract(half)
    assert (written["weights"], written["kv_dtype"], written["logits_dtype"]) == (
        "fp32",
        "float32",
        "float32",
    )
    rows = [rows_of(folder, [5, 6, 7]) for folder in (full, half)]
    difference = np.abs(rows[0] - rows[1]).max() / np.abs(rows[0]).max()
    assert 0 < difference < 1e-2


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pard_rt.exporter.write_text_files", full)
    with pytest.raises(FolderError, match="room on the disk"):
        export(model, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_refused_models_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no model '"):
        export(tmp_path / "nothing", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="gqa or portable"):
        export("no/model", tmp_path / "out", form="fast")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="fp32 or fp16 or int8 or int4"):
        export("no/model", tmp_path / "out", weights="int3")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="float32 weights"):
        export("no/model", tmp_path / "out", weights="int8", fp16_files=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InvalidArgumentError, match="already there"):
        export("no/model", tmp_path / "out")


def test_int4_scales_err_less_than_those_that_reach_the_largest_number() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 100, generator=generator)
    powers = torch.rand(100, generator=generator) ** 4
    reaching = torch.nn.functional.pad(matrix, (0, 28)).view(64, 4, 32)
    low, high = reaching.aminmax(dim=-1, keepdim=True)
    scales = torch.where(-low > high, low, high) / -8
    nearest = ((reaching / scales).round().clamp(-8, 7) * scales).view(64, 128)[:, :100]

    def error(rounded: torch.Tensor) -> float:
        return float((powers * (rounded - matrix).square()).sum())

    blind, seeing = (
        torch.from_numpy(round_matrix(matrix, 4, given).dequantize()) for given in (None, powers)
    )
    assert error(seeing) < 0.95 * error(blind) < 0.95 * error(nearest)
