"""Everything there is to check and to measure on a GPU, step by step: `make gpu-check`.

A step takes minutes, runs in a process of its own, and is kept once it is done: a run may be cut
off and begun again, and no step inherits memory or a broken device from another. Nothing needs a
network. Results: a JSON file per card under docs/benchmarks/gpu, and a page of it.

    python benchmarks/gpu_check.py [--step kernels] [--out docs/benchmarks/gpu]
    python benchmarks/gpu_check.py --dry-run      the same steps on the CPU, with tiny models

Read gpu_steps.py for the steps, gpu_models.py and gpu_stand_ins.py for what they run: weights are
random, in the shapes of published pairs, so the text means nothing and a real draft would know
nothing of it. Drafts run for what they cost and propose a recorded text; every such figure says
"recorded". gpu_measures.py reads clocks, gpu_page.py judges.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from gpu_models import Json
from gpu_onnx import runtime_here
from gpu_page import page
from gpu_steps import Step, Steps

ROOT = Path(__file__).resolve().parent.parent
OUT = {False: ROOT / "docs/benchmarks/gpu", True: ROOT / "build/gpu-check"}
LIMIT_S = 480


class Results:
    """What is known of a card: a file that is whole at any time, and its page."""

    def __init__(self, folder: Path, plan: list[Step], dry_run: bool) -> None:
        self.card = "a CPU (dry run)" if dry_run else torch.cuda.get_device_name()
        packages = ("pard-rt", "torch", "transformers")
        versions = [f"{name} {version(name)}" for name in packages]
        self.versions = ", ".join([*versions, f"onnxruntime {runtime_here()[0]}"])
        name = "dry-run" if dry_run else re.sub(r"[^a-z0-9]+", "-", self.card.lower())
        self._file = folder / f"{name}.json"
        self._head = {"card": self.card, "dry run": dry_run, "plan": [step.name for step in plan]}

    def load(self) -> Json:
        """Read all steps; there may be none."""
        kept: Json = json.loads(self._file.read_text("utf-8")) if self._file.exists() else {}
        return self._head | {"versions": self.versions, "steps": kept.get("steps", {})}

    def done(self, step: Step) -> bool:
        """Whether a step was done, with the packages that are installed."""
        kept = self.load()["steps"].get(step.name, {})
        return "result" in kept and kept["versions"] == self.versions

    def keep(self, step: Step, outcome: Json) -> None:
        """Add a step's outcome: a result, or an error."""
        found = self.load()
        found["steps"][step.name] = {"versions": self.versions} | outcome
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for file, text in (
            (self._file, json.dumps(found, indent=1) + "\n"),
            (self._file.with_suffix(".md"), page(found)),
        ):
            part = file.with_suffix(".part")
            part.write_text(text, "utf-8")
            os.replace(part, file)


def run_here(step: Step, results: Results) -> bool:
    """Run a step in this process; whether it could be."""
    began = time.perf_counter()
    try:
        outcome: Json = {"result": step.run()}
    except Exception as error:  # the other steps may still tell something
        outcome = {"error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - began
    results.keep(step, outcome | {"seconds": seconds})
    print(f"{step.name}: {seconds:.0f} s  {outcome}", flush=True)
    return "result" in outcome


def run_apart(step: Step, results: Results, arguments: list[str]) -> bool:
    """Run a step in a process of its own, that may take `LIMIT_S`; whether it could be."""
    print(f"{step.name}: on an H100 {step.expected_s} s, at a guess", flush=True)
    command = [sys.executable, __file__, *arguments, "--step", step.name]
    before = results.load()["steps"].get(step.name)
    try:
        code = subprocess.run(command, timeout=LIMIT_S, check=False).returncode
        problem = f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        code, problem = 1, f"it took more than {LIMIT_S} s"
    if code != 0 and results.load()["steps"].get(step.name) == before:
        results.keep(step, {"error": problem})
        print(f"{step.name}: {problem}", flush=True)
    return code == 0


def main() -> None:
    """Run the steps that are not done yet."""
    parser = argparse.ArgumentParser(description="Check and measure pard-rt on a GPU.")
    parser.add_argument("--step", help="only this one, done or not, in this process")
    parser.add_argument("--out", type=Path, help="a folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--soak-seconds", type=float, help="3600; 2 on a dry run")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU. --dry-run walks through all steps without one.")
    soak_seconds = given.soak_seconds or (2 if given.dry_run else 3600)
    steps = Steps(given.dry_run, soak_seconds).all()
    results = Results(given.out or OUT[given.dry_run], steps, given.dry_run)
    if given.step is not None:
        chosen = [step for step in steps if step.name == given.step]
        if not chosen:
            parser.error(f"There is no such step. There are {[step.name for step in steps]}.")
        raise SystemExit(not run_here(chosen[0], results))
    arguments = ["--soak-seconds", str(soak_seconds)]
    arguments += ["--dry-run"] if given.dry_run else []
    arguments += ["--out", str(given.out)] if given.out else []
    waiting = [step for step in steps if not results.done(step)]
    succeeded = [run_apart(step, results, arguments) for step in waiting]
    raise SystemExit(not all(succeeded))


if __name__ == "__main__":
    main()
