"""The models of onnx_models.py: one checkpoint, in every form that is compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]
Weights = Literal["fp32", "int8", "int4"]


@dataclass(frozen=True)
class Size:
    """Shape of the model, and how much is measured of it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    pasts: tuple[int, int]  # lengths of the past in the table of forwards
    openings: int  # times the models are opened anew, everything being measured after each
    sweeps: int  # times every forward is run after one opening
    blocks: int  # of tokens, by which decoders take turns
    block: int  # tokens of one


SIZES = {
    "tiny": Size(64, 96, 2, 4, 2, 512, (16, 64), 2, 3, 4, 4),
    "317m": Size(1024, 3072, 20, 16, 8, 32_000, (256, 2048), 3, 8, 12, 8),
}
MAX_LENGTH = 4096
PROMPT = 64
GENAI = "onnxruntime-genai"


@dataclass(frozen=True)
class Graph:
    """One of the graphs that are compared."""

    name: str
    weights: Weights
    maker: Literal["gqa", "portable", "builder"]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.maker}-{self.weights}"


GRAPHS = (
    Graph("gqa, fp32", "fp32", "gqa"),
    Graph("portable, fp32", "fp32", "portable"),
    Graph("builder, fp32", "fp32", "builder"),
    Graph("gqa, int8", "int8", "gqa"),
    Graph("portable, int8", "int8", "portable"),
    Graph("gqa, int4", "int4", "gqa"),
    Graph("portable, int4", "int4", "portable"),
    Graph("builder, int4", "int4", "builder"),
)
# above, below: their ratio is reported
RATIOS = (
    ("portable, fp32", "gqa, fp32"),
    ("portable, int8", "gqa, int8"),
    ("portable, int4", "gqa, int4"),
    ("gqa, fp32", "builder, fp32"),
    ("gqa, int4", "builder, int4"),
)


def say(text: str) -> None:
    """Print a line with the load before it."""
    print(f"[load {os.getloadavg()[0]:.1f}] {text}", flush=True)


def make_checkpoint(folder: Path, size: Size) -> None:
    """Write a Llama with random weights, and a byte-level tokenizer as wide as its embedding."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=size.vocab - 2,
        eos_token_id=size.vocab - 1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"filler{i}" for i in range(size.vocab - len(pieces) - 2)]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def count_parameters(size: Size) -> int:
    """Weights of the model, norms left out."""
    kv = size.hidden * size.kv_heads // size.heads
    layer = size.hidden * (2 * size.hidden + 2 * kv + 3 * size.intermediate)
    return size.layers * layer + 2 * size.vocab * size.hidden


def make_graph(graph: Graph, checkpoint: Path, folder: Path) -> None:
    """Export the checkpoint, or run the model builder on it."""
    if graph.maker == "builder":
        unfinished = folder.with_name(f"{folder.name}.partial")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += [
            "-i",
            str(checkpoint),
            "-o",
            str(unfinished),
            "-c",
            str(folder.parent / "cache"),
        ]
        command += ["-p", graph.weights, "-e", "cpu"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        unfinished.rename(folder)
    else:
        from pard_rt.exporter import export

        export(checkpoint, folder, form=graph.maker, weights=graph.weights)


def make_models(work: Path, size: Size) -> None:
    """Make in `work` what is not there yet."""
    checkpoint = work / "checkpoint"
    if not (checkpoint / "tokenizer.json").exists():
        say("the checkpoint")
        make_checkpoint(checkpoint, size)
    for graph in GRAPHS:
        if not (work / graph.folder).exists():
            say(f"the graph {graph.name}")
            make_graph(graph, checkpoint, work / graph.folder)


def count_operators(folder: Path) -> dict[str, int]:
    """Operators of the graph as written, before ONNX Runtime optimises it."""
    import onnx

    (file,) = folder.glob("*.onnx")
    graph = onnx.load(file, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())
