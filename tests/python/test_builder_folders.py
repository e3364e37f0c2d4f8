"""Folders of onnxruntime-genai's model builder, option by option, beside genai's own greedy text.

What runs here gives genai's ids, and speculation gives the ids of plain decoding. What cannot run
is refused by `pard-rt info` and at opening, by the name of the builder's option.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from transformers import Gemma2Config

import pard_rt
from conftest import TinyModels
from pard_rt.cli import main
from tiny_models import ARCHITECTURES, NUM_TOKENS

builder = pytest.importorskip("onnxruntime_genai.models.builder")
genai = pytest.importorskip("onnxruntime_genai")

SEED = 6
NUM_NEW = 48
PROMPTS = [
    [int(token) for token in np.random.default_rng(length).integers(NUM_TOKENS, size=length)]
    for length in (5, 21, 40)
]
Json: TypeAlias = dict[str, Any]

# Windows that bind: every other layer of Gemma 2, the layers from the second on of Qwen2.
WINDOWS: dict[str, tuple[type, Json]] = {
    "gemma2": (
        Gemma2Config,
        {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 16},
    ),
    "qwen2_window": (
        ARCHITECTURES["qwen2"][0],
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
}


@dataclass(frozen=True)
class Build:
    """One run of the builder."""

    precision: str = "fp32"
    provider: str = "cpu"
    options: tuple[str, ...] = ()
    architecture: str = "llama"
    sizes: Json = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return " ".join((self.architecture, self.precision, self.provider, *self.options))


def build(*words: str, **sizes: Any) -> Build:
    """The run that `words` describe: architecture, precision, provider, options."""
    architecture, precision, provider, *options = words
    return Build(precision, provider, tuple(options), architecture, sizes)


class Builder:
    """Runs the builder, once for each set of options."""

    def __init__(self, models: TinyModels) -> None:
        self.models = models

    def __call__(self, what: Build) -> Path:
        folder = self.models.root / f"built {what} {what.sizes}".replace("/", "|")
        if (folder / "genai_config.json").exists():
            return folder
        checkpoint = self.models.checkpoint(what.architecture, seed=SEED, **what.sizes)
        cache = str(self.models.root / "cache")
        arguments = ("", str(checkpoint), str(folder), what.precision, what.provider, cache)
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            options = builder.parse_extra_options(*arguments, list(what.options))
            builder.create_model(*arguments, **options)
        return folder


@pytest.fixture(scope="module")
def built(tiny_models: TinyModels) -> Iterator[Builder]:
    logging.disable(logging.INFO)  # the quantizer speaks of every node
    ARCHITECTURES.update(WINDOWS)
    yield Builder(tiny_models)
    for name in WINDOWS:
        del ARCHITECTURES[name]
    logging.disable(logging.NOTSET)


def genai_greedy(folder: Path, prompt: list[int]) -> list[int]:
    """What onnxruntime-genai generates on the CPU, without an end token."""
    config = genai.Config(str(folder))
    config.clear_providers()
    model = genai.Model(config)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + NUM_NEW, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def decode(
    target: pard_rt.Model, draft: pard_rt.Model | None = None, k: int = 0, chunk: int = 16
) -> list[list[int]]:
    drafter = None if draft is None else pard_rt.AutoregressiveDrafter(draft)
    decoder = pard_rt.Decoder(
        target, drafter, num_speculative_tokens=k, max_batch_size=3, prefill_chunk=chunk
    )
    sequences = [decoder.add(prompt, max_new_tokens=NUM_NEW) for prompt in PROMPTS]
    while decoder.step():
        pass
    return [sequence.generated.tolist() for sequence in sequences]


def open_draft(folder: Path) -> pard_rt.OnnxModel:
    return pard_rt.OnnxModel(folder, threads=1, is_target=False, exact=False)


WIDE = {"intermediate_size": 128, "hidden_size": 128, "head_dim": 32}  # blocks of 64 and 128 fit
INT4 = ("llama", "int4", "cpu")

# name of the weights, then the run
RUN = [
    ("fp32", build("llama", "fp32", "cpu")),
    ("fp32", build("llama", "fp32", "webgpu")),
    ("fp16", build("llama", "fp16", "cuda")),
    ("fp16", build("llama", "fp16", "dml")),
    ("fp16", build("llama", "fp16", "NvTensorRtRtx")),
    ("int4", build(*INT4)),
    ("int4", build("llama", "int4", "cuda")),
    ("int4", build("llama", "int4", "dml")),
    ("int4", build("llama", "int4", "webgpu")),
    ("int4", build("llama", "int4", "NvTensorRtRtx")),
    ("int8", build("llama", "int8", "cpu")),
    ("int8", build("llama", "int8", "cuda")),
    ("int8", build("llama", "int8", "webgpu")),
    # the graph
    ("fp32", build("llama", "fp32", "cpu", "include_hidden_states=true")),
    ("fp32", build("llama", "fp32", "cpu", "aux_hidden_state_layers=1")),
    ("fp32", build("llama", "fp32", "cpu", "num_hidden_layers=1")),
    ("fp32", build("llama", "fp32", "cpu", "filename=other.onnx")),
    ("fp32", build("llama", "fp32", "cpu", "fuse_qkv=false")),
    ("fp32", build("llama", "fp32", "cpu", "fuse_mlp_gate_up=true")),
    ("fp32", build("llama", "fp32", "cpu", "max_draft_tokens=4")),
    ("fp16", build("llama", "fp16", "cuda", "enable_cuda_graph=true")),
    ("fp16", build("llama", "fp16", "dml", "enable_dml_graph=false")),
    ("int4", build("llama", "int4", "webgpu", "enable_webgpu_graph=true")),
    ("int4", build("llama", "int4", "webgpu", "use_webgpu_fp32=true")),
    ("int4", build("llama", "int4", "cuda", "enable_cuda_fpa_intb_gemm=true")),
    ("fp16", build("qwen3", "fp16", "cuda", "fuse_qk_norm_gqa=false")),
    # the quantization
    *(("int4", build(*INT4, f"block_size={size}", **WIDE)) for size in (16, 64, 128)),
    *(("int8", build("llama", "int8", "cpu", f"block_size={size}", **WIDE)) for size in (16, 128)),
    *(("int4", build(*INT4, f"accuracy_level={level}")) for level in (1, 2, 3)),
    ("int4", build(*INT4, "is_symmetric=false")),
    ("int8", build("llama", "int8", "cpu", "is_symmetric=false")),
    *(
        ("int4", build(*INT4, f"algo_config={name}", **WIDE))
        for name in ("rtn", "k_quant", "rtn_last", "k_quant_last", "k_quant_mixed")
    ),
    ("int4", build(*INT4, "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8", **WIDE)),
    ("int4", build(*INT4, "op_types_to_quantize=MatMul/Gather")),
    ("int4", build(*INT4, "nodes_to_exclude=/lm_head/MatMul")),
    ("int4", build(*INT4, "use_qdq=true")),
    ("int4", build(*INT4, "use_qdq=true", "block_size=128", **WIDE)),
    # architectures
    ("fp32", build("qwen2", "fp32", "cpu", "shared_embeddings=true")),
    ("int4", build("qwen2", "int4", "cpu", "shared_embeddings=true")),
    ("int8", build("qwen2", "int8", "cpu", "shared_embeddings=false")),
    ("fp32", build("qwen3", "fp32", "cpu")),
    ("int4", build("gemma", "int4", "cpu")),
    ("fp32", build("llama31", "fp32", "cpu")),
    ("fp32", build("llama_bias", "fp32", "cpu")),
    *(("fp32", build(name, "fp32", "cpu")) for name in WINDOWS),
    *(("int4", build(name, "int4", "cpu")) for name in WINDOWS),
    *(("fp32", build(name, "fp32", "cpu", "windowed_kv_cache=false")) for name in WINDOWS),
]


@pytest.mark.parametrize(("weights", "what"), RUN, ids=str)
def test_a_folder_that_runs_gives_genai_s_text(
    built: Builder, weights: str, what: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built(what)
    assert main(["info", str(folder)]) == 0
    assert f"weights       {weights}\n" in capsys.readouterr().out
    # One row at a time and with ONNX Runtime's operators, as genai runs it: kernels for more rows
    # round otherwise, and exact mode uses those.
    same = pard_rt.OnnxModel(folder, threads=1, exact=False, own_attention=False, own_matmul=False)
    for ours, prompt in zip(decode(same, chunk=512), PROMPTS, strict=True):
        theirs = genai_greedy(folder, prompt)
        assert theirs == ours[: len(theirs)]
        assert len(theirs) > NUM_NEW - 4 or ours[len(theirs)] in same.contract.eos_token_ids


@pytest.mark.parametrize("what", [what for _, what in RUN], ids=str)
def test_speculation_gives_the_text_of_plain_decoding(built: Builder, what: Build) -> None:
    folder = built(what)
    target, draft = pard_rt.OnnxModel(folder, threads=1), open_draft(folder)
    plain = decode(target)
    for k in (1, 4, 8):
        assert decode(target, draft, k) == plain


@pytest.mark.parametrize("what", [what for _, what in RUN], ids=str)
def test_folders_of_both_programs_draft_for_each_other(
    built: Builder, tiny_models: TinyModels, what: Build
) -> None:
    folder, own = built(what), tiny_models.folder("llama", "gqa", seed=SEED)
    target, own_target = (pard_rt.OnnxModel(path, threads=1) for path in (folder, own))
    assert decode(target, open_draft(own), 4) == decode(target)
    assert decode(own_target, open_draft(folder), 4) == decode(own_target)


FULL = "the model stays the same"
REFUSED = [
    (build("llama", "fp32", "cpu", "exclude_embeds=true"), "exclude_embeds=true", FULL),
    (build("llama", "fp32", "cpu", "exclude_lm_head=true"), "exclude_lm_head=true", FULL),
    (build("llama", "fp32", "cpu", "prune_lm_head=true"), "prune_lm_head=true", FULL),
    (build("llama", "fp32", "cpu", "config_only=true"), "config_only=true", "without config_only"),
    (build("llama", "fp16", "cuda", "use_paged_attention=true"), "use_paged_attention=true", FULL),
    (build("llama", "bf16", "cuda"), "precision bf16", "--precision fp32"),
    (build("llama", "int4", "cuda", "use_cuda_bf16=true"), "use_cuda_bf16", "--precision fp32"),
    (build("llama", "fp16", "cpu"), "GroupQueryAttention", "--precision fp32"),
    (build("llama", "fp32", "cuda"), "GroupQueryAttention", "--execution_provider cpu"),
    (build("llama", "fp32", "dml"), "GroupQueryAttention", "--execution_provider cpu"),
]


@pytest.mark.parametrize(("what", "option", "remedy"), REFUSED, ids=str)
def test_what_cannot_run_is_refused_by_the_builder_s_option(
    built: Builder,
    what: Build,
    option: str,
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = built(what)
    assert main(["info", str(folder)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert option in shown
    assert remedy in shown
    for is_target in (True, False):
        with pytest.raises(pard_rt.FolderError) as refusal:
            pard_rt.OnnxModel(folder, threads=1, is_target=is_target)
        assert option in str(refusal.value)
        assert remedy in refusal.value.remedy


ONE_PROVIDER = [
    (build("qwen3", "fp16", "cuda"), "cpu", "fuse_qk_norm_gqa=true"),
    (
        build("llama", "int4", "cuda", "matmulnbits_weights_prepacked=1", **WIDE),
        "cpu",
        "matmulnbits_weights_prepacked",
    ),
    (build("gemma2", "fp16", "cuda"), "cuda", "windowed_kv_cache=true"),
]


@pytest.mark.parametrize(("what", "provider", "option"), ONE_PROVIDER, ids=str)
def test_what_one_provider_cannot_run_is_refused_there(
    built: Builder, what: Build, provider: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built(what)
    assert main(["info", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{provider} cannot run it" in shown
    assert option in shown
    with pytest.raises(pard_rt.FolderError, match=option):
        pard_rt.read_folder(folder).check_provider(provider)
    if provider == "cpu":
        with pytest.raises(pard_rt.FolderError, match=option):
            pard_rt.OnnxModel(folder, threads=1)


def edited(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of a folder with other entries in genai_config.json; dots lead into objects."""
    shutil.copytree(folder, copy)
    file = copy / "genai_config.json"
    config = json.loads(file.read_text())
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[key] = value
    file.write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model.decoder.pipeline", [{"embeddings": {"filename": "embeddings.onnx"}}]),
        ("model.vision", {"filename": "vision.onnx"}),
        ("model.embedding", {"filename": "embedding.onnx"}),
        ("model.encoder", {"filename": "encoder.onnx"}),
        ("model.decoder.sliding_window", {"window_size": 16, "slide_inputs": False}),
        ("model.decoder.sliding_window", {"window_size": 16, "slide_key_value_cache": False}),
    ],
)
def test_layouts_of_other_devices_are_refused_by_name(
    built: Builder, tmp_path: Path, entry: str, value: object
) -> None:
    folder = edited(built(build("llama", "fp32", "cpu")), tmp_path / "f", **{entry: value})
    with pytest.raises(pard_rt.FolderError, match=entry):
        pard_rt.read_folder(folder)
    assert main(["info", str(folder)]) == 2


def test_windows_may_be_longer_than_the_texts(built: Builder, tmp_path: Path) -> None:
    """A cache that may drop rows must hold a window, even where no text is that long."""
    folder = built(build("qwen2_window", "fp32", "cpu"))
    plain = decode(pard_rt.OnnxModel(folder, threads=1))
    wide = tmp_path / "wide"
    shutil.copytree(folder, wide)
    graph = onnx.load(wide / "model.onnx")
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size" and attribute.i > 0:
                attribute.i = 1000
    onnx.save(graph, wide / "model.onnx")
    model = pard_rt.OnnxModel(wide, threads=1)
    text = decode(model)
    assert text != plain
    assert decode(model, open_draft(wide), 4) == text


def test_end_tokens_may_be_a_list_and_weights_may_lie_in_several_files(
    built: Builder, tmp_path: Path
) -> None:
    folder = edited(
        built(build("llama", "fp32", "cpu")),
        tmp_path / "f",
        **{"model.eos_token_id": [7, 9], "search.max_length": 4, "search.top_k": 1},
    )
    expected = decode(pard_rt.OnnxModel(folder, threads=1))
    graph = onnx.load(folder / "model.onnx")
    for file in folder.glob("model.onnx*"):
        file.unlink()
    onnx.save(
        graph,
        folder / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=64,
    )
    assert sum(1 for _ in folder.iterdir()) > 20
    model = pard_rt.OnnxModel(folder, threads=1)
    assert model.contract.eos_token_ids == [7, 9]
    assert decode(model) == expected
    next(file for file in folder.iterdir() if "MatMul" in file.name).unlink()
    with pytest.raises(pard_rt.FolderError, match="MatMul"):
        pard_rt.read_folder(folder)
