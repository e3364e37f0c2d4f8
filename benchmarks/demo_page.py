"""The page of demo_pair.py: its numbers in tables."""

from __future__ import annotations

from statistics import median
from typing import Any

Json = dict[str, Any]

OURS, GENAI = "pard-rt", "onnxruntime-genai"
AGAIN = "classic, PARD's draft"  # the parallel draft, run one token after the other
PROMPT_LENGTH = 64


def format_table(rows: list[Json]) -> str:
    """Write rows as a table."""
    columns = ("engine", "way", "K", "tokens/s", "to plain", "after the first token")
    columns += ("tokens per round", "same text")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in rows:
        per_round = f"{row['tokens_per_round']:.2f}" if "tokens_per_round" in row else ""
        lines.append(
            f"| {row['engine']} | {row['way']} | {row['k'] or ''} | {row['tokens_per_second']:.0f} "
            f"| {row['speed_up']:.2f} | {row['speed_up_after_first']:.2f} | {per_round} "
            f"| {'yes' if row['same_text'] else 'no'} |"
        )
    return "\n".join(lines)


def best(rows: list[Json], engine: str, way: str) -> Json:
    """Return the fastest row of a kind."""
    return max(
        (row for row in rows if (row["engine"], row["way"]) == (engine, way)),
        key=lambda row: row["speed_up"],
    )


def page(found: Json) -> str:
    """Write the page."""
    rows = found["rows"]
    classic, again, pard = (best(rows, OURS, way) for way in ("classic", AGAIN, "PARD"))
    lines = [
        "# What the demo pair gains",
        "",
        f"`python benchmarks/demo_pair.py` on one thread of an {found['machine']}, load "
        f"{found['load']:.1f}; "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + f". {found['prompts']} held-out prompts of {PROMPT_LENGTH} bytes, {found['tokens']} new "
        f"tokens each, greedy; medians of {found['repeats']} turns per prompt, each turn in a "
        f"process of its own; ratios of sums over prompts. {found['looping']} of the outputs came "
        "to repeat themselves and are in a table of their own, below.",
        "",
        *([found["remark"], ""] if "remark" in found else []),
        f"* PARD, K = {pard['k']}: **{pard['speed_up']:.2f}** times plain decoding, "
        f"{pard['speed_up'] / classic['speed_up']:.2f} times classic drafting at its best (K = "
        f"{classic['k']}) with the draft that PARD's was trained on from; after the first token, "
        f"which has all of the target's prefill, {pard['speed_up_after_first']:.2f} and "
        f"{pard['speed_up_after_first'] / classic['speed_up_after_first']:.2f}.",
        f"* PARD's draft has had more training than the classic one. Run one token after the "
        f"other itself ({AGAIN}) it is the better classic draft; PARD is "
        f"{pard['speed_up'] / again['speed_up']:.2f} times that at its best (K = {again['k']}).",
        f"* Efficiency, the bare forwards of draft and target over the time of the rounds: "
        f"{found['efficiency']['median']:.3f} (K = {found['efficiency']['k']}). They are called "
        f"from Python; {1e6 * found['efficiency']['per_call']:.0f} us a call, the time "
        "of the smallest graph there is, are taken off.",
    ]
    peers = {row["engine"] for row in rows} - {OURS}
    if GENAI in peers:
        other = best(rows, GENAI, "plain")
        ours, theirs = (sorted(found["plain_alone"][engine]) for engine in (OURS, GENAI))
        lines.append(
            f"* Plain decoding runs at {median(theirs) / median(ours):.2f} times "
            f"onnxruntime-genai's speed on the same weights, each alone in its process, medians of "
            f"{len(ours)} in turns: {median(ours):.2f} s ({ours[0]:.2f} to {ours[-1]:.2f}) and "
            f"{median(theirs):.2f} s ({theirs[0]:.2f} to {theirs[-1]:.2f}). In the table, all ways "
            f"in one process, it is {1 / other['speed_up']:.2f} times."
        )
    lines += ["", format_table(rows), "", "## Acceptance", ""]
    lines += [
        "Share of the rounds in which the first i proposals held, K = 8:",
        "",
        "| i | " + " | ".join(map(str, range(1, 9))) + " |",
        "| --- |" + " --- |" * 8,
    ]
    for row in rows:
        if row["engine"] == OURS and row["k"] == 8:
            shares = " | ".join(f"{share:.2f}" for share in row["acceptance"])
            lines.append(f"| {row['way']} | {shares} |")
    if found["looping_rows"]:
        lines += ["", "## Outputs that loop", "", format_table(found["looping_rows"])]
    lines += ["", "## What the target writes", ""]
    for text in found["texts"]:
        lines += ["```python", f"{text['prompt']}⟶{text['output']}", "```", ""]
    return "\n".join(lines).rstrip() + "\n"
