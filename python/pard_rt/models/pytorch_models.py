"""Opening what PyTorch runs: a Hugging Face directory, or a module in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pard_rt.chat import ChatTemplate
from pard_rt.errors import InvalidArgumentError
from pard_rt.models.checkpoint import (
    LoadedModel,
    generation_config_of,
    hush_transformers,
    load_checkpoint,
    loaded_from,
    refit,
)
from pard_rt.models.facts import read_generation_config
from pard_rt.models.fields import Fields
from pard_rt.models.opened import OpenedModel
from pard_rt.models.options import OpenOptions
from pard_rt.pytorch.torch_model import TorchModel
from pard_rt.text import TokenText


def open_checkpoint(path: Path, options: OpenOptions) -> OpenedModel:
    """Open a Hugging Face directory or a GGUF file without trying it.

    Errors are those of `open_model`.
    """
    hush_transformers()
    loaded = load_checkpoint(path, options, need_tokenizer=False)

    def text() -> TokenText:
        if loaded.tokenizer is None:
            return TokenText.of_folder(path, loaded.facts.num_tokens)  # says what is missing
        return TokenText.of_tokenizer(loaded.tokenizer, loaded.facts.num_tokens)

    kind = "Hugging Face directory" if path.is_dir() else "GGUF file"
    return _opened(loaded, str(path), kind, options, text, read_generation_config(path))


def open_module(source: Any, options: OpenOptions) -> OpenedModel:
    """Open a module in memory without trying it; errors are those of `open_model`."""
    if isinstance(source, PreTrainedModel):
        source = loaded_from(source, options, type(source).__name__)
    elif not isinstance(source, LoadedModel):
        raise InvalidArgumentError(
            "This is not a model",
            "a folder, a hub id, a transformers model, or what pard_rt.wrap() or pard_rt.load() "
            "returned",
            type(source).__name__,
            "Wrap a module of your own with pard_rt.wrap(module, max_length=...).",
        )
    name, there = source.facts.name, source.seam.device
    asked = torch.device(str(options.device))
    if options.device_kind not in ("cpu", "cuda") or (
        asked.type != there.type or asked.index not in (None, there.index)
    ):
        raise InvalidArgumentError(
            f"{name} is a module in memory, which PyTorch runs where it is",
            f"device {there}",
            f"device {options.device}",
            f"Pass device='{there}', or move the module first.",
        )
    if options.tokenizer is not None:
        source = replace(source, tokenizer=options.tokenizer)
    length = options.max_length
    if length is not None and not options.is_target:
        length = min(length, source.facts.max_length)
    loaded = refit(source, max_length=length, mask_token_id=options.mask_token_id)

    def text() -> TokenText:
        if loaded.tokenizer is None:
            raise InvalidArgumentError(
                f"{name} has no tokenizer to encode a prompt with",
                "a tokenizer",
                "none",
                "Pass tokenizer=..., or pass token ids.",
            )
        return TokenText.of_tokenizer(loaded.tokenizer, loaded.facts.num_tokens)

    generation = generation_config_of(loaded.module, name)
    return _opened(loaded, name, "PyTorch module", options, text, generation)


def _opened(
    loaded: LoadedModel,
    source: str,
    kind: str,
    options: OpenOptions,
    text: Callable[[], TokenText],
    generation: Fields | None,
) -> OpenedModel:
    _require_current(source, loaded.seam.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = TorchModel(loaded, exact=options.is_target)
    dtype, mask = loaded.seam.dtype, loaded.facts.mask_token_id
    described = [kind, str(dtype).removeprefix("torch."), str(loaded.seam.device)]
    if mask is not None:
        described.append(f"mask token {mask}")

    return OpenedModel(
        source=source,
        description=", ".join(described),
        model=model,
        info=model.info(),
        mask_token_id=mask,
        eos_token_ids=loaded.facts.eos_token_ids,
        probe=model.probe,
        text=text,
        has_tokenizer=loaded.tokenizer is not None,
        tokenizer=loaded.tokenizer,
        chat_template=partial(ChatTemplate.of_tokenizer, source, loaded.tokenizer),
        generation=generation,
        loaded=loaded,
    )


def _require_current(name: str, there: torch.device) -> None:
    """Refuse a card that is not PyTorch's current one, on which rounds are captured."""
    if there.type != "cuda" or there.index in (None, current := torch.cuda.current_device()):
        return
    raise InvalidArgumentError(
        f"{name} is on another card than PyTorch's current one",
        f"cuda:{current}",
        str(there),
        f"Call torch.cuda.set_device({there.index}) first.",
    )
