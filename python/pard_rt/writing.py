"""Files and folders that commands write: errors that name what is in the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pard_rt.errors import Error, FolderError, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT)


def require_folder(path: Path) -> None:
    """Refuse a path where no folder can be made, because it is a file or leads through one.

    Raises
    ------
    FolderError
        Names the file.
    """
    for part in (path, *path.parents):
        if os.path.exists(part) and not os.path.isdir(part):
            raise FolderError(
                f"The folder '{path}' cannot be written",
                "a folder, or a name that is free",
                "a file" if part == path else f"a file '{part}' on the way to it",
                "Choose another name, or remove the file.",
            )


def require_own(folder: Path, own: frozenset[str], inputs: Iterable[Path]) -> None:
    """Refuse a folder that holds an input, or files that an earlier run did not write.

    Parameters
    ----------
    folder
        May be missing.
    own
        Names of which an earlier run leaves at least one, beside others it may leave.
    inputs
        Folders that are read.

    Raises
    ------
    FolderError
        Names what is in the way.
    """
    for each in inputs:
        if folder.exists() and each.exists() and folder.samefile(each):
            raise FolderError(
                f"The output '{folder}' is also an input",
                "a folder of its own",
                f"'{each}'",
                "Choose another name: the input would be overwritten.",
            )
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if there and own.isdisjoint(there):
        raise FolderError(
            f"The output '{folder}' is in use",
            f"a new or empty folder, or one with {' or '.join(sorted(own))}",
            ", ".join(there[:4]) + (", .." if len(there) > 4 else ""),
            "Choose another name, or empty the folder.",
        )


@contextmanager
def writing(path: Path, *, resume: str = "") -> Iterator[None]:
    """Turn what goes wrong while `path` is written into an error that says why.

    Parameters
    ----------
    path
        A file or a folder.
    resume
        How the work goes on once the cause is gone; a sentence.

    Raises
    ------
    FolderError
        The disk is full, or the place cannot be written to.
    """
    try:
        yield
    except Error:
        raise
    except (OSError, RuntimeError) as error:  # torch.save raises both
        number = getattr(error, "errno", None)
        if number in _FULL:
            expected, remedy = "room on the disk", "Free some space."
        elif number is not None:
            expected, remedy = "a place that can be written to", "Choose another place."
        else:
            expected = "room on the disk, and rights to write there"
            remedy = "Free some space, or choose another place."
        raise FolderError(
            f"'{path}' cannot be written", expected, first_line(error), f"{remedy} {resume}".strip()
        ) from error
