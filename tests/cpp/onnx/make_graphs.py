"""Write the tiny seeded models that the C++ tests run on: python make_graphs.py DIRECTORY.

Every folder holds the same two-layer decoder, in another form, type or packing. Beside them lies
what Python makes of byte strings that are no UTF-8.
"""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

LAYERS, HIDDEN, HEADS, KV_HEADS, VOCAB, MAX_LENGTH = 2, 64, 4, 2, 64, 600
HEAD_DIM = 16  # GroupQueryAttention rotates multiples of 16 only
WIDE = 96  # of the feed-forward layer
TYPES = {"float32": (TensorProto.FLOAT, np.float32), "float16": (TensorProto.FLOAT16, np.float16)}


class Graph:
    """A graph under construction: every method adds a node and names its output."""

    def __init__(self, dtype: str):
        self.onnx_type, self.numpy_type = TYPES[dtype]
        self.random = np.random.default_rng(7)
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []

    def node(self, op, inputs, num_outputs=1, **attributes):
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(num_outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if num_outputs == 1 else names

    def constant(self, array):
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, *shape, scale=0.2):
        return self.constant((self.random.standard_normal(shape) * scale).astype(self.numpy_type))

    def ints(self, *values):
        return self.constant(np.array(values, dtype=np.int64))

    def input(self, name, elem_type, shape):
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, value, name, elem_type, shape):
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, elem_type, shape))

    def matmul(self, x, rows, columns):
        return self.node("MatMul", [x, self.weight(rows, columns)])

    def norm(self, x):
        ones = self.constant(np.ones(HIDDEN, dtype=self.numpy_type))
        return self.node("LayerNormalization", [x, ones], axis=-1)


def rotary_tables():
    angles = np.arange(MAX_LENGTH)[:, None] / 100.0 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    return np.cos(angles), np.sin(angles)


def rotate(g, x, cos, sin):
    """Rotate [B, R, heads, D] by its positions; cos and sin are [B, R, 1, D / 2]."""
    a, b = g.node("Split", [x], 2, axis=-1)
    first = g.node("Sub", [g.node("Mul", [a, cos]), g.node("Mul", [b, sin])])
    second = g.node("Add", [g.node("Mul", [b, cos]), g.node("Mul", [a, sin])])
    return g.node("Concat", [first, second], axis=-1)


def portable_attention(g, layer, q, k, v, bias, cos, sin):
    def heads(x, count):
        return g.node("Reshape", [x, g.ints(0, 0, count, HEAD_DIM)])

    shape = ["B", "P", KV_HEADS, HEAD_DIM]
    past = [g.input(f"past.{layer}.{kind}", g.onnx_type, shape) for kind in ("key", "value")]
    q = rotate(g, heads(q, HEADS), cos, sin)
    k, v = rotate(g, heads(k, KV_HEADS), cos, sin), heads(v, KV_HEADS)

    def everything(old, new):
        rows = g.node("Concat", [old, new], axis=1)  # [B, P + R, H, D]
        spread = g.node("Unsqueeze", [rows, g.ints(3)])
        group = g.ints(1, 1, 1, HEADS // KV_HEADS, 1)
        return g.node("Reshape", [g.node("Tile", [spread, group]), g.ints(0, 0, HEADS, HEAD_DIM)])

    keys = g.node("Transpose", [everything(past[0], k)], perm=[0, 2, 3, 1])
    values = g.node("Transpose", [everything(past[1], v)], perm=[0, 2, 1, 3])
    scale = g.constant(np.array(HEAD_DIM**-0.5, dtype=g.numpy_type))
    queries = g.node("Mul", [g.node("Transpose", [q], perm=[0, 2, 1, 3]), scale])
    scores = g.node("Add", [g.node("MatMul", [queries, keys]), bias])
    mixed = g.node("MatMul", [g.node("Softmax", [scores], axis=-1), values])
    new_shape = ["B", "R", KV_HEADS, HEAD_DIM]
    g.output(k, f"new.{layer}.key", g.onnx_type, new_shape)
    g.output(v, f"new.{layer}.value", g.onnx_type, new_shape)
    merged = g.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    return g.node("Reshape", [merged, g.ints(0, 0, HIDDEN)])


def gqa_attention(g, layer, q, k, v, lengths, past_name, tables):
    shape = ["B", KV_HEADS, "S", HEAD_DIM]
    past = [g.input(past_name.format(layer, kind), g.onnx_type, shape) for kind in ("key", "value")]
    outputs = [f"attention_{layer}", f"present.{layer}.key", f"present.{layer}.value"]
    g.nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            [q, k, v, *past, *lengths, *tables],
            outputs,
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )
    )
    for name in outputs[1:]:
        g.outputs.append(helper.make_tensor_value_info(name, g.onnx_type, shape))
    return outputs[0]


def lengths_from_mask(g):
    """What the model builder's graphs do with their attention_mask."""
    mask = g.input("attention_mask", TensorProto.INT64, ["B", "T"])
    total = g.node("ReduceSum", [mask, g.ints(1)], keepdims=0)
    seqlens = g.node("Cast", [g.node("Sub", [total, g.ints(1)])], to=TensorProto.INT32)
    width = g.node("Gather", [g.node("Shape", [mask]), g.constant(np.array(1, dtype=np.int64))])
    return [seqlens, g.node("Cast", [width], to=TensorProto.INT32)]


def decoder(form, dtype="float32", builder=False):
    g = Graph(dtype)
    ids = g.input("input_ids", TensorProto.INT64, ["B", "R"])
    cos, sin = (g.constant(table.astype(g.numpy_type)) for table in rotary_tables())
    if form == "portable":
        positions = g.input("position_ids", TensorProto.INT64, ["B", "R"])
        bias = g.input("attention_bias", g.onnx_type, ["B", 1, "R", "T"])
        unsqueezed = g.node("Unsqueeze", [positions, g.ints(2)])
        angles = [g.node("Gather", [table, unsqueezed]) for table in (cos, sin)]
    elif builder:
        lengths = lengths_from_mask(g)
    else:
        lengths = [
            g.input("seqlens_k", TensorProto.INT32, ["B"]),
            g.input("total_sequence_length", TensorProto.INT32, []),
        ]
    if not builder:
        num_logits = g.input("num_logits", TensorProto.INT64, [1])
    past_name = "past_key_values.{}.{}" if builder else "past.{}.{}"

    x = g.node("Gather", [g.weight(VOCAB, HIDDEN, scale=1.0), ids])
    for layer in range(LAYERS):
        h = g.norm(x)
        q = g.matmul(h, HIDDEN, HEADS * HEAD_DIM)
        k, v = (g.matmul(h, HIDDEN, KV_HEADS * HEAD_DIM) for _ in range(2))
        if form == "portable":
            mixed = portable_attention(g, layer, q, k, v, bias, *angles)
        else:
            mixed = gqa_attention(g, layer, q, k, v, lengths, past_name, (cos, sin))
        x = g.node("Add", [x, g.matmul(mixed, HIDDEN, HIDDEN)])
        wide = g.node("Relu", [g.matmul(g.norm(x), HIDDEN, WIDE)])
        x = g.node("Add", [x, g.matmul(wide, WIDE, HIDDEN)])
    x = g.norm(x)
    if not builder:
        begin = g.node("Neg", [num_logits])
        x = g.node("Slice", [x, begin, g.ints(np.iinfo(np.int64).max), g.ints(1)])
    g.output(g.matmul(x, HIDDEN, VOCAB), "logits", g.onnx_type, ["B", "L", VOCAB])
    graph = helper.make_graph(g.nodes, "tiny", g.inputs, g.outputs, g.weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write_contract(folder, form, dtype, **changes):
    contract = {
        "format_version": 1,
        "name": f"tiny {folder.name}",
        "form": form,
        "model": "model.onnx",
        "num_layers": LAYERS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "kv_dtype": dtype,
        "logits_dtype": dtype,
        "vocab_size": VOCAB,
        "num_tokens": VOCAB - 4,
        "max_length": MAX_LENGTH,
        "bos_token_id": None,
        "eos_token_ids": [1],
        "mask_token_id": VOCAB - 5,
        "weights": "fp32" if dtype == "float32" else "fp16",
        **changes,
    }
    (folder / "pard_rt.json").write_text(json.dumps(contract, indent=2))
    write_token_bytes(folder, VOCAB - 4)


def write_token_bytes(folder, count):
    """Letters and the two parts of a euro sign in turns; the first two tokens are special."""
    spelled = [(bytes([97 + i % 26]), b"\xe2\x82", b"\xac")[i % 3] for i in range(count)]
    spelled[:2] = b"", b""
    offsets = np.cumsum([0, *map(len, spelled)])
    head = np.array([count, *offsets], dtype="<u4").tobytes()
    (folder / "token_bytes.bin").write_bytes(head + b"".join(spelled))


def write_utf8_cases(file):
    """Byte strings and what Python decodes them to, in hexadecimal behind a dash."""
    edges = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c1 c2 df e0 e1 ec ed ee f0 f1 f3 f4 f5 ff")
    cases = [bytes(case) for n in range(4) for case in itertools.product(edges, repeat=n)]
    rng = random.Random(3)
    cases += [bytes(rng.choices(edges, k=rng.randrange(4, 12))) for _ in range(20_000)]
    decoded = [(case, case.decode(errors="replace").encode()) for case in cases]
    file.write_text("".join(f"-{a.hex()} -{b.hex()}\n" for a, b in decoded))


def write_builder_config(folder):
    kinds = ("key", "value")
    inputs = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in kinds}
    outputs = {f"present_{kind}_names": f"present.%d.{kind}" for kind in kinds}
    config = {
        "model": {
            "bos_token_id": 0,
            "context_length": MAX_LENGTH,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD_DIM,
                "hidden_size": HIDDEN,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **inputs},
                "outputs": {"logits": "logits", **outputs},
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "num_key_value_heads": KV_HEADS,
            },
            "eos_token_id": [1, 2],
            "type": "tiny",
            "vocab_size": VOCAB,
        },
        "search": {"max_length": MAX_LENGTH},
    }
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4))


def make(directory: Path):
    def folder(name):
        path = directory / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    for form in ("portable", "gqa"):
        for dtype, suffix in (("float32", ""), ("float16", "_f16")):
            path = folder(form + suffix)
            onnx.save(decoder(form, dtype), path / "model.onnx")
            write_contract(path, form, dtype)
    path = folder("builder")
    onnx.save(decoder("gqa", builder=True), path / "model.onnx")
    write_builder_config(path)

    path = folder("external")
    (path / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(
        decoder("portable"),
        path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    write_contract(path, "portable", "float32")

    from onnxruntime.quantization import QuantFormat, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    path = folder("dynamic")
    quantize_dynamic(folder("portable") / "model.onnx", path / "model.onnx")
    write_contract(path, "portable", "float32", weights="int8")

    for name, bits, block_size in (
        ("int4", 4, 32),
        ("int4_block64", 4, 64),
        ("int4_block128", 4, 128),
        ("int8", 8, 32),
        ("int8_block128", 8, 128),
    ):
        path = folder(name)
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, accuracy_level=4, bits=bits)
        quantizer = MatMulNBitsQuantizer(decoder("gqa"), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path / "model.onnx"))
        write_contract(path, "gqa", "float32", weights=f"int{bits}")
    write_utf8_cases(directory / "utf8_cases.txt")

    path = folder("portable_int4")
    quantizer = MatMulNBitsQuantizer(
        version_converter.convert_version(decoder("portable"), 21),
        block_size=32,
        quant_format=QuantFormat.QDQ,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path / "model.onnx"))
    write_contract(path, "portable", "float32", weights="int4")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
