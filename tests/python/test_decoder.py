"""The core through its bindings: exactness against plain decoding and the oracle, and errors."""

from __future__ import annotations

import datetime
import itertools
import pickle

import numpy as np
import pytest
import torch

import pard_rt
from pard_rt import reference
from pard_rt._core import RoundExecutor, SequenceRound, TokenBytes, score
from table_models import MASK, VOCAB, TableLanguage, TableModel

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def make_drafter(kind: str, language: TableLanguage) -> pard_rt.Drafter:
    model = TableModel(language, padded=True)
    if kind == "parallel":
        return pard_rt.ParallelDrafter(model, MASK)
    return pard_rt.AutoregressiveDrafter(model)


@pytest.mark.parametrize("k", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("draft_seed", [0, 7], ids=["self", "random"])
def test_greedy_rounds_are_the_oracle_s(k: int, draft_seed: int) -> None:
    target, draft = TableLanguage(0), TableLanguage(draft_seed)

    def drafting(tokens: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(draft.rows(tokens.tolist())[:, :VOCAB])

    expected, _ = reference.generate(
        target.as_function(), drafting, PROMPT, mask_token_id=MASK, k=k, max_new_tokens=40
    )
    assert expected == reference.plain(target.as_function(), PROMPT, 40)

    decoder = pard_rt.Decoder(
        TableModel(target), make_drafter("parallel", draft), num_speculative_tokens=k
    )
    # The prefill's own token comes before the first draft, so the oracle starts one token later.
    sequence = decoder.add(PROMPT, max_new_tokens=40)
    decoder.run()
    assert sequence.generated.tolist() == expected
    _, rounds = reference.generate(
        target.as_function(),
        drafting,
        [*PROMPT, expected[0]],
        mask_token_id=MASK,
        k=k,
        max_new_tokens=39,
    )
    assert sequence.counts.rounds == 1 + len(rounds)
    assert sequence.counts.committed == 40


@pytest.mark.parametrize("kind", ["parallel", "autoregressive"])
@pytest.mark.parametrize("draft_seed", [0, 7], ids=["self", "random"])
def test_sampled_text_depends_on_the_seed_alone(kind: str, draft_seed: int) -> None:
    sampling = pard_rt.SamplingParams(temperature=0.8, top_k=9, top_p=0.95, seed=11)
    plain = pard_rt.Decoder(TableModel(TableLanguage(0)))
    expected = plain.add(PROMPT, max_new_tokens=40, sampling=sampling)
    plain.run()
    for k in (1, 4, 8):
        decoder = pard_rt.Decoder(
            TableModel(TableLanguage(0)),
            make_drafter(kind, TableLanguage(draft_seed)),
            num_speculative_tokens=k,
        )
        others = [decoder.add([i + 1] * (i + 1), max_new_tokens=10 + i) for i in range(4)]
        sequence = decoder.add(PROMPT, max_new_tokens=40, sampling=sampling)
        decoder.run()
        assert sequence.generated.tolist() == expected.generated.tolist()
        assert [len(other.generated) for other in others] == [10, 11, 12, 13]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_logits_may_come_from_any_framework(framework: str) -> None:
    decoder = pard_rt.Decoder(TableModel(TableLanguage(0), framework=framework))
    sequence = decoder.add(np.array(PROMPT), max_new_tokens=20)
    decoder.run()
    language = TableLanguage(0)
    assert sequence.generated.tolist() == reference.plain(language.as_function(), PROMPT, 20)
    assert sequence.tokens.tolist() == PROMPT + sequence.generated.tolist()
    assert sequence.finish_reason == "length"


def test_the_observer_sees_tokens_and_may_stop() -> None:
    decoder = pard_rt.Decoder(
        TableModel(TableLanguage(0)), make_drafter("parallel", TableLanguage(0))
    )
    events: list[pard_rt.TokenEvent] = []
    log_probabilities: list[float] = []

    def observer(event: pard_rt.TokenEvent) -> bool:
        events.append(event)
        log_probabilities.append(event.log_probability())
        return len(events) < 7

    sequence = decoder.add(PROMPT, observer=observer)
    decoder.run()
    assert sequence.finish_reason == "stop"
    assert [event.token for event in events] == sequence.generated.tolist()
    assert [event.position for event in events] == list(range(len(PROMPT), len(PROMPT) + 7))
    assert any(event.from_draft for event in events)
    text = list(PROMPT)
    for token, log_probability in zip(sequence.generated.tolist(), log_probabilities, strict=True):
        row = torch.from_numpy(TableLanguage(0).row(text))
        assert log_probability == pytest.approx(row.log_softmax(-1)[token].item(), abs=1e-5)
        text.append(token)
    with pytest.raises(pard_rt.InvalidArgumentError, match="row of this token is gone"):
        events[0].log_probability()


def test_finished_sequences_are_released() -> None:
    target, draft = TableModel(TableLanguage(0)), TableModel(TableLanguage(0), padded=True)
    decoder = pard_rt.Decoder(target, pard_rt.ParallelDrafter(draft, MASK))
    decoder.add(PROMPT, max_new_tokens=5)
    decoder.run()
    assert target.caches == {}
    assert draft.caches == {}


class Raising(TableModel):
    """Raises at the forward it is told to."""

    error: BaseException | None = None

    def forward(self, batch: list[pard_rt.ForwardItem]) -> object:  # type: ignore[override]
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().forward(batch)


def test_a_model_that_raises_leaves_the_sequence_usable() -> None:
    target = Raising(TableLanguage(0))
    decoder = pard_rt.Decoder(target, make_drafter("parallel", TableLanguage(7)))
    sequence = decoder.add(PROMPT, max_new_tokens=20)
    decoder.step()
    target.error = ConnectionError("the device fell off the bus")
    with pytest.raises(pard_rt.ModelError, match="fell off the bus") as caught:
        decoder.step()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "try again" in caught.value.remedy
    decoder.run()
    assert sequence.generated.tolist() == reference.plain(
        TableLanguage(0).as_function(), PROMPT, 20
    )


def test_an_interrupt_is_no_model_error() -> None:
    target = Raising(TableLanguage(0))
    decoder = pard_rt.Decoder(target)
    decoder.add(PROMPT)
    target.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        decoder.run()


def test_an_observer_s_error_comes_through_as_it_is() -> None:
    decoder = pard_rt.Decoder(TableModel(TableLanguage(0)))
    countdown = itertools.count(2, -1)
    sequence = decoder.add(PROMPT, max_new_tokens=8, observer=lambda _: bool(1 / next(countdown)))
    with pytest.raises(ZeroDivisionError):
        decoder.run()
    assert len(sequence.generated) == 3
    decoder.run()
    assert sequence.generated.tolist() == reference.plain(TableLanguage(0).as_function(), PROMPT, 8)


class Returning(TableModel):
    """Returns what it is told to."""

    logits: object = None

    def forward(self, batch: list[pard_rt.ForwardItem]) -> object:  # type: ignore[override]
        return self.logits


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (None, "wrong shape"),
        ([[0.0] * VOCAB], "__dlpack__"),
        (np.zeros((2, VOCAB), np.float32), "wrong shape"),
        (np.zeros((1, VOCAB + 1), np.float32), "wrong shape"),
        (np.zeros((1, VOCAB), np.float64), "float32, float16 or bfloat16"),
        (np.zeros((1, 1, VOCAB), np.float32), "number of dimensions"),
        (np.zeros((1, 2 * VOCAB), np.float32)[:, ::2], "contiguous"),
    ],
)
def test_logits_that_cannot_be_read_are_refused(logits: object, message: str) -> None:
    target = Returning(TableLanguage(0))
    target.logits = logits
    decoder = pard_rt.Decoder(target)
    decoder.add(PROMPT)
    with pytest.raises(pard_rt.ModelError, match=message):
        decoder.step()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_without_a_choice_is_an_error(bad: float) -> None:
    target = Returning(TableLanguage(0))
    target.logits = np.full((1, VOCAB), bad, np.float32)
    decoder = pard_rt.Decoder(target)
    sequence = decoder.add(PROMPT)
    with pytest.raises(pard_rt.LogitsError):
        decoder.step()
    assert len(sequence.generated) == 0
    sequence.cancel()
    assert not decoder.step()
    assert sequence.finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [0] * 256}, "at most 255 tokens, got 256 tokens"),
        ({"prompt": [0, VOCAB]}, r"prompt\[1\] is not a token"),
        ({"prompt": [-1]}, r"prompt\[0\] is not a token"),
        ({"prompt": [2**40]}, r"prompt\[0\] is not a token"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"eos_token_ids": [VOCAB]}, r"eos_token_ids\[0\]"),
        ({"stop_token_ids": [-4]}, r"stop_token_ids\[0\]"),
    ],
)
def test_requests_that_cannot_be_decoded_are_refused(
    arguments: dict[str, object], message: str
) -> None:
    decoder = pard_rt.Decoder(TableModel(TableLanguage(0)))
    with pytest.raises(pard_rt.InvalidArgumentError, match=message) as caught:
        decoder.add(**{"prompt": PROMPT, **arguments})  # type: ignore[arg-type]
    assert caught.value.expected
    assert caught.value.actual
    assert caught.value.remedy
    assert isinstance(caught.value, ValueError)
    assert decoder.num_waiting == 0


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-6},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
    ],
)
def test_sampling_parameters_out_of_range_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(pard_rt.InvalidArgumentError, match=next(iter(parameters))):
        pard_rt.SamplingParams(**parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [-1, 65, 10**6])
def test_an_absurd_number_of_proposals_is_refused(k: int) -> None:
    drafter = make_drafter("parallel", TableLanguage(0))
    with pytest.raises(pard_rt.InvalidArgumentError, match=r"0\.\.64"):
        pard_rt.Decoder(TableModel(TableLanguage(0)), drafter, num_speculative_tokens=k)


def test_pairs_that_cannot_work_are_refused() -> None:
    class Spelling(TableModel):
        def __init__(self, spelling: bytes) -> None:
            super().__init__(TableLanguage(0))
            self.table = TokenBytes([spelling] * VOCAB)

        def info(self) -> pard_rt.ModelInfo:
            return pard_rt.ModelInfo(
                name="spelling", vocab_size=VOCAB, max_length=256, token_bytes=self.table
            )

    target = TableModel(TableLanguage(0))
    drafter = pard_rt.AutoregressiveDrafter(Spelling(b"a"))
    pard_rt.Decoder(Spelling(b"a"), drafter)
    with pytest.raises(pard_rt.IncompatibleModelsError, match="mean different text"):
        pard_rt.Decoder(Spelling(b"b"), drafter)
    with pytest.raises(pard_rt.IncompatibleModelsError, match="mask token"):
        pard_rt.ParallelDrafter(target, VOCAB)
    with pytest.raises(pard_rt.InvalidArgumentError, match="both target and draft"):
        pard_rt.Decoder(target, pard_rt.AutoregressiveDrafter(target))
    with pytest.raises(pard_rt.InvalidArgumentError, match="needs a draft"):
        pard_rt.Decoder(target, num_speculative_tokens=4)


def test_choose_and_verify_are_at_hand() -> None:
    row = np.array([0.5, 2.0, 2.0, -1.0], np.float32)
    assert pard_rt.choose(row, pard_rt.SamplingParams(), 0) == 1
    bf16 = torch.from_numpy(row).to(torch.bfloat16)
    assert pard_rt.choose(bf16, pard_rt.SamplingParams(), 0) == 1
    only = pard_rt.SamplingParams(temperature=1.0, top_k=1, seed=3)
    assert {pard_rt.choose(row, only, position) for position in range(50)} == {1}
    warm = pard_rt.SamplingParams(temperature=1.0, seed=3)
    assert len({pard_rt.choose(row, warm, position) for position in range(200)}) == 4
    assert pard_rt.verify([4, 5, 6], [4, 5, 7, 8]) == (2, 7)
    assert pard_rt.verify([], [4]) == (0, 4)
    with pytest.raises(pard_rt.InvalidArgumentError):
        pard_rt.verify([1, 2], [1, 2])


def test_errors_survive_pickling() -> None:
    error = pard_rt.LogitsError("a", "b", "c", "d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_prompts_may_be_tensors_of_any_framework() -> None:
    expected = reference.plain(TableLanguage(0).as_function(), PROMPT, 5)
    for prompt in (PROMPT, tuple(PROMPT), np.array(PROMPT), torch.tensor(PROMPT)):
        decoder = pard_rt.Decoder(TableModel(TableLanguage(0)))
        sequence = decoder.add(prompt, max_new_tokens=5)
        decoder.run()
        assert sequence.generated.tolist() == expected
    for bad in (torch.tensor([PROMPT]), [1.5, 2.0], "text", None):
        with pytest.raises(pard_rt.InvalidArgumentError, match="flat list of token ids"):
            pard_rt.Decoder(TableModel(TableLanguage(0))).add(bad)  # type: ignore[arg-type]


def test_read_only_logits_are_fine() -> None:
    class ReadOnly(TableModel):
        def forward(self, batch: list[pard_rt.ForwardItem]) -> object:  # type: ignore[override]
            logits = super().forward(batch)
            assert isinstance(logits, np.ndarray)
            logits.flags.writeable = False
            return logits

    decoder = pard_rt.Decoder(ReadOnly(TableLanguage(0)))
    sequence = decoder.add(PROMPT, max_new_tokens=5)
    decoder.run()
    assert len(sequence.generated) == 5


def test_a_capsule_that_is_no_tensor_is_refused() -> None:
    class Foreign:
        def __dlpack__(self, **_: object) -> object:
            return datetime.datetime_CAPI  # type: ignore[attr-defined]

    with pytest.raises(pard_rt.ModelError, match="capsule"):
        pard_rt.choose(Foreign(), pard_rt.SamplingParams(), 0)


def test_an_observer_may_add_but_not_step() -> None:
    decoder = pard_rt.Decoder(TableModel(TableLanguage(0)))
    late: list[pard_rt.Sequence] = []

    def observer(event: pard_rt.TokenEvent) -> None:
        if not late:
            late.append(decoder.add(PROMPT, max_new_tokens=3))
        with pytest.raises(pard_rt.InvalidArgumentError, match="round is in flight"):
            decoder.step()

    decoder.add(PROMPT, max_new_tokens=4, observer=observer)
    decoder.run()
    assert late[0].finish_reason == "length"


def test_an_error_names_model_sequence_and_position() -> None:
    target = TableModel(TableLanguage(0))
    target.language.tables[:] = np.nan
    decoder = pard_rt.Decoder(target)
    sequence = decoder.add(PROMPT)
    with pytest.raises(
        pard_rt.LogitsError, match=f"model 'table', sequence {sequence.id}, position {len(PROMPT)}"
    ):
        decoder.step()
    sequence.cancel()
    assert not decoder.step()


def test_a_model_s_own_error_is_told_in_a_line() -> None:
    target = Raising(TableLanguage(0))
    target.error = ValueError("no such layer")
    decoder = pard_rt.Decoder(target)
    decoder.add(PROMPT)
    with pytest.raises(pard_rt.ModelError) as caught:
        decoder.step()
    assert caught.value.actual == "ValueError: no such layer"


class SayingExecutor(RoundExecutor):
    """Returns what it is told to."""

    def __init__(self, round: SequenceRound, count: int = 1) -> None:
        super().__init__()
        self.rounds = [round] * count

    def target_info(self) -> pard_rt.ModelInfo:
        return TableModel(TableLanguage(0)).info()

    def can_draft(self) -> bool:
        return True

    def launch(self, batch: list[pard_rt.Sequence], num_speculative_tokens: int) -> None:
        pass

    def collect(self) -> list[SequenceRound]:
        return self.rounds

    def keep(self, sequence: int, length: int) -> None:
        pass

    def release(self, sequence: int) -> None:
        pass


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (SayingExecutor(SequenceRound(num_accepted=1, tokens=[1, 2])), "1 of 0"),
        (SayingExecutor(SequenceRound(num_proposals=-1, tokens=[1])), "0 of -1"),
        (SayingExecutor(SequenceRound(num_proposals=65, tokens=[1])), "0 of 65"),
        (SayingExecutor(SequenceRound(num_proposals=2, num_accepted=2, tokens=[1])), "got 1"),
        (SayingExecutor(SequenceRound(tokens=[VOCAB])), f"in 0..{VOCAB - 1}"),
        (SayingExecutor(SequenceRound(tokens=[-1])), "got -1"),
        (SayingExecutor(SequenceRound(tokens=[1]), count=2), "1 rounds, got 2"),
    ],
)
def test_rounds_that_cannot_be_are_refused(executor: RoundExecutor, message: str) -> None:
    decoder = pard_rt.Decoder(executor)
    sequence = decoder.add(PROMPT)
    with pytest.raises(pard_rt.ModelError, match=message):
        decoder.step()
    assert len(sequence.generated) == 0


def test_what_is_no_round_is_refused() -> None:
    with pytest.raises(TypeError, match="an exception or None, not 'boom'"):
        SequenceRound(error="boom")  # type: ignore[arg-type]
    decoder = pard_rt.Decoder(SayingExecutor(5))  # type: ignore[arg-type]
    decoder.add(PROMPT)
    with pytest.raises(TypeError, match="SequenceRounds, not 5"):
        decoder.step()


def test_an_executor_without_rows_gives_no_log_probabilities() -> None:
    decoder = pard_rt.Decoder(SayingExecutor(SequenceRound(tokens=[1])))
    decoder.add(PROMPT, observer=lambda event: event.log_probability() > 0)
    with pytest.raises(pard_rt.InvalidArgumentError, match="hands out no rows"):
        decoder.step()


def test_a_decoder_needs_an_executor() -> None:
    with pytest.raises(pard_rt.InvalidArgumentError, match="needs an executor"):
        pard_rt.Decoder(executor=None)  # type: ignore[call-overload]


@pytest.mark.parametrize("adaptive", [False, True])
def test_k_may_be_set_inside_a_round(adaptive: bool) -> None:
    class Setting(TableModel):
        def forward(self, batch: list[pard_rt.ForwardItem]) -> object:
            decoder.num_speculative_tokens = next(ks)
            return super().forward(batch)

    ks = itertools.cycle((0, 3, 8, 1))
    target = Setting(TableLanguage(0))
    decoder = pard_rt.Decoder(target, make_drafter("parallel", TableLanguage(7)), adaptive=adaptive)
    sequence = decoder.add(PROMPT, max_new_tokens=60)
    decoder.run()
    plain = pard_rt.Decoder(TableModel(TableLanguage(0)))
    expected = plain.add(PROMPT, max_new_tokens=60)
    plain.run()
    assert sequence.generated.tolist() == expected.generated.tolist()


def test_the_probe_heeds_tokens_that_are_ruled_out() -> None:
    class Ruling(TableModel):
        def forward(self, batch: list[pard_rt.ForwardItem]) -> np.ndarray:
            rows = super().forward(batch)
            assert isinstance(rows, np.ndarray)
            rows[:, 3] = -np.inf if self.num_forwards != self.wrong else np.inf
            return rows

    model = Ruling(TableLanguage(0))
    model.wrong = 0
    assert pard_rt.probe_model(model, tolerance=1e-5).same_tokens
    model.wrong = model.num_forwards + 2
    with pytest.raises(pard_rt.ModelError, match="same tokens every time"):
        pard_rt.probe_model(model, tolerance=1e-5)


class Rowwise(TableModel):
    """Adds `extra` to the logits of forwards of `rows` rows."""

    rows, extra = 5, 1e-3

    def forward(self, batch: list[pard_rt.ForwardItem]) -> np.ndarray:
        logits = super().forward(batch)
        assert isinstance(logits, np.ndarray)
        return logits + self.extra * (len(logits) == self.rows)


def test_the_probe_tries_every_number_of_rows_up_to_the_one_asked_for() -> None:
    for max_rows, rows, seen in ((9, 5, True), (9, 9, True), (3, 5, False), (2, 1, True)):
        model = Rowwise(TableLanguage(0))
        model.rows = rows
        report = pard_rt.probe_model(model, tolerance=0.1, max_rows=max_rows)
        assert (report.row_counts > 0) == seen, (max_rows, rows)
        assert (report.max_rows, report.rounding) == (max_rows, pytest.approx(0.1))
    with pytest.raises(pard_rt.ModelError, match="other logits for a row when it runs with other"):
        pard_rt.probe_model(Rowwise(TableLanguage(0)), tolerance=1e-7, max_rows=9)


@pytest.mark.parametrize(("extra", "name"), [(np.nan, "NaN"), (np.inf, "an infinity")])
def test_the_probe_says_which_number_spoils_the_logits(extra: float, name: str) -> None:
    model = Rowwise(TableLanguage(0))
    model.rows, model.extra = 3, extra
    with np.errstate(invalid="ignore"), pytest.raises(pard_rt.ModelError) as failed:
        pard_rt.probe_model(model, tolerance=1.0)
    assert "returns logits from which no token can be chosen" in failed.value.problem
    assert failed.value.actual == name
    assert "weights or the computation" in failed.value.remedy


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_token_chosen_has_the_best_score(temperature: float) -> None:
    random = np.random.default_rng(0)
    params = pard_rt.SamplingParams(temperature=temperature, seed=4)
    for position in range(20):
        row = random.normal(size=64).astype(np.float32)
        scores = [score(row, params, position, token) for token in range(64)]
        assert int(np.argmax(scores)) == pard_rt.choose(row, params, position)
    with pytest.raises(pard_rt.InvalidArgumentError, match="has no logit"):
        score(row, params, 0, 64)


def test_an_observer_sees_the_row_its_token_was_chosen_from() -> None:
    rows: list[tuple[pard_rt.TokenEvent, np.ndarray]] = []
    decoder = pard_rt.Decoder(TableModel(TableLanguage(0)))
    decoder.add(
        PROMPT, max_new_tokens=3, observer=lambda event: rows.append((event, event.logits()))
    )
    decoder.run()
    assert [int(row.argmax()) for _, row in rows] == [event.token for event, _ in rows]
    with pytest.raises(pard_rt.InvalidArgumentError, match="row of this token is gone"):
        rows[0][0].logits()
