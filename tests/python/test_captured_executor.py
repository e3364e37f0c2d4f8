"""Captured rounds, run again instead of replayed: the tokens of the composed executor."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pard_rt
from conftest import TinyModels
from emulated_graphs import Graph, emulate_graphs
from pard_rt._core import KernelSet, TokenBytes
from pard_rt.models import OpenOptions, open_model
from pard_rt.models.checkpoint import load
from pard_rt.pytorch import kernels
from pard_rt.pytorch.captured_executor import CapturedExecutor, capture
from pard_rt.pytorch.torch_model import TorchModel
from tiny_models import MASK_TOKEN_ID, NUM_TOKENS

GREEDY = pard_rt.SamplingParams()
SAMPLED = pard_rt.SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, seed=5)
# (tokens of the prompt, the round before which it joins); the last ends where the positions do.
REQUESTS = ((6, 0), (1, 0), (37, 1), (17, 4), (113, 6))


def decode(
    decoder: pard_rt.Decoder, sampling: pard_rt.SamplingParams, stops: tuple[int, ...] = ()
) -> list[list[int]]:
    waiting, sequences, number, more = list(REQUESTS), [], 0, True
    while more or waiting:
        while waiting and waiting[0][1] <= number:
            length, _ = waiting.pop(0)
            prompt = np.random.default_rng(length).integers(NUM_TOKENS, size=length)
            sequences.append(
                decoder.add(prompt, max_new_tokens=18, sampling=sampling, stop_token_ids=stops)
            )
        more = decoder.step()
        number += 1
    return [sequence.generated.tolist() for sequence in sequences]


def plain(
    checkpoint: Path, sampling: pard_rt.SamplingParams, stops: tuple[int, ...] = ()
) -> list[list[int]]:
    return decode(pard_rt.Decoder(TorchModel(load(checkpoint)), max_batch_size=3), sampling, stops)


def captured(
    target: Path,
    draft: Path | None,
    k: int,
    *,
    slots: int = 3,
    ahead: bool = True,
    capture: bool = False,
) -> pard_rt.Decoder:
    executor = CapturedExecutor(
        load(target),
        None if draft is None else load(draft),
        None if draft is None else MASK_TOKEN_ID,
        max_batch_size=slots,
        prefill_chunk=16,
        capture=capture,
        ahead=ahead,
    )
    return pard_rt.Decoder(executor, num_speculative_tokens=k, max_batch_size=slots)


@pytest.fixture(params=["llama", "qwen2_yarn", "qwen3", "mistral_window", "gemma"])
def pair(request: pytest.FixtureRequest, tiny_models: TinyModels) -> tuple[Path, Path]:
    target = tiny_models.checkpoint(request.param, seed=3)
    return target, tiny_models.checkpoint("llama", seed=9)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rounds_give_the_target_s_own_text(
    pair: tuple[Path, Path], sampling: pard_rt.SamplingParams
) -> None:
    target, stranger = pair
    expected = plain(target, sampling)
    for draft, k, ahead in (
        (None, 0, True),
        (stranger, 0, True),
        (stranger, 3, False),
        (stranger, 8, True),
        (target, 1, True),  # its first proposals hold
        (target, 8, True),
        (target, 5, False),
    ):
        decoder = captured(target, draft, k, ahead=ahead)
        assert decode(decoder, sampling) == expected, (draft == target, k, ahead)
        if draft == target:
            assert decoder.counts.accepted > 20


def test_rounds_are_those_of_the_composed_executor(tiny_models: TinyModels) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    drafter = pard_rt.ParallelDrafter(TorchModel(load(target)), MASK_TOKEN_ID)
    composed = pard_rt.Decoder(
        TorchModel(load(target)), drafter, num_speculative_tokens=4, max_batch_size=3
    )
    decoder = captured(target, target, 4)
    assert decode(decoder, GREEDY) == decode(composed, GREEDY)
    # Ends apart, where the composed executor proposes fewer tokens, the same proposals hold.
    assert decoder.counts.accepted_at[0] >= composed.counts.accepted_at[0]


def test_what_a_round_did_behind_a_stop_is_not_seen(tiny_models: TinyModels) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    texts = plain(target, GREEDY)
    stops = tuple({text[len(text) // 2] for text in texts})
    expected = plain(target, GREEDY, stops)
    assert any(len(short) < len(text) for short, text in zip(expected, texts, strict=True))
    for slots in (1, 2, 3):
        assert decode(captured(target, target, 4, slots=slots), GREEDY, stops) == expected


def test_k_may_change_between_rounds(tiny_models: TinyModels) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    expected = plain(target, SAMPLED)
    decoder = captured(target, target, 8)
    ks = iter([8, 8, 1, 0, 0, 5, 2, 8, 0, 3] * 20)
    step = decoder.step

    class Changing:
        add = decoder.add

        def step(self) -> bool:
            decoder.num_speculative_tokens = next(ks)
            return step()

    assert decode(Changing(), SAMPLED) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("spoilt", ["target", "draft"])
def test_a_row_without_a_choice_is_an_error_that_names_the_model(
    spoilt: str, tiny_models: TinyModels
) -> None:
    target = load(tiny_models.checkpoint("llama", seed=3))
    draft = load(tiny_models.checkpoint("llama", seed=9))
    executor = CapturedExecutor(target, draft, MASK_TOKEN_ID)
    decoder = pard_rt.Decoder(executor, num_speculative_tokens=3)
    sequence = decoder.add([1, 2, 3], max_new_tokens=20)
    for _ in range(3):
        decoder.step()
    good = sequence.generated.tolist()
    weight = (target if spoilt == "target" else draft).module.lm_head.weight
    healthy = weight.detach().clone()
    with torch.no_grad():
        weight[7] = torch.nan
    with pytest.raises(pard_rt.LogitsError, match="No token can be chosen"):
        decoder.run()  # one round is on its way already
    assert sequence.generated.tolist()[: len(good)] == good
    with torch.no_grad():
        weight.copy_(healthy)
    with contextlib.suppress(pard_rt.LogitsError):
        decoder.step()  # was launched before
    decoder.run()  # the process, and the sequence, stay usable
    assert len(sequence.generated) == 20


def test_arguments_that_cannot_be_are_refused(tiny_models: TinyModels) -> None:
    target = load(tiny_models.checkpoint("llama", seed=3))
    draft = load(tiny_models.checkpoint("llama", seed=9))
    with pytest.raises(pard_rt.InvalidArgumentError, match="mask token"):
        CapturedExecutor(target, draft)
    with pytest.raises(pard_rt.InvalidArgumentError, match="max_batch_size"):
        CapturedExecutor(target, max_batch_size=0)
    table = TokenBytes([b"other"] * draft.facts.num_tokens)
    other = replace(draft, facts=replace(draft.facts, token_bytes=table))
    with pytest.raises(pard_rt.IncompatibleModelsError):
        CapturedExecutor(target, other, MASK_TOKEN_ID)


def test_more_sequences_than_slots_are_refused(tiny_models: TinyModels) -> None:
    decoder = pard_rt.Decoder(CapturedExecutor(load(tiny_models.checkpoint("llama", seed=3))))
    for prompt in ([1, 2], [3, 4]):
        decoder.add(prompt, max_new_tokens=5)
    with pytest.raises(pard_rt.InvalidArgumentError, match="more sequences than slots"):
        decoder.step()


def test_opened_models_are_captured_together(tiny_models: TinyModels) -> None:
    checkpoint = tiny_models.checkpoint("llama", seed=3)
    target = open_model(checkpoint)
    draft = open_model(checkpoint, OpenOptions(is_target=False, mask_token_id=MASK_TOKEN_ID))
    executor = capture(target, draft, most_slots=3)
    decoder = pard_rt.Decoder(executor, num_speculative_tokens=4, max_batch_size=3)
    assert executor.max_batch_size == 3
    assert decode(decoder, GREEDY) == plain(checkpoint, GREEDY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error_before_weights_are_read(tiny_models: TinyModels) -> None:
    with pytest.raises(pard_rt.RuntimeMissingError, match="sees no GPU"):
        pard_rt.Generator(tiny_models.checkpoint("llama"), device="cuda")


def test_out_of_memory_says_whose_and_leaves_the_rest_usable(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_models.checkpoint("llama", seed=3)
    target = load(checkpoint)
    decoder = pard_rt.Decoder(CapturedExecutor(target))
    sequence = decoder.add([1, 2, 3], max_new_tokens=10)
    decoder.step()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB. GPU 0 has 1 GiB free.")

    with monkeypatch.context() as patch:
        patch.setattr(type(target.module), "forward", full)
        with pytest.raises(pard_rt.ModelError, match=r"llama.*ran out.*Tried to allocate 2 GiB"):
            decoder.run()
        patch.setattr(type(target.module), "to", full)
        with pytest.raises(pard_rt.ModelError, match=r"weights of .* do not fit"):
            load(checkpoint)
    decoder.run()
    expected = pard_rt.Decoder(TorchModel(load(checkpoint)))
    twin = expected.add([1, 2, 3], max_new_tokens=10)
    expected.run()
    assert sequence.generated.tolist() == twin.generated.tolist()


def test_kernels_that_choose_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    kernels.try_kernels(KernelSet("host"), logits)
    monkeypatch.setattr(kernels, "choose", lambda *_: 51)
    with pytest.raises(pard_rt.ModelError, match="choose other tokens"):
        kernels.try_kernels(KernelSet("host"), logits)


def test_no_driver_is_an_error_of_its_own() -> None:
    for driver in ("cuda", "hip"):
        with pytest.raises(pard_rt.RuntimeMissingError, match=r"driver|code object"):
            KernelSet(driver, ["nowhere.cubin"])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_replayed_rounds_give_the_target_s_own_text(
    sampling: pard_rt.SamplingParams, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_models.checkpoint("llama", seed=3)
    expected = plain(target, sampling)
    emulate_graphs(monkeypatch)
    for draft, k in ((None, 0), (tiny_models.checkpoint("llama", seed=9), 3), (target, 8)):
        assert decode(captured(target, draft, k, capture=True), sampling) == expected, k
    assert Graph.num_replays > 20
