"""Tokenizers of GGUF files: transformers builds them, but splits the text of many its own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from pard_rt.errors import Notice, notify

_DIGIT = r"\p{N}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(short: str, digits: str) -> str:
    before, rest = r"[^\r\n\p{L}\p{N}]?", _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
    lower = f"{before}{_UPPER}*{_LOWER}+{short}"
    upper = f"{before}{_UPPER}+{_LOWER}*{short}"
    return f"{lower}|{upper}|{digits}|{rest}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = (_DIGIT, _GPT2)
_LLAMA3 = (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",)
_QWEN2 = (f"{_WORD}|{_DIGIT}|{_REST}",)
_GPT4O = (_cased(f"{_SHORT}?", r"\p{N}{1,3}"),)

# What text is split at, one expression after the other, by the names that files give.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "gigachat", "mellum"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _LLAMA3),
    **dict.fromkeys(("pixtral", "lfm2", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": (_cased("", _DIGIT),),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", _DIGIT),
}
# Words that are tokens stay whole, whatever merges say, and a text begins with a token of its own.
_WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken")


def read_tokenizer(folder: str, file: Path, kind: str, split: str) -> Any:
    """Return the tokenizer of a GGUF file.

    Parameters
    ----------
    folder
        Holds nothing but the file.
    file
        As its user has named it.
    kind, split
        What the file says: "tokenizer.ggml.model" and "tokenizer.ggml.pre".

    Warns
    -----
    Notice
        The file does not say how text is split, or in a way that is not known.
    """
    begins = {"add_bos_token": True} if split in _WHOLE else {}  # unless the file says otherwise
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file.name, **begins)
    if kind != "gpt2":
        return tokenizer
    expressions = _SPLITS.get(split)
    if expressions is None:
        said = f"It says '{split}'." if split else "It does not say how."
        notify(
            Notice(
                f"The text for '{file}' may be split into other tokens than the model was made for",
                said,
                "It is split as transformers does. Better: export the checkpoint it was made from.",
            )
        )
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in expressions]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.model.ignore_merges = split in _WHOLE
    return tokenizer
