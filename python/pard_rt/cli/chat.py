"""`pard-rt chat`: a conversation with a model, at a terminal or line by line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import dataclass
from typing import Any

from pard_rt.cli.output import paint, print_error
from pard_rt.cli.texts import open_generator, options_of, print_pieces, print_stats, text_of_stdin
from pard_rt.errors import Error
from pard_rt.generator import Message

_BLOCK = '"""'
_HELP = f"""\
/reset        forget the conversation; the system message stays
/system TEXT  set the system message from here on; without TEXT, remove it
/help         show this
/exit         end the chat; Ctrl-D does too
A line that ends in \\ continues on the next line. A line of {_BLOCK} begins a message of several
lines, and the next such line ends it. Ctrl-C stops an answer; what came of it stays in the
conversation."""


def run_chat(arguments: argparse.Namespace) -> int:
    """Talk until the input ends; 2 where a message from a pipe could not be answered."""
    chat = _Chat(arguments)
    with contextlib.suppress(EOFError):
        while chat.is_open:
            try:
                chat.take(chat.read())
            except KeyboardInterrupt:
                if not chat.is_watched:
                    raise
                print()
    if chat.is_open and chat.is_watched:
        print()  # behind the prompt where Ctrl-D was typed
    return chat.status


class _CtrlC:
    """Makes Ctrl-C raise KeyboardInterrupt within its blocks, once in each, and nowhere else.

    A second Ctrl-C that is pressed while the first is handled would end the program. Within
    input() it even makes Python raise a SystemError.
    """

    def __enter__(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @staticmethod
    def _interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Typed:
    text: str
    is_command: bool


class _Chat:
    """The state of a chat: who said what so far, and whether it goes on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.is_open = True
        self.status = 0
        self.is_watched = sys.stdin.isatty() and sys.stdout.isatty()
        self._arguments = arguments
        self._generator = open_generator(arguments)
        _ = self._generator.chat_template  # its error comes before anybody types
        self._system: str | None = arguments.system
        self._said: list[Message] = []
        if self.is_watched:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (edits the lines of input())
            print(paint(f"{arguments.target}: /help lists the commands", "note"))
        self._ctrl_c = _CtrlC() if self.is_watched else contextlib.nullcontext()

    def read(self) -> _Typed:
        """Read a message or a command; EOFError where the input ends."""
        line = self._read_line("> ")
        if line.strip() == _BLOCK:
            return _Typed("\n".join(self._block()), is_command=False)
        is_command = line.startswith("/")
        with contextlib.suppress(EOFError):
            while line.endswith("\\"):
                line = f"{line[:-1]}\n"
                line += self._read_line("  ")
        return _Typed(line, is_command)

    def _block(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(EOFError):
            while (line := self._read_line("  ")).strip() != _BLOCK:
                lines.append(line)
        return lines

    def _read_line(self, prompt: str) -> str:
        with self._ctrl_c:
            return text_of_stdin(lambda: input(prompt if self.is_watched else ""))

    def take(self, typed: _Typed) -> None:
        """Do what was typed."""
        if typed.is_command:
            self._obey(*typed.text[1:].strip().split(None, 1))
        elif typed.text.strip():
            self._answer(typed.text)

    def _obey(self, command: str = "", text: str | None = None) -> None:
        if command == "exit":
            self.is_open = False
        elif command == "reset":
            self._said = []
        elif command == "system":
            self._system = text
        elif command == "help":
            print(_HELP)
        else:
            self._tell(f"there is no command /{command}; /help lists them")

    def _answer(self, text: str) -> None:
        message = {"role": "user", "content": text}
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        try:
            with self._ctrl_c:
                stream = self._generator.stream_chat(
                    [*system, *self._said, message],
                    template_options=self._arguments.template_options,
                    **options_of(self._arguments),
                )
            with stream:
                try:
                    with self._ctrl_c:
                        print_pieces(stream)
                except KeyboardInterrupt:
                    if not self.is_watched:
                        raise
                    print()
        except Error as error:
            print_error(error)
            if self._said:
                self._tell("the message was not taken; /reset forgets the conversation so far")
            self.status = 0 if self.is_watched else 2
            return
        output = stream.output
        if output.token_ids:
            self._said += [message, {"role": "assistant", "content": output.text or ""}]
        print_stats(self._generator, output, adaptive=self._arguments.adaptive)
        if output.finish_reason == "cancelled":
            self._tell("stopped")
        elif output.finish_reason == "length":
            full = output.stats.counts.committed < self._arguments.max_new_tokens
            self._tell(
                "the conversation fills the model's memory; /reset forgets it"
                if full
                else f"cut after {self._arguments.max_new_tokens} tokens: see --max-new-tokens"
            )

    def _tell(self, what: str) -> None:
        print(paint(f"-- {what}", "note"), file=sys.stderr, flush=True)
