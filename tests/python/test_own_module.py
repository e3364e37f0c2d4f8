"""Decoders in plain PyTorch, wrapped: decoded as by hand, or refused by an error that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pard_rt
from own_modules import VOCAB_SIZE, Learned, Rotary, decode_by_hand, seeded
from pard_rt import Generator, InvalidArgumentError, ModelError
from pard_rt.models import OpenOptions, open_model
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.captured_executor import CapturedExecutor, capture
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import EOS, NUM_TOKENS, make_tokenizer

MASK = VOCAB_SIZE - 1
PROMPTS = [[3, 1, 4, 1, 5], [9], list(range(20, 50))]
NEW_TOKENS = 20
GREEDY = pard_rt.SamplingParams()
SAMPLED = pard_rt.SamplingParams(temperature=0.9, top_k=30, top_p=0.95, seed=5)
LIMIT = 64


def rotary(**options: Any) -> LoadedModel:
    return pard_rt.wrap(seeded(Rotary(**options), 1), max_length=LIMIT, name="rotary")


def learned(mask_token_id: int | None = MASK) -> LoadedModel:
    return pard_rt.wrap(seeded(Learned(LIMIT), 2), max_length=LIMIT, mask_token_id=mask_token_id)


def perfect_draft() -> LoadedModel:
    return pard_rt.wrap(seeded(Rotary(), 1), max_length=LIMIT, mask_token_id=MASK)


def by_hand(module: nn.Module, sampling: pard_rt.SamplingParams) -> list[list[int]]:
    return [decode_by_hand(module, prompt, NEW_TOKENS, sampling) for prompt in PROMPTS]


def decoded(decoder: pard_rt.Decoder, sampling: pard_rt.SamplingParams) -> list[list[int]]:
    sequences = [
        decoder.add(prompt, max_new_tokens=NEW_TOKENS, sampling=sampling) for prompt in PROMPTS
    ]
    decoder.run()
    return [sequence.generated.tolist() for sequence in sequences]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [0, 1, 4, 8])
@pytest.mark.parametrize("draft", [learned, perfect_draft])
def test_a_pair_decodes_as_the_target_by_hand(
    draft: Callable[[], LoadedModel], k: int, sampling: pard_rt.SamplingParams
) -> None:
    target = rotary()
    expected = by_hand(target.module, sampling)
    assert len({token for text in expected for token in text}) > 10
    drafter = pard_rt.ParallelDrafter(TorchModel(draft()), MASK)
    composed = pard_rt.Decoder(TorchModel(target), drafter, num_speculative_tokens=k)
    executor = CapturedExecutor(target, draft(), MASK, max_batch_size=2, prefill_chunk=8)
    captured = pard_rt.Decoder(executor, num_speculative_tokens=k, max_batch_size=2)
    for decoder in (composed, captured):
        assert decoded(decoder, sampling) == expected
        assert draft is learned or k == 0 or decoder.counts.accepted > 20


@pytest.mark.parametrize("target", [lambda: learned(None), lambda: rotary(window=6)])
def test_tables_of_positions_and_windows(target: Callable[[], LoadedModel]) -> None:
    model = target()
    expected = by_hand(model.module, GREEDY)
    assert decoded(pard_rt.Decoder(TorchModel(model)), GREEDY) == expected
    assert decoded(pard_rt.Decoder(CapturedExecutor(model, max_batch_size=16)), GREEDY) == expected


def test_a_generator_takes_wrapped_modules() -> None:
    target = rotary()
    expected = by_hand(target.module, GREEDY)
    generator = Generator(target, learned(), num_speculative_tokens=4)
    ways = [
        generator,
        generator.with_method("plain"),
        generator.with_method("draft", target),
        generator.with_method("pard", learned(None), mask_token_id=MASK),
    ]
    for way in ways:
        outputs = way.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
        assert [output.token_ids for output in outputs] == expected
        assert outputs[0].text is None
    with pytest.raises(InvalidArgumentError, match=r"rotary has no tokenizer.*tokenizer=\.\.\."):
        generator.generate("text")
    short = Generator(target, max_length=32)
    assert short.max_length == 32
    output = short.generate(PROMPTS[2], max_new_tokens=NEW_TOKENS)
    assert (output.token_ids, output.finish_reason) == (expected[2][:2], "length")


def test_a_loaded_checkpoint_is_taken_too(tiny_models: Any) -> None:
    checkpoint = tiny_models.checkpoint("llama", seed=3)
    expected = Generator(checkpoint).generate("the rain", max_new_tokens=8)
    loaded = pard_rt.load(checkpoint)
    assert Generator(loaded).generate("the rain", max_new_tokens=8).text == expected.text


@pytest.mark.parametrize("kind", ["transformers", "tokenizers"])
def test_a_tokenizer_gives_texts_ends_and_a_digest(kind: str) -> None:
    module = seeded(Rotary(), 1)
    module.embed = nn.Embedding(NUM_TOKENS, 48)
    module.lm_head = nn.Linear(48, NUM_TOKENS)
    seeded(module, 1)
    tokenizer: Any = make_tokenizer()
    ids = tokenizer("the rain").input_ids
    model = pard_rt.wrap(
        module,
        max_length=LIMIT,
        tokenizer=tokenizer if kind == "transformers" else tokenizer.backend_tokenizer,
    )
    assert model.facts.token_bytes is not None
    assert model.facts.eos_token_ids == ((EOS,) if kind == "transformers" else ())
    output = Generator(model).generate("the rain", max_new_tokens=8, eos_token_ids=[])
    assert output.token_ids == decode_by_hand(module, ids, 8, GREEDY)
    assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=True)


def test_a_module_that_reads_values_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looking(Rotary):
        def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Any) -> Tensor:
            if capturing:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            return super().forward(input_ids, position_ids, attend)

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        capturing.append(True)
        yield

    capturing: list[bool] = []
    stream = SimpleNamespace(wait_stream=lambda _: None, cuda_stream=0)
    for name, fake in (
        ("Stream", lambda: stream),
        ("current_stream", lambda: stream),
        ("stream", lambda _: nullcontext()),
        ("CUDAGraph", lambda: SimpleNamespace(replay=None)),
        ("graph", graph),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    model = pard_rt.wrap(seeded(Looking(), 1), max_length=LIMIT, name="looking")
    decoder = pard_rt.Decoder(CapturedExecutor(model, capture=True), max_batch_size=1)
    decoder.add([1, 2, 3], max_new_tokens=8)
    with pytest.raises(ModelError, match=r"looking cannot be captured.*got operation not perm"):
        decoder.run()


def test_slots_are_as_many_as_fit() -> None:
    executor = capture(
        open_model(rotary()), open_model(learned(), OpenOptions(is_target=False)), most_slots=3
    )
    assert executor.max_batch_size == 3


class Wrong(Rotary):
    """A decoder with one thing wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(layers=2)
        self.what = what
        self.seen = 0

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Any) -> Any:
        if self.what == "positions of its own":
            position_ids = torch.arange(input_ids.shape[1])[None]
        if self.what == "a state of its own":
            self.seen += input_ids.shape[1]
            position_ids = position_ids + self.seen
        hidden = super().forward(input_ids, position_ids, self.changed(attend))
        if self.what == "rows mixed":
            hidden = hidden - hidden.mean(1, keepdim=True)
        return {"hidden": hidden} if self.what == "a dictionary" else hidden

    def changed(self, attend: Any) -> Any:
        def changed(layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            if self.what == "heads first":
                return attend(layer, q.transpose(1, 2), k, v).transpose(1, 2)
            if self.what == "another type":
                return attend(layer, q, k, v.double())
            if self.what == "one layer":
                layer = 0
            if self.what == "other shapes" and layer == 1:
                k, v = k[:, :, :1], v[:, :, :1]
            if self.what == "no attention":
                return q
            if self.what == "an error":
                raise KeyError("gone")
            return attend(layer, q, k, v, **options)

        return changed


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("positions of its own", r"among others than alone.*position_id"),
        ("a state of its own", r"among others than alone"),
        ("rows mixed", r"among others than alone"),
        ("a dictionary", r"other hidden rows: expected \[1, 1, C\], got dict"),
        ("heads first", r"other shapes or types.*got \[1, 4, 1, 12\] in float32"),
        ("another type", r"other shapes or types.*in float64"),
        ("one layer", r"a layer that cannot be.*got 0 behind \[0\]"),
        ("other shapes", r"differ in shape between layers"),
        ("no attention", r"no layer that attends"),
        ("an error", r"does not run as pard-rt runs decoders.*got KeyError: 'gone'"),
    ],
)
def test_a_module_that_is_wrong_is_refused(what: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"wrong.*{message}"):
        Generator(pard_rt.wrap(seeded(Wrong(what), 1), max_length=LIMIT, name="wrong"))


def test_what_the_probe_finds() -> None:
    class Late(Rotary):
        """Rows that come alone are computed otherwise, but only behind a past of three."""

        def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Any) -> Tensor:
            alone = input_ids.shape[1] == 1 and int(position_ids) == 3
            return super().forward(input_ids, position_ids, attend) * (1.5 if alone else 1.0)

    module = seeded(Late(), 1)
    module.norm = nn.Identity()
    model = pard_rt.wrap(module, max_length=LIMIT)
    with pytest.raises(ModelError, match=r"when it runs with other rows.*on nothing else"):
        Generator(model)


def test_bad_arguments() -> None:
    class Headless(nn.Module):
        pass

    def refused(error: type[Exception], message: str, module: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            Generator(pard_rt.wrap(module, **{"max_length": LIMIT, **options}))

    module = seeded(Rotary(), 1)
    refused(ModelError, "no nn.Module", "a path")
    refused(ModelError, r"Headless cannot be wrapped.*got no lm_head", Headless())
    empty = Headless()
    empty.lm_head = nn.Identity()
    refused(ModelError, "no device", empty)
    refused(InvalidArgumentError, "max_length", module, max_length=1)
    refused(InvalidArgumentError, "num_embeddings", module, num_embeddings=0)
    refused(InvalidArgumentError, "tokenizer", module, tokenizer=str.split)
    refused(InvalidArgumentError, "mask token", module, mask_token_id=VOCAB_SIZE)
    refused(ModelError, "IndexError", seeded(Learned(32), 1))  # positions end before max_length
    refused(ModelError, "IndexError", module, num_embeddings=5000)
    module.lm_head = nn.Linear(48, VOCAB_SIZE, dtype=torch.float64)
    refused(ModelError, "RuntimeError", module)
    double = seeded(Rotary(), 1).double()
    refused(ModelError, r"another type.*float32 or .*got \[1, 96\] in float64", double)


def test_a_generator_refuses_what_a_module_is_not() -> None:
    model = rotary()
    with pytest.raises(InvalidArgumentError, match=r"not a model.*got Rotary.*pard_rt.wrap"):
        Generator(model.module)
    with pytest.raises(InvalidArgumentError, match="device='cpu'"):
        Generator(model, device="cuda")
    with pytest.raises(InvalidArgumentError, match="does not run in the backend onnx"):
        Generator(model, backend="onnx")
    with pytest.raises(InvalidArgumentError, match=r"1\.\.64.*got 65"):
        Generator(model, max_length=65)
    with pytest.raises(InvalidArgumentError, match="mask token"):
        Generator(model, learned(), mask_token_id=VOCAB_SIZE)


def test_logits_may_lie_in_any_order() -> None:
    class Turned(Rotary):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            weight = self.lm_head.weight
            del self.lm_head
            self.lm_head = lambda hidden: (weight @ hidden.T).T

    model = pard_rt.wrap(seeded(Turned(layers=1), 1), max_length=64, name="turned")
    texts = []
    for k in (0, 4):
        executor = CapturedExecutor(model, model, 95)
        decoder = pard_rt.Decoder(executor, num_speculative_tokens=k, max_batch_size=1)
        sequence = decoder.add([3, 1, 4], max_new_tokens=20)
        decoder.run()
        texts.append(sequence.generated.tolist())
    assert texts[0] == texts[1]


def test_a_module_on_another_card_than_the_current_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = pard_rt.wrap(seeded(Rotary(layers=1), 1), max_length=64, name="elsewhere")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        "pard_rt.pytorch.own_seam.OwnSeam.device", property(lambda _: torch.device("cuda", 1))
    )
    with pytest.raises(InvalidArgumentError, match=r"set_device\(1\)"):
        open_model(model, OpenOptions(device="cuda"))


def test_a_wrapped_module_may_be_opened_for_one_position() -> None:
    model = pard_rt.wrap(seeded(Rotary(layers=1), 1), max_length=64)
    assert open_model(model, OpenOptions(max_length=1)).info.max_length == 1
