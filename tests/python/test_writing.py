"""What is in the way of an output is named: a file, a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pard_rt import FolderError, ModelError
from pard_rt.exporter import export
from pard_rt.training.line_file import LineFile
from pard_rt.training.train import train
from pard_rt.writing import require_folder, writing


def test_a_file_is_no_folder_to_write(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    with pytest.raises(FolderError, match="expected a folder, or a name that is free, got a file"):
        export("no/model", file)
    with pytest.raises(FolderError, match="got a file"):
        train("no/model", [], file)
    with pytest.raises(FolderError, match=r"got a file '.*precious' on the way"):
        export("no/model", file / "out")
    with pytest.raises(FolderError, match=r"got a file '.*precious'"):
        LineFile(file / "lines.jsonl", {})
    assert file.read_text() == "kept"
    require_folder(tmp_path)
    require_folder(tmp_path / "new" / "folder")


def test_an_error_says_whether_the_disk_is_full() -> None:
    resume = "Then start again."
    for number, expected in (
        (errno.ENOSPC, r"room on the disk, got .*Free some space\. Then start again\."),
        (errno.EACCES, r"a place that can be written to, got .*Choose another place\. Then"),
    ):
        with (
            pytest.raises(FolderError, match=expected),
            writing(Path("out"), resume=resume),
        ):
            raise OSError(number, "no")


def test_errors_of_the_work_itself_pass() -> None:
    with pytest.raises(ModelError, match="the model is at fault"), writing(Path("out")):
        raise ModelError("the model is at fault", "a", "b", "c")
