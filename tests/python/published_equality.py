"""Do published models generate transformers' own greedy text, and pairs of them the target's?

Every model of published_models.py decodes a few prompts in PyTorch and as an ONNX folder, and every
text is compared with transformers' `generate` in float32, token by token. Then Qwen-0.5B drafts for
Qwen-1.5B, both int8, and texts are compared with plain decoding of the same folder.

    python tests/python/published_models.py all
    python tests/python/published_equality.py            # prompts of its own, or
    python tests/python/published_equality.py --prompts FILE.jsonl   # lines of {"prompt": ".."}

One line for every comparison; the exit status is 1 where texts differ. For a text that differs it
says how far apart the logits of the two tokens are in transformers: rounding can turn a near-tie.
Integer weights are rounded, so an int8 folder's texts are counted and need not be transformers'.
Folders, and transformers' texts, stay beside the models for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import pard_rt
from published_models import MODELS, folder, locked

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that tells whether a number is prime.",
    "A train goes 60 km in 45 minutes. How fast is that in km/h?",
    "Explain in two sentences why the sky is blue.",
    "def merge_sort(items):",
    "Übersetze ins Englische: Der Hund schläft unter dem Tisch.",
    "List the first ten Fibonacci numbers.",
    "请用一句话介绍北京。",
    "Write a haiku about the sea.",
    "What does the SQL statement SELECT COUNT(*) FROM users; do?",
    "Once upon a time, in a village by the river,",
    "Simplify (x + 3)(x - 3) + 9.",
    '{"name": "Ada", "born": 1815, "fields": [',
    "Which is heavier: a kilogram of iron or a kilogram of feathers?",
    "Write a regular expression that matches an e-mail address.",
    "Give me three ideas for a birthday present for a gardener.",
    "for (int i = 0; i < n; ++i) {",
    "Summarize: The meeting moved to Tuesday at 10:30 because the room was taken on Monday.",
    "What comes after 1, 4, 9, 16, 25?",
    "Say hello in five languages 🙂",
)


class Reference:
    """transformers' own greedy texts of one model, computed in float32.

    Parameters
    ----------
    checkpoint
        A Hugging Face directory.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    @cached_property
    def module(self) -> Any:
        """The model as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()

    def encode(self, prompt: str) -> list[int]:
        """Return a prompt's token ids: through the chat template where the model has one."""
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer(prompt)["input_ids"])
        message = [{"role": "user", "content": prompt}]
        encoded = self._tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Return the tokens that transformers generates after a prompt."""
        ids = torch.tensor([prompt])
        out = self.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return out[0, len(prompt) :].tolist()

    def texts(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the tokens for every prompt, kept in a file beside the model."""
        file = self.checkpoint.with_name(f"{self.checkpoint.name}.greedy.json")
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        texts = []
        for prompt in prompts:
            asked = f"{torch.__version__}, {max_new_tokens} after {list(prompt)}"
            if asked not in known:
                known[asked] = self.generate(prompt, max_new_tokens)
                unfinished = file.with_suffix(f".partial-{os.getpid()}")
                unfinished.write_text(json.dumps(known), "utf-8")
                unfinished.replace(file)
            texts.append(known[asked])
        self.__dict__.pop("module", None)  # its memory is needed for the others
        return texts

    @torch.no_grad()
    def difference(
        self, prompt: Sequence[int], expected: Sequence[int], actual: Sequence[int]
    ) -> str:
        """Say where two texts part, and how nearly the two tokens tie there in transformers."""
        pairs = zip(expected, actual, strict=False)
        n = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if n is None:
            return f"one text ends first: {len(expected)} and {len(actual)} tokens"
        row = self.module(torch.tensor([[*prompt, *expected[:n]]])).logits[0, -1]
        a, b = row[expected[n]].item(), row[actual[n]].item()
        return (
            f"token {n}: {expected[n]} (logit {a:.6f}) became {actual[n]} ({b:.6f}), "
            f"{abs(a - b) / row.abs().max().item():.1e} of the largest logit apart"
        )


def token_ids(
    generator: pard_rt.Generator,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 1,
) -> list[list[int]]:
    """Return what a generator makes of the prompts, so many at a time."""
    texts: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = [list(prompt) for prompt in prompts[start : start + batch_size]]
        outputs = generator.generate(batch, max_new_tokens=max_new_tokens)
        texts += [output.token_ids for output in outputs]
    return texts


def exported(checkpoint: Path, weights: Any = "fp32") -> Path:
    """Return the ONNX folder (gqa) of a published model, kept until the exporter changes."""
    out = checkpoint.with_name(f"{checkpoint.name}.gqa.{weights}.{_exporter_digest()}")
    with locked(out):
        if not out.exists():
            for old in out.parent.glob(f"{checkpoint.name}.gqa.{weights}.*"):
                shutil.rmtree(old)
            pard_rt.export(checkpoint, out, weights=weights)
    return out


def _exporter_digest() -> str:
    """Tell exporters apart: by the sources that an export runs, and by PyTorch's version."""
    package = Path(pard_rt.__file__).parent
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for pattern in ("*.py", "exporter/*.py", "models/*.py", "pytorch/*.py"):
        for file in sorted(package.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Texts:
    """What one model makes of the prompts, and who says where two of its texts part."""

    reference: Reference
    prompts: list[list[int]]
    expected: list[list[int]]

    def compare(self, what: str, actual: list[list[int]], *, must_equal: bool = True) -> bool:
        """Print a line, and one more for every difference that must not be; False for those."""
        together = list(zip(self.prompts, self.expected, actual, strict=True))
        num_equal = sum(a == b for _, a, b in together)
        print(f"{what:60} {num_equal:2} of {len(together)} texts equal", flush=True)
        if must_equal:
            for i, (prompt, a, b) in enumerate(together):
                if a != b:
                    print(f"    prompt {i}, {self.reference.difference(prompt, a, b)}", flush=True)
        return num_equal == len(together) or not must_equal


def compare_model(name: str, prompts: Sequence[str], max_new_tokens: int) -> bool:
    """Compare a model's texts, in PyTorch and as a folder, with transformers'."""
    reference = Reference(folder(name))
    encoded = [reference.encode(prompt) for prompt in prompts]
    texts = Texts(reference, encoded, reference.texts(encoded, max_new_tokens))
    weights = "int8" if name == "qwen1.5b" else "fp32"  # float32 would take 20 GB to export

    def compare(model: Any, what: str, *, must_equal: bool = True) -> bool:
        generator = pard_rt.Generator(model, threads=torch.get_num_threads())
        actual = token_ids(generator, encoded, max_new_tokens)
        return texts.compare(f"{name}, {what}, with transformers", actual, must_equal=must_equal)

    in_pytorch = compare(pard_rt.load(folder(name), dtype=torch.float32), "PyTorch, float32")
    over_onnx = compare(
        exported(folder(name), weights), f"{weights} folder", must_equal=weights == "fp32"
    )
    return in_pytorch and over_onnx


def compare_pair(prompts: Sequence[str], max_new_tokens: int) -> bool:
    """Compare what Qwen-1.5B writes with Qwen-0.5B as its draft, both int8, with plain decoding."""
    reference = Reference(folder("qwen1.5b"))
    encoded = [reference.encode(prompt) for prompt in prompts]
    target, draft = (exported(folder(name), "int8") for name in ("qwen1.5b", "qwen0.5b"))
    plain = pard_rt.Generator(target, threads=torch.get_num_threads())
    texts = Texts(reference, encoded, token_ids(plain, encoded, max_new_tokens))
    drafted = plain.with_method("draft", draft)
    holds = []
    for k in (1, 4, 8):
        drafted.num_speculative_tokens = k
        for batch_size in (1, 5):
            actual = token_ids(drafted, encoded, max_new_tokens, batch_size)
            what = f"qwen1.5b drafted by qwen0.5b, int8, K = {k}, batch {batch_size}, with plain"
            holds.append(texts.compare(what, actual))
    return all(holds)


def _read_prompts(files: Sequence[Path], take: int) -> list[str]:
    """Take prompts from every file in turn; the ones of this file where there are no others."""
    if not files:
        return list(PROMPTS[:take])
    lines = [file.read_text("utf-8").splitlines() for file in files]
    turns = itertools.chain.from_iterable(zip(*lines, strict=False))
    return [json.loads(line)["prompt"] for line in itertools.islice(turns, take)]


def main() -> int:
    """Compare what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="MODEL", help="some of the models, or 'pair'")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--take", type=int, default=20, help="number of prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.__trace").propagate = False
    prompts = _read_prompts(asked.prompts, asked.take)
    holds = [
        compare_pair(prompts, asked.max_new_tokens)
        if part == "pair"
        else compare_model(part, prompts, asked.max_new_tokens)
        for part in asked.parts or [*MODELS, "pair"]
    ]
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
