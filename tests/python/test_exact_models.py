"""Real decoders, through ONNX Runtime and PyTorch: the ids transformers generates, and its caches.

Every architecture runs as an ONNX folder of either form and as a TorchModel, with drafts of which
nothing, something and almost everything holds, at every K, in batches whose sequences join late.
Ids are compared for equality. That is fair only where no two tokens are as good as tied, for
kernels round differently for one row and for several: `assert_no_near_tie` shows that none are.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from transformers import AutoModelForCausalLM, DynamicCache

import pard_rt
from conftest import TinyModels
from pard_rt import code_objects, reference
from pard_rt._core import KernelSet
from pard_rt.models.checkpoint import load
from pard_rt.models.onnx_folder import _choose_on_device
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import ARCHITECTURES, EOS, MASK_TOKEN_ID, NUM_TOKENS, PAD

BACKENDS = ("gqa", "portable", "torch")

# "static": portable with static shapes. "device": keys and values as in a device's memory.
VARIANTS = [
    ("llama", "static"),
    ("mistral_window", "static"),
    ("llama", "portable, device"),
    ("mistral_window", "static, device"),
    ("qwen2", "gqa, device"),
    ("llama", "static, device, chosen there"),
    ("qwen2", "gqa, device, chosen there"),
]
PROPOSALS = (1, 4, 8)
GREEDY = pard_rt.SamplingParams()

# Of the models' weights: one with which `assert_no_near_tie` holds for all of them.
SEED = 6

# Shares of a row's largest logit, and of a cache's largest key or value. float32 kernels were seen
# to differ by 1e-6 of either; quantized graphs of the gqa form in exact mode by nothing at all.
NEAR_TIE = 1e-4
KERNEL_TOLERANCE = 1e-5

# The caches' own test asks for a sequence of this id; decoders count theirs from 0.
FRESH = 1 << 40


@dataclass(frozen=True)
class Request:
    """A prompt, and the round before which it joins."""

    length: int
    joins: int
    max_new_tokens: int = 18

    @property
    def prompt(self) -> list[int]:
        random = np.random.default_rng(self.length)
        return [int(token) for token in random.integers(NUM_TOKENS, size=self.length)]


# The last one ends where the model's 128 positions do.
REQUESTS = (Request(6, 0), Request(1, 0), Request(37, 1), Request(17, 4), Request(113, 6))


def decode(
    target: pard_rt.Model,
    drafter: pard_rt.Drafter | None,
    k: int,
    requests: Sequence[Request] = REQUESTS,
    sampling: pard_rt.SamplingParams = GREEDY,
) -> tuple[list[list[int]], pard_rt.RoundCounts]:
    """Decode requests together: at most three at a time, prompts in chunks."""
    decoder = pard_rt.Decoder(
        target, drafter, num_speculative_tokens=k, max_batch_size=3, prefill_chunk=16
    )
    sequences: list[pard_rt.Sequence] = []
    waiting = sorted(requests, key=lambda request: request.joins)
    more, round_number = True, 0
    while more or waiting:
        while waiting and waiting[0].joins <= round_number:
            request = waiting.pop(0)
            sequences.append(
                decoder.add(
                    request.prompt, max_new_tokens=request.max_new_tokens, sampling=sampling
                )
            )
        more = decoder.step()
        round_number += 1
    return [sequence.generated.tolist() for sequence in sequences], decoder.counts


@torch.inference_mode()
def transformers_rows(module: Any, tokens: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] of a whole text, without any cache."""
    return module(input_ids=torch.as_tensor(tokens)[None], use_cache=False).logits[0].clone()


def transformers_greedy(module: Any, request: Request) -> list[int]:
    prompt = torch.tensor([request.prompt])
    text = module.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),  # a pad token in a prompt is a token like others
        max_new_tokens=min(request.max_new_tokens, 128 - request.length),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return [int(token) for token in text[0, request.length :]]


def assert_no_near_tie(
    rows: torch.Tensor, prompt: list[int], generated: list[int], sampling: pard_rt.SamplingParams
) -> None:
    """Every token generated would still be chosen, were its logit lower by NEAR_TIE."""
    for position, token in enumerate(generated, start=len(prompt)):
        row = rows[position - 1].clone()
        row[token] -= NEAR_TIE * row.abs().max()
        chosen = pard_rt.choose(row, sampling, position)
        assert chosen == token, "a near tie: give this model or prompt another seed"


@dataclass(frozen=True)
class Subject:
    """One architecture on one backend."""

    target: pard_rt.Model
    twin: pard_rt.Model  # the same weights, other caches
    stranger: pard_rt.Model  # a parallel draft that knows nothing of the target
    module: Any  # transformers' own

    def drafter(self, kind: str) -> pard_rt.Drafter:
        if kind == "stranger":
            return pard_rt.ParallelDrafter(self.stranger, MASK_TOKEN_ID, prefill_chunk=8)
        if kind == "masked twin":
            return pard_rt.ParallelDrafter(self.twin, MASK_TOKEN_ID, prefill_chunk=8)
        return pard_rt.AutoregressiveDrafter(self.twin, prefill_chunk=8)


def open_model(
    models: TinyModels, backend: str, architecture: str, **options: Any
) -> pard_rt.Model:
    if backend == "torch":
        return TorchModel(load(models.checkpoint(architecture, **options)))
    form = "gqa" if "gqa" in backend else "portable"
    folder = models.folder(architecture, form, **options)
    static, device = "static" in backend, "device" in backend
    model = pard_rt.OnnxModel(folder, threads=1, static_shapes=static, device_memory=device)
    if "chosen there" in backend:
        model.choose_on_device()
        model.probe()
    return model


# Tracing the portable form is slow: one layer, but for one architecture.
def options_of(backend: str, architecture: str) -> dict[str, Any]:
    single = backend.startswith(("portable", "static")) and architecture != "llama"
    return {"seed": SEED, "num_hidden_layers": 1 if single else 2}


@pytest.fixture(
    scope="module",
    params=[(a, b) for a in ARCHITECTURES for b in BACKENDS] + VARIANTS,
    ids=lambda param: "-".join(param),
)
def subject(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Subject:
    architecture, backend = request.param
    options = options_of(backend, architecture)
    opened = partial(open_model, tiny_models, backend, architecture, **options)
    checkpoint = tiny_models.checkpoint(architecture, **options)
    return Subject(
        target=opened(),
        twin=opened(),
        stranger=open_model(
            tiny_models,
            "torch" if backend == "torch" else "gqa",
            "llama",
            seed=1,
            mask_token=True,
            num_hidden_layers=1,
        ),
        module=AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
    )


@pytest.fixture(scope="module")
def greedy(subject: Subject) -> list[list[int]]:
    """What transformers generates, none of it by a hair's breadth."""
    texts = []
    for request in REQUESTS:
        text = transformers_greedy(subject.module, request)
        rows = transformers_rows(subject.module, request.prompt + text)
        assert_no_near_tie(rows, request.prompt, text, GREEDY)
        texts.append(text[: subject.target.info().max_length - request.length])
    room = subject.target.info().max_length - REQUESTS[-1].length  # padding may take a position
    assert [len(text) for text in texts] == [18, 18, 18, 18, room]
    assert 14 <= room <= 15
    assert all(len(set(text)) > 4 for text in texts)  # a loop of one token would prove little
    return texts


@pytest.mark.parametrize("kind", ["stranger", "masked twin", "autoregressive twin"])
def test_batches_give_what_transformers_generates(
    subject: Subject, greedy: list[list[int]], kind: str
) -> None:
    # Choices come from all rows of the embedding, proposals from the tokens a tokenizer knows only.
    unknown = sum(token >= NUM_TOKENS for text in greedy for token in text)
    for k in PROPOSALS:
        texts, counts = decode(subject.target, subject.drafter(kind), k)
        assert texts == greedy
        if kind == "masked twin":  # the row of a round's first proposal has seen no mask
            assert counts.accepted_at[0] >= counts.drafted_at[0] - unknown
        elif kind == "autoregressive twin":
            assert counts.accepted >= counts.drafted - k * unknown


def test_plain_decoding_gives_what_transformers_generates(
    subject: Subject, greedy: list[list[int]]
) -> None:
    assert decode(subject.target, None, 0)[0] == greedy


def test_rounds_are_the_oracle_s(subject: Subject, greedy: list[list[int]]) -> None:
    request, expected = REQUESTS[0], greedy[0]
    target = partial(transformers_rows, subject.module)
    for k in PROPOSALS:
        # The prefill's own token comes before the first draft, so the oracle starts behind it.
        rest, rounds = reference.generate(
            target,
            lambda tokens: target(tokens)[:, :NUM_TOKENS],
            [*request.prompt, expected[0]],
            mask_token_id=MASK_TOKEN_ID,
            k=k,
            max_new_tokens=request.max_new_tokens - 1,
        )
        texts, counts = decode(subject.target, subject.drafter("masked twin"), k, [request])
        assert texts == [[expected[0], *rest]] == [expected]
        assert counts.rounds == 1 + len(rounds)


def test_sampled_text_depends_on_the_seed_alone(subject: Subject) -> None:
    sampling = pard_rt.SamplingParams(temperature=0.8, seed=5)
    expected, _ = decode(subject.target, None, 0, sampling=sampling)
    for request, text in zip(REQUESTS, expected, strict=True):
        rows = transformers_rows(subject.module, request.prompt + text)
        assert_no_near_tie(rows, request.prompt, text, sampling)
        assert decode(subject.target, None, 0, [request], sampling)[0] == [text]
    for k in PROPOSALS:
        for kind in ("masked twin", "autoregressive twin"):
            texts, _ = decode(subject.target, subject.drafter(kind), k, sampling=sampling)
            assert texts == expected
        alone = [
            decode(subject.target, subject.drafter("masked twin"), k, [request], sampling)[0][0]
            for request in REQUESTS[:2]
        ]
        assert alone == expected[:2]


Rows = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]  # (layer, length): keys, values


def cached_rows(model: Any, sequence: int) -> Rows:
    def rows(layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = model.cached_rows(sequence, layer, length)
        return torch.as_tensor(keys), torch.as_tensor(values)

    return rows


@torch.inference_mode()
def transformers_prefill(module: Any, tokens: NDArray[np.int32]) -> Rows:
    """The cache transformers fills with a whole text, [1, heads, n, head size] by layer."""
    cache = DynamicCache()
    parameters = inspect.signature(module.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
    module(input_ids=torch.from_numpy(tokens).long()[None], **{name: cache}, use_cache=True)
    return lambda layer, length: (
        cache.layers[layer].keys[0, :, :length].transpose(0, 1),
        cache.layers[layer].values[0, :, :length].transpose(0, 1),
    )


def own_prefill(model: Any, tokens: NDArray[np.int32]) -> Rows:
    model.release(FRESH)
    item = {"sequence": FRESH, "past_length": 0, "tokens": tokens.tolist(), "num_rows": 0}
    model.forward([pard_rt.ForwardItem(**item)])
    return cached_rows(model, FRESH)


def assert_same_rows(actual: Rows, fresh: Rows, layers: int, length: int, tolerance: float) -> None:
    for layer in range(layers):
        for ours, theirs in zip(actual(layer, length), fresh(layer, length), strict=True):
            assert ours.shape == theirs.shape
            error = (ours - theirs).abs().max() / theirs.abs().max()
            assert error <= tolerance, f"layer {layer}, {length} rows"


@dataclass
class Watched:
    """A sequence of the caches' test, and what is known of its draft's cache from outside."""

    sequence: pard_rt.Sequence
    length: int = 0  # committed tokens before the last round
    drafted: int = 0  # before the last round
    accepted: int = 0
    draft_cached: int = 0

    def see_round(self, kind: str) -> None:
        """Follow the table of lengths in docs/architecture.md."""
        counts = self.sequence.counts
        drafted, accepted = counts.drafted - self.drafted, counts.accepted - self.accepted
        if drafted:
            run_and_accepted = 0 if kind == "masked twin" else min(accepted, drafted - 1)
            self.draft_cached = self.length + run_and_accepted
        self.length = len(self.sequence.tokens)
        self.drafted, self.accepted = counts.drafted, counts.accepted


def decode_watching_caches(
    target: Any,
    draft: Any,
    kind: str,
    fresh_prefill: Callable[[NDArray[np.int32]], Rows],
    layers: int,
    tolerance: float,
) -> None:
    """Rounds of random K with random joins; after each, both caches against a fresh prefill."""
    random = np.random.default_rng(layers)
    if kind == "masked twin":
        drafter: pard_rt.Drafter = pard_rt.ParallelDrafter(draft, MASK_TOKEN_ID, prefill_chunk=8)
    else:
        drafter = pard_rt.AutoregressiveDrafter(draft, prefill_chunk=8)
    decoder = pard_rt.Decoder(target, drafter, max_batch_size=3, prefill_chunk=16)
    waiting = list(REQUESTS)
    watched: list[Watched] = []
    compared = 0
    more = True
    while more or waiting:
        if waiting and random.random() < 0.5:
            request = waiting.pop(0)
            sampling = pard_rt.SamplingParams(temperature=0.8, seed=request.length)
            watched.append(
                Watched(decoder.add(request.prompt, max_new_tokens=16, sampling=sampling))
            )
        decoder.num_speculative_tokens = int(random.choice([0, 1, 2, 4, 8]))
        more = decoder.step()
        for each in watched:
            each.see_round(kind)
            sequence = each.sequence
            if sequence.finished or len(sequence.generated) == 0:
                continue
            fresh = fresh_prefill(sequence.tokens)
            rows = cached_rows(target, sequence.id)
            assert_same_rows(rows, fresh, layers, len(sequence.tokens) - 1, tolerance)
            if each.draft_cached:
                rows = cached_rows(draft, sequence.id)
                assert_same_rows(rows, fresh, layers, each.draft_cached, tolerance)
                compared += 1
    assert compared > 10


@pytest.mark.parametrize("kind", ["masked twin", "autoregressive twin"])
def test_caches_equal_a_fresh_prefill_of_transformers(subject: Subject, kind: str) -> None:
    decode_watching_caches(
        subject.target,
        subject.twin,
        kind,
        partial(transformers_prefill, subject.module),
        subject.module.config.num_hidden_layers,
        KERNEL_TOLERANCE,
    )


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2", "gqa", "int8"),
        ("llama31", "gqa", "int4"),
        ("qwen2", "portable", "int8"),
        ("llama31", "portable", "int4"),
    ],
    ids=lambda param: "-".join(param),
)
def quantized_folder(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Path:
    architecture, form, weights = request.param
    return tiny_models.folder(architecture, form, weights, seed=SEED, num_hidden_layers=2)


@pytest.mark.parametrize("sampling", [GREEDY, pard_rt.SamplingParams(temperature=0.8, seed=5)])
def test_quantized_graphs_give_their_own_plain_text(
    quantized_folder: Path, sampling: pard_rt.SamplingParams
) -> None:
    target = pard_rt.OnnxModel(quantized_folder, threads=1)
    draft = pard_rt.OnnxModel(quantized_folder, threads=1, is_target=False)
    assert target.exact == (target.contract.form == "gqa")
    expected, _ = decode(target, None, 0, sampling=sampling)
    for request, text in zip(REQUESTS, expected, strict=True):
        assert decode(target, None, 0, [request], sampling)[0] == [text]
    for k in PROPOSALS:
        for drafter in (
            pard_rt.ParallelDrafter(draft, MASK_TOKEN_ID),
            pard_rt.AutoregressiveDrafter(draft),
        ):
            texts, counts = decode(target, drafter, k, sampling=sampling)
            assert texts == expected
            assert counts.accepted > 0


@pytest.fixture(
    scope="module", params=[(4, 64), (4, 128), (8, 128)], ids=["4x64", "4x128", "8x128"]
)
def wide_blocks(
    request: pytest.FixtureRequest,
    tiny_models: TinyModels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in blocks for which ONNX Runtime's kernels compute odd last rows by themselves."""
    bits, block_size = request.param
    folder = tiny_models.folder("llama", "gqa", seed=SEED, num_hidden_layers=2)
    out = tmp_path_factory.mktemp("wide") / f"int{bits}"
    shutil.copytree(folder, out)
    config = DefaultWeightOnlyQuantConfig(block_size=block_size, accuracy_level=4, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(folder / "model.onnx"), algo_config=config)
    quantizer.process()
    for file in out.glob("model.onnx*"):
        file.unlink()
    quantizer.model.save_model_to_file(str(out / "model.onnx"))
    contract = json.loads((out / "pard_rt.json").read_text())
    (out / "pard_rt.json").write_text(json.dumps(contract | {"weights": f"int{bits}"}))
    return out


@pytest.mark.parametrize("own", [True, False], ids=["own", "onnxruntime"])
def test_80_texts_in_blocks_of_any_size_are_plain_decoding_s(wide_blocks: Path, own: bool) -> None:
    target, draft = (pard_rt.OnnxModel(wide_blocks, threads=1, own_matmul=own) for _ in range(2))
    assert (target.exact, target.own_matmul) == (True, own)
    if own:
        assert not any(target.padding(rows) for rows in range(1, 34))
    requests = [Request(1 + i % 23, i // 4, max_new_tokens=24) for i in range(80)]
    expected, _ = decode(target, None, 0, requests)
    for k in (8, 1, 2, 3, 6, 16):
        texts, counts = decode(target, pard_rt.AutoregressiveDrafter(draft), k, requests)
        different = [
            i
            for i, pair in enumerate(zip(texts, expected, strict=True))
            if len(set(map(tuple, pair))) > 1
        ]
        assert different == []
        assert counts.accepted > 0.4 * counts.drafted


def crooked_folder(tiny_models: TinyModels, folder: Path, nodes: list[onnx.NodeProto]) -> Path:
    """A folder whose graph adds `offset`, [rows, 1], to its logits; `nodes` make that of `rows`."""
    shutil.copytree(tiny_models.folder("llama", "gqa", seed=SEED, num_hidden_layers=2), folder)
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    (producer,) = (node for node in graph.node if "logits" in node.output)
    producer.output[list(producer.output).index("logits")] = "straight"
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "forty": np.int64(40),
        "column": np.array([-1, 1]),
        "small": np.float32(1e-6),
    }
    graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    graph.node.extend(
        [
            *nodes,
            helper.make_node("Cast", ["number"], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "small"], ["scaled"]),
            helper.make_node("Reshape", ["scaled", "column"], ["offset"]),
            helper.make_node("Add", ["straight", "offset"], ["logits"]),
        ]
    )
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    return folder


def test_rows_that_no_padding_makes_alike_are_told_at_opening(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    by_place = [
        helper.make_node("Shape", ["straight"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["number"]),
    ]
    folder = crooked_folder(tiny_models, tmp_path / "by_place", by_place)
    with pytest.warns(pard_rt.FallbackWarning, match="Decoding is not exact") as warned:
        target = pard_rt.OnnxModel(folder, threads=1)
    assert [each.filename for each in warned] == [__file__]
    assert not target.exact
    assert [target.padding(rows) for rows in (1, 9)] == [0, 0]
    assert not pard_rt.OnnxModel(folder, threads=1, exact=False).exact
    assert not pard_rt.OnnxModel(folder, threads=1, is_target=False).exact


def test_long_forwards_are_cut_where_their_rows_are_not_those_of_short_ones(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    by_length = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["rows"]),
        helper.make_node("Greater", ["rows", "forty"], ["number"]),
    ]
    folder = crooked_folder(tiny_models, tmp_path / "by_length", by_length)
    tokens = Request(100, 0).prompt

    def last_rows(target: pard_rt.OnnxModel, chunk: int, num_rows: int) -> list[list[float]]:
        for start in range(0, 100, chunk):
            part = tokens[start : start + chunk]
            rows = target.forward(
                [pard_rt.ForwardItem(sequence=1, past_length=start, tokens=part, num_rows=num_rows)]
            )
        return rows.tolist()  # type: ignore[union-attr]

    for num_rows in (1, 10):
        target, loose = (pard_rt.OnnxModel(folder, threads=1, exact=e) for e in (True, False))
        assert target.exact
        assert last_rows(target, 100, num_rows) == last_rows(target, 10, num_rows)
        assert last_rows(loose, 100, num_rows) != last_rows(loose, 10, num_rows)


@pytest.mark.parametrize("kind", ["masked twin", "autoregressive twin"])
def test_quantized_caches_equal_a_fresh_prefill(quantized_folder: Path, kind: str) -> None:
    target, draft, other = (pard_rt.OnnxModel(quantized_folder, threads=1) for _ in range(3))
    layers = target.contract.num_layers
    # bit for bit where attention rounds alike however a sequence is cut
    tolerance = 0.0 if target.contract.form == "gqa" else KERNEL_TOLERANCE
    decode_watching_caches(target, draft, kind, partial(own_prefill, other), layers, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_cached_cannot_be_read(backend: str, tiny_models: TinyModels) -> None:
    model: Any = open_model(tiny_models, backend, "llama", **options_of(backend, "llama"))
    item = pard_rt.ForwardItem(sequence=1, past_length=0, tokens=[1, 2, 3], num_rows=0)
    model.forward([item])
    keys, values = model.cached_rows(1, 1, 3)
    assert keys.shape == values.shape == (3, 2, 16)
    for sequence, layer, length in ((1, 2, 3), (1, -1, 3), (2, 0, 1), (1, 0, 129), (1, 0, -1)):
        with pytest.raises(pard_rt.InvalidArgumentError, match="no such cached rows"):
            model.cached_rows(sequence, layer, length)
    model.release(1)
    with pytest.raises(pard_rt.InvalidArgumentError, match="no such cached rows"):
        model.cached_rows(1, 0, 1)


@pytest.fixture(scope="module", params=["fp32", "int4"])
def builder_folder(
    request: pytest.FixtureRequest,
    tiny_models: TinyModels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What onnxruntime-genai's model builder makes of the tiny Llama, unchanged."""
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    out = tmp_path_factory.mktemp("builder")
    checkpoint = tiny_models.checkpoint("llama", **options_of("gqa", "llama"))
    arguments = ("", str(checkpoint), str(out / "model"), request.param, "cpu", str(out / "cache"))
    builder.create_model(*arguments, **builder.parse_extra_options(*arguments, []))
    return out / "model"


def genai_greedy(folder: Path, request: Request) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    length = min(request.length + request.max_new_tokens, 128)
    params.set_search_options(max_length=length, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(request.prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[request.length :]]


def test_folders_of_genai_s_builder_give_what_genai_generates(builder_folder: Path) -> None:
    target, draft = (pard_rt.OnnxModel(builder_folder, threads=1) for _ in range(2))
    assert target.contract.from_builder
    expected, _ = decode(target, None, 0)
    assert target.exact
    if target.contract.weights != "int4":  # exact mode may pad single rows, genai does not
        for request, text in zip(REQUESTS, expected, strict=True):
            generated = genai_greedy(builder_folder, request)
            assert text[: len(generated)] == generated
            assert len(text) == len(generated) or text[len(generated)] == EOS  # which genai omits
    for k in PROPOSALS:
        texts, counts = decode(target, pard_rt.AutoregressiveDrafter(draft), k)
        assert texts == expected
        assert counts.accepted > 0.5 * counts.drafted


class OnACard:
    """A model on a card that has no driver, or one that chooses otherwise."""

    provider = "cuda"

    def __init__(self, error: pard_rt.Error) -> None:
        self.error = error

    def choose_on_device(self, code_objects: list[str]) -> None:
        raise self.error


@pytest.mark.parametrize("error", [pard_rt.RuntimeMissingError, pard_rt.ModelError])
def test_without_kernels_the_host_chooses_and_that_is_said(error: type[pard_rt.Error]) -> None:
    model: Any = OnACard(error("It does not work", "a", "b", "Mend it."))
    with pytest.warns(pard_rt.FallbackWarning, match=r"chosen on the host.*Mend it") as warned:
        _choose_on_device(model)
    assert [each.filename for each in warned] == [__file__]


def test_logits_stay_on_a_device_only_where_keys_and_values_do(tiny_models: TinyModels) -> None:
    model = pard_rt.OnnxModel(tiny_models.folder("llama", "gqa"), threads=1)
    with pytest.raises(pard_rt.InvalidArgumentError, match="device_memory = true"):
        model.choose_on_device()


def test_code_objects_of_one_card_come_before_generic_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "generic"
    folder.mkdir()
    for name in ("gfx11-generic.hsaco", "gfx942.hsaco", "sm_90.cubin", "compute_80.ptx",
                 "sm_120.cubin", "sm_80.cubin", "gfx1100.hsaco"):  # fmt: skip
        (folder / name).touch()
    monkeypatch.setattr(code_objects, "_FOLDER", folder)

    def names(driver: code_objects.Driver) -> list[str]:
        return [Path(path).name for path in code_objects.code_objects(driver)]

    assert names("hip") == ["gfx1100.hsaco", "gfx942.hsaco", "gfx11-generic.hsaco"]
    assert names("cuda") == ["sm_120.cubin", "sm_90.cubin", "sm_80.cubin", "compute_80.ptx"]
    assert names("host") == []
    with pytest.raises(pard_rt.InvalidArgumentError, match="host, cuda or hip"):
        KernelSet("rocm")
