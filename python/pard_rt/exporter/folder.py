"""Writing the ONNX folder (docs/onnx-folder.md), whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pard_rt.errors import InvalidArgumentError
from pard_rt.exporter.encodings import require_same_encodings
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.models.facts import ModelFacts
from pard_rt.pytorch.probe import CacheLayout
from pard_rt.text import TokenText
from pard_rt.vocabulary import encode_token_bytes, token_bytes
from pard_rt.writing import require_folder, writing

FORMAT_VERSION = 1
GRAPH = "model.onnx"

_GENERATION = "generation_config.json"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its name when the block ends well.

    Raises
    ------
    InvalidArgumentError
        `out` is already there, and not an empty folder.
    FolderError
        There is a file in the way, the disk is full or cannot be written to; nothing is left
        behind.
    """
    out = out.absolute()
    require_folder(out)
    if out.exists() and (any(out.iterdir()) or out.samefile(Path.cwd())):
        raise InvalidArgumentError(
            f"{out} is already there",
            "a new folder, or an empty one that is not the working directory",
            "a folder",
            "Remove it or choose another name.",
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with writing(out):
            partial.mkdir(parents=True)
            yield partial
            _make_readable(partial)
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give files that were written through temporary ones the permissions of the others."""
    mode = (folder / "pard_rt.json").stat().st_mode
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod(mode & 0o777)


def write_contract(
    folder: Path,
    facts: ModelFacts,
    layout: CacheLayout,
    form: str,
    weights: str,
    *,
    graph: str = GRAPH,
    requires_own_attention: bool = False,
) -> None:
    """Write pard_rt.json."""
    dtype = "float16" if weights == "fp16" else "float32"
    contract: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": facts.name,
        "form": form,
        "model": graph,
        "num_layers": layout.num_layers,
        "num_kv_heads": layout.num_kv_heads,
        "head_dim": layout.head_dim,
        "kv_dtype": dtype,
        "logits_dtype": dtype,
        "vocab_size": facts.vocab_size,
        "num_tokens": facts.num_tokens,
        "max_length": facts.max_length,
        "bos_token_id": facts.bos_token_id,
        "eos_token_ids": list(facts.eos_token_ids),
        "mask_token_id": facts.mask_token_id,
        "weights": weights,
    }
    if facts.head_tokens:
        contract["head_tokens"] = list(facts.head_tokens)
    if requires_own_attention:
        contract["requires_own_attention"] = True
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in contract.items()]
    (folder / "pard_rt.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def write_text_files(folder: Path, source: Path, loaded: LoadedModel) -> None:
    """Write the tokenizer as it is loaded, the bytes of its tokens, and generation_config.json.

    A copy of the checkpoint's tokenizer.json would lack what transformers adds from other files.

    Raises
    ------
    ModelError
        The folder's tokenizer gives other ids than the checkpoint's, or has no bytes to tell.
    """
    num_tokens = loaded.facts.num_tokens
    table = token_bytes(loaded.tokenizer, num_tokens)
    (folder / "token_bytes.bin").write_bytes(encode_token_bytes(table))
    loaded.tokenizer.save_pretrained(folder)
    _pack(folder / "tokenizer.json")
    if (source / _GENERATION).is_file():
        shutil.copyfile(source / _GENERATION, folder / _GENERATION)
    require_same_encodings(TokenText.of_folder(folder, num_tokens).tokenizer, loaded.tokenizer)


def _pack(file: Path) -> None:
    """Write a JSON file again without spaces: half of a tokenizer.json is indentation."""
    if file.is_file():
        packed = json.dumps(
            json.loads(file.read_bytes()), ensure_ascii=False, separators=(",", ":")
        )
        file.write_text(packed, "utf-8")
