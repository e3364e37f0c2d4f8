"""Between text and token ids, as a model's tokenizer has it; text comes out token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
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
        The bytes of every token id; ids behind it spell nothing.
    """

    def __init__(self, tokenizer: Tokenizer, table: list[bytes]) -> None:
        tokenizer.no_truncation()  # what a tokenizer.json may still have from training
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._table = table

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
        """Return the bytes a token stands for; none for special tokens."""
        return self._table[token] if 0 <= token < len(self._table) else b""

    def decode(self, tokens: Iterable[int], *, is_all: bool = True) -> str:
        """Return the text of tokens; what is no UTF-8 becomes U+FFFD.

        Unless that `is_all`, a character begun at the end is left out.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return decoder.decode(b"".join(map(self.spell, tokens)), final=is_all)


class TextStream:
    """Whole characters from tokens that come one by one and may hold parts of them.

    Parameters
    ----------
    text
        What spells the tokens.
    stop
        Strings that end the text, none of them empty.

    Attributes
    ----------
    stopped
        Whether one of them has come.
    """

    def __init__(self, text: TokenText, stop: tuple[str, ...] = ()) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = stop
        self._waiting = ""  # what may turn out to be the beginning of a stop string
        self.stopped = False

    def feed(self, token: int, is_last: bool) -> str:
        """Return the characters that `token` completes; at the last one, all that is left.

        A stop string is left out, and what may be the beginning of one waits.
        """
        come = self._waiting + self._decoder.decode(self._text.spell(token), final=is_last)
        before = before_stop(come, self._stop)
        self.stopped = before != come
        sure = len(before)
        if not (self.stopped or is_last):
            sure -= max((_overlap(come, stop) for stop in self._stop), default=0)
        self._waiting = before[sure:]
        return before[:sure]


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """Return what stands before the first of the stop strings; all of it, if there is none."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    return next(n for n in range(len(stop) - 1, -1, -1) if text.endswith(stop[:n]))
