"""Decode tiny pairs with compiled rounds, print the ids, and how often a compiler had to run.

In a process of its own: `python compiled_pairs.py LLAMA_CHECKPOINT`.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.utils import counters

import pard_rt
from own_modules import Learned, Rotary, seeded
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.captured_executor import CapturedExecutor

LIMIT, MASK, PROMPT, NEW_TOKENS = 64, 95, [3, 1, 4, 1, 5], 16


def own_pair() -> tuple[LoadedModel, LoadedModel]:
    target = pard_rt.wrap(seeded(Rotary(layers=1), 1), max_length=LIMIT)
    return target, pard_rt.wrap(seeded(Learned(LIMIT), 2), max_length=LIMIT)


def decode(target: LoadedModel, draft: LoadedModel, **options: bool) -> list[list[int]]:
    executor = CapturedExecutor(target, draft, MASK, **options)
    decoder = pard_rt.Decoder(executor, num_speculative_tokens=3, max_batch_size=1)
    sequences = [
        decoder.add(PROMPT, max_new_tokens=NEW_TOKENS, sampling=sampling)
        for sampling in (
            pard_rt.SamplingParams(),
            pard_rt.SamplingParams(temperature=0.8, top_p=0.9, seed=3),
        )
    ]
    decoder.run()
    return [sequence.generated.tolist() for sequence in sequences]


def main() -> None:
    torch.set_num_threads(1)
    checkpoint = sys.argv[1]
    pairs = [own_pair(), (pard_rt.load(checkpoint), pard_rt.load(checkpoint))]
    compiled = [decode(*pair, torch_compile=True) for pair in pairs]
    print(
        json.dumps(
            {
                "compiled": compiled,
                "eager": [decode(*pair) for pair in pairs],
                "graphs": counters["stats"]["unique_graphs"],
                "misses": counters["inductor"]["fxgraph_cache_miss"],
            }
        )
    )


if __name__ == "__main__":
    main()
