"""The Hugging Face directory that training leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt.models.checkpoint import LoadedModel
from pard_rt.training.pruned import MaskRow


def save_checkpoint(
    loaded: LoadedModel, dtype: torch.dtype, mask_token_id: int, card: str, output: Path
) -> None:
    """Write it: nothing takes its name before all of it is written. The module stays as it is.

    Parameters
    ----------
    loaded
        The draft and its tokenizer.
    dtype
        Of the weights in the file.
    mask_token_id
        The mask token it was trained with.
    card
        The model card.
    output
        The directory, which exists.
    """
    partial = output / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    module = loaded.module
    config = module.config
    config.pard_token, config.spd_type = mask_token_id, "pard"
    attention, config._attn_implementation = config._attn_implementation, "sdpa"
    try:
        module.save_pretrained(partial, state_dict=_weights(module, dtype))
    finally:
        config._attn_implementation = attention
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(partial)
    _correct(partial / "config.json", dtype)
    (partial / "README.md").write_text(card, "utf-8")
    for file in partial.iterdir():
        if file.is_dir():  # of several chat templates: a folder takes no other's place
            shutil.rmtree(output / file.name, ignore_errors=True)
        os.replace(file, output / file.name)
    partial.rmdir()


def _weights(module: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights under the names of the architecture, in the type of the file."""
    embedding = module.get_input_embeddings()
    is_frozen = isinstance(embedding, MaskRow)
    if is_frozen:
        module.set_input_embeddings(embedding.merged())
    try:
        weights = module.state_dict()
    finally:
        module.set_input_embeddings(embedding)
    written: dict[int, Tensor] = {}  # what is tied stays one tensor
    return {
        name: written.setdefault(each.data_ptr(), each.to(dtype))
        if each.is_floating_point()
        else each
        for name, each in weights.items()
    }


def _correct(file: Path, dtype: torch.dtype) -> None:
    """Say the type of the weights in the file, and the rotation as transformers 4 has it, too.

    Version 5 keeps in `rope_parameters` what was `rope_theta` and `rope_scaling`.
    """
    config = json.loads(file.read_text("utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")  # it names the module's
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:  # else there is none, or one for every kind of layer, as never before
        config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
