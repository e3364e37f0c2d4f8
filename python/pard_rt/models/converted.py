"""GGUF files as ONNX folders: converted once, and kept in a cache."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pard_rt.errors import requiring
from pard_rt.models.find import parts_of
from pard_rt.writing import writing

_FORMAT = 2  # bump when the converter's output changes
_CONVERTING = threading.Lock()  # one at a time in a process: modules are patched meanwhile


def cache_folder() -> Path:
    """Return where conversions are kept, by the XDG base directories: there or not."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "pard-rt" / "gguf"


def conversion_of(file: Path) -> Path:
    """Return the folder that a GGUF file's conversion is or would be kept in."""
    states = [part.stat() for part in parts_of(file) if part.exists()]
    sizes = " ".join(f"{state.st_size}:{state.st_mtime_ns}" for state in states)
    identity = f"{_FORMAT} {file.resolve()} {sizes}"
    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:12]
    return cache_folder() / f"{file.stem}-{key}"


def conversions() -> list[Path]:
    """Return the folders that are kept."""
    root = cache_folder()
    return sorted(path for path in root.glob("[!.]*") if path.is_dir()) if root.is_dir() else []


def converted(file: Path) -> Path:
    """Return the ONNX folder of a GGUF file, which is written if it is not there.

    Of several processes that want the same one, one writes it and the others wait.

    Raises
    ------
    Error
        The file cannot be converted, or the folder not be written; no part of it is left behind.
    """
    folder = conversion_of(file)
    if folder.is_dir():
        return folder
    with requiring("export", f"'{file}' is a GGUF file; converting it"):
        from pard_rt.exporter import export
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _CONVERTING, _locked(folder):
        if not folder.is_dir():
            for rest in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
                shutil.rmtree(rest)  # of a process that was killed
            export(file, folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with writing(folder), folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clear_conversions() -> None:
    """Remove what is kept; what another process is converting, once it is done."""
    for folder in conversions():
        with _locked(folder):
            shutil.rmtree(folder)
    if cache_folder().is_dir():
        with writing(cache_folder()):
            shutil.rmtree(cache_folder())
