"""From what a user names to a folder here: a directory, an id on the Hugging Face hub, the demo."""

from __future__ import annotations

import os
from pathlib import Path

from pard_rt.errors import FolderError, first_line

_WANTED = [
    "*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.onnx", "*.onnx.data",
    "*.onnx_data", "token_bytes.bin",
]  # fmt: skip
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
_WEIGHTS = ("*.safetensors", "*.onnx")
_OLD_WEIGHTS = ["pytorch_model*.bin"]  # fetched only where there are no others


# The pair that comes with the package (docs/demo-pair.md).
_DEMO = {
    "demo": "target",  # a small model of Python source code
    "demo/parallel": "parallel",  # its parallel draft
    "demo/classic": "classic",  # its autoregressive draft, of the same size
}


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the folder of a model, downloaded if `source` is a hub id.

    Parameters
    ----------
    source
        A directory; or an id such as ``Qwen/Qwen2.5-0.5B``, for which the hub's own environment
        variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) are heeded; or ``demo``,
        ``demo/parallel`` or ``demo/classic``, the models of the demo. ``./demo`` is a directory.

    Raises
    ------
    FolderError
        There is no such directory, and the hub has no such model or cannot be reached.
    """
    name = os.fspath(source)
    if source in _DEMO:
        return Path(__file__).parent.parent / "demo" / _DEMO[name]
    found = "nothing there"
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path
        found = "a file" if name and path.exists() else found
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such home, a NUL
        found = first_line(error)
    if not isinstance(source, str) or not _may_be_id(name):
        raise FolderError(
            f"There is no model folder '{name}'",
            "a directory with a model, or a hub id",
            found,
            "Check the path.",
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            snapshot_download(name, allow_patterns=_OLD_WEIGHTS, ignore_patterns=_UNWANTED)
    except Exception as error:  # the hub's own, its HTTP client's, the disk's
        raise FolderError(
            f"The model '{name}' cannot be had",
            "a directory, or the id of a model on the hub",
            f"no such directory, and from the hub: {first_line(error)}",
            "Check the name and the network; private models need HF_TOKEN.",
        ) from error
    return folder


def display_name(folder: Path) -> str:
    """Return the name a model goes by: its folder's, or that of its repository on the hub."""
    if folder.parent.name == "snapshots":  # models--owner--name/snapshots/commit
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _may_be_id(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith(("/", ".", "~"))
        and name.count("/") <= 1
        and not (os.path.exists(name))
    )
