"""Drafts with logits of some tokens: what is kept, and that texts stay the target's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pard_rt
from conftest import TinyModels
from pard_rt.cli import main
from pard_rt.exporter.trim import trim_head
from pard_rt.models.checkpoint import load
from tiny_models import EOS, NUM_TOKENS, make_tokenizer

TEXT = "the cat and the hat, the cat on the mat; "


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"text": TEXT * 20}) + "\n")
    return file


@pytest.fixture
def draft(tiny_models: TinyModels) -> Path:
    return tiny_models.checkpoint("llama", seed=4, mask_token=True)


def test_what_answers_use_most_is_kept(draft: Path, answers: Path) -> None:
    loaded = load(draft)
    whole = loaded.module.get_output_embeddings().weight.detach().clone()
    with pytest.warns(pard_rt.Notice, match=r"proposes 12 of its 267 tokens.*\d+\.\d %"):
        trimmed = trim_head(loaded, 12, [answers])
    head = trimmed.facts.head_tokens
    assert list(head) == sorted(head)
    assert len(head) == 12
    assert set(range(NUM_TOKENS - 3, NUM_TOKENS)) < set(head)  # special ones
    tokens = make_tokenizer()(TEXT).input_ids
    often = sorted(set(tokens), key=tokens.count, reverse=True)[:4]
    assert set(often) < set(head)
    assert trimmed.module.get_output_embeddings().weight.equal(whole[list(head)])


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_texts_stay_the_targets(
    weights: Any, draft: Path, answers: Path, tmp_path: Path, tiny_models: TinyModels
) -> None:
    target = tiny_models.checkpoint("llama", seed=4)  # what the draft was made of
    with pytest.warns(pard_rt.Notice):
        folder = pard_rt.export(
            draft, tmp_path / "draft", weights=weights, head_tokens=60, head_data=[answers]
        ).folder
    whole = pard_rt.export(target, tmp_path / "target").folder
    contract = pard_rt.read_folder(folder)
    assert len(contract.head_tokens) == 60
    assert EOS in contract.head_tokens
    plain = pard_rt.Generator(whole)
    for method in ("pard", "draft"):
        drafted = pard_rt.Generator(whole, folder, method=method, num_speculative_tokens=4)
        for options in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}):
            same: Any = {"max_new_tokens": 60, **options}
            output = drafted.generate("the cat", **same)
            assert output.token_ids == plain.generate("the cat", **same).token_ids
    proposed = pard_rt.Generator(whole, folder, method="draft", num_speculative_tokens=4)
    counts = proposed.generate("the cat", max_new_tokens=60).stats.counts
    assert counts.drafted > 0
    with pytest.raises(pard_rt.IncompatibleModelsError, match="cannot be a target"):
        pard_rt.Generator(folder)


def test_what_cannot_be_trimmed_is_refused(draft: Path, answers: Path, tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(pard_rt.InvalidArgumentError, match=match):
            pard_rt.export(draft, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused("belong together", head_tokens=20)
    refused("belong together", head_data=[answers])
    refused("3 special tokens", head_tokens=2, head_data=[answers])
    refused("head_tokens is out of range", head_tokens=1000, head_data=[answers])
    refused("cannot be read", head_tokens=20, head_data=[tmp_path / "none.jsonl"])


@pytest.mark.filterwarnings("always::pard_rt.Notice")
def test_the_command(
    draft: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(draft), str(out), "--head-tokens", "40", "--head-data", str(answers)]
    assert main(command) == 0
    assert "The draft proposes 40 of its" in capsys.readouterr().err
    contract = json.loads((out / "pard_rt.json").read_text())
    assert len(contract["head_tokens"]) == 40
    contract["head_tokens"][3] = contract["head_tokens"][4]
    (out / "pard_rt.json").write_text(json.dumps(contract))
    with pytest.raises(pard_rt.FolderError, match="head_tokens"):
        pard_rt.read_folder(out)
