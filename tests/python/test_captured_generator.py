"""A `Generator` whose rounds are captured, on the CPU: run again instead of replayed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import TinyModels
from pard_rt import FallbackWarning, Generator, RuntimeMissingError
from pard_rt import generator as generator_module
from pard_rt._core import KernelSet
from pard_rt.cli import main
from pard_rt.pytorch import captured_executor

PROMPTS = ["the rain in the", "x", "The  end"]
SAMPLED: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.8, "seed": 7}


@pytest.fixture
def pair(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A target and its draft, on a device where rounds are captured."""
    monkeypatch.setattr(generator_module, "_CAPTURING", ("cpu",))
    return tiny_models.checkpoint("llama"), tiny_models.checkpoint("llama", mask_token=True)


@pytest.fixture
def expected(tiny_models: TinyModels) -> list[list[int]]:
    return token_ids(Generator(tiny_models.checkpoint("llama"), method="plain"))


def token_ids(generator: Generator) -> list[list[int]]:
    return [output.token_ids for output in generator.generate(PROMPTS, **SAMPLED)]


def no_code_object(_: object) -> KernelSet:
    raise RuntimeMissingError("There is no code object for Card 9", "a", "none", "Build it.")


def no_driver(_: object) -> KernelSet:
    return KernelSet("hip", ["gfx942.hsaco"])


def test_captured_rounds_give_the_target_s_text(
    expected: list[list[int]], pair: tuple[Path, Path]
) -> None:
    generator = Generator(*pair, num_speculative_tokens=4)
    for way in (generator, generator.with_method("plain"), generator.with_method("draft", pair[1])):
        assert token_ids(way) == expected


def test_whoever_asks_is_told_of_every_shape_that_is_captured(
    pair: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    @contextmanager
    def telling(text: str) -> Iterator[None]:
        told.append(text)
        yield
        told.append("done")

    silent = Generator(*pair, num_speculative_tokens=4)
    generator = Generator(*pair, num_speculative_tokens=4, capturing=telling)
    assert told == []
    for _ in range(2):
        assert token_ids(generator) == token_ids(silent)
    assert told[:2] == ["capturing rounds: K = 4, 4 slots, 193 positions", "done"]
    assert len(set(told[::2])) == len(told[::2])
    assert set(told[1::2]) == {"done"}
    count = len(told)
    token_ids(generator.with_method("plain"))
    assert told[count].startswith("capturing rounds: K = 0, 4 slots")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lookup", "message"),
    [(no_code_object, r"Card 9.*Build it"), (no_driver, r"driver|code object")],
)
def test_without_kernels_rounds_are_composed_and_that_is_said(
    lookup: Any,
    message: str,
    expected: list[list[int]],
    pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured_executor, "open_kernels", lookup)
    with pytest.warns(FallbackWarning, match=rf"not captured.*{message}") as warned:
        generator = Generator(*pair, num_speculative_tokens=4)
    assert [each.filename for each in warned] == [__file__]
    assert token_ids(generator) == expected
    assert generator.decoder.counts.accepted > 10
    classic = generator.with_method("draft", pair[1])  # is never captured: nothing to warn of
    assert token_ids(classic) == expected
    copied = pickle.loads(pickle.dumps(warned[0].message))
    assert str(copied) == str(warned[0].message)


@pytest.mark.filterwarnings("default")
def test_the_command_says_it_in_its_own_way(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captured_executor, "open_kernels", no_code_object)
    assert main(["generate", "--target", str(pair[0]), "--max-new-tokens", "4", "the"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("pard-rt: Rounds are not captured")
    assert "\n  got:      none\n  Build it.\n" in error
