"""Stand-ins for trained drafts: they cost what a draft costs, and propose a recorded text.

The text is the target's own, with wrong tokens where rounds are to end. Rounds end as often at each
position as the demo pair's did when it was measured with K = 8 (docs/benchmarks/demo-pair.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt._core import SamplingParams, SequenceRound, slot_sampling
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.captured_executor import CapturedExecutor
from pard_rt.pytorch.static_model import StaticModel

MASK_TOKEN = 5
DEMO_PAIR = Path(__file__).resolve().parent.parent / "docs/benchmarks/demo-pair.json"


def measured_acceptance() -> list[float]:
    """Return at [i] the share of rounds, with K = 8, in which the first i + 1 proposals held."""
    rows = json.loads(DEMO_PAIR.read_text("utf-8"))["rows"]
    (row,) = [r for r in rows if (r["engine"], r["way"], r["k"]) == ("pard-rt", "PARD", 8)]
    return list(row["acceptance"])


def length_shares(acceptance: Sequence[float], k: int) -> list[float]:
    """Return at [a] the share of the rounds with K = k in which a proposals hold, and no more.

    Past what was measured, proposals hold behind held ones as often as at the last two places.
    """
    held = [1.0, *acceptance[:k]]
    while len(held) <= k:
        held.append(held[-1] * acceptance[-1] / acceptance[-2])
    return [this - after for this, after in zip(held, [*held[1:], 0.0], strict=True)]


def run_lengths(shares: Sequence[float]) -> Iterator[int]:
    """Yield how many proposals hold, round by round, always what is furthest behind its share."""
    owed = [0.0] * len(shares)
    while True:
        owed = [debt + share for debt, share in zip(owed, shares, strict=True)]
        length = max(range(len(owed)), key=owed.__getitem__)
        owed[length] -= 1
        yield length


def break_text(text: Sequence[int], first: int, k: int) -> list[int]:
    """Put a wrong token where each round's proposals end to hold, the first at place `first`."""
    broken, place = list(text), first
    for length in run_lengths(length_shares(measured_acceptance(), k)):
        place += length
        if place >= len(text):
            return broken
        broken[place] += 1
        place += 1  # the target's own token: a correction, or the bonus, which is never proposed
    raise AssertionError("there is always another round")


class RecordedExecutor(CapturedExecutor):
    """Proposes a recorded text instead of what its draft says; notes the rounds it has read."""

    def __init__(
        self,
        target: LoadedModel,
        draft: LoadedModel | None,
        max_length: int,
        slots: int = 1,
        *,
        torch_compile: bool = False,
    ) -> None:
        super().__init__(
            target,
            draft,
            None if draft is None else MASK_TOKEN,
            max_length=max_length,
            max_batch_size=slots,
            torch_compile=torch_compile,
        )
        # Captured rounds read it where it lies.
        self._recorded = torch.zeros(slots, self._capacity, dtype=torch.int64, device=self._device)
        self.rounds: list[Any] = []  # their shapes, one for each sequence
        self._lengths_of: dict[Any, int] = {}  # committed before the last round of a shape

    def record(self, slot: int, text: Sequence[int]) -> None:
        """Set what is proposed in a slot, from the prompt's first token on."""
        self._recorded[slot, : len(text)] = torch.tensor(text, device=self._device)

    def _proposed(self, shape: Any, target_tokens: Tensor) -> None:
        slots = slice(shape.first, shape.first + shape.num_slots)
        ahead = torch.arange(shape.num_proposals, device=self._device)
        places = self._lengths[slots, None] + ahead
        target_tokens[:, 1:] = self._recorded[slots].gather(1, places.clamp(max=self._capacity - 1))

    def _read(self, sequence: int, flight: Any) -> SequenceRound:
        self.rounds.append(flight.shape)
        self._lengths_of[flight.shape] = self._slots[sequence].length
        return super()._read(sequence, flight)

    # Parts of a round of one sequence, to be timed when it has ended ------------------------------

    def whole(self, shape: Any) -> Callable[[], object]:
        """Return the last round of a shape as it was replayed, from the same lengths every time."""
        lengths = self._as_before(shape)

        def run() -> None:
            self._lengths.copy_(lengths)
            self._rounds[shape]()

        return run

    @torch.inference_mode()
    def bare(self, shape: Any) -> list[Callable[[], object]]:
        """Return the forwards of the target and, with proposals, of the draft, each a graph.

        Their inputs are those of the last round of that shape.
        """
        buffers = self._buffers(shape)
        self._lengths.copy_(self._as_before(shape))
        self._run(shape, buffers)
        where = {"first": shape.first, "context": shape.context}
        rows = torch.arange(buffers["target_tokens"].numel(), device=self._device)
        self._held.append(buffers | {"rows": rows})

        def forward(model: StaticModel, *names: str, rows: Tensor) -> Callable[[], object]:
            tokens, positions = (buffers[name] for name in names)
            return lambda: model.forward(tokens, positions, rows, **where)

        runs = [forward(self._target, "target_tokens", "target_positions", rows=rows)]
        if shape.num_proposals > 0:
            assert self._draft is not None
            rows = buffers["draft_rows"]
            runs.append(forward(self._draft, "draft_tokens", "draft_positions", rows=rows))
        return [captured(run) for run in runs] if self._capture else runs

    def _as_before(self, shape: Any) -> Tensor:
        """Put the slot to use again; return the lengths before the last round of a shape."""
        sampling = torch.frombuffer(bytearray(slot_sampling(SamplingParams())), dtype=torch.uint8)
        self._sampling[0] = sampling.to(self._device)
        return torch.full_like(self._lengths, self._lengths_of[shape])


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a graph of `run`."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class RecordedAssistant:
    """An `assistant_model` for transformers' generate that proposes a recorded text.

    Parameters
    ----------
    draft
        Its forward runs; its logits are replaced.
    vocab_size
        The target's: generate refuses another, which Qwen2.5's own drafts have.
    """

    def __init__(self, draft: LoadedModel, vocab_size: int, capacity: int) -> None:
        self.module = draft.module
        self.module.config.vocab_size = vocab_size
        self._vocab_size = vocab_size
        device = self.module.device
        self._recorded = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.module.register_forward_hook(self._propose, with_kwargs=True)

    def record(self, text: Sequence[int], num_assistant_tokens: int) -> None:
        """Set what is proposed, from the prompt's first token on, and how much in a round."""
        self._recorded[: len(text)] = torch.tensor(text, device=self._recorded.device)
        config = self.module.generation_config
        config.num_assistant_tokens = num_assistant_tokens
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0

    def _propose(self, _: Any, __: Any, inputs: dict[str, Any], output: Any) -> Any:
        rows = output.logits.shape[1]
        following = inputs["position_ids"][:, -rows:] + 1
        proposed = self._recorded[following.clamp(max=len(self._recorded) - 1)]
        logits = output.logits.new_zeros(1, rows, self._vocab_size)
        output.logits = logits.scatter_(2, proposed[..., None], 1.0)
        return output
