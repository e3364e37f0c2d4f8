"""The texts an exported graph is compared on: what the module itself writes behind a few prompts.

On random token ids a correct graph may differ from the module by far more than rounding: the
logits of some models are that sensitive where no text would ever take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, cycle, islice

import torch

from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.probe import CacheLayout, attention_implementation, new_cache

PROMPTS = (
    "The first ships that crossed the ocean carried little more than water, bread and hope.",
    "def binary_search(items, wanted):\n    low, high = 0, len(items)\n    while low < high:\n",
    "Question: How do plants make sugar from light?\nAnswer: In their leaves,",
)
NUM_WRITTEN = 16  # per prompt
_LONGEST_WINDOW = 1024  # longer sliding windows are not filled
_PAST_WINDOW = 16  # rows behind a filled window


@dataclass(frozen=True)
class Sample:
    """A text, and the first of its rows that are compared."""

    tokens: list[int]
    first: int = 0


def write_samples(loaded: LoadedModel, layout: CacheLayout, written: int) -> list[Sample]:
    """Let a module continue each prompt greedily; the longest text comes first.

    Where it has sliding windows, one text more fills them.

    Parameters
    ----------
    loaded
        The module, adopted; its tokenizer and its `max_length`.
    layout
        Its cache.
    written
        Tokens behind each prompt.
    """
    limit = max(1, loaded.facts.max_length - 1)  # integer weights take the last position
    prompts = [ids for ids in loaded.tokenizer(list(PROMPTS))["input_ids"] if ids] or [[0]]
    prompts = [list(ids[: max(1, limit // 2)]) for ids in prompts]
    count = min(written, limit - max(map(len, prompts)))
    texts = [prompt + _continue(loaded, prompt, count) for prompt in prompts]
    samples = [Sample(text) for text in texts]
    windows = [w for w in layout.sliding_windows if w is not None and w <= _LONGEST_WINDOW]
    length = min(limit, max(windows, default=0) + _PAST_WINDOW)
    if windows and length > max(map(len, texts)):
        long = list(islice(cycle(chain(*texts)), length))
        samples.append(Sample(long, length - _PAST_WINDOW))
    return sorted(samples, key=lambda sample: len(sample.tokens), reverse=True)


def _continue(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """Return the `count` likeliest next tokens, by eager attention."""
    module = loaded.module
    written: list[int] = []
    ids, cache = torch.tensor([prompt], device=module.device), new_cache(module)
    with attention_implementation(module, "eager"), torch.inference_mode():
        for _ in range(count):
            out = module(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
            ids = loaded.tokens_of(out.logits[:, -1:].argmax(-1))
            written.append(int(ids))
    return written
