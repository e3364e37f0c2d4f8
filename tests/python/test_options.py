"""The options of a request: what each takes, and how each says no before anything is decoded."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from pard_rt import Generator, InvalidArgumentError, Options
from pard_rt.options import Params

NAN, INF = float("nan"), float("inf")
NO_NUMBER: list[Any] = ["0.5", b"1", True, [0.5], {}, object(), 1j, np.array([0.5, 1.0])]
NO_INTEGER: list[Any] = [*NO_NUMBER, 2.5, np.float32(3), NAN, INF]
NO_IDS: list[Any] = ["2", b"2", 5, 2.0, True, {2: 3}, object(), np.int64(2), np.array(2)]
NO_IDS += [["2"], [None], [2.0], [True], [[2]], np.array([2.0]), np.array([[2]])]

WRONG: dict[str, list[Any]] = {
    "max_new_tokens": [*NO_INTEGER, None, 0, -1, 2**63],
    "temperature": [*NO_NUMBER, None, NAN, INF, -0.1, 1e-9, 1e300],
    "top_k": [*NO_INTEGER, None, -1, 2**31],
    "top_p": [*NO_NUMBER, None, NAN, INF, 0, -0.5, 1.5],
    "min_p": [*NO_NUMBER, None, NAN, INF, -0.5, 1.5],
    "seed": [*NO_INTEGER, -1, 2**64],
    "stop": [None, 7, True, b"x", "", [""], ["a", ""], [b"x"], [None], ["a", 7], {"a": 1}],
    "stop_token_ids": [*NO_IDS, None, [-1], [1, 9999], [2**31], [2**70]],
    "eos_token_ids": [*NO_IDS, [-1], [1, 9999], [2**31], [2**70]],
    "sampling": ["draft", 5, True, [], b"model"],
    "skip_special_tokens": [None, 0, 1, "yes", [], object()],
}
RIGHT: dict[str, list[Any]] = {
    "max_new_tokens": [1, np.int64(3), 2**63 - 1],
    "temperature": [0, 0.0, 1e-4, np.float32(0.5), np.float64(0.5), np.int32(1), 100],
    "top_k": [0, np.int64(3), 2**31 - 1],
    "top_p": [1, 0.5, np.float32(0.5)],
    "min_p": [0, 1, np.float64(0.5)],
    "seed": [None, 0, np.uint64(2**64 - 1)],
    "stop": ["a", ["a"], ("a", "b"), {"a"}, [], (each for each in "ab")],
    "stop_token_ids": [[], [1], (1, 2), {3}, np.array([1, 2]), range(3), [np.int32(1)]],
    "eos_token_ids": [None, [], [1], np.array([], int)],
    "sampling": [None],
    "skip_special_tokens": [True, False, np.bool_(False)],
}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator("demo", threads=1)


def test_every_option_is_tried() -> None:
    options = set(Options.__annotations__)
    assert options == {"sampling", *(each.name for each in fields(Params))}
    assert options == set(WRONG) == set(RIGHT)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_name_before_anything_is_decoded(
    name: str, generator: Generator
) -> None:
    rounds = generator.decoder.counts.rounds
    for value in WRONG[name]:
        for method in (generator.generate, generator.stream):
            with pytest.raises(InvalidArgumentError) as caught:
                method("import os", **{name: value})
            assert name in caught.value.problem, value
            assert "Generator" not in str(caught.value)
    assert generator.decoder.counts.rounds == rounds
    assert generator.decoder.num_active == generator.decoder.num_waiting == 0


@pytest.mark.parametrize("name", RIGHT)
def test_numbers_and_lists_of_other_libraries_are_taken(name: str, generator: Generator) -> None:
    for value in RIGHT[name]:
        options: Any = {"max_new_tokens": 2, name: value} if name != "max_new_tokens" else {}
        assert generator.generate("import os", **options).token_ids


def test_messages_are_plain(generator: Generator) -> None:
    for options, message in (
        (
            {"temperature": None},
            "temperature must be a number: expected an int or a float, got None",
        ),
        ({"top_p": "0.9"}, "top_p must be a number: expected an int or a float, got '0.9'"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer: expected an integer in 1.."),
        (
            {"stop_token_ids": 5},
            "stop_token_ids must be a list of token ids: expected integers, got 5",
        ),
        ({"stop": 7}, "stop must be a string or a list of strings: expected strings that"),
        ({"skip_special_tokens": 1}, "skip_special_tokens must be True or False: expected a bool"),
        ({"temperature": 1e-9}, "temperature is out of range: expected 0, or a finite value of at"),
        ({"eos_token_ids": [1, 9999]}, "eos_token_ids[1] is not a token of "),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            generator.generate("import os", **options)  # type: ignore[call-overload]
        assert message in str(caught.value)


def test_long_values_are_shortened_in_messages(generator: Generator) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        generator.generate("import os", stop_token_ids=["x"] * 100_000)  # type: ignore[list-item]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("max_tokens", "max_new_tokens"),
        ("eos_token_id", "eos_token_ids"),
        ("stop_strings", "stop"),
        ("topk", "top_k"),
        ("skip_special", "skip_special_tokens"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_known_ones(
    given: str, nearest: str, generator: Generator
) -> None:
    for method in (generator.generate, generator.stream):
        with pytest.raises(InvalidArgumentError, match=rf"no option {given}\b") as caught:
            method("import os", **{given: 3})
        assert nearest in caught.value.remedy
        assert set(Options.__annotations__) <= set(caught.value.expected.replace(",", "").split())
    with pytest.raises(InvalidArgumentError, match="no option xyzzy"):
        generator.generate("import os", xyzzy=3)  # type: ignore[call-overload]


def test_with_method_refuses_like_the_others(generator: Generator) -> None:
    with pytest.raises(InvalidArgumentError, match=r"option mask_token:.*mean mask_token_id"):
        generator.with_method("plain", mask_token=3)
    for name in ("num_speculative_tokens", "mask_token_id"):
        for value in (*NO_INTEGER, -1, 2**31):
            with pytest.raises(InvalidArgumentError, match=name):
                generator.with_method("plain", **{name: value})
    for method in (None, 5, "fast", ["plain"]):
        with pytest.raises(InvalidArgumentError, match="Unknown method"):
            generator.with_method(method)  # type: ignore[arg-type]
    for value in (*NO_INTEGER, None, -1, 65):
        with pytest.raises(InvalidArgumentError, match="num_speculative_tokens"):
            generator.num_speculative_tokens = value
