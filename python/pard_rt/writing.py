"""Files and folders that commands write: errors that name what is in the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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
