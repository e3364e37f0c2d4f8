"""Writing the ONNX folder (docs/onnx-folder.md), whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pard_rt.errors import Error, InvalidArgumentError
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.probe import CacheLayout
from pard_rt.vocabulary import encode_token_bytes, token_bytes

FORMAT_VERSION = 1
GRAPH = "model.onnx"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its name when the block ends well.

    Raises
    ------
    InvalidArgumentError
        `out` is already there, and not an empty folder.
    Error
        The disk is full or cannot be written to; nothing is left behind.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
        raise InvalidArgumentError(
            f"{out} is already there",
            "a new folder, or an empty one that is not the working directory",
            "a folder" if out.is_dir() else "a file",
            "Remove it or choose another name.",
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        try:
            partial.mkdir(parents=True)
            yield partial
            _make_readable(partial)
            os.replace(partial, out)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise Error(
                f"{out} cannot be written",
                "room on the disk" if full else "a place that can be written to",
                str(error),
                "Free some space or choose another place" if full else "choose another place.",
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give files that were written through temporary ones the permissions of the others."""
    mode = (folder / "pard_rt.json").stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode & 0o777)


def write_companions(
    folder: Path, source: Path, loaded: LoadedModel, layout: CacheLayout, form: str, weights: str
) -> None:
    """Write everything of an ONNX folder but the graph."""
    facts = loaded.facts
    dtype = "float16" if weights == "fp16" else "float32"
    contract: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": facts.name,
        "form": form,
        "model": GRAPH,
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
    (folder / "pard_rt.json").write_text(json.dumps(contract, indent=2) + "\n", "utf-8")
    table = token_bytes(loaded.tokenizer, facts.num_tokens)
    (folder / "token_bytes.bin").write_bytes(encode_token_bytes(table))
    copied = [name for name in _TOKENIZER_FILES if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, folder / name)
    if "tokenizer.json" not in copied:
        assert loaded.tokenizer is not None
        loaded.tokenizer.save_pretrained(folder)
