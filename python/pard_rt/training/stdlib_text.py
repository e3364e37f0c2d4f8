"""Text to learn from and to be tried on: the source code of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pard_rt.vocabulary import byte_level_alphabet

END = 256  # the end of a file; ids below it are bytes
MASK = 257
VOCAB_SIZE = 264

# Never learnt from: what the pair is measured on.
HELD_OUT = (
    "bisect.py", "calendar.py", "cmd.py", "configparser.py", "csv.py", "dataclasses.py",
    "filecmp.py", "fractions.py", "getopt.py", "graphlib.py", "heapq.py", "ipaddress.py",
    "json/decoder.py", "json/encoder.py", "json/scanner.py", "queue.py", "sched.py", "shlex.py",
    "statistics.py", "string.py", "tempfile.py", "textwrap.py", "timeit.py", "wave.py",
    "zoneinfo/_zoneinfo.py",
)  # fmt: skip

# Tests, tables, generated files, and what is no Python of our time.
_LEFT_OUT = {
    "test", "tests", "idle_test", "site-packages", "__pycache__", "encodings", "pydoc_data",
    "__phello__", "lib2to3", "turtledemo",
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Token ids 0..255 are bytes; 256 ends a text, 257 is a parallel draft's mask token."""
    alphabet = {piece: byte[0] for piece, byte in byte_level_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|end|>", mask_token="<|mask|>"
    )


def learning_text() -> Tensor:
    """Token ids of every file to learn from, one behind the other, uint16 [n]."""
    root = Path(sysconfig.get_paths()["stdlib"])
    tokens: list[int] = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        left_out = _LEFT_OUT & set(name.parts) or name.name.startswith("_sysconfigdata")
        if left_out or name.as_posix() in HELD_OUT:
            continue
        tokens += [*file.read_bytes(), END]
    return torch.tensor(tokens, dtype=torch.uint16)


def held_out_text() -> dict[str, bytes]:
    """Return the files never learnt from, by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return {name: (root / name).read_bytes() for name in HELD_OUT if (root / name).is_file()}
