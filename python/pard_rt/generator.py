"""`Generator`: text in, text out, several tokens per forward of the target."""

from __future__ import annotations

import copy
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pard_rt._core import (
    AutoregressiveDrafter,
    Decoder,
    Drafter,
    ParallelDrafter,
    RoundCounts,
    SamplingParams,
    Sequence,
    TokenEvent,
)
from pard_rt.errors import IncompatibleModelsError, InvalidArgumentError
from pard_rt.hub import locate
from pard_rt.opening import OpenedModel, kind_of, open_model
from pard_rt.text import TextStream, TokenText

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Backend",
    "Generator",
    "Method",
    "Options",
    "Output",
    "Piece",
    "Prompt",
    "Stats",
    "Stream",
]

Method = Literal["auto", "pard", "draft", "plain"]
Backend = Literal["auto", "onnx", "torch"]
Prompt = str | ListLike[int] | NDArray[np.integer[Any]]  # a text, or token ids [n]
Source = str | os.PathLike[str]

_DEVICES = ("cpu", "cuda", "migraphx", "rocm")
_DEMO_DRAFTS = {"auto": "demo/parallel", "pard": "demo/parallel", "draft": "demo/classic"}


class Options(TypedDict, total=False):
    """How to generate: see `Generator.generate`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop_token_ids: ListLike[int]
    eos_token_ids: ListLike[int] | None


@dataclass(frozen=True)
class Stats:
    """What a text took.

    Attributes
    ----------
    counts
        Rounds, proposals and what came of them, by place in the round.
    seconds
        From the request to its last token, whoever else was decoded meanwhile.
    """

    counts: RoundCounts
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens committed per second."""
        return self.counts.committed / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Tokens committed per forward of the target: 1 in plain decoding."""
        return self.counts.mean_tokens_per_round


@dataclass(frozen=True)
class Output:
    """What was generated behind one prompt.

    Attributes
    ----------
    text
        As the tokenizer spells it, special tokens left out and what is no UTF-8 as U+FFFD; None
        where the target's folder has no tokenizer.
    token_ids
        The token that ended it is among them.
    finish_reason
        'eos', 'stop', 'length' or 'cancelled'; None while a stream goes on.
    seed
        What it was sampled with: the same one gives the same text.
    stats
        What it took.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str | None
    seed: int
    stats: Stats


@dataclass(frozen=True)
class Piece:
    """A token of a stream; printed, it is its text.

    Attributes
    ----------
    text
        The characters it completes: for most tokens one or more, for some none yet.
    token_id
        The token.
    from_draft
        Whether it is an accepted proposal, not a correction or bonus token.
    """

    text: str
    token_id: int
    from_draft: bool

    def __str__(self) -> str:
        return self.text


class Generator:
    """Generates a target's own text, several tokens per forward of the target.

    It belongs to one thread at a time.

    Parameters
    ----------
    target
        An ONNX folder, a Hugging Face directory, or an id on the hub; ``"demo"`` is the small model
        of Python source code that comes with the package.
    draft
        The same for a draft of the target's family. The demo has drafts of its own.
    method
        ``"pard"``: all proposals in one forward of a parallel draft. ``"draft"``: classic
        speculative decoding, a forward per proposal. ``"plain"``: no proposals, draft or not.
        ``"auto"``: what the draft was made for; plain without one.
    num_speculative_tokens
        Proposals per round (K), 0..64.
    device
        ``"cpu"``; for ONNX folders also ``"cuda"``, ``"migraphx"`` or ``"rocm"``, the execution
        providers of ONNX Runtime.
    backend
        ``"onnx"`` or ``"torch"`` refuses models that would run in the other.
    max_length
        Positions a sequence may have, prompt included; the target's limit by default and at most.
    mask_token_id
        The parallel draft's mask token, where its folder does not say it.
    threads
        Of one forward; 0: one for every physical core.

    Raises
    ------
    FolderError, ModelError, RuntimeMissingError
        A model cannot be had, opened or run.
    IncompatibleModelsError
        The draft has another tokenizer, or is to be a parallel one and nothing names a mask token.
    InvalidArgumentError
        An argument is out of range, or the method needs a draft.

    Examples
    --------
    >>> generator = Generator()
    >>> generator.generate("def fibonacci(", max_new_tokens=3).finish_reason
    'length'
    """

    def __init__(
        self,
        target: Source = "demo",
        draft: Source | None = None,
        *,
        method: Method = "auto",
        num_speculative_tokens: int = 8,
        device: str = "cpu",
        backend: Backend = "auto",
        max_length: int | None = None,
        mask_token_id: int | None = None,
        threads: int = 0,
    ) -> None:
        _check_choice("device", device, _DEVICES)
        _check_choice("backend", backend, get_args(Backend))
        _check_method(
            method, draft, target == "demo"
        )  # before a large target is opened for nothing
        self._open = partial(_open, backend=backend, provider=device, threads=threads)
        self._is_demo = target == "demo"
        self._target = self._open(target, max_length=max_length)
        self._text = _text_of(self._target)
        self._draft_with(method, draft, num_speculative_tokens, mask_token_id)

    def with_method(
        self,
        method: Method,
        draft: Source | None = None,
        *,
        num_speculative_tokens: int = 8,
        mask_token_id: int | None = None,
    ) -> Generator:
        """Return a generator that drafts otherwise, over this one's target: it is not opened twice.

        Parameters and errors are those of the class. The two belong to one thread.
        """
        other = copy.copy(self)
        other._draft_with(method, draft, num_speculative_tokens, mask_token_id)
        return other

    def _draft_with(
        self, method: Method, draft: Source | None, num_proposals: int, mask_token_id: int | None
    ) -> None:
        _check_method(method, draft, self._is_demo)
        if draft is None and self._is_demo:
            draft = _DEMO_DRAFTS.get(method)
        drafter: Drafter | None = None
        if draft is not None and method != "plain":
            opened = self._open(draft, is_target=False, mask_token_id=mask_token_id)
            drafter = _drafter_of(opened, method)
        self.decoder = Decoder(
            self._target.model,
            drafter,
            num_speculative_tokens=num_proposals if drafter is not None else 0,
        )

    @property
    def num_speculative_tokens(self) -> int:
        """Proposals per round (K), 0 in plain decoding; may be set between rounds."""
        return self.decoder.num_speculative_tokens

    @num_speculative_tokens.setter
    def num_speculative_tokens(self, value: int) -> None:
        self.decoder.num_speculative_tokens = value

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Output: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]] | list[Prompt], **options: Unpack[Options]
    ) -> list[Output]: ...
    def generate(self, prompt: Any, **options: Unpack[Options]) -> Output | list[Output]:
        """Generate behind one prompt, or behind several together.

        Parameters
        ----------
        prompt
            A text, or token ids of shape [n]; or a list of either.
        max_new_tokens : int
            At least 1; 128 by default.
        temperature, top_k, top_p, min_p : float, int, float, float
            See `SamplingParams`; greedy by default.
        seed : int, optional
            Of the noise of sampling, for every prompt the same: one seed gives a prompt one text,
            whatever the draft, K and its company. A fresh one by default.
        stop_token_ids : list of int
            Tokens that end a text besides the model's own.
        eos_token_ids : list of int, optional
            Tokens the model ends with; what its folder says by default.

        Returns
        -------
        Output, or a list of them
            As one prompt was given, or a list.

        Raises
        ------
        InvalidArgumentError
            A prompt or a parameter cannot be decoded; nothing has been.
        FolderError
            A prompt is a text, and the target has no tokenizer.
        ModelError
            A model failed, or a row allowed no choice.
        """
        alone = _is_one(prompt)
        params = self._params(**options)
        encoded = [self._encode(each) for each in ([prompt] if alone else prompt)]
        requests: list[_Request] = []
        try:
            for tokens in encoded:
                requests.append(_Request(self.decoder, tokens, params))
            while sum(not request.finished() for request in requests):
                self.decoder.step()
        except BaseException:
            for request in requests:
                request.sequence.cancel()
            raise
        outputs = [request.output(self._text) for request in requests]
        return outputs[0] if alone else outputs

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Generate behind one prompt, token by token as rounds publish them.

        Parameters and errors are those of `generate`; a model's error comes at the round that meets
        it.

        Examples
        --------
        >>> for piece in Generator().stream("import os", max_new_tokens=8):
        ...     print(piece, end="", flush=True)  # doctest: +SKIP
        """
        return Stream(self.decoder, self._encode(prompt), self._params(**options), self._text)

    def _params(
        self,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop_token_ids: ListLike[int] = (),
        eos_token_ids: ListLike[int] | None = None,
    ) -> _Params:
        sampling = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=secrets.randbits(63) if seed is None else seed,
        )
        ends = self._target.eos_token_ids if eos_token_ids is None else eos_token_ids
        return _Params(sampling, max_new_tokens, stop_token_ids, ends)

    def _encode(self, prompt: Any) -> Any:
        if not isinstance(prompt, str):
            return prompt
        return (self._text or self._target.text()).encode(prompt)  # the latter says what is missing


class Stream:
    """A text as it comes: an iterator of `Piece`, one for every token.

    A stream that is closed, or that nobody holds any more, ends its request.
    """

    def __init__(
        self, decoder: Decoder, prompt: Any, params: _Params, text: TokenText | None
    ) -> None:
        self._decoder = decoder
        self._text = text
        pieces = self._pieces = deque[Piece]()
        characters = None if text is None else TextStream(text)

        def observe(event: TokenEvent) -> None:  # knows nothing of the stream, which may be dropped
            spelled = "" if characters is None else characters.feed(event.token, event.is_last)
            pieces.append(Piece(spelled, event.token, event.from_draft))

        self._request = _Request(decoder, prompt, params, observe)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        while not self._pieces and not self._request.finished():
            try:
                self._decoder.step()
            except BaseException:
                self.close()
                raise
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def close(self) -> None:
        """End the request; pieces that have come may still be read."""
        self._request.sequence.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self.close()

    @property
    def output(self) -> Output:
        """What has come so far: all of it, once the stream has ended."""
        return self._request.output(self._text)


@dataclass(frozen=True)
class _Params:
    sampling: SamplingParams
    max_new_tokens: int
    stop_token_ids: ListLike[int]
    eos_token_ids: ListLike[int]


class _Request:
    """A sequence and how long it has taken."""

    def __init__(
        self,
        decoder: Decoder,
        prompt: Any,
        params: _Params,
        observer: Callable[[TokenEvent], None] | None = None,
    ) -> None:
        self.sequence: Sequence = decoder.add(
            prompt,
            max_new_tokens=params.max_new_tokens,
            sampling=params.sampling,
            eos_token_ids=params.eos_token_ids,
            stop_token_ids=params.stop_token_ids,
            observer=observer,
        )
        self._seed = params.sampling.seed
        self._began = time.perf_counter()
        self._ended: float | None = None

    def finished(self) -> bool:
        """Tell whether it is done, noting when it first was."""
        if self._ended is None and self.sequence.finished:
            self._ended = time.perf_counter()
        return self._ended is not None

    def output(self, text: TokenText | None) -> Output:
        tokens = [int(token) for token in self.sequence.generated]
        return Output(
            text=None if text is None else text.decode(tokens),
            token_ids=tokens,
            finish_reason=self.sequence.finish_reason,
            seed=self._seed,
            stats=Stats(self.sequence.counts, (self._ended or time.perf_counter()) - self._began),
        )


def _open(
    source: Source,
    *,
    backend: Backend,
    provider: str,
    threads: int,
    is_target: bool = True,
    max_length: int | None = None,
    mask_token_id: int | None = None,
) -> OpenedModel:
    path = locate(source)
    kind = kind_of(path)
    if backend != "auto" and backend != ("onnx" if kind == "onnx" else "torch"):
        raise InvalidArgumentError(
            f"'{path}' does not run in the backend {backend}",
            "an ONNX folder" if backend == "onnx" else "a Hugging Face directory",
            "an ONNX folder" if kind == "onnx" else "a Hugging Face directory",
            "Write an ONNX folder with pard-rt export, or leave the backend open.",
        )
    opened = open_model(
        path,
        provider=provider,
        threads=threads,
        is_target=is_target,
        max_length=max_length,
        mask_token_id=mask_token_id,
    )
    opened.probe()
    return opened


def _text_of(target: OpenedModel) -> TokenText | None:
    """None where a folder just has no tokenizer: token ids will do."""
    if kind_of(target.path) == "onnx" and not (target.path / "tokenizer.json").is_file():
        return None
    return target.text()


def _drafter_of(draft: OpenedModel, method: Method) -> Drafter:
    if method == "draft" or (method == "auto" and draft.mask_token_id is None):
        return AutoregressiveDrafter(draft.model)
    if draft.mask_token_id is None:
        raise IncompatibleModelsError(
            f"'{draft.path}' is no parallel draft",
            "a mask token in its folder, or mask_token_id",
            "none",
            'Name the mask token it was trained with, or take method="draft".',
        )
    return ParallelDrafter(draft.model, draft.mask_token_id)


def _is_one(prompt: Any) -> bool:
    """Tell one prompt from a list of prompts."""
    if isinstance(prompt, str) or getattr(prompt, "ndim", None) == 1:
        return True
    return len(prompt) > 0 and isinstance(prompt[0], (int, np.integer))


def _check_choice(what: str, given: str, known: ListLike[str]) -> None:
    if given not in known:
        raise InvalidArgumentError(
            f"Unknown {what}", ", ".join(known), repr(given), f"Choose a {what}."
        )


def _check_method(method: Method, draft: Source | None, is_demo: bool) -> None:
    _check_choice("method", method, get_args(Method))
    if method in ("pard", "draft") and draft is None and not is_demo:
        raise InvalidArgumentError(
            f'The method "{method}" needs a draft',
            "a folder or a hub id",
            "draft=None",
            'Name a draft of the target\'s family, or take method="plain".',
        )
