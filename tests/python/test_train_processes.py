"""Training in processes of their own: killed at any moment, and several together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TinyModels
from pard_rt.models.checkpoint import load
from pard_rt.training.loss import cut

# Forks a training, waits until it has moved on, and kills it a moment later; the last one ends.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from pard_rt.training.train import train

base, data, output, kills = sys.argv[1:]
state = Path(output) / "training.pt"
random.seed(1)
for left in reversed(range(int(kills) + 1)):
    before = state.stat().st_mtime_ns if state.exists() else 0
    child = os.fork()
    if child == 0:
        train(base, [data], output, max_length=60, tokens_per_step=120, epochs=12,
              learning_rate=1e-3, save_every=0, log=lambda line: None)
        os._exit(0)
    ended = 0
    while left and not ended and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.002)
        ended, _ = os.waitpid(child, os.WNOHANG)
    if left and not ended:
        time.sleep(random.uniform(0, 0.1))
        ended, _ = os.waitpid(child, os.WNOHANG)
    if left and not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed", flush=True)
    elif not ended:
        assert os.waitpid(child, 0)[1] == 0
"""


def history(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds_per_step"]
    return records


def run(*command: str) -> str:
    # Workers with a thread each: two cores are two cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    texts = ["the cat and the hat, " * (1 + n % 5) + str(n) for n in range(40)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_killed_ten_times_it_comes_to_the_same_end(
    tmp_path: Path, data: Path, tiny_models: TinyModels
) -> None:
    base = str(tiny_models.checkpoint("llama", seed=9))
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    run("-c", KILLER, base, str(data), str(unbroken), "0")
    killed = run("-c", KILLER, base, str(data), str(broken), "10")
    assert killed.count("killed") == 10
    assert history(broken) == history(unbroken)
    one, other = (load(folder).module.state_dict() for folder in (broken, unbroken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_do_what_one_does(
    tmp_path: Path, data: Path, tiny_models: TinyModels
) -> None:
    base = tiny_models.checkpoint("llama", seed=9)

    def command(output: str, *more: str) -> list[str]:
        return [
            "-m", "pard_rt", "train", "--model", str(base), "--data", str(data),
            "--output", str(tmp_path / output), "--max-length", "60", "--tokens-per-step", "240",
            "--epochs", "4", "--learning-rate", "1e-3", "--dtype", "float32", *more,
        ]  # fmt: skip

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*command("one"))
    said = run(*torchrun, *command("two"))
    assert said.count("mask token") == 2  # by the first process: once chosen, once at the end
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a["subtask_loss"] == pytest.approx(b["subtask_loss"], abs=1e-3)
    weights = [load(tmp_path / name).module.state_dict() for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("lengths", "count", "expected"),
    [
        ([10, 10, 10, 10], 2, [(0, 20), (20, 40)]),
        ([30, 5, 5], 2, [(0, 30), (30, 40)]),
        ([5, 5, 30], 2, [(0, 10), (10, 40)]),
        ([7], 3, [(0, 0), (0, 7), (7, 7)]),
        ([7, 7], 1, [(0, 14)]),
    ],
)
def test_documents_are_shared_out_whole(
    lengths: list[int], count: int, expected: list[tuple[int, int]]
) -> None:
    assert cut(lengths, count) == expected
