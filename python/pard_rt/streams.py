"""Requests of a decoder, and the streams that read them while rounds go on."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from pard_rt._core import Decoder, Sequence, TokenEvent
from pard_rt.options import Params
from pard_rt.outputs import Output, Piece, Stats
from pard_rt.text import Reading, TokenText

__all__ = ["Request", "Rounds", "Stream"]


class Request:
    """A sequence and what has been read of it, how long it took, and the error that ended it.

    All that is read follows from the committed tokens, by position: what an interrupt leaves
    unread is read the next time.

    Attributes
    ----------
    pieces
        A piece for every token that has been read. It only grows, so any thread may look at it.
    seconds
        How long it took, once it has ended.
    """

    def __init__(self, params: Params, text: TokenText | None) -> None:
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.sequence: Sequence | None = None  # once it is started
        self.pieces: list[Piece] = []
        self.seconds: float | None = None
        self.error: Exception | None = None
        self.reading = Reading(text, params.stop, params.skip_special_tokens)
        self._began = time.perf_counter()

    def read(self) -> None:
        """Read the tokens that have been committed, up to the one that completes a stop string."""
        sequence = self.sequence
        assert sequence is not None
        tokens, from_draft = sequence.generated, sequence.from_draft
        while not self.reading.stopped and (i := self.reading.num_tokens) < len(tokens):
            is_last = sequence.finished and i + 1 == len(tokens)
            token = int(tokens[i])
            reading = self.reading.read(token, is_last=is_last)
            self.pieces[i:] = [Piece(reading.piece, token, bool(from_draft[i]))]
            self.reading = reading

    def observe(self, _: TokenEvent) -> bool:
        """Tell a decoder whether to go on, a token having been committed."""
        if self.sequence is None:
            return False  # an interrupt took it from start()
        self.read()
        return not self.reading.stopped

    def close(self) -> None:
        """Note that it has ended."""
        self.seconds = self.elapsed()

    def elapsed(self) -> float:
        """Seconds it has taken."""
        return time.perf_counter() - self._began if self.seconds is None else self.seconds

    def ended(self) -> bool:
        """Tell whether it has ended.

        Raises
        ------
        Error
            The error that ended it, whoever ran the round.
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

    def request(self, params: Params) -> Request:
        """Return a request that is yet to start. Whoever holds it must end it."""
        return Request(params, self._text)

    def start(self, request: Request, prompt: Any) -> None:
        """Decode a request from the next round on."""
        params = request.params
        with self._lock:
            request.sequence = self._decoder.add(
                prompt,
                max_new_tokens=params.max_new_tokens,
                sampling=params.sampling(request.seed),
                eos_token_ids=params.eos_token_ids or (),
                stop_token_ids=params.stop_token_ids,
                observer=request.observe if params.stop else None,
            )
            self._live.append(request)

    def step(self) -> None:
        """Run a round. If a model fails, every request ends: none is known to be sane."""
        with self._lock:
            self._settle()  # what an interrupted round left
            try:
                self._decoder.step()
            except Exception as error:
                for request in list(self._live):
                    request.error = error
                    self.end(request)
                raise
            self._settle()

    def _settle(self) -> None:
        """Read what has been committed, and close the requests that are done."""
        for request in self._live:
            request.read()
            assert request.sequence is not None
            if request.reading.stopped:
                request.sequence.cancel()  # unless the round has ended it
            if request.reading.stopped or request.sequence.finished:
                request.close()
        self._live = [request for request in self._live if request.seconds is None]

    def end(self, request: Request) -> None:
        """End a request, if it has not ended, and free what it held."""
        with self._lock:
            if request.sequence is None or request.seconds is not None:
                return
            request.read()
            request.sequence.cancel()
            request.close()
            self._live = [other for other in self._live if other is not request]
            if not self._live:
                self._decoder.step()  # runs no model: it only lets cancelled sequences go

    def output_of(self, request: Request) -> Output:
        """Return what has come of a request."""
        sequence = request.sequence
        assert sequence is not None
        with self._lock:
            request.read()
            reading, ended = request.reading, request.seconds is not None
            reason = "stop" if reading.stopped else sequence.finish_reason
            if ended and reason is None:
                reason = "cancelled"
            text = None
            if reading.text is not None:
                text = reading.whole() if ended else reading.sure
            tokens = [piece.token_id for piece in request.pieces]
            stats = Stats(sequence.counts, request.elapsed())
            return Output(text, tokens, reason, request.seed, stats)


class Stream:
    """A text as it comes: an iterator of `Piece`, one for every token.

    A stream that is closed, or that nobody holds any more, ends its request. After an interrupt
    (Ctrl-C) it may be read on: no piece is lost.
    """

    def __init__(self, rounds: Rounds, prompt: Any, params: Params) -> None:
        self._rounds = rounds
        self._num_read = 0
        self._request = rounds.request(params)
        rounds.start(self._request, prompt)

    def __iter__(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Piece:
        pieces = self._request.pieces
        while self._num_read >= len(pieces) and not self._request.ended():
            self._rounds.step()
        if self._num_read >= len(pieces):
            raise StopIteration
        piece = pieces[self._num_read]
        self._num_read += 1  # last: Python is not interrupted between here and the caller
        return piece

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
