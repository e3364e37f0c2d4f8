"""A training step of a parallel draft: attention over prefix and chain, beside a dense mask.

    python benchmarks/draft_training.py --out docs/benchmarks/draft-training.json

Both forms are given the same rows (conditional drop included), weights and texts, in turns, each in
a process of its own, whose peak memory is read from the kernel, or from the card. The dense form is
the definition: a square mask over all rows, handed to PyTorch's scaled dot product attention.
`--device cuda` measures there, computing in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pard_rt.training.attention import plan_blocks, use_chain_attention
from pard_rt.training.demo_pair import DRAFT, new_model
from pard_rt.training.mask_prediction import IGNORED, MaskPrediction, draw_rows
from pard_rt.training.stdlib_text import MASK

Json = dict[str, Any]

LENGTHS = (256, 512, 1024, 2048)
FORMS = ("dense", "chain")


def run_form(form: str, length: int, steps: int, device: str) -> Json:
    """Take some steps; the first is not timed."""
    torch.set_num_threads(1)
    on_card = device != "cpu"
    model = new_model(DRAFT, 1).to(device)
    if form == "chain":
        use_chain_attention(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(256, (1, length), generator=generator)
        rows = draw_rows([length], MaskPrediction(), generator)
        attention: Json = (
            {"blocks": plan_blocks(rows, device)}
            if form == "chain"
            else {"attention_mask": rows.visible()[None, None].to(device)}
        )
        with torch.autocast(device, torch.bfloat16, enabled=on_card):
            logits = model(
                input_ids=rows.fill(tokens, MASK).to(device),
                position_ids=rows.positions[None].to(device),
                use_cache=False,
                **attention,
            ).logits
        labels = rows.labels(tokens)[0].to(device)
        loss = cross_entropy(logits[0].float(), labels, ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def peak() -> float:
        if on_card:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    before = peak()
    losses, times = [], []
    for number in range(steps + 1):
        began = time.perf_counter()
        losses.append(float(step(number)))
        times.append(time.perf_counter() - began)
    return {"seconds": median(times[1:]), "mebibytes": peak() - before, "losses": losses}


def measure(steps: int, turns: int, device: str, lengths: Sequence[int] = LENGTHS) -> Json:
    """Take turns, each in a process of its own."""
    rows = []
    for length in lengths:
        found: dict[str, list[Json]] = {form: [] for form in FORMS}
        for _ in range(turns):
            for form in FORMS:
                command = [sys.executable, __file__, "--form", form, "--length", str(length)]
                command += ["--steps", str(steps), "--device", device]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[form].append(json.loads(out))
        difference = max(
            abs(a - b)
            for dense, chain in zip(*found.values(), strict=True)
            for a, b in zip(dense["losses"], chain["losses"], strict=True)
        )
        row: Json = {"length": length, "largest difference of losses": difference}
        for form in FORMS:
            row[form] = {
                key: median(turn[key] for turn in found[form]) for key in ("seconds", "mebibytes")
            }
        rows.append(row)
        print(row, flush=True)
    where = "one thread" if device == "cpu" else f"{torch.cuda.get_device_name()}, bfloat16"
    return {
        "where": where, "torch": version("torch"), "steps": steps, "turns": turns, "rows": rows
    }  # fmt: skip


def page(found: Json) -> str:
    """Write the page."""
    rows = found["rows"]
    growth = math.log(rows[-1]["chain"]["mebibytes"] / rows[0]["chain"]["mebibytes"])
    growth /= math.log(rows[-1]["length"] / rows[0]["length"])
    worst = max(row["largest difference of losses"] for row in rows)
    lines = [
        "# A training step of a parallel draft",
        "",
        f"`python benchmarks/draft_training.py`, {found['where']}, torch {found['torch']}: the"
        " demo's"
        " draft shape, one text, K_train 8, r 0.7, r_min 0.2; optimizer included. Turns of"
        f" each: {found['turns']}, steps: {found['steps']}, medians."
        f" Losses differ by {worst:.0e} at most.",
        "",
        "| length | dense, s | chain, s | faster | dense, MiB | chain, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        dense, chain = row["dense"], row["chain"]
        lines.append(
            f"| {row['length']} | {dense['seconds']:.2f} | {chain['seconds']:.2f} "
            f"| {dense['seconds'] / chain['seconds']:.2f} "
            f"| {dense['mebibytes']:.0f} | {chain['mebibytes']:.0f} |"
        )
    lines += ["", f"Peak memory of the chain form grows with length to the power {growth:.2f}.", ""]
    lines += ["![Time and memory over the length](draft-training.svg)", ""]
    return "\n".join(lines)


def plot(found: Json, to: Path) -> None:
    """Draw both quantities over the length, all axes logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    lengths = [row["length"] for row in found["rows"]]
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = (("seconds", "seconds a step"), ("mebibytes", "MiB"))
    for axis, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for form in FORMS:
            axis.loglog(lengths, [row[form][key] for row in found["rows"]], "o-", label=form)
        axis.set_xticks(lengths, map(str, lengths))
        axis.minorticks_off()
        axis.set_xlabel("length")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend()
    with matplotlib.rc_context({"svg.hashsalt": "pard-rt", "svg.fonttype": "none"}):
        figure.savefig(to, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description="Time steps of draft training.")
    parser.add_argument("--out", type=Path, default=Path("draft-training.json"))
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--length", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if arguments.form:
        form, length = arguments.form, arguments.length
        print(json.dumps(run_form(form, length, arguments.steps, arguments.device)))
        return
    found = measure(arguments.steps, arguments.turns, arguments.device)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    arguments.out.with_suffix(".md").write_text(page(found), "utf-8")
    plot(found, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
