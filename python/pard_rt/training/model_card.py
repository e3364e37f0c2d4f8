"""What a trained draft says of itself: its model card, and the curves of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pard_rt.errors import requiring
from pard_rt.training.acceptance import MeasuredAcceptance

CURVES = "training.svg"


def model_card(
    name: str,
    base_model: str,
    settings: Mapping[str, str],
    acceptance: MeasuredAcceptance | None,
    *,
    has_curves: bool,
) -> str:
    """Write the README.md of a draft, its first lines as the hub reads them.

    Parameters
    ----------
    name
        Of the draft.
    base_model
        Name or hub id of the model it was made of.
    settings
        Lines of the table: what, and its value.
    acceptance
        With the target it was measured with, if there was one.
    has_curves
        Whether their picture lies beside the card.
    """
    lines = [
        "---",
        f"base_model: {json.dumps(base_model)}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [pard, parallel-draft, speculative-decoding]",
        "---",
        "",
        f"# {name}",
        "",
        f"A parallel draft ([PARD](https://arxiv.org/abs/2504.18583)) made of {base_model}: it"
        " proposes several tokens in one forward, for targets with the same tokenizer to verify."
        " It is no model to talk to.",
        "",
        "```python",
        "import pard_rt",
        "",
        f'generator = pard_rt.Generator("TARGET", {json.dumps(name)})',
        "```",
        "",
        "## Acceptance",
        "",
        *_acceptance(acceptance),
        "",
        "## Training",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {what} | {value} |" for what, value in settings.items()),
    ]
    if has_curves:
        lines += ["", f"![Loss and accuracy of every sub-task]({CURVES})"]
    return "\n".join(lines) + "\n"


def _acceptance(found: MeasuredAcceptance | None) -> list[str]:
    if found is None:
        return ["Not measured: no target was given in training."]
    places = range(1, len(found.held) + 1)
    return [
        f"{found.tokens_per_round:.2f} tokens per round with {found.target}, greedy, K ="
        f" {found.num_speculative_tokens}, on documents held out of the training data."
        " Share of the rounds in which the first i proposals held:",
        "",
        "| i | " + " | ".join(map(str, places)) + " |",
        "| --- " * (len(found.held) + 1) + "|",
        "| | " + " | ".join(f"{share:.2f}" for share in found.held) + " |",
    ]


def plot_curves(history: Path, to: Path) -> None:
    """Draw what the log of a training says over its steps, as SVG.

    Raises
    ------
    RuntimeMissingError
        matplotlib is not installed.
    """
    with requiring("train", "Drawing the curves"):
        import matplotlib
        from matplotlib.figure import Figure
    records = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
    measured = [record for record in records if "tokens_per_round" in record]
    panels = [("subtask_loss", "loss, nats a row"), ("subtask_accuracy", "accuracy")]
    width = 4.5 * (len(panels) + bool(measured))
    with matplotlib.rc_context({"svg.hashsalt": "pard-rt", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width, 3.2), layout="constrained")
        axes = figure.subplots(1, len(panels) + bool(measured))
        for axis, (key, title) in zip(axes, panels, strict=False):
            _draw_subtasks(axis, records, key)
            axis.set_title(title)
        axes[0].legend(title="sub-task", ncols=2)
        if measured:
            steps = [record["step"] for record in measured]
            axes[-1].plot(steps, [record["tokens_per_round"] for record in measured], "o-")
            axes[-1].set_title("tokens per round with the target")
        for axis in axes:
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
        figure.savefig(to, format="svg", metadata={"Date": None})


def _draw_subtasks(axis: Any, records: list[dict[str, Any]], key: str) -> None:
    from matplotlib import colormaps

    count = len(records[-1][key])
    for depth in range(count):
        points = [(r["step"], r[key][depth]) for r in records if r[key][depth] is not None]
        colour = colormaps["viridis"](depth / max(1, count - 1) * 0.9)
        axis.plot(*zip(*points, strict=True), color=colour, label=str(depth + 1))
