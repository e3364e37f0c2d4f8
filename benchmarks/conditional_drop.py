"""Conditional drop beside none: what a step costs, and what the draft is worth after as many.

    python benchmarks/conditional_drop.py WORK --out docs/benchmarks/conditional-drop.json

Two parallel drafts begin from the demo's classic draft in WORK, what its training left
(docs/demo-pair.md). They take the same steps over the same texts, in turns and on one thread; then
each drafts for the demo's target behind pieces of held-out files.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaForCausalLM

import pard_rt
from pard_rt.training.demo_pair import DRAFT, DemoPair, mask_prediction_loss
from pard_rt.training.loop import Schedule, Trainer
from pard_rt.training.mask_prediction import MaskPrediction
from pard_rt.training.stdlib_text import MASK, held_out_text, make_tokenizer

Json = dict[str, Any]

WAYS = {"conditional drop": MaskPrediction(), "none": MaskPrediction(retention=1.0)}
PROMPT, NEW_TOKENS, TEMPERATURE = 64, 96, 0.4  # greedily the target comes to repeat itself
LOG_EVERY = 20  # steps


def held_out_prompts(count: int) -> list[list[int]]:
    """Pieces of held-out files, from anywhere in them."""
    generator = random.Random(1)
    texts = [text for text in held_out_text().values() if len(text) > PROMPT]
    prompts = []
    for number in range(count):
        text = texts[number % len(texts)]
        start = generator.randrange(len(text) - PROMPT)
        prompts.append(list(text[start : start + PROMPT]))
    return prompts


def train(pair: DemoPair, steps: int, folder: Path) -> dict[str, list[float]]:
    """Train a draft each way; return the seconds of their steps, as one thread computes."""
    batch = pair.mixed(1, 3)
    trainers, losses = {}, {}
    for way, settings in WAYS.items():
        model = LlamaForCausalLM.from_pretrained(pair.work / "classic", dtype=torch.float32)
        trainers[way] = Trainer(model, Schedule(steps, decay=0.5), folder / f"{way}.pt")
        losses[way] = mask_prediction_loss(model, batch, settings)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for step in range(steps):
        for way, trainer in trainers.items():
            began = time.process_time()
            trainer.advance(losses[way])
            seconds[way].append(time.process_time() - began)
        if (step + 1) % LOG_EVERY == 0:
            each = ", ".join(f"{way} {median(seconds[way]):.2f} s" for way in WAYS)
            print(f"step {step + 1}/{steps}  {each}", flush=True)
    for way, trainer in trainers.items():
        trainer.module.config.pard_token = MASK
        trainer.module.save_pretrained(folder / way)
        make_tokenizer().save_pretrained(folder / way)
    return seconds


def tokens_per_round(draft: Path, prompts: list[list[int]], k: int) -> float:
    """Decode behind the prompts."""
    generator = pard_rt.Generator("demo", draft, method="pard", num_speculative_tokens=k, threads=1)
    counts = [
        generator.generate(
            prompt, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, seed=number
        ).stats.counts
        for number, prompt in enumerate(prompts)
    ]
    return sum(each.committed for each in counts) / sum(each.rounds for each in counts)


def page(found: Json) -> str:
    """Write the page."""
    drop, none = found["rows"]
    lines = [
        "# Conditional drop beside none",
        "",
        f"`python benchmarks/conditional_drop.py`, one thread, torch {found['torch']}: the demo's"
        f" classic draft, {found['layers']} layers, trained on through mask tokens (K 8)"
        f" for {found['steps']} steps over the same texts, in turns; r 0.7, at least 0.2, and 1."
        " Seconds are those of the processor,"
        " medians of a step, and an epoch has as many steps either way. Tokens per round behind"
        f" {found['prompts']} pieces of held-out files, {NEW_TOKENS} tokens each at T ="
        f" {TEMPERATURE}, with the demo's target.",
        "",
        "| drop | seconds a step | " + " | ".join(f"K = {k}" for k in found["K"]) + " |",
        "| --- | --- " + "| --- " * len(found["K"]) + "|",
    ]
    for row in found["rows"]:
        rounds = " | ".join(f"{value:.3f}" for value in row["tokens per round"])
        lines.append(f"| {row['way']} | {row['seconds']:.2f} | {rounds} |")
    ratios = [
        a / b for a, b in zip(drop["tokens per round"], none["tokens per round"], strict=True)
    ]
    lines += [
        f"| ratio | {drop['seconds'] / none['seconds']:.2f} | "
        + " | ".join(f"{ratio:.3f}" for ratio in ratios)
        + " |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train both, and measure."""
    parser = argparse.ArgumentParser(description="Measure conditional drop.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path("conditional-drop.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--k", type=int, nargs="+", default=[5, 8])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(DemoPair(arguments.work, 1.0), arguments.steps, Path(folder))
        prompts = held_out_prompts(arguments.prompts)
        rows = [
            {
                "way": way,
                "seconds": median(seconds[way]),
                "tokens per round": [
                    tokens_per_round(Path(folder) / way, prompts, k) for k in arguments.k
                ],
            }
            for way in WAYS
        ]
    found = {
        "torch": version("torch"), "layers": DRAFT["num_hidden_layers"], "steps": arguments.steps,
        "prompts": arguments.prompts, "K": arguments.k, "rows": rows,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    arguments.out.with_suffix(".md").write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
