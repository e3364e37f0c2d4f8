"""GGUF files, read by transformers: architecture, tokenizer and dequantized weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pard_rt.errors import ModelError, RuntimeMissingError, first_line
from pard_rt.models.checkpoint import LoadedModel, loaded_from
from pard_rt.models.options import OpenOptions

_HEAD = "lm_head.weight"


def load_gguf(file: Path, options: OpenOptions) -> LoadedModel:
    """Load a GGUF file as a module; its weights are dequantized.

    Parameters
    ----------
    file
        The file.
    options
        `dtype` of the weights; `max_length` and `mask_token_id`.

    Raises
    ------
    ModelError
        The file is damaged, or of an architecture that transformers does not read.
    RuntimeMissingError
        The package gguf is missing.
    """
    absent = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise RuntimeMissingError(
            "GGUF files are read with packages that are not installed",
            "gguf and accelerate",
            f"no {' and no '.join(absent)}",
            "Run: pip install 'pard-rt[export]'.",
        )
    where: dict[str, Any] = {"gguf_file": file.name}
    dtype = torch.float32 if options.dtype == "auto" else options.dtype
    try:
        config = AutoConfig.from_pretrained(file.parent, **where)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, config=config, dtype=dtype, output_loading_info=True, **where
        )
        module, report = loaded
    except MemoryError:
        raise
    except Exception as error:  # every malformed field fails in its own way
        raise ModelError(
            f"'{file}' cannot be read",
            "a GGUF file of a decoder whose architecture transformers reads",
            first_line(error),
            "Download the file again; a new architecture may need a newer transformers.",
        ) from error
    missing = sorted(set(report["missing_keys"]) - {_HEAD})
    if missing:
        raise ModelError(
            f"'{file}' lacks {len(missing)} of the model's weights",
            "a weight for every parameter",
            f"missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            "Download the file again.",
        )
    if _HEAD in report["missing_keys"]:  # the tensors say that it is tied, whatever the file does
        module.get_output_embeddings().weight = module.get_input_embeddings().weight
    module = module.eval().requires_grad_(False)
    return loaded_from(module, options, file.stem, tokenizer=tokenizer)
