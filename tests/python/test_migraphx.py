"""What is said of a portable folder on MIGraphX, without MIGraphX."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from conftest import TinyModels
from pard_rt import Decoder, OnnxModel
from pard_rt.cli import main
from pard_rt.errors import FolderError, InvalidArgumentError
from pard_rt.exporter import Weights, export
from pard_rt.migraphx import KNOWN_INPUTS, OPERATORS, OPSET, undocumented
from pard_rt.onnx_graph import read_graph

SLICE = "Slice (1): needs inputs that are constants; left to the CPU"
HEAD = "MatMul (1) behind that: a graph apart, or left to the CPU too"


@pytest.mark.parametrize(
    ("weights", "more"),
    [
        ("fp32", []),
        ("fp16", []),
        ("int8", ["opset 21"]),
        ("int4", ["opset 21", "INT4: no documented type"]),
    ],
)
def test_exported_graphs(weights: Weights, more: list[str], tiny_models: TinyModels) -> None:
    """All but one node of them is documented: the rows of the LM head are a value's to say."""
    folder = tiny_models.folder("llama", "portable", weights, num_hidden_layers=1)
    *first, node, behind = undocumented(read_graph(folder / "model.onnx"))
    assert (node, behind) == (SLICE, HEAD)
    assert len(first) == len(more)
    assert all(line.startswith(start) for line, start in zip(first, more, strict=True))


@pytest.mark.parametrize("architecture", ["qwen3", "mistral_window", "gemma"])
def test_other_architectures(architecture: str, tiny_models: TinyModels) -> None:
    """Shapes count as known, or a window's Range would not."""
    folder = tiny_models.folder(architecture, "portable")
    assert undocumented(read_graph(folder / "model.onnx")) == [SLICE, HEAD]


def test_a_head_on_all_rows_has_nothing_behind_it(tmp_path: Path, tiny_models: TinyModels) -> None:
    checkpoint = tiny_models.checkpoint("llama", num_hidden_layers=1)
    out = export(checkpoint, tmp_path / "out", form="portable", head_on_all_rows=True).folder
    assert undocumented(read_graph(out / "model.onnx")) == [SLICE]
    usual = tiny_models.folder("llama", "portable", num_hidden_layers=1)
    texts = []
    for folder, static in ((usual, False), (out, False), (out, True)):
        decoder = Decoder(OnnxModel(folder, threads=1, static_shapes=static), prefill_chunk=16)
        sequence = decoder.add(list(range(5, 45)), max_new_tokens=12)
        decoder.run()
        texts.append(sequence.generated.tolist())
    assert texts[0] == texts[1] == texts[2]
    with pytest.raises(InvalidArgumentError, match="form portable"):
        export(checkpoint, tmp_path / "gqa", head_on_all_rows=True)


def test_what_the_reader_sees_is_what_the_onnx_package_sees(tiny_models: TinyModels) -> None:
    file = tiny_models.folder("mistral_window", "portable") / "model.onnx"
    expected, graph = onnx.load(file, load_external_data=False), read_graph(file)
    assert [(n.op_type, n.domain, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op_type, n.domain, tuple(n.input), tuple(n.output)) for n in expected.graph.node
    ]
    assert graph.initializers == {tensor.name for tensor in expected.graph.initializer}
    assert graph.opsets == {entry.domain: entry.version for entry in expected.opset_import}


def save(tmp_path: Path, nodes: list[onnx.NodeProto], opset: int = OPSET) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["R", 4])
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", [x, n], [y], [one])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), file)
    return file


def test_everything_documented(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Add", ["shape", "one"], ["more"]),
        helper.make_node("Slice", ["x", "one", "more"], ["s"]),
        helper.make_node("Squeeze", ["s", ""], ["y"]),
    ]
    assert undocumented(read_graph(save(tmp_path, nodes))) == []


def test_everything_there_is_to_say(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Mish", ["b"], ["m"]),
        helper.make_node("Mish", ["m"], ["mm"]),
        helper.make_node("Gelu", ["mm"], ["g"], domain="com.microsoft"),
        helper.make_node("Neg", ["n"], ["minus"]),
        helper.make_node("Slice", ["g", "minus", "one"], ["s"]),
        helper.make_node("Add", ["s", "s"], ["y"]),
    ]
    found = undocumented(read_graph(save(tmp_path, nodes, OPSET + 1)))
    opset, types, operators, inputs, behind = found
    assert opset.startswith(f"opset {OPSET + 1}, where opsets up to {OPSET} are documented")
    assert types.startswith("BFLOAT16: no documented type")
    assert operators.startswith("Mish (2), com.microsoft.Gelu (1): no documented operator")
    assert inputs == SLICE
    assert behind == "Add (1) behind that: a graph apart, or left to the CPU too"


def test_the_list_names_operators() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    not_onnx = {"BiasGelu", "FastGelu"} | {name for name in OPERATORS if name.startswith("QLinear")}
    assert OPERATORS - known <= not_onnx
    assert set(KNOWN_INPUTS) <= OPERATORS


def test_files_that_are_no_graph(tmp_path: Path, tiny_models: TinyModels) -> None:
    graph = (
        tiny_models.folder("llama", "portable", num_hidden_layers=1) / "model.onnx"
    ).read_bytes()
    for content in (b"", b"no graph", graph[: len(graph) // 2], b"\x3a\xff", b"\xff" * 20):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(FolderError, match="an ONNX graph"):
            read_graph(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(FolderError, match="an ONNX graph"):
        read_graph(tmp_path / "model.onnx")
    with pytest.raises(FolderError, match="No such file"):
        read_graph(tmp_path / "none")


def test_commands_say_so(
    tmp_path: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_models.checkpoint("llama", num_hidden_layers=1)
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--form", "portable"]) == 0
    said = r"by what \d\.\d+ documents, not tried:\n +" + re.escape(SLICE)
    assert re.search(rf"^on MIGraphX +{said}\n", capsys.readouterr().out, re.MULTILINE)
    assert main(["info", str(out)]) == 0
    assert re.search(rf"^  migraphx +{said}\n", capsys.readouterr().out, re.MULTILINE)
    assert main(["check", str(out), str(out), "--max-new-tokens", "4", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    for role in ("target", "draft"):
        assert re.search(rf"^note +{role}: on MIGraphX +{said}\n", text, re.MULTILINE)

    gqa = tiny_models.folder("llama", "gqa", num_hidden_layers=1)
    assert main(["info", str(gqa)]) == 0
    assert not re.search(r"^  migraphx +by what", capsys.readouterr().out, re.MULTILINE)
    broken = Path(shutil.copytree(out, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"")
    assert main(["info", str(broken)]) == 2
    assert "expected: a graph in the file" in capsys.readouterr().err
