"""The errors this library raises on purpose; the C++ core raises the same ones."""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = [
    "Error",
    "FallbackWarning",
    "FolderError",
    "IncompatibleModelsError",
    "InvalidArgumentError",
    "LogitsError",
    "ModelError",
    "Notice",
    "RuntimeMissingError",
]

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Error(Exception):
    """Root of the hierarchy: what went wrong, what was expected, what was there, what to do.

    Parameters
    ----------
    problem, expected, actual, remedy : str
        Kept as attributes; together they are the message.
    """

    def __init__(self, problem: str, expected: str, actual: str, remedy: str) -> None:
        super().__init__(f"{problem}: expected {expected}, got {actual}. {remedy}")
        self.problem = problem
        self.expected = expected
        self.actual = actual
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[Error], tuple[str, str, str, str]]:
        return type(self), (self.problem, self.expected, self.actual, self.remedy)


class InvalidArgumentError(Error, ValueError):
    """A value the caller passed cannot be used: a prompt, a sampling parameter, a number."""


class IncompatibleModelsError(Error, ValueError):
    """A draft and a target that cannot work together: other vocabularies, no mask token."""


class ModelError(Error, RuntimeError):
    """A model failed in ``forward`` or broke its contract; ``__cause__`` is what it raised."""


class LogitsError(ModelError):
    """A logits row that no token can be chosen from: NaN or +inf in it, or only -inf."""


class FolderError(Error, ValueError):
    """A model folder that cannot be opened: files missing or cut short, or not what they claim."""


class RuntimeMissingError(Error, RuntimeError):
    """ONNX Runtime was not found, is too old, or lacks the execution provider asked for."""


class Notice(UserWarning):
    """Something worth knowing about what is done all the same.

    Parameters
    ----------
    what : str
        What it is.
    details : str
        More about it, a sentence each.
    """

    def __init__(self, what: str, *details: str) -> None:
        super().__init__(what, *details)
        self.what = what
        self.details = details

    def __str__(self) -> str:
        return " ".join((f"{self.what}.", *self.details))


class FallbackWarning(Notice):
    """What was asked for is done, but slower or less exactly: what that means, and why.

    Parameters
    ----------
    instead : str
        What is done.
    error : Error
        Why, and how to have it otherwise.
    """

    def __init__(self, instead: str, error: Error) -> None:
        super().__init__(instead, str(error))
        self.args = (instead, error)  # what it is pickled by
        self.instead = instead
        self.error = error


def integer_of(given: object) -> int | None:
    """Return an integer of any library's type as an int; None for anything else, bools too."""
    if isinstance(given, bool):
        return None
    try:
        return operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        return None


def require_range(
    what: str, given: object, low: int, high: int, remedy: str = "Choose one inside."
) -> int:
    """Return an integer in low..high, and refuse anything else.

    Raises
    ------
    InvalidArgumentError
        It is not an integer, or outside.
    """
    number = integer_of(given)
    if number is None or not low <= number <= high:
        raise InvalidArgumentError(
            f"{what} must be an integer" if number is None else f"{what} is out of range",
            f"an integer in {low}..{high}",
            repr(given),
            remedy,
        )
    return number


def require_flag(what: str, given: object) -> bool:
    """Return a bool of any library's type as a bool, and refuse anything else.

    Raises
    ------
    InvalidArgumentError
        It is not a bool.
    """
    if not isinstance(given, (bool, np.bool_)):
        raise InvalidArgumentError(
            f"{what} must be True or False", "a bool", repr(given), "Pass True or False."
        )
    return bool(given)


def first_line(error: BaseException) -> str:
    """Return what an exception says first, without colours, or its type where it says nothing."""
    text = _TERMINAL_CODE.sub("", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0]


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


def fall_back(instead: str, error: Error) -> None:
    """Give a `FallbackWarning`: see `notify`."""
    notify(FallbackWarning(instead, error))


def notify(notice: Notice) -> None:
    """Give a warning at the line that called the package."""
    frame = inspect.currentframe()
    depth = 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pard_rt":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(notice, stacklevel=depth + 1)
