"""What the files of a Hugging Face directory are, before anything of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pard_rt.errors import ModelError, first_line
from pard_rt.models.fields import Fields, read_json


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder of an adapter (LoRA): its weights alone are no model.

    Raises
    ------
    ModelError
        Names the model it was made for.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    base = Fields.read(file).text("base_model_name_or_path")
    raise ModelError(
        f"'{folder}' is an adapter, not a whole model",
        "a model with all of its weights",
        f"an adapter for {base}" if base else "an adapter",
        "Merge it first: load it with peft's AutoPeftModelForCausalLM, then save the model that "
        "merge_and_unload() returns, with its tokenizer, to a new folder.",
    )


def remote_code_error(file: Path) -> ModelError | None:
    """Return the error for a model whose `file` names Python code of its own, if it does."""
    entries = read_json(file).get("auto_map") if file.is_file() else None
    code = list(dict.fromkeys(_code_files(entries)))
    if not code:
        return None
    return ModelError(
        f"'{file.parent}' is run by Python code that comes with it",
        "a model that transformers knows itself, or trust_remote_code=True",
        ", ".join(code),
        "Read these files; if you trust them, pass trust_remote_code=True (--trust-remote-code).",
    )


def _code_files(auto_map: Any) -> Iterable[str]:
    """Name the files that an `auto_map` leads to: ``[repository--]module.Class``."""
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for reference in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(reference, str):
                repository, _, name = reference.rpartition("--")
                path = f"{name.partition('.')[0]}.py"
                yield f"{repository}/{path}" if repository else path


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or truncated.

    Raises
    ------
    ModelError
        Names the file at fault.
    """
    whole = folder / "model.safetensors"  # which transformers prefers to shards
    index = folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = [folder / shard for shard in _shards(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks part of its weights",
                f"the {len(files)} files its index names",
                f"missing: {', '.join(missing)}",
                "Download the model again.",
            )
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files and not any(folder.glob("pytorch_model*.bin")):
            raise ModelError(
                f"{folder} has no weights",
                "model.safetensors, or shards with an index",
                "none",
                "Download the whole model, not only its configuration.",
            )
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"The weights file {file} is damaged",
                "a complete safetensors file",
                str(error),
                "Download it again.",
            ) from error


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The index of the weights {index} is damaged",
            "a JSON object whose weight_map names the file of every tensor",
            first_line(error),
            "Download it again.",
        ) from error
