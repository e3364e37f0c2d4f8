"""Checked reading of what configurations say of a model, one field at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pard_rt.errors import FolderError, ModelError, first_line

_MAX_TOKEN = 2**31 - 1


class Fields:
    """One JSON object, or a configuration of transformers.

    Every reader returns None where the field is absent or null, and raises `ModelError`, naming
    the field and what it should be, where it is something else.

    Parameters
    ----------
    get
        Returns the value of a key; None where there is none.
    where
        What messages call the source: a file, or a model.
    remedy
        What messages tell the user to do.
    """

    def __init__(
        self, get: Callable[[str], Any], where: str, remedy: str = "Correct it there."
    ) -> None:
        self._get = get
        self._where = where
        self._remedy = remedy

    @classmethod
    def read(cls, file: Path) -> Fields:
        """Read a JSON file; errors are those of `read_json`."""
        return cls(read_json(file).get, f"'{file}'")

    @classmethod
    def of_config(cls, config: Any, where: str) -> Fields:
        """Take a configuration of transformers, whose fields are attributes."""
        return cls(lambda key: getattr(config, key, None), f"The configuration of {where}")

    def integer(self, key: str, low: int, high: int) -> int | None:
        """Read an integer in low..high."""
        value = self._get(key)
        return None if value is None else self._integer(key, value, low, high)

    def number(self, key: str, low: float, high: float) -> float | None:
        """Read a number in low..high."""
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise self._wrong(key, "a number", value)
        if not low <= value <= high:
            raise self._wrong(key, f"a number in {low:g}..{high:g}", value)
        return float(value)

    def flag(self, key: str) -> bool | None:
        """Read true or false."""
        value: bool | None = self._typed(key, bool, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """Read a string."""
        value: str | None = self._typed(key, str, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings; none where it is absent."""
        value = self._typed(key, list, "a list of strings")
        if not all(isinstance(each, str) for each in value or ()):
            raise self._wrong(key, "a list of strings", value)
        return tuple(value or ())

    def token(self, key: str, below: int = _MAX_TOKEN) -> int | None:
        """Read a token id smaller than `below`."""
        value = self._get(key)
        return None if value is None else self._integer(key, value, 0, below - 1, "a token id")

    def tokens(self, key: str, below: int = _MAX_TOKEN) -> tuple[int, ...]:
        """Read token ids smaller than `below`: one, or a list; none where it is absent."""
        value = self._get(key)
        ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return tuple(self._integer(key, each, 0, below - 1, "token ids") for each in ids)

    def object(self, key: str) -> Fields | None:
        """Read an object."""
        value = self._typed(key, dict, "an object")
        if value is None:
            return None
        return Fields(value.get, f"{self._where}, {key}", self._remedy)

    def _typed(self, key: str, kind: type, expected: str) -> Any:
        value = self._get(key)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(key, expected, value)
        return value

    def _integer(self, key: str, value: Any, low: int, high: int, what: str = "an integer") -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, f"{what} in {low}..{high}", value)
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> ModelError:
        return ModelError(
            f"{self._where} has a {key} that cannot be used", expected, repr(value), self._remedy
        )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FolderError
        The file is missing, or holds something else.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
        actual = type(value).__name__
    except (OSError, ValueError, RecursionError) as error:
        value, actual = None, first_line(error)
    if not isinstance(value, dict):
        raise FolderError(
            f"'{file}' cannot be read", "a JSON object", actual, "Download the model again."
        )
    return value
