"""The options of `train`, each in one place: its default, its range and what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from pard_rt.errors import InvalidArgumentError, require_range
from pard_rt.training.mask_prediction import MaskPrediction

_MAX_LENGTH = 1024  # tokens of a document, where the model and a step have room


@dataclass(frozen=True)
class TrainConfig:
    """How a draft is trained.

    Parameters
    ----------
    settings
        K in training and conditional drop.
    layers
        Start from so many of the model's layers, chosen by what the model predicts without the
        others, or from these. Its embedding and LM head then stay as they are, but for the mask
        token's row.
    heal
        So many of the epochs, from the first on, predict the next token alone: pruned layers learn
        to write again before they learn to draft, in a third of the time.
    distill
        Share of the loss in which the draft learns the target's likeliest tokens and how likely
        they are, where `regenerate` has kept them; the rest is that of the tokens themselves.
    head_tokens
        Learn only the tokens that occur most in the data, so many, which saves most of the LM
        head's time; for `layers`, and for a draft that is exported with as many.
    mask_token_id
        By default one the model does not use: see `choose_mask_token`.
    epochs
        How often everything is seen, to a step or so: each lays the documents out anew. More than
        before lengthen a training that is there.
    max_length
        Tokens of a document that are seen together; by default 1024, or as many as the model or a
        step takes where that is fewer.
    tokens_per_step
        Real tokens of a step, in documents that know nothing of each other.
    learning_rate
        Of AdamW; it rises, stays, and falls to zero.
    seed
        Of the order of documents and of conditional drop.
    measure_every
        Steps between measurements with the target; there is one at the beginning and one at the
        end. At each the draft is saved, unless an earlier one was better.
    device
        Where the models are: under torchrun, "cuda" is one card for every process.
    dtype
        Of the computation; by default bfloat16 on cards that have it and on CPUs with AMX, which
        multiply it several times as fast, else float32; a run that is resumed keeps its own.
        Weights and optimizer are float32, and saved in the type they came in.
    tokens_per_forward
        A step of more real tokens takes several forwards.
    checkpoint_layers
        Keep only the inputs of layers for the backward pass, and compute the rest again.
    save_every
        Seconds between checkpoints.
    revision, trust_remote_code
        Of the model and, the latter, of the target too: see `pard_rt.OpenOptions`.

    Raises
    ------
    InvalidArgumentError
        An option is out of range.
    """

    settings: MaskPrediction = field(default_factory=MaskPrediction)
    layers: int | tuple[int, ...] | None = None
    heal: float = 0.0
    distill: float = 0.5
    head_tokens: int | None = None
    mask_token_id: int | None = None
    epochs: float = 1.0
    max_length: int | None = None
    tokens_per_step: int = 4096
    learning_rate: float = 5e-5
    seed: int = 0
    measure_every: int = 500
    device: str = "cpu"
    dtype: torch.dtype | None = None
    tokens_per_forward: int = 16384
    checkpoint_layers: bool = False
    save_every: float = 300.0
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_range("tokens_per_step", self.tokens_per_step, 2, 1 << 24)
        require_range("tokens_per_forward", self.tokens_per_forward, 1, 1 << 24)
        require_range("measure_every", self.measure_every, 1, 1 << 24)
        require_range("seed", self.seed, 0, 2**31 - 1)
        for name, value in (("epochs", self.epochs), ("learning_rate", self.learning_rate)):
            if not 0 < value < math.inf:
                raise InvalidArgumentError(
                    f"{name} is out of range", "a number above 0", str(value), "Choose one."
                )
        for name, value, high in (("heal", self.heal, math.inf), ("distill", self.distill, 1)):
            if not 0 <= value <= high:
                raise InvalidArgumentError(
                    f"{name} is out of range", f"0 to {high}", str(value), "Choose one."
                )
        if self.head_tokens is not None and self.layers is None:
            raise InvalidArgumentError(
                "head_tokens is for drafts whose LM head stays as it is",
                "layers",
                f"head_tokens={self.head_tokens} and layers=None",
                "Leave it out, or start from layers of the target.",
            )
        if self.dtype is torch.float16:
            raise InvalidArgumentError(
                "Training cannot compute in float16",
                "bfloat16 or float32",
                str(self.dtype),
                "Gradients would vanish, since losses are not scaled up for it.",
            )

    def length_within(self, positions: int) -> int:
        """Return the tokens of a document, for a model of so many positions.

        Raises
        ------
        InvalidArgumentError
            The model or a step has fewer.
        """
        fits = f"The model has {positions} positions; a step holds at least one whole document."
        if self.max_length is None:
            return min(_MAX_LENGTH, positions, self.tokens_per_step)
        require_range("max_length", self.max_length, 2, positions, fits)
        require_range("tokens_per_step", self.tokens_per_step, self.max_length, 1 << 24, fits)
        return self.max_length


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """Return what a device computes fast in, of float32 and bfloat16."""
    if torch.device(device).type == "cuda":
        is_fast = torch.cuda.is_bf16_supported()
    else:
        is_fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.bfloat16 if is_fast else torch.float32
