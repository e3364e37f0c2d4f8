"""Draft training: mask prediction against its definition, and a loop that can be cut anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from pard_rt import InvalidArgumentError
from pard_rt.training.attention import ChainAttention, plan_blocks, use_chain_attention
from pard_rt.training.loop import Schedule, Trainer
from pard_rt.training.mask_prediction import IGNORED, MaskPrediction, draw_rows
from pard_rt.training.muon import Muon, orthogonalize
from pard_rt.training.stdlib_text import (
    END,
    HELD_OUT,
    VOCAB_SIZE,
    held_out_text,
    learning_text,
    make_tokenizer,
)

MASK = 31


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    num_subtasks=st.integers(1, 9),
    retention=st.floats(0, 1),
    min_retention=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_rows_are_what_the_definition_says(
    lengths: list[int], num_subtasks: int, retention: float, min_retention: float, seed: int
) -> None:
    chosen = MaskPrediction(num_subtasks, retention, min_retention)
    rows = draw_rows(lengths, chosen, torch.Generator().manual_seed(seed))
    length = sum(lengths)
    document = [number for number, size in enumerate(lengths) for _ in range(size)]
    place = [t for size in lengths for t in range(size)]
    left = [size - 1 - t for size in lengths for t in range(size)]
    tokens = torch.arange(100, 100 + length)[None]
    pairs = list(zip(rows.anchors.tolist(), rows.depths.tolist(), strict=True))

    # Sub-task 1 is the text; deeper ones name a token that is there, and keep their whole chain.
    assert rows.num_real == length
    assert pairs[:length] == [(t, 1) for t in range(length)]
    assert len(set(pairs)) == len(pairs)
    for anchor, depth in pairs[length:]:
        assert 2 <= depth <= num_subtasks
        assert depth <= left[anchor]
        assert (anchor, depth - 1) in pairs
    for depth in range(2, num_subtasks + 1):
        share = max(retention ** (depth - 1), min_retention)
        kept = sum(d == depth for _, d in pairs)
        assert kept <= round(length * share)
        # The last anchors of a document have nothing to name.
        assert kept >= round(length * share) - depth * len(lengths)

    positions = rows.positions.tolist()
    visible = rows.visible()
    labels = rows.labels(tokens)[0].tolist()
    fed = rows.fill(tokens, MASK)[0].tolist()
    for q, (anchor, depth) in enumerate(pairs):
        t = anchor + depth - 1
        assert positions[q] == place[anchor] + depth - 1
        assert fed[q] == (100 + anchor if depth == 1 else MASK)
        assert labels[q] == (100 + t + 1 if depth <= left[anchor] else IGNORED)
        for k, (other, other_depth) in enumerate(pairs):
            real = other_depth == 1 and other <= anchor and document[other] == document[anchor]
            chain = other == anchor and 2 <= other_depth <= depth
            assert visible[q, k] == (real or chain)


@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    num_subtasks=st.integers(1, 9),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_chain_attention_is_attention_with_the_dense_mask(
    lengths: list[int], num_subtasks: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = draw_rows(lengths, MaskPrediction(num_subtasks), generator)
    size = {"generator": generator, "dtype": torch.float64}
    q = torch.randn(2, groups, len(rows.anchors), 8, **size)  # type: ignore[call-overload]
    k, v = torch.randn(2, 2, len(rows.anchors), 8, **size)  # type: ignore[call-overload]
    weight = torch.randn(q.shape, **size)  # type: ignore[call-overload]
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def results(out: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad((out * weight).sum(), inputs)]

    fast = ChainAttention.apply(q, k, v, plan_blocks(rows), 0.3)  # type: ignore[no-untyped-call]
    dense = scaled_dot_product_attention(
        q, k[:, None], v[:, None], attn_mask=rows.visible(), scale=0.3
    )
    for one, other in zip(results(fast), results(dense), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).double()


def test_a_training_row_is_a_row_of_decoding() -> None:
    """What a draft learns at a row is what it is asked there: `t0 .. ts [M] .. [M]`."""
    model, tokens = tiny_llama(), torch.randint(31, (1, 12))
    rows = draw_rows([12], MaskPrediction(4, 0.8, 0.3), torch.Generator().manual_seed(1))
    use_chain_attention(model)
    together = model(
        input_ids=rows.fill(tokens, MASK),
        position_ids=rows.positions[None],
        blocks=plan_blocks(rows),
        use_cache=False,
    ).logits[0]
    model.set_attn_implementation("sdpa")
    for row, (anchor, depth) in enumerate(zip(rows.anchors, rows.depths, strict=True)):
        masks = torch.full((1, int(depth) - 1), MASK)
        alone = model(input_ids=torch.cat([tokens[:, : anchor + 1], masks], dim=1)).logits[0, -1]
        torch.testing.assert_close(together[row], alone)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_subtasks", 0), ("num_subtasks", 65), ("retention", 1.1), ("min_retention", -0.1)],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        MaskPrediction(**{name: value})  # type: ignore[arg-type]


def learn(folder: Path, stops: tuple[int, ...]) -> dict[str, Tensor]:
    """Train for 6 steps, cut off and begun again after `stops`."""
    state: dict[str, Tensor] = {}
    for stop in (*stops, 6):
        model = tiny_llama()

        def loss(step: int, model: LlamaForCausalLM = model, stop: int = stop) -> list[Tensor]:
            if step == stop:
                raise KeyboardInterrupt
            tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(step))
            logits = model(input_ids=tokens[:, :-1]).logits
            return [cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())]

        trainer = Trainer(model, Schedule(6, warmup=2), folder / "model.pt")
        try:
            trainer.run(loss, save_every=0, log_every=1)
        except KeyboardInterrupt:
            assert trainer.step == stop
        state = model.state_dict()
    return state


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    unbroken, broken = learn(tmp_path / "unbroken", ()), learn(tmp_path / "broken", (1, 4))
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)
    curves = [(tmp_path / name / "model.jsonl").read_text() for name in ("unbroken", "broken")]
    losses = [[line.split(",")[:2] for line in curve.splitlines()] for curve in curves]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    scale = Schedule(100, warmup=10, decay=0.5).scale
    assert scale(0) == pytest.approx(0.1)
    assert scale(9) == scale(49) == 1
    assert scale(75) == pytest.approx(0.5)
    assert scale(99) == pytest.approx(0.02)


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (16, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.3 < singular.min() < singular.max() < 1.3
    matrix = torch.nn.Parameter(torch.eye(4))
    target = torch.randn(4, 4)
    optimizer = Muon([matrix], lr=0.05)
    errors = []
    for _ in range(150):
        error = (matrix - target).square().sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


def test_held_out_files_are_not_learnt_from() -> None:
    learnt = bytes(token for token in learning_text().tolist() if token != END)
    held_out = held_out_text()
    assert set(held_out) == set(HELD_OUT)
    for name, text in held_out.items():
        assert text not in learnt, name
        assert text[len(text) // 2 :][:400] not in learnt, name


def test_the_demo_tokenizer_is_bytes() -> None:
    tokenizer = make_tokenizer()
    text = "def naïve():\n\treturn '→ 🙂'  # <|end|>"
    ids = tokenizer(text).input_ids
    assert ids == [*text[:-7].encode(), END]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= VOCAB_SIZE
