"""Does an exported graph compute what the PyTorch module does? Asked of ONNX Runtime, always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import torch

from pard_rt.errors import ModelError, first_line
from pard_rt.pytorch.probe import TOLERANCE, CacheLayout, attention_implementation, probe_tokens

Array = npt.NDArray[Any]

_LONGEST_WINDOW = 1024  # longer sliding windows are not filled by the check
_NEW, _REWOUND, _OTHER = 5, 3, 4

# For quantized weights: how far rows of one prompt may differ with the way it is cut, and how
# similar (cosine) they must stay to the float32 module's: bounds for nonsense, not for quality.
_CUT_TOLERANCE = 5e-2
_SIMILARITY = {"int8": 0.95, "int4": 0.5}


@dataclass(frozen=True)
class Agreement:
    """How an exported graph compared with its module, over every row checked."""

    max_error: float  # largest difference of a logit, as a share of the largest logit
    min_cosine: float  # least similar row
    same_argmax: float  # share of rows with the same most likely token


class GraphRunner:
    """One sequence through an exported graph on the CPU, its cache kept here.

    The buffers start as NaN: a graph that reads rows it was not told of shows at once.
    """

    def __init__(self, graph: Path, layout: CacheLayout, form: str, capacity: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # integer kernels for DequantizeLinear would round activations, which the graph does not
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._form = form
        kind = {i.name: i.type for i in self.session.get_inputs()}["past.0.key"]
        self._dtype = np.float16 if kind == "tensor(float16)" else np.float32
        sizes = (
            (layout.num_kv_heads, capacity) if form == "gqa" else (capacity, layout.num_kv_heads)
        )
        self._buffers: dict[str, Array] = {
            f"{i}.{part}": np.full((1, *sizes, layout.head_dim), np.nan, self._dtype)
            for i in range(layout.num_layers)
            for part in ("key", "value")
        }

    def run(self, tokens: Sequence[int], past: int, num_logits: int) -> Array:
        """Feed tokens behind the first `past` rows; returns logits [num_logits, V]."""
        ids = np.asarray([tokens], np.int64)
        wanted = np.asarray([num_logits], np.int64)
        run = self._run_gqa if self._form == "gqa" else self._run_portable
        return run({"input_ids": ids, "num_logits": wanted}, past, len(tokens))

    def _run_gqa(self, feeds: dict[str, Array], past: int, rows: int) -> Array:
        length = past + rows
        feeds["seqlens_k"] = np.asarray([length - 1], np.int32)
        feeds["total_sequence_length"] = np.asarray(length, np.int32)
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, buffer in self._buffers.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(f"past.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[-1].numpy()[0])

    def _run_portable(self, feeds: dict[str, Array], past: int, rows: int) -> Array:
        length = past + rows
        feeds["position_ids"] = np.arange(past, length)[None]
        hidden = np.triu(np.ones((rows, length), bool), 1 + past)
        feeds["attention_bias"] = np.where(hidden, np.finfo(self._dtype).min, 0).astype(
            self._dtype
        )[None, None]
        feeds |= {f"past.{name}": buffer[:, :past] for name, buffer in self._buffers.items()}
        names = list(self._buffers)
        logits, *new = self.session.run(["logits", *(f"new.{name}" for name in names)], feeds)
        for name, written in zip(names, new, strict=True):
            self._buffers[name][:, past:length] = written
        return np.asarray(logits[0])


def check_graph(
    graph: Path, module: Any, layout: CacheLayout, form: str, max_length: int, weights: str
) -> Agreement:
    """Prefill, several rows after a past, a rewind with other tokens, and one row: all must agree.

    Parameters
    ----------
    graph
        The ONNX file, its external data beside it.
    module
        The adopted module it was traced from.
    weights
        "fp32" and "fp16" graphs are held to rounding error; "int8" and "int4" ones to staying
        similar, and to giving the same rows however a prompt is cut.

    Raises
    ------
    ModelError
        The graph does not load or does not agree.
    """
    windows = [w for w in layout.sliding_windows if w is not None and w <= _LONGEST_WINDOW]
    prefill = max([9, *(w + 3 for w in windows)])
    prefill = max(2, min(prefill, max_length - _NEW - 1))
    tokens = probe_tokens(module, prefill + _NEW + _OTHER + 1)[0].tolist()
    text, other = tokens[: prefill + _NEW], tokens[prefill + _NEW :]
    kept = prefill + _NEW - _REWOUND
    rewound = (text[:kept] + other)[:max_length]

    try:
        runner = GraphRunner(graph, layout, form, max(len(text), len(rewound)))
        whole = runner.run(text, 0, len(text))
        first = runner.run(text[:prefill], 0, prefill)
        new = runner.run(text[prefill:], prefill, len(text) - prefill)
        several = runner.run(rewound[kept:-1], kept, len(rewound) - kept - 1)
        one = runner.run(rewound[-1:], len(rewound) - 1, 1)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(
            f"ONNX Runtime cannot run the exported graph {graph.name}",
            "a session and a forward without error",
            first_line(error),
            "Report the architecture.",
        ) from error
    in_parts = np.concatenate([first, new, several, one]).astype(np.float32)
    expected = np.concatenate([_logits(module, text), _logits(module, rewound)[kept:]])
    found = _compare(in_parts, expected)
    cut = _compare(in_parts[: len(text)], whole.astype(np.float32))
    if weights in _SIMILARITY:
        agrees = found.min_cosine >= _SIMILARITY[weights] and cut.max_error <= _CUT_TOLERANCE
        wanted = f"cosine >= {_SIMILARITY[weights]}, cuts within {_CUT_TOLERANCE:g}"
    else:
        agrees = found.max_error <= TOLERANCE[module.dtype]
        wanted = f"logits within {TOLERANCE[module.dtype]:g} of the largest"
    if not agrees:
        raise ModelError(
            f"The exported {form} graph does not compute what the PyTorch module computes",
            wanted,
            f"{found}, cuts within {cut.max_error:.3g}",
            "Try the other form; report the architecture.",
        )
    return found


def _logits(module: Any, tokens: list[int]) -> Array:
    ids = torch.tensor([tokens], device=module.device)
    with attention_implementation(module, "eager"), torch.no_grad():
        logits = module(input_ids=ids, use_cache=False).logits[0]
    return np.asarray(logits.float().cpu().numpy())


def _compare(actual: Array, expected: Array) -> Agreement:
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return Agreement(float("inf"), -1.0, 0.0)
    norms = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    return Agreement(
        max_error=float(np.abs(actual - expected).max() / np.abs(expected).max()),
        min_cosine=float(((actual * expected).sum(-1) / norms).min()),
        same_argmax=float((actual.argmax(-1) == expected.argmax(-1)).mean()),
    )
