"""What token ids stand for: the bytes of each, and how those of two models differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pard_rt._core import ModelInfo, TokenBytes, compare_vocabularies, num_proposable
from pard_rt.errors import InvalidArgumentError, ModelError, Notice

_NUM_EXAMPLES = 5  # of tokens that one side alone knows
_WHOLE_TOKENS = ("ByteLevel", "ByteFallback", "Fuse", "Strip")  # Strip is about the ends of a text
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of a tokenizer's tokens that stand for no text; tokenizers as for `token_bytes`."""
    added: dict[int, Any] = (
        tokenizer.get_added_tokens_decoder()
        if isinstance(tokenizer, Tokenizer)
        else tokenizer.added_tokens_decoder
    )
    special = {i for i, token in added.items() if token.special}
    return special | set(getattr(tokenizer, "all_special_ids", ()))


def count_tokens(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer's tokens; 0 if it has none."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def token_bytes(tokenizer: Any, count: int) -> list[bytes]:
    """Return the bytes of token ids 0..count-1, empty for special and unused ids.

    Parameters
    ----------
    tokenizer
        One of transformers, or a `tokenizers.Tokenizer`.
    count
        How many ids.

    Raises
    ------
    ModelError
        A token's bytes depend on its neighbours: the decoder is of another kind than byte-level
        and SentencePiece's.
    """
    spell = _speller(tokenizer)
    special = special_token_ids(tokenizer)
    table = [b""] * count
    for token, i in tokenizer.get_vocab().items():
        if i < count and i not in special:
            table[i] = spell(token)  # added tokens too: decoders see every token
    return table


def try_token_bytes(tokenizer: Any, count: int) -> TokenBytes | None:
    """Return the same as a table to compare vocabularies by; None if it cannot be told."""
    try:
        return TokenBytes(token_bytes(tokenizer, count))
    except ModelError:
        return None


def token_bytes_of_folder(folder: Path) -> TokenBytes | None:
    """Make the table of an ONNX folder that has a tokenizer.json and no token_bytes.bin."""
    file = folder / "tokenizer.json"
    if (folder / "token_bytes.bin").is_file() or not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # of tokenizers, bare; who encodes with it says what is wrong
        return None
    return try_token_bytes(tokenizer, count_tokens(tokenizer))


def vocabulary_notice(target: ModelInfo, draft: ModelInfo) -> Notice | None:
    """Say how the tokens of a target and its draft differ; None if they do not."""
    pair = f"target '{target.name}' and draft '{draft.name}'"
    compared = compare_vocabularies(target, draft)
    if compared is None:
        silent = [f"'{each.name}'" for each in (target, draft) if each.token_bytes is None]
        return Notice(
            f"The tokenizers of {pair} cannot be compared",
            f"No fast tokenizer and no token_bytes.bin come with {' and '.join(silent)}.",
            "The text is exact all the same; a draft with other token ids is only slow.",
        )
    details = [
        f"Only the {role} knows {_count_tokens(ids)}: {_examples(info, ids)}."
        for role, info, ids in (
            ("target", target, compared.only_in_target),
            ("draft", draft, compared.only_in_draft),
        )
        if ids
    ]
    if not details:
        return None
    return Notice(
        f"The tokenizers of {pair} share {compared.num_equal} tokens, but not all",
        *details,
        f"Ids from {num_proposable(target, draft)} on are never proposed.",
    )


def _count_tokens(ids: Sequence[int]) -> str:
    return f"{len(ids)} token{'' if len(ids) == 1 else 's'}"


def _examples(info: ModelInfo, ids: Sequence[int]) -> str:
    assert info.token_bytes is not None
    shown = [f"{info.token_bytes[i].decode(errors='replace')!r} ({i})" for i in ids[:_NUM_EXAMPLES]]
    more = len(ids) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def unknown_token(name: str, token: int, vocab_size: int) -> InvalidArgumentError:
    """Say that a text has a token which only the tokenizer knows, not the model."""
    return InvalidArgumentError(
        f"The model does not know the token {name!r}",
        f"ids below {vocab_size}",
        f"id {token}: it was added to the tokenizer without resizing the model's embedding",
        "Write the text without this token.",
    )


def encode_token_bytes(table: Sequence[bytes]) -> bytes:
    """Lay a table out as token_bytes.bin (docs/onnx-folder.md): count, offsets, bytes."""
    offsets = np.cumsum([0, *map(len, table)], dtype="<u4")
    return np.array([len(table)], "<u4").tobytes() + offsets.tobytes() + b"".join(table)


def decode_token_bytes(data: bytes, count: int) -> list[bytes]:
    """Read the table of `count` tokens out of the contents of token_bytes.bin.

    Raises
    ------
    ValueError
        They are damaged, or of another number of tokens.
    """
    found = int(np.frombuffer(data, "<u4", 1)[0])
    if found != count:
        raise ValueError(f"{found} tokens")
    offsets = np.frombuffer(data, "<u4", count + 1, 4)
    body = data[4 * (count + 2) :]
    if np.any(offsets[1:] < offsets[:-1]) or offsets[-1] != len(body):
        raise ValueError("offsets that do not fit")
    return [body[offsets[i] : offsets[i + 1]] for i in range(count)]


def _speller(tokenizer: Any) -> Callable[[str], bytes]:
    """Return what a tokenizer's decoder does to a token, whatever stands beside it."""
    backend: Tokenizer | None = (
        tokenizer
        if isinstance(tokenizer, Tokenizer)
        else getattr(tokenizer, "backend_tokenizer", None)
    )
    decoder = None if backend is None else backend.decoder
    steps = [] if decoder is None else list(_flatten(json.loads(decoder.__getstate__())))
    kinds = [step["type"] for step in steps]
    replacements: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Metaspace":
            replacements.append((step["replacement"], " "))
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif step["type"] not in _WHOLE_TOKENS:
            kinds.clear()
            break
    if not kinds:
        raise ModelError(
            "The bytes of this tokenizer's tokens cannot be told",
            "a byte-level or SentencePiece-like tokenizer.json",
            f"decoder {', '.join(step['type'] for step in steps) or 'none'}",
            "Use a model with a fast tokenizer of one of these kinds.",
        )
    alphabet = {char: each[0] for char, each in byte_level_alphabet().items()}

    def spell(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if "ByteFallback" in kinds and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if "ByteLevel" in kinds:
            try:
                return bytes(alphabet[char] for char in token)
            except KeyError:  # an added token that is text as it stands
                pass
        return token.encode("utf-8")

    return spell


def _flatten(decoder: Any) -> Iterator[Any]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flatten(part)


def byte_level_alphabet() -> dict[str, bytes]:
    """Byte-level BPE's characters: printable Latin-1 as itself, the rest from U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}
