"""What a tokenizer's ids stand for: digests to compare tokenizers, and the bytes of each token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pard_rt.errors import ModelError


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of a tokenizer's tokens that stand for no text; tokenizers as for `token_bytes`."""
    added: dict[int, Any] = (
        tokenizer.get_added_tokens_decoder()
        if isinstance(tokenizer, Tokenizer)
        else tokenizer.added_tokens_decoder
    )
    special = {i for i, token in added.items() if token.special}
    return special | set(getattr(tokenizer, "all_special_ids", ()))


def digest_vocabulary(vocabulary: Mapping[str, int], left_out: Collection[int] = ()) -> str:
    """Digest of a token-to-id map without some ids; empty for an empty map.

    Special tokens and the mask token are left out of a model's digest: they stand for no text, a
    draft may have a mask token that its target lacks, and verification is exact either way.
    """
    entries = sorted((i, token) for token, i in vocabulary.items() if i not in left_out)
    if not entries:
        return ""
    text = json.dumps(entries, ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def count_tokens(vocabulary: Mapping[str, int], mask_token_id: int | None = None) -> int:
    """One more than the largest id in use, the mask token left out; 0 for an empty map."""
    return 1 + max((i for i in vocabulary.values() if i != mask_token_id), default=-1)


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
        The tokenizer's decoder is neither byte-level nor of the SentencePiece kind.
    """
    backend: Tokenizer | None = (
        tokenizer
        if isinstance(tokenizer, Tokenizer)
        else getattr(tokenizer, "backend_tokenizer", None)
    )
    special = special_token_ids(tokenizer)
    decoders = set() if backend is None else _decoder_types(json.loads(backend.to_str())["decoder"])
    if "ByteLevel" in decoders:
        to_byte = byte_level_alphabet()
    elif decoders & {"ByteFallback", "Metaspace", "Replace"}:
        to_byte = None
    else:
        raise ModelError(
            "The bytes of this tokenizer's tokens cannot be told",
            "a byte-level or SentencePiece-like tokenizer.json",
            f"decoder {', '.join(sorted(decoders)) or 'none'}",
            "Use a model with a fast tokenizer of one of these kinds.",
        )
    table = [b""] * count
    for token, i in tokenizer.get_vocab().items():
        if i >= count or i in special:
            continue
        # Added tokens too: decoders see every token.
        table[i] = _piece_bytes(token) if to_byte is None else _level_bytes(token, to_byte)
    return table


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


def _decoder_types(decoder: Any) -> set[str]:
    return set(_walk_types(decoder))


def _walk_types(decoder: Any) -> Iterator[str]:
    if decoder:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _walk_types(part)


def _piece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8")


def _level_bytes(token: str, alphabet: Mapping[str, bytes]) -> bytes:
    if all(char in alphabet for char in token):
        return b"".join(alphabet[char] for char in token)
    return token.encode("utf-8")


def byte_level_alphabet() -> dict[str, bytes]:
    """Byte-level BPE's characters: printable Latin-1 as itself, the rest from U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}
