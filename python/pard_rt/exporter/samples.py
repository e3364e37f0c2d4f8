"""The texts an exported graph is compared on: what the module itself writes behind a few prompts.

On random token ids a correct graph may differ from the module by far more than rounding: the
logits of some models are that sensitive where no text would ever take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np

from pard_rt._core import ForwardItem
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.torch_model import TorchModel

PROMPTS = (
    "The first ships that crossed the ocean carried little more than water, bread and hope.",
    "def binary_search(items, wanted):\n    low, high = 0, len(items)\n    while low < high:\n",
    "Question: How do plants make sugar from light?\nAnswer: In their leaves,",
)
_NUM_WRITTEN = 24
_LONGEST_WINDOW = 1024  # longer sliding windows are not filled
_PAST_WINDOW = 16  # rows behind a filled window


@dataclass(frozen=True)
class Sample:
    """A text, and the first of its rows that are compared."""

    tokens: list[int]
    first: int = 0


def write_samples(loaded: LoadedModel, model: TorchModel) -> list[Sample]:
    """Let a model continue each prompt greedily; the longest text comes first.

    Where it has sliding windows, one text more fills them.

    Parameters
    ----------
    loaded
        Whose tokenizer and `max_length` they are.
    model
        It as a `Model`.
    """
    limit = max(1, loaded.facts.max_length - 1)  # integer weights take the last position
    prompts = [ids for ids in loaded.tokenizer(list(PROMPTS))["input_ids"] if ids] or [[0]]
    texts = [list(ids[: max(1, limit // 2)]) for ids in prompts]
    _write_on(model, texts, min(_NUM_WRITTEN, limit - max(map(len, texts))))
    samples = [Sample(text) for text in texts]
    windows = [w for w in model.layout.sliding_windows if w is not None and w <= _LONGEST_WINDOW]
    length = min(limit, max(windows, default=0) + _PAST_WINDOW)
    if windows and length > max(map(len, texts)):
        long = list(islice(cycle(chain(*texts)), length))
        samples.append(Sample(long, length - _PAST_WINDOW))
    return sorted(samples, key=lambda sample: len(sample.tokens), reverse=True)


def _write_on(model: TorchModel, texts: list[list[int]], count: int) -> None:
    """Append `count` greedy tokens to each text."""
    past = [0] * len(texts)
    for _ in range(count):
        batch = [
            ForwardItem(sequence=i, past_length=past[i], tokens=text[past[i] :], num_rows=1)
            for i, text in enumerate(texts)
        ]
        past = [len(text) for text in texts]
        rows = np.asarray(model.forward(batch))
        for text, row in zip(texts, rows, strict=True):
            text.append(int(row.argmax()))
    for i in range(len(texts)):
        model.release(i)
