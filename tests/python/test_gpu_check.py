"""The check for GPUs, walked through on the CPU; kernels and rounds on a card, where one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def check(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_every_step_runs_dry_and_is_kept(tmp_path: Path) -> None:
    check("--dry-run", "--out", str(tmp_path))
    found = json.loads((tmp_path / "dry-run.json").read_text())
    assert list(found["steps"]) == [
        "kernels",
        "exactness",
        "bandwidth",
        "rounds of tiny",
        "transformers, tiny",
    ]
    assert not [step for step in found["steps"].values() if "error" in step]
    assert "recorded: K" in (tmp_path / "dry-run.md").read_text()

    written = (tmp_path / "dry-run.json").stat().st_mtime_ns
    check("--dry-run", "--out", str(tmp_path))  # nothing is left to do
    assert (tmp_path / "dry-run.json").stat().st_mtime_ns == written


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_kernels_and_rounds_on_the_card(tmp_path: Path) -> None:
    check("--step", "kernels", "--step", "exactness", "--out", str(tmp_path))
