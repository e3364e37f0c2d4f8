"""How fast published models decode on a CPU: pard-rt beside other engines, in one run.

Every engine is a process of its own, in an environment of its own. They take turns prompt by
prompt, in an order drawn anew every time, so a busy machine slows all alike; what counts is ratios.
`--venvs` is where the environments are made; those that are there are kept.

    python tests/python/published_models.py all
    python benchmarks/cpu_peers.py --prompts humaneval.jsonl --out docs/benchmarks/cpu-peers.json

Leave the machine alone meanwhile. `--only smollm2` measures one set again, `--page-only` writes the
page again. Folders are exported to `--work` and kept; remove them after a change to the exporter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import pard_rt
from cpu_peers_page import page, plot
from onnx_models import machine
from pard_rt.cli.perplexity import perplexity
from pard_rt.models import open_model
from pard_rt.progress import Progress

Json = dict[str, Any]
ROWS = (1, 2, 5, 9, 17, 512)
TOKENS = 96
OWN = "pard-rt"

# Packages of the environments; pard-rt's own has none to add.
ENVIRONMENTS = {
    "llama.cpp": ["xllamacpp==2026.10.11549"],
    "openvino": ["openvino-genai==2026.4.1"],
    "pace": ["torch==2.13.0", "amd-pace==1.3.0"],
}
PUBLISHED = Path(__file__).parents[1] / "build" / "published"


@dataclass(frozen=True)
class Entry:
    """An engine with weights, and maybe a draft."""

    engine: str
    weights: str
    k: int = 0  # proposals of a classic draft; 0: none

    @property
    def name(self) -> str:
        """What the entry is called in results."""
        return f"{self.engine} {self.weights}" + (f" K={self.k}" if self.k else "")


@dataclass(frozen=True)
class Set:
    """Engines that are compared over one model."""

    target: str
    threads: int
    file_weights: str  # of the GGUF file
    draft: str = ""

    def entries(self) -> list[Entry]:
        """Everything that runs."""
        file = self.file_weights
        plain = [Entry(OWN, "int4"), Entry(OWN, "int8"), Entry(OWN, file)]
        plain += [Entry("onnxruntime", "int4"), Entry("onnxruntime", "int8")]
        plain += [Entry("llama.cpp", file), Entry("openvino", file), Entry("genai", "int4")]
        plain += [Entry("pace", "bf16"), Entry("transformers", "bf16")]
        if not self.draft:
            return plain
        drafted = [Entry(OWN, "int4", k) for k in (2, 4, 6)] + [Entry(OWN, file, 4)]
        return plain + drafted + [Entry("llama.cpp", file, k) for k in (2, 4)]


SETS = {
    "smollm2": Set("smollm2", 1, "Q4_1"),
    "qwen1.5b": Set("qwen1.5b", 2, "Q4_K_M", "qwen0.5b"),
}


# Models ------------------------------------------------------------------------------------------


def folder_of(engine: str, model: str, weights: str, work: Path) -> Path:
    """Return what an engine opens, made if it is not there."""
    checkpoint, file = PUBLISHED / model, PUBLISHED / f"{model}.gguf"
    if engine in ("llama.cpp", "openvino"):
        return file
    if engine in ("pace", "transformers"):
        return checkpoint
    out = work / f"{model}.{'genai' if engine == 'genai' else 'pard'}.{weights}"
    if out.exists():
        return out
    say(f"makes {out.name}")
    if engine == "genai":
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        builder += ["-i", str(checkpoint), "-o", str(out), "-p", weights, "-e", "cpu"]
        builder += ["-c", str(work / "genai"), "--extra_options", "int4_accuracy_level=4"]
        subprocess.run(builder, check=True, stdout=subprocess.DEVNULL)
    elif weights in ("int4", "int8"):
        pard_rt.export(checkpoint, out, weights=weights)
    else:
        pard_rt.export(file, out)
    return out


def product_bytes(folder: Path) -> int:
    """Return the bytes of the inputs of a graph's MatMulNBits."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = {
        name
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for name in node.input[1:]
        if name in tensors
    }
    sizes = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
    return sum(
        int(np.prod(tensors[name].dims)) * sizes.get(tensors[name].data_type, 1) for name in names
    )


# Engines -----------------------------------------------------------------------------------------


class Peer:
    """An engine in its process."""

    def __init__(self, python: str, engine: str, options: Json) -> None:
        script = Path(__file__).with_name("cpu_peer.py")
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if engine not in ("pace", "transformers"):
            environment["OMP_NUM_THREADS"] = "1"
        else:
            environment["OMP_NUM_THREADS"] = str(options["threads"])
        self._process = subprocess.Popen(
            [python, str(script), engine, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answer()

    def ask(self, what: str, **arguments: Any) -> Any:
        """Return the answer to a request; None where the engine has none."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()["result"]

    def _answer(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended: {self._process.args}")
        answer: Json = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@cache
def python_of(engine: str, venvs: Path) -> str:
    """Return the interpreter of an engine's environment, made if it is not there."""
    if engine not in ENVIRONMENTS:
        return sys.executable
    python = venvs / engine / "bin" / "python"
    if not python.exists():
        venv.create(venvs / engine, with_pip=True)
    for package in ["numpy", *ENVIRONMENTS[engine]]:
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*install, package], check=True)
    return str(python)


@contextmanager
def opened(entry: Entry, chosen: Set, work: Path, venvs: Path) -> Iterator[Peer]:
    """Start an engine in its process, and end it."""
    options: Json = {"threads": chosen.threads}
    options["model"] = str(folder_of(entry.engine, chosen.target, entry.weights, work))
    if entry.k:
        draft_weights = "int4" if entry.engine == OWN else chosen.file_weights
        draft = folder_of(entry.engine, chosen.draft, draft_weights, work)
        options |= {"draft": str(draft), "k": entry.k}
    with closing(Peer(python_of(entry.engine, venvs), entry.engine, options)) as peer:
        yield peer


# Measurements ------------------------------------------------------------------------------------


def measure(chosen: Set, prompts: list[str], work: Path, venvs: Path) -> Json:
    """Let the engines of a set take turns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PUBLISHED / chosen.target)
    order = random.Random(0)
    entries, bandwidth = chosen.entries(), []
    found: dict[str, Json] = {
        entry.name: asdict(entry)
        | {"tokens_per_second": [], "rows": {str(rows): [] for rows in ROWS}, "ids": []}
        for entry in entries
    }
    memory = Peer(sys.executable, "memory", {"threads": chosen.threads})
    for turn, prompt in enumerate(prompts):
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        bandwidth.append(memory.ask("generate", prompt=[], text="", tokens=0)["bytes_per_second"])
        order.shuffle(entries)
        for entry in list(entries):
            try:
                with opened(entry, chosen, work, venvs) as peer:
                    take_turn(peer, found[entry.name], ids, text, first=turn == 0)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                say(f"leaves out {entry.name}: {error}")
                entries.remove(entry)
                del found[entry.name]
        say(f"prompt {turn + 1} of {len(prompts)}")
    memory.close()
    texts = {name: each.pop("ids") for name, each in found.items()}
    for name, each in list(found.items()):
        plain = texts.get(f"{each['engine']} {each['weights']}")
        if plain is None:  # left out: nothing to compare a draft with
            del found[name]
        else:
            each["same_text"] = sum(a == b for a, b in zip(texts[name], plain, strict=True))
    return {
        "entries": found,
        "threads": chosen.threads,
        "prompts": len(prompts),
        "bytes_per_second": round(median(bandwidth)),
        "machine": machine(),
        "load": os.getloadavg()[0],
    }


def take_turn(peer: Peer, found: Json, ids: list[int], text: str, first: bool) -> None:
    """Let an engine continue a prompt, and read rows; the most rows only at the `first` prompt."""
    answer = peer.ask("generate", prompt=ids, text=text, tokens=TOKENS)
    found |= peer.ask("memory")
    if answer is not None:
        speed = (answer["tokens"] - 1) / (answer["seconds"] - answer["first"])
        found["tokens_per_second"].append(round(speed, 2))
        found["ids"].append(answer.get("ids"))
    if found["k"]:
        return
    for rows in (*ROWS[:-1] * 3, *(ROWS[-1:] if first else ())):
        took = peer.ask("rows", count=rows)
        if took is not None:
            found["rows"][str(rows)].append(round(took, 2))


def describe(chosen: Set, text: str, work: Path) -> Json:
    """Return bits per weight and perplexity of the weights of a set."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(PUBLISHED / chosen.target)
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    described = {}
    for engine, weights in [
        (OWN, "int4"),
        (OWN, "int8"),
        (OWN, chosen.file_weights),
        ("genai", "int4"),
    ]:
        folder = folder_of(engine, chosen.target, weights, work)
        described[f"{engine} {weights}"] = {
            "bits": round(8 * product_bytes(folder) / parameters, 2),
            "perplexity": round(perplexity(open_model(folder), text, Progress(""))[0], 3),
        }
    file = PUBLISHED / f"{chosen.target}.gguf"
    described["file"] = {"bits": round(8 * file.stat().st_size / parameters, 2)}
    return {"parameters": parameters, "weights": described}


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[load {os.getloadavg()[0]:.1f}] {text}", flush=True)


def main() -> None:
    """Measure, and write the numbers, the page and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON; page and plot lie beside it")
    parser.add_argument("--prompts", type=Path, help='lines of {"prompt": ".."}')
    parser.add_argument("--num-prompts", type=int, default=9)
    parser.add_argument("--work", type=Path, default=PUBLISHED.parent / "cpu_peers")
    parser.add_argument("--venvs", type=Path, default=PUBLISHED.parent / "cpu_peers" / "venvs")
    parser.add_argument("--only", choices=SETS, help="measure one set again")
    parser.add_argument("--page-only", action="store_true")
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if not arguments.page_only:
        lines = arguments.prompts.read_text("utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines]
        for name, chosen in SETS.items():
            if arguments.only in (None, name):
                about = describe(chosen, "\n\n".join(prompts)[:8000], arguments.work)
                measured = measure(
                    chosen, prompts[: arguments.num_prompts], arguments.work, arguments.venvs
                )
                found[name] = about | measured
                arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    arguments.out.with_suffix(".md").write_text(page(found), "utf-8")
    plot(found, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
