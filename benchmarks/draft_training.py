"""A training step of a parallel draft: attention over prefix and chain, beside a dense mask.

    python benchmarks/draft_training.py --out docs/benchmarks/draft-training.json

Both forms are given the same rows (conditional drop included), weights and texts, in turns, each in
a process of its own, whose peak memory is read from the kernel. The dense form is the definition: a
square mask over all rows, handed to PyTorch's scaled dot product attention.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
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


def run_form(form: str, length: int, steps: int) -> Json:
    """Take some steps; the first is not timed."""
    torch.set_num_threads(1)
    model = new_model(DRAFT, 1)
    if form == "chain":
        use_chain_attention(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(256, (1, length), generator=generator)
        rows = draw_rows([length], MaskPrediction(), generator)
        attention: Json = (
            {"blocks": plan_blocks(rows)}
            if form == "chain"
            else {"attention_mask": rows.visible()[None, None]}
        )
        logits = model(
            input_ids=rows.fill(tokens, MASK),
            position_ids=rows.positions[None],
            use_cache=False,
            **attention,
        ).logits
        loss = cross_entropy(logits[0], rows.labels(tokens)[0], ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses, times = [], []
    for number in range(steps + 1):
        began = time.perf_counter()
        losses.append(float(step(number)))
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": median(times[1:]), "mebibytes": (peak - before) / 1024, "losses": losses}


def measure(steps: int, turns: int) -> Json:
    """Take turns, each in a process of its own."""
    rows = []
    for length in LENGTHS:
        found: dict[str, list[Json]] = {form: [] for form in FORMS}
        for _ in range(turns):
            for form in FORMS:
                command = [sys.executable, __file__, "--form", form, "--length", str(length)]
                command += ["--steps", str(steps)]
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
    return {"rows": rows, "torch": version("torch"), "steps": steps, "turns": turns}


def page(found: Json) -> str:
    """Write the page."""
    rows = found["rows"]
    growth = math.log(rows[-1]["chain"]["mebibytes"] / rows[0]["chain"]["mebibytes"])
    growth /= math.log(rows[-1]["length"] / rows[0]["length"])
    worst = max(row["largest difference of losses"] for row in rows)
    lines = [
        "# A training step of a parallel draft",
        "",
        f"`python benchmarks/draft_training.py`, one thread, torch {found['torch']}: the demo's"
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


def plot(found: Json) -> str:
    """Draw both quantities over the length, all axes logarithmic, as SVG."""
    width, height, left, top = 270, 200, 50, 30
    lengths = [row["length"] for row in found["rows"]]
    parts = []

    def place(value: float, low: float, high: float, size: float) -> float:
        return size * math.log(value / low) / math.log(high / low)

    for panel, (key, title) in enumerate((("seconds", "seconds a step"), ("mebibytes", "MiB"))):
        values = [row[form][key] for row in found["rows"] for form in FORMS]
        low, high = min(values), max(values)
        x0 = left + panel * (width + left + 20)
        parts.append(f'<text x="{x0}" y="{top - 12}">{title}</text>')
        parts.append(f'<path d="M{x0} {top}v{height}h{width}" stroke="#888" fill="none"/>')
        for length in lengths:
            x = x0 + place(length, lengths[0], lengths[-1], width)
            parts.append(
                f'<text x="{x:.0f}" y="{top + height + 16}" text-anchor="middle">{length}</text>'
            )
        for form, colour in zip(FORMS, ("#c33", "#27c"), strict=True):
            points = [
                (
                    x0 + place(row["length"], lengths[0], lengths[-1], width),
                    top + height - place(row[form][key], low, high, height),
                    row[form][key],
                )
                for row in found["rows"]
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
            parts.append(f'<polyline points="{line}" stroke="{colour}" fill="none"/>')
            for x, y, value in (points[0], points[-1]):
                text = f"{value:.3g}" if value < 100 else f"{value:.0f}"
                anchor = "start" if x == x0 else "end"
                parts.append(
                    f'<text x="{x + (4 if x == x0 else -4):.0f}" y="{y - 4:.0f}" fill="{colour}" '
                    f'text-anchor="{anchor}">{form} {text}</text>'
                )
    size = f'width="{2 * (width + left + 20)}" height="{top + height + 30}"'
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
    return f"<svg {style} {size}>\n" + "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description="Time steps of draft training.")
    parser.add_argument("--out", type=Path, default=Path("draft-training.json"))
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--length", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(run_form(arguments.form, arguments.length, arguments.steps)))
        return
    found = measure(arguments.steps, arguments.turns)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    arguments.out.with_suffix(".md").write_text(page(found), "utf-8")
    arguments.out.with_suffix(".svg").write_text(plot(found), "utf-8")


if __name__ == "__main__":
    main()
