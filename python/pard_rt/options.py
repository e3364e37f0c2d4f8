"""The options of a request: their types, their defaults, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Real
from reprlib import repr as shorten
from typing import Any, Literal, TypedDict

from pard_rt._core import SamplingParams
from pard_rt.errors import InvalidArgumentError, integer_of, require_flag, require_range

__all__ = ["Options", "Params", "read_options", "refuse_unknown"]


class Options(TypedDict, total=False):
    """How to generate: see `Generator.generate`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | ListLike[str]
    stop_token_ids: ListLike[int]
    eos_token_ids: ListLike[int] | None
    sampling: Literal["model"] | None
    skip_special_tokens: bool


def _integer(low: int, high: int) -> Callable[[str, object], int]:
    return lambda name, given: require_range(name, given, low, high)


def _number(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, Real):
        raise InvalidArgumentError(
            f"{name} must be a number", "an int or a float", shorten(given), "Pass a number."
        )
    return float(given)


def _strings(name: str, given: object) -> tuple[str, ...]:
    is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    strings: tuple[Any, ...] = tuple(given) if is_list else (given,)  # type: ignore[arg-type]
    if not all(isinstance(each, str) and each for each in strings):
        raise InvalidArgumentError(
            f"{name} must be a string or a list of strings",
            "strings that are not empty",
            shorten(given),
            f'Pass the text itself, such as {name}="\\n\\n".',
        )
    return strings


def _token_ids(name: str, given: object) -> tuple[int, ...]:
    listed = given.tolist() if hasattr(given, "tolist") else given
    is_list = isinstance(listed, Iterable) and not isinstance(listed, (str, bytes, Mapping))
    ids = tuple(map(integer_of, listed)) if is_list else (None,)  # type: ignore[arg-type]
    if None in ids:
        raise InvalidArgumentError(
            f"{name} must be a list of token ids",
            "integers",
            shorten(given),
            f"Pass a list, such as {name}=[2].",
        )
    return ids  # type: ignore[return-value]


def _option(default: Any, read: Callable[[str, object], Any]) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True)
class Params:
    """The options of a request, checked, and their defaults."""

    max_new_tokens: int = _option(128, _integer(1, 2**63 - 1))
    temperature: float = _option(0.0, _number)
    top_k: int = _option(0, _integer(0, 2**31 - 1))
    top_p: float = _option(1.0, _number)
    min_p: float = _option(0.0, _number)
    seed: int | None = _option(None, _integer(0, 2**64 - 1))
    stop: tuple[str, ...] = _option((), _strings)
    stop_token_ids: tuple[int, ...] = _option((), _token_ids)
    eos_token_ids: tuple[int, ...] | None = _option(None, _token_ids)
    skip_special_tokens: bool = _option(True, require_flag)

    def sampling(self, seed: int) -> SamplingParams:
        """Return how tokens are chosen.

        Raises
        ------
        InvalidArgumentError
            A number is out of its range.
        """
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed,
        )


def read_options(options: Mapping[str, object]) -> Params:
    """Check what a user passed as `Options`.

    Raises
    ------
    InvalidArgumentError
        There is no such option, or its value is of another type or out of its range.
    """
    refuse_unknown(options, Options.__annotations__)
    read: dict[str, Any] = {}
    for each in fields(Params):
        if each.name in options:
            given = options[each.name]
            is_default = given is None and each.default is None
            read[each.name] = None if is_default else each.metadata["read"](each.name, given)
    params = Params(**read)
    params.sampling(seed=0)  # refuses what is out of range
    return params


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that does not exist.

    Raises
    ------
    InvalidArgumentError
        One of `given` is not in `known`.
    """
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, cutoff=0.5)
            raise InvalidArgumentError(
                f"There is no option {name}",
                "one of " + ", ".join(names),
                name,
                f"Did you mean {' or '.join(near)}?" if near else "Leave it out.",
            )
