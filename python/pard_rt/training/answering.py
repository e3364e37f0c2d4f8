"""Who answers for `regenerate`: a target opened here, or an OpenAI server that runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import httpx

from pard_rt.errors import InvalidArgumentError, ModelError, first_line, require_range
from pard_rt.generator import Generator
from pard_rt.streams import Stream
from pard_rt.training.prompts import Answer, Asked

Sampling = dict[str, Any]
_INVENTING: Sampling = {"temperature": 1.0}
_SECONDS = 600.0  # an answer may take


class Pending(Protocol):
    """An answer in the making."""

    @property
    def answer(self) -> Answer | None:
        """None until it is whole."""


class Answerer(Protocol):
    """Continues prompts, several at a time."""

    max_length: int

    def ask(self, asked: Asked, seed: int) -> Pending:
        """Take a prompt. The answer depends on it and the seed alone."""

    def proceed(self, pending: Sequence[Pending]) -> None:
        """Work on the answers, or wait for one of them."""

    def close(self) -> None:
        """End what still runs."""


class LocalAnswerer:
    """A target in this process: answers share rounds."""

    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        self.max_length = generator.max_length
        self._generator = generator
        self._sampling = sampling

    def ask(self, asked: Asked, seed: int) -> Pending:
        """Begin a stream."""
        return _Streamed(
            self._generator.stream(
                asked.prompt,
                max_new_tokens=asked.max_new_tokens,
                seed=seed,
                stop_token_ids=asked.stop_token_ids,
                **(_INVENTING if asked.invents else self._sampling),
            )
        )

    def proceed(self, pending: Sequence[Pending]) -> None:
        """Read a token; where none has come yet, by a round of all streams."""
        first = pending[0]
        assert isinstance(first, _Streamed)
        next(first.stream)

    def close(self) -> None:
        """Leave nothing."""


class _Streamed:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @property
    def answer(self) -> Answer | None:
        if not self.stream.finished:
            return None
        output = self.stream.output
        counts = output.stats.counts
        is_cut = output.finish_reason == "length"
        return Answer(output.text or "", is_cut, counts.committed, counts.rounds)


class EndpointAnswerer:
    """A server with OpenAI's `/v1/completions` that takes token ids, as vLLM's and llama.cpp's do.

    Parameters
    ----------
    url
        Up to ``/v1``. The environment's OPENAI_API_KEY goes with every request, if there is one.
    model
        As the server calls it; by default the one that it serves.
    sampling, workers, max_length
        Of answers; how many are asked for at a time; positions of a sequence, by default what the
        server says.

    Raises
    ------
    InvalidArgumentError
        No server answers there, it serves no such model, or nobody says how long a sequence may be.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        sampling: Sampling,
        workers: int,
        max_length: int | None,
    ) -> None:
        self._url = url
        self._sampling = sampling
        self._client = self._connect()
        self.model, most = self._find(model)
        if max_length is None and not isinstance(most, int):
            raise InvalidArgumentError(
                f"The endpoint '{url}' does not say how long a sequence may be",
                "max_model_len among what it says of its models, or max_length",
                "neither",
                "Pass max_length.",
            )
        limit = most if isinstance(most, int) else 1 << 24
        self.max_length = limit if max_length is None else max_length
        require_range("max_length", self.max_length, 2, limit)
        self._pool = ThreadPoolExecutor(workers)

    def ask(self, asked: Asked, seed: int) -> Pending:
        """Send a request."""
        return _Requested(self._pool.submit(self._complete, asked, seed))

    def proceed(self, pending: Sequence[Pending]) -> None:
        """Wait until an answer is there."""
        futures = [each.future for each in pending if isinstance(each, _Requested)]
        wait(futures, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Drop requests that are not sent yet."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _connect(self) -> httpx.Client:
        key = os.environ.get("OPENAI_API_KEY")
        try:
            return httpx.Client(
                base_url=self._url.rstrip("/") + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(_SECONDS, connect=10.0),
                transport=httpx.HTTPTransport(retries=3),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise self._not_a_server(error) from error

    def _not_a_server(self, error: Exception) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"The endpoint '{self._url}' does not list its models",
            "the address of an OpenAI server, such as http://localhost:8000/v1",
            first_line(error),
            "Check the address, and that the server runs.",
        )

    def _find(self, model: str | None) -> tuple[str, Any]:
        """Return the model's name there, and how long its sequences may be if the server says."""
        try:
            answered = self._client.get("models").raise_for_status().json()
            served = {str(each["id"]): each.get("max_model_len") for each in answered["data"]}
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._not_a_server(error) from error
        if model is None and len(served) == 1:
            return next(iter(served.items()))
        if model in served:
            return model, served[model]
        raise InvalidArgumentError(
            f"The endpoint '{self._url}' serves "
            + ("several models" if model is None else "no such model"),
            ", ".join(served) or "a model",
            f"endpoint_model={model!r}",
            "Name one of those with endpoint_model.",
        )

    def _complete(self, asked: Asked, seed: int) -> Answer:
        body = {
            "model": self.model,
            "prompt": asked.prompt,
            "max_tokens": min(asked.max_new_tokens, self.max_length - len(asked.prompt)),
            "seed": seed % 2**63,  # servers read signed numbers
            "stop_token_ids": asked.stop_token_ids,
            **(_INVENTING if asked.invents else self._sampling),
        }
        try:
            answered = self._client.post("completions", json=body).raise_for_status().json()
            choice = answered["choices"][0]
            tokens = int((answered.get("usage") or {}).get("completion_tokens", 0))
            return Answer(str(choice["text"]), choice["finish_reason"] == "length", tokens)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            said = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
            raise ModelError(
                f"The endpoint '{self._url}' failed",
                "a completion",
                f"{first_line(error)} {said}".strip()[:300],
                "Run the command again once the server works: it resumes after the last line.",
            ) from error


class _Requested:
    def __init__(self, future: Future[Answer]) -> None:
        self.future = future

    @property
    def answer(self) -> Answer | None:
        return self.future.result() if self.future.done() else None
