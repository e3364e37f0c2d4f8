"""From what a user names to an open model, whichever kind of folder it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pard_rt._core import Model, ModelInfo, OnnxModel, ProbeReport, probe_model, read_folder
from pard_rt.code_objects import code_objects, driver_of
from pard_rt.errors import (
    FolderError,
    InvalidArgumentError,
    ModelError,
    RuntimeMissingError,
    fall_back,
    require_range,
)
from pard_rt.models.find import locate
from pard_rt.text import TokenText

if TYPE_CHECKING:
    import torch

    from pard_rt.models.checkpoint import LoadedModel

Kind = Literal["onnx", "hugging face"]
Backend = Literal["auto", "onnx", "torch"]
Source: TypeAlias = "str | os.PathLike[str] | LoadedModel"  # a folder, a hub id, or a module

_BACKENDS: dict[Kind, Backend] = {"onnx": "onnx", "hugging face": "torch"}
_TORCH_DEVICES = ("cpu", "cuda")
_FOLDERS: dict[Backend, str] = {"onnx": "an ONNX folder", "torch": "a Hugging Face directory"}


@dataclass(frozen=True)
class OpenedModel:
    """A model and what its folder, or whoever wrapped it, says about decoding with it."""

    source: str  # its folder, or its name
    description: str
    model: Model
    info: ModelInfo
    mask_token_id: int | None
    eos_token_ids: tuple[int, ...]
    probe: Callable[[], ProbeReport]  # raises ModelError where rows disagree or do not rewind
    text: Callable[[], TokenText]  # raises Error where there is no tokenizer
    has_tokenizer: bool
    loaded: LoadedModel | None = None  # where PyTorch runs it


def kind_of(path: Path) -> Kind:
    """Tell an ONNX folder from a Hugging Face directory.

    Raises
    ------
    FolderError
        It is neither.
    """
    if not path.is_dir():
        raise FolderError(
            f"There is no model folder '{path}'",
            "an ONNX folder or a Hugging Face directory",
            "a file" if path.exists() else "nothing there",
            "Check the path.",
        )
    if (path / "pard_rt.json").exists() or (path / "genai_config.json").exists():
        return "onnx"
    if (path / "config.json").exists():
        return "hugging face"
    names = sorted(entry.name for entry in path.iterdir())
    raise FolderError(
        f"'{path}' is no model folder",
        "a file pard_rt.json, genai_config.json or config.json",
        ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "an empty folder",
        "Pass the folder that pard-rt export wrote, or the directory of a Hugging Face model.",
    )


def open_model(
    source: Source,
    *,
    backend: Backend = "auto",
    device: str = "cpu",
    threads: int = 0,
    is_target: bool = True,
    max_length: int | None = None,
    mask_token_id: int | None = None,
) -> OpenedModel:
    """Open a model without trying it.

    Parameters
    ----------
    source
        An ONNX folder or a Hugging Face directory: see `locate`; or a module that is loaded.
    backend
        "onnx" or "torch" refuses what would run in the other.
    device
        "cpu", or an execution provider of ONNX Runtime.
    threads
        Of one forward; 0: one for every physical core. PyTorch's are those of the whole process.
    is_target
        Whether every row is to be exact, and a rejected proposal may not change other rows.
    max_length
        Positions a sequence may have; the model's own limit by default and at most. Of a draft
        those of its target, even where its own limit is smaller.
    mask_token_id
        Of a parallel draft, over what the model says.

    Raises
    ------
    Error
        It cannot be opened, or not with that provider.
    """
    require_range("threads", threads, 0, 1024)
    for name, given, least in (("max_length", max_length, 1), ("mask_token_id", mask_token_id, 0)):
        if given is not None:
            require_range(name, given, least, 2**31 - 1)
    if not isinstance(source, (str, os.PathLike)):
        if backend == "onnx":
            raise InvalidArgumentError(
                "A PyTorch module does not run in the backend onnx",
                _FOLDERS[backend],
                type(source).__name__,
                "Leave the backend open.",
            )
        return _open_module(source, device, threads, is_target, max_length, mask_token_id)
    path = locate(source)
    kind = kind_of(path)
    if backend != "auto" and _BACKENDS[kind] != backend:
        raise InvalidArgumentError(
            f"'{path}' does not run in the backend {backend}",
            _FOLDERS[backend],
            _FOLDERS[_BACKENDS[kind]],
            "Write an ONNX folder with pard-rt export, or leave the backend open.",
        )
    if kind == "onnx":
        return _open_onnx(path, device, threads, is_target, max_length, mask_token_id)
    return _open_hugging_face(path, device, threads, is_target, max_length, mask_token_id)


def _choose_on_device(model: OnnxModel) -> None:
    try:
        model.choose_on_device(code_objects(driver_of(model.provider)))
    except (RuntimeMissingError, ModelError) as error:
        instead = "Tokens are chosen on the host: logits are copied there, slower"
        fall_back(instead, error)


def _open_onnx(
    path: Path,
    device: str,
    threads: int,
    is_target: bool,
    max_length: int | None,
    mask_token_id: int | None,
) -> OpenedModel:
    if max_length is not None and not is_target:
        max_length = min(max_length, read_folder(path).max_length)
    model = OnnxModel(
        path,
        provider=device,
        threads=threads,
        exact=is_target,
        is_target=is_target,
        max_length=max_length,
        probe=False,
    )
    if device != "cpu":
        _choose_on_device(model)
    contract = model.contract
    mask = contract.mask_token_id if mask_token_id is None else mask_token_id
    facts = ["ONNX folder", contract.form, contract.weights or "weights not said", device]
    if mask is not None:
        facts.append(f"mask token {mask}")
    return OpenedModel(
        source=str(path),
        description=", ".join(facts),
        model=model,
        info=model.info(),
        mask_token_id=mask,
        eos_token_ids=tuple(contract.eos_token_ids),
        probe=model.probe,
        text=partial(TokenText.of_folder, path, contract.num_tokens or contract.vocab_size),
        has_tokenizer=(path / "tokenizer.json").is_file(),
    )


def _open_hugging_face(
    path: Path,
    device: str,
    threads: int,
    is_target: bool,
    max_length: int | None,
    mask_token_id: int | None,
) -> OpenedModel:
    if device not in _TORCH_DEVICES or threads < 0:
        raise InvalidArgumentError(
            f"'{path}' is a Hugging Face directory, which PyTorch runs",
            "device cpu, or cuda (AMD's cards too), and 0 or more threads",
            f"device {device}, {threads} threads",
            "Other devices are ONNX Runtime's: write a folder for it with pard-rt export.",
        )
    with requiring("torch", f"'{path}' is a Hugging Face directory; opening it"):
        from pard_rt.models.checkpoint import load
    hush_transformers()
    loaded = load(
        path,
        device=device,
        mask_token_id=mask_token_id,
        max_length=max_length if is_target else None,
        at_most=None if is_target else max_length,
        need_tokenizer=False,
    )

    def text() -> TokenText:
        if loaded.tokenizer is None:
            return TokenText.of_folder(path, loaded.facts.num_tokens)  # says what is missing
        return TokenText.of_tokenizer(loaded.tokenizer, loaded.facts.num_tokens)

    return _opened(loaded, str(path), "Hugging Face directory", threads, text)


def _open_module(
    source: LoadedModel,
    device: str,
    threads: int,
    is_target: bool,
    max_length: int | None,
    mask_token_id: int | None,
) -> OpenedModel:
    if not hasattr(source, "seam"):
        raise InvalidArgumentError(
            "This is no model",
            "a folder, a hub id, or what pard_rt.wrap() or pard_rt.load() returned",
            type(source).__name__,
            "Wrap a module of your own with pard_rt.wrap(module, max_length=...).",
        )
    with requiring("torch", "A module is run by PyTorch; opening it"):
        from pard_rt.models.checkpoint import refit
    name, there = source.facts.name, source.seam.device
    if device != there.type or threads < 0:
        raise InvalidArgumentError(
            f"The module {name} is run by PyTorch, where it is",
            f"device {there.type}, and 0 or more threads",
            f"device {device}, {threads} threads",
            f"Pass device='{there.type}', or move the module before it is wrapped.",
        )
    _require_current(name, there)
    if max_length is not None and not is_target:
        max_length = min(max_length, source.facts.max_length)
    loaded = refit(source, max_length=max_length, mask_token_id=mask_token_id)

    def text() -> TokenText:
        if loaded.tokenizer is None:
            raise InvalidArgumentError(
                f"{name} has no tokenizer to encode a prompt with",
                "a tokenizer",
                "none",
                "Pass one to pard_rt.wrap(), or pass token ids.",
            )
        return TokenText.of_tokenizer(loaded.tokenizer, loaded.facts.num_tokens)

    return _opened(loaded, name, "PyTorch module", threads, text)


def _require_current(name: str, there: torch.device) -> None:
    """Refuse a module on another card than the current one, where rounds are captured."""
    import torch

    if there.type != "cuda" or there.index in (None, current := torch.cuda.current_device()):
        return
    raise InvalidArgumentError(
        f"The module {name} is on another card than PyTorch's current one",
        f"cuda:{current}",
        str(there),
        f"Call torch.cuda.set_device({there.index}) first.",
    )


def _opened(
    loaded: LoadedModel, source: str, kind: str, threads: int, text: Callable[[], TokenText]
) -> OpenedModel:
    import torch

    from pard_rt.pytorch.probe import TOLERANCE
    from pard_rt.pytorch.torch_model import TorchModel

    if threads:
        torch.set_num_threads(threads)
    model = TorchModel(loaded)
    dtype, mask = loaded.seam.dtype, loaded.facts.mask_token_id
    described = [kind, str(dtype).removeprefix("torch."), loaded.seam.device.type]
    if mask is not None:
        described.append(f"mask token {mask}")

    def probe() -> ProbeReport:
        try:
            return probe_model(model, tolerance=TOLERANCE.get(dtype, 0.1))
        except ModelError as error:
            raise ModelError(
                error.problem,
                error.expected,
                error.actual,
                "A row may depend on the tokens up to it and on nothing else, such as quantization "
                "of all rows by one scale.",
            ) from error

    return OpenedModel(
        source=source,
        description=", ".join(described),
        model=model,
        info=model.info(),
        mask_token_id=mask,
        eos_token_ids=loaded.facts.eos_token_ids,
        probe=probe,
        text=text,
        has_tokenizer=loaded.tokenizer is not None,
        loaded=loaded,
    )


@contextmanager
def requiring(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import inside the block into an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pard_rt"):
            raise
        raise RuntimeMissingError(
            f"{what} needs packages that are not installed",
            f"those of pard-rt[{extra}]",
            f"no {error.name}",
            f"Install them with: pip install 'pard-rt[{extra}]'.",
        ) from error


def hush_transformers() -> None:
    """Keep transformers' own progress bars out of the output."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def folder_size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FolderError
        It is not one.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
        actual = type(value).__name__
    except (OSError, ValueError) as error:
        value, actual = None, str(error)
    if not isinstance(value, dict):
        raise FolderError(
            f"'{file}' cannot be read", "a JSON object", actual, "Download the model again."
        )
    return value
