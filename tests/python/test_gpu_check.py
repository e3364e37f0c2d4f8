"""The check for GPUs, walked through on the CPU; kernels and rounds on a card, where one is."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_check
import pard_rt
from emulated_graphs import emulate_graphs
from gpu_check import Results, run_here
from gpu_measures import idle_share
from gpu_models import TINY, counted, load, load_counting
from gpu_page import goals, page
from gpu_stand_ins import (
    RecordedExecutor,
    break_text,
    length_shares,
    measured_acceptance,
    run_lengths,
)
from gpu_steps import DRAFTED_K, PROMPT, Step, Steps, Timed

Json = dict[str, Any]

STEPS = [
    "kernels",
    "exactness",
    "bandwidth",
    "onnx",
    "draft training",
    "rounds, tiny",
    "compiled, tiny",
    "trace, tiny",
    "transformers, tiny",
    "transformers assisted, tiny",
    "transformers assisted and compiled, tiny",
    "soak 1 of 2, tiny",
    "soak 2 of 2, tiny",
]


def check(*arguments: str) -> int:
    """Run the script as a user does."""
    command = [sys.executable, gpu_check.__file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment).returncode


# The whole of it, dry ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every step run dry, in this process."""
    folder = tmp_path_factory.mktemp("dry")
    steps = Steps(dry_run=True, soak_seconds=0.5).all()
    results = Results(folder, steps, dry_run=True)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # torch.compile uses what torch has left
        assert all(run_here(step, results) for step in steps)
    return folder


def dry_results(folder: Path) -> Json:
    found = json.loads((folder / "dry-run.json").read_text())
    return {name: step["result"] for name, step in found["steps"].items()}


def test_every_step_runs_dry(dry: Path) -> None:
    assert [name for name in dry_results(dry) if "and compiled" not in name] == [
        name for name in STEPS if "and compiled" not in name
    ]
    written = (dry / "dry-run.md").read_text()
    assert "no goal is judged" in written
    assert "meaningless" in dry_results(dry)["trace, tiny"]["of"]
    assert "pass" not in written
    assert "recorded" in written


def test_every_token_is_the_target_s_own(dry: Path) -> None:
    found = dry_results(dry)
    rows = [found["rounds, tiny"]["plain"], *found["rounds, tiny"]["recorded"]]
    rows += found["transformers assisted, tiny"]["recorded"] + found["compiled, tiny"]["recorded"]
    rows += [
        found["transformers, tiny"],
        found["exactness"],
        found["onnx"],
        found["soak 1 of 2, tiny"],
    ]
    assert [row["equal tokens"] for row in rows] == [1.0] * len(rows)


def tokens_of_rounds(first: int, k: int, count: int) -> list[int]:
    """Tokens of every round, the first of which proposes for the place `first`."""
    text = PROMPT + counted(PROMPT, count + 2 * k)
    broken = break_text(text, len(PROMPT) + 1, k)
    found, place = [], first
    while place < len(PROMPT) + count:
        held = next((i for i in range(k) if broken[place + i] != text[place + i]), k)
        found.append(held + 1)
        place += held + 1
    return found


def test_rounds_end_where_the_recorded_text_is_wrong(dry: Path) -> None:
    count = Steps(dry_run=True, soak_seconds=0).new_tokens
    found = dry_results(dry)
    ours = found["rounds, tiny"]["recorded"]
    theirs = found["transformers assisted, tiny"]["recorded"]
    assert [row["K"] for row in ours] == [row["K"] for row in theirs] == list(DRAFTED_K)
    for row, other in zip(ours, theirs, strict=True):
        # Ours begins behind the token of the prompt's round, and ends at the last one asked for.
        seen, *expected = tokens_of_rounds(len(PROMPT) + 1, row["K"], count)
        assert row["tokens per round"] == (count - 1 - seen) / len(expected)
        # Theirs begins with the prompt; older releases cut the last round off.
        _, _, *expected = tokens_of_rounds(len(PROMPT), row["K"], count)
        off = other["tokens per round"] * len(expected) - sum(expected)
        assert off == pytest.approx(0) or -row["K"] <= off < 0


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("capture", [False, True])
def test_bare_forwards_have_the_inputs_of_a_round(
    capture: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capture:
        emulate_graphs(monkeypatch)
    (pair,) = TINY.values()
    device = torch.device("cpu")
    target = load_counting(pair, device, torch.float32)
    draft = load(pair, pair.draft, device, torch.float32)
    executor = RecordedExecutor(target, draft, 200)
    executor._capture = capture
    text = PROMPT + counted(PROMPT, 30)
    executor.record(0, break_text(text, len(PROMPT) + 1, k))
    decoder = pard_rt.Decoder(executor, num_speculative_tokens=k)
    sequence = decoder.add(PROMPT, max_new_tokens=30)
    lengths = [sequence.length]
    while decoder.step():
        lengths.append(sequence.length)
    shape = executor.rounds[-1]
    runs = executor.bare(shape)
    assert len(runs) == (2 if k else 1)
    inputs = executor._held[-1]
    newest = lengths[-1] - 1
    assert inputs["target_positions"].tolist() == [list(range(newest, newest + k + 1))]
    assert inputs["target_tokens"][0, 0] == text[newest]
    ahead = executor._recorded[0, newest + 1 : newest + 1 + k]
    assert torch.equal(inputs["target_tokens"][0, 1:], ahead)
    before = executor._tokens.clone()
    with torch.inference_mode():
        for run in (*runs, executor.whole(shape)):
            run()
    assert torch.equal(executor._tokens, before)  # it chose what it had chosen


def test_done_steps_are_kept_and_failed_ones_run_again(dry: Path, tmp_path: Path) -> None:
    found = json.loads((dry / "dry-run.json").read_text())
    file = tmp_path / "dry-run.json"
    marked = copy.deepcopy(found)
    marked["steps"] = {
        name: step | {"result": step["result"] | {"kept": True}}
        for name, step in found["steps"].items()
    }
    del marked["steps"]["kernels"]
    marked["steps"]["bandwidth"] = {"error": "it was cut off", "versions": found["versions"]}
    file.write_text(json.dumps(marked))

    assert check("--dry-run", "--out", str(tmp_path)) == 0
    again = json.loads(file.read_text())["steps"]
    assert sorted(again) == sorted(found["steps"])
    anew = sorted(name for name, step in again.items() if "kept" not in step["result"])
    assert anew == ["bandwidth", "kernels"]


def test_what_other_packages_gave_is_not_done(tmp_path: Path) -> None:
    results, step = Results(tmp_path, [], dry_run=True), Step("kernels", 1, dict)
    run_here(step, results)
    assert results.done(step)
    results.versions = "torch 9"
    assert not results.done(step)


def test_a_step_that_fails_is_noted(tmp_path: Path) -> None:
    results = Results(tmp_path, [], dry_run=True)

    def fail() -> Json:
        raise RuntimeError("no such luck")

    assert not run_here(Step("kernels", 1, fail), results)
    assert "no such luck" in (tmp_path / "dry-run.md").read_text()
    assert not results.done(Step("kernels", 1, fail))


def test_a_process_that_dies_or_hangs_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path, [], dry_run=True)
    step = Step("kernels", 1, dict)
    script = tmp_path / "script.py"
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    monkeypatch.setattr(gpu_check, "LIMIT_S", 0.5)
    for source, problem in (("import os; os.abort()", "ended with"), ("while 1: 0", "more than")):
        script.write_text(source)
        assert not gpu_check.run_apart(step, results, [])
        assert problem in results.load()["steps"]["kernels"]["error"]


# Its pure parts ---------------------------------------------------------------------------------


def test_idle_is_what_no_interval_covers() -> None:
    assert idle_share([(0, 4), (2, 6), (9, 10)]) == pytest.approx(0.3)
    assert idle_share([(9, 10), (0, 6), (2, 4)]) == pytest.approx(0.3)  # inside, out of order
    assert idle_share([(5, 6), (6, 7)]) == 0.0
    assert idle_share([(0, 1), (2, 3), (9, 10)], shortest_gap=5) == pytest.approx(0.6)
    with pytest.raises(RuntimeError, match="no work of the device"):
        idle_share([])


@pytest.mark.parametrize("k", DRAFTED_K)
def test_rounds_end_as_often_at_each_position_as_measured(k: int) -> None:
    count, first = 4000, 5
    text = list(range(count))
    broken = break_text(text, first, k)
    ends, place = [0] * (k + 1), first
    while place + k < count:
        wrong = (i for i in range(k) if broken[place + i] != text[place + i])
        held = next(wrong, k)
        ends[held] += 1
        place += held + 1
    rounds = sum(ends)
    for i, measured in enumerate(measured_acceptance()[:k]):
        assert sum(ends[i + 1 :]) / rounds == pytest.approx(measured, abs=0.01), i


def test_run_lengths_are_never_far_from_their_shares() -> None:
    shares = [0.5, 0.25, 0.25]
    assert sorted(islice(run_lengths(shares), 4)) == [0, 0, 1, 2]
    assert length_shares([0.5, 0.25], 2) == shares
    assert length_shares([0.5, 0.25], 3) == [0.5, 0.25, 0.125, 0.125]  # half of those that held


def test_rounds_of_different_shapes_are_weighed_by_how_many_there_were() -> None:
    timed = Timed(text=[], num_tokens=9, seconds=1.0, shapes=Counter({"short": 3, "long": 1}))
    assert timed.per_round({"short": 2.0, "long": 6.0}) == 3.0


def card() -> Json:
    """What a card would have found that meets every goal."""
    row = {"efficiency": 0.98, "measured / predicted": 0.96, "equal tokens": 1.0}
    plain = {
        "tokens/s": 100.0,
        "bytes of weights read per token": 16e9,
        "equal tokens": 1.0,
    }
    memory = [{"when": "start", "allocated": 1000}, {"when": "end", "allocated": 1004}]
    soak = {"equal tokens": 1.0, "memory": memory}
    steps: Json = {
        "exactness": {"equal tokens": 1.0},
        "bandwidth": {"bytes per second": 2e12},
        "onnx": {"provider": "none"},
        "compiled, llama-3.1-8b + 1b": {"recorded": [{"equal tokens": 1.0}]},
        "rounds, llama-3.1-8b + 1b": {"plain": plain, "recorded": [row, dict(row)]},
        "trace, llama-3.1-8b + 1b": {"idle": 0.02},
        "soak 1 of 3, llama-3.1-8b + 1b": copy.deepcopy(soak),
        "soak 2 of 3, llama-3.1-8b + 1b": copy.deepcopy(soak),
        "soak 3 of 3, llama-3.1-8b + 1b": copy.deepcopy(soak),
    }
    return {
        "card": "a card",
        "versions": "1",
        "dry run": False,
        "plan": list(steps),
        "steps": {name: {"versions": "1", "result": result} for name, result in steps.items()},
    }


def test_a_card_can_meet_every_goal() -> None:
    assert [goal.verdict for goal in goals(card())] == ["pass"] * 6
    assert page(card()).count("| pass |") == 6


@pytest.mark.parametrize(
    ("goal", "step", "change"),
    [
        (0, "exactness", {"equal tokens": 0.999}),
        (0, "onnx", {"equal tokens": 0.999}),
        (0, "compiled, llama-3.1-8b + 1b", {"equal tokens": 0.999}),
        (0, "soak 3 of 3, llama-3.1-8b + 1b", {"equal tokens": 0.999}),
        (1, "bandwidth", {"bytes per second": 2.1e12}),
        (2, "rounds, llama-3.1-8b + 1b", {"efficiency": 0.979}),
        (3, "rounds, llama-3.1-8b + 1b", {"measured / predicted": 1.06}),
        (3, "rounds, llama-3.1-8b + 1b", {"measured / predicted": 0.94}),
        (4, "trace, llama-3.1-8b + 1b", {"idle": 0.021}),
        (
            5,
            "soak 3 of 3, llama-3.1-8b + 1b",
            {"memory": [{"allocated": 1000}, {"allocated": 1007}]},
        ),
    ],
)
def test_each_goal_can_be_missed(goal: int, step: str, change: Json) -> None:
    found = card()
    result = found["steps"][step]["result"]
    (result["recorded"][-1] if "recorded" in result else result).update(change)
    verdicts = [g.verdict for g in goals(found)]
    assert verdicts.pop(goal) == "FAIL"
    assert verdicts == ["pass"] * 5


@pytest.mark.parametrize(
    ("step", "unknown"),
    [
        ("exactness", [0]),
        ("bandwidth", [1]),
        ("rounds, llama-3.1-8b + 1b", [0, 1, 2, 3]),
        ("trace, llama-3.1-8b + 1b", [4]),
        ("soak 2 of 3, llama-3.1-8b + 1b", [0, 5]),
    ],
)
def test_a_goal_waits_for_all_its_steps(step: str, unknown: list[int]) -> None:
    found = card()
    found["steps"][step] = {"versions": "1", "error": "no memory"}
    verdicts = [goal.verdict for goal in goals(found)]
    assert [i for i, verdict in enumerate(verdicts) if verdict == "not measured"] == unknown
    assert verdicts.count("pass") == 6 - len(unknown)
    assert f"Not done: {step}." in page(found)


def test_other_tokens_are_a_failure_whatever_else_is_not_done() -> None:
    found = card()
    found["steps"]["exactness"]["result"]["equal tokens"] = 0.5
    found["steps"]["soak 2 of 3, llama-3.1-8b + 1b"] = {"versions": "1", "error": "no memory"}
    assert goals(found)[0].verdict == "FAIL"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("step", ["kernels", "exactness"])
def test_kernels_and_rounds_on_the_card(step: str, tmp_path: Path) -> None:
    assert check("--step", step, "--out", str(tmp_path)) == 0
