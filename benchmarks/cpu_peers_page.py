"""The page and the plot of cpu_peers.py."""

from __future__ import annotations

import textwrap
from pathlib import Path
from statistics import median
from typing import Any

Json = dict[str, Any]
TITLES = {
    "smollm2": "SmolLM2-135M-Instruct",
    "qwen1.5b": "Qwen2.5-Coder-1.5B-Instruct",
}
ENGINES = {
    "pard-rt": "pard-rt",
    "onnxruntime": "ONNX Runtime's operators",
    "llama.cpp": "llama.cpp",
    "openvino": "OpenVINO GenAI",
    "genai": "onnxruntime-genai",
    "pace": "AMD PACE",
    "transformers": "transformers",
}


def speed(entry: Json) -> float | None:
    """Return the median tokens per second of an entry."""
    values = entry["tokens_per_second"]
    return median(values) if values else None


def title_of(entry: Json) -> str:
    """Return an entry's engine, weights and draft in words."""
    drafted = f", drafts of {entry['k']}" if entry["k"] else ""
    return f"{ENGINES[entry['engine']]}, {entry['weights']}{drafted}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def decoding(found: Json) -> str:
    """Tokens per second, with what the weights are worth beside."""
    entries = found["entries"]
    reference = next(e for e in entries.values() if e["engine"] == "llama.cpp" and not e["k"])
    rows = []
    for name, entry in entries.items():
        tokens = speed(entry)
        if tokens is None:
            continue
        plain = speed(entries[f"{entry['engine']} {entry['weights']}"])
        about = weights_of(found, name, entry)
        rows.append(
            [
                title_of(entry),
                f"{about['bits']:.2f}" if "bits" in about else "",
                f"{about['perplexity']:.2f}" if "perplexity" in about else "",
                f"{tokens:.1f}",
                f"{tokens / speed(reference):.2f}",
                f"{tokens / plain:.2f}" if entry["k"] else "",
                f"{entry['same_text']} of {found['prompts']}" if entry["k"] else "",
                f"{entry['anonymous'] / 2**20:.0f}",
            ]
        )
    head = ["", "bits per weight", "perplexity", "tokens/s", "of llama.cpp's plain", "of its plain"]
    return table([*head, "same text as plain", "MiB"], rows)


def weights_of(found: Json, name: str, entry: Json) -> Json:
    """Return what is known of an entry's weights."""
    weights = found["weights"]
    by_weights = f"pard-rt {entry['weights']}"
    if entry["engine"] == "genai":
        return weights["genai int4"]
    if entry["weights"] == "bf16":
        return {"bits": 16.0}
    if entry["engine"] in ("llama.cpp", "openvino"):
        return {**weights["file"], "perplexity": weights[by_weights]["perplexity"]}
    return weights[by_weights]


def forwards(found: Json) -> str:
    """Milliseconds by number of rows."""
    rows = []
    entries = [e for e in found["entries"].values() if not e["k"] and e["rows"]["1"]]
    counts = list(entries[0]["rows"])
    for entry in entries:
        times = {count: median(entry["rows"][count]) for count in counts if entry["rows"][count]}
        cells = [
            f"{times[count]:.1f}"
            + (f" ({times[count] / times['1']:.2f})" if count not in ("1", "512") else "")
            for count in counts
        ]
        rows.append([title_of(entry), *cells])
    return table(["rows", *counts], rows)


def prose(text: str) -> str:
    """Fill a paragraph."""
    return textwrap.fill(" ".join(text.split()), 120)


def page(found: Json) -> str:
    """Write the page."""
    parts = [
        "# Other engines on CPUs",
        prose(
            """Published models, for each a run of `benchmarks/cpu_peers.py`. Every engine is a
            process of its own; they take turns prompt by prompt in random order, so ratios move
            less than speeds. Prompts are HumanEval's, as chats; 96 tokens each, greedy, whatever
            they are. Tokens per second are medians over the prompts and leave out reading the
            prompt. *Drafts of K*: the 0.5B model of the same family proposes K tokens one after
            the other. *Of its plain* compares with the same engine and weights without a draft."""
        ),
        prose(
            """*Bits per weight* count what a forward reads of the matrices, in all parameters; of a
            GGUF file they count the file. *Perplexity* is of the benchmark's prompts, of the second
            halves of windows of 512 tokens, computed by pard-rt with the same weights; that of
            GGUF files belongs to the same blocks, carried over, and is given to every engine that
            reads the file.
            *MiB* is memory that no file holds."""
        ),
        "![tokens per second](cpu-peers.svg)",
    ]
    for name, each in found.items():
        threads = {1: "one thread", 2: "two threads"}.get(each["threads"], str(each["threads"]))
        gigabytes = each["bytes_per_second"] / 1e9
        parts += [
            f"## {TITLES[name]}, {threads}",
            prose(
                f"""On {each["machine"]}, load {each["load"]:.1f}; as many threads that only read
                get {gigabytes:.0f} GB/s of memory between the prompts. {each.get("remark", "")}"""
            ),
            decoding(each),
            prose(
                """Milliseconds of a forward after 64 tokens, and in brackets how many times a
                single row it takes. pard-rt, ONNX Runtime and onnxruntime-genai compute logits for
                every row, as verifying needs; llama.cpp's prompts and onnxruntime-genai's last rows
                only for the last one."""
            ),
            forwards(each),
        ]
    return "\n\n".join(parts) + "\n"


def plot(found: Json, file: Path) -> None:
    """Draw tokens per second as bars."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cpu-peers"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(found), 1, figsize=(8, 1 + 3.2 * len(found)), squeeze=False)
    for axis, (name, each) in zip(axes[:, 0], found.items(), strict=True):
        best: dict[str, tuple[float, Json]] = {}
        for entry in each["entries"].values():
            tokens = speed(entry)
            key = f"{entry['engine']} {entry['weights']} {bool(entry['k'])}"
            if tokens is not None and tokens > best.get(key, (0.0, entry))[0]:
                best[key] = (tokens, entry)
        bars = sorted(best.values(), key=lambda pair: pair[0])
        colors = ["#c03030" if e["engine"] == "pard-rt" else "#888888" for _, e in bars]
        axis.barh([title_of(e) for _, e in bars], [tokens for tokens, _ in bars], color=colors)
        axis.set_title(f"{TITLES[name]}: tokens per second", fontsize=10)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
