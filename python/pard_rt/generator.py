"""`Generator`: text in, text out, several tokens per forward of the target."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListLike
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pard_rt._core import (
    AutoregressiveDrafter,
    Decoder,
    Drafter,
    ParallelDrafter,
)
from pard_rt.chat import ChatTemplate, Message
from pard_rt.errors import (
    IncompatibleModelsError,
    InvalidArgumentError,
    RuntimeMissingError,
    fall_back,
    notify,
    require_flag,
    require_range,
)
from pard_rt.models import Backend, OpenedModel, OpenOptions, Source, open_model
from pard_rt.models.facts import read_sampling
from pard_rt.options import Options, Params, read_options, refuse_unknown
from pard_rt.outputs import Output
from pard_rt.streams import Rounds, Stream
from pard_rt.vocabulary import vocabulary_notice

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from pard_rt.pytorch.captured_executor import CapturedExecutor
    from pard_rt.text import TokenText

__all__ = [
    "Backend",
    "Generator",
    "Message",
    "Method",
    "Options",
    "Prompt",
]

Method = Literal["auto", "pard", "draft", "plain"]
Prompt = str | ListLike[int] | NDArray[np.integer[Any]]  # a text, or token ids [n]

_CAPTURING = ("cuda",)  # devices where PyTorch's rounds are graphs
_DEMO_DRAFTS = {"auto": "demo/parallel", "pard": "demo/parallel", "draft": "demo/classic"}


class Generator:
    """Generates a target's own text, several tokens per forward of the target.

    Threads may share it: requests of all of them are decoded together, a round at a time.

    Parameters
    ----------
    target
        An ONNX folder, a Hugging Face directory, or an id on the hub; a module in memory: a model
        of transformers as it is, or a decoder of your own that `pard_rt.wrap` returned; ``"demo"``
        is the small model of Python source code that comes with the package.
    draft
        The same for a draft of the target's family. The demo has drafts of its own.
    tokenizer
        The tokenizer of a target in memory.
    method
        ``"pard"``: all proposals in one forward of a parallel draft. ``"draft"``: classic
        speculative decoding, a forward per proposal. ``"plain"``: no proposals, draft or not.
        ``"auto"``: what the draft was made for; plain without one.
    num_speculative_tokens
        Proposals per round (K), 0..64.
    adaptive
        Propose that many or fewer, down to none, whatever has been fastest of late. The text is the
        same; a draft that knows little then costs next to nothing.
    device
        See `OpenOptions`. On PyTorch's ``"cuda"`` a round is one captured graph, except in classic
        drafting; without kernels for the card none is, which a `FallbackWarning` says.
    backend, max_length, mask_token_id, threads, dtype
        See `OpenOptions`.
    revision, draft_revision
        The branches, tags or commits of target and draft on the hub.
    token, cache_dir, trust_remote_code
        See `OpenOptions`.
    torch_compile
        On a GPU, run the forwards of captured rounds through ``torch.compile``: see docs/gpu.md.
    capturing
        On a GPU, called before a round of a new shape is captured, which can take seconds, with a
        line that says so; it is captured in the context that this returns.

    Attributes
    ----------
    decoder : Decoder
        What runs beneath, for its counts and times.

    Raises
    ------
    FolderError, ModelError, RuntimeMissingError
        A model cannot be found, opened or run.
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
        tokenizer: Any = None,
        method: Method = "auto",
        num_speculative_tokens: int = 8,
        adaptive: bool = False,
        device: str | torch.device = "cpu",
        backend: Backend = "auto",
        max_length: int | None = None,
        mask_token_id: int | None = None,
        threads: int = 0,
        dtype: torch.dtype | str = "auto",
        revision: str | None = None,
        draft_revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
        torch_compile: bool = False,
        capturing: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        options = OpenOptions(
            backend=backend,
            device=device,
            threads=threads,
            dtype=dtype,
            max_length=max_length,
            tokenizer=tokenizer,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
        require_flag("adaptive", adaptive)
        require_flag("torch_compile", torch_compile)
        self._is_demo = isinstance(target, str) and target == "demo"
        self._adaptive = adaptive
        self._draft, self._mask_token_id = draft, mask_token_id
        self._num_proposals = num_speculative_tokens
        self._check(method, draft, num_speculative_tokens, mask_token_id)  # before much is opened
        self._target = open_model(target, options)
        self._target.probe()
        self._draft_options = replace(
            options,
            is_target=False,
            max_length=self._target.info.max_length,
            tokenizer=None,
            revision=draft_revision,
        )
        self._captures = options.device_kind in _CAPTURING and self._target.loaded is not None
        if torch_compile and not self._captures:
            raise InvalidArgumentError(
                "Only rounds that are captured are compiled",
                "a model that PyTorch runs, and device cuda",
                self._target.description,
                "Leave torch_compile=False.",
            )
        self._torch_compile = torch_compile
        self._capturing = capturing
        self._text = self._target.text() if self._target.has_tokenizer else None
        self._lock = threading.RLock()
        self._draft_with(method, draft, num_speculative_tokens, mask_token_id)

    def with_method(
        self,
        method: Method,
        draft: Source | None = None,
        *,
        num_speculative_tokens: int | None = None,
        mask_token_id: int | None = None,
        **unknown: NoReturn,
    ) -> Generator:
        """Return a generator that drafts in another way over the same open target.

        Parameters and errors are those of the class. What is left out stays as it is here. Rounds
        of the two generators do not overlap.
        """
        refuse_unknown(unknown, ("method", "draft", "num_speculative_tokens", "mask_token_id"))
        if draft is None:
            draft = self._draft
            mask_token_id = self._mask_token_id if mask_token_id is None else mask_token_id
        k = self._num_proposals if num_speculative_tokens is None else num_speculative_tokens
        self._check(method, draft, k, mask_token_id)
        other = copy.copy(self)
        other._draft, other._mask_token_id, other._num_proposals = draft, mask_token_id, k
        other._draft_with(method, draft, k, mask_token_id)
        return other

    def _check(
        self, method: Method, draft: Source | None, num_proposals: int, mask_token_id: int | None
    ) -> None:
        _check_choice("method", method, get_args(Method))
        require_range("num_speculative_tokens", num_proposals, 0, 64)
        if mask_token_id is not None:
            require_range("mask_token_id", mask_token_id, 0, 2**31 - 1)
        if draft is not None or self._is_demo:
            return
        if method in ("pard", "draft") or mask_token_id is not None:
            raise InvalidArgumentError(
                f'The method "{method}" needs a draft'
                if mask_token_id is None
                else "A mask token is a parallel draft's",
                "a folder or a hub id",
                "draft=None",
                'Name a draft of the target\'s family, or take method="plain".',
            )

    def _draft_with(
        self, method: Method, draft: Source | None, num_proposals: int, mask_token_id: int | None
    ) -> None:
        if draft is None and self._is_demo:
            draft = _DEMO_DRAFTS.get(method)
        drafter: Drafter | None = None
        opened: OpenedModel | None = None
        if draft is not None and method != "plain":
            opened = open_model(draft, replace(self._draft_options, mask_token_id=mask_token_id))
            opened.probe()
            drafter = _drafter_of(opened, method)
        num_proposals = num_proposals if drafter is not None else 0
        executor: CapturedExecutor | None = None
        if self._captures and not isinstance(drafter, AutoregressiveDrafter):
            executor = self._captured(opened)
        self.decoder = (
            Decoder(
                self._target.model,
                drafter,
                num_speculative_tokens=num_proposals,
                adaptive=self._adaptive,
            )
            if executor is None
            else Decoder(
                executor,
                num_speculative_tokens=num_proposals,
                adaptive=self._adaptive,
                max_batch_size=executor.max_batch_size,
            )
        )
        self._rounds = Rounds(self.decoder, self._lock, self._text)
        if opened is not None:
            self._notify_about(opened)

    def _notify_about(self, draft: OpenedModel) -> None:
        """Give a `Notice` about tokens that draft and target do not share.

        Two models without tokenizers are fed token ids, and the caller knows what those mean.
        """
        if not (self._target.has_tokenizer or draft.has_tokenizer):
            return
        if (notice := vocabulary_notice(self._target.info, draft.info)) is not None:
            notify(notice)

    def _captured(self, draft: OpenedModel | None) -> CapturedExecutor | None:
        """Return what captures rounds; None, and a warning, without kernels for the card."""
        from pard_rt.pytorch.captured_executor import capture

        try:
            return capture(
                self._target,
                draft,
                torch_compile=self._torch_compile,
                capturing=self._capturing,
            )
        except RuntimeMissingError as error:
            missed = "neither captured nor compiled" if self._torch_compile else "not captured"
            instead = f"Rounds are {missed}: forwards run on the card one by one, slower"
            fall_back(instead, error)
            return None

    @property
    def num_speculative_tokens(self) -> int:
        """Proposals per round (K), or the most; 0 in plain decoding; may be set between rounds."""
        return self.decoder.num_speculative_tokens

    @num_speculative_tokens.setter
    def num_speculative_tokens(self, value: int) -> None:
        require_range("num_speculative_tokens", value, 0, 64)
        with self._lock:
            self.decoder.num_speculative_tokens = value

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """What `chat` renders messages with; an error where the target has no chat template."""
        return self._target.chat_template()

    @property
    def tokenizer(self) -> Any:
        """The target's tokenizer.

        Of transformers where PyTorch runs the target, a ``tokenizers.Tokenizer`` for an ONNX
        folder, None where there is none.
        """
        if self._target.tokenizer is None and self._text is not None:
            return self._text.tokenizer
        return self._target.tokenizer

    @property
    def exact(self) -> bool:
        """Whether a text cannot depend on the draft, K or its company, as tried at opening.

        False: it is plain decoding's but for rounding, which may decide between two tokens that
        nearly tie. See docs/architecture.md, "What exact means".
        """
        return self._target.exact

    @property
    def max_length(self) -> int:
        """Positions a sequence may have, prompt included."""
        return self._target.info.max_length

    @overload
    def generate(
        self, prompt: Prompt, *, add_special_tokens: bool = True, **options: Unpack[Options]
    ) -> Output: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]] | list[Prompt],
        *,
        add_special_tokens: bool = True,
        **options: Unpack[Options],
    ) -> list[Output]: ...
    def generate(
        self, prompt: Any, *, add_special_tokens: bool = True, **options: Unpack[Options]
    ) -> Output | list[Output]:
        """Continue a prompt, or several prompts together.

        Parameters
        ----------
        prompt
            A text, or token ids of shape [n]; or a list of either.
        add_special_tokens : bool
            Whether a text gets the tokens that the tokenizer puts around it, such as BOS. Token ids
            are taken as they are.
        max_new_tokens : int
            At least 1; 128 by default.
        temperature, top_k, top_p, min_p : float, int, float, float
            See `SamplingParams`; greedy by default.
        seed : int, optional
            Makes sampling repeatable: one seed gives a prompt one text, whatever the draft, K and
            the other prompts. By default every prompt gets a fresh one.
        stop : str, or list of str
            Strings that end a text. The text ends before the first one in it; the tokens end with
            the one that completed it. A special token's text, such as ``"<|im_end|>"``, may be part
            of one, whether it is skipped or not. The prompt is not searched.
        stop_token_ids : list of int
            Tokens that end a text besides the model's own.
        eos_token_ids : list of int, optional
            Tokens that the model ends with. By default its folder names them.
        sampling : "model", optional
            Sample as the model's generation_config.json says: its temperature, top_k, top_p and
            min_p, or greedily unless its ``do_sample`` is true. Options given here come first.
        skip_special_tokens : bool
            Leave special tokens out of the text, as by default, or spell them in it.

        Returns
        -------
        Output, or a list of them
            One for one prompt, a list for a list.

        Raises
        ------
        InvalidArgumentError
            A prompt or an option cannot be used. Nothing has been decoded.
        FolderError
            A prompt is a text or a stop string is given, and the target's folder has no tokenizer.
        ModelError
            A model failed, or a row allowed no choice.
        """
        params = self._params(options)
        alone = _is_one(prompt)
        prompts = [prompt] if alone else prompt
        encoded = [self._encode(each, add_special_tokens) for each in prompts]
        requests = [self._rounds.request(params) for _ in encoded]
        try:
            for request, tokens in zip(requests, encoded, strict=True):
                self._rounds.start(request, tokens)
            for request in requests:
                while not request.ended():
                    self._rounds.step()
        finally:
            for request in requests:
                self._rounds.end(request)
        outputs = [self._rounds.output_of(request) for request in requests]
        return outputs[0] if alone else outputs

    def stream(
        self, prompt: Prompt, *, add_special_tokens: bool = True, **options: Unpack[Options]
    ) -> Stream:
        """Continue a prompt, and give its tokens as rounds publish them.

        Parameters and errors are those of `generate`. A model's error is raised by the read that
        meets it.

        Examples
        --------
        >>> generator = Generator()
        >>> pieces = generator.stream("import os", max_new_tokens=8)
        >>> "".join(map(str, pieces)) == generator.generate("import os", max_new_tokens=8).text
        True
        """
        if not _is_one(prompt):
            raise _bad_prompt(prompt)
        params = self._params(options)
        return Stream(self._rounds, self._encode(prompt, add_special_tokens), params)

    def chat(
        self,
        messages: Iterable[Message],
        *,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Answer a conversation, through the model's own chat template.

        Parameters
        ----------
        messages
            Dicts of ``role`` and ``content``, both strings: what a system, a user and the assistant
            said so far. If the last message is the assistant's, the model continues it, and the
            output is what it adds.
        template_options
            Variables of the template, such as ``{"enable_thinking": False}``, ``tools`` or
            ``documents``.
        options
            Those of `generate`. By default an answer ends at the tokens that the folder names, and
            at the one that the template puts behind an answer.

        Returns
        -------
        Output

        Raises
        ------
        InvalidArgumentError
            The model has no chat template; the messages cannot be used, the template refuses them,
            or they are longer than the model can read; or an option cannot be used.
        FolderError
            The chat template fails, or the folder has no tokenizer.
        ModelError
            As `generate`.

        Examples
        --------
        >>> generator = Generator("Qwen/Qwen2.5-0.5B-Instruct")  # doctest: +SKIP
        >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
        >>> generator.chat(messages).text  # doctest: +SKIP
        'The capital of France is Paris.'
        """
        prompt = self._encode_chat(messages, template_options)
        return self.generate(prompt, **self._ending_turns(options))

    def stream_chat(
        self,
        messages: Iterable[Message],
        *,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Answer a conversation, token by token as rounds publish them.

        Parameters and errors are those of `chat`; a model's error comes at the round that meets it.
        """
        prompt = self._encode_chat(messages, template_options)
        return self.stream(prompt, **self._ending_turns(options))

    def _encode_chat(
        self, messages: Iterable[Message], template_options: Mapping[str, Any] | None
    ) -> list[int]:
        text = self.chat_template.render(messages, template_options)
        tokens = self._spelling().encode(text, add_special_tokens=False)  # the template has its own
        if len(tokens) >= self.max_length:
            raise InvalidArgumentError(
                "The conversation is too long for the model",
                f"at most {self.max_length - 1} tokens",
                f"{len(tokens)} tokens",
                "Leave out old messages, or open the model with a larger max_length.",
            )
        return tokens

    @cached_property
    def _end_of_turn(self) -> frozenset[int]:
        tokens = self._spelling().added_tokens
        end = self.chat_template.end_of_turn(tokens)
        return frozenset() if end is None else frozenset({tokens[end]})

    def _ending_turns(self, options: Options) -> Options:
        if options.get("eos_token_ids") is not None:
            return options
        ends = {*self._target.eos_token_ids, *self._end_of_turn}
        return {**options, "eos_token_ids": sorted(ends)}

    def _settle(self, options: Options) -> dict[str, Any]:
        """Put the model's own sampling where it is asked for, under the options that are given."""
        given: dict[str, Any] = dict(options)
        sampling = given.pop("sampling", None)
        if sampling is None:
            return given
        _check_choice("sampling", sampling, ("model",))
        return {**read_sampling(self._target.generation, self._target.source), **given}

    def _params(self, options: Options) -> Params:
        params = read_options(self._settle(options))
        if params.stop:
            self._spelling()
        if params.eos_token_ids is None:
            params = replace(params, eos_token_ids=self._target.eos_token_ids)
        return params

    def _encode(self, prompt: Any, add_special_tokens: bool) -> Any:
        require_flag("add_special_tokens", add_special_tokens)
        if not isinstance(prompt, str):
            return prompt
        return self._spelling().encode(prompt, add_special_tokens=add_special_tokens)

    def _spelling(self) -> TokenText:
        return self._text or self._target.text()  # the latter says what is missing


def _drafter_of(draft: OpenedModel, method: Method) -> Drafter:
    if method == "draft" or (method == "auto" and draft.mask_token_id is None):
        return AutoregressiveDrafter(draft.model)
    if draft.mask_token_id is None:
        raise IncompatibleModelsError(
            f"'{draft.source}' is no parallel draft",
            "a mask token in its folder, or mask_token_id",
            "none",
            'Name the mask token it was trained with, or take method="draft".',
        )
    return ParallelDrafter(draft.model, draft.mask_token_id)


def _is_one(prompt: Any) -> bool:
    """Tell one prompt from a list of prompts."""
    if isinstance(prompt, str) or getattr(prompt, "ndim", None) == 1:
        return True
    if getattr(prompt, "ndim", None) == 2:  # token ids of several prompts
        return False
    if isinstance(prompt, bytes) or not isinstance(prompt, ListLike):
        raise _bad_prompt(prompt)
    return len(prompt) > 0 and isinstance(prompt[0], (int, np.integer))


def _bad_prompt(prompt: Any) -> InvalidArgumentError:
    return InvalidArgumentError(
        "The prompt cannot be read",
        "a text, token ids [n], or a list of either for generate()",
        type(prompt).__name__,
        "Of a tokenizer's output pass the input_ids.",
    )


def _check_choice(what: str, given: str, known: ListLike[str]) -> None:
    if not isinstance(given, str) or given not in known:
        raise InvalidArgumentError(
            f"Unknown {what}", ", ".join(known), repr(given), f"Choose a {what}."
        )
