"""From what a user names to a folder here: a directory, an id on the Hugging Face hub, the demo."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from pard_rt.errors import FolderError, InvalidArgumentError, first_line
from pard_rt.models.options import OpenOptions

_WANTED = [
    "*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.onnx", "*.onnx.data",
    "*.onnx_data", "token_bytes.bin",
]  # fmt: skip
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
_WEIGHTS = ("*.safetensors", "*.onnx")
_OLD_WEIGHTS = ["pytorch_model*.bin"]  # fetched only where there are no others
_CODE = ["*.py"]  # fetched only where it may run


# The pair that comes with the package (docs/demo-pair.md).
_DEMO = {
    "demo": "target",  # a small model of Python source code
    "demo/parallel": "parallel",  # its parallel draft
    "demo/classic": "classic",  # its autoregressive draft, of the same size
}


def locate(source: str | os.PathLike[str], options: OpenOptions | None = None) -> Path:
    """Return the folder or file of a model, downloaded if `source` is a hub id.

    Parameters
    ----------
    source
        A directory; or a GGUF file; or an id such as ``Qwen/Qwen2.5-0.5B``, for which the hub's own
        environment variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) are heeded; or
        ``demo``, ``demo/parallel`` or ``demo/classic``, the models of the demo. ``./demo`` is a
        directory.
    options
        Its `revision`, `token`, `cache_dir` and `trust_remote_code` are for the hub.

    Raises
    ------
    FolderError
        There is no such directory or file, and the hub has no such model or cannot be reached.
    InvalidArgumentError
        A revision was given of what is not on the hub.
    """
    options = options or OpenOptions()
    name = os.fspath(source)
    if source in _DEMO:
        return Path(__file__).parent.parent / "demo" / _DEMO[name]
    path, found = _there(name)
    if path is not None:
        _require_no_revision(path, options)
        return path
    if not isinstance(source, str) or not _may_be_id(name):
        raise FolderError(
            f"There is no model '{name}'",
            "a directory with a model, a GGUF file, or a hub id",
            found,
            "Check the path.",
        )
    return _download(name, options)


def _there(name: str) -> tuple[Path | None, str]:
    """Return the directory or GGUF file of that name, or what is there instead."""
    try:
        path = Path(name).expanduser()
        if name and (path.is_dir() or is_gguf(path)):
            return path, ""
        return None, "a file" if name and path.exists() else "nothing there"
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such home, a NUL
        return None, first_line(error)


def parts_of(file: Path) -> list[Path]:
    """Return the files of a model that begins with this one, by its name."""
    found = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", file.name)
    if found is None:
        return [file]
    count = int(found[2])
    return [file.with_name(f"{found[1]}-{i + 1:05}-of-{found[2]}.gguf") for i in range(count)]


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file: by its first bytes, or else by its name."""
    if not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"
    return path.suffix == ".gguf"


def _download(name: str, options: OpenOptions) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=options.revision,
                token=options.token,
                cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
                allow_patterns=patterns,
                ignore_patterns=_UNWANTED,
            )
        )

    try:
        folder = fetch(_WANTED + (_CODE if options.trust_remote_code else []))
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            fetch(_OLD_WEIGHTS)
    except Exception as error:  # the hub's own, its HTTP client's, the disk's
        revision = "" if options.revision is None else f" at revision '{options.revision}'"
        raise FolderError(
            f"The model '{name}'{revision} could not be found or downloaded",
            "a directory, or the id of a model on the hub",
            f"no such directory, and from the hub: {first_line(error)}",
            "Check the name and the network; private models need a token (HF_TOKEN).",
        ) from error
    return folder


def _require_no_revision(path: Path, options: OpenOptions) -> None:
    if options.revision is not None:
        raise InvalidArgumentError(
            f"'{path}' is a {'directory' if path.is_dir() else 'file'}, which has no revisions",
            "a hub id, if a revision is given",
            f"revision {options.revision!r}",
            "Leave revision out, or name the model by its hub id.",
        )


def display_name(folder: Path) -> str:
    """Return the name a model goes by: its folder's, or that of its repository on the hub."""
    if folder.parent.name == "snapshots":  # models--owner--name/snapshots/commit
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def folder_size(folder: Path) -> int:
    """Bytes of the files of a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _may_be_id(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith(("/", ".", "~"))
        and name.count("/") <= 1
        and not name.endswith(".gguf")
        and not os.path.exists(name)
    )
