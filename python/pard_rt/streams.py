"""Requests of a decoder, and the streams that read them while rounds go on."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

from pard_rt._core import Decoder, SamplingParams, Sequence, TokenEvent
from pard_rt.outputs import Output, Piece, Stats
from pard_rt.text import TextStream, TokenText, before_stop

__all__ = ["Params", "Request", "Rounds", "Stream"]


@dataclass(frozen=True)
class Params:
    """How a text is to be generated, checked."""

    filters: dict[str, Any]
    seed: int | None
    max_new_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: ListLike[int]
    eos_token_ids: ListLike[int]


@dataclass(eq=False)
class Request:
    """A sequence, how long it has taken, and the error that ended it."""

    sequence: Sequence
    stop: tuple[str, ...]
    seed: int
    began: float
    seconds: float | None = None  # once it has ended
    error: Exception | None = None

    def ended(self) -> bool:
        """Tell whether it is done.

        Raises
        ------
        Error
            What it met, whoever ran the round.
        """
        if self.error is not None:
            raise self.error
        return self.seconds is not None


class Rounds:
    """A decoder and its requests, whose rounds any thread may run, one at a time.

    `text` spells what they give; None: the target has no tokenizer.
    """

    def __init__(self, decoder: Decoder, lock: threading.RLock, text: TokenText | None) -> None:
        self._decoder = decoder
        self._lock = lock
        self._text = text
        self._live: list[Request] = []

    def add(
        self,
        prompt: Any,
        params: Params,
        on_piece: Callable[[Piece], object] | None = None,
    ) -> Request:
        """Take a prompt up, to be decoded from the next round on."""
        characters = None if self._text is None else TextStream(self._text, params.stop)

        def observe(event: TokenEvent) -> bool:
            spelled = "" if characters is None else characters.feed(event.token, event.is_last)
            if on_piece is not None:
                on_piece(Piece(spelled, event.token, event.from_draft))
            return characters is None or not characters.stopped

        seed = secrets.randbits(63) if params.seed is None else params.seed
        with self._lock:
            sequence = self._decoder.add(
                prompt,
                max_new_tokens=params.max_new_tokens,
                sampling=SamplingParams(**params.filters, seed=seed),
                eos_token_ids=params.eos_token_ids,
                stop_token_ids=params.stop_token_ids,
                observer=observe if params.stop or on_piece is not None else None,
            )
            request = Request(sequence, params.stop, seed, time.perf_counter())
            self._live.append(request)
            return request

    def step(self) -> None:
        """Run a round. A model that fails ends every request there is: none is known to be sane."""
        with self._lock:
            try:
                self._decoder.step()
            except Exception as error:
                for request in list(self._live):
                    request.error = error
                    self.end(request)
                raise
            for request in self._live:
                if request.sequence.finished:
                    request.seconds = time.perf_counter() - request.began
            self._live = [request for request in self._live if request.seconds is None]

    def end(self, request: Request) -> None:
        """End a request, if it has not, and free what it held."""
        with self._lock:
            if request not in self._live:
                return
            request.sequence.cancel()
            request.seconds = time.perf_counter() - request.began
            self._live.remove(request)
            if not self._live:
                self._decoder.step()  # runs no model: it only lets cancelled sequences go

    def output_of(self, request: Request) -> Output:
        """Return what has come of a request."""
        with self._lock:
            tokens = [int(token) for token in request.sequence.generated]
            ended = request.seconds is not None
            reason = request.sequence.finish_reason
            if ended and reason is None:
                reason = "cancelled"
            text = None if self._text is None else self._text.decode(tokens, is_all=ended)
            if text is not None and (before := before_stop(text, request.stop)) != text:
                text, reason = before, "stop"
            seconds = request.seconds or time.perf_counter() - request.began
            stats = Stats(request.sequence.counts, seconds)
            return Output(text, tokens, reason, request.seed, stats)


class Stream:
    """A text as it comes: an iterator of `Piece`, one for every token.

    A stream that is closed, or that nobody holds any more, ends its request.
    """

    def __init__(self, rounds: Rounds, prompt: Any, params: Params) -> None:
        self._rounds = rounds
        self._pieces = deque[Piece]()
        # Not a method of this object: the request may outlive whoever holds the stream.
        self._request = rounds.add(prompt, params, self._pieces.append)

    def __iter__(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Piece:
        while not self._pieces and not self._request.ended():
            self._rounds.step()
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def close(self) -> None:
        """End the request; pieces that have come may still be read."""
        self._rounds.end(self._request)

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self.close()

    @property
    def finished(self) -> bool:
        """Whether all of it has come, read or not: rounds of other streams bring it on too."""
        return self._request.ended()

    @property
    def output(self) -> Output:
        """What has come so far: all of it, once the stream has ended."""
        return self._rounds.output_of(self._request)
