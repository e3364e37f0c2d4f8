"""The page of a card: which goals it meets, then what every step found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

READING = "rounds, llama-3.1-8b + 1b"  # where plain decoding is compared with copying memory


@dataclass(frozen=True)
class Goal:
    """A number and what it should be."""

    name: str
    measured: float | None  # None: its steps have not been run, or failed
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """Say whether it is met."""
        if self.measured is None:
            return "not measured"
        met = (self.at_least is None or self.measured >= self.at_least) and (
            self.at_most is None or self.measured <= self.at_most
        )
        return "pass" if met else "FAIL"

    @property
    def limit(self) -> str:
        """Say what it should be."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def results(found: Json) -> dict[str, Json]:
    """Return what the steps found that did not fail, by name."""
    return {name: s["result"] for name, s in found["steps"].items() if "result" in s}


def goals(found: Json) -> list[Goal]:
    """Compare the numbers of a card with the goals."""
    rounds = _all_of(found, "rounds, ")
    traces = _all_of(found, "trace, ")
    soaks = _all_of(found, "soak ")
    rows = [row for result in rounds for row in result["recorded"]]
    return [
        Goal(
            "tokens equal to plain decoding, lowest share",
            equal_tokens(found),
            at_least=1.0,
        ),
        Goal(
            f"weights read by plain decoding to memory copied, {READING}",
            reading_share(results(found)),
            at_least=0.80,
        ),
        Goal(
            "efficiency, lowest",
            min((row["efficiency"] for row in rows), default=None),
            at_least=0.98,
        ),
        Goal(
            "speed off the predicted one, largest share",
            max((abs(row["measured / predicted"] - 1) for row in rows), default=None),
            at_most=0.05,
        ),
        Goal(
            "device idle, largest share",
            max((t["idle"] for t in traces), default=None),
            at_most=0.02,
        ),
        Goal("memory grown in the soak, largest share", memory_growth(soaks), at_most=0.01),
    ]


def equal_tokens(found: Json) -> float | None:
    """Lowest share of tokens equal to plain decoding: of all steps, or one below 1 of any."""
    parts: list[Json] = []
    complete = True
    for kind in ("exactness", "onnx", "rounds, ", "compiled, ", "soak "):
        complete = complete and bool(_all_of(found, kind))
        for name, result in results(found).items():
            if name.startswith(kind):
                parts += [result, result.get("plain", {}), *result.get("recorded", [])]
    shares = [part["equal tokens"] for part in parts if "equal tokens" in part]
    lowest: float | None = min(shares, default=None)
    return lowest if complete or (lowest is not None and lowest < 1) else None


def _all_of(found: Json, kind: str) -> list[Json]:
    """Return the results of the steps of a kind, once there are all of them."""
    names = [name for name in found["plan"] if name.startswith(kind)]
    done = results(found)
    return [done[name] for name in names] if all(name in done for name in names) else []


def reading_share(steps: dict[str, Json]) -> float | None:
    """Speed at which plain decoding reads weights, to that of copying memory."""
    if READING not in steps or "bandwidth" not in steps:
        return None
    plain = steps[READING]["plain"]
    read = plain["tokens/s"] * plain["bytes of weights read per token"]
    return float(read / steps["bandwidth"]["bytes per second"])


def memory_growth(soaks: list[Json]) -> float | None:
    """Growth within the slices from the second on, added up, to what the second began with.

    The largest of all kinds of memory. Slices may have run in different processes, so that only
    what grew within one is counted; the first is left to whatever settles late.
    """
    if len(soaks) < 2:
        return None
    kinds = [kind for kind in soaks[1]["memory"][0] if kind != "when"]
    grown: Iterable[float] = (
        sum(end[kind] - start[kind] for start, end in (s["memory"] for s in soaks[1:]))
        / soaks[1]["memory"][0][kind]
        for kind in kinds
    )
    return max(grown)


def page(found: Json) -> str:
    """Write the page of a card."""
    lines = [f"# On {found['card']}", "", f"{found['versions']}.", "", "## Goals", ""]
    if found["dry run"]:
        lines += ["Dry run: no goal is judged.", ""]
    else:
        rows = [
            {"goal": g.name, "is": g.measured, "should be": g.limit, "": g.verdict}
            for g in goals(found)
        ]
        lines += [*_table(rows), ""]
    if waiting := [name for name in found["plan"] if name not in results(found)]:
        lines += [f"Not done: {'; '.join(waiting)}.", ""]
    for name, step in found["steps"].items():
        lines += [f"## {name}", ""]
        if "error" in step:
            lines += [f"Failed: {step['error']}", ""]
            continue
        if step["versions"] != found["versions"]:
            lines += [f"With {step['versions']}.", ""]
        for key, value in step["result"].items():
            if isinstance(value, dict | list):
                rows = [value] if isinstance(value, dict) else value
                lines += ["", f"{key}:", "", *_table(rows), ""]
            else:
                lines.append(f"* {key}: {_text(value)}")
        lines.append("")
    return "\n".join(lines)


def _table(rows: list[Json]) -> list[str]:
    columns = list(rows[0])
    cells = [" | ".join(_text(row[column]) for column in columns) for row in rows]
    return [
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
        *(f"| {c} |" for c in cells),
    ]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
