"""The decoding core of pard-rt."""

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from os import PathLike
from typing import Any, Protocol, final, overload

import numpy as np
from numpy.typing import NDArray

class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...

@final
class SamplingParams:
    """How a token is chosen from a row of logits.

    Filters act on the tempered distribution in the order ``top_k``, ``top_p``, ``min_p``; all
    three cut one ranking (logit descending, then id ascending).

    Parameters
    ----------
    temperature : float
        0 is plain argmax (filters and noise are off); otherwise at least 1e-4.
    top_k : int
        Keep the k likeliest tokens; 0 keeps all.
    top_p : float
        Keep the shortest prefix of the ranking that holds this much probability, in (0, 1].
    min_p : float
        Drop tokens less likely than this share of the likeliest, in [0, 1].
    seed : int
        With a token's position, the key of its noise: the same seed gives the same text, whatever
        the draft, the number of proposals or the batch.

    Raises
    ------
    InvalidArgumentError
        A parameter is out of its range.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def seed(self) -> int: ...

def choose(row: _DLPack, params: SamplingParams, position: int) -> int:
    """Return the token the target emits at `position` when its model says `row`.

    Parameters
    ----------
    row : tensor, shape [vocabulary] or [1, vocabulary]
        Logits on the CPU: float32, float16 or bfloat16, anything that speaks DLPack.
    params : SamplingParams
        Temperature, filters and seed.
    position : int
        Where the token will stand in its sequence; the prompt's first token is at 0.

    Returns
    -------
    int
        ``argmax((row - max(row)) / temperature + gumbel(seed, position, token))`` over the kept
        tokens, the lowest id on ties; the plain argmax at temperature 0.

    Raises
    ------
    LogitsError
        The row holds NaN or +inf, or nothing but -inf.
    ModelError
        The row is on a GPU, or of another type or shape.
    """

def score(row: _DLPack, params: SamplingParams, position: int, token: int) -> float:
    """Return the score of a kept token, which is what `choose` compares.

    That is ``(row[token] - max(row)) / temperature + gumbel(seed, position, token)``; at
    temperature 0 it is ``row[token] - max(row)``.

    Raises
    ------
    InvalidArgumentError
        The row has no such token.
    LogitsError, ModelError
        As in `choose`.
    """

def log_probability(row: _DLPack, token: int) -> float:
    """Return ``log softmax(row)[token]`` in nats, of the row as it is.

    Raises
    ------
    InvalidArgumentError
        The row has no such token.
    """

def verify(proposals: ListLike[int], choices: ListLike[int]) -> tuple[int, int]:
    """Compare K proposals with the K + 1 tokens the target chooses.

    Returns
    -------
    num_accepted : int
        Leading proposals that equal the target's choices, 0..K.
    next_token : int
        What follows them: the correction, or the bonus token after K accepted ones.
    """

@final
class TokenBytes:
    """The bytes that token ids stand for, to compare vocabularies.

    Parameters
    ----------
    spelled : list of bytes
        The bytes of every id; empty for special and unused ones.
    """

    def __init__(self, spelled: ListLike[bytes]) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, token: int, /) -> bytes: ...

@final
class ModelInfo:
    """What a model is, as far as decoding needs to know.

    Parameters
    ----------
    name : str
        For messages.
    vocab_size : int
        Ids 0..vocab_size-1 can be fed; width of a logits row unless there are `head_tokens`.
    max_length : int
        Positions one sequence may have.
    num_tokens : int, optional
        Ids the tokenizer knows; rows behind them are padding. All of them by default.
    token_bytes : TokenBytes, optional
        What the ids stand for, to compare a draft with its target.
    head_tokens : list of int
        The token of every logit of a row, rising; empty: logit i is token i's. A target has logits
        of all tokens.
    """

    def __init__(
        self,
        *,
        name: str,
        vocab_size: int,
        max_length: int,
        num_tokens: int | None = None,
        token_bytes: TokenBytes | None = None,
        head_tokens: ListLike[int] = ...,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def num_tokens(self) -> int | None: ...
    @property
    def token_bytes(self) -> TokenBytes | None: ...
    @property
    def head_tokens(self) -> list[int]: ...

@final
class ForwardItem:
    """One sequence's share of a forward."""

    def __init__(
        self, *, sequence: int, past_length: int, tokens: ListLike[int], num_rows: int
    ) -> None: ...
    @property
    def sequence(self) -> int:
        """The sequence's id, the key of its KV cache."""

    @property
    def past_length(self) -> int:
        """Cached rows that are good; rows at and behind it are void and will be rewritten."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Token ids to run, shape [new rows], at positions ``past_length`` and on."""

    @property
    def num_rows(self) -> int:
        """Logits wanted for the last `num_rows` tokens; 0: only the cache is filled."""

class Model:
    """A causal language model with a KV cache per sequence. Subclass it to plug one in.

    Decoders may share a Model while they run in one thread.
    """

    def __init__(self) -> None: ...
    def info(self) -> ModelInfo:
        """Describe the model."""

    def forward(self, batch: list[ForwardItem]) -> _DLPack | None:
        """Run `batch` (no sequence twice) and return the rows asked for.

        Returns
        -------
        tensor, shape [sum of num_rows, vocab_size]
            Item after item, float32, float16 or bfloat16; it must not change until the next call.
            None where no row was asked for.
        """

    def release(self, sequence: int) -> None:
        """Free what is kept for a sequence; unknown ids are ignored."""

class Drafter:
    """Makes proposals: ``ParallelDrafter`` or ``AutoregressiveDrafter``."""

@final
class ParallelDrafter(Drafter):
    """PARD: all K proposals in one forward, through K - 1 mask tokens (arXiv 2504.18583).

    Parameters
    ----------
    draft : Model
        A model trained to predict through mask tokens.
    mask_token_id : int
        The mask token it was trained with.
    prefill_chunk : int
        Tokens of a prompt the draft takes in one forward.

    Raises
    ------
    IncompatibleModelsError
        The mask token is outside the draft's embedding.
    """

    def __init__(self, draft: Model, mask_token_id: int, *, prefill_chunk: int = 512) -> None: ...

@final
class AutoregressiveDrafter(Drafter):
    """Classic speculative decoding: K forwards of a draft, each fed the proposal before it."""

    def __init__(self, draft: Model, *, prefill_chunk: int = 512) -> None: ...

@final
class RoundCounts:
    """What rounds proposed and what came of it."""

    @property
    def rounds(self) -> int:
        """Rounds of a sequence that yielded tokens; a prefill chunk yields none."""

    @property
    def committed(self) -> int:
        """Tokens published, corrections and bonus tokens included."""

    @property
    def drafted(self) -> int:
        """Proposals verified."""

    @property
    def accepted(self) -> int:
        """Proposals that held."""

    @property
    def drafted_at(self) -> list[int]:
        """[i]: rounds that verified at least i + 1 proposals."""

    @property
    def accepted_at(self) -> list[int]:
        """[i]: rounds in which the first i + 1 proposals held."""

    @property
    def mean_tokens_per_round(self) -> float:
        """``committed / rounds``; 0 before the first round."""

@final
class RoundTimes:
    """Where the time of rounds went, in seconds."""

    @property
    def draft(self) -> float:
        """Drafting, choosing proposals included."""

    @property
    def target(self) -> float:
        """The target's forwards and choosing from their rows."""

    @property
    def wall(self) -> float:
        """The whole of ``Decoder.step``."""

@final
class Sequence:
    """The tokens of one request."""

    @property
    def id(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int32]:
        """All committed tokens, prompt first (a copy)."""

    @property
    def generated(self) -> NDArray[np.int32]:
        """The tokens committed after the prompt (a copy)."""

    @property
    def from_draft(self) -> NDArray[np.bool_]:
        """Which of `generated` were accepted proposals, not corrections or bonus tokens."""

    @property
    def length(self) -> int:
        """How many tokens are committed."""

    @property
    def remaining(self) -> int:
        """How many may still be committed; 0 once finished."""

    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def finished(self) -> bool: ...
    @property
    def finish_reason(self) -> str | None:
        """'eos', 'stop', 'length' or 'cancelled'; None while it goes on."""

    @property
    def counts(self) -> RoundCounts: ...
    def cancel(self) -> None:
        """End the sequence before its next round; may be called from any thread."""

@final
class TokenEvent:
    """A token that has just been committed."""

    @property
    def token(self) -> int: ...
    @property
    def position(self) -> int:
        """Its place in the sequence; the prompt's first token is at 0."""

    @property
    def from_draft(self) -> bool:
        """Whether it was an accepted proposal, not a correction or bonus token."""

    @property
    def is_last(self) -> bool:
        """Whether its sequence ended with it, observers that stop it left aside."""

    def log_probability(self, token: int | None = None) -> float:
        """Return the log-probability of `token` (by default the committed one), in nats.

        Raises
        ------
        InvalidArgumentError
            The observer has returned, so that the row is gone, or it lies on a device.
        """

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the row the token was chosen from, shape [vocab_size].

        Raises
        ------
        InvalidArgumentError
            As in `log_probability`.
        """

@final
class SequenceRound:
    """What a round yields for one sequence.

    Parameters
    ----------
    num_proposals, num_accepted : int
        K for this sequence, and how many held.
    tokens : token ids
        The accepted proposals and the token behind them; none with an error.
    error : Exception, optional
        Why nothing could be chosen; the sequence's state is then as before the round.
    """

    def __init__(
        self,
        *,
        num_proposals: int = 0,
        num_accepted: int = 0,
        tokens: ListLike[int] = ...,
        error: Exception | None = None,
    ) -> None: ...

class RoundExecutor:
    """Runs rounds on one device and keeps the caches.

    Subclass it, defining these methods. ``target_info()``, ``can_draft()``: what there is;
    ``launch(batch, num_speculative_tokens)``: start a round over a list of ``Sequence``;
    ``collect()``: a ``SequenceRound`` per sequence, in the batch's order;
    ``keep(sequence, length)``: a sequence (by id) has this many committed tokens now;
    ``release(sequence)``: forget it.
    """

    def __init__(self) -> None: ...

@final
class KernelSet:
    """The kernels of a round: on a GPU, from code objects, or on the host.

    Addresses are integers, as ``Tensor.data_ptr()`` gives them; csrc/gpu/round.h says what lies
    there.

    Parameters
    ----------
    driver : str
        "host", "cuda" or "hip".
    code_objects : list of str
        Files, of which the first that the driver takes is loaded (`pard_rt.code_objects`).

    Raises
    ------
    RuntimeMissingError
        There is no driver, or it takes none of them.
    """

    def __init__(self, driver: str, code_objects: list[str] = ...) -> None: ...
    @property
    def code_object(self) -> str:
        """The name of the file that was loaded; empty on the host."""

    def build_input(
        self,
        *,
        tokens: int,
        lengths: int,
        sampling: int,
        capacity: int,
        draft_tokens: int,
        draft_positions: int,
        draft_rows: int,
        target_tokens: int,
        target_positions: int,
        mask_token: int,
        draft_vocab: int,
        num_proposals: int,
        num_slots: int,
        stream: int = 0,
    ) -> None:
        """Write the rows draft and target are fed, but for the proposals."""

    def choose_and_verify(
        self,
        *,
        logits: int,
        dtype: str,
        row_stride: int,
        vocab_size: int,
        num_rows: int,
        is_target: bool,
        tokens: int,
        lengths: int,
        sampling: int,
        capacity: int,
        target_tokens: int,
        chosen: int,
        bad_draft: int,
        arrived: int,
        records: int,
        num_slots: int,
        stream: int = 0,
    ) -> None:
        """Choose the draft's proposals, or the target's tokens and how many proposals hold."""

MAX_ROUND_ROWS: int
SLOT_RECORD_INTS: int

def slot_sampling(params: SamplingParams) -> bytes:
    """Return what a slot with a sequence of these parameters holds: 32 bytes."""

@final
class VocabularyComparison:
    """How the token ids of a draft relate to those of its target.

    Special tokens and unused ids spell nothing and are not compared.
    """

    @property
    def num_equal(self) -> int:
        """Ids that both spell the same way."""

    @property
    def different(self) -> list[int]:
        """Ids that both spell, but differently: the models do not fit."""

    @property
    def only_in_target(self) -> list[int]: ...
    @property
    def only_in_draft(self) -> list[int]: ...

def compare_vocabularies(target: ModelInfo, draft: ModelInfo) -> VocabularyComparison | None:
    """Compare what token ids stand for; None if one of the two has no `TokenBytes`."""

def check_compatible(target: ModelInfo, draft: ModelInfo) -> None:
    """Refuse a draft that spells token ids of the target differently.

    Raises
    ------
    IncompatibleModelsError
        It does.
    """

def num_proposable(target: ModelInfo, draft: ModelInfo) -> int:
    """Return the number of leading ids that are tokens of both; no others are proposed."""

@final
class Decoder:
    """Decodes sequences together, round by round; they join and leave between rounds.

    A decoder, its models and its sequences belong to one thread at a time; only
    ``Sequence.cancel`` may be called from another. An observer may ``add`` but not ``step``.

    Parameters
    ----------
    target : Model
        The model whose text comes out.
    drafter : Drafter, optional
        What proposes tokens; without one, decoding is plain.
    num_speculative_tokens : int, optional
        Proposals per round (K), 0..64; 8 with a drafter and 0 without by default.
    adaptive : bool
        Propose that many or fewer, down to none: what has been fastest of late.
    max_batch_size : int
        Sequences decoded at a time; others wait.
    prefill_chunk : int
        Tokens of a prompt the target takes per round.
    executor : RoundExecutor
        What runs the rounds, instead of target and drafter; it belongs to the decoder from then on.

    Raises
    ------
    IncompatibleModelsError
        Draft and target have other vocabularies.
    InvalidArgumentError
        An option is out of range, or one Model is both target and draft.
    """

    @overload
    def __init__(
        self,
        target: Model,
        drafter: Drafter | None = None,
        *,
        num_speculative_tokens: int | None = None,
        adaptive: bool = False,
        max_batch_size: int = 16,
        prefill_chunk: int = 512,
    ) -> None: ...
    @overload
    def __init__(
        self,
        executor: RoundExecutor,
        *,
        num_speculative_tokens: int | None = None,
        adaptive: bool = False,
        max_batch_size: int = 16,
    ) -> None: ...
    def add(
        self,
        prompt: ListLike[int] | NDArray[np.integer[Any]],
        *,
        max_new_tokens: int = 128,
        sampling: SamplingParams = ...,
        eos_token_ids: ListLike[int] = ...,
        stop_token_ids: ListLike[int] = ...,
        observer: Callable[[TokenEvent], bool | None] | None = None,
    ) -> Sequence:
        """Queue a request.

        Parameters
        ----------
        prompt : token ids, shape [n]
            At least 1 and fewer than the target's ``max_length``.
        max_new_tokens : int
            At least 1.
        sampling : SamplingParams
            Greedy by default.
        eos_token_ids, stop_token_ids : token ids
            Committing one of them ends the sequence.
        observer : callable, optional
            Sees every committed token, in order; returning False ends the sequence.

        Raises
        ------
        InvalidArgumentError
            The prompt or a parameter cannot be decoded.
        """

    def step(self) -> bool:
        """Run one round; return whether there is more to do.

        Raises
        ------
        ModelError
            A model failed or a row allowed no choice. Every sequence stands at its last committed
            token and ``step`` may be called again; cancel a sequence that cannot go on.
        """

    def run(self) -> None:
        """Step until every sequence has finished."""

    @property
    def num_speculative_tokens(self) -> int:
        """Proposals per round, or the most where they adapt; may be set between rounds."""

    @num_speculative_tokens.setter
    def num_speculative_tokens(self, value: int, /) -> None: ...
    @property
    def num_active(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def counts(self) -> RoundCounts:
        """Totals over all sequences, finished ones included."""

    @property
    def times(self) -> RoundTimes: ...

@final
class FolderContract:
    """What an ONNX folder says about its model."""

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str:
        """'portable' or 'gqa'."""

    @property
    def from_builder(self) -> bool:
        """Whether onnxruntime-genai's model builder wrote it."""

    @property
    def weights(self) -> str:
        """'fp32', 'fp16', 'int8' or 'int4'."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int:
        """Ids below can be fed."""

    @property
    def head_tokens(self) -> list[int]:
        """The token of every logit, rising; empty: of all tokens."""

    @property
    def max_length(self) -> int: ...
    @property
    def num_tokens(self) -> int | None:
        """Ids the tokenizer knows, where the folder says."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def mask_token_id(self) -> int | None:
        """The parallel draft's mask token; None for a model that is no parallel draft."""

    @property
    def requires_own_attention(self) -> bool:
        """Whether ONNX Runtime's own attention cannot run it: pard-rt's on the CPU can."""

    def check_provider(self, provider: str) -> None:
        """Refuse a provider that cannot run the graph although others can.

        Raises
        ------
        FolderError
            It is one; the error names the builder's option.
        """

def read_folder(folder: str | PathLike[str]) -> FolderContract:
    """Read what an ONNX folder says about its model, without loading weights.

    Raises
    ------
    FolderError
        A file is missing or damaged, or the graph is not as the contract says; for a folder of
        onnxruntime-genai's model builder, the error names the option that made it so.
    """

@final
class ProbeReport:
    """How a model behaves where decoding relies on it.

    Differences are the largest between two logits, as a part of the largest logit; 0: the same
    bits.
    """

    @property
    def row_counts(self) -> float:
        """A row in forwards of 1 to `max_rows` rows, against a longer forward's."""

    @property
    def rewinding(self) -> float:
        """Rows computed again after others had been in their place."""

    @property
    def rejected_rows(self) -> float:
        """A row, with other tokens behind it."""

    @property
    def same_tokens(self) -> bool:
        """Whether the greedy token was the same throughout."""

    @property
    def max_rows(self) -> int:
        """Forwards of 1 to so many rows were compared."""

    @property
    def rounding(self) -> float:
        """The most that the model's rounding explains: the limit of `row_counts`."""

def probe_model(model: Model, *, tolerance: float, max_rows: int = 2) -> ProbeReport:
    """Try a model on a sequence of its own, and release it.

    Parameters
    ----------
    model : Model
        One whose rows are on the CPU.
    tolerance : float
        The most by which equal rows may differ, as a part of the largest logit.
    max_rows : int
        Forwards of 1 to so many rows are compared (at least 2; K + 1 for the rounds of K
        proposals), none for 0.

    Raises
    ------
    ModelError
        Rows differ by more, or a logit is not finite.
    """

class OnnxModel(Model):
    """A model over an ONNX folder (docs/onnx-folder.md), on a provider of ONNX Runtime.

    Parameters
    ----------
    folder : path
        Written by ``pard-rt export`` or by onnxruntime-genai's model builder.
    provider : str
        'cpu', 'cuda', 'migraphx' or 'rocm'.
    provider_options : dict of str to str
        ONNX Runtime's own options of that provider.
    threads : int
        Threads of one forward; 0: one for every physical core.
    spinning : bool
        Whether the threads of a forward wait for each other by spinning. They sleep between
        forwards.
    max_length : int, optional
        Positions one sequence may have; what the folder says by default and at most.
    exact : bool
        Keep the bits of a target's row from depending on its company: numbers of rows that ONNX
        Runtime's kernels compute otherwise are found by trying and padded (see `padding`). A target
        of the portable form with integer weights runs on the CPU with floats, at their cost. Where
        nothing makes rows agree, a `FallbackWarning` says so, and `exact` is False.
    own_attention : bool
        Compute GroupQueryAttention on the CPU by this library's kernel, several times faster for
        the rows of a verification, as far as it has what the graph asks for; otherwise ONNX
        Runtime's does.
    own_matmul : bool
        Multiply by weights of 4 and 8 bits on the CPU with this library's kernels, whose rows are
        nearly free and the same in any company, as far as they have what the graph asks for.
    static_shapes : bool, optional
        Rows and pasts of few sizes only (portable form); by default where the provider compiles a
        graph for every shape.
    device_memory : bool, optional
        Keep keys and values in the memory of the provider's device; by default on all but the CPU.
    token_bytes : TokenBytes, optional
        What the token ids stand for, for a folder without token_bytes.bin.
    is_target : bool
        Refuse graphs in which a rejected proposal changes other rows.
    probe : bool
        Try the graph once on opening.
    onnxruntime : str
        A library, or a directory with libraries; by default the installed wheels are searched.

    Raises
    ------
    FolderError
        The folder cannot be opened.
    RuntimeMissingError
        No ONNX Runtime with that provider was found.
    InvalidArgumentError
        An option is out of range.
    ModelError
        ONNX Runtime refuses the graph, or the probe finds it unfit.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        provider: str = "cpu",
        provider_options: dict[str, str] = ...,
        threads: int = 0,
        spinning: bool = True,
        max_length: int | None = None,
        exact: bool = True,
        own_attention: bool = True,
        own_matmul: bool = True,
        static_shapes: bool | None = None,
        device_memory: bool | None = None,
        token_bytes: TokenBytes | None = None,
        is_target: bool = True,
        probe: bool = True,
        onnxruntime: str = "",
    ) -> None: ...
    @property
    def contract(self) -> FolderContract: ...
    @property
    def own_attention(self) -> bool:
        """Whether this library's kernel computes attention."""

    @property
    def own_matmul(self) -> bool:
        """Whether this library's kernels multiply by integer weights."""

    @property
    def exact(self) -> bool:
        """Whether a row has the same bits in any company, as tried on this machine at opening.

        True for a target of the gqa form, opened with ``exact``, whose rows agree: speculative
        decoding then gives plain decoding's text bit for bit. False: within rounding.
        """

    def padding(self, rows: int) -> int:
        """Return how many rows a forward of so many is padded by, to be exact.

        A number of rows that was not asked for before costs some forwards. Padding of single rows
        is taken off ``max_length``.
        """

    @property
    def onnxruntime_path(self) -> str: ...
    @property
    def onnxruntime_version(self) -> str: ...
    @property
    def num_shapes(self) -> int:
        """Shapes the graph has run in so far, with ``static_shapes``; otherwise 0."""

    def cached_rows(
        self, sequence: int, layer: int, length: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy what is cached for a sequence, for tests and debugging.

        Returns
        -------
        keys, values : arrays, shape [length, num_kv_heads, head_dim]
            Of positions 0 and on, keys after rotation. Which of them are good is the caller's to
            know, as in `forward`.

        Raises
        ------
        InvalidArgumentError
            The layer or that many rows are not there.
        """

    @property
    def provider(self) -> str: ...
    def choose_on_device(self, code_objects: list[str] = ...) -> None:
        """Leave logits in the device's memory from now on, and choose from them there.

        On the CPU provider, whose memory is the host's, it is there for tests.

        Parameters
        ----------
        code_objects : list of str
            Files, of which the first that the driver takes is loaded (`pard_rt.code_objects`).

        Raises
        ------
        InvalidArgumentError
            Keys and values lie in the host's memory.
        RuntimeMissingError
            There is no driver, or it takes none of the code objects.
        ModelError
            The device chooses other tokens than the host.
        """

    def probe(self, max_rows: int = 0) -> ProbeReport:
        """Try the graph with forwards of 1 to `max_rows` rows; sequences in use are not touched.

        0 leaves out numbers of rows where opening has compared them bit for bit.

        Raises
        ------
        ModelError
            The graph is unfit.
        """

def onnxruntime_providers(onnxruntime: str = "") -> tuple[str, str, list[str]]:
    """Return path, version and compiled-in providers of the ONNX Runtime that is found first.

    Raises
    ------
    RuntimeMissingError
        None was found.
    """
