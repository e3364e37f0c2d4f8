"""The way of docs/training.md from a target alone to a chat with a draft of its own."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from conftest import TinyModels
from pard_rt.cli import main
from pard_rt.models.checkpoint import load
from tiny_models import EOS, VOCAB_SIZE

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALLER = {"--questions 2000": "--questions 40", "--layers 6": "--layers 1"}


def test_from_nothing_but_the_target(
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tiny_models.checkpoint("llama", seed=3, max_position_embeddings=512)
    target = Path(shutil.copytree(source, tmp_path / "target"))
    (target / "chat_template.jinja").write_text(TEMPLATE)
    ends = {"eos_token_id": [*range(0, VOCAB_SIZE, 7), EOS]}  # so it ends soon
    (target / "generation_config.json").write_text(json.dumps(ends))
    section = DOCS.read_text("utf-8").split("## From nothing but the target")[1]
    commands = re.findall(r"^    pard-rt (.*)$", section.split("\n## ")[0], re.MULTILINE)
    assert [shlex.split(command)[0] for command in commands] == [
        "train", "train", "export", "check", "chat",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for command in commands:
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        monkeypatch.setattr("sys.stdin", io.StringIO("the cat?\n"))
        assert main(shlex.split(command.replace("TARGET", str(target)))) == 0, command
    assert "tokens per round" in capsys.readouterr().out
    assert len(Path("answers.jsonl").read_text().splitlines()) == 40
    assert load("draft").config.num_hidden_layers == 1
