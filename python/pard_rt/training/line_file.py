"""A JSONL file that grows line by line, over several runs, all with the same settings."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pard_rt.errors import FolderError
from pard_rt.models.fields import read_json
from pard_rt.writing import writing


class LineFile:
    """Lines, and beside them a file ``*.settings.json`` that says how they are made.

    Nothing is written before `begin`.

    Parameters
    ----------
    path
        New, or what an earlier run left. Its name ends in ``.jsonl``.
    settings
        What makes the lines: one earlier run's are no other's.

    Attributes
    ----------
    num_lines
        Whole lines there are; a torn one behind them does not count.

    Raises
    ------
    FolderError
        The file cannot be written, or its lines were made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings = settings
        self._settings_file = path.with_suffix(".settings.json")
        self._check_place()
        written = path.read_bytes() if path.exists() else b""
        self._whole = written.rfind(b"\n") + 1
        self.num_lines = written.count(b"\n")
        if written:
            self._check_settings()

    def begin(self) -> None:
        """Drop a torn line and write the settings, before the first `append`."""
        with self._writing():
            with self.path.open("ab") as file:
                file.truncate(self._whole)
            self._settings_file.write_text(json.dumps(self._settings, indent=2) + "\n", "utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write a line, whole before this returns.

        Raises
        ------
        FolderError
            It cannot be written.
        """
        with self._writing(), self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self.num_lines += 1

    def _check_place(self) -> None:
        folder = self.path.parent
        if self.path.suffix != ".jsonl":
            actual = f"a name that ends in '{self.path.suffix}'"
        elif not folder.is_dir():
            actual = f"{'a file' if folder.exists() else 'no folder'} '{folder}'"
        elif self.path.is_dir():
            actual = "a folder"
        elif not os.access(self.path if self.path.exists() else folder, os.W_OK):
            actual = "one that may not be written"
        else:
            return
        raise FolderError(
            f"'{self.path}' cannot be written",
            "a .jsonl file in a folder that is there",
            actual,
            "Choose another place.",
        )

    def _check_settings(self) -> None:
        known = read_json(self._settings_file) if self._settings_file.exists() else {}
        for name, value in self._settings.items():
            if known.get(name) != value:
                raise FolderError(
                    f"'{self.path}' holds lines that were made otherwise",
                    f"{name} = {known[name]}" if name in known else f"'{self._settings_file}'",
                    f"{name} = {value}" if name in known else "none that says how",
                    "Give the arguments they were made with, or write to another file.",
                )

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path, resume="The next run goes on after the last whole line.")
