"""The Hugging Face directory that training leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from pard_rt.models.checkpoint import LoadedModel


def save_checkpoint(
    loaded: LoadedModel, dtype: torch.dtype, mask_token_id: int, card: str, output: Path
) -> None:
    """Write it: nothing takes its name before all of it is written.

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
    loaded.module.config.pard_token = mask_token_id
    loaded.module.config.spd_type = "pard"
    loaded.module.set_attn_implementation("sdpa")
    loaded.module.to(dtype).save_pretrained(partial)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(partial)
    _name_rotation_twice(partial / "config.json")
    (partial / "README.md").write_text(card, "utf-8")
    for file in partial.iterdir():
        os.replace(file, output / file.name)
    partial.rmdir()


def _name_rotation_twice(file: Path) -> None:
    """Say the rotation where engines made for transformers 4 look for it, too.

    Version 5 keeps in `rope_parameters` what was `rope_theta` and `rope_scaling`.
    """
    config = json.loads(file.read_text("utf-8"))
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" not in rope:  # none, or one for every kind of layer: there was no such before
        return
    config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
