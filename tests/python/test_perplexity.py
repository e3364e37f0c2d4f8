"""Perplexity: that of the second halves of windows, whatever runs the model."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from pard_rt import FolderError, InvalidArgumentError
from pard_rt.cli import main
from pard_rt.cli.perplexity import perplexity, read_text
from pard_rt.exporter import export
from pard_rt.models import open_model
from pard_rt.progress import Progress
from tiny_models import BOS, make_model

TEXT = "the rain in the an of there is the answer " * 120


@pytest.fixture(params=[False, True], ids=["plain", "begins"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer may begin texts with a token of its own."""
    folder = make_model(tmp_path / "model")
    if request.param:
        file = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(file)
        special = [("<s>", BOS)]
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
        tokenizer.save(file)
    return folder


def expected(model: Path) -> tuple[float, int]:
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(model)(TEXT)["input_ids"]
    window = min(512, module.config.max_position_embeddings)
    losses = []
    for begin in range(0, len(ids) - window + 1, window):
        part = torch.tensor(ids[begin : begin + window])
        if ids[0] == BOS:
            part[0] = BOS
        with torch.no_grad():
            logits = module(part[None]).logits[0]
        half = window // 2
        rows, tokens = logits[half:-1], part[half + 1 :]
        losses.append(torch.nn.functional.cross_entropy(rows, tokens, reduction="none"))
    surprise = torch.cat(losses).double()
    return math.exp(surprise.mean()), len(surprise)


def test_perplexity_is_transformers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, count = expected(model)
    folder = export(model, tmp_path / "folder").folder
    for source in (model, folder):
        found = perplexity(open_model(source), TEXT, Progress(""))
        assert found == (pytest.approx(value, rel=1e-4), count)
    (tmp_path / "text").write_text(TEXT)
    few = ["--max-new-tokens", "4", "--num-speculative-tokens", "2"]
    assert main(["check", str(folder), "--perplexity", str(tmp_path / "text"), *few]) == 0
    printed = re.search(rf"perplexity +([\d.]+) over {count} tokens", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(value, rel=1e-3)


def test_texts_that_do_not_do_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"too short.*at least \d+ tokens, got \d\."):
        perplexity(open_model(model), "e", Progress(""))
    with pytest.raises(FolderError, match="cannot be read"):
        read_text(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(FolderError, match="a text file in UTF-8"):
        read_text(tmp_path / "binary")
