"""Everything there is to check and to measure on a GPU, step by step: `make gpu-check`.

Each step takes minutes and is kept once it is done, so that a run may be cut off and begun again;
nothing needs a network. Results: a JSON file per card under docs/benchmarks/gpu, and a page of it.

    python benchmarks/gpu_check.py [--step kernels] [--out docs/benchmarks/gpu]
    python benchmarks/gpu_check.py --dry-run      the same steps on the CPU, with tiny models

Weights are random, in the shapes of published pairs. So the text means nothing, and a real draft
would know nothing of it: the draft runs its real forward for what it costs, and its proposals are
replaced, on the device, by the target's own plain output, broken where the drafts of the demo pair
break (docs/benchmarks/demo-pair.json). Every such figure says "recorded".
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import pard_rt
from pard_rt._core import KernelSet
from pard_rt.loading import LoadedModel, ModelFacts
from pard_rt.models.captured_executor import CapturedExecutor, code_object_for, try_kernels
from pard_rt.models.torch_model import TorchModel

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PROMPT, NEW_TOKENS, TURNS = 128, 256, 3
DRAFTED_K = (2, 4, 8, 12)


@dataclass(frozen=True)
class Pair:
    """Shapes of a published target and its draft."""

    family: Any  # configuration, model class
    target: Json
    draft: Json


def _shape(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    }


_LLAMA, _QWEN = (LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)
_QWEN_DRAFT = _shape(896, 4864, 24, 14, 2, 151936) | {"tie_word_embeddings": True}
PAIRS = {
    "llama-3.1-8b + 1b": Pair(
        _LLAMA,
        _shape(4096, 14336, 32, 32, 8, 128256),
        _shape(2048, 8192, 16, 32, 8, 128256) | {"tie_word_embeddings": True},
    ),
    "qwen2.5-7b + 0.5b": Pair(_QWEN, _shape(3584, 18944, 28, 28, 4, 152064), _QWEN_DRAFT),
    "qwen2.5-14b + 0.5b": Pair(_QWEN, _shape(5120, 13824, 48, 40, 8, 152064), _QWEN_DRAFT),
}
TINY = Pair(_LLAMA, _shape(64, 128, 2, 4, 2, 300), _shape(32, 64, 2, 2, 1, 300))


class RecordedExecutor(CapturedExecutor):
    """Proposes from a recorded text; the draft runs, and what it proposes is not used."""

    trace: Tensor  # token ids [slots, positions], on the device

    def _proposed(self, shape: Any, target_tokens: Tensor) -> None:
        slots = slice(shape.first, shape.first + shape.num_slots)
        ahead = torch.arange(shape.num_proposals, device=target_tokens.device)
        places = self._lengths[slots, None] + ahead
        recorded = self.trace[slots].gather(1, places.clamp(max=self.trace.shape[1] - 1))
        target_tokens[:, 1:] = recorded


class Check:
    """The steps, on one device."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self.new_tokens = 24 if dry_run else NEW_TOKENS

    def steps(self) -> dict[str, Callable[[], Json]]:
        """Name every step."""
        pairs = {"tiny": TINY} if self.dry_run else PAIRS
        found: dict[str, Callable[[], Json]] = {
            "kernels": self.kernels,
            "exactness": self.exactness,
            "bandwidth": self.bandwidth,
        }
        for name, pair in pairs.items():
            found[f"rounds of {name}"] = lambda pair=pair: self.rounds(pair)
            found[f"transformers, {name}"] = lambda pair=pair: self.transformers(pair)
        return found

    # Right ----------------------------------------------------------------------------------------

    def kernels(self) -> Json:
        """Choose on the device what choose() chooses on the host, from rows of all types."""
        driver, path = code_object_for(self.device)
        kernels = KernelSet(driver, path)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for vocab in (259, 1000 if self.dry_run else 151936):
                logits = (3 * torch.randn(9, vocab)).to(self.device, dtype)
                try_kernels(kernels, logits)
        return {"same": True, "code object": Path(path).name or "host"}

    def exactness(self) -> Json:
        """Decode tiny float32 models: captured rounds give the composed executor's tokens."""
        torch.manual_seed(3)
        target, twin = (self._load(TINY, TINY.target, dtype=torch.float32) for _ in range(2))
        twin.module.load_state_dict(target.module.state_dict())
        compared = 0
        for sampling in (
            pard_rt.SamplingParams(),
            pard_rt.SamplingParams(temperature=0.8, top_p=0.9, seed=5),
        ):
            plain = pard_rt.Decoder(TorchModel(target), max_batch_size=4)
            expected = self._texts(plain, sampling)
            for k in (0, 1, 4, 8):
                executor = CapturedExecutor(target, twin, 299, max_batch_size=4)
                decoder = pard_rt.Decoder(executor, num_speculative_tokens=k, max_batch_size=4)
                assert self._texts(decoder, sampling) == expected, f"K = {k}, {sampling}"
                compared += sum(map(len, expected))
        return {"tokens": compared, "same": True}

    def _texts(self, decoder: pard_rt.Decoder, sampling: pard_rt.SamplingParams) -> list[list[int]]:
        sequences = [
            decoder.add(list(range(n, 2 * n)), max_new_tokens=40, sampling=sampling)
            for n in (3, 17, 50, 90, 120)
        ]
        decoder.run()
        return [sequence.generated.tolist() for sequence in sequences]

    # Fast -----------------------------------------------------------------------------------------

    def bandwidth(self) -> Json:
        """Copy memory: bytes read and written per second."""
        size = 1 << (20 if self.dry_run else 32)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        to = torch.empty_like(source)
        times = self._times(lambda: to.copy_(source), 10)
        return {"bytes per second": 2 * size / median(times)}

    def rounds(self, pair: Pair) -> Json:
        """Decode plainly and with recorded proposals; bare rounds beside them."""
        target = self._load(pair, pair.target)
        draft = self._load(pair, pair.draft)
        prompt = [7 + i % 200 for i in range(PROMPT)]
        executor = CapturedExecutor(target, max_length=1024)
        decoder = pard_rt.Decoder(executor)
        text, seconds = self._decode(decoder, prompt)
        weights = sum(p.numel() * p.element_size() for p in target.module.parameters())
        embedding = target.module.get_input_embeddings().weight
        if not target.config.tie_word_embeddings:
            weights -= embedding.numel() * embedding.element_size()
        found: Json = {
            "plain tokens/s": self.new_tokens / seconds,
            "bytes of weights read per token": weights,
            "recorded": [],
        }
        del executor, decoder
        for k in DRAFTED_K:
            recorded = RecordedExecutor(target, draft, 5, max_length=1024)
            recorded.trace = self._broken(prompt + text, k)
            decoder = pard_rt.Decoder(recorded, num_speculative_tokens=k)
            again, seconds = self._decode(decoder, prompt)
            same = sum(a == b for a, b in zip(text, again, strict=True)) / len(text)
            bare = self._bare_round(recorded, k)
            per_round = decoder.counts.mean_tokens_per_round
            found["recorded"].append(
                {
                    "K": k,
                    "tokens/s": self.new_tokens / seconds,
                    "tokens per round": per_round,
                    "bare round, ms": 1e3 * bare,
                    "efficiency": bare * (self.new_tokens - 1) / per_round / seconds,
                    "tokens equal to plain decoding": same,
                }
            )
        return found

    def transformers(self, pair: Pair) -> Json:
        """Run transformers' own generate on the same weights: compiled with a static cache."""
        target = self._load(pair, pair.target)
        target.module.set_attn_implementation("sdpa")
        prompt = torch.tensor([[7 + i % 200 for i in range(PROMPT)]], device=self.device)
        options: Json = {} if self.dry_run else {"cache_implementation": "static"}

        def generate() -> None:
            target.module.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=self.new_tokens,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                pad_token_id=0,
                **options,
            )

        return {"plain tokens/s": self.new_tokens / median(self._times(generate, TURNS))}

    # How ------------------------------------------------------------------------------------------

    def _load(self, pair: Pair, shape: Json, dtype: torch.dtype | None = None) -> LoadedModel:
        config_class, model_class = pair.family
        config = config_class(
            **shape, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or self.dtype)
        try:
            with torch.device(self.device):
                module = model_class(config).eval()
        finally:
            torch.set_default_dtype(before)
        vocab = min(shape["vocab_size"], 151936)
        facts = ModelFacts("random", shape["vocab_size"], vocab, "", 2048, None, (), None)
        return LoadedModel(module, module.config, None, facts)

    def _decode(self, decoder: pard_rt.Decoder, prompt: list[int]) -> tuple[list[int], float]:
        """Return the text, and the median seconds behind its first token."""
        times = []
        for turn in range(TURNS + 1):  # the first captures
            sequence = decoder.add(prompt, max_new_tokens=self.new_tokens)
            decoder.step()
            self._wait()
            began = time.perf_counter()
            while decoder.step():
                pass
            if turn > 0:
                times.append(time.perf_counter() - began)
        return sequence.generated.tolist(), median(times)

    @torch.inference_mode()
    def _bare_round(self, executor: Any, k: int) -> float:
        """Return the seconds of a round that is replayed with nothing in between."""
        ((_, replay),) = [
            (shape, run) for shape, run in executor._rounds.items() if shape.num_proposals == k
        ][-1:]
        lengths = executor._lengths.clone()
        lengths.fill_(PROMPT)

        def once() -> None:
            executor._lengths.copy_(lengths)
            replay()

        return median(self._times(once, 50))

    def _broken(self, text: list[int], k: int) -> Tensor:
        """Return the text with wrong tokens as often as the demo pair's parallel draft errs."""
        found = json.loads((ROOT / "docs/benchmarks/demo-pair.json").read_text("utf-8"))
        rows = [row for row in found["rows"] if (row["engine"], row["way"]) == ("pard-rt", "PARD")]
        per_round = min(rows, key=lambda row: abs(row["k"] - k))["tokens_per_round"]
        # Breaks that come independently with this probability end runs at that mean length.
        chance, low, high = 0.5, 0.0, 1.0
        for _ in range(40):
            chance = (low + high) / 2
            mean = sum((1 - chance) ** i for i in range(k + 1))
            low, high = (chance, high) if mean > per_round else (low, chance)
        generator = random.Random(k)
        wrong = [t + 1 if generator.random() < chance else t for t in text]
        return torch.tensor([wrong], dtype=torch.int64, device=self.device)

    def _wait(self) -> None:
        if not self.dry_run:
            torch.cuda.synchronize()

    def _times(self, run: Callable[[], Any], count: int) -> list[float]:
        run()
        times = []
        for _ in range(count):
            self._wait()
            began = time.perf_counter()
            run()
            self._wait()
            times.append(time.perf_counter() - began)
        return times


def page(found: Json) -> str:
    """Write the page of a card."""
    lines = [f"# On {found['card']}", "", f"{found['versions']}.", ""]
    copied = found["steps"].get("bandwidth", {}).get("bytes per second")
    for name, result in found["steps"].items():
        lines += [f"## {name}", ""]
        if "error" in result:
            lines += [f"Failed: {result['error']}", ""]
            continue
        for key, value in result.items():
            if key == "recorded":
                columns = list(value[0])
                lines += ["", f"| recorded: {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
                cells = ([f"{row[column]:.4g}" for column in columns] for row in value)
                lines += [f"| {' | '.join(row)} |" for row in cells]
            else:
                lines.append(
                    f"* {key}: {value:.4g}" if isinstance(value, float) else f"* {key}: {value}"
                )
        if copied and "bytes of weights read per token" in result:
            share = result["plain tokens/s"] * result["bytes of weights read per token"] / copied
            lines += ["", f"Plain decoding reads weights at {share:.2f} of the speed of copying."]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the steps that are not done yet."""
    parser = argparse.ArgumentParser(description="Check and measure pard-rt on a GPU.")
    parser.add_argument("--step", action="append", help="only this one, done or not")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks/gpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    arguments = parser.parse_args()
    check = Check(arguments.dry_run)
    card = "a CPU (dry run)" if check.dry_run else torch.cuda.get_device_name()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{'dry-run' if check.dry_run else card.lower().replace(' ', '-')}.json"
    versions = ", ".join(f"{name} {version(name)}" for name in ("pard-rt", "torch", "transformers"))
    found: Json = {"card": card, "versions": versions, "steps": {}}
    if file.exists():
        found["steps"] = json.loads(file.read_text("utf-8"))["steps"]
    failed = False
    for name, step in check.steps().items():
        done = name in found["steps"] and "error" not in found["steps"][name]
        if name not in arguments.step if arguments.step else done:
            continue
        began = time.perf_counter()
        try:
            found["steps"][name] = step()
        except Exception as error:  # the other steps may still tell something
            found["steps"][name] = {"error": f"{type(error).__name__}: {error}"}
            failed = True
        print(f"{name}: {time.perf_counter() - began:.0f} s  {found['steps'][name]}", flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        file.with_suffix(".md").write_text(page(found), "utf-8")
        if not check.dry_run:
            torch.cuda.empty_cache()
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
