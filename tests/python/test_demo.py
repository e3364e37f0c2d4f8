"""The pair that comes with the package."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

import pard_rt.generator
from pard_rt import Generator
from pard_rt.cli import main
from pard_rt.models.find import locate
from pard_rt.training.stdlib_text import held_out_text

PROMPTS = [text[600:800].decode() for text in list(held_out_text().values())[:5]]


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(method="plain", threads=1)


@pytest.mark.parametrize("method", ["pard", "draft"])
@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_plain_decodings(plain: Generator, method: Any, k: int, temperature: float) -> None:
    options: Any = {"max_new_tokens": 64, "temperature": temperature, "seed": 11}
    drafting = plain.with_method(method, num_speculative_tokens=k)
    expected = [output.text for output in plain.generate(PROMPTS, **options)]
    together = drafting.generate(PROMPTS, **options)
    assert [output.text for output in together] == expected
    assert [drafting.generate(prompt, **options).text for prompt in PROMPTS] == expected


def test_drafts_pay_in_rounds() -> None:
    """A pair that has learnt its trade; how much sooner its text comes is for the benchmark."""
    for method in ("pard", "draft"):
        outputs = Generator(method=method, threads=1).generate(PROMPTS)  # type: ignore[arg-type]
        counts = [output.stats.counts for output in outputs]
        assert sum(c.committed for c in counts) > 2 * sum(c.rounds for c in counts)


def test_the_pair_fits_in_25_megabytes() -> None:
    folders = [locate(name) for name in ("demo", "demo/parallel", "demo/classic")]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 25e6


def test_examples_of_the_docstrings() -> None:
    found = doctest.testmod(pard_rt.generator)
    assert (found.attempted, found.failed) == (6, 0)


def test_generate_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--max-new-tokens", "8", "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith("class Parser:")
    assert main(["check", "demo", "demo/parallel", "--max-new-tokens", "16", "--threads", "1"]) == 0
    assert "all checks hold" in capsys.readouterr().out
