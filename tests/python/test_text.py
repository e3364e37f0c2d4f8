"""Text out of tokens: whole characters, special tokens, and where a stop string ends it."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from tokenizers import Tokenizer, models

from pard_rt.text import Reading, TokenText
from tiny_models import NUM_TOKENS, make_tokenizer

END, BAR = 256, 257  # special tokens behind the 256 bytes
SPECIAL = {"<|im_end|>": END, "|": BAR}


@pytest.fixture(scope="module")
def text() -> TokenText:
    table = [bytes([byte]) for byte in range(256)] + [b"", b""]
    return TokenText(Tokenizer(models.WordLevel(SPECIAL, unk_token="?")), table)


def read(reading: Reading, tokens: list[int], *, has_ended: bool = True) -> list[Reading]:
    """What is read after each token, up to a stop string."""
    readings = []
    for i, token in enumerate(tokens):
        reading = reading.read(token, is_last=has_ended and i + 1 == len(tokens))
        readings.append(reading)
        if reading.stopped:
            break
    return readings


def ids(*parts: str | int) -> list[int]:
    """Bytes of texts, and special tokens between them."""
    return [i for part in parts for i in ([part] if isinstance(part, int) else part.encode())]


def test_characters_are_never_cut(text: TokenText) -> None:
    data = "naïve → 🙂".encode() + b"\xff\xe2\x82"
    readings = read(Reading(text), list(data))
    pieces = [reading.piece for reading in readings]
    assert "".join(pieces) == readings[-1].whole() == data.decode(errors="replace")
    assert "🙂" in pieces


def test_what_may_begin_a_stop_string_waits(text: TokenText) -> None:
    def pieces(data: str, *stop: str) -> list[str]:
        readings = read(Reading(text, stop), ids(data))
        return [reading.piece for reading in readings] + ["STOP"] * readings[-1].stopped

    assert pieces("abcd", "cd") == ["a", "b", "", "", "STOP"]
    assert pieces("aab", "ab") == ["", "a", "", "STOP"]  # the second a may begin it as well
    assert pieces("ababac", "abac") == ["", "", "", "ab", "", "", "STOP"]
    assert pieces("abx", "abc", "bx") == ["", "", "a", "STOP"]
    assert pieces("ab", "abc") == ["", "ab"]  # it never came
    assert pieces("é→", "→") == ["", "é", "", "", "", "STOP"]


def test_the_first_in_the_text_of_several_stop_strings_wins() -> None:
    words = Tokenizer(models.WordLevel({}, unk_token="?"))
    text = TokenText(words, [b"say ", b"one two three", b" four"])
    for stop in (("two", "one", "three"), ("three", "two", "one"), ("one two", "e two", "two t")):
        (_, last) = read(Reading(text, stop), [0, 1, 2])
        assert (last.whole(), last.stopped, last.num_tokens) == ("say ", True, 2)
    (_, _, last) = read(Reading(text, ("four", "three four")), [0, 1, 2])
    assert last.whole() == "say one two "


@pytest.mark.parametrize("skip", [True, False])
def test_a_stop_string_may_hold_special_tokens(text: TokenText, skip: bool) -> None:
    def outcome(stop: str, *parts: str | int) -> tuple[str, int, bool]:
        readings = read(Reading(text, (stop,), skip), ids(*parts))
        pieces = "".join(reading.piece for reading in readings)
        assert pieces == readings[-1].whole()
        return pieces, len(readings), readings[-1].stopped

    assert outcome("<|im_end|>", "ok", END, "no") == ("ok", 3, True)
    assert outcome("k<|im_end|>", "ok", END, "no") == ("o", 3, True)
    assert outcome("k<|im_end|>\nno", "ok", END, "\nnot") == ("o", 6, True)
    assert outcome("<|im_end|>||x", END, BAR, BAR, "x") == ("", 4, True)
    assert outcome("x<|im_end|>", END, "x", END) == ("" if skip else "<|im_end|>", 3, True)
    assert outcome("k<|im_end|>n", "ok", END, "!") == ("ok!" if skip else "ok<|im_end|>!", 4, False)
    # In ordinary tokens it is a stop string like any other.
    assert outcome("<|im_end|>", "ok<|im_end|>no") == ("ok", 12, True)


def test_a_hidden_token_is_found_as_a_whole_or_not_at_all(text: TokenText) -> None:
    for stop in ("end", ">", "<|im", "|>\n"):
        *_, last = read(Reading(text, (stop,)), ids("a", END, "\n", "b"))
        assert (last.whole(), last.stopped) == ("a\nb", False)
        *_, last = read(Reading(text, (stop,), False), ids("a", END, "\n", "b"))
        assert last.stopped  # it stands in the text, which shows the token
    *_, last = read(Reading(text, ("ab",)), ids("xa", END, "b"))
    assert (last.whole(), last.stopped) == ("x", True)  # nor does it hide a stop string


@pytest.mark.parametrize("skip", [True, False])
def test_stop_strings_are_those_of_a_plain_search(text: TokenText, skip: bool) -> None:
    chance = random.Random(5)
    alphabet = [*ids("aé"), END, BAR]
    strings = ["a", "é", "aé", "éa", "aa", "|", "a|", "|a", "a<|im_end|>", "<|im_end|>|é", "||"]
    num_stopped = 0
    for _ in range(1000):
        tokens = chance.choices(alphabet, k=chance.randint(1, 8))
        stop = tuple(chance.sample(strings, chance.randint(0, 3)))
        readings = read(Reading(text, stop, skip), tokens)
        expected, num_tokens, stopped = search(tokens, stop, skip)
        last = readings[-1]
        assert (last.whole(), last.num_tokens, last.stopped) == (expected, num_tokens, stopped)
        assert [reading.sure for reading in readings] == list(
            accumulate(reading.piece for reading in readings)
        )
        num_stopped += stopped
    assert 200 < num_stopped < 800


def search(tokens: list[int], stop: tuple[str, ...], skip: bool) -> tuple[str, int, bool]:
    """The text, its tokens, and whether a stop string ended it: all prefixes, all substrings."""
    for n in range(1, len(tokens) + 1):
        units = spell(tokens[:n], skip, is_all=n == len(tokens))
        shown = [(i, unit) for i, (unit, is_shown) in enumerate(units) if is_shown]
        every = [(i, unit) for i, (unit, _) in enumerate(units)]
        begins = [
            way[i][0]
            for way in (shown, every)
            for i in range(len(way))
            for j in range(i + 1, len(way) + 1)
            if "".join(unit for _, unit in way[i:j]) in stop
        ]
        if begins:
            cut = min(begins)
            return "".join(unit for i, unit in shown if i < cut), n, True
    return "".join(unit for _, unit in shown), len(tokens), False


def spell(tokens: list[int], skip: bool, *, is_all: bool) -> list[tuple[str, bool]]:
    """Characters, and hidden tokens as wholes; a hidden one inside a character stands before it."""
    names = {token: name for name, token in SPECIAL.items()}
    first, second = "é".encode()
    units: list[tuple[str, bool]] = []
    has_begun = False  # an é
    for token in tokens:
        if token in names and skip:
            units.append((names[token], False))
            continue
        if has_begun:
            units.append(("é" if token == second else "\ufffd", True))
            has_begun = False
            if token == second:
                continue
        if token == first:
            has_begun = True
        else:
            shown = names.get(token) or ("\ufffd" if token == second else chr(token))
            units += [(character, True) for character in shown]
    return units + [("\ufffd", True)] * (has_begun and is_all)


def test_texts_are_the_tokenizer_s_own() -> None:
    tokenizer = make_tokenizer()
    text = TokenText.of_tokenizer(tokenizer, NUM_TOKENS)
    tokens = tokenizer("<s>the rain</s> in<pad><pad> →").input_ids
    assert len(set(tokens) & set(tokenizer.all_special_ids)) == 3
    for skip in (True, False):
        *_, last = read(Reading(text, (), skip), tokens)
        assert last.whole() == tokenizer.decode(
            tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


def test_ids_without_a_token_spell_nothing(text: TokenText) -> None:
    for skip in (True, False):
        *_, last = read(Reading(text, (), skip), [ord("a"), 258, 99999, ord("b")])
        assert last.whole() == "ab"
