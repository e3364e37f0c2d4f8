"""Rounds whose forwards torch.compile has compiled: the same ids, one compilation for processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pard_rt
from conftest import TinyModels
from own_modules import Rotary, decode_by_hand, seeded
from pard_rt.pytorch.captured_executor import CapturedExecutor

SCRIPT = Path(__file__).parent / "compiled_pairs.py"


def run(checkpoint: Path, cache: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(checkpoint)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile finds no C++ compiler")
def test_compiled_rounds_give_the_same_ids_and_are_compiled_once(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    checkpoint = tiny_models.checkpoint("llama", seed=3, num_hidden_layers=1)
    first = run(checkpoint, tmp_path)
    assert first["compiled"] == first["eager"]
    own = seeded(Rotary(layers=1), 1)
    by_hand = decode_by_hand(own, [3, 1, 4, 1, 5], 16, pard_rt.SamplingParams())
    assert first["compiled"][0][0] == by_hand
    assert first["graphs"] == first["misses"] == 4  # draft and target of two pairs
    again = run(checkpoint, tmp_path)
    assert again == first | {"misses": 0}


def test_a_module_that_cannot_be_compiled_is_an_error_that_says_so() -> None:
    class Looking(Rotary):
        def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Any) -> Tensor:
            if int(position_ids.max()) < 0:  # a value read on the host
                raise AssertionError
            return super().forward(input_ids, position_ids, attend)

    model = pard_rt.wrap(seeded(Looking(layers=1), 1), max_length=64, name="looking")
    decoder = pard_rt.Decoder(CapturedExecutor(model, torch_compile=True), max_batch_size=1)
    sequence = decoder.add([1, 2, 3], max_new_tokens=8)
    with pytest.raises(
        pard_rt.ModelError, match=r"looking cannot be compiled.*torch_compile=False"
    ):
        decoder.run()
    torch.compiler.reset()
    eager = pard_rt.Decoder(CapturedExecutor(model), max_batch_size=1)
    twin = eager.add([1, 2, 3], max_new_tokens=8)
    eager.run()
    assert twin.generated.tolist()[: len(sequence.generated)] == sequence.generated.tolist()


def test_only_captured_rounds_are_compiled(tiny_models: TinyModels) -> None:
    with pytest.raises(pard_rt.InvalidArgumentError, match=r"captured.*float32, cpu"):
        pard_rt.Generator(tiny_models.checkpoint("llama"), torch_compile=True)
