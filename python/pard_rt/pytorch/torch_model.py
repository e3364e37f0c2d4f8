"""`TorchModel`: a decoder in PyTorch as a `Model`, on any PyTorch device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pard_rt._core import ForwardItem, Model, ModelInfo, ProbeReport, probe_model
from pard_rt.errors import InvalidArgumentError, LogitsError, ModelError, fall_back
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.attention import Attention, PackedRows, Segment, SequenceCache
from pard_rt.pytorch.exact_rows import SLOTS, NewRows, Slotted, exact_forwards, rows_are_exact
from pard_rt.pytorch.fork import OpenedHere


class TorchModel(Model):
    """A causal language model with a KV cache per sequence, run by PyTorch.

    All rows of a batch go through the module as one packed row of tokens: weights are read once,
    nothing is padded, and the LM head runs on the rows asked for only.

    Parameters
    ----------
    loaded
        What `pard_rt.load` or `pard_rt.wrap` returned. A module of transformers stays as it is: a
        copy that shares its weights is run, with pard-rt's attention, proven equal to eager
        attention here.
    exact
        Compute rows of 16-bit weights on a CPU so that each has the same bits in any company: see
        `pard_rt.pytorch.exact_rows`. A `FallbackWarning` says where that cannot be had. Rows of
        float32 weights are within rounding, and so are those on GPUs.

    Raises
    ------
    ModelError
        The module cannot be run this way (see `pard_rt.pytorch.seam.Seam.adopt`).
    """

    def __init__(self, loaded: LoadedModel, *, exact: bool = False) -> None:
        super().__init__()
        facts = loaded.facts
        self._seam = loaded.seam
        adopted = self._seam.adopt(facts.max_length)
        self.layout, self._tolerance = adopted.layout, adopted.tolerance
        self._device = self._seam.device
        self._num_embeddings = self._seam.num_embeddings
        self._caches: dict[int, SequenceCache] = {}
        self._opened_here = OpenedHere()
        self._info = ModelInfo(
            name=facts.name,
            vocab_size=facts.vocab_size,
            max_length=facts.max_length,
            num_tokens=facts.num_tokens,
            head_tokens=facts.head_tokens,
            token_bytes=facts.token_bytes,
        )
        is_small = self._seam.dtype in (torch.bfloat16, torch.float16)
        self._row_by_row = exact and is_small and self._device.type == "cpu"
        self._exact = self._row_by_row and rows_are_exact(
            self._run, self._num_embeddings, facts.max_length
        )
        if self._row_by_row and not self._exact:
            self._row_by_row = False
            self._warn_of_rounding()

    def _warn_of_rounding(self) -> None:
        kind = str(self._seam.dtype).removeprefix("torch.")
        fall_back(
            "Texts may differ from plain decoding's where two tokens nearly tie",
            ModelError(
                f"{self._info.name} rounds rows otherwise in {kind} when others are beside them",
                "the same bits for a row in any company",
                "other bits on this CPU",
                "Load it with dtype='float32', where texts differ next to never.",
            ),
        )

    def info(self) -> ModelInfo:
        """Name, sizes and vocabulary of the model."""
        return self._info

    @property
    def exact(self) -> bool:
        """Whether a row has the same bits whatever rows are computed with it, as was tried."""
        return self._exact

    def forward(self, batch: Sequence[ForwardItem]) -> Tensor | None:
        """Run the new tokens of some sequences, no sequence twice.

        Writes the keys and values of the tokens at past_length and behind; what a cache held there
        before is void.

        Parameters
        ----------
        batch
            Items with ``tokens`` (token ids [R]), ``past_length`` (rows of the sequence's cache
            that are good) and ``num_rows`` (logits wanted for the last so many tokens).

        Returns
        -------
        Tensor or None
            Logits [sum of num_rows, vocab_size] in batch order, in the module's dtype, in host
            memory, where they are chosen from; None where no rows were asked for.

        Raises
        ------
        InvalidArgumentError
            A token outside the embedding, or a sequence longer than max_length.
        ModelError
            The process was forked after the model was opened, and PyTorch would hang.
        """
        self._opened_here.require(self._info.name, self._device)
        new = []
        for item in batch:
            tokens = np.asarray(item.tokens, dtype=np.int64)
            self._check(item, tokens)
            cache = self._caches.setdefault(item.sequence, SequenceCache(self._info.max_length))
            new.append(NewRows(cache, item.past_length, torch.from_numpy(tokens), item.num_rows))
        return self._run(new)

    @torch.inference_mode()
    def _run(self, batch: list[NewRows]) -> Tensor | None:
        if not any(len(rows.tokens) for rows in batch):
            return None
        if not self._row_by_row:
            return self._run_packed(batch)
        logits = [
            self._run_packed(rows) if rows[0].is_prefill else self._run_slotted(rows)
            for rows in exact_forwards(batch)
        ]
        found = [each for each in logits if each is not None]
        return torch.cat(found) if found else None

    def _run_packed(self, batch: list[NewRows]) -> Tensor | None:
        segments, wanted = [], []
        start = 0
        for new in batch:
            stop = start + len(new.tokens)
            segments.append(Segment(new.cache, new.past, start, stop))
            wanted.append(torch.arange(stop - new.num_wanted, stop))
            start = stop
        tokens = torch.cat([new.tokens for new in batch])
        positions = torch.cat([new.positions for new in batch])
        return self._logits(tokens, positions, torch.cat(wanted), PackedRows(segments))

    def _run_slotted(self, batch: list[NewRows]) -> Tensor | None:
        tokens, positions = torch.zeros(2, SLOTS, dtype=torch.int64)
        for new in batch:
            tokens[new.slots], positions[new.slots] = new.tokens, new.positions
        wanted = torch.cat([new.slots[len(new.slots) - new.num_wanted :] for new in batch])
        every = torch.arange(SLOTS if len(wanted) else 0)
        logits = self._logits(tokens, positions, every, Slotted(batch))
        return None if logits is None else logits[wanted]

    def _logits(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, attention: Attention
    ) -> Tensor | None:
        there = self._device
        logits = self._seam.logits(
            tokens[None].to(there), positions[None].to(there), rows.to(there), attention
        )
        return logits.cpu() if len(rows) else None

    def probe(self, max_rows: int = 2) -> ProbeReport:
        """Try forwards of 1 to `max_rows` rows, within what the module itself differs by.

        Raises
        ------
        ModelError
            Rows do not rewind, or depend on those beside them.
        """
        try:
            return probe_model(self, tolerance=self._tolerance, max_rows=max_rows)
        except LogitsError:
            raise
        except ModelError as error:
            raise ModelError(
                error.problem,
                error.expected,
                error.actual,
                "A row may depend on the tokens up to it and on nothing else, such as quantization "
                "of all rows by one scale.",
            ) from error

    def release(self, sequence: int) -> None:
        """Free what is kept for a sequence; unknown ids are ignored."""
        self._caches.pop(sequence, None)

    def cached_rows(self, sequence: int, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Copy what is cached for a sequence, for tests and debugging.

        Returns
        -------
        keys, values : Tensor [length, num_kv_heads, head_dim]
            Of positions 0 and on, keys after rotation, in the module's dtype, on its device. Which
            of them are good is the caller's to know, as in `forward`.

        Raises
        ------
        InvalidArgumentError
            The layer or that many rows are not there.
        """
        cache = self._caches.get(sequence)
        rows = 0 if cache is None else cache.capacity(layer)
        if cache is None or not 0 <= length <= rows:
            raise InvalidArgumentError(
                f"{self._info.name} has no such cached rows",
                f"at most {rows} rows of layer {layer} of sequence {sequence}",
                str(length),
                "Ask for rows that a forward has written.",
            )
        keys, values = cache.read(layer, length)
        return keys.clone(), values.clone()

    def _check(self, item: ForwardItem, tokens: np.ndarray[Any, Any]) -> None:
        length = item.past_length + len(tokens)
        if length > self._info.max_length:
            raise InvalidArgumentError(
                f"Sequence {item.sequence} is too long for {self._info.name}",
                f"at most {self._info.max_length} positions",
                str(length),
                "Shorten the prompt or allow fewer new tokens.",
            )
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._num_embeddings):
            raise InvalidArgumentError(
                f"A token of sequence {item.sequence} is outside the embedding",
                f"ids 0..{self._num_embeddings - 1}",
                f"ids {tokens.min()}..{tokens.max()}",
                "Check that the tokenizer belongs to this model.",
            )
