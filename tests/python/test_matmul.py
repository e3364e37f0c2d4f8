"""Products by integer weights in kernels of our own: what they take, and what they give."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import pard_rt
from conftest import TinyModels
from tiny_models import NUM_TOKENS, VOCAB_SIZE, make_model

Change = Callable[[onnx.GraphProto, onnx.NodeProto], None]


@pytest.fixture(scope="module", params=["int4", "int8"])
def folder(
    request: pytest.FixtureRequest,
    tiny_models: TinyModels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    source = make_model(tmp_path_factory.mktemp("source") / "model", "qwen2")
    out = tmp_path_factory.mktemp("folder") / request.param
    return pard_rt.export(source, out, weights=request.param).folder


def changed(folder: Path, out: Path, change: Change) -> Path:
    """A copy of a folder, each of whose MatMulNBits is changed."""
    shutil.copytree(folder, out)
    model = onnx.load(folder / "model.onnx")
    (out / "model.onnx.data").unlink()
    for node in list(model.graph.node):
        if node.op_type == "MatMulNBits":
            change(model.graph, node)
    onnx.save(model, out / "model.onnx")
    return out


def attributes(**values: int) -> Change:
    def change(_: onnx.GraphProto, node: onnx.NodeProto) -> None:
        kept = [each for each in node.attribute if each.name not in values]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(onnx.helper.make_attribute(*item) for item in values.items())

    return change


def weight_of(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(each for each in graph.initializer if each.name == name)


def rows(model: pard_rt.OnnxModel, *counts: int) -> NDArray[np.float32]:
    """Logits of so many rows of a text, one forward after the other."""
    tokens = np.random.default_rng(0).integers(0, NUM_TOKENS, sum(counts)).tolist()
    logits, past = [], 0
    for count in counts:
        new = tokens[past : past + count]
        item = pard_rt.ForwardItem(sequence=0, past_length=past, tokens=new, num_rows=count)
        logits.append(np.array(model.forward([item])))
        past += count
    return np.concatenate(logits)


def opened(folder: Path, **options: Any) -> pard_rt.OnnxModel:
    return pard_rt.OnnxModel(folder, **{"threads": 1, "probe": False, **options})


def test_rows_have_the_same_bits_in_any_company_and_with_any_number_of_threads(
    folder: Path,
) -> None:
    model = opened(folder)
    assert (model.own_matmul, model.exact) == (True, True)
    assert not any(model.padding(count) for count in range(1, 34))
    one_by_one = rows(model, *[1] * 40)
    for counts in [(40,), (7, 33), (1, 2, 5, 9, 17, 6), (16, 16, 8)]:
        np.testing.assert_array_equal(rows(model, *counts), one_by_one)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(rows(opened(folder, threads=threads), 7, 33), one_by_one)


def test_rows_are_as_near_to_float_products_as_onnxruntime_s(folder: Path, tmp_path: Path) -> None:
    exact = rows(opened(changed(folder, tmp_path / "exact", attributes(accuracy_level=1))), 40)
    own, other = (
        np.abs(rows(opened(folder, own_matmul=own), 40) - exact).mean() for own in (True, False)
    )
    assert 0 < own < 1.2 * other


def variables(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Make scales a node's output, which is no constant."""
    scales = node.input[2]
    node.input[2] = f"{scales}.copy"
    copy = onnx.helper.make_node("Identity", [scales], [node.input[2]])
    graph.node.insert(0, copy)


@pytest.mark.parametrize(
    "change", [attributes(accuracy_level=0), attributes(accuracy_level=1), variables]
)
def test_what_our_kernels_do_not_take_is_left_to_onnxruntime(
    folder: Path, tmp_path: Path, change: Change
) -> None:
    model = opened(changed(folder, tmp_path / "other", change))
    assert not model.own_matmul
    assert np.isfinite(rows(model, 5)).all()
    assert not opened(folder, own_matmul=False).own_matmul


def add_minima(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Say the same weights with minima: q * s + m, where m is -8 or -128 times s."""
    scales = weight_of(graph, node.input[2])
    bits = next((each.i for each in node.attribute if each.name == "bits"), 4)
    minima = onnx.numpy_helper.to_array(scales) * np.float32(-(1 << bits - 1))
    name = f"{node.input[2]}.minima"
    graph.initializer.append(onnx.numpy_helper.from_array(minima, name))
    node.input.extend([""] * (6 - len(node.input)) + [name])


def test_weights_may_have_minima(folder: Path, tmp_path: Path) -> None:
    with_minima = changed(folder, tmp_path / "minima", add_minima)
    expected, actual = (rows(opened(path), 9, 9) for path in (folder, with_minima))
    np.testing.assert_allclose(actual, expected, atol=0.01 * np.abs(expected).max())
    with pytest.raises(pard_rt.ModelError, match=r"only in pard-rt's kernels.*own_matmul = false"):
        opened(with_minima, own_matmul=False)


def factored(*, said: bool) -> Change:
    """Give weights scales that are small integers times factors, said so or as floats."""

    def change(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        values = {each.name: each.i for each in node.attribute}
        blocks = -(-values["K"] // values["block_size"])
        spans = -(-values["K"] // 256)
        rng = np.random.default_rng(values["N"])
        inputs = {}
        for what in ("scales", "minima"):
            small = rng.integers(-100, 100, (values["N"], blocks), np.int8)
            factors = rng.normal(0, 1e-4, (values["N"], spans)).astype(np.float16)
            of_blocks = np.repeat(factors, 256 // values["block_size"], axis=1)[:, :blocks]
            floats = of_blocks.astype(np.float32) * small
            inputs[what] = (small, factors) if said else (floats,)
        (scales, *scale_factors), (minima, *minimum_factors) = inputs.values()
        del node.input[2:]
        for tensor in (scales, None, None, None, minima, *scale_factors, *minimum_factors):
            name = "" if tensor is None else f"{node.output[0]}.{len(node.input)}"
            node.input.append(name)
            if tensor is not None:
                graph.initializer.append(onnx.numpy_helper.from_array(tensor, name))

    return change


def test_scales_may_be_integers_times_factors(folder: Path, tmp_path: Path) -> None:
    factors = changed(folder, tmp_path / "factors", factored(said=True))
    floats = changed(folder, tmp_path / "floats", factored(said=False))
    np.testing.assert_array_equal(rows(opened(factors), 9, 9), rows(opened(floats), 9, 9))
    with pytest.raises(pard_rt.ModelError, match="only in pard-rt's kernels"):
        opened(factors, own_matmul=False)


def test_weights_that_do_not_fit_are_refused_by_the_node_s_name(
    folder: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj+k_proj+v_proj"

    def not_finite(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if node.name != name:
            return
        tensor = weight_of(graph, node.input[2])
        scales = onnx.numpy_helper.to_array(tensor).copy()
        scales.flat[3] = np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(scales, tensor.name))

    def too_few(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if node.name != name:
            return
        tensor = weight_of(graph, node.input[2])
        scales = onnx.numpy_helper.to_array(tensor).reshape(-1)[:-1]
        tensor.CopyFrom(onnx.numpy_helper.from_array(scales, tensor.name))

    for change, problem in [(not_finite, "not finite"), (too_few, r"\d+ scales as float32, got")]:
        broken = changed(folder, tmp_path / change.__name__, change)
        with pytest.raises(pard_rt.FolderError, match=f"'{re.escape(name)}'.*{problem}"):
            opened(broken)


WITH_LITTLE_MEMORY = """
import resource, sys
import pard_rt

small, large, spare = sys.argv[1:]
pard_rt.OnnxModel(small)  # loads ONNX Runtime
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(spare) << 20),) * 2)
pard_rt.OnnxModel(large, threads=1, probe=False, exact=False)
"""


@pytest.mark.parametrize("spare", [10, 100])  # MiB: too little to read the weights, to repack them
def test_weights_that_do_not_fit_into_memory_are_a_typed_error(
    folder: Path, tmp_path: Path, spare: int
) -> None:
    columns = 1 << 21

    def widen(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if node.output[0] != "logits":
            return
        rows = next(each.i for each in node.attribute if each.name == "N")
        for name in node.input[1:]:
            tensor = weight_of(graph, name)
            array = onnx.numpy_helper.to_array(tensor)
            wide = np.resize(array, columns * array.size // rows)
            shape = (columns, *array.shape[1:]) if array.ndim > 1 else wide.shape
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide.reshape(shape), name))
        attributes(N=columns)(graph, node)
        graph.output[0].type.tensor_type.shape.dim[-1].dim_value = columns

    large = changed(folder, tmp_path / "large", widen)
    onnx.save(onnx.load(large / "model.onnx"), large / "model.onnx", save_as_external_data=True)
    contract = json.loads((large / "pard_rt.json").read_text())
    (large / "pard_rt.json").write_text(json.dumps({**contract, "vocab_size": columns}))
    ran = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, folder, large, str(spare)],
        capture_output=True,
        text=True,
    )
    assert "ModelError: The weights of a graph do not fit into memory" in ran.stderr, ran.stderr


def test_exported_scales_are_float16(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx").graph
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            scales = onnx.numpy_helper.to_array(weight_of(graph, node.input[2]))
            np.testing.assert_array_equal(scales, scales.astype(np.float16))
    assert json.loads((folder / "pard_rt.json").read_text())["weights"] in ("int4", "int8")


def table_of(folder: Path) -> tuple[onnx.GraphProto, onnx.NodeProto, onnx.NodeProto]:
    """The graph, the embedding, and the head that is tied to it."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    (table,) = (node for node in graph.node if node.op_type == "GatherBlockQuantized")
    (head,) = (node for node in graph.node if "logits" in node.output)
    return graph, table, head


def test_an_embedding_and_the_head_that_is_tied_to_it_are_one_table_on_disk(folder: Path) -> None:
    graph, table, head = table_of(folder)
    for one, other in ((table.input[0], head.input[1]), (table.input[2], head.input[2])):
        places = [
            {entry.key: entry.value for entry in weight_of(graph, name).external_data}
            for name in (one, other)
        ]
        assert places[0] == places[1] != {}
    assert not any(each.name.endswith("embed_tokens.weight") for each in graph.initializer)


def test_rows_of_a_table_are_onnxruntime_s(folder: Path) -> None:
    ours, theirs = (rows(opened(folder, own_matmul=own), 20) for own in (True, False))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_a_table_with_scales_that_are_no_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    (table,) = (node for node in model.graph.node if node.op_type == "GatherBlockQuantized")
    scales = weight_of(model.graph, table.input[2])
    numbers = onnx.numpy_helper.to_array(scales).copy()
    numbers[3] = np.nan
    scales.CopyFrom(onnx.numpy_helper.from_array(numbers, scales.name))
    out = tmp_path / "spoilt"
    shutil.copytree(folder, out)
    onnx.save(model, out / "model.onnx")
    with pytest.raises(pard_rt.FolderError, match=f"'{table.name}'.*finite"):
        opened(out)


def table_in_place_of_logits(
    folder: Path, out: Path, bits: int, block: int, offsets: str, ids: str
) -> tuple[Path, NDArray[np.float32]]:
    """Let the logits of a token be its row of a random quantized table; return the table too."""

    def over(numbers: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(numbers, block, axis=1)

    random = np.random.default_rng(bits * block)
    width, per_byte = VOCAB_SIZE, 8 // bits
    blocks = width // block
    scales = random.normal(size=(VOCAB_SIZE, blocks)).astype(np.float32)
    integers = random.integers(0, 1 << bits, (VOCAB_SIZE, blocks * block))
    points = random.integers(0, 1 << bits, (VOCAB_SIZE, blocks + blocks % per_byte))
    minima = random.normal(size=scales.shape).astype(np.float32)
    zeros = {"": np.full_like(points, 1 << bits - 1), "zero points": points, "minima": 0 * points}
    found = over(scales) * (integers - over(zeros[offsets][:, :blocks])).astype(np.float32)
    if offsets == "minima":
        found += over(minima)

    def packed(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        pairs = numbers[:, 0::2] + 16 * numbers[:, 1::2] if bits == 4 else numbers
        return pairs.astype(np.uint8)

    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    constants = {"t.table": packed(integers), "t.scales": scales}
    inputs = ["t.table", "t.ids", "t.scales"]
    if offsets == "zero points":
        inputs.append("t.points")
        constants["t.points"] = packed(points)
    elif offsets == "minima":
        inputs += ["", "t.minima"]
        constants["t.minima"] = minima
        constants["t.table"] = constants["t.table"].reshape(VOCAB_SIZE, blocks, -1)  # ours alone
    constants |= {"t.minus": np.int64([-1]), "t.end": np.int64([1 << 62]), "t.axis": np.int64([1])}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(*item[::-1]) for item in constants.items()
    )
    (last,) = (node for node in graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "t.unused"
    kind = onnx.TensorProto.INT32 if ids == "int32" else onnx.TensorProto.INT64
    settings = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Cast", ["input_ids"], ["t.ids"], to=kind),
            make(
                "GatherBlockQuantized",
                inputs,
                ["t.rows"],
                name="t.table",
                domain="com.microsoft",
                **settings,
            ),
            make("Mul", ["num_logits", "t.minus"], ["t.start"]),
            make("Slice", ["t.rows", "t.start", "t.end", "t.axis"], ["logits"]),
        ]
    )
    shutil.copytree(folder, out)
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx")
    return out, found


@pytest.mark.parametrize("ids", ["int64", "int32"])
@pytest.mark.parametrize("offsets", ["", "zero points", "minima"])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (8, 16), (8, 32)])
def test_rows_of_a_table_are_its_numbers(
    folder: Path, tmp_path: Path, bits: int, block: int, offsets: str, ids: str
) -> None:
    out, table = table_in_place_of_logits(folder, tmp_path / "out", bits, block, offsets, ids)
    model = opened(out)
    tokens = list(range(1, 60))
    item = pard_rt.ForwardItem(sequence=0, past_length=0, tokens=tokens, num_rows=len(tokens))
    np.testing.assert_array_equal(np.from_dlpack(model.forward([item])), table[tokens])
