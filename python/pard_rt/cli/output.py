"""What commands print: aligned lines, colour and progress where a person is watching."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from pard_rt.errors import Error, FallbackWarning, Notice

_COLOURS = {"ok": "32", "FAIL": "31", "note": "33", "bold": "1"}
_PROGRESS_DELAY = 2.0  # seconds that need no explanation
_PROGRESS_INTERVAL = 0.5


def paint(text: str, style: str) -> str:
    """Colour `text` on a terminal; NO_COLOR (no-color.org) is heeded."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"


def print_field(label: str, value: str, *, indent: int = 0, width: int = 16) -> None:
    """Print ``label   value``, values one under the other, later lines of a value too."""
    first, *more = value.split("\n")
    print(f"{' ' * indent}{label:<{width - indent}}{first}", flush=True)
    for line in more:
        print(f"{' ' * width}{line}", flush=True)


def print_verdict(verdict: str, what: str, detail: str, *more: str) -> None:
    """Print one result, `verdict` being ok, FAIL or note; what more there is to say below it."""
    print(f"{paint(verdict, verdict)}{' ' * (6 - len(verdict))}{what:<30}{detail}", flush=True)
    for line in more:
        print(f"      {line}", flush=True)


def explain(error: Error) -> list[str]:
    """Lines that say what an error expected, what was there, and what to do."""
    return [f"expected: {error.expected}", f"got:      {error.actual}", error.remedy]


def print_notice(notice: Notice) -> None:
    """Print a warning to stderr as `print_error` prints errors, over a line of progress."""
    begin = "\r\x1b[K" if sys.stderr.isatty() else ""
    details: Iterable[str] = notice.details
    if isinstance(notice, FallbackWarning):
        details = (notice.error.problem, *explain(notice.error))
    lines = [f"{begin}pard-rt: {notice.what}", *(f"  {line}" for line in details)]
    print("\n".join(lines), file=sys.stderr, flush=True)


def print_error(error: Error) -> None:
    """Print an error to stderr, its parts on lines of their own."""
    lines = [f"pard-rt: {error.problem}", *(f"  {line}" for line in explain(error))]
    print("\n".join(lines), file=sys.stderr, flush=True)


def format_bytes(size: int) -> str:
    """``12.3 MB``, in powers of 1000."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


class Progress:
    """What is being done, for one line that shows once it takes longer than it should."""

    current: ClassVar[Progress | None] = None  # the one that has the line

    def __init__(self, text: str) -> None:
        self.text = text

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
        sys.stderr.write(f"{begin}{shown.text} ... {seconds:.0f} s\x1b[K{end}")
        sys.stderr.flush()
        ended = over.wait(_PROGRESS_INTERVAL)
    sys.stderr.write("\x1b[K" if behind_text else "\r\x1b[K")
    sys.stderr.flush()
