"""What commands print: aligned lines, and colour where a person is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from pard_rt.errors import Error, FallbackWarning, Notice

_COLOURS = {"ok": "32", "FAIL": "31", "note": "33", "bold": "1"}


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
