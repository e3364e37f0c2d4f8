"""How well a model predicts a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pard_rt._core import ForwardItem
from pard_rt.errors import FolderError, InvalidArgumentError, first_line
from pard_rt.models import OpenedModel
from pard_rt.progress import Progress

_WINDOW = 512


def read_text(file: Path) -> str:
    """Return a text file's text.

    Raises
    ------
    FolderError
        It cannot be read.
    """
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(
            f"The text '{file}' cannot be read",
            "a text file in UTF-8",
            first_line(error),
            "Check the path.",
        ) from error


def perplexity(opened: OpenedModel, text: str, shown: Progress) -> tuple[float, int]:
    """Return a text's perplexity, and over how many tokens it is taken.

    The text is cut into windows of 512 tokens, and the second half of each is predicted, as
    llama.cpp's llama-perplexity does, so the two can be compared. If the tokenizer begins texts
    with a token of its own, every window begins with it, in place of its first.

    Raises
    ------
    InvalidArgumentError
        The text is shorter than a window.
    """
    tokenizer = opened.text()
    tokens = tokenizer.encode(text)
    begins = tokens[:1] != tokenizer.encode(text, add_special_tokens=False)[:1]
    window = min(_WINDOW, opened.info.max_length)
    if len(tokens) < window:
        raise InvalidArgumentError(
            "The text is too short to measure perplexity on",
            f"at least {window} tokens",
            str(len(tokens)),
            "Choose a longer text.",
        )
    total, count = 0.0, 0
    for begin in range(0, len(tokens) - window + 1, window):
        shown.reach(begin / len(tokens))
        part = tokens[begin : begin + window]
        if begins:
            part[0] = tokens[0]
        for logits, token in zip(_rows(opened, part), part[window // 2 + 1 :], strict=True):
            top = logits.max()
            total += float(top - logits[token] + np.log(np.exp(logits - top).sum()))
            count += 1
    return float(np.exp(total / count)), count


def _rows(opened: OpenedModel, tokens: list[int]) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of logits that predict a window's second half after its first token."""
    count = len(tokens) - len(tokens) // 2
    item = ForwardItem(sequence=0, past_length=0, tokens=tokens, num_rows=count)
    logits: Any = opened.model.forward([item])
    if opened.loaded is None:
        rows = np.from_dlpack(logits)
    else:
        from torch.utils.dlpack import from_dlpack

        rows = from_dlpack(logits).float().cpu().numpy()
    for row in rows[:-1]:
        yield row.astype(np.float64)
