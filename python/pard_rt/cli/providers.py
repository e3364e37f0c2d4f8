"""Which execution providers work here: each is given a graph of five nodes to run."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pard_rt._core import OnnxModel
from pard_rt.errors import Error, RuntimeMissingError

PROVIDERS = ("cpu", "cuda", "migraphx", "rocm")

_VOCAB = 8
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType


@dataclass(frozen=True)
class Trial:
    """What became of a provider's session."""

    works: bool
    text: str  # the library that has it, or what is in the way
    version: str = ""


def try_provider(name: str) -> Trial:
    """Open a session of a provider and run it."""
    with TemporaryDirectory(prefix="pard-rt-") as place:
        folder = Path(place)
        write_tiny_folder(folder)
        try:
            model = OnnxModel(folder, provider=name, threads=1)
        except RuntimeMissingError as error:
            return Trial(False, f"not installed\n{error.remedy}")
        except Error as error:
            return Trial(False, f"installed, but does not work\n{error.actual}")
        return Trial(True, model.onnxruntime_path, model.onnxruntime_version)


def write_tiny_folder(folder: Path) -> None:
    """Write the smallest ONNX folder there is (docs/onnx-folder.md), without the onnx package.

    Its logits, keys and values are rows of one table: the fields of onnx.proto are written as they
    are, a handful of numbers and strings.
    """
    contract = {
        "format_version": 1,
        "name": "tiny",
        "form": "portable",
        "model": "model.onnx",
        "num_layers": 1,
        "num_kv_heads": 1,
        "head_dim": _VOCAB,
        "kv_dtype": "float32",
        "logits_dtype": "float32",
        "vocab_size": _VOCAB,
        "num_tokens": _VOCAB,
        "max_length": 8,
        "bos_token_id": None,
        "eos_token_ids": [],
        "mask_token_id": None,
        "weights": "fp32",
    }
    (folder / "pard_rt.json").write_text(json.dumps(contract), "utf-8")
    (folder / "model.onnx").write_bytes(_model())


def _model() -> bytes:
    numbers = [(7919 * i % 101) / 101 for i in range(_VOCAB * _VOCAB)]
    table = struct.pack(f"<{len(numbers)}f", *numbers)
    past = ("B", "P", 1, _VOCAB)
    new = ("B", "R", 1, _VOCAB)
    graph = [
        _node("Gather", ["table", "input_ids"], "rows"),
        _node("Neg", ["num_logits"], "first"),
        _node("Slice", ["rows", "first", "end", "one"], "logits"),
        _node("Unsqueeze", ["rows", "two"], "new.0.key"),
        _node("Unsqueeze", ["rows", "two"], "new.0.value"),
        _field(2, "tiny"),
        _initializer("table", _FLOAT, (_VOCAB, _VOCAB), table),
        *(
            _initializer(name, _INT64, (1,), struct.pack("<q", value))
            for name, value in (("one", 1), ("two", 2), ("end", 2**62))
        ),
        _tensor_info(11, "input_ids", _INT64, ("B", "R")),
        _tensor_info(11, "position_ids", _INT64, ("B", "R")),
        _tensor_info(11, "attention_bias", _FLOAT, ("B", 1, "R", "A")),
        _tensor_info(11, "num_logits", _INT64, (1,)),
        _tensor_info(11, "past.0.key", _FLOAT, past),
        _tensor_info(11, "past.0.value", _FLOAT, past),
        _tensor_info(12, "logits", _FLOAT, ("B", "L", _VOCAB)),
        _tensor_info(12, "new.0.key", _FLOAT, new),
        _tensor_info(12, "new.0.value", _FLOAT, new),
    ]
    opset = _field(1, "") + _field(2, 17)
    return _field(1, 8) + _field(7, b"".join(graph)) + _field(8, opset)


def _node(operator: str, inputs: list[str], output: str) -> bytes:
    body = b"".join(_field(1, name) for name in inputs)
    return _field(1, body + _field(2, output) + _field(4, operator))


def _initializer(name: str, kind: int, shape: tuple[int, ...], data: bytes) -> bytes:
    dims = b"".join(_field(1, size) for size in shape)
    return _field(5, dims + _field(2, kind) + _field(8, name) + _field(9, data))


def _tensor_info(number: int, name: str, kind: int, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(d, int) else 2, d)) for d in shape)
    tensor = _field(1, kind) + _field(2, dims)
    return _field(number, _field(1, name) + _field(2, _field(1, tensor)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a number, or a text or message with its length before it."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode("utf-8") if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
