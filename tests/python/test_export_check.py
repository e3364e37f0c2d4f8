"""The check of an export: wrong graphs are refused, and errors name what is at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import TinyModels
from pard_rt import Generator, ModelError, OnnxModel
from pard_rt._core import read_folder
from pard_rt.errors import Notice
from pard_rt.exporter import Form, export
from pard_rt.exporter.check import Check
from pard_rt.models.checkpoint import load
from pard_rt.pytorch.probe import adopt
from test_architectures import EXPERTS, Case, checkpoint
from tiny_models import make_tokenizer

# Heads that ONNX Runtime's GroupQueryAttention refuses on CPUs.
ODD_HEADS = (
    Case("Llama", {"head_dim": 12}),  # no multiple of 8
    Case("Llama", {"head_dim": 24}),  # rotated, and no multiple of 16
    Case("GPTNeoX", {"hidden_size": 128}),  # 8 of 32 dimensions rotated
    Case("Mistral", {"head_dim": 12, "sliding_window": 8}),
)


def with_tokenizer(case: Case, folder: Path) -> Path:
    make_tokenizer().save_pretrained(checkpoint(case, folder))
    return folder


@pytest.mark.parametrize("case", ODD_HEADS, ids=lambda case: f"{case.name}-{case.changes}")
def test_heads_that_onnxruntime_refuses_run_by_our_attention(case: Case, tmp_path: Path) -> None:
    model = with_tokenizer(case, tmp_path / "model")
    report = export(model, tmp_path / "out")
    assert report.requires_own_attention
    assert read_folder(report.folder).requires_own_attention
    prompt = torch.randint(3, 256, (1, 19), generator=torch.Generator().manual_seed(1))
    expected = (
        AutoModelForCausalLM.from_pretrained(model)
        .eval()
        .generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 19:]
        .tolist()
    )
    generator = Generator(report.folder)
    assert generator.generate(prompt[0], max_new_tokens=24, eos_token_ids=[]).token_ids == expected
    with pytest.raises(ModelError, match="--form portable"):
        OnnxModel(report.folder, own_attention=False)


def test_heads_that_only_onnxruntime_could_run_are_refused_with_what_works(tmp_path: Path) -> None:
    """Our attention has no float16, so the check runs ONNX Runtime's."""
    model = with_tokenizer(ODD_HEADS[0], tmp_path / "model")
    with pytest.raises(ModelError, match=r"multiple of 8.*--form portable"):
        export(model, tmp_path / "out", weights="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["gqa", "portable"])
def test_experts_are_refused_by_name(
    form: Form,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("Qwen3Moe", {**EXPERTS, "num_experts": 4, "num_hidden_layers": 1})
    model = with_tokenizer(case, tmp_path / "model")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    capfd.readouterr()
    with pytest.raises(ModelError) as caught:
        export(model, tmp_path / "out", form=form)
    message = str(caught.value)
    assert "grouped_mm" in message
    assert "model.layers.0.mlp.experts" in message
    assert "PyTorch" in message
    assert "\x1b" not in message
    assert "\n" not in message
    said = capfd.readouterr()
    assert "def forward" not in said.out + said.err
    assert not list(here.iterdir())


@pytest.mark.parametrize("form", ["gqa", "portable"])
def test_rotation_that_may_change_is_exported_within_its_limit(form: Form, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    case = Case("Llama", {"rope_parameters": rope, "num_hidden_layers": 1})
    report = export(with_tokenizer(case, tmp_path / "model"), tmp_path / "out", form=form)
    assert report.agreement.max_error < 1e-5


def test_rotation_by_a_function_of_its_own_is_exported(tmp_path: Path) -> None:
    """GPT-J rotates queries and keys in two calls, so its graph does, not the attention."""
    case = Case("GPTJ", {"rotary_dim": 8, "num_hidden_layers": 1})
    report = export(with_tokenizer(case, tmp_path / "model"), tmp_path / "out")
    assert report.agreement.max_error < 1e-5
    assert not report.requires_own_attention


def check_of(model: Path, **options: Any) -> Check:
    loaded = load(model, **options)
    return Check(loaded, adopt(loaded.module, loaded.facts.max_length), "gqa")


def test_a_graph_of_other_weights_is_refused(tiny_models: TinyModels) -> None:
    check = check_of(tiny_models.checkpoint("llama", seed=1))
    other = tiny_models.folder("llama", "gqa", seed=2)
    with pytest.raises(ModelError, match=r"does not compute.*--form portable"):
        check.require_exact(other)
    with pytest.raises(ModelError, match=r"int4 weights have lost.*--weights int8"):
        check.require_sense(other, "int4")
    assert check.require_exact(tiny_models.folder("llama", "gqa", seed=1)).same_argmax == 1


def test_windows_are_filled(tiny_models: TinyModels) -> None:
    """A graph without the window agrees on short texts only."""
    narrow = tiny_models.checkpoint("mistral_window", seed=1, sliding_window=40)
    wide = tiny_models.folder("mistral_window", "gqa", seed=1, sliding_window=None)
    with pytest.raises(ModelError, match="does not compute"):
        check_of(narrow).require_exact(wide)


def test_the_longest_text_fits_the_shortest_model(tiny_models: TinyModels) -> None:
    folder = tiny_models.folder("llama", "gqa", seed=1)
    for max_length in (2, 3, 9):
        check = check_of(tiny_models.checkpoint("llama", seed=1), max_length=max_length)
        assert check.require_exact(folder).max_error < 1e-5


def test_coarse_weights_give_a_warning(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.checkpoint("llama", seed=1, num_hidden_layers=4)
    with pytest.warns(
        Notice, match=r"int4 weights predict other text.*--weights int8 comes closer"
    ):
        report = export(model, tmp_path / "out", weights="int4")
    assert report.agreement.kl_divergence > 0.1
    assert report.agreement.same_argmax < 1
