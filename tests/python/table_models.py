"""Tiny models over seeded tables, for tests: as pard_rt Models and as plain torch functions.

The next token's logits depend on the last `memory` tokens through a random table, so a wrong or
stale row of a cache shows at once. A mask token stands for the model's own likeliest next token,
which is what a perfect parallel draft has learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pard_rt import ForwardItem, Model, ModelInfo

VOCAB = 17
MASK = VOCAB  # one row behind the vocabulary


@dataclass
class TableLanguage:
    """logits = sum over the last `memory` tokens of a table's row, one table per distance."""

    seed: int = 0
    memory: int = 3
    tables: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        shape = (self.memory, VOCAB, VOCAB)
        self.tables = random.normal(size=shape).astype(np.float32)

    def row(self, text: list[int]) -> NDArray[np.float32]:
        text = text[-self.memory :]
        tables = self.tables[: len(text)]
        return sum(table[token] for table, token in zip(tables, reversed(text), strict=True))

    def unmask(self, tokens: list[int]) -> list[int]:
        text: list[int] = []
        for token in tokens:
            text.append(int(self.row(text).argmax()) if token == MASK else token)
        return text

    def rows(self, tokens: list[int]) -> NDArray[np.float32]:
        text = self.unmask(tokens)
        rows = [self.row(text[: i + 1]) for i in range(len(text))]
        return np.stack([np.append(row, np.float32(50.0)) for row in rows])  # padding is loud

    def as_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tokens: torch.from_numpy(self.rows(tokens.tolist())[:, :VOCAB])


class TableModel(Model):
    """A TableLanguage as a Model; its 'KV cache' is the list of tokens it was fed."""

    def __init__(self, language: TableLanguage, *, padded: bool = False, framework: str = "numpy"):
        super().__init__()
        self.language = language
        self.width = VOCAB + 1 if padded else VOCAB
        self.framework = framework
        self.caches: dict[int, list[int]] = {}
        self.num_forwards = 0

    def info(self) -> ModelInfo:
        return ModelInfo(name="table", vocab_size=self.width, max_length=256, num_tokens=VOCAB)

    def forward(self, batch: list[ForwardItem]) -> NDArray[np.float32] | torch.Tensor | None:
        self.num_forwards += 1
        rows = []
        for item in batch:
            cache = self.caches.setdefault(item.sequence, [])
            assert len(cache) >= item.past_length
            cache[item.past_length :] = item.tokens.tolist()
            if item.num_rows:
                rows.append(self.language.rows(cache)[-item.num_rows :, : self.width])
        if not rows:
            return None
        logits = np.ascontiguousarray(np.concatenate(rows))
        return torch.from_numpy(logits) if self.framework == "torch" else logits

    def release(self, sequence: int) -> None:
        self.caches.pop(sequence, None)
