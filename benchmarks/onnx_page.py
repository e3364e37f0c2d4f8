"""The page of onnx_models.py: its numbers in words and tables."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from onnx_graphs import GENAI, GRAPHS, RATIOS, Json


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


def page(found: Json, measured: Sequence[str]) -> str:
    """Everything, in words and tables; `measured` are the parts."""
    shape, versions, decoding = found["shape"], found["versions"], found["decoding"]
    short, long = shape["pasts"]
    loads = [load for part in measured for load in found[part]["load"]]
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
            *builder* runs with ONNX Runtime's own attention here, *gqa* with pard-rt's.
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
            optimisations, in its own count, and with its own attention:
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
            over the gqa export. All run ONNX Runtime's own products. *exact* pads single rows of a
            quantized graph to two, as those products need. *spinning* lets the threads of a forward
            spin, as they do by default.
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
        for part in measured
        if found[part]["machine"] != found["machine"]
    }
    if elsewhere:
        machines = "; ".join(f"*{part}* on {name}" for part, name in elsewhere.items())
        parts.insert(2, prose(f"Parts measured at another time: {machines}."))
    return "\n\n".join(parts) + "\n"
