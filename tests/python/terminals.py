"""A program at a pseudo-terminal: typed to, and read from as it answers."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[78])|\r")


class Terminal:
    """The far end of a terminal, and the program at it."""

    def __init__(self, end: int, program: subprocess.Popen[bytes]) -> None:
        self._end = end
        self._program = program
        self.shown = b""  # all of it, with the terminal's codes
        self._read = 0

    def type(self, keys: str) -> None:
        """Press keys; ``\\x03`` is Ctrl-C, ``\\x04`` Ctrl-D, ``\\n`` the return key."""
        os.write(self._end, keys.encode())

    def read_until(self, text: str) -> str:
        """Return what comes next, up to and with `text`, without the terminal's codes."""
        while True:
            so_far = plain(self.shown)
            at = so_far.find(text, self._read)
            if at >= 0:
                new = so_far[self._read : at + len(text)]
                self._read = at + len(text)
                return new
            if not (come := self._receive()):
                raise AssertionError(f"{text!r} did not come; what did: {so_far[self._read :]!r}")
            self.shown += come

    def insist(self, keys: str, text: str) -> None:
        """Press keys, again every second, until `text` comes.

        Python's input() overlooks a Ctrl-C that comes while it takes another key.
        """
        again = time.monotonic()
        while plain(self.shown).find(text, self._read) < 0:
            left = again - time.monotonic()
            if left <= 0:
                self.type(keys)
                again, left = time.monotonic() + 1, 1
            if select.select([self._end], [], [], left)[0]:
                if not (come := self._receive()):
                    break
                self.shown += come
        self.read_until(text)

    def read_more_than(self, count: int) -> None:
        """Read until so many more bytes have come."""
        until = len(self.shown) + count
        while len(self.shown) < until and (come := self._receive()):
            self.shown += come

    def status(self) -> int:
        """Read the rest, and return the program's exit status."""
        while come := self._receive():
            self.shown += come
        return self._program.wait()

    def _receive(self) -> bytes:
        try:
            return os.read(self._end, 1 << 16)
        except OSError:  # Linux's way of saying that nobody holds the other end
            return b""


def plain(shown: bytes) -> str:
    """Text without colours, cursor movements and carriage returns."""
    return _CODES.sub("", shown.decode("utf-8", "replace"))


@contextmanager
def at_a_terminal(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a program whose three streams are a terminal that it controls, as a shell would."""
    end, program_end = os.openpty()
    # The leader of a session gets the first terminal that it opens: Ctrl-C then reaches it.
    opening = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(program_end), *command]
    program = subprocess.Popen(
        opening, start_new_session=True, env={**os.environ, "TERM": "xterm", **(environment or {})}
    )
    try:
        # Both ends stay open until the program has its own.
        terminal = Terminal(end, program)
        terminal.shown += os.read(end, 1)
        os.close(program_end)
        program_end = -1
        yield terminal
    finally:
        program.kill()
        program.wait()
        os.close(end)
        if program_end >= 0:
            os.close(program_end)
