"""Does an exported folder compute what the PyTorch module does? It is opened as a user opens it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pard_rt._core import ForwardItem, OnnxModel
from pard_rt.errors import ModelError, RuntimeMissingError
from pard_rt.exporter.samples import NUM_WRITTEN, Sample, write_samples
from pard_rt.models.checkpoint import LoadedModel
from pard_rt.pytorch.probe import Adopted, attention_implementation

Array = npt.NDArray[Any]

_ROUND = 6  # rows at the end of a text that run as a verification and a single row

OTHER_WAY = {
    "gqa": "Export it with --form portable.",
    "portable": "Run the checkpoint through PyTorch, or export it with --form gqa.",
}


@dataclass(frozen=True)
class Agreement:
    """How an exported folder compared with its module, over text that the module wrote.

    Attributes
    ----------
    max_error
        Largest difference of a logit, as a share of the largest logit.
    kl_divergence
        Of the folder's next-token distribution from the module's, in nats: mean over the rows.
    same_argmax
        Share of the rows with the same likeliest token.
    """

    max_error: float
    kl_divergence: float
    same_argmax: float


class Check:
    """Texts, and the rows that PyTorch's eager attention computes for them.

    Parameters
    ----------
    loaded
        The module as it is exported, adopted.
    adopted
        What trying it has shown: its cache, and how far logits may differ.
    form
        "gqa" or "portable".
    written
        Tokens that the module writes behind each prompt.
    """

    def __init__(
        self, loaded: LoadedModel, adopted: Adopted, form: str, written: int = NUM_WRITTEN
    ) -> None:
        self._form = form
        self._tolerance = adopted.tolerance
        self._samples = write_samples(loaded, adopted.layout, written)
        self._expected = _logits(loaded.module, self._samples)

    def require_exact(self, folder: Path) -> Agreement:
        """Hold a folder whose weights are the module's to rounding error.

        Raises
        ------
        ModelError
            The folder does not open, or its logits differ by more.
        """
        found = self._open_and_compare(folder)
        if not found.max_error <= self._tolerance:
            raise ModelError(
                f"The exported {self._form} graph does not compute what the PyTorch module does",
                f"logits within {self._tolerance:g} of the largest",
                f"a difference of {found.max_error:.3g}",
                OTHER_WAY[self._form],
            )
        return found

    def runs_in_onnxruntime_alone(self, folder: Path) -> bool:
        """Whether an exact folder also runs with ONNX Runtime's own GroupQueryAttention."""
        try:
            found = self._open_and_compare(folder, own_attention=False)
        except (ModelError, RuntimeMissingError):
            return False
        return found.max_error <= self._tolerance

    def require_sense(self, folder: Path, weights: str) -> Agreement:
        """Measure a folder with rounded weights, whose exact graph has been found to agree.

        How much rounding may cost is the user's to judge. A folder that predicts a text no better
        than one that has not read it is broken: the limit is the divergence of the module's mean
        distribution over all rows.

        Raises
        ------
        ModelError
            The folder does not open, or is broken.
        """
        found = self._open_and_compare(folder)
        limit = _divergence_of_mean(self._expected)
        if not found.kl_divergence < limit:
            raise ModelError(
                f"The {weights} weights have lost what the PyTorch module knows",
                f"a KL divergence below {limit:.3g} nats, which needs no look at the text",
                f"{found.kl_divergence:.3g}",
                "Export it with --weights int8."
                if weights == "int4"
                else "Export it with --weights fp32.",
            )
        return found

    def _open_and_compare(self, folder: Path, *, own_attention: bool = True) -> Agreement:
        try:
            model = OnnxModel(folder, own_attention=own_attention)
            rows = [row for each in self._samples for row in _rows(model, each)]
        except ModelError as error:
            raise ModelError(
                f"The exported {self._form} graph does not run",
                "an ONNX Runtime that runs it, and rows that depend on the tokens up to them alone",
                f"{error.problem}: {error.actual}",
                OTHER_WAY[self._form],
            ) from error
        return _compare(np.concatenate(rows), self._expected)


def _rows(model: OnnxModel, sample: Sample) -> Iterator[Array]:
    """Run a text as a prompt, several rows after others that are rejected, and a single row.

    One sequence serves all texts: a graph that reads rows behind its own meets those of the text
    before, which was longer.
    """
    tokens, end = sample.tokens, len(sample.tokens)
    prompt = max(0, end - _ROUND)
    for begin, stop in ((0, prompt), (prompt, end - 1), (end - 1, end)):
        if begin == stop:
            continue
        if begin == prompt > 0:
            _forward(model, tokens[:0:-1][:_ROUND], begin, 1)
        wanted = max(0, stop - max(begin, sample.first))
        rows = _forward(model, tokens[begin:stop], begin, max(1, wanted))
        yield rows[len(rows) - wanted :]


def _forward(model: OnnxModel, tokens: list[int], past: int, num_rows: int) -> Array:
    item = ForwardItem(sequence=0, past_length=past, tokens=tokens, num_rows=num_rows)
    logits: Any = model.forward([item])
    return np.from_dlpack(logits).astype(np.float32)


def _logits(module: Any, samples: Sequence[Sample]) -> Array:
    """Return the module's rows of all texts; those that are compared whole run together."""
    rows: list[Tensor] = []
    for first, some in itertools.groupby(samples, lambda sample: sample.first):
        texts = [sample.tokens for sample in some]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        with attention_implementation(module, "eager"), torch.no_grad():
            kept = longest - first
            out = module(input_ids=ids.to(module.device), use_cache=False, logits_to_keep=kept)
        rows += [row[: len(text) - first] for row, text in zip(out.logits, texts, strict=True)]
    return np.asarray(torch.cat(rows).float().cpu().numpy())


def _compare(actual: Array, expected: Array) -> Agreement:
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return Agreement(float("inf"), float("inf"), 0.0)
    divergences = [
        _divergence(_log_softmax(p), _log_softmax(q)) for p, q in zip(expected, actual, strict=True)
    ]
    return Agreement(
        max_error=float(np.abs(actual - expected).max() / np.abs(expected).max()),
        kl_divergence=float(np.mean(divergences)),
        same_argmax=float((actual.argmax(-1) == expected.argmax(-1)).mean()),
    )


def _divergence_of_mean(rows: Array) -> float:
    """Mean divergence of rows of logits from their mean distribution, in nats."""
    mean = reduce(np.logaddexp, map(_log_softmax, rows)) - np.log(len(rows))
    return float(np.mean([_divergence(_log_softmax(row), mean) for row in rows]))


def _divergence(log_p: Array, log_q: Array) -> float:
    """KL(p || q) in nats, at least 0 whatever the rounding."""
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))


def _log_softmax(row: Array) -> Array:
    shifted = row.astype(np.float64) - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
