"""From what a user names to an open model: one registry of formats, one set of options."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pard_rt.errors import FolderError, InvalidArgumentError, requiring
from pard_rt.models.converted import converted
from pard_rt.models.find import is_gguf, locate
from pard_rt.models.onnx_folder import open_onnx_folder
from pard_rt.models.opened import OpenedModel
from pard_rt.models.options import Backend, OpenOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pard_rt.models.checkpoint import LoadedModel

Source: TypeAlias = "str | os.PathLike[str] | LoadedModel | PreTrainedModel"


def _open_checkpoint(path: Path, options: OpenOptions) -> OpenedModel:
    kind = "GGUF file" if path.is_file() else "Hugging Face directory"
    with requiring("torch", f"'{path}' is a {kind}; opening it in PyTorch"):
        from pard_rt.models.pytorch_models import open_checkpoint
    return open_checkpoint(path, options)


def _open_gguf(path: Path, options: OpenOptions) -> OpenedModel:
    if options.backend == "torch":
        return _open_checkpoint(path, options)
    if options.dtype != "auto" or str(options.device) != "cpu":
        raise InvalidArgumentError(
            f"'{path}' is a GGUF file, whose weights stay what they are and run on the CPU",
            "no dtype, and device cpu",
            f"dtype {options.dtype!r}, and device {str(options.device)!r}",
            "Leave both out, or choose the backend torch.",
        )
    return open_onnx_folder(converted(path), options)


@dataclass(frozen=True)
class Format:
    """A kind of model."""

    name: str
    backends: tuple[Backend, ...]  # that it runs in; in the first, unless another is asked for
    marks: tuple[str, ...]  # files any of which tells it from other folders
    open: Callable[[Path, OpenOptions], OpenedModel]


ONNX_FOLDER = Format(
    "an ONNX folder", ("onnx",), ("pard_rt.json", "genai_config.json"), open_onnx_folder
)
CHECKPOINT = Format(
    "a Hugging Face directory", ("torch",), ("config.json", "adapter_config.json"), _open_checkpoint
)
GGUF = Format("a GGUF file", ("onnx", "torch"), (), _open_gguf)
FORMATS = (ONNX_FOLDER, CHECKPOINT, GGUF)  # the first that fits counts


def format_of(path: Path) -> Format:
    """Tell what a model is.

    Raises
    ------
    FolderError
        It is none that is known.
    """
    kinds = " or ".join(each.name for each in FORMATS)
    if is_gguf(path):
        return GGUF
    if not path.is_dir():
        raise FolderError(
            f"There is no model '{path}'",
            kinds,
            "a file" if path.exists() else "nothing there",
            "Check the path.",
        )
    for each in FORMATS:
        if any((path / mark).exists() for mark in each.marks):
            return each
    names = sorted(entry.name for entry in path.iterdir())
    raise FolderError(
        f"'{path}' is not a model folder",
        "a file pard_rt.json, genai_config.json or config.json",
        ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "an empty folder",
        "Pass the folder that pard-rt export wrote, or the directory of a Hugging Face model.",
    )


def open_model(source: Source, options: OpenOptions | None = None) -> OpenedModel:
    """Open a model without trying it.

    Parameters
    ----------
    source
        A folder, a GGUF file or a hub id (see `locate`), or a module in memory: a model of
        transformers, or what `pard_rt.wrap` or `pard_rt.load` returned.
    options
        How; the defaults are those of `OpenOptions`.

    Raises
    ------
    Error
        It cannot be opened, or not with these options.
    """
    options = options or OpenOptions()
    if not isinstance(source, (str, os.PathLike)):
        return _open_module(source, options)
    if options.tokenizer is not None:
        raise InvalidArgumentError(
            "A tokenizer is given for a module in memory only",
            "no tokenizer: a folder has its own",
            f"{type(options.tokenizer).__name__} for '{source}'",
            "Leave tokenizer out.",
        )
    path = locate(source, options)
    kind = format_of(path)
    if options.backend not in ("auto", *kind.backends):
        wanted = next(each for each in FORMATS if options.backend in each.backends)
        raise InvalidArgumentError(
            f"'{path}' does not run in the backend {options.backend}",
            wanted.name,
            kind.name,
            "Write an ONNX folder with pard-rt export, or leave backend out.",
        )
    return kind.open(path, options)


def _open_module(source: Any, options: OpenOptions) -> OpenedModel:
    if options.backend == "onnx":
        raise InvalidArgumentError(
            "A PyTorch module does not run in the backend onnx",
            ONNX_FOLDER.name,
            type(source).__name__,
            "Leave backend out.",
        )
    with requiring("torch", "PyTorch runs a module; opening it"):
        from pard_rt.models.pytorch_models import open_module
    return open_module(source, options)
