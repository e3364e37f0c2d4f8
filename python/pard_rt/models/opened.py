"""A model that is open, whatever it was opened from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pard_rt._core import Model, ModelInfo, ProbeReport
from pard_rt.chat import ChatTemplate
from pard_rt.models.fields import Fields
from pard_rt.text import TokenText

if TYPE_CHECKING:
    from pard_rt.models.checkpoint import LoadedModel

_NO_TEMPLATE = partial(ChatTemplate.of_tokenizer, "The model", None)


@dataclass(frozen=True)
class OpenedModel:
    """A model and what its folder, or whoever wrapped it, says about decoding with it."""

    source: str  # its folder, or its name
    description: str
    model: Model
    info: ModelInfo
    mask_token_id: int | None
    eos_token_ids: tuple[int, ...]
    probe: Callable[..., ProbeReport]  # (max_rows=...); raises ModelError where rows disagree
    text: Callable[[], TokenText]  # raises Error where there is no tokenizer
    has_tokenizer: bool
    tokenizer: Any = None  # of transformers or tokenizers
    chat_template: Callable[[], ChatTemplate] = _NO_TEMPLATE  # raises Error where there is none
    generation: Fields | None = None  # how its makers sample it
    loaded: LoadedModel | None = None  # where PyTorch runs it

    @property
    def exact(self) -> bool:
        """Whether a row has the same bits whatever rows are computed with it."""
        return bool(getattr(self.model, "exact", False))
