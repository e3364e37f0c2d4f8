"""Keeping the libraries an export goes through from narrating it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Let only errors of torch.onnx, onnxscript and onnx_ir through."""
    talkative = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict}
    levels = {
        logger: logger.level for name, logger in talkative.items() if name.startswith(_TALKATIVE)
    }
    for name in _TALKATIVE:
        levels.setdefault(logging.getLogger(name), logging.NOTSET)
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def silent() -> Iterator[None]:
    """Let nothing through, printed or logged: a tracer that fails shows the graph it had made."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(disabled)
