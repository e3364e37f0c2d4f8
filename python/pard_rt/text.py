"""Between text and token ids, as a model's tokenizer has it; text comes out token by token."""

from __future__ import annotations

import ctypes
from codecs import utf_8_decode
from collections.abc import Iterable
from collections.abc import Sequence as ListLike
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pard_rt.errors import FolderError, InvalidArgumentError
from pard_rt.vocabulary import decode_token_bytes, token_bytes, unknown_token


class TokenText:
    """Encodes prompts and spells tokens.

    Parameters
    ----------
    tokenizer
        What encodes: a `tokenizers.Tokenizer`.
    table
        The bytes of every token id, empty for special tokens. Ids past its end spell nothing.
    """

    def __init__(self, tokenizer: Tokenizer, table: list[bytes]) -> None:
        tokenizer.no_truncation()  # what a tokenizer.json may still have from training
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._table = table
        named = ((i, tokenizer.id_to_token(i)) for i, spelled in enumerate(table) if not spelled)
        self._special = {i: name.encode() for i, name in named if name is not None}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encodes."""
        return self._tokenizer

    @classmethod
    def of_folder(cls, folder: Path, num_tokens: int) -> TokenText:
        """Read the tokenizer.json of a folder, and its token_bytes.bin where there is one.

        Raises
        ------
        FolderError
            There is no tokenizer, or one of the two files is damaged.
        ModelError
            The bytes of the tokenizer's tokens cannot be told.
        """
        file = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise FolderError(
                f"'{folder}' has no tokenizer to encode a prompt with",
                "a tokenizer.json",
                "a damaged one" if file.is_file() else "none",
                "Copy it there from the original model, or pass token ids.",
            ) from error
        _give_back_memory()
        spelled = folder / "token_bytes.bin"
        if not spelled.is_file():
            return cls(tokenizer, token_bytes(tokenizer, num_tokens))
        try:
            return cls(tokenizer, decode_token_bytes(spelled.read_bytes(), num_tokens))
        except (ValueError, IndexError) as error:
            raise FolderError(
                f"'{spelled}' cannot be read as a table of tokens",
                f"{num_tokens} tokens, offsets that grow, and as many bytes",
                str(error),
                "Copy or export the folder again.",
            ) from error

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, num_tokens: int) -> TokenText:
        """Take a tokenizer of transformers, or a `tokenizers.Tokenizer`.

        Raises
        ------
        ModelError
            The bytes of its tokens cannot be told, as those of a slow tokenizer.
        """
        table = token_bytes(tokenizer, num_tokens)
        return cls(getattr(tokenizer, "backend_tokenizer", tokenizer), table)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's token ids, by default with what special tokens the tokenizer adds.

        Raises
        ------
        InvalidArgumentError
            It is no Unicode text, or has a token that the model has no logits for.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                "A prompt is no text", "Unicode", str(error), "Decode it as what it is."
            ) from error
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        for token, name in zip(encoded.ids, encoded.tokens, strict=True):
            if token >= len(self._table):
                raise unknown_token(name, token, len(self._table))
        return [int(token) for token in encoded.ids]

    @property
    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that stand in a text as they are, special ones among them."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {token.content: int(number) for number, token in added}

    def spell(self, token: int) -> bytes:
        """Return the bytes an ordinary token stands for; none for special tokens."""
        return self._table[token] if 0 <= token < len(self._table) else b""

    def spell_special(self, token: int) -> bytes:
        """Return a special token's own text in UTF-8; nothing for ordinary tokens."""
        return self._special.get(token, b"")


@dataclass(frozen=True)
class Reading:
    """A text, as far as its tokens have been read.

    To read a token gives another object and leaves this one alone, so an interrupt cannot tear it.

    Parameters
    ----------
    text
        What spells the tokens; None: they have no text.
    stop
        Strings that end the text, none of them empty. They are searched in the text as it is
        returned, and in the text with its special tokens spelled.
    skip_special_tokens
        Leave special tokens out of the text.

    Attributes
    ----------
    num_tokens
        How many tokens have been read.
    sure
        The text so far: whole characters, without what may be the beginning of a stop string.
    piece
        What the last token added to it.
    stopped
        Whether a stop string is complete: the text ends before it.
    """

    text: TokenText | None
    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    num_tokens: int = 0
    sure: str = ""
    piece: str = ""
    stopped: bool = False
    begun: bytes = b""  # a character whose other bytes have not come
    waiting: tuple[tuple[str, bool], ...] = ()  # and whether the text shows it

    def read(self, token: int, *, is_last: bool) -> Reading:
        """Read one more token. At the last one nothing waits for more."""
        spelled, special = b"", b""
        if self.text is not None:
            spelled, special = self.text.spell(token), self.text.spell_special(token)
        if not self.skip_special_tokens:
            spelled, special = spelled or special, b""
        characters, used = utf_8_decode(self.begun + spelled, "replace", is_last)
        come = list(self.waiting)
        if special:
            come.append((special.decode(), False))  # as one: no stop string begins inside it
        come += ((character, True) for character in characters)
        end, stopped = _find_stop(come, self.stop)
        if is_last and not stopped:
            end = len(come)
        piece = _shown(come[:end])
        return replace(
            self,
            num_tokens=self.num_tokens + 1,
            sure=self.sure + piece,
            piece=piece,
            stopped=stopped,
            begun=b"" if stopped else (self.begun + spelled)[used:],
            waiting=() if stopped else tuple(come[end:]),
        )

    def whole(self) -> str:
        """Return the text if no token follows: nothing waits, and U+FFFD is a character cut off."""
        return self.sure + _shown(self.waiting) + utf_8_decode(self.begun, "replace", True)[0]


def _shown(come: Iterable[tuple[str, bool]]) -> str:
    return "".join(spelled for spelled, is_shown in come if is_shown)


def _find_stop(come: ListLike[tuple[str, bool]], stop: tuple[str, ...]) -> tuple[int, bool]:
    """Find where the first stop string begins, or else where one may have begun at the end.

    Returns
    -------
    end : int
        What comes before this place is sure.
    stopped : bool
        Whether a stop string is complete.
    """
    found, begun = [], [len(come)]
    every = tuple(range(len(come)))
    shown = tuple(i for i in every if come[i][1])
    for places in {every, shown} if stop else ():
        text = "".join(come[i][0] for i in places)
        offsets = [0, *accumulate(len(come[i][0]) for i in places)]
        starts = dict(zip(offsets, [*places, len(come)], strict=True))
        for (at, i), each in product(starts.items(), stop):
            if text.startswith(each, at) and at + len(each) in starts:
                found.append(i)
            elif each.startswith(text[at:]):
                begun.append(i)
    return (min(found), True) if found else (min(begun), False)


def _give_back_memory() -> None:
    """Let the system have what was freed: parsing Gemma's tokenizer leaves 190 MB of that.

    glibc would keep it for the process.
    """
    with suppress(AttributeError, OSError, TypeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
