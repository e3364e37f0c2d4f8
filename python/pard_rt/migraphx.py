"""What of a portable graph MIGraphX does not document: AMD's own list of ONNX operators as data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pard_rt.models.fields import read_json
from pard_rt.onnx_graph import Graph, Node, read_graph

# https://rocm.docs.amd.com/projects/AMDMIGraphX/en/docs-7.2.2/dev/onnx_operators.html. ROCm 7.2.4
# and the sources of 2.16 (May 2026) have the same table.
VERSION = "2.15"  # that of ROCm 7.2
OPSET = 19

_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
BiasGelu Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvInteger
ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear
Einsum Elu Equal Erf Exp Expand EyeLike FastGelu Flatten Floor GRU Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mod
Mul Multinomial Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearAdd
QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu
QLinearMatMul QLinearMul QLinearSigmoid QuantizeLinear RNN RandomNormal RandomNormalLike
RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid
Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())

# Inputs whose values have to be known before the graph runs: what the page calls variable or
# dynamic, and does not support. That of shapes is known, since every one is compiled for itself.
KNOWN_INPUTS = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    **{f"Reduce{of}": (1,) for of in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")},
    **{f"Reduce{of}": (1,) for of in ("Prod", "Sum", "SumSquare")},
    "Reshape": (1,),
    "ReverseSequence": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
}

# Of the page's list for all operators; what it has for each it calls ONNX's own, and no limit.
_DOCUMENTED_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 18}
_TYPE_NAMES = {
    8: "STRING",
    14: "COMPLEX64",
    15: "COMPLEX128",
    16: "BFLOAT16",
    17: "FLOAT8E4M3FN",
    19: "FLOAT8E5M2",
    20: "FLOAT8E5M2FNUZ",
    21: "UINT4",
    22: "INT4",
    23: "FLOAT4E2M1",
}


def describe(folder: Path) -> str:
    """Say what MIGraphX would make of a portable ONNX folder, by what it documents.

    Returns
    -------
    str
        A line, or one and a further one for everything it does not document.

    Raises
    ------
    FolderError
        The graph cannot be read.
    """
    found = undocumented(read_graph(folder / str(read_json(folder / "pard_rt.json")["model"])))
    if not found:
        return f"nothing but what {VERSION} documents; not tried"
    return "\n".join([f"by what {VERSION} documents, not tried:", *found])


def undocumented(graph: Graph) -> list[str]:
    """Say what MIGraphX does not document of a graph, and what may become of that, a line each."""
    lines = []
    opset = graph.opsets.get("", 0)
    if opset > OPSET:
        lines.append(f"opset {opset}, where opsets up to {OPSET} are documented: may be refused")
    types = sorted(graph.element_types - _DOCUMENTED_TYPES)
    if types:
        names = ", ".join(_TYPE_NAMES.get(kind, f"data type {kind}") for kind in types)
        lines.append(f"{names}: no documented type; what it touches may be refused")
    unknown = Counter(_name(node) for node in graph.nodes if not _documented(node))
    if unknown:
        lines.append(f"{_listed(unknown)}: no documented operator; left to the CPU")
    known = _known_values(graph)
    variable = [
        node
        for node in graph.nodes
        if _documented(node) and any(x and x not in known for x in _inputs_to_know(node))
    ]
    if variable:
        listed = _listed(Counter(node.op_type for node in variable))
        lines.append(f"{listed}: needs inputs that are constants; left to the CPU")
    left = [node for node in graph.nodes if not _documented(node)] + variable
    behind = _behind(left, graph)
    if behind:
        lines.append(f"{_listed(behind)} behind that: a graph apart, or left to the CPU too")
    return lines


def _documented(node: Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in OPERATORS


def _name(node: Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _inputs_to_know(node: Node) -> list[str]:
    return [node.inputs[i] for i in KNOWN_INPUTS.get(node.op_type, ()) if i < len(node.inputs)]


def _known_values(graph: Graph) -> set[str]:
    """Values that follow from weights and shapes alone; nodes are in the order they run in."""
    known = set(graph.initializers)
    for node in graph.nodes:
        if node.op_type in ("Shape", "Size") or all(not x or x in known for x in node.inputs):
            known.update(node.outputs)
    return known


def _behind(left: list[Node], graph: Graph) -> Counter[str]:
    """Count the nodes that wait for what the nodes in `left` compute."""
    late = {name for node in left for name in node.outputs}
    behind: Counter[str] = Counter()
    for node in graph.nodes:
        if node not in left and not late.isdisjoint(node.inputs):
            late.update(node.outputs)
            behind[_name(node)] += 1
    return behind


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({counts[name]})" for name in sorted(counts))
