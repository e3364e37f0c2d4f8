"""A line on a terminal that says what takes so long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

_PROGRESS_DELAY = 2.0  # seconds that need no explanation
_PROGRESS_INTERVAL = 0.5
_BAR_WIDTH = 20


class Progress:
    """What is being done, for one line that shows once it takes longer than it should."""

    current: ClassVar[Progress | None] = None  # the one that has the line

    def __init__(self, text: str) -> None:
        self.text = text
        self._bar = ""

    def reach(self, share: float) -> None:
        """Show how much is done, from 0 to 1, as a bar after the text."""
        filled = "#" * round(share * _BAR_WIDTH)
        self._bar = f" [{filled:<{_BAR_WIDTH}}] {100 * share:.0f} %"

    @property
    def line(self) -> str:
        """What the line shows."""
        return f"{self.text}{self._bar}"

    def print(self, line: str) -> None:
        """Print a line in the middle of it."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        print(line, flush=True)


@contextmanager
def progress(text: str, *, behind_text: bool = False) -> Iterator[Progress]:
    """Say on stderr, if it is a terminal, what takes so long; the line goes when the block ends.

    Inside the block, print through the object given; what it says may be changed there, too. A
    block inside another has no line of its own, but says its text on the other's. With
    `behind_text`, what stands on the line already stays.
    """
    outer = Progress.current
    if outer is not None:
        before, outer.text = outer.text, text
        try:
            yield outer
        finally:
            outer.text = before
        return
    shown = Progress(text)
    if not sys.stderr.isatty():
        yield shown
        return
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(shown, over, behind_text), daemon=True)
    thread.start()
    Progress.current = shown
    try:
        yield shown
    finally:
        Progress.current = None
        over.set()
        thread.join()


def _show(shown: Progress, over: threading.Event, behind_text: bool) -> None:
    start = time.monotonic()
    if over.wait(_PROGRESS_DELAY):
        return
    # Behind text, cut off where the line ends, and the cursor is put back.
    begin, end = ("\x1b7\x1b[?7l ", "\x1b[?7h\x1b8") if behind_text else ("\r", "")
    ended = False
    while not ended:
        seconds = time.monotonic() - start
        sys.stderr.write(f"{begin}{shown.line} ... {seconds:.0f} s\x1b[K{end}")
        sys.stderr.flush()
        ended = over.wait(_PROGRESS_INTERVAL)
    sys.stderr.write("\x1b[K" if behind_text else "\r\x1b[K")
    sys.stderr.flush()
