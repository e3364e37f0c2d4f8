"""TorchModel: same logits and tokens as transformers, whatever the batch and the rollbacks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from pard_rt.errors import InvalidArgumentError, ModelError
from pard_rt.models.checkpoint import LoadedModel, load
from pard_rt.pytorch.probe import attention_implementation
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import ARCHITECTURES, VOCAB_SIZE, make_model


@dataclass
class Item:
    sequence: int
    past_length: int
    tokens: list[int] = field(default_factory=list)
    num_rows: int = 0


@pytest.fixture(params=sorted(ARCHITECTURES))
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load(make_model(tmp_path / "model", request.param))


def random_tokens(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE, (count,), generator=generator).tolist()


def eager_logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    with attention_implementation(loaded.module, "eager"), torch.inference_mode():
        return loaded.module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def assert_close(actual: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_ragged_batch_equals_each_sequence_alone(loaded: LoadedModel) -> None:
    model = TorchModel(loaded)
    lengths = (21, 5, 13)
    texts = [random_tokens(length, seed) for seed, length in enumerate(lengths)]
    splits = (9, 2, 12)
    first = [Item(i, 0, text[:n], 1) for i, (text, n) in enumerate(zip(texts, splits, strict=True))]
    assert_close(
        model.forward(first),
        torch.stack(
            [eager_logits(loaded, text)[n - 1] for text, n in zip(texts, splits, strict=True)]
        ),
    )
    second = [
        Item(i, n, text[n:], len(text) - n)
        for i, (text, n) in enumerate(zip(texts, splits, strict=True))
    ]
    assert_close(
        model.forward(second),
        torch.cat([eager_logits(loaded, text)[n:] for text, n in zip(texts, splits, strict=True)]),
    )


def test_rolled_back_rows_leave_no_trace(loaded: LoadedModel) -> None:
    model = TorchModel(loaded)
    text = random_tokens(20)
    model.forward([Item(7, 0, text[:10])])
    model.forward([Item(7, 10, random_tokens(8, seed=9), 8)])
    assert_close(model.forward([Item(7, 10, text[10:], 10)]), eager_logits(loaded, text)[10:])


def test_greedy_decoding_equals_generate(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3")
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = random_tokens(6)
    expected = reference.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None
    )[0].tolist()
    model = TorchModel(load(folder))
    text, past = list(prompt), 0
    while len(text) < len(expected):
        logits = model.forward([Item(0, past, text[past:], 1)])
        assert logits is not None
        past = len(text)
        text.append(int(logits[-1].argmax()))
    assert text == expected


def test_no_rows_asked_for_gives_none_but_fills_the_cache(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"))
    model = TorchModel(loaded)
    text = random_tokens(12)
    assert model.forward([Item(0, 0, text[:11])]) is None
    assert model.forward([]) is None
    assert_close(model.forward([Item(0, 11, text[11:], 1)]), eager_logits(loaded, text)[-1:])


def test_release_forgets_a_sequence(tmp_path: Path) -> None:
    model = TorchModel(load(make_model(tmp_path / "model")))
    model.forward([Item(0, 0, [1, 2, 3], 1)])
    model.release(0)
    model.release(99)
    assert_close(model.forward([Item(0, 0, [1, 2], 2)]), model.forward([Item(1, 0, [1, 2], 2)]))


def test_info_tells_padded_from_known_tokens(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model", mask_token=True))
    info = TorchModel(loaded).info()
    assert (info.vocab_size, info.num_tokens) == (loaded.facts.vocab_size, loaded.facts.num_tokens)
    assert info.num_tokens < info.vocab_size
    assert info.max_length == 128
    assert info.token_bytes is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_give_rows_of_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = TorchModel(load(make_model(tmp_path / "model"), dtype=dtype))
    logits = model.forward([Item(0, 0, random_tokens(5), 2)])
    assert logits is not None
    assert logits.dtype == dtype
    assert logits.shape == (2, VOCAB_SIZE)


def test_too_long_or_unknown_tokens_are_refused(tmp_path: Path) -> None:
    model = TorchModel(load(make_model(tmp_path / "model"), max_length=None))
    with pytest.raises(InvalidArgumentError, match="128"):
        model.forward([Item(0, 120, [1] * 9, 1)])
    with pytest.raises(InvalidArgumentError, match="outside the embedding"):
        model.forward([Item(0, 0, [VOCAB_SIZE], 1)])


def test_modules_sharing_a_configuration_do_not_disturb_each_other(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"))
    other = type(loaded.module)(loaded.config).eval()
    before = loaded.config._attn_implementation
    TorchModel(loaded)
    assert other.config._attn_implementation == before
    other(input_ids=torch.tensor([[1, 2, 3]]))


def _gemma2(**changes: object) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        initializer_range=0.3,
        max_position_embeddings=128,
        **changes,
    )
    return Gemma2ForCausalLM(config).eval()


def test_soft_caps_and_alternating_windows_are_honoured(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    loaded = load(folder)
    loaded = LoadedModel(_gemma2(), loaded.config, None, loaded.facts)
    model = TorchModel(loaded)
    assert model.layout.sliding_windows == (8, None)
    text = random_tokens(24)
    model.forward([Item(0, 0, text[:20])])
    assert_close(model.forward([Item(0, 20, text[20:], 4)]), eager_logits(loaded, text)[20:])


def test_layers_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model"))
    loaded.module.config = copy.deepcopy(loaded.module.config)
    loaded.module.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ModelError, match="chunked_attention"):
        TorchModel(loaded)


def test_rotary_embedding_that_moves_with_length_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    rope["original_max_position_embeddings"] = 64
    folder = make_model(tmp_path / "model", rope_parameters=rope)
    with pytest.raises(ModelError, match="max_length=64"):
        TorchModel(load(folder))
    TorchModel(load(folder, max_length=64))
