"""Draw what a terminal showed as SVG, such as docs/chat.svg.

script -qc "pard-rt chat smollm2" session
python tools/terminal_picture.py session docs/chat.svg
"""

from __future__ import annotations

import re
import sys
from html import escape
from itertools import groupby
from pathlib import Path

COLUMNS, SIZE, STEP, EDGE = 100, 14, 18, 16  # characters of a line, then pixels
ADVANCE = 7.84  # pixels of a character
STYLES = {
    "1": ' font-weight="bold" fill="#ffffff"',
    "31": ' fill="#ff7b72"',
    "32": ' fill="#7ee787"',
    "33": ' fill="#d29922"',
}
PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\x1b])", re.DOTALL)
ERASED = re.compile(r"[^\n]*\r\x1b\[K|^Script (started|done) on .*$", re.MULTILINE)
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'width="{width}" height="{height}">\n'
    '<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n'
    '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" '
    'font-size="{size}" fill="#c9d1d9">\n'
)


def cells(shown: str) -> list[list[tuple[str, str]]]:
    """Return lines of characters and their styles; of the codes only colours and bold count."""
    shown = ERASED.sub("", shown).replace("\r", "").strip()
    lines: list[list[tuple[str, str]]] = [[]]
    style = ""
    for number, letter, character in PARTS.findall(shown):
        if letter == "m":
            style = STYLES.get(number, "")
        elif character == "\n" or (character and len(lines[-1]) == COLUMNS):
            lines.append([])
        if character.strip("\n"):
            lines[-1].append((style, character))
    return lines


def draw(shown: str) -> str:
    """Return the SVG of what came over a terminal."""
    lines = cells(shown)
    width, height = round(2 * EDGE + COLUMNS * ADVANCE), 2 * EDGE + STEP * len(lines)
    drawn = HEAD.format(width=width, height=height, size=SIZE)
    for number, line in enumerate(lines):
        runs = groupby(line, lambda cell: cell[0])
        spans = [f"<tspan{s}>{escape(''.join(c for _, c in run))}</tspan>" for s, run in runs]
        y = EDGE + SIZE + STEP * number
        drawn += f'<text x="{EDGE}" y="{y}" xml:space="preserve">{"".join(spans)}</text>\n'
    return drawn + "</g>\n</svg>\n"


if __name__ == "__main__":
    session, picture = map(Path, sys.argv[1:])
    picture.write_text(draw(session.read_bytes().decode("utf-8")), "utf-8")  # with its \r
