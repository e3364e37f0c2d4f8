"""What the demo pair gains: plain decoding, classic drafting and PARD, beside other engines.

Every way of decoding writes on from held-out pieces of the standard library's source, in turns and
on one thread. A turn is a process of its own: where a process's memory happens to lie makes a model
some tenth faster or slower in all of it. A prompt's time is the median of its turns, and ratios are
of sums over prompts. Plain decoding is measured once more beside onnxruntime-genai's, each alone in
its process, in more turns: a difference of a few hundredths needs them.

    python benchmarks/demo_pair.py --checkpoints WORK --out docs/benchmarks/demo-pair.json

writes the numbers and, beside them, the page made of them. WORK is what the training left
(docs/demo-pair.md): the other engines run its models. Without it they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import pard_rt
from demo_page import AGAIN, GENAI, OURS, PROMPT_LENGTH, Json, best, page
from pard_rt.cli.providers import write_tiny_folder
from pard_rt.models.find import locate
from pard_rt.training.stdlib_text import held_out_text

Decode = Callable[[list[int], int], list[int]]  # prompt, new tokens -> tokens

DRAFTED_K = (2, 3, 4, 5, 6, 8)
SLOW_K = (2, 5, 8)  # of transformers, which takes several times as long
PLAIN_TURNS = 4  # of plain decoding alone, for each of all ways together
LOOP = 64  # tokens: an output that ends in so many of a short period loops
LONGEST_PERIOD = 32


@dataclass
class Way:
    """A way of decoding."""

    name: str
    engine: str
    decode: Decode
    k: int = 0
    counts: list[pard_rt.RoundCounts] = field(default_factory=list)  # of every text, if known


@dataclass
class Timed:
    """What a way took in one turn, or, put together, in all of them; lists go by prompt."""

    name: str
    engine: str
    k: int
    seconds: list[float]
    first: list[float]  # of its first token alone
    outputs: list[list[int]]
    counts: list[Json]


def held_out_prompts(count: int) -> list[list[int]]:
    """Bytes that end where a function's name is to follow, one piece of every file."""
    prompts = []
    for text in held_out_text().values():
        found = text.find(b"def ", max(len(text) // 3, PROMPT_LENGTH))
        if found >= 0:
            end = found + len(b"def ")
            prompts.append(list(text[end - PROMPT_LENGTH : end]))
    return prompts[:count]


def loops(tokens: Sequence[int]) -> bool:
    """Tell whether an output has come to repeat itself."""
    tail = tokens[-LOOP:]
    return len(tail) == LOOP and any(
        tail[period:] == tail[:-period] for period in range(1, LONGEST_PERIOD + 1)
    )


# Ways of decoding ---------------------------------------------------------------------------------


def our_ways(ks: Sequence[int]) -> list[Way]:
    """Plain decoding and, with every K, classic drafting and PARD, over one target."""
    plain = pard_rt.Generator(method="plain", threads=1)
    ways: list[Way] = []

    def add(name: str, generator: pard_rt.Generator, k: int) -> None:
        way = Way(name, OURS, lambda prompt, tokens: [], k)

        def decode(prompt: list[int], tokens: int) -> list[int]:
            generator.num_speculative_tokens = k
            output = generator.generate(prompt, max_new_tokens=tokens)
            if tokens > 1:
                way.counts.append(output.stats.counts)
            return output.token_ids

        way.decode = decode
        ways.append(way)

    add("plain", plain, 0)
    if not ks:
        return ways
    for method, name, draft in (
        ("draft", "classic", None),
        ("draft", AGAIN, "demo/parallel"),
        ("pard", "PARD", None),
    ):
        drafting = plain.with_method(method, draft)  # type: ignore[arg-type]
        for k in ks:
            add(name, drafting, k)
    return ways


def build(checkpoint: Path, folder: Path) -> None:
    """Run onnxruntime-genai's model builder."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    command += ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder.parent / "cache")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def genai_ways(work: Path, ks: Sequence[int]) -> list[Way]:
    """onnxruntime-genai, plainly and with its own speculation by the classic draft."""
    import onnxruntime_genai as og  # type: ignore[import-untyped]

    config = json.loads((work / "target" / "genai_config.json").read_text())
    draft = json.loads((work / "classic" / "genai_config.json").read_text())
    one_thread = {"session_options": {"intra_op_num_threads": 1, "provider_options": []}}

    def make(k: int) -> Decode:
        folder = Path(tempfile.mkdtemp(dir=work))
        for name in ("target", "classic"):
            shutil.copytree(work / name, folder / name)
        for file in (work / "target").glob("*token*"):
            (folder / file.name).write_bytes(file.read_bytes())
        model = {**config["model"]}
        model["decoder"] = {**model["decoder"], **one_thread, "filename": "target/model.onnx"}
        changed: Json = {**config, "model": model}
        if k:
            drafting = {**draft["model"]["decoder"], **one_thread}
            model["draft"] = {**drafting, "filename": "classic/model.onnx"}
            changed["speculative"] = {"max_draft_tokens": k}
        (folder / "genai_config.json").write_text(json.dumps(changed))
        opened = og.Model(str(folder))

        def decode(prompt: list[int], tokens: int) -> list[int]:
            params = og.GeneratorParams(opened)
            params.set_search_options(max_length=len(prompt) + tokens, do_sample=False)
            generator = og.Generator(opened, params)
            generator.append_tokens(prompt)
            while not generator.is_done():
                generator.generate_next_token()
            return [int(token) for token in generator.get_sequence(0)][len(prompt) :]

        return decode

    plain = Way("plain", GENAI, make(0))
    return [plain, *(Way("classic", GENAI, make(k), k) for k in ks)]


def transformers_ways(checkpoints: Path) -> list[Way]:
    """Use transformers' generate, plainly and assisted by the classic draft."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(checkpoints / name, dtype=torch.float32).eval()
        for name in ("target", "classic")
    )

    def make(k: int) -> Decode:
        def decode(prompt: list[int], tokens: int) -> list[int]:
            options: Json = {}
            if k:
                draft.generation_config.num_assistant_tokens = k
                draft.generation_config.num_assistant_tokens_schedule = "constant"
                draft.generation_config.assistant_confidence_threshold = 0.0
                options["assistant_model"] = draft
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                out = target.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    **options,
                )
            return [int(token) for token in out[0, len(prompt) :]]

        return decode

    plain = Way("plain", "transformers", make(0))
    return [plain, *(Way("classic", "transformers", make(k), k) for k in SLOW_K)]


def take_turn(arguments: argparse.Namespace) -> list[Timed]:
    """Let every way decode every prompt once, in an order that changes."""
    prompts = held_out_prompts(arguments.prompts)
    ks = () if arguments.plain_of else DRAFTED_K
    ways = our_ways(ks) if arguments.plain_of != GENAI else []
    if arguments.checkpoints and arguments.plain_of != OURS:
        ways += genai_ways(arguments.built, ks)
    if arguments.checkpoints and not arguments.plain_of:
        ways += transformers_ways(arguments.checkpoints)
    timed = [Timed(way.name, way.engine, way.k, [], [], [], []) for way in ways]
    for way in ways:
        way.decode(prompts[0], arguments.tokens)  # warm
        way.counts.clear()
    shuffled = random.Random(arguments.turn)
    for prompt in prompts:
        for way, found in shuffled.sample(list(zip(ways, timed, strict=True)), len(ways)):
            start = time.perf_counter()
            way.decode(prompt, 1)
            between = time.perf_counter()
            found.outputs.append(way.decode(prompt, arguments.tokens))
            found.seconds.append(time.perf_counter() - between)
            found.first.append(between - start)
    for way, found in zip(ways, timed, strict=True):
        names = ("rounds", "committed", "accepted_at", "drafted_at")
        found.counts = [{name: getattr(each, name) for name in names} for each in way.counts]
    return timed


Turns = list[list[Timed]]


def run_turns(arguments: argparse.Namespace) -> tuple[Turns, dict[str, Turns]]:
    """Take every turn in a process of its own.

    Returns the turns of all ways together, and those of an engine's plain decoding alone.
    """
    with tempfile.TemporaryDirectory() as work:
        options = ["--prompts", str(arguments.prompts), "--tokens", str(arguments.tokens)]
        engines = []
        if arguments.checkpoints:
            engines = [OURS, GENAI]
            for name in ("target", "classic"):
                build(arguments.checkpoints / name, Path(work) / name)
            options += ["--checkpoints", str(arguments.checkpoints), "--built", work]
        out = Path(work) / "turn.json"
        command = [sys.executable, __file__, *options, "--out", str(out)]

        def run(turn: int, *more: str) -> list[Timed]:
            subprocess.run([*command, "--turn", str(turn), *more], check=True)
            print(f"turn {turn + 1} of {arguments.repeats}", *more, flush=True)
            return [Timed(**found) for found in json.loads(out.read_text("utf-8"))]

        alone: dict[str, Turns] = {engine: [] for engine in engines}
        for turn in range(PLAIN_TURNS * arguments.repeats):
            for engine in engines if turn % 2 else reversed(engines):
                alone[engine].append(run(turn, "--plain-of", engine))
        return [run(turn) for turn in range(arguments.repeats)], alone


def put_together(turns: Sequence[Timed]) -> Timed:
    """Give the medians over turns; texts and counts are the same in all of them."""
    assert all(turn.outputs == turns[0].outputs for turn in turns)
    return replace(
        turns[0],
        seconds=[median(times) for times in zip(*(turn.seconds for turn in turns), strict=True)],
        first=[median(times) for times in zip(*(turn.first for turn in turns), strict=True)],
    )


# The floor of a round -----------------------------------------------------------------------------


Asked = list[tuple[pard_rt.OnnxModel, int, list[int], int]]


class Recorder(pard_rt.Model):
    """A model that notes what it is asked, in a list it shares with others."""

    def __init__(self, inner: pard_rt.OnnxModel, asked: Asked) -> None:
        super().__init__()
        self.inner = inner
        self.asked = asked

    def info(self) -> pard_rt.ModelInfo:
        """Return the model's own."""
        return self.inner.info()

    def forward(self, batch: list[pard_rt.ForwardItem]) -> Any:
        """Note and pass on."""
        for item in batch:
            self.asked.append((self.inner, item.past_length, item.tokens.tolist(), item.num_rows))
        return self.inner.forward(batch)

    def release(self, sequence: int) -> None:
        """Pass on."""
        self.inner.release(sequence)


def replay(asked: Asked, sequence: int) -> float:
    """Return the seconds of the same forwards in the same order, nothing else in between."""
    items = [
        (model, pard_rt.ForwardItem(sequence=sequence, past_length=p, tokens=t, num_rows=r))
        for model, p, t, r in asked
    ]
    start = time.perf_counter()
    for model, item in items:
        model.forward([item])
    seconds = time.perf_counter() - start
    for model in {id(model): model for model, _ in items}.values():
        model.release(sequence)
    return seconds


def cost_of_a_call() -> float:
    """Return the seconds of a forward from Python over the smallest graph there is.

    More than what Python adds to a forward: what is left without it is less than bare.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_folder(Path(folder))
        model = pard_rt.OnnxModel(folder, threads=1)
        item = pard_rt.ForwardItem(sequence=1, past_length=0, tokens=[1, 2], num_rows=2)
        times = []
        for _ in range(1000):
            start = time.perf_counter()
            model.forward([item])
            times.append(time.perf_counter() - start)
    return median(times)


def measure_efficiency(prompts: list[list[int]], tokens: int, k: int, repeats: int) -> Json:
    """Bare forwards of draft and target over the time of the rounds that ran them."""
    asked: Asked = []
    target = Recorder(pard_rt.OnnxModel(locate("demo"), threads=1), asked)
    draft = Recorder(
        pard_rt.OnnxModel(locate("demo/parallel"), threads=1, exact=False, is_target=False), asked
    )
    per_call = cost_of_a_call()
    mask = draft.inner.contract.mask_token_id
    assert mask is not None
    shares, bare, walls = [], 0.0, 0.0
    for i, prompt in enumerate(prompts):
        asked.clear()
        recorded = pard_rt.Decoder(
            target, pard_rt.ParallelDrafter(draft, mask), num_speculative_tokens=k
        )
        recorded.add(prompt, max_new_tokens=tokens)
        recorded.run()
        pairs = []
        for turn in range(repeats):
            decoder = pard_rt.Decoder(
                target.inner, pard_rt.ParallelDrafter(draft.inner, mask), num_speculative_tokens=k
            )
            decoder.add(prompt, max_new_tokens=tokens)
            start = time.perf_counter()
            decoder.run()
            wall = time.perf_counter() - start
            number = 1_000_000 + i * repeats + turn
            pairs.append((replay(asked, number) - len(asked) * per_call, wall))
        shares.append(median(forwards / wall for forwards, wall in pairs))
        bare += median(forwards for forwards, _ in pairs)
        walls += median(wall for _, wall in pairs)
    return {"k": k, "per_call": per_call, "median": median(shares), "of_sums": bare / walls}


# Numbers ------------------------------------------------------------------------------------------


def summarize(way: Timed, chosen: list[int], plain: Timed) -> Json:
    """Sum over chosen prompts; speed-ups are to pard-rt's plain decoding."""

    def total(of: Timed) -> float:
        return sum(of.seconds[i] for i in chosen)

    def after_first(of: Timed) -> float:
        return total(of) - sum(of.first[i] for i in chosen)

    seconds = total(way)
    found: Json = {
        "engine": way.engine,
        "way": way.name,
        "k": way.k,
        "tokens_per_second": sum(len(way.outputs[i]) for i in chosen) / seconds,
        "speed_up": total(plain) / seconds,
        "speed_up_after_first": after_first(plain) / after_first(way),
        "same_text": all(way.outputs[i] == plain.outputs[i] for i in chosen),
    }
    if way.counts:
        counts = [way.counts[i] for i in chosen]
        found["tokens_per_round"] = sum(c["committed"] for c in counts) / sum(
            c["rounds"] for c in counts
        )
        found["acceptance"] = [
            sum(c["accepted_at"][i] for c in counts if i < len(c["accepted_at"]))
            / max(1, sum(c["drafted_at"][i] for c in counts if i < len(c["drafted_at"])))
            for i in range(way.k)
        ]
    return found


def measure(arguments: argparse.Namespace) -> Json:
    """Run everything once."""
    prompts = held_out_prompts(arguments.prompts)
    turns, alone = run_turns(arguments)
    ways = [put_together(each) for each in zip(*turns, strict=True)]
    plain = ways[0]
    engines = {way.engine for way in ways} - {OURS}
    looping = [i for i, output in enumerate(plain.outputs) if loops(output)]
    others = [i for i in range(len(prompts)) if i not in looping]
    if not others:
        raise SystemExit("Every output came to repeat itself: there is nothing to measure.")
    rows = [summarize(way, others, plain) for way in ways]
    plain_alone = {
        engine: [sum(way.seconds[i] for i in others) for (way,) in turns]
        for engine, turns in alone.items()
    }
    best_k = best(rows, OURS, "PARD")["k"]
    return {
        "tokens": arguments.tokens,
        "prompts": len(prompts),
        "looping": len(looping),
        "repeats": arguments.repeats,
        "rows": rows,
        "plain_alone": plain_alone,
        "looping_rows": [summarize(way, looping, plain) for way in ways] if looping else [],
        "efficiency": measure_efficiency(prompts, arguments.tokens, best_k, arguments.repeats),
        "texts": [
            {"prompt": bytes(prompts[i][-80:]).decode(errors="replace"),
             "output": bytes(t for t in plain.outputs[i] if t < 256).decode(errors="replace")}
            for i in range(min(6, len(prompts)))
        ],
        "machine": machine(),
        "load": os.getloadavg()[1],
        "versions": {name: version(name) for name in ["onnxruntime", *sorted(engines)]},
    }  # fmt: skip


def machine() -> str:
    """Say what this ran on."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "")
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return f"{name}, {vectors}"


def main() -> None:
    """Measure, or write the page again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoints", type=Path, help="what the training left")
    parser.add_argument("--out", type=Path, default=Path("build/demo-pair.json"))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page-only", action="store_true", help="from the numbers that are there")
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)  # be the process of this one
    parser.add_argument("--plain-of", choices=(OURS, GENAI), help=argparse.SUPPRESS)
    parser.add_argument("--built", type=Path, help=argparse.SUPPRESS)  # graphs for other engines
    arguments = parser.parse_args()
    if arguments.turn is not None:
        turn = [asdict(timed) for timed in take_turn(arguments)]
        arguments.out.write_text(json.dumps(turn), "utf-8")
        return
    if not arguments.page_only:
        found = measure(arguments)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    found = json.loads(arguments.out.read_text("utf-8"))
    arguments.out.with_suffix(".md").write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
