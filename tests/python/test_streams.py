"""Streams: what has been committed is what is read, wherever an interrupt arrives."""

from __future__ import annotations

import linecache
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

import pard_rt
from conftest import TinyModels
from pard_rt import (
    AutoregressiveDrafter,
    Decoder,
    ForwardItem,
    Generator,
    Model,
    ModelInfo,
    Output,
    Piece,
    Stream,
)
from pard_rt.options import Params
from pard_rt.streams import Rounds
from pard_rt.text import TokenText

PACKAGE = Path(pard_rt.__file__).parent
END = 256  # a special token behind the 256 bytes
SCRIPT = [*"a → b".encode(), END, *b"cde", END, *b"fgh"]
PROMPT = [0, 1]


class Script(Model):
    """Says one text, whatever it is asked; as a draft, wrongly at every third token."""

    def __init__(self, tokens: list[int], *, is_draft: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.is_draft = is_draft
        self.on_forward: Callable[[], None] = lambda: None

    def info(self) -> ModelInfo:
        return ModelInfo(name="script", vocab_size=257, max_length=64)

    def forward(self, batch: list[ForwardItem]) -> NDArray[np.float32]:
        self.on_forward()
        rows = []
        for item in batch:
            end = item.past_length + len(item.tokens)
            for position in range(end - item.num_rows, end):
                at = position + 1 - len(PROMPT)
                row = np.zeros(257, np.float32)
                is_wrong = self.is_draft and at % 3 == 2
                row[(self.tokens[at % len(self.tokens)] + is_wrong) % 257] = 1
                rows.append(row)
        self.on_forward()
        return np.stack(rows) if rows else np.zeros((0, 257), np.float32)

    def release(self, sequence: int) -> None:
        pass


@pytest.fixture
def target() -> Script:
    return Script(SCRIPT)


@pytest.fixture
def rounds(target: Script) -> Rounds:
    table = [bytes([byte]) for byte in range(256)] + [b""]
    words = Tokenizer(models.WordLevel({"<|im_end|>": END}, unk_token="?"))
    drafter = AutoregressiveDrafter(Script(SCRIPT, is_draft=True))
    decoder = Decoder(target, drafter, num_speculative_tokens=3)
    return Rounds(decoder, threading.RLock(), TokenText(words, table))


def params(**options: Any) -> Params:
    return Params(max_new_tokens=len(SCRIPT), **options)


# Options, and the text, the number of tokens and the reason to end that follow.
CASES: list[tuple[dict[str, Any], tuple[str, int, str]]] = [
    ({}, ("a → bcdefgh", 15, "length")),
    ({"skip_special_tokens": False}, ("a → b<|im_end|>cde<|im_end|>fgh", 15, "length")),
    ({"stop": ("b<|im_end|>c",)}, ("a → ", 9, "stop")),
    ({"stop": ("e<|im_end|>f", "cd", "de")}, ("a → b", 10, "stop")),
    ({"stop": ("<|im_end|>",), "skip_special_tokens": False}, ("a → b", 8, "stop")),
    ({"stop": ("never", "h!")}, ("a → bcdefgh", 15, "length")),
]


def check(pieces: list[Piece], output: Output, expected: tuple[str, int, str]) -> None:
    text, num_tokens, reason = expected
    assert "".join(map(str, pieces)) == output.text == text
    assert [piece.token_id for piece in pieces] == output.token_ids == SCRIPT[:num_tokens]
    assert output.finish_reason == reason
    assert output.stats.counts.committed == num_tokens
    assert sum(piece.from_draft for piece in pieces) > 0


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_a_stream_gives_text_tokens_and_what_drafts_gave(
    options: dict[str, Any], expected: tuple[str, int, str], rounds: Rounds
) -> None:
    stream = Stream(rounds, PROMPT, params(**options))
    pieces = list(stream)
    check(pieces, stream.output, expected)
    alone = Rounds(Decoder(Script(SCRIPT)), threading.RLock(), None)
    bare = list(Stream(alone, PROMPT, params()))
    assert [(piece.text, piece.from_draft) for piece in bare] == [("", False)] * len(SCRIPT)


def test_what_has_come_is_what_pieces_have_said(rounds: Rounds) -> None:
    stream = Stream(rounds, PROMPT, params(stop=("<|im_end|>cdX",)))
    said = ""
    for piece in stream:
        said += piece.text
        assert (stream.output.text or "").startswith(said)
    assert said == stream.output.text == "a → bcdefgh"


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of some of the package's files that is run."""

    def __init__(self, n: int, *files: str) -> None:
        self.left = n
        self.files = {str(PACKAGE / file) for file in files}

    def __call__(self, frame: FrameType, event: str, _: object) -> Interrupt | None:
        code = frame.f_code
        if code.co_filename not in self.files:
            return None
        line = linecache.getline(code.co_filename, frame.f_lineno).strip()
        # Python looks for signals at calls and jumps, so that none comes right before this line.
        if event == "line" and not (code.co_name == "__next__" and line == "return piece"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self

    @property
    def came(self) -> bool:
        return self.left <= 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def read_on(stream: Stream) -> list[Piece]:
    """Read a stream to its end, however often it is interrupted."""
    pieces: list[Piece] = []
    while True:
        try:
            for piece in stream:
                pieces.append(piece)
            return pieces
        except KeyboardInterrupt:
            continue


@pytest.mark.parametrize(("options", "expected"), CASES[1:4:2])
def test_an_interrupt_at_any_line_loses_no_piece_and_passes_no_stop_string(
    options: dict[str, Any], expected: tuple[str, int, str], rounds: Rounds
) -> None:
    for n in range(1, 5000):
        stream = Stream(rounds, PROMPT, params(**options))
        interrupt = Interrupt(n, "streams.py", "text.py")
        with interrupt.armed():
            pieces = read_on(stream)
        check(pieces, stream.output, expected)
        if not interrupt.came:
            assert n > 100
            return
    pytest.fail("the text has no end")


def test_an_interrupt_in_a_forward_loses_no_piece(target: Script, rounds: Rounds) -> None:
    left = 0

    def interrupt() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)

    target.on_forward = interrupt
    for calls in range(1, 20):
        for options, expected in CASES:
            left = calls
            stream = Stream(rounds, PROMPT, params(**options))
            check(read_on(stream), stream.output, expected)


def test_an_interrupt_ends_what_generate_had_begun() -> None:
    generator = Generator("demo", num_speculative_tokens=2, threads=1)
    options: Any = {"max_new_tokens": 4, "stop": ["\0"]}
    prompts = ["import os", "def main("]
    expected = [output.token_ids for output in generator.generate(prompts, **options)]
    for n in range(1, 5000, 7):
        interrupt = Interrupt(n, "streams.py", "text.py", "generator.py")
        try:
            with interrupt.armed():
                generator.generate(prompts, **options)
        except KeyboardInterrupt:
            pass
        if not interrupt.came:
            assert n > 100
            return
        again = [output.token_ids for output in generator.generate(prompts, **options)]
        assert again == expected
        assert generator.decoder.num_active == generator.decoder.num_waiting == 0
    pytest.fail("the texts have no end")


def test_an_interrupt_in_pytorch_s_forward_loses_no_piece(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pard_rt.pytorch.torch_model import TorchModel

    generator = Generator(
        tiny_models.checkpoint("llama"),
        tiny_models.checkpoint("llama", seed=1, mask_token=True),
        num_speculative_tokens=3,
    )
    expected = generator.generate("the rain", max_new_tokens=12)
    forward = TorchModel.forward
    left = 0

    def interrupted(model: TorchModel, batch: list[ForwardItem]) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        rows = forward(model, batch)
        if left == -1:
            signal.raise_signal(signal.SIGINT)
        return rows

    monkeypatch.setattr(TorchModel, "forward", interrupted)
    for forwards in range(1, 16, 2):
        left = forwards
        stream = generator.stream("the rain", max_new_tokens=12)
        pieces = read_on(stream)
        assert [piece.token_id for piece in pieces] == expected.token_ids
        assert "".join(map(str, pieces)) == stream.output.text == expected.text
