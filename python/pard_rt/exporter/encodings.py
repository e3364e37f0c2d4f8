"""Does an exported folder tokenize as its checkpoint? Its tokenizer.json has to do it alone."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from pard_rt.errors import ModelError

_TEXTS = (
    "",
    " ",
    "\n\n\t ",
    "Hello, world! It's 12345.67 o'clock.",
    "  two spaces before, two behind  ",
    "def f(x):\n    return x**2  # a comment\n\n\nif True:\n\tpass\n",
    "Zażółć gęślą jaźń; Übergröße; l'été; ﬁnal; e\u0301",
    "Привет, мир! გამარჯობა მსოფლიო. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "你好世界。こんにちは世界。안녕하세요 세계.",
    "🙂 👩‍👩‍👧‍👦 🇺🇳 \u200b\ufeff\x00\x7f",
    "▁Ġ<0x41> <s> </s> [INST] <|im_end|>",
)


def require_same_encodings(written: Tokenizer, loaded: Any) -> None:
    """Compare the ids of several scripts, code, spaces and every added token.

    Parameters
    ----------
    written
        The folder's.
    loaded
        The checkpoint's, of transformers.

    Raises
    ------
    ModelError
        A text's ids differ.
    """
    added = loaded.get_added_vocab()
    texts = [*_TEXTS, *(f"{around}{token}{around}" for token in added for around in ("", "a", " "))]
    for special in (True, False):
        expected = loaded(texts, add_special_tokens=special)["input_ids"]
        for each, ids in zip(texts, expected, strict=True):
            found = written.encode(each, add_special_tokens=special).ids
            if found != list(ids):
                raise ModelError(
                    "A folder of this model would tokenize otherwise than the checkpoint",
                    f"the ids {_shortened(ids)} for {each!r}",
                    _shortened(found),
                    "What this tokenizer does cannot be written to a tokenizer.json; run the "
                    "checkpoint through PyTorch.",
                )


def _shortened(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:12]))
    return f"[{shown}{', ...' if len(ids) > 12 else ''}]"
