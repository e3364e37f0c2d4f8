"""What an exported model costs on a CPU: our graphs, the model builder's, and plain decoding.

A Llama with seeded random weights is exported in every form and built by onnxruntime-genai's model
builder. Whatever is compared takes turns within one process, a forward or a few tokens at a time,
so that a busy machine slows all of it alike.

    python benchmarks/onnx_models.py --size 317m --out docs/benchmarks/onnx.json

writes the numbers and, beside them, the page made of them. `--only` measures one part again,
`--page-only` writes the page again.
Two sessions over one graph differ in speed by several percent, by where their weights happen to
lie, so everything is opened several times. Models stay in `--work` for the next run: remove it
after a change to the exporter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pard_rt

Json = dict[str, Any]
Weights = Literal["fp32", "int8", "int4"]

ROWS = (1, 2, 5, 9, 13, 17)
PROFILED_ROWS = (1, 9)


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


# Models ------------------------------------------------------------------------------------------


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


# Forwards ----------------------------------------------------------------------------------------


def open_model(folder: Path, *, threads: int = 1, **options: Any) -> pard_rt.OnnxModel:
    """Open a folder; unless `exact` is asked for, single rows and integer weights stay as such."""
    return pard_rt.OnnxModel(folder, threads=threads, **{"exact": False, **options})


def time_forward(model: pard_rt.OnnxModel, past: int, tokens: Sequence[int]) -> float:
    """Milliseconds of one forward with logits for every row, over a sequence named by its past."""
    item = pard_rt.ForwardItem(sequence=past, past_length=past, tokens=tokens, num_rows=len(tokens))
    start = time.perf_counter()
    model.forward([item])
    return (time.perf_counter() - start) * 1e3


def prefill(model: pard_rt.OnnxModel, past: int, tokens: Sequence[int]) -> None:
    """Give the sequence named by its past that many rows, in chunks."""
    for begin in range(0, past, 256):
        chunk = tokens[begin : min(begin + 256, past)]
        model.forward(
            [pard_rt.ForwardItem(sequence=past, past_length=begin, tokens=chunk, num_rows=0)]
        )


def take_turns(runs: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Call every run once to warm up, then `times` times, in an order drawn anew every time."""
    names = list(runs)
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + times):
        order.shuffle(names)
        for name in names:
            value = runs[name]()
            if turn > 0:
                found[name].append(value)
    return found


Openings = list[dict[str, list[float]]]  # times by name, opening after opening


def compare(openings: Openings, pairs: Sequence[tuple[str, str]]) -> Json:
    """Summaries of all times, and ratios of neighbours: their median, and the range by opening."""
    names = list(openings[0])
    times = {name: [value for once in openings for value in once[name]] for name in names}
    ratios = {}
    for above, below in pairs:
        by_opening = [
            median(a / b for a, b in zip(once[above], once[below], strict=True))
            for once in openings
        ]
        ratios[f"{above} / {below}"] = {
            "median": round(median(by_opening), 3),
            "range": [round(min(by_opening), 3), round(max(by_opening), 3)],
            "of_minima": round(min(times[above]) / min(times[below]), 3),
        }
    return {"ms": {name: summary(values) for name, values in times.items()}, "ratios": ratios}


def summary(values: Sequence[float]) -> Json:
    """Median, least and number of them."""
    return {"median": round(median(values), 4), "min": round(min(values), 4), "n": len(values)}


def measure_forwards(work: Path, size: Size) -> Json:
    """Milliseconds by rows, past and graph, on one thread."""
    openings, loads = [], []
    for _ in range(size.openings):
        openings.append(forwards_in_turns(work, size))
        loads.append(load())
    cells = [
        {"past": past, "rows": rows, **compare([once[past, rows] for once in openings], RATIOS)}
        for past, rows in openings[0]
    ]
    for cell in cells:
        say(f"{cell['rows']} rows over {cell['past']}: {format_ms(cell)}")
    return {"cells": cells, "load": [min(loads), max(loads)]}


def forwards_in_turns(work: Path, size: Size) -> dict[tuple[int, int], dict[str, list[float]]]:
    """Milliseconds of every forward by past and rows, then graph; the models are opened for it."""
    tokens = random.Random(0).choices(range(size.vocab), k=max(size.pasts) + max(ROWS))
    models = {graph.name: open_model(work / graph.folder) for graph in GRAPHS}
    for model in models.values():
        for past in size.pasts:
            prefill(model, past, tokens)
    found = {}
    for past in size.pasts:
        for rows in ROWS:
            new = tokens[past : past + rows]
            runs = {name: partial(time_forward, m, past, new) for name, m in models.items()}
            found[past, rows] = take_turns(runs, size.sweeps)
    return found


def format_ms(cell: Json) -> str:
    """Medians in one line."""
    return ", ".join(f"{name} {ms['median']:.1f}" for name, ms in cell["ms"].items())


def measure_binding(work: Path) -> float:
    """Microseconds of a call of a graph that has next to nothing to do: the binding costs less."""
    folder = work / "tiny"
    if not folder.exists():
        make_checkpoint(work / "tiny-checkpoint", SIZES["tiny"])
        make_graph(GRAPHS[0], work / "tiny-checkpoint", folder)
    model = open_model(folder)
    model.forward([pard_rt.ForwardItem(sequence=8, past_length=0, tokens=[1] * 8, num_rows=0)])
    return round(median(time_forward(model, 8, [1]) for _ in range(2000)) * 1e3, 1)


# Opening and memory ------------------------------------------------------------------------------


def measure_open(work: Path, size: Size) -> Json:
    """Seconds to open, MiB held: every model in its own processes, its files in the page cache."""
    found: dict[str, list[Json]] = {graph.name: [] for graph in GRAPHS}
    for turn in range(size.openings + 1):
        for graph in GRAPHS:
            command = [sys.executable, __file__, "--open", str(work / graph.folder)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if turn > 0:
                found[graph.name].append(json.loads(output))
    return {
        "models": {
            name: {
                "seconds": summary([once["seconds"] for once in times]),
                "peak_mib": max(once["peak_mib"] for once in times),
                "held_mib": max(once["held_mib"] for once in times),
                "mapped_mib": max(once["mapped_mib"] for once in times),
                "file_mib": sum(f.stat().st_size for f in folder.glob("model.onnx*")) >> 20,
            }
            for name, times in found.items()
            for folder in [work / next(g.folder for g in GRAPHS if g.name == name)]
        },
        "load": [load()],
    }


def report_open(folder: Path) -> None:
    """Open one model, run it, and print what this process took; its interpreter is left out."""
    before = read_status()
    start = time.perf_counter()
    model = open_model(folder)
    seconds = time.perf_counter() - start
    tokens = [i % 256 for i in range(MAX_LENGTH)]
    prefill(model, 32, tokens)
    time_forward(model, 32, tokens[: max(ROWS)])
    after = read_status()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_mib": (after["VmHWM"] - before["VmRSS"]) >> 10,
                "held_mib": (after["RssAnon"] - before["RssAnon"]) >> 10,
                "mapped_mib": (after["RssFile"] - before["RssFile"]) >> 10,
            }
        )
    )


def read_status() -> dict[str, int]:
    """Kibibytes by name, of this process."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


# Plain decoding ----------------------------------------------------------------------------------


class OurDecoder:
    """pard-rt without a draft, token by token."""

    def __init__(self, model: pard_rt.OnnxModel, prompt: list[int], max_new_tokens: int) -> None:
        self._decoder = pard_rt.Decoder(model)
        self._sequence = self._decoder.add(prompt, max_new_tokens=max_new_tokens)

    def step(self) -> None:
        """Decode a token, the prompt before the first."""
        self._decoder.step()

    @property
    def ids(self) -> list[int]:
        """Tokens decoded so far."""
        return [int(token) for token in self._sequence.generated]


class GenaiDecoder:
    """onnxruntime-genai's own Generator, token by token."""

    def __init__(self, folder: Path, threads: int, prompt: list[int], max_new_tokens: int) -> None:
        import onnxruntime_genai as og  # type: ignore[import-untyped]

        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._prompt = prompt
        model = og.Model(config)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + max_new_tokens, do_sample=False)
        self._generator = og.Generator(model, params)
        self._started = False

    def step(self) -> None:
        """Decode a token, the prompt before the first."""
        if not self._started:
            self._generator.append_tokens(self._prompt)
            self._started = True
        self._generator.generate_next_token()

    @property
    def ids(self) -> list[int]:
        """Tokens decoded so far."""
        return [int(token) for token in self._generator.get_sequence(0)][len(self._prompt) :]


def measure_decoding(work: Path, size: Size) -> Json:
    """Milliseconds per token after a prompt, pard-rt and onnxruntime-genai in turns."""
    cases, loads = [], []
    for weights in ("fp32", "int4"):
        for threads in (1, 2):
            openings: Openings = []
            same_ids: Json = {}
            for _ in range(size.openings):
                times, same_ids = decode_in_turns(work, size, weights, threads)
                openings.append(times)
                loads.append(load())
            pairs = [(name, GENAI) for name in openings[0] if name != GENAI]
            case = {
                "weights": weights,
                "threads": threads,
                **compare(openings, pairs),
                "same_ids": same_ids,
            }
            say(f"decoding {weights}, {threads} threads: {format_ms(case)}")
            cases.append(case)
    tokens = size.block * (1 + size.blocks)
    return {"cases": cases, "prompt": PROMPT, "tokens": tokens, "load": [min(loads), max(loads)]}


def decode_in_turns(
    work: Path, size: Size, weights: str, threads: int
) -> tuple[dict[str, list[float]], Json]:
    """Milliseconds per token, block by block; and who decoded what onnxruntime-genai decoded."""
    prompt = random.Random(1).choices(range(size.vocab), k=PROMPT)
    total = size.block * (1 + size.blocks)
    builder, own = work / f"builder-{weights}", work / f"gqa-{weights}"

    def ours(folder: Path, **options: Any) -> OurDecoder:
        return OurDecoder(open_model(folder, threads=threads, **options), prompt, total)

    decoders: dict[str, OurDecoder | GenaiDecoder] = {
        GENAI: GenaiDecoder(builder, threads, prompt, total),
        "pard-rt": ours(builder),
        "pard-rt, own graph": ours(own),
    }
    if threads > 1:
        decoders["pard-rt, spinning"] = ours(builder, spinning=True)
    if weights != "fp32":
        decoders["pard-rt, exact"] = ours(builder, exact=True)

    def block(decoder: OurDecoder | GenaiDecoder) -> float:
        start = time.perf_counter()
        for _ in range(size.block):
            decoder.step()
        return (time.perf_counter() - start) * 1e3 / size.block

    times = take_turns({name: partial(block, d) for name, d in decoders.items()}, size.blocks)
    ids = {name: decoder.ids for name, decoder in decoders.items()}
    assert len(ids[GENAI]) == total
    for name in ("pard-rt", "pard-rt, spinning"):
        assert ids.get(name, ids[GENAI]) == ids[GENAI], f"{name} decodes other tokens ({weights})"
    same = {name: found == ids[GENAI] for name, found in ids.items()}
    return times, {**same, "distinct": len(set(ids[GENAI]))}


# Profiles ----------------------------------------------------------------------------------------


def measure_profiles(work: Path, size: Size) -> Json:
    """Milliseconds by operator of a forward of both forms, after ONNX Runtime's optimisations."""
    return {
        "past": max(size.pasts),
        "rows": {
            str(rows): {
                graph.name: profile(work / graph.folder, size, graph.maker, rows)
                for graph in GRAPHS[:2]
            }
            for rows in PROFILED_ROWS
        },
        "load": [load()],
    }


def profile(folder: Path, size: Size, form: str, rows: int) -> dict[str, float]:
    """Milliseconds by operator, in ONNX Runtime's own count."""
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    past, head_dim = max(size.pasts), size.hidden // size.heads
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder.parent / f"profile-{form}")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    binding = session.io_binding()
    feeds: dict[str, Any] = {
        "input_ids": np.ones((1, rows), np.int64),
        "num_logits": np.array([rows]),
    }
    outputs: dict[str, Any] = {"logits": np.empty((1, rows, size.vocab), np.float32)}
    if form == "gqa":
        feeds["seqlens_k"] = np.array([past + rows - 1], np.int32)
        feeds["total_sequence_length"] = np.array(past + rows, np.int32)
        shape, written = (1, size.kv_heads, 2 * past, head_dim), "present"
    else:
        feeds["position_ids"] = np.arange(past, past + rows)[None]
        hidden = np.triu(np.ones((rows, past + rows), bool), 1 + past)
        bias = np.where(hidden, np.finfo(np.float32).min, np.float32(0))
        feeds["attention_bias"] = bias[None, None]
        shape, written = (1, past, size.kv_heads, head_dim), "new"
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    for i in range(size.layers):
        for part in ("key", "value"):
            feeds[f"past.{i}.{part}"] = buffer = values.copy()
            outputs[f"{written}.{i}.{part}"] = (
                buffer if form == "gqa" else np.empty((1, rows, *shape[2:]), np.float32)
            )
    for bind, arrays in (
        (binding.bind_ortvalue_input, feeds),
        (binding.bind_ortvalue_output, outputs),
    ):
        for name, array in arrays.items():
            bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for _ in range(1 + size.openings * size.sweeps):
        session.run_with_iobinding(binding)
    file = Path(session.end_profiling())
    events = json.loads(file.read_text())
    file.unlink()
    by_node: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["name"])
            by_node.setdefault(key, []).append(event["dur"] / 1e3)
    found: dict[str, float] = {}
    for (operator, _), durations in by_node.items():
        found[operator] = found.get(operator, 0) + median(durations[1:])
    return {operator: round(ms, 3) for operator, ms in sorted(found.items())}


# Results -----------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line with the load before it."""
    print(f"[load {os.getloadavg()[0]:.1f}] {text}", flush=True)


def load() -> float:
    """Average load of the last minute."""
    return round(os.getloadavg()[0], 1)


def machine() -> str:
    """Processor in words."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    named = {name.strip(): value.strip() for name, value in fields.items()}
    cores = {1: "one core", 2: "two cores"}.get(os.cpu_count() or 1, f"{os.cpu_count()} cores")
    wide = " (AVX-512)" if "avx512f" in named.get("flags", "") else ""
    return f"{cores} of an {named.get('model name', 'unknown processor')}{wide}, shared"


def describe(work: Path, name: str) -> Json:
    """Say what is measured, and on what."""
    size = SIZES[name]
    return {
        "machine": machine(),
        "versions": {
            package: version(package)
            for package in ("onnxruntime", "onnxruntime-genai", "torch", "transformers")
        },
        "size": name,
        "parameters": count_parameters(size),
        "shape": {field: getattr(size, field) for field in Size.__annotations__},
        "operators": {graph.name: count_operators(work / graph.folder) for graph in GRAPHS},
        "binding_us": measure_binding(work),
    }


MEASURES: dict[str, Callable[[Path, Size], Json]] = {
    "open": measure_open,
    "decoding": measure_decoding,
    "forwards": measure_forwards,
    "profiles": measure_profiles,
}


# Page --------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def format_ratio(ratio: Json) -> str:
    """Median, and its range over the openings."""
    low, high = ratio["range"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def forwards_table(forwards: Json, past: int) -> str:
    """Medians of all graphs."""
    names = [graph.name for graph in GRAPHS]
    cells = [cell for cell in forwards["cells"] if cell["past"] == past]
    rows = (
        [
            cell["rows"],
            *(f"{cell['ms'][n]['median']:.0f} / {cell['ms'][n]['min']:.0f}" for n in names),
        ]
        for cell in cells
    )
    return table(["rows", *names], rows)


def ratios_table(forwards: Json) -> str:
    """Ratios between graphs."""
    names = [f"{above} / {below}" for above, below in RATIOS]
    rows = (
        [cell["past"], cell["rows"], *(format_ratio(cell["ratios"][name]) for name in names)]
        for cell in forwards["cells"]
    )
    return table(["past", "rows", *names], rows)


def decoding_table(decoding: Json) -> str:
    """Time per token of all decoders, and their ratio to onnxruntime-genai's."""
    rows: list[list[object]] = []
    for case in decoding["cases"]:
        for name, ms in case["ms"].items():
            ratio = case["ratios"].get(f"{name} / {GENAI}")
            rows.append(
                [
                    case["weights"],
                    case["threads"],
                    name,
                    f"{ms['median']:.1f} / {ms['min']:.1f}",
                    format_ratio(ratio) if ratio else "",
                    "yes" if case["same_ids"][name] else "no",
                ]
            )
    header = ["weights", "threads", "decoder", "ms per token", "to onnxruntime-genai", "same ids"]
    return table(header, rows)


def open_table(opened: Json) -> str:
    """Time to open and memory."""
    rows = (
        [
            name,
            f"{m['seconds']['median']:.1f} / {m['seconds']['min']:.1f}",
            *(m[key] for key in ("file_mib", "held_mib", "mapped_mib", "peak_mib")),
        ]
        for name, m in opened["models"].items()
    )
    return table(["graph", "seconds", "files", "own", "mapped", "peak"], rows)


def profile_table(profiles: Json) -> str:
    """Operators that take the most, and the rest."""
    columns = [(rows, name, ms) for rows, by in profiles["rows"].items() for name, ms in by.items()]
    most: Counter[str] = Counter()
    for _, _, ms in columns:
        most.update(ms)
    shown = [name for name, _ in most.most_common(8)]
    lines = [[name, *(f"{ms.get(name, 0):.1f}" for _, _, ms in columns)] for name in shown]
    rest = [sum(v for name, v in ms.items() if name not in shown) for _, _, ms in columns]
    lines.append(["all others", *(f"{ms:.1f}" for ms in rest)])
    lines.append(["sum", *(f"{sum(ms.values()):.1f}" for _, _, ms in columns)])
    return table(["operator", *(f"{name}, rows: {rows}" for rows, name, _ in columns)], lines)


def prose(text: str) -> str:
    """Refill a paragraph."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def page(found: Json) -> str:
    """Everything, in words and tables."""
    shape, versions, decoding = found["shape"], found["versions"], found["decoding"]
    short, long = shape["pasts"]
    loads = [load for part in MEASURES for load in found[part]["load"]]
    parts = [
        "# What an exported model costs on a CPU",
        prose(f"""
            `python benchmarks/onnx_models.py --size {found["size"]}` on {found["machine"]} with
            other work: load {min(loads)} to {max(loads)}. ONNX Runtime {versions["onnxruntime"]},
            onnxruntime-genai {versions["onnxruntime-genai"]}. The ratios move less than the times.
            """),
        prose(f"""
            The model is a Llama of {found["parameters"] / 1e6:.0f}M seeded random parameters:
            {shape["layers"]} layers of width {shape["hidden"]}, {shape["heads"]} heads over
            {shape["kv_heads"]} of keys and values, {shape["vocab"]:,} tokens. *gqa* and *portable*
            are the two forms of `pard-rt export`, *builder* is onnxruntime-genai's model builder.
            Quantized graphs run on integer kernels here, by `exact=False` where the form is
            portable: an exact target of that form is opened as fp32.
            """),
        prose(f"""
            What is compared takes turns in one process, in random order, and everything is opened
            {shape["openings"]} times: two sessions over one graph can differ by a tenth,
            by where their weights happen to lie. Ratios are those of neighbours in time: their
            median, and in brackets the lowest and the highest of one opening.
            Times are median / minimum.
            """),
        "## Forwards",
        prose(f"""
            Milliseconds of a forward with logits for every row, one thread, through
            `OnnxModel.forward` from Python. The call itself costs less than
            {found["binding_us"]:.0f} us, which a graph of two layers of width 64 takes in all.
            """),
        f"Over {short:,} past tokens:",
        forwards_table(found["forwards"], short),
        f"Over {long:,}:",
        forwards_table(found["forwards"], long),
        "Between graphs:",
        ratios_table(found["forwards"]),
        "## Where the two forms differ",
        prose(f"""
            Milliseconds by operator, one thread, {long:,} past tokens, after ONNX Runtime's
            optimisations, in its own count:
            """),
        profile_table(found["profiles"]),
        prose("""
            The portable form keeps the heads of a row side by side, so that a past is a prefix of
            its buffer. Its `Transpose` brings them apart for the products with keys and values,
            which are in `MatMul` and `FusedMatMul`; `GroupQueryAttention` does both for the other.
            """),
        "## Plain decoding",
        prose(f"""
            Milliseconds per token after a prompt of {decoding["prompt"]}, {decoding["tokens"]}
            tokens, no draft. *onnxruntime-genai* is its `Generator` over the builder's folder,
            *pard-rt* is `Decoder` over the same folder with `exact=False`, *own graph* that
            over the gqa export. *exact* is what pard-rt does by default: it runs single rows of a
            quantized graph as two. *spinning* lets idle threads spin.
            """),
        decoding_table(decoding),
        prose("""
            That pard-rt and onnxruntime-genai give the same ids over one graph is asserted. Another
            graph, or two rows for one, may round a near-tie the other way. Idle threads that spin
            answer sooner where a core is theirs, and take it from the others where it is not; ONNX
            Runtime's own default is to spin, so on two threads *spinning* is the row to compare. A
            busy machine moves even these ratios: read the brackets before the medians.
            """),
        "## Opening",
        prose("""
            Seconds to open, and MiB: every model in processes of its own, its files in the page
            cache, the interpreter left out. *own* is memory of the process; *mapped* are pages of
            files, which the system can take back; *peak* counts both.
            """),
        open_table(found["open"]),
    ]
    elsewhere = {
        part: found[part]["machine"]
        for part in MEASURES
        if found[part]["machine"] != found["machine"]
    }
    if elsewhere:
        machines = "; ".join(f"*{part}* on {name}" for part, name in elsewhere.items())
        parts.insert(2, prose(f"Parts measured at another time: {machines}."))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What an exported model costs on a CPU.")
    parser.add_argument("--size", choices=SIZES, default="317m")
    parser.add_argument("--out", type=Path, help="the JSON file; the page goes beside it")
    parser.add_argument("--work", type=Path, help="where the models are kept")
    parser.add_argument("--only", choices=MEASURES, help="measure a part of --out again")
    parser.add_argument("--page-only", action="store_true", help="make the page of --out again")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        report_open(arguments.open)
        return
    if arguments.out is None:
        parser.error("--out is missing")
    if not arguments.page_only:
        kept = Path(tempfile.gettempdir()) / "pard-rt-onnx-models"
        work = (arguments.work or kept) / arguments.size
        work.mkdir(parents=True, exist_ok=True)
        make_models(work, SIZES[arguments.size])
        say("measuring")
        found = json.loads(arguments.out.read_text()) if arguments.only else {}
        found |= describe(work, arguments.size)
        for part in [arguments.only] if arguments.only else MEASURES:
            measured = MEASURES[part](work, SIZES[arguments.size])
            found[part] = {**measured, "machine": found["machine"]}
            say(f"{part} is measured")
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(arguments.out.read_text())
    arguments.out.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main()
