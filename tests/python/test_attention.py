"""Our kernel of GroupQueryAttention beside ONNX Runtime's, over all that a node may ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

import pard_rt
from conftest import TinyModels
from tiny_models import NUM_TOKENS

Change = Callable[[onnx.GraphProto, NodeProto], None]


def changed(folder: Path, to: Path, change: Change) -> Path:
    """Copy a folder, its nodes of attention changed."""
    shutil.copytree(folder, to)
    model = onnx.load(to / "model.onnx")
    for node in list(model.graph.node):
        if node.op_type == "GroupQueryAttention":
            change(model.graph, node)
    onnx.save(model, to / "model.onnx")
    return to


def attributes(**values: float | int) -> Change:
    def change(graph: onnx.GraphProto, node: NodeProto) -> None:
        kept = [each for each in node.attribute if each.name not in values]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(*each) for each in values.items())

    return change


def split(graph: onnx.GraphProto, node: NodeProto) -> None:
    """Hand queries, keys and values over one by one."""
    heads, kv_heads = (
        next(each.i for each in node.attribute if each.name == name)
        for name in ("num_heads", "kv_num_heads")
    )
    parts = [f"{node.name}.{part}" for part in ("query", "key", "value")]
    sizes = helper.make_tensor(
        f"{node.name}.sizes", onnx.TensorProto.INT64, [3], [16 * heads, *[16 * kv_heads] * 2]
    )
    graph.initializer.append(sizes)
    splitting = helper.make_node("Split", [node.input[0], sizes.name], parts, axis=-1)
    graph.node.insert(list(graph.node).index(node), splitting)
    node.input[:3] = parts


def half_rotary(graph: onnx.GraphProto, node: NodeProto) -> None:
    """Turn only the first half of a head's dimensions."""
    for at in (7, 8):
        name = f"{node.input[at]}.half"
        if all(each.name != name for each in graph.initializer):
            table = next(each for each in graph.initializer if each.name == node.input[at])
            values = onnx.numpy_helper.to_array(table)
            half = np.ascontiguousarray(values[:, : values.shape[1] // 2])
            graph.initializer.append(onnx.numpy_helper.from_array(half, name))
        node.input[at] = name


def sinks(graph: onnx.GraphProto, node: NodeProto) -> None:
    """Give every head a sink."""
    heads = next(each.i for each in node.attribute if each.name == "num_heads")
    values = np.linspace(-3, 3, heads, dtype=np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(values, f"{node.name}.sinks"))
    node.input.extend([""] * (11 - len(node.input)) + [f"{node.name}.sinks"])


def both(*changes: Change) -> Change:
    def change(graph: onnx.GraphProto, node: NodeProto) -> None:
        for each in changes:
            each(graph, node)

    return change


# past and number of new rows: a prompt, several rows, rows again behind a rewind, and single ones
STEPS = [(0, 70), (70, 9), (74, 14), (88, 1), (89, 1), (90, 30)]


def rows(model: pard_rt.OnnxModel, steps: Sequence[tuple[int, int]] = STEPS) -> NDArray[np.float32]:
    """Logits of the rows of each step."""
    tokens = np.random.default_rng(0).integers(0, NUM_TOKENS, sum(steps[-1])).tolist()
    logits = []
    for past, count in steps:
        new = tokens[past : past + count]
        item = pard_rt.ForwardItem(sequence=0, past_length=past, tokens=new, num_rows=count)
        logits.append(np.array(model.forward([item])))
    return np.concatenate(logits)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("qwen2", attributes()),
        ("qwen2", attributes(softcap=2.0)),
        ("qwen2", attributes(scale=0.5)),
        ("qwen2", attributes(rotary_interleaved=1)),
        ("qwen2", attributes(do_rotary=0)),
        ("qwen2", attributes(local_window_size=-1, smooth_softmax=0)),
        ("qwen2", attributes(local_window_size=1)),
        ("qwen2", attributes(local_window_size=8)),
        ("qwen2", attributes(local_window_size=100)),
        ("qwen2", attributes(smooth_softmax=1)),
        ("qwen2", both(attributes(local_window_size=8, softcap=2.0), sinks)),
        ("qwen2", both(attributes(smooth_softmax=1), split, sinks)),
        ("qwen2", both(attributes(do_rotary=0), sinks)),
        ("qwen2", attributes(softcap=1e5)),
        ("qwen2", split),
        ("qwen3", half_rotary),
        ("gemma", attributes()),
    ],
    ids=[
        "-",
        "softcap",
        "scale",
        "interleaved",
        "no-rotary",
        "off",
        "window-1",
        "window-8",
        "window-100",
        "smooth",
        "window-cap-sinks",
        "smooth-split-sinks",
        "sinks",
        "cap",
        "split",
        "half",
        "gemma",
    ],
)
def test_rows_are_those_of_onnxruntime(
    tiny_models: TinyModels, tmp_path: Path, architecture: str, change: Change
) -> None:
    folder = changed(tiny_models.folder(architecture, "gqa"), tmp_path / "model", change)
    own, other = (
        pard_rt.OnnxModel(folder, threads=1, own_attention=own, probe=False)
        for own in (True, False)
    )
    assert (own.own_attention, other.own_attention) == (True, False)
    expected = rows(other)
    np.testing.assert_allclose(rows(own), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("window", [-1, 40, 600])
def test_long_texts_are_those_of_onnxruntime(
    tiny_models: TinyModels, tmp_path: Path, window: int
) -> None:
    long = tiny_models.folder("qwen2", "gqa", max_position_embeddings=1200)
    change = both(attributes(local_window_size=window), sinks)
    folder = changed(long, tmp_path / "model", change)
    own, again, other = (
        pard_rt.OnnxModel(folder, threads=threads, own_attention=own, probe=False)
        for own, threads in ((True, 1), (True, 2), (False, 1))
    )
    steps = [(0, 1000), (1000, 9), (1005, 1), (1006, 40)]
    found, expected = rows(own, steps), rows(other, steps)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(rows(again, steps), found)


def test_a_target_with_windows_and_sinks_is_exact(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = changed(tiny_models.folder("mistral_window", "gqa"), tmp_path / "model", sinks)
    model = pard_rt.OnnxModel(folder, threads=1)
    assert model.own_attention
    assert model.exact
    assert [model.padding(count) for count in range(1, 17)] == [0] * 16
    draft = tiny_models.folder("mistral_window", "gqa")
    plain, drafted = (
        pard_rt.Generator(folder, each, num_speculative_tokens=4)
        .generate([1, 5, 9, 30], max_new_tokens=40, eos_token_ids=[])
        .token_ids
        for each in (None, draft)
    )
    assert len(set(plain)) > 4
    assert drafted == plain


def test_what_our_kernel_lacks_is_left_to_onnxruntime(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    drops = attributes(local_window_size=8, sliding_window_cache=1)
    folder = changed(tiny_models.folder("qwen2", "gqa"), tmp_path / "model", drops)
    model = pard_rt.OnnxModel(folder, threads=1, probe=False)
    assert not model.own_attention
    assert np.isfinite(rows(model)).all()


def test_lengths_behind_the_last_cosine_are_refused(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    def cut(graph: onnx.GraphProto, node: NodeProto) -> None:
        for at in (7, 8):
            table = next(each for each in graph.initializer if each.name == node.input[at])
            values = onnx.numpy_helper.to_array(table)[:50]
            table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))

    folder = changed(tiny_models.folder("qwen2", "gqa"), tmp_path / "model", cut)
    with pytest.raises(pard_rt.ModelError, match="behind the last cosine"):
        rows(pard_rt.OnnxModel(folder, threads=1, probe=False))
