"""Rounds as graphs: everything between two reads of the host runs on the device.

A round is four steps over slots, whose shapes depend on K and the number of slots alone: build the
draft's input, draft forward, choose the proposals; target forward, choose and verify. On a GPU they
are captured once and replayed; elsewhere they are run again, and everything else is the same.

Tokens and lengths live on the device, so the host launches a round before it has read the last one.
What a round did past the end of a sequence is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pard_rt._core import (
    MAX_ROUND_ROWS,
    SLOT_RECORD_INTS,
    ModelInfo,
    RoundExecutor,
    Sequence,
    SequenceRound,
    check_compatible,
    num_proposable,
    slot_sampling,
)
from pard_rt.errors import (
    Error,
    InvalidArgumentError,
    LogitsError,
    ModelError,
    first_line,
    require_range,
)
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.compiling import compiling
from pard_rt.pytorch.kernels import open_kernels, try_kernels
from pard_rt.pytorch.static_model import StaticModel
from pard_rt.pytorch.torch_model import TorchModel

if TYPE_CHECKING:
    from pard_rt.models import OpenedModel

Capturing: TypeAlias = "Callable[[str], AbstractContextManager[object]]"

_SMALLEST_CONTEXT = 256  # buckets of positions looked at: this, twice this, ..
_SAMPLING_BYTES = 32


def capture(
    target: OpenedModel,
    draft: OpenedModel | None = None,
    *,
    most_slots: int = 16,
    torch_compile: bool = False,
    capturing: Capturing = nullcontext,
) -> CapturedExecutor:
    """Make the executor of opened models, with as many slots as there is memory for.

    Raises
    ------
    RuntimeMissingError
        No driver, or no code object for the card.
    ModelError
        There is no room for one sequence of the target's max_length.
    Error
        See `CapturedExecutor`.
    """
    assert target.loaded is not None
    per_slot = _bytes_per_position(target)
    if draft is not None:
        assert draft.loaded is not None
        per_slot += _bytes_per_position(draft)
    per_slot *= target.info.max_length + MAX_ROUND_ROWS
    slots, device = most_slots, target.loaded.seam.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        slots = min(most_slots, int(0.8 * free) // per_slot)
        if slots < 1:
            raise ModelError(
                f"There is no room for a sequence of {target.info.name} on {device}",
                f"{per_slot / 2**30:.1f} GiB for the keys and values of "
                f"{target.info.max_length} positions",
                f"{free / 2**30:.1f} GiB free",
                "Pass a smaller max_length, or free memory of the card.",
            )
    return CapturedExecutor(
        target.loaded,
        None if draft is None else draft.loaded,
        None if draft is None else draft.mask_token_id,
        max_batch_size=slots,
        torch_compile=torch_compile,
        capturing=capturing,
    )


def _bytes_per_position(opened: OpenedModel) -> int:
    assert isinstance(opened.model, TorchModel)
    assert opened.loaded is not None
    layout, dtype = opened.model.layout, opened.loaded.seam.dtype
    return 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * dtype.itemsize


@dataclass(frozen=True)
class _Shape:
    """What a captured round depends on."""

    num_proposals: int  # K
    first: int  # slot
    num_slots: int
    context: int

    def __str__(self) -> str:
        return f"K = {self.num_proposals}, {self.num_slots} slots, {self.context} positions"


@dataclass
class _Slot:
    """What the host knows of a sequence."""

    index: int
    length: int  # committed
    draft_cached: int = 0
    draft_seen: int = 0  # committed before the round in flight, which the draft has then cached


@dataclass
class _Flight:
    """Records on their way to the host."""

    shape: _Shape
    records: Tensor  # int32 [num_slots of the executor, SLOT_RECORD_INTS], in host memory
    arrived: torch.cuda.Event | None

    def read(self, index: int) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        values: list[int] = self.records[index].tolist()
        return values


class CapturedExecutor(RoundExecutor):
    """A `RoundExecutor` over two PyTorch modules, a round of which is one graph.

    Parameters
    ----------
    target
        The model whose text comes out, loaded on the device that all of it runs on.
    draft, mask_token_id
        A parallel draft on the same device, and its mask token; without them rounds are plain.
    max_batch_size
        Slots: the decoder's max_batch_size is at most this.
    max_length
        Positions of a slot; the target's limit by default and at most.
    prefill_chunk
        Tokens of a prompt that one forward takes.
    capture
        Capture rounds as graphs; by default on GPUs, nowhere else can it be done.
    torch_compile
        Run the forwards of rounds through ``torch.compile``, anew for every shape of a round.
    ahead
        Launch a round before the last one has been read.
    capturing
        Called with a line that says so, for a context to prepare a round of a new shape in: that
        can take seconds.

    Raises
    ------
    IncompatibleModelsError
        The draft has another vocabulary.
    InvalidArgumentError
        An argument is out of range.
    RuntimeMissingError
        No driver, or no code object for the card.
    """

    def __init__(
        self,
        target: LoadedModel,
        draft: LoadedModel | None = None,
        mask_token_id: int | None = None,
        *,
        max_batch_size: int = 1,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        capture: bool | None = None,
        torch_compile: bool = False,
        ahead: bool = True,
        capturing: Capturing = nullcontext,
    ) -> None:
        super().__init__()
        for name, value in (("max_batch_size", max_batch_size), ("prefill_chunk", prefill_chunk)):
            require_range(name, value, 1, 1 << 24, "Leave it at its default.")
        limit = target.facts.max_length
        self._max_length = min(limit, max_length or limit)
        self._capacity = self._max_length + MAX_ROUND_ROWS
        self._kernels = open_kernels(target.seam.device)  # or refused, before more
        slots = self._num_slots = max_batch_size
        self._target = StaticModel(target, slots, self._capacity, torch_compile=torch_compile)
        self._draft: StaticModel | None = None
        self._mask_token = 0
        device = self._device = self._target.device
        if draft is not None:
            if mask_token_id is None or draft.seam.device != device:
                raise InvalidArgumentError(
                    "The draft cannot be captured with the target",
                    f"a mask token, and a draft on {device}",
                    f"mask token {mask_token_id}, on {draft.seam.device}",
                    "Load both models on one device, and name the draft's mask token.",
                )
            self._draft = StaticModel(draft, slots, self._capacity, torch_compile=torch_compile)
            self._mask_token = mask_token_id
            check_compatible(self._target.info, self._draft.info)
        self._prefill_chunk = prefill_chunk
        self._capture = device.type == "cuda" if capture is None else capture
        self._compiles = torch_compile
        self._ahead = ahead
        self._capturing = capturing
        if device.type == "cuda":
            try_kernels(self._kernels, 3 * torch.randn(4, 1003, device=device))

        def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._tokens = ints(slots, self._capacity)
        self._lengths = ints(slots, dtype=torch.int64)
        self._sampling = ints(slots, _SAMPLING_BYTES, dtype=torch.uint8)
        self._chosen = ints(slots, MAX_ROUND_ROWS)
        self._bad_draft = ints(slots)
        self._arrived = ints(slots)
        self._records = ints(slots, SLOT_RECORD_INTS)
        self._rounds: dict[_Shape, Callable[[], None]] = {}
        self._held: list[dict[str, Tensor]] = []  # graphs do not keep what they read and write
        self._slots: dict[int, _Slot] = {}
        self._batch: list[tuple[int, _Flight]] = []
        self._in_flight: _Flight | None = None  # launched and not read
        self._next: tuple[list[Sequence], int] | None = None  # to be launched ahead

    @property
    def max_batch_size(self) -> int:
        """Slots there are."""
        return self._num_slots

    # What the decoder asks for ------------------------------------------------------------------

    def target_info(self) -> ModelInfo:
        """Name, sizes and vocabulary of the target; max_length is that of a slot."""
        info = self._target.info
        return ModelInfo(
            name=info.name,
            vocab_size=info.vocab_size,
            max_length=self._max_length,
            num_tokens=info.num_tokens,
            token_bytes=info.token_bytes,
        )

    def can_draft(self) -> bool:
        """Whether there is a draft."""
        return self._draft is not None

    @torch.inference_mode()
    def launch(self, batch: ListLike[Sequence], num_speculative_tokens: int) -> None:
        """Start a round; one launched ahead is it, for the sequences that were there."""
        old = [sequence for sequence in batch if sequence.id in self._slots]
        new = [sequence for sequence in batch if sequence.id not in self._slots]
        flights: dict[int, _Flight] = {}
        flight = self._in_flight
        if old:
            if flight is None:
                flight = self._in_flight = self._launch_round(old, num_speculative_tokens)
            flights.update({sequence.id: flight for sequence in old})
        for sequence in new:
            flights[sequence.id] = self._begin(sequence)
        self._in_flight = None
        self._batch = [(sequence.id, flights[sequence.id]) for sequence in batch]
        self._next = None
        if self._ahead and not new and any(sequence.remaining > 1 for sequence in old):
            self._next = (old, num_speculative_tokens)

    @torch.inference_mode()
    def collect(self) -> list[SequenceRound]:
        """Read the round, once the next one is on its way."""
        if self._next is not None:
            sequences, num_proposals = self._next
            shape = self._batch[0][1].shape
            # The round in flight may commit K + 1 tokens of each.
            most = max(self._slots[s.id].length for s in sequences) + shape.num_proposals + 1
            self._next = None
            if shape.num_proposals == num_proposals and self._fits(most, num_proposals):
                self._in_flight = self._batch[0][1]  # read again where the next one fails
                self._in_flight = self._fly(self._shape(sequences, most, num_proposals))
        return [self._read(sequence, flight) for sequence, flight in self._batch]

    def keep(self, sequence: int, length: int) -> None:
        """Note how much of the round was committed."""
        slot = self._slots[sequence]
        slot.draft_cached = slot.draft_seen
        slot.length = length

    def release(self, sequence: int) -> None:
        """Free a sequence's slot."""
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._sampling[slot.index].zero_()

    # A round --------------------------------------------------------------------------------------

    def _launch_round(self, sequences: ListLike[Sequence], num_proposals: int) -> _Flight:
        most = max(self._slots[sequence.id].length for sequence in sequences)
        if not self._fits(most, num_proposals):
            num_proposals = 0
        if num_proposals > 0:
            for sequence in sequences:
                self._catch_up(self._slots[sequence.id], num_proposals)
        return self._fly(self._shape(sequences, most, num_proposals))

    def _fits(self, length: int, num_proposals: int) -> bool:
        """Whether every row of a round has a position below the models' limits."""
        limits = [self._max_length]
        if num_proposals > 0 and self._draft is not None:
            limits.append(self._draft.info.max_length)
        return max(length + num_proposals, 2 * num_proposals) <= min(limits)

    def _shape(self, sequences: ListLike[Sequence], most: int, num_proposals: int) -> _Shape:
        used = max(self._slots[sequence.id].index for sequence in sequences) + 1
        num_slots = 1
        while num_slots < used:
            num_slots *= 2
        return _Shape(
            num_proposals if self._draft is not None else 0,
            0,
            min(num_slots, self._num_slots),
            self._context(most + 2 * num_proposals + 1),
        )

    def _context(self, length: int) -> int:
        context = _SMALLEST_CONTEXT
        while context < length:
            context *= 2
        return min(context, self._capacity)

    def _fly(self, shape: _Shape) -> _Flight:
        if shape not in self._rounds:
            with self._capturing(f"capturing rounds: {shape}"):
                self._rounds[shape] = self._prepare(shape)
        self._rounds[shape]()
        return self._send(shape)

    def _send(self, shape: _Shape) -> _Flight:
        if self._device.type != "cuda":
            return _Flight(shape, self._records.clone(), None)
        records = torch.empty(self._records.shape, dtype=torch.int32, pin_memory=True)
        records.copy_(self._records, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Flight(shape, records, arrived)

    def _read(self, sequence: int, flight: _Flight) -> SequenceRound:
        slot = self._slots[sequence]
        length, _, num_accepted, num_tokens, bad_draft, *tokens = flight.read(slot.index)
        assert length == slot.length, "the device and the host disagree about a sequence"
        num_proposals = flight.shape.num_proposals
        if num_proposals > 0:
            slot.draft_seen = length
        if num_tokens == 0:
            model = self._draft if bad_draft and self._draft is not None else self._target
            return SequenceRound(
                error=LogitsError(
                    f"No token can be chosen from a logits row of '{model.info.name}'",
                    "every logit finite or -inf, and at least one finite",
                    f"a row that is not so, behind position {length - 1} of sequence {sequence}",
                    "Check the model's weights, its precision and any mask on its logits.",
                )
            )
        return SequenceRound(
            num_proposals=num_proposals, num_accepted=num_accepted, tokens=tokens[:num_tokens]
        )

    # Sequences that join --------------------------------------------------------------------------

    def _begin(self, sequence: Sequence) -> _Flight:
        """Prefill a new sequence and run its first round, a plain one."""
        free = set(range(self._num_slots)) - {slot.index for slot in self._slots.values()}
        if not free:
            raise InvalidArgumentError(
                "There are more sequences than slots",
                f"a decoder whose max_batch_size is at most {self._num_slots}",
                f"{self._num_slots + 1} sequences",
                "Give decoder and executor the same max_batch_size.",
            )
        index = min(free)
        tokens = torch.from_numpy(sequence.tokens)
        length = len(tokens)
        self._tokens[index, :length] = tokens.to(self._device)
        self._lengths[index] = length
        sampling = torch.frombuffer(bytearray(slot_sampling(sequence.sampling)), dtype=torch.uint8)
        self._sampling[index] = sampling.to(self._device)
        self._prefill(self._target, index, 0, length - 1)
        self._slots[sequence.id] = _Slot(index, length)
        shape = _Shape(0, index, 1, self._context(length + 1))
        self._run(shape, self._buffers(shape))
        return self._send(shape)

    def _catch_up(self, slot: _Slot, num_proposals: int) -> None:
        """Let the draft see what its next input does not hold: that ends with K + 1 tokens."""
        assert self._draft is not None
        if slot.length - slot.draft_cached > num_proposals + 1:
            self._prefill(self._draft, slot.index, slot.draft_cached, slot.length - 1)
            slot.draft_cached = slot.length - 1

    def _prefill(self, model: StaticModel, index: int, begin: int, end: int) -> None:
        nothing = torch.zeros(0, dtype=torch.int64, device=self._device)
        for start in range(begin, end, self._prefill_chunk):
            stop = min(start + self._prefill_chunk, end)
            tokens = self._tokens[index : index + 1, start:stop].long()
            if model is self._draft:
                tokens = tokens.where(tokens < model.num_embeddings, self._mask_token)
            positions = torch.arange(start, stop, device=self._device)[None]
            model.forward(tokens, positions, nothing, first=index, context=stop)

    # What is captured -----------------------------------------------------------------------------

    def _buffers(self, shape: _Shape) -> dict[str, Tensor]:
        k, slots = shape.num_proposals, shape.num_slots
        sizes = {
            "draft_tokens": (slots, 2 * k),
            "draft_positions": (slots, 2 * k),
            "draft_rows": (slots * k,),
            "target_tokens": (slots, k + 1),
            "target_positions": (slots, k + 1),
        }
        return {
            name: torch.zeros(size, dtype=torch.int64, device=self._device)
            for name, size in sizes.items()
        }

    def _prepare(self, shape: _Shape) -> Callable[[], None]:
        buffers = self._buffers(shape)
        eager = partial(self._run, shape, buffers)
        run = partial(eager, compiled=self._compiles)
        if not self._capture:
            if self._compiles:
                self._warm_up(eager, run)
            return run
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm_up(eager, run, run)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except Error:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"A round of {self._models()} cannot be captured as a graph",
                "modules that read no value of a tensor on the host",
                first_line(error),
                "Write such steps with tensors alone, as torch.where does.",
            ) from error
        self._held.append(buffers)
        return graph.replay

    def _models(self) -> str:
        models = (self._draft, self._target)
        return " and ".join(model.info.name for model in models if model is not None)

    def _warm_up(self, *rounds: Callable[[], None]) -> None:
        """Run real rounds: what they write lies behind the lengths, which are put back.

        The first one makes the buffers of keys and values, which no compiled forward can.
        """
        lengths = self._lengths.clone()
        with compiling(self._models()) if self._compiles else nullcontext():
            for run in rounds:
                run()
                self._lengths.copy_(lengths)

    def _proposed(self, shape: _Shape, target_tokens: Tensor) -> None:
        """Let a subclass change the proposals, target_tokens[:, 1:], on the device."""

    def _run(self, shape: _Shape, buffers: dict[str, Tensor], *, compiled: bool = False) -> None:
        k, first, slots = shape.num_proposals, shape.first, shape.num_slots
        stream = torch.cuda.current_stream().cuda_stream if self._device.type == "cuda" else 0
        state = {
            "tokens": self._tokens[first].data_ptr(),
            "lengths": self._lengths[first].data_ptr(),
            "sampling": self._sampling[first].data_ptr(),
        }
        addresses = {name: tensor.data_ptr() for name, tensor in buffers.items()}
        self._kernels.build_input(
            **state,
            **addresses,
            capacity=self._capacity,
            mask_token=self._mask_token,
            draft_vocab=0 if self._draft is None else self._draft.num_embeddings,
            num_proposals=k,
            num_slots=slots,
            stream=stream,
        )

        def choose_rows(logits: Tensor, num_rows: int, vocab_size: int, is_target: bool) -> None:
            self._kernels.choose_and_verify(
                logits=logits.data_ptr(),
                dtype=str(logits.dtype).removeprefix("torch."),
                row_stride=logits.stride(0),
                vocab_size=vocab_size,
                num_rows=num_rows,
                is_target=is_target,
                **state,
                capacity=self._capacity,
                target_tokens=addresses["target_tokens"],
                chosen=self._chosen[first].data_ptr(),
                bad_draft=self._bad_draft[first].data_ptr(),
                arrived=self._arrived[first].data_ptr(),
                records=self._records[first].data_ptr(),
                num_slots=slots,
                stream=stream,
            )

        target = self._target
        if k > 0:
            assert self._draft is not None
            logits = self._draft.forward(
                buffers["draft_tokens"],
                buffers["draft_positions"],
                buffers["draft_rows"],
                first=first,
                context=shape.context,
                compiled=compiled,
            )
            choose_rows(logits, k, num_proposable(target.info, self._draft.info), False)
            self._proposed(shape, buffers["target_tokens"])
        rows = torch.arange(slots * (k + 1), device=self._device)
        logits = target.forward(
            buffers["target_tokens"],
            buffers["target_positions"],
            rows,
            first=first,
            context=shape.context,
            compiled=compiled,
        )
        choose_rows(logits, k + 1, target.info.vocab_size, True)
