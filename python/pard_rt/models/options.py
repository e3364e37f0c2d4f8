"""How a model is to be opened: every option, its range and its meaning, once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pard_rt.errors import InvalidArgumentError, require_flag, require_range

if TYPE_CHECKING:
    import torch

Backend = Literal["auto", "onnx", "torch"]

_DEVICES = ("cpu", "cuda", "migraphx", "rocm")


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How to open a model.

    Attributes
    ----------
    backend
        "onnx" or "torch" refuses what would run in the other.
    device
        "cpu" or "cuda", which is PyTorch's name for AMD's cards too; for ONNX folders one of ONNX
        Runtime's execution providers "cuda", "migraphx" or "rocm"; of several cards "cuda:1". A
        ``torch.device`` will do.
    threads
        Threads of one forward; 0: one for every physical core. PyTorch's are those of the whole
        process.
    dtype
        What PyTorch loads the weights in, such as ``"bfloat16"`` or ``torch.float16``; "auto"
        keeps the checkpoint's type. An ONNX folder has the type it was exported with.
    is_target
        Whether every row has to be exact, and a rejected proposal may not change other rows.
    max_length
        Positions a sequence may have; the model's own limit by default and at most. For a draft,
        those of its target, even where its own limit is smaller.
    mask_token_id
        The mask token of a parallel draft, over what the model says.
    tokenizer
        The tokenizer of a module in memory: of transformers, or a ``tokenizers.Tokenizer``.
    revision
        The branch, tag or commit of a model on the hub.
    token
        An access token for the hub; by default the one that is logged in, or HF_TOKEN.
    cache_dir
        Where downloads from the hub are kept.
    trust_remote_code
        Whether Python files that come with a checkpoint may run. Nobody is ever asked.
    """

    backend: Backend = "auto"
    device: str | torch.device = "cpu"
    threads: int = 0
    dtype: torch.dtype | str = "auto"
    is_target: bool = True
    max_length: int | None = None
    mask_token_id: int | None = None
    tokenizer: Any = None
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model could be opened with."""
        if self.backend not in get_args(Backend):
            raise InvalidArgumentError(
                "Unknown backend", ", ".join(get_args(Backend)), repr(self.backend), "Choose one."
            )
        kind, _, index = str(self.device).partition(":")
        if kind not in _DEVICES or (index and not index.isdecimal()):
            raise InvalidArgumentError(
                "Unknown device",
                f"{', '.join(_DEVICES[:-1])} or {_DEVICES[-1]}, and a card's number, as in cuda:0",
                repr(self.device),
                "Choose a device.",
            )
        require_range("threads", self.threads, 0, 1024)
        limits = (("max_length", self.max_length, 1), ("mask_token_id", self.mask_token_id, 0))
        for name, given, least in limits:
            if given is not None:
                require_range(name, given, least, 2**31 - 1)
        require_flag("trust_remote_code", self.trust_remote_code)

    @property
    def device_kind(self) -> str:
        """The device without its number."""
        return str(self.device).partition(":")[0]

    @property
    def device_index(self) -> int | None:
        """The number of the card, where one is given."""
        index = str(self.device).partition(":")[2]
        return int(index) if index else None
