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
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import pard_rt
from onnx_graphs import (
    GENAI,
    GRAPHS,
    MAX_LENGTH,
    PROMPT,
    RATIOS,
    SIZES,
    Json,
    Size,
    count_operators,
    count_parameters,
    make_checkpoint,
    make_graph,
    make_models,
    say,
)
from onnx_page import page

ROWS = (1, 2, 5, 9, 13, 17)
PROFILED_ROWS = (1, 9)


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
    models = {
        graph.name: open_model(work / graph.folder, own_attention=graph.maker != "builder")
        for graph in GRAPHS
    }
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
        options = {"spinning": False, "own_matmul": False, "own_attention": False, **options}
        return OurDecoder(open_model(folder, threads=threads, **options), prompt, total)

    decoders: dict[str, OurDecoder | GenaiDecoder] = {
        GENAI: GenaiDecoder(builder, threads, prompt, total),
        "pard-rt": ours(builder),
        "pard-rt, own graph": ours(own, own_matmul=True, own_attention=True),
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
    arguments.out.with_suffix(".md").write_text(page(found, list(MEASURES)))


if __name__ == "__main__":
    main()
