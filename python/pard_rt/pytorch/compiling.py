"""What ``torch.compile`` needs to be told where rounds are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pard_rt.errors import ModelError, first_line

_MOST_FORWARDS = 256  # torch.compile's limit for all of them; for one function's it is 8


@contextmanager
def compiling(models: str) -> Iterator[None]:
    """Allow for every shape of a round inside the block, and say whose forward is not compiled.

    Raises
    ------
    ModelError
        One of `models` cannot be.
    """
    from torch._dynamo import config  # takes a second to import
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=_MOST_FORWARDS):
            yield
    except TorchDynamoException as error:
        raise ModelError(
            f"A round of {models} cannot be compiled",
            "modules that torch.compile takes whole, and a compiler for their device",
            first_line(getattr(error, "inner_exception", error)),  # of a compiler behind it
            "Leave torch_compile=False.",
        ) from error
