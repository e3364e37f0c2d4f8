"""A pair of toy models that learn a text in a second and then decode it with a parallel draft.

The target counts what follows every 12 characters of Python's standard library, the draft what
follows every 5. Each is a `pard_rt.Model` of some forty lines: this is how a model of your own
plugs in. Run it: `python examples/ngram_pair.py [PROMPT]`.
"""

from __future__ import annotations

import inspect
import json
import random
import sys
from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

import pard_rt

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
MASK = len(ALPHABET)  # one id behind the alphabet: the draft's mask token
PROMPT = "class Random("


class NgramModel(pard_rt.Model):
    """Predicts a character from the longest context it has seen, up to `order` characters.

    Its KV cache is the text itself. A mask token stands for the character the model itself finds
    likeliest there, so K masks in a row unroll K guesses in one forward.
    """

    def __init__(self, order: int, text: str, vocab_size: int):
        super().__init__()
        self.order = order
        self.vocab_size = vocab_size
        self.texts: dict[int, str] = {}
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for length in range(order + 1):
            for i in range(length, len(text)):
                self.counts[text[i - length : i]][text[i]] += 1

    def info(self) -> pard_rt.ModelInfo:
        return pard_rt.ModelInfo(
            name=f"{self.order}-gram",
            vocab_size=self.vocab_size,
            num_tokens=len(ALPHABET),
            max_length=4096,
        )

    def followers(self, text: str) -> Counter[str]:
        context = text[-self.order :]
        while context not in self.counts:
            context = context[1:]
        return self.counts[context]

    def row(self, text: str) -> NDArray[np.float32]:
        logits = np.full(self.vocab_size, -20.0, np.float32)
        for character, count in self.followers(text).items():
            logits[ALPHABET.index(character)] = np.log(count)
        return logits

    def forward(self, batch: list[pard_rt.ForwardItem]) -> NDArray[np.float32] | None:
        rows = []
        for item in batch:
            text = self.texts.get(item.sequence, "")[: item.past_length]
            for i, token in enumerate(item.tokens):
                text += (
                    self.followers(text).most_common(1)[0][0] if token == MASK else ALPHABET[token]
                )
                if i >= len(item.tokens) - item.num_rows:
                    rows.append(self.row(text))
            self.texts[item.sequence] = text
        return np.stack(rows) if rows else None

    def release(self, sequence: int) -> None:
        self.texts.pop(sequence, None)


def decode(
    target: pard_rt.Model, drafter: pard_rt.Drafter | None, prompt: str, temperature: float
) -> tuple[str, pard_rt.RoundCounts]:
    decoder = pard_rt.Decoder(target, drafter)
    sequence = decoder.add(
        [ALPHABET.index(character) for character in prompt],
        max_new_tokens=300,
        sampling=pard_rt.SamplingParams(temperature=temperature, seed=1),
    )
    decoder.run()
    return "".join(ALPHABET[token] for token in sequence.generated), sequence.counts


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else PROMPT
    text = "".join(inspect.getsource(module) for module in (inspect, json.decoder, random))
    text = "".join(character for character in text if character in ALPHABET)
    if not set(prompt) <= set(ALPHABET):
        raise SystemExit("The prompt may hold printable ASCII characters and newlines.")

    target = NgramModel(12, text, len(ALPHABET))
    draft = NgramModel(5, text, len(ALPHABET) + 1)
    for temperature in (0.0, 0.5):
        plain, _ = decode(target, None, prompt, temperature)
        drafted, counts = decode(target, pard_rt.ParallelDrafter(draft, MASK), prompt, temperature)
        print(f"--- temperature {temperature}\n{prompt}{drafted}")
        print(f"--- identical to plain decoding: {'yes' if plain == drafted else 'NO'}")
        print(f"--- {counts.committed} tokens in {counts.rounds} target forwards: ", end="")
        print(f"{counts.mean_tokens_per_round:.2f} tokens per round\n")


if __name__ == "__main__":
    main()
